"""tar.gz. Chosen by name through handlers/bundling/archive.py."""

import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import ClassVar, Final

from handlers.bundling.base import Member
from handlers.bundling.tar_writer import compressed_tar

_LEVEL: Final = 6
_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name, no time, no hint, unknown system (RFC 1952, 2.3): zlib's own header names the system it was built for."""


class TarGzip:
    """One gzip member, level 6. The same bytes wherever the same zlib is."""

    content_type: ClassVar[str] = "application/gzip"

    def write(self, members: AsyncIterator[Member]) -> AsyncGenerator[bytes, None]:
        return compressed_tar(members, _Gzip())


class _Gzip:
    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._head = _HEADER
        self._crc = 0
        self._size = 0

    def compress(self, block: bytes) -> bytes:
        self._crc = zlib.crc32(block, self._crc)
        self._size += len(block)
        head, self._head = self._head, b""
        return head + self._deflate.compress(block)

    def finish(self) -> bytes:
        return self._deflate.flush() + struct.pack("<LL", self._crc, self._size & 0xFFFFFFFF)
