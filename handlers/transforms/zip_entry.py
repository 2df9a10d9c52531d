"""Understands the headers of one entry of a zip, strictly. Used by zip_directory.py and unzip.py.

Numbers in brackets are sections of APPNOTE.TXT 6.3.10, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from collections.abc import Callable
from struct import Struct
from types import MappingProxyType
from typing import NamedTuple
from zlib import crc32

from handlers.errors import Refused
from handlers.transforms.spool import Spool
from handlers.transforms.zip_methods import METHODS
from handlers.transforms.zip_refusals import corrupt, unsafe, unsupported

CENTRAL = Struct("<4s6H3L5H2L")
"""The directory's header of an entry [4.3.12]."""
LOCAL = Struct("<4s5H3L2H")
"""The header before its content [4.3.7]."""
_LOCAL_LENGTHS = Struct("<2H")
_EXTRA = Struct("<2H")
_FULL, _FULL_DISK = 0xFFFFFFFF, 0xFFFF
"""In the place of a number that the zip64 field has."""
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075

_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_STREAMED = 1 << 3
_PATCHED = 1 << 5
_UTF_8 = 1 << 11
_AES = 99
_UNIX_LIKE = (3, 19)
"""Systems of origin [4.4.2] whose names are UTF-8 though bit 11 is not set: Unix, macOS."""
_FOLDER = 0x10
"""The bit of DOS among the attributes."""
_KINDS = MappingProxyType({
    0o00: "", 0o01: "a FIFO", 0o02: "a device", 0o04: "a folder", 0o06: "a device", 0o10: "", 0o12: "a symlink",
    0o14: "a socket",
})  # fmt: skip
"""By the type in Unix's mode."""
_OTHER_METHODS = MappingProxyType({
    1: "shrink", 6: "implode", 9: "Deflate64", 10: "PKWARE implode", 18: "TERSE", 20: "the first Zstandard", 94: "MP3",
    95: "XZ", 96: "JPEG", 97: "WavPack", 98: "PPMd",
})  # fmt: skip
"""Those not decoded here [4.4.5]."""


