"""The headers of a tar archive, read strictly. Called by untar.py, which moves the bytes; nothing here does.

ustar and pax as in POSIX (https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html), and what GNU tar makes of them
(https://www.gnu.org/software/tar/manual/html_node/Standard.html). Where two readers could disagree about what an archive holds,
it is refused: what one of them checked, another would store.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from handlers.errors import Refused

BLOCK: Final = 512
ZEROS: Final = bytes(BLOCK)
EXTENDED_LIMIT: Final = 1 << 20
"""Bytes of one header that extends another. What counts in it, a path, is far smaller."""

_POSIX: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_CHECKSUM: Final = slice(148, 156)
_SIZE: Final = slice(124, 136)
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \x00]*")
_DIGITS: Final = re.compile(rb"[0-9]{1,20}")
_OCTAL_SIZES: Final = 8 << 30
"""Sizes below it fit into the header's own field."""

_HARMFUL: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"1": "hard link",
        b"2": "symbolic link",
        b"3": "character device",
        b"4": "block device",
        b"6": "FIFO",
    }
)
_UNREADABLE: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"7": "contiguous file",
        b"D": "directory of an incremental backup",
        b"M": "continued file of a multi-volume archive",
        b"N": "old long name",
        b"S": "sparse file",
        b"V": "volume label",
    }
)
_EXTENSIONS: Final = b"gxLK"
_SPARSE: Final = (b"GNU.sparse.", b"SCHILY.realsize")


@dataclass(frozen=True, slots=True)
class Header:
    """One block: an entry's, or of a header that extends the next one's."""

    kind: bytes
    """The type flag; `0` for NUL, which is a file as well."""
    name: bytes
    size: int

    @property
    def extends(self) -> bool:
        return self.kind in _EXTENSIONS


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a directory, everything taken into account."""

    name: str
    size: int
    directory: bool
    note: str | None = None


def looks_like_tar(start: bytes) -> bool:
    """Whether an archive begins so: by its magic or, where there is none, by a header of Unix version 7 that is right throughout.

    The zeros of an archive without entries have nothing to be known by.
    """
    if len(start) < BLOCK:
        return False
    block = start[:BLOCK]
    if block[257:262] == b"ustar":
        return True
    numbers = [block[100:108], block[108:116], block[116:124], block[_SIZE], block[136:148], block[_CHECKSUM]]
    return (
        block[0] != 0
        and block[156] in b"\x00012345"
        and all(_OCTAL.fullmatch(number) and number.strip(b" \0") for number in numbers)
        and _checksum_holds(block)
    )


def parse(block: bytes) -> Header:
    """One block that is not all zeros. Raises `Refused`."""
    if not _checksum_holds(block):
        raise _corrupt("the checksum of a header is wrong")
    kind = block[156:157]
    name = _text(block[:100], "name")
    if block[257:265] == _POSIX:
        # xstar keeps times in the last 24 bytes of the prefix, and says so at the end of the block.
        prefix = _text(block[345 : 476 if block[508:] == b"tar\0" else 500], "prefix")
        name = prefix + b"/" + name if prefix else name
    elif block[257:262] == b"ustar" and block[257:265] != _GNU:
        raise Refused("payload_unsupported", f"tar: a header's version is {block[257:265]!a}")
    elif block[257:262] != b"ustar" and kind in b"\x000" and name.endswith(b"/"):
        # Version 7 knows no type for directories.
        kind = b"5"
    return Header(b"0" if kind == b"\0" else kind, name, _size(block[_SIZE]))


@dataclass(slots=True)
class Extensions:
    """What headers said that extend others: `g` for all entries after it, `x`, `L` and `K` for the next one."""

    everywhere: dict[bytes, bytes] = field(default_factory=dict)
    here: dict[bytes, bytes] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def add(self, header: Header, data: bytes) -> None:
        """`data` is what lay behind `header`. Raises `Refused`."""
        if header.kind == b"g":
            if self.seen:
                raise _ambiguous("a global header stands between an entry and its extended header")
            self.everywhere |= _records(data)
            return
        if header.kind in self.seen or {header.kind, *self.seen} >= {b"x", b"L"}:
            raise _ambiguous("one entry has two extended headers")
        self.seen.add(header.kind)
        if header.kind == b"x":
            self.here = _records(data)
        elif header.kind == b"L":
            self.here = {b"path": _text(data, "long name")}

    def finish(self) -> None:
        """The archive ends. Raises `Refused` where an entry was still to come."""
        if self.seen:
            raise _corrupt("it ends after an extended header")

    def entry(self, header: Header) -> Entry:
        """The entry that `header` and what extends it tell of. Raises `Refused` for what cannot be stored."""
        said = self.everywhere | self.here
        long_name = b"L" in self.seen
        self.here, self.seen = {}, set()
        name, note = _name(said.get(b"path", header.name), said, pax=b"path" in said and not long_name)
        shown = f"{name[:200]!a}"
        if (what := _HARMFUL.get(header.kind)) is not None:
            raise Refused("payload_unsafe", f"tar: {shown} is a {what}")
        if (what := _UNREADABLE.get(header.kind)) is not None:
            raise Refused("payload_unsupported", f"tar: {shown} is a {what}")
        if header.kind not in {b"0", b"5"}:
            raise Refused("payload_unsupported", f"tar: {shown} is of the unknown type {header.kind!a}")
        if any(key.startswith(_SPARSE) for key in said):
            raise Refused("payload_unsupported", f"tar: {shown} is a sparse file")
        size = header.size
        if (given := said.get(b"size")) is not None:
            if not _DIGITS.fullmatch(given):
                raise _corrupt(f"the size of {shown} is no number")
            size = int(given)
            if size != header.size and size < _OCTAL_SIZES:
                raise _ambiguous(f"header and extended header give {shown} different sizes")
        directory = header.kind == b"5"
        if directory and size:
            raise _ambiguous(f"the directory {shown} has content")
        if name.endswith("/") and not directory:
            raise _ambiguous(f"the file {shown} is called like a directory")
        return Entry(name.removesuffix("/") if directory else name, size, directory, note)


def _checksum_holds(block: bytes) -> bool:
    """The sum of all bytes, the checksum's own as spaces. Some writers took bytes for signed."""
    match = _OCTAL.fullmatch(block[_CHECKSUM])
    if match is None or not match[1]:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    wanted, total = int(match[1], 8), sum(rest)
    return wanted == total or wanted == total - 256 * sum(byte >> 7 for byte in rest)


