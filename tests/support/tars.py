"""Tar archives block by block, honest and hostile, and what `Untar` makes of them. Used by tests/unit and tests/fuzz."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.transforms.base import Limits, Meter, Part, Work
from handlers.transforms.untar import Untar

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = USTAR,
    prefix: bytes = b"",
    end: bytes = b"",
    signed: bool = False,
) -> bytes:
    """One header block with a right checksum. `size` as bytes is put into the field as it is."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:124] = b"0000644\0" * 3
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    if end:
        block[-len(end) :] = end
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: Any) -> bytes:
    return header(name, fields.pop("size", len(data)), kind, **fields) + padded(data)


def records(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    out = b""
    for key, value in pairs:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length += 1
        out += b"%d %s=%s\n" % (length, key, value)
    return out


def pax(*pairs: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return member(b"PaxHeaders/x", records(pairs), kind)


@dataclass(frozen=True, slots=True)
class Seen:
    """A part that was read to its end."""

    path: str
    member: str
    data: bytes
    part: Part


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


async def stream(data: bytes, size: int, work: Work) -> AsyncIterator[bytes]:
    """As a payload comes: counted, in chunks."""
    for piece in pieces(data, size):
        work.meter.read(len(piece))
        yield piece


def work_of(limits: Limits | None = None, identity: str = "") -> Work:
    return Work(Meter(limits or Limits()), Path("nowhere"), identity)


async def untar(
    data: bytes,
    *,
    chunk: int = 1 << 20,
    limits: Limits | None = None,
    work: Work | None = None,
    **claims: Any,
) -> list[Seen]:
    """Every part, read to its end. Raises what the transform raises."""
    work = work or work_of(limits)
    seen: list[Seen] = []
    async for part in Untar().apply(Part(stream(data, chunk, work), **claims), work):
        content = b"".join([piece async for piece in part.chunks])
        seen.append(Seen(part.path, part.member, content, part))
    return seen