class Entry(NamedTuple):
    """What the directory says of one entry."""

    raw: bytes
    """Its name, as it stands there."""
    name: str
    flags: int
    method: int
    crc: int
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes when decoded."""
    start: int
    """Of its local header."""

    @property
    def folder(self) -> bool:
        return self.name.endswith("/")

    @property
    def shown(self) -> str:
        """Its name, as refusals quote it."""
        return f"{self.name[:200]!a}"


def parse_entry(take: Callable[[int], bytes]) -> Entry:
    """The entry whose header in the directory comes next; `take` gives its bytes. Raises `Refused` unless it is for us."""
    (
        signature, made_by, _, flags, method, _, _, crc, packed, size,
        name_size, extra_size, comment_size, disk, _, attributes, start,
    ) = CENTRAL.unpack(take(CENTRAL.size))  # fmt: skip
    if signature != b"PK\x01\x02":
        corrupt("the directory has something else in the place of an entry")
    raw, extra = take(name_size), take(extra_size)
    take(comment_size)
    entry = Entry(raw, _name(raw, extra, flags, made_by >> 8), flags, method, crc, packed, size, start)
    if not raw:
        unsafe("type: an entry has no name")
    if _FULL in {packed, size, start} or disk == _FULL_DISK or b"\x01\x00" in extra:
        entry, disk = _widened(entry, disk, extra)
    if disk:
        unsupported(f"split: {entry.shown} begins in another segment of the archive")
    _check_type(entry, attributes)
    _check_method(entry)
    return entry


def content_at(spool: Spool, entry: Entry) -> int:
    """Where the content of an entry begins whose local header was checked."""
    name_size, extra_size = _LOCAL_LENGTHS.unpack(spool.read(entry.start + LOCAL.size - 4, 4))
    return int(entry.start + LOCAL.size + name_size + extra_size)


def check_local(spool: Spool, entry: Entry, following: int) -> None:
    """Refuse an entry whose local header says other than the directory, or that does not end at `following`."""
    head = spool.read(entry.start, LOCAL.size + len(entry.raw))
    if len(head) < LOCAL.size or head[:4] != b"PK\x03\x04":
        unsafe(f"disagreement: {entry.shown} is not where the directory says")
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL.unpack_from(head)
    if (flags, method, name_size, head[LOCAL.size :]) != (
        entry.flags,
        entry.method,
        len(entry.raw),
        entry.raw,
    ):
        unsafe(f"disagreement: {entry.shown} has another name, method or flags in its local header")
    extra_at = entry.start + LOCAL.size + name_size
    streamed = bool(flags & _STREAMED)
    if not streamed and _FULL in {packed, size}:
        packed, size = _local_zip64(spool.read(extra_at, extra_size), packed, size, entry)
    # A streamed entry's header was written before its numbers were known [4.4.4].
    unknown = {0, _FULL} if streamed else set()
    if (
        crc not in {entry.crc, 0 if streamed else entry.crc}
        or packed not in {entry.packed, *unknown}
        or size not in {entry.size, *unknown}
    ):
        unsafe(f"disagreement: {entry.shown} has another size or CRC in its local header")
    end = extra_at + extra_size + entry.packed
    if end > following:
        unsafe(f"overlap: {entry.shown} reaches into what follows it")
    rest = spool.read(end, min(following - end, 25))
    if streamed and rest not in _descriptors(entry):
        unsafe(
            f"disagreement: {entry.shown} is not followed by a data descriptor with its size and CRC alone"
        )
    if not streamed and rest:
        unsafe(f"gap: {following - end} bytes after {entry.shown} belong to nothing")


def _descriptors(entry: Entry) -> set[bytes]:
    """What may stand after streamed content [4.3.9]: with or without signature, with short or long sizes."""
    long = entry.crc.to_bytes(4, "little") + b"".join(
        n.to_bytes(8, "little") for n in (entry.packed, entry.size)
    )
    found = {long, b"PK\x07\x08" + long}
    if max(entry.packed, entry.size) <= _FULL:
        short = b"".join(n.to_bytes(4, "little") for n in (entry.crc, entry.packed, entry.size))
        found |= {short, b"PK\x07\x08" + short}
    return found


def _name(raw: bytes, extra: bytes, flags: int, system: int) -> str:
    """The name as text.

    UTF-8 where bit 11 says so; else what Info-ZIP's field says, unless that was made for another name [4.6.9]; else UTF-8
    from Unix and macOS, whose tools often leave bit 11 alone; else code page 437 [appendix D].
    """
    shown = f"{raw[:200]!r}"
    told = _extra_field(extra, _UNICODE_PATH, shown) if b"\x75\x70" in extra else None
    ours = told is not None and told[:5] == b"\x01" + crc32(raw).to_bytes(4, "little")
    unicode_path = _decoded(told[5:], shown) if told is not None and ours else None
    if flags & _UTF_8:
        name = _decoded(raw, shown)
        if unicode_path not in {None, name}:
            unsafe(f"disagreement: the entry {shown} has another name in its Unicode field")
        return name
    if unicode_path is not None:
        return unicode_path
    if system in _UNIX_LIKE:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            pass
    return raw.decode("cp437")


def _decoded(raw: bytes, shown: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise Refused("payload_corrupt", f"zip: the name {shown} is said to be UTF-8 and is not") from exc


def _extra_field(extra: bytes, kind: int, shown: str) -> bytes | None:
    """The data of the extra field of that kind [4.5.1]; None where there is none."""
    found: bytes | None = None
    at = 0
    while at + _EXTRA.size <= len(extra):
        here, size = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if at + size > len(extra):
            corrupt(f"an extra field of {shown} is longer than its place")
        if here == kind:
            if found is not None:
                unsafe(f"disagreement: {shown} has two extra fields of kind {kind:#06x}")
            found = extra[at : at + size]
        at += size
    return found


def _widened(entry: Entry, disk: int, extra: bytes) -> tuple[Entry, int]:
    """The entry, and its disk, with what its zip64 field says [4.5.3].

    The field has the numbers that do not fit the header and no others. Some writers put all of them there; that is understood
    where they say the same.
    """
    numbers = (
        ("size", entry.size, _FULL, 8),
        ("packed", entry.packed, _FULL, 8),
        ("start", entry.start, _FULL, 8),
        ("disk", disk, _FULL_DISK, 4),
    )
    data = _extra_field(extra, _ZIP64, entry.shown)
    missing = [name for name, value, full, _ in numbers if value == full]
    if data is None:
        if missing:
            corrupt(f"the zip64 field of {entry.shown} is missing")
        return entry, disk
    exact = len(data) == sum(width for name, _, _, width in numbers if name in missing)
    said: dict[str, int] = {}
    for name, value, full, width in numbers:
        if value == full or (not exact and data):
            if len(data) < width:
                corrupt(f"the zip64 field of {entry.shown} is too short")
            said[name], data = int.from_bytes(data[:width], "little"), data[width:]
            if value not in {full, said[name]}:
                unsafe(f"disagreement: the zip64 field of {entry.shown} says other than its header")
    if data:
        unsafe(f"disagreement: the zip64 field of {entry.shown} is longer than it may be")
    wide = entry._replace(
        size=said.get("size", entry.size),
        packed=said.get("packed", entry.packed),
        start=said.get("start", entry.start),
    )
    return wide, said.get("disk", disk)


def _local_zip64(extra: bytes, packed: int, size: int, entry: Entry) -> tuple[int, int]:
    """What the local header says of the sizes, packed and not. Its zip64 field has both, or only those that do not fit."""
    data = _extra_field(extra, _ZIP64, entry.shown) or b""
    said = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    if len(data) == 16:
        return said[1] if packed == _FULL else packed, said[0] if size == _FULL else size
    if len(data) == 8 and (packed == _FULL) != (size == _FULL):
        return (said[0], size) if packed == _FULL else (packed, said[0])
    return packed, size


def _check_type(entry: Entry, attributes: int) -> None:
    """Files and folders only. Of the attributes the upper half is Unix's mode, the lower is of DOS [4.4.15]."""
    kind = _KINDS.get(attributes >> 28, "of unknown type")
    if kind not in {"", "a folder"}:
        unsafe(f"type: {entry.shown} is {kind}")
    if entry.folder:
        # Java deflates its nothing, to two bytes.
        if entry.size or entry.crc or entry.packed > 2:
            unsafe(f"type: the folder {entry.shown} has content")
    elif kind or attributes & _FOLDER:
        unsafe(f"type: {entry.shown} is a folder by its attributes and a file by its name")


def _check_method(entry: Entry) -> None:
    if entry.flags & _ENCRYPTED or entry.method == _AES:
        unsupported(f"encrypted: {entry.shown}")
    if entry.flags & _PATCHED:
        unsupported(f"patch data: {entry.shown} holds the differences to another file")
    if entry.method not in METHODS:
        unsupported(f"method {entry.method} ({_OTHER_METHODS.get(entry.method, 'unknown')}): {entry.shown}")
    if entry.method == 0 and entry.packed != entry.size:
        corrupt(f"{entry.shown} is stored, but {entry.packed} bytes are said to be {entry.size}")
