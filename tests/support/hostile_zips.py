"""Zips written field by field, so that any of them can be a lie. Used by the tests of unzip and their fuzz target.

The format is APPNOTE.TXT 6.3.10; what is not told otherwise is written as it should be.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from struct import pack

from isal.isal_zlib import crc32

_SHORT, _LONG = 0xFFFF, 0xFFFFFFFF

STORED, DEFLATE, DEFLATE64, BZIP2, LZMA, ZSTANDARD, AES = 0, 8, 9, 12, 14, 93, 99
ENCRYPTED, STREAMED, STRONG, UTF_8, MASKED = 1 << 0, 1 << 3, 1 << 6, 1 << 11, 1 << 13

SYMLINK, FIFO, DEVICE, FOLDER, FILE = (kind << 28 for kind in (0o12, 0o01, 0o02, 0o04, 0o10))


def deflated(data: bytes, level: int = 9) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


@dataclass(frozen=True)
class Item:
    """One entry. `local` and `central` replace fields of one header: name, flags, method, crc, packed, size, extra, signature,
    and in the directory also start, disk, attributes, made_by, comment.
    """

    name: bytes
    data: bytes = b""
    method: int = STORED
    packed: bytes | None = None
    """Its content in the archive; made of `data` for stored and deflate."""
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    extra: bytes = b""
    attributes: int = 0
    local: Mapping[str, int | bytes] = field(default_factory=dict)
    central: Mapping[str, int | bytes] = field(default_factory=dict)
    descriptor: bytes | None = None
    """After the content; made where `flags` has STREAMED."""
    before: bytes = b""
    """Belongs to nothing."""
    after: bytes = b""
    listed: bool = True
    """Whether the directory has it."""

    @cached_property
    def content(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.data) if self.method == DEFLATE else self.data

    def fields(self) -> dict[str, int | bytes]:
        return {
            "name": self.name,
            "flags": self.flags,
            "method": self.method,
            "crc": crc32(self.data) if self.crc is None else self.crc,
            "packed": len(self.content),
            "size": len(self.data) if self.size is None else self.size,
            "extra": self.extra,
        }


def archive(
    items: Sequence[Item],
    *,
    comment: bytes = b"",
    before_directory: bytes = b"",
    after_directory: bytes = b"",
    after: bytes = b"",
    zip64: bool = False,
    end: Mapping[str, int] = {},
    end64: Mapping[str, int] = {},
    locator: Mapping[str, int] = {},
) -> bytes:
    """The zip of these. `end` replaces numbers of the end record: disk, directory_disk, entries_here, entries, size, start,
    comment; `end64` those of zip64's: also `length` and `signature`; `locator`: disk, at, disks.
    """
    out, directory, count = bytearray(), bytearray(), 0
    for item in items:
        out += item.before
        start = len(out)
        out += local_header(item) + item.content + _descriptor(item) + item.after
        if item.listed:
            directory += central_header(item, start)
            count += 1
    out += before_directory
    numbers = {
        "disk": 0, "directory_disk": 0, "entries_here": count, "entries": count, "size": len(directory), "start": len(out),
    }  # fmt: skip
    out += directory + after_directory
    if zip64:
        long = {"signature": 0x06064B50, "length": 44, **numbers, **end64}
        at = len(out)
        out += pack("<LQ2H2L4Q", long["signature"], long["length"], 45, 45, *list(long.values())[2:8])
        place = {"disk": 0, "at": at, "disks": 1, **locator}
        out += pack("<4sLQL", b"PK\x06\x07", place["disk"], place["at"], place["disks"])
        numbers = dict.fromkeys(("entries_here", "entries"), _SHORT) | dict.fromkeys(("size", "start"), _LONG)
        numbers = {"disk": 0, "directory_disk": 0, **numbers}
    short = {**numbers, "comment": len(comment), **end}
    out += pack("<4s4H2LH", b"PK\x05\x06", *short.values())
    return bytes(out) + comment + after


def local_header(item: Item) -> bytes:
    told = item.fields()
    if item.flags & STREAMED:
        told |= {"crc": 0, "packed": 0, "size": 0}
    told |= {"signature": b"PK\x03\x04", **item.local}
    name, extra = _bytes(told["name"]), _bytes(told["extra"])
    return (
        _bytes(told["signature"])
        + pack("<5H3L2H", 20, told["flags"], told["method"], 0, 33, told["crc"], told["packed"], told["size"],
               len(name), len(extra))
        + name + extra
    )  # fmt: skip


def central_header(item: Item, start: int) -> bytes:
    told: dict[str, int | bytes] = {
        **item.fields(), "signature": b"PK\x01\x02", "made_by": 0x031E, "disk": 0, "attributes": item.attributes,
        "start": start, "comment": b"", **item.central,
    }  # fmt: skip
    name, extra, comment = _bytes(told["name"]), _bytes(told["extra"]), _bytes(told["comment"])
    return (
        _bytes(told["signature"])
        + pack("<6H3L5H2L", told["made_by"], 20, told["flags"], told["method"], 0, 33, told["crc"], told["packed"],
               told["size"], len(name), len(extra), len(comment), told["disk"], 0, told["attributes"], told["start"])
        + name + extra + comment
    )  # fmt: skip


def _descriptor(item: Item) -> bytes:
    if item.descriptor is not None or not item.flags & STREAMED:
        return item.descriptor or b""
    told = item.fields()
    return pack("<4s3L", b"PK\x07\x08", told["crc"], told["packed"], told["size"])


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


def extra_field(kind: int, data: bytes) -> bytes:
    return pack("<2H", kind, len(data)) + data


def unicode_path(name: bytes, told: bytes) -> bytes:
    """Info-ZIP's field: `told` is the name in UTF-8 of an entry that is called `name`."""
    return extra_field(0x7075, b"\x01" + pack("<L", crc32(name)) + told)


