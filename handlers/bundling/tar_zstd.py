"""tar.zst. Chosen by name through handlers/bundling/archive.py; needs the extra `transforms`."""

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import ClassVar, Final

from handlers.bundling.base import Member
from handlers.bundling.tar_writer import compressed_tar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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
        parameter = zstd.CompressionParameter
        self._frame = zstd.ZstdCompressor(
            options={
                parameter.compression_level: _LEVEL,
                parameter.checksum_flag: 1,
                parameter.content_size_flag: 0,
                parameter.nb_workers: 0,
            }
        )

    def compress(self, block: bytes) -> bytes:
        return self._frame.compress(block)

    def finish(self) -> bytes:
        return self._frame.flush()
