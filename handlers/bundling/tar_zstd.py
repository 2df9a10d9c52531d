"""tar.zst. Chosen by name through handlers/bundling/archive.py; needs the extra `transforms`."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import ClassVar, Final

import zstandard

from handlers.bundling.base import Member
from handlers.bundling.tar_writer import compressed_tar

_LEVEL: Final = 3


class TarZstd:
    """One frame with a checksum, level 3, one thread. The same bytes wherever the same libzstd is."""

    content_type: ClassVar[str] = "application/zstd"

    def write(self, members: AsyncIterator[Member]) -> AsyncGenerator[bytes, None]:
        return compressed_tar(members, _Zstd())


class _Zstd:
    def __init__(self) -> None:
        # Were the size stated, window and memory would depend on it, and small windows on the processor:
        # https://github.com/facebook/zstd/issues/4099
        options = zstandard.ZstdCompressor(
            level=_LEVEL, write_checksum=True, write_content_size=False, threads=0
        )
        self._frame = options.compressobj()

    def compress(self, block: bytes) -> bytes:
        return self._frame.compress(block)

    def finish(self) -> bytes:
        return self._frame.flush()
