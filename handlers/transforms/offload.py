"""Where the heavy part of a transform runs: beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_INLINE = 32 * 1024
"""Up to so many bytes are worked on in the event loop (about 0.1 ms of deflate); more go to a thread."""


async def offloaded(size: int, work: Callable[[], Result]) -> Result:
    """What `work` returns; on a thread where `size` bytes would hold up the event loop."""
    return work() if size <= _INLINE else await asyncio.to_thread(work)