def _size(given: bytes) -> int:
    """Octal digits, or, with the first bit set, a number to base 256 (GNU), whose second bit is its sign."""
    if given[0] & 0x80:
        if given[0] & 0x40:
            raise _corrupt("a size is negative")
        return int.from_bytes(bytes([given[0] & 0x3F]) + given[1:], "big")
    match = _OCTAL.fullmatch(given)
    if match is None:
        raise _corrupt("a size is no number")
    return int(match[1] or b"0", 8)


def _text(given: bytes, what: str) -> bytes:
    """Up to the first NUL. What follows may be more of them only: readers that go by the length would see another name."""
    text, _, rest = given.partition(b"\0")
    if rest.strip(b"\0"):
        raise Refused("payload_unsafe", f"tar: the {what} {text[:200]!a} goes on after a NUL")
    return text


def _name(name: bytes, said: Mapping[bytes, bytes], *, pax: bool) -> tuple[str, str | None]:
    try:
        return name.decode(), None
    except UnicodeDecodeError as exc:
        # Extended headers are UTF-8 unless they say otherwise.
        if pax and said.get(b"hdrcharset") != b"BINARY":
            raise _corrupt(f"the path {name[:200]!a} is not UTF-8") from exc
    return name.decode("latin-1"), "its name is not UTF-8 and was read as Latin-1"


def _records(data: bytes) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE` and a line feed, the length being the whole record's. Only what is used is kept. Raises `Refused`."""
    kept: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 9)
        digits = data[start:space] if space > start else b""
        end = start + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space + 1, max(end, 0))
        if not space + 1 < equals < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _corrupt("an extended header is damaged")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if key in {b"path", b"size", b"hdrcharset"} or key.startswith(_SPARSE):
            if not value and key in {b"path", b"size"}:
                # It takes back what was said before, and few readers know.
                raise _ambiguous(f"an extended header gives an empty {key.decode()}")
            # Sparse files are refused whatever is said of them: one record stands for all.
            key = next((sparse for sparse in _SPARSE if key.startswith(sparse)), key)
            if kept.setdefault(key, value) != value and key not in _SPARSE:
                raise _ambiguous(f"an extended header says {key.decode()} twice")
        start = end
    return kept


def _corrupt(what: str) -> Refused:
    return Refused("payload_corrupt", f"tar: {what}")


def _ambiguous(what: str) -> Refused:
    return Refused("payload_unsafe", f"tar: ambiguous, {what}")
