"""compress: makes a payload smaller on its way to the targets, unless its first bytes show that it is small already.

A redo, on whatever machine, has to write the same bytes. So the payload is cut into chunks of one size whatever sizes it
arrives in, on one thread, and gzip is written by zlib: igzip is several times as fast, but what it writes depends on the
CPU's instructions and on the sizes of the chunks. Where speed counts, zstd has it. Another version of zlib or libzstd may
write other bytes.
"""

import re
import sys
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backends.base import CHUNK_SIZE
from handlers.transforms.base import Part, Turn, Work
from handlers.transforms.offload import offloaded
from handlers.transforms.peek import peek

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVELS: Final[Mapping[str, int]] = MappingProxyType({"gzip": 9, "zstd": 14})
"""The highest: beyond 14, zstd takes more than 64 MiB."""

_SMALL_ALREADY = re.compile(
    rb"\x1f\x8b\x08|PK(\x03\x04|\x05\x06)|\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18|\xfd7zXZ\x00|BZh[1-9](1AY&SY|\x17rE8P\x90)"
    rb"|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x04\x22\x4d\x18|\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP"
    rb"|....ftyp|\x1aE\xdf\xa3|OggS|fLaC|PAR1|wOF[F2]",
    re.DOTALL,
)
"""gzip, zip, zstd, xz, bzip2, 7z, RAR, LZ4; PNG, JPEG, GIF, WebP; MP4 and kin, WebM, Ogg, FLAC; Parquet; WOFF."""


class CompressOptions(BaseModel):
    """Of the step `compress`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    codec: Literal["zstd", "gzip"] = Field(
        default="zstd",
        description="The format: `zstd` (smaller and several times as fast), or `gzip` where readers know nothing else.",
    )
    level: int | None = Field(
        default=None,
        ge=1,
        description="1 (fast) to 9 (small) for gzip, default 6; 1 to 14 for zstd, default 3.",
    )

    @model_validator(mode="after")
    def _level_of_codec(self) -> Self:
        if self.level is not None and self.level > _LEVELS[self.codec]:
            raise ValueError(f"{self.codec} has levels 1 to {_LEVELS[self.codec]}, not {self.level}")
        return self


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Compress:
    """The step `compress`."""

    Options = CompressOptions
    early = False

    def __init__(self, options: CompressOptions | None = None) -> None:
        self._options = options or CompressOptions()

    @property
    def name(self) -> str:
        return "compress"

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        head, chunks = await peek(part.chunks, 16)
        if _SMALL_ALREADY.match(head):
            yield replace(part, chunks=chunks)
            return
        if part.content_encoding:
            part = part.noted(f"compressed with its content encoding {part.content_encoding[:80]!a} left on")
        suffix, content_type = _MADE[self._options.codec]
        async with aclosing(_compressed(self._compressor(), chunks, work.turn)) as compressing:
            yield part.changed(self.name, compressing, add=suffix, content_type=content_type)

    def _compressor(self) -> _Compressor:
        if self._options.codec == "gzip":
            # The header zlib writes by itself has no name and no time; its OS byte is the machine's, so `_Gzip` writes one.
            return _Gzip(self._options.level or 6)
        parameter = zstd.CompressionParameter
        return zstd.ZstdCompressor(
            options={
                parameter.compression_level: self._options.level or 3,
                parameter.checksum_flag: 1,
                parameter.nb_workers: 0,
            }
        )


class _Gzip:
    """One member, as `gzip -n` writes it but for the OS byte: 255, unknown."""

    def __init__(self, level: int) -> None:
        self._header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
        self._body = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
        self._crc = self._size = 0

    def compress(self, data: bytes, /) -> bytes:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        made, self._header = self._header + self._body.compress(data), b""
        return made

    def flush(self) -> bytes:
        trailer = self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        return self._header + self._body.flush() + trailer


_MADE: Final = MappingProxyType({"gzip": (".gz", "application/gzip"), "zstd": (".zst", "application/zstd")})


async def _compressed(
    compressor: _Compressor, chunks: AsyncIterator[bytes], turn: Turn
) -> AsyncGenerator[bytes, None]:
    async with aclosing(_regular(chunks)) as regular:
        async for chunk in regular:
            for piece in _cut(await offloaded(len(chunk), partial(compressor.compress, chunk), turn)):
                yield piece
    # What is left to do may be the work of a whole chunk.
    for piece in _cut(await offloaded(CHUNK_SIZE, compressor.flush, turn)):
        yield piece


async def _regular(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in chunks of `CHUNK_SIZE`, the last one shorter."""
    held: list[bytes] = []
    have = 0
    async for chunk in chunks:
        if not held and len(chunk) == CHUNK_SIZE:
            yield chunk
            continue
        held.append(chunk)
        have += len(chunk)
        if have >= CHUNK_SIZE:
            *whole, last = _cut(b"".join(held))
            if len(last) == CHUNK_SIZE:
                whole.append(last)
                last = b""
            for piece in whole:
                yield piece
            held, have = [last] if last else [], len(last)
    if held:
        yield b"".join(held)


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= CHUNK_SIZE:
        return iter((data,) if data else ())
    return (data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE))
