"""Zip. Chosen by name through handlers/bundling/archive.py."""

import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar

from backends.base import CHUNK_SIZE
from handlers.bundling.base import Member, Piece, blocks, content
from handlers.bundling.zip_format import (
    Entry,
    StoredBlocks,
    central_header,
    descriptor,
    end_records,
    local_header,
)


class Zip:
    """Any size and any number of members: zip64 wherever it is needed, and nowhere else.

    The directory is kept until the end: 46 bytes and the path for each member, 12 to 28 more beyond 4 GiB.
    """

    content_type: ClassVar[str] = "application/zip"

    async def write(self, members: AsyncIterator[Member]) -> AsyncGenerator[bytes, None]:
        async with (
            aclosing(_pieces(members)) as pieces,
            aclosing(blocks(pieces, CHUNK_SIZE)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk


async def _pieces(members: AsyncIterator[Member]) -> AsyncGenerator[Piece, None]:
    offset, count, directory = 0, 0, bytearray()
    async for member in members:
        entry, crc = Entry(member.path.encode(), member.size), _Crc()
        header = local_header(entry)
        yield header
        stored = StoredBlocks(member.size)
        if member.size == 0:
            yield stored.start()
        async with aclosing(content(member, crc.update)) as chunks:
            async for chunk in chunks:
                for piece in stored.put(chunk):
                    yield piece
        entry = replace(entry, crc=crc.value)
        trailer = descriptor(entry)
        yield trailer
        directory += central_header(entry, offset)
        offset += len(header) + entry.stored + len(trailer)
        count += 1
    yield memoryview(directory)
    yield end_records(count, len(directory), offset)


class _Crc:
    """The CRC-32 of what came so far."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, chunk: bytes) -> None:
        self.value = zlib.crc32(chunk, self.value)
