"""The stream of a tar (POSIX.1-2017, pax), and its way through a compressor. Used by tar_gzip.py and tar_zstd.py.

Files only, rw-r--r--, of nobody, from 1970-01-01: what could vary is fixed. A pax header goes before those members only whose
path is longer than 100 bytes or not ASCII, or whose size takes more than 11 octal digits.
https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
"""

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final, Protocol

from handlers.bundling.base import Member, Piece, blocks, content
from handlers.transforms.offload import offloaded

_UNIT: Final = 512
"""Everything in a tar is padded to a multiple of so many bytes."""
_NAME: Final = 100
_SIZE: Final = 8**11
"""The first size that has no room in the header."""
_FEED: Final = 512 * 1024
"""Bytes that a compressor gets at a time. Some compressors' output depends on it: another number is another archive."""


class Compressor(Protocol):
    """One compressed stream. Called from several threads, one after another."""

    def compress(self, block: bytes) -> bytes:
        """What can be given out so far."""
        ...

    def finish(self) -> bytes:
        """The rest, with whatever ends the format."""
        ...


async def compressed_tar(
    members: AsyncIterator[Member], compressor: Compressor
) -> AsyncGenerator[bytes, None]:
    """The tar of the members, compressed."""
    async with (
        aclosing(tar(members)) as pieces,
        aclosing(blocks(pieces, _FEED)) as fed,
    ):
        async for block in fed:
            if made := await offloaded(len(block), partial(compressor.compress, block)):
                yield made
    yield await asyncio.to_thread(compressor.finish)


async def tar(members: AsyncIterator[Member]) -> AsyncGenerator[Piece, None]:
    """The tar of the members; ends with two empty units, unpadded."""
    async for member in members:
        yield headers(member.path, member.size)
        async with aclosing(content(member)) as chunks:
            async for chunk in chunks:
                yield chunk
        yield bytes(-member.size % _UNIT)
    yield bytes(2 * _UNIT)


def headers(path: str, size: int) -> bytes:
    """What goes before the content of one file."""
    name, shown_size = path.encode(), size
    special: dict[str, bytes] = {}
    if len(name) > _NAME or not path.isascii():
        special["path"] = name
        name = path.encode("ascii", "replace")[:_NAME]
    if size >= _SIZE:
        special["size"] = b"%d" % size
        shown_size = 0
    return (_pax(special) if special else b"") + _header(name, shown_size, b"0")


def _pax(records: Mapping[str, bytes]) -> bytes:
    data = b"".join(_record(key, value) for key, value in records.items())
    return _header(b"././@PaxHeader", len(data), b"x") + data + bytes(-len(data) % _UNIT)


def _record(key: str, value: bytes) -> bytes:
    """`30 path=…` and a line feed, where the number is the length of all of it."""
    body = b" %s=%s\n" % (key.encode(), value)
    length = len(body) + len(str(len(body)))
    return b"%d" % (len(body) + len(str(length))) + body


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    fields = struct.pack(
        "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x",
        name,
        b"0000644",
        b"0000000",
        b"0000000",
        b"%011o" % size,
        b"%011o" % 0,
        b" " * 8,
        kind,
        b"",
        b"ustar",
        b"00",
        b"",
        b"",
        b"0000000",
        b"0000000",
        b"",
    )
    # The sum is taken with spaces in its own place.
    return b"%s%06o\0 %s" % (fields[:148], sum(fields), fields[156:])