def overlapped(copies: int, kernel: bytes) -> bytes:
    """Many entries, one content: every name in the directory points at the same bytes."""
    first = Item(b"0", kernel, DEFLATE)
    items = [first, *(Item(b"0", kernel, DEFLATE, central={"start": 0}) for _ in range(copies))]
    whole = archive(items[:1])
    directory = b"".join(central_header(item, 0) for item in items)
    start = len(local_header(first)) + len(first.content)
    return (
        whole[:start]
        + directory
        + pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(items), len(items), len(directory), start, 0)
    )


def quoted(files: int, kernel: bytes) -> bytes:
    """As David Fifield's bomb, https://www.bamsoftware.com/hacks/zipbomb/: each content quotes the next local header in a stored
    block of deflate and goes on into it, so that all of them share one kernel.
    """
    names = [b"%d" % number for number in range(files)]
    packed, data = deflated(kernel), kernel
    bodies: list[tuple[bytes, int, int, int]] = [(packed, len(packed), len(data), crc32(data))]
    for name in reversed(names[1:]):
        rest, rest_packed, _, _ = bodies[0]
        header = local_header(Item(name, data, DEFLATE, packed=rest[:rest_packed]))
        quote = b"\x00" + pack("<2H", len(header), len(header) ^ _SHORT) + header
        data = header + data
        bodies.insert(0, (quote + rest, len(quote) + rest_packed, len(data), crc32(data)))
    out, directory, start = b"", b"", 0
    for place, (name, (_, size_packed, size, crc)) in enumerate(zip(names, bodies, strict=True)):
        item = Item(name, method=DEFLATE, packed=bytes(size_packed), size=size, crc=crc)
        directory += central_header(item, start)
        # Past its own header and the five bytes of the quoting block lies the next header.
        start += len(local_header(item)) + (5 if place < files - 1 else 0)
    first = Item(names[0], method=DEFLATE, packed=bytes(bodies[0][1]), size=bodies[0][2], crc=bodies[0][3])
    out = local_header(first) + bodies[0][0]
    return out + directory + pack("<4s4H2LH", b"PK\x05\x06", 0, 0, files, files, len(directory), len(out), 0)
