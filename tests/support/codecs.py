"""Payloads for the one-to-one codecs, and what the transforms make of them. Used by tests/unit and tests/fuzz."""

import bz2
import gzip
import io
import lzma
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import zstandard

from backends.base import CHUNK_SIZE
from handlers.transforms.base import Limits, Meter, Part, Transform, Work, transformed
from handlers.transforms.bunzip2 import Bunzip2
from handlers.transforms.codecs import Unpack
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.unxz import Unxz
from handlers.transforms.unzstd import Unzstd


@dataclass(frozen=True, slots=True)
class Sample:
    """A codec as other programs know it."""

    transform: Unpack
    encode: Callable[[bytes], bytes]
    """With every checksum the format has."""
    decode: Callable[[bytes], bytes]
    """By somebody else; more lenient than ours."""
    suffix: str
    content_type: str
    magic: int
    """Bytes that have to be there for a payload to be of this format."""


def zstd(data: bytes, **parameters: Any) -> bytes:
    parameters.setdefault("write_checksum", True)
    return zstandard.ZstdCompressor(**parameters).compress(data)


def unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        return reader.read()


def unxz(data: bytes) -> bytes:
    """`lzma.decompress` knows no padding."""
    made = []
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        made.append(stream.decompress(data))
        data = stream.unused_data.lstrip(b"\0") if stream.eof else b""
    return b"".join(made)


SAMPLES: Mapping[str, Sample] = MappingProxyType(
    {
        "gunzip": Sample(
            Gunzip(),
            lambda data: gzip.compress(data, mtime=0),
            gzip.decompress,
            ".gz",
            "application/gzip",
            4,
        ),
        "bunzip2": Sample(Bunzip2(), bz2.compress, bz2.decompress, ".bz2", "application/x-bzip2", 10),
        "unxz": Sample(Unxz(), lzma.compress, unxz, ".xz", "application/x-xz", 6),
        "unzstd": Sample(Unzstd(), zstd, unzstd, ".zst", "application/zstd", 4),
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one part that came out, read to its end."""

    part: Part
    data: bytes
    sizes: Sequence[int]
    """Of its chunks."""


def work_of(limits: Limits | None = None) -> Work:
    return Work(Meter(limits or Limits()), Path(tempfile.gettempdir()), "bundle/resource")


async def stream(data: bytes, size: int, meter: Meter) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        chunk = data[start : start + size]
        meter.read(len(chunk))
        yield chunk


async def outcome(
    transforms: Transform | Sequence[Transform],
    data: bytes,
    *,
    size: int = CHUNK_SIZE,
    limits: Limits | None = None,
    **fields: Any,
) -> Outcome:
    """Of `data` in chunks of `size` bytes. `fields` are the part's."""
    work = work_of(limits)
    steps = [transforms] if not isinstance(transforms, Sequence) else transforms
    part = Part(stream(data, size, work.meter), **fields)
    outcomes = []
    async for made in transformed(steps, part, work):
        chunks = [chunk async for chunk in made.chunks]
        outcomes.append(Outcome(made, b"".join(chunks), [len(chunk) for chunk in chunks]))
    (only,) = outcomes
    return only


def gzip_member(
    data: bytes,
    flags: int = 0,
    *,
    extra: bytes = b"",
    name: bytes = b"",
    comment: bytes = b"",
    crc: int = 0,
) -> bytes:
    """A member with any header. `crc` is added to the header's checksum."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff"
    if flags & 4:
        header += struct.pack("<H", len(extra)) + extra
    if flags & 8:
        header += name + b"\0"
    if flags & 16:
        header += comment + b"\0"
    if flags & 2:
        header += struct.pack("<H", (zlib.crc32(header) + crc) & 0xFFFF)
    return header + deflated(data) + struct.pack("<II", zlib.crc32(data), len(data))


def deflated(data: bytes) -> bytes:
    """Bare, as some servers send it."""
    body = zlib.compressobj(wbits=-15)
    return body.compress(data) + body.flush()


def skippable(data: bytes = b"") -> bytes:
    return struct.pack("<II", 0x184D2A53, len(data)) + data


def gzip_quine() -> bytes:
    """A gzip file that decodes to itself, by the plan of https://research.swtch.com/zip.

    Of units of five bytes: a stored block's header that makes the next four units literal, and a block that repeats the last
    four. The checksum is a linear function of itself, so it is solved for.
    """
    prefix = b"\x1f\x8b\x08\x08" + bytes(5) + b"\xff" + b"self\0"
    literal = b"\x00" + struct.pack("<HH", 20, 20 ^ 0xFFFF)
    # In a block with fixed codes, two times: length 10, distance 20.
    match = "0001000" + "01000" + "110"
    repeat = _bits("0" + "10" + match + match + "0000000")
    ending = _bits(("0" + "10" + "0000000") * 2 + "1" + "00") + b"\x00\x00\xff\xff"
    size = struct.pack("<I", 24 * 5)

    def whole(crc: int) -> bytes:
        suffix = ending + struct.pack("<I", crc) + size
        again = repeat + literal + repeat + literal
        return prefix + literal + prefix + literal + again * 2 + (repeat + suffix) * 2

    base = zlib.crc32(whole(0))
    columns = [zlib.crc32(whole(1 << bit)) ^ base ^ (1 << bit) for bit in range(32)]
    return whole(_solved(columns, base))


def _bits(bits: str) -> bytes:
    """As deflate packs them: the first one is the lowest of the first byte."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))


def _solved(columns: Sequence[int], wanted: int) -> int:
    """Which of the columns add up to `wanted`, over GF(2)."""
    rows: list[tuple[int, int]] = []
    for number, column in enumerate(columns):
        value, chosen = _reduced(column, 1 << number, rows)
        if value:
            rows.append((value, chosen))
    rest, chosen = _reduced(wanted, 0, rows)
    assert not rest
    return chosen


def _reduced(value: int, chosen: int, rows: Sequence[tuple[int, int]]) -> tuple[int, int]:
    for other, others in rows:
        if value ^ other < value and value >> (other.bit_length() - 1) & 1:
            value, chosen = value ^ other, chosen ^ others
    return value, chosen
