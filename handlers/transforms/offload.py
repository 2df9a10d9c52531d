"""Where the heavy part of a transform runs: beside the event loop."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from handlers.transforms.base import Turn

Result = TypeVar("Result")

INLINE = 32 * 1024
"""Up to so many bytes are worked on in the event loop (about 0.1 ms of deflate); more go to a thread."""


async def offloaded(size: int, work: Callable[[], Result], turn: Turn = nullcontext) -> Result:
    """What `work` returns; on a thread, in its `turn`, where `size` bytes would hold up the event loop."""
    if size <= INLINE:
        return work()
    async with turn():
        return await asyncio.to_thread(work)
