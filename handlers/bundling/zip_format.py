"""The records of a zip as bytes (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 6.3.10), for handlers/bundling/zip_writer.py.

Everything that could vary is fixed: names are UTF-8 and say so, the time is the first that the format knows (1980-01-01
00:00), files are rw-r--r--, and whether a record is a zip64 one follows from the sizes alone.

Content is deflated, by the format, into stored blocks: RFC 1951 leaves nothing to choose in them, and their end can be told.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from handlers.bundling.base import Piece

_MAX_16: Final = 0xFFFF
_MAX_32: Final = 0xFFFFFFFF
"""As a count, size or offset they mean: look into the zip64 record (4.4.1.4)."""

_BLOCK: Final = 0xFFFF
"""Bytes of a stored block at most (RFC 1951, 3.2.4)."""

_PLAIN: Final = 20
_ZIP64: Final = 45
"""Versions needed to extract (4.4.3.2)."""
_MADE_BY: Final = 3 << 8 | _ZIP64
"""Unix, whose modes the attributes are."""
_FLAGS: Final = 1 << 3 | 1 << 11
"""CRC and sizes follow the content; the name is UTF-8 (4.4.4)."""
_DEFLATED: Final = 8
_TIME, _DATE = 0, 1 << 5 | 1
_MODE: Final = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """What the records of one file say; `crc` only matters to those behind the content."""

    name: bytes
    size: int
    crc: int = 0

    @property
    def stored(self) -> int:
        """Bytes of the content in the archive."""
        return self.size + 5 * max(1, -(-self.size // _BLOCK))

    @property
    def zip64(self) -> bool:
        """Whether its sizes take 64 bits."""
        return self.stored >= _MAX_32


def local_header(entry: Entry) -> bytes:
    """What goes before the content (4.3.7)."""
    unknown, extra = 0, b""
    if entry.zip64:
        unknown, extra = _MAX_32, _extra(0, 0)
    return (
        struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            _ZIP64 if entry.zip64 else _PLAIN,
            _FLAGS,
            _DEFLATED,
            _TIME,
            _DATE,
            0,
            unknown,
            unknown,
            len(entry.name),
            len(extra),
        )
        + entry.name
        + extra
    )


def descriptor(entry: Entry) -> bytes:
    """What goes behind the content (4.3.9)."""
    return struct.pack(
        "<4sL2Q" if entry.zip64 else "<4s3L", b"PK\x07\x08", entry.crc, entry.stored, entry.size
    )


def central_header(entry: Entry, offset: int) -> bytes:
    """Its line in the directory (4.3.12); `offset` is that of its local header."""
    stored, size = (_MAX_32, _MAX_32) if entry.zip64 else (entry.stored, entry.size)
    long = [entry.size, entry.stored] if entry.zip64 else []
    if offset >= _MAX_32:
        long.append(offset)
    extra = _extra(*long) if long else b""
    return (
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            _MADE_BY,
            _ZIP64 if entry.zip64 else _PLAIN,
            _FLAGS,
            _DEFLATED,
            _TIME,
            _DATE,
            entry.crc,
            stored,
            size,
            len(entry.name),
            len(extra),
            0,
            0,
            0,
            _MODE,
            min(offset, _MAX_32),
        )
        + entry.name
        + extra
    )


def end_records(count: int, size: int, offset: int) -> bytes:
    """What ends the archive (4.3.14 to 4.3.16), for a directory of `count` lines and `size` bytes at `offset`."""
    records = b""
    if count >= _MAX_16 or size >= _MAX_32 or offset >= _MAX_32:
        records = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, _MADE_BY, _ZIP64, 0, 0, count, count, size, offset
        ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1)
    few = min(count, _MAX_16)
    return records + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(size, _MAX_32), min(offset, _MAX_32), 0
    )


class StoredBlocks:
    """Puts the headers of stored blocks into one file's content."""

    def __init__(self, size: int) -> None:
        """`size`: of the whole content, in bytes."""
        self._ahead = size
        """Bytes behind the present block."""
        self._room = 0
        """Bytes that the present block still takes."""

    def start(self) -> bytes:
        """The first header; needed where there is no content that would bring it along."""
        return self._header()

    def put(self, chunk: bytes) -> Iterator[Piece]:
        """The chunk, with a header wherever a block ends and there is more. Together no more than `size` bytes may come."""
        rest = memoryview(chunk)
        while rest:
            if not self._room:
                yield self._header()
            piece = rest[: self._room]
            self._room -= len(piece)
            rest = rest[len(piece) :]
            yield piece

    def _header(self) -> bytes:
        self._room = min(self._ahead, _BLOCK)
        self._ahead -= self._room
        return struct.pack("<BHH", self._ahead == 0, self._room, self._room ^ 0xFFFF)


def _extra(*values: int) -> bytes:
    """The zip64 extra field (4.5.3)."""
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
