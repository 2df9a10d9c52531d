"""Keys, bytes and streams that the suite is made of."""

import asyncio
import random
import string
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from backends.base import CHUNK_SIZE, Attributes, Receipt, StorageBackend, single

T = TypeVar("T")

NOTHING = Attributes()
LARGE = 9 * CHUNK_SIZE + 12_345
"""More than one part of a multipart upload with the parts that adapters default to."""

KEYS = (
    "plain",
    "deep/er/and/deep.er",
    "with space",
    " leading and trailing ",
    "a+b=c",
    "100%",
    "%41",
    "%2F",
    "in/%2e%2e/%2E%2E/%2e%2e%2fup",
    "#fragment",
    "query?x=1&y=2",
    "quote'\"quote",
    "<angle>&amp;",
    "semi;colon,comma:colon@at!bang$dollar*star(paren)",
    "back\\slash",
    "~tilde",
    "-dash",
    ".hidden",
    "dots..in/..the/...middle",
    "grüße/日本語/😀",
    "composed \u00e9",
    "decomposed e\u0301",
    "every" + "".join(c for c in string.printable if c.isprintable() and c != "/"),
    "n" * 255,
    "é" * 127 + "/" + "d" * 255 + "/leaf",
    "k/" * 511 + "ey",
)

UNUSABLE = (
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "../a",
    "n\0l",
    "\ud800",
    "x" * 1025,
    "é" * 513,
)


class SourceBroke(Exception):
    """Raised by a source; a backend must let it through as it is."""


def some_bytes(size: int, seed: int = 1) -> bytes:
    """The same bytes for the same arguments."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - material, no secret


def odd_pieces(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of no one's favourite size, some of them empty."""
    sizes = [0, 1, 70_001, 0, 65_536, 3, CHUNK_SIZE + 7, 499_979]
    start = turn = 0
    yield b""
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1
    yield b""


async def fed(data: bytes) -> AsyncIterator[bytes]:
    """`odd_pieces`, as a backend is given them."""
    for piece in odd_pieces(data):
        yield piece


async def put(backend: StorageBackend, key: str, data: bytes) -> Receipt:
    """Write without attributes."""
    return await backend.write(key, single(data), NOTHING)


async def each(calls: list[Coroutine[None, None, T]], at_once: int = 32) -> list[T]:
    """All results, in order, `at_once` under way."""
    gate = asyncio.Semaphore(at_once)

    async def gated(call: Coroutine[None, None, T]) -> T:
        async with gate:
            return await call

    return await asyncio.gather(*(gated(call) for call in calls))


EARLY = 12
"""Turns of the event loop within which no request has left for a server."""


def moments() -> Iterator[int]:
    """Turns of the event loop after which to cancel a call: every early one, then ever fewer, up to long after its end."""
    turns = 0
    while turns < 1 << 20:
        yield turns
        turns += 1 + turns // 2


async def cancelled_after(turns: int, task: asyncio.Task[Any]) -> bool:
    """Cancel the task after so many turns of the event loop; whether it had ended before. Raises what it raises itself."""
    for _ in range(turns):
        if task.done():
            break
        await asyncio.sleep(0)
    finished = not task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return finished
