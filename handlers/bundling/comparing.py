"""Whether the archive that lies there holds what ours would: for formats whose bytes depend on a library's version.

Called by worker/bundle_archive.py, when another release has written the archive and died before it told.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backends.base import CHUNK_SIZE
from backends.errors import Conflict
from handlers.bundling.archive import plain_tar
from handlers.bundling.base import Member, blocks
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Part, Work
from handlers.transforms.registry import TRANSFORMS

DECODERS: Final[Mapping[str, str]] = MappingProxyType({"tar.gz": "gunzip", "tar.zst": "unzstd"})
"""Formats that can be compared, and the transform that takes their compression off."""

_LIMITS: Final = Limits(ratio=1e9, total=1 << 62, entry=1 << 62)
"""None but that of memory: it is left at the first byte that differs."""
_HELD: Final = 32 * CHUNK_SIZE
"""Bytes of which nothing has come out at most; no compressor of ours holds back nearly as many."""


async def same_inside(
    format_: str, there: AsyncIterator[bytes], members: Callable[[], AsyncGenerator[Member, None]]
) -> AsyncGenerator[bytes, None]:
    """The bytes of `there`, as long as the tar in it is that of the members.

    Raises `Conflict` in place of the end where it is another one, `MissingExtra`, and what `archive` raises. Holds a few
    chunks, and each member is opened once.
    """
    decoder = TRANSFORMS.load(DECODERS[format_])()
    meter, held = Meter(_LIMITS), deque[bytes]()

    async def read() -> AsyncGenerator[bytes, None]:
        async for chunk in there:
            meter.read(len(chunk))
            held.append(chunk)
            if sum(map(len, held)) > _HELD:
                raise _another(format_)
            yield chunk

    async with (
        aclosing(read()) as source,
        aclosing(decoder.apply(Part(source), Work(meter, Path()))) as parts,
        aclosing(_decoded(format_, parts)) as theirs,
        aclosing(blocks(theirs, CHUNK_SIZE)) as their_blocks,
        aclosing(plain_tar(members)) as ours,
        aclosing(blocks(ours, CHUNK_SIZE)) as our_blocks,
    ):
        async for block in their_blocks:
            if block != await anext(our_blocks, b""):
                raise _another(format_)
            while held:
                yield held.popleft()
        if await anext(our_blocks, b""):
            raise _another(format_)
        while held:
            yield held.popleft()


async def _decoded(format_: str, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
    try:
        async for part in parts:
            if not part.steps:
                raise _another(format_)
            async for chunk in part.chunks:
                yield chunk
    except Refused as exc:
        raise _another(format_) from exc


def _another(format_: str) -> Conflict:
    return Conflict(f"it is no {format_} of the same files")
