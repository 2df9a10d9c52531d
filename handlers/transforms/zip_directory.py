"""Finds a zip's directory and reads it, strictly. Used by handlers/transforms/unzip.py.

What two readers could understand differently is refused. Numbers in brackets are sections of APPNOTE.TXT 6.3.10,
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Everything here blocks on the spool and belongs on a thread.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from handlers.transforms.base import Limits, exceeded
from handlers.transforms.spool import Spool
from handlers.transforms.zip_entry import CENTRAL, Entry, parse_entry
from handlers.transforms.zip_refusals import corrupt, unsafe, unsupported

_END = Struct("<4s4H2LH")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR = Struct("<4sLQL")
_SIGNATURE = b"PK\x05\x06"
_SHORT, _LONG = 0xFFFF, 0xFFFFFFFF
"""In the place of a number that the zip64 end record has."""
_SLICE = 256 * 1024


class Directory(NamedTuple):
    """Where the central directory lies."""

    start: int
    end: int
    entries: int


def find_directory(spool: Spool, limits: Limits, path: str) -> Directory:
    """Where the end record says that the directory is [4.3.16]. Raises `Refused`; `path` is what it calls the archive."""
    end, numbers = _end_record(spool)
    locator_at = end - _LOCATOR.size
    if locator_at >= 0 and spool.read(locator_at, 4) == b"PK\x06\x07":
        end, numbers = _zip64(spool, locator_at, numbers)
    elif _LONG in numbers[4:]:
        corrupt("the zip64 end record is missing")
    disk, directory_disk, entries_here, entries, size, start = numbers
    if disk or directory_disk or entries_here != entries:
        unsupported("split: this is one of several segments of an archive")
    if entries > limits.entries:
        raise exceeded("entries", limits.entries, path)
    if size > limits.memory:
        raise exceeded("memory", limits.memory, f"the directory of {path or 'the payload'}")
    if start + size != end or size < entries * CENTRAL.size:
        unsafe("junk: the directory does not fill the place that the end record gives it")
    return Directory(start, end, entries)


def read_entries(spool: Spool, directory: Directory) -> Iterator[Entry]:
    """The entries in the directory's order. Raises `Refused` in place of one that is not for us."""
    slices = _Slices(spool, directory)
    for _ in range(directory.entries):
        yield parse_entry(slices.take)
    if slices.left:
        if slices.left > 4 and slices.take(4) == b"PK\x05\x05":
            unsupported("signed: the directory has a digital signature")
        unsafe("junk: bytes after the directory's last entry")


class _Slices:
    """The directory's bytes, one after another; of it `_SLICE` bytes are in memory."""

    def __init__(self, spool: Spool, directory: Directory) -> None:
        self._spool = spool
        self._next = directory.start
        self._end = directory.end
        self._held = b""
        self._at = 0

    @property
    def left(self) -> int:
        return self._end - self._next + len(self._held) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            corrupt("the directory has fewer entries than the end record says")
        if self._at + size > len(self._held):
            more = self._spool.read(self._next, min(max(size, _SLICE), self._end - self._next))
            self._next += len(more)
            self._held, self._at = self._held[self._at :] + more, 0
        self._at += size
        return self._held[self._at - size : self._at]


def _end_record(spool: Spool) -> tuple[int, tuple[int, ...]]:
    """Where the end record is, and its numbers: it is the one whose comment ends with the file."""
    base = max(0, spool.size - _END.size - _SHORT)
    tail = spool.read(base, spool.size - base)
    found: int | None = None
    at = tail.find(_SIGNATURE)
    while at != -1:
        if found is not None:
            unsafe("ambiguous: what could be another end record stands in the archive's comment")
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail):
            found = at
        at = tail.find(_SIGNATURE, at + 1)
    if found is None:
        corrupt("truncated, or followed by something else: no end record ends with the payload")
    return base + found, _END.unpack_from(tail, found)[1:-1]


def _zip64(spool: Spool, locator_at: int, short: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Where the zip64 end record is, and its numbers, like those of the `short` one [4.3.14, 4.3.15]."""
    _, disk, at, disks = _LOCATOR.unpack(spool.read(locator_at, _LOCATOR.size))
    if disk or disks > 1:
        unsupported("split: this is one of several segments of an archive")
    if at + _END64.size > locator_at:
        unsafe("disagreement: the zip64 end record is not where its locator says")
    signature, size, _, _, *numbers = _END64.unpack(spool.read(at, _END64.size))
    if signature != b"PK\x06\x06" or at + 12 + size != locator_at:
        unsafe("disagreement: the zip64 end record is not where its locator says")
    if size != _END64.size - 12:
        unsupported("the zip64 end record has an extension, as for encrypted directories")
    full = (_SHORT, _SHORT, _SHORT, _SHORT, _LONG, _LONG)
    if any(one not in {limit, other} for one, limit, other in zip(short, full, numbers, strict=True)):
        unsafe("disagreement: the zip64 end record says other than the end record")
    return at, tuple(numbers)
