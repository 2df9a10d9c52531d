"""The transform `unzip`: a zip becomes its files. Made by whoever reads routes.

What a zip holds is told at its end, so the whole payload is spooled first, and everything its headers say is checked before a
byte is decoded: zip_directory.py, zip_entry.py. zip_methods.py decodes.

Documents and programs that are zips inside (docx, jar, epub, …) are not archives to those who fetch them: a payload whose
name or type says that it is one stays as it is. Options say which.
"""

from array import array
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import EntryMeter, Part, Work, exceeded
from handlers.transforms.content_types import content_type_of
from handlers.transforms.names import check_name, entry_path
from handlers.transforms.peek import peek
from handlers.transforms.spool import Spool, spooled
from handlers.transforms.zip_directory import Directory, find_directory, read_entries
from handlers.transforms.zip_entry import LOCAL, Entry, check_local, content_at
from handlers.transforms.zip_methods import METHODS, Content, Decoder, Packed
from handlers.transforms.zip_refusals import corrupt, unsafe, unsupported

Item = TypeVar("Item")

_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06")
"""Of an entry, or of the end record where there are no entries."""
_SEGMENTS = (b"PK\x07\x08PK\x03\x04", b"PK00PK\x03\x04")
"""Of the first segment of a split archive, and of one that was to be split [APPNOTE.TXT 8.5.3, 8.5.5]."""
_CLAIMS = ("application/zip", "application/x-zip", "application/x-zip-compressed", "*.zip")
_BATCH = 500
"""Entries that are looked at in one go on a thread."""
_SMALL = 256 * 1024
"""Bytes of entries that are decoded together with their neighbours: the way to a thread and back takes longer than they do."""

WHOLE = (
    # Types: office documents, books, programs, packages, maps, …
    "application/vnd.openxmlformats-officedocument.*",
    "application/vnd.ms-*.macroenabled.12",
    "application/vnd.ms-*.binary.macroenabled.12",
    "application/vnd.ms-xpsdocument",
    "application/vnd.ms-visio.*",
    "application/vnd.oasis.opendocument.*",
    "*/*+zip",
    "application/java-archive",
    "application/x-java-archive",
    "application/vnd.android.package-archive",
    "application/vnd.google-earth.kmz",
    "application/vnd.apple.*",
    "application/x-xpinstall",
    "application/x-cbz",
    "application/wacz",
    # Names.
    *("*.docx", "*.docm", "*.dotx", "*.dotm", "*.xlsx", "*.xlsm", "*.xlsb", "*.xltx", "*.xltm", "*.xlam"),
    *("*.pptx", "*.pptm", "*.potx", "*.potm", "*.ppsx", "*.ppsm", "*.vsdx", "*.vsdm", "*.xps", "*.oxps"),
    *("*.odt", "*.ods", "*.odp", "*.odg", "*.odf", "*.odb", "*.ott", "*.ots", "*.otp", "*.otg"),
    *("*.pages", "*.numbers", "*.key", "*.epub", "*.cbz", "*.kmz", "*.3mf", "*.usdz", "*.npz", "*.wacz"),
    *("*.jar", "*.war", "*.ear", "*.aar", "*.apk", "*.aab", "*.xapk", "*.apks", "*.ipa", "*.xpi"),
    *("*.whl", "*.egg", "*.nupkg", "*.vsix", "*.appx", "*.msix", "*.msixbundle", "*.appxbundle"),
)
"""What `UnzipOptions.whole` is unless it is told."""


class UnzipOptions(BaseModel):
    """Options of the transform `unzip`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whole: tuple[str, ...] = Field(
        default=WHOLE,
        description="Patterns (`*`, `?`, `[…]`; lower case) of content types and names of payloads that stay as they are though "
        "they are zips inside: documents, programs, packages. `[]` takes every zip apart.",
    )


class Unzip:
    """Takes zips apart: stored, deflate, bzip2, LZMA, Zstandard. Only files come out; folders give no part."""

    name = "unzip"
    Options = UnzipOptions
    early = False

    def __init__(self, options: UnzipOptions | None = None) -> None:
        self._whole = (options or UnzipOptions()).whole

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port. The parts come in the order of the archive's directory."""
        head, chunks = await peek(part.chunks, 8)
        part, source = replace(part, chunks=chunks), part.chunks
        if head in _SEGMENTS:
            unsupported("split: this is the first of several segments of an archive")
        if head[:4] not in _MAGICS:
            claimed = _claims(part, _CLAIMS)
            if claimed and head and _MAGICS[0].startswith(head):
                corrupt("truncated: it ends before it has begun")
            yield part.noted("claims to be a zip and does not begin like one") if claimed else part
            return
        if _claims(part, self._whole):
            yield part
            return
        if part.depth >= work.limits.nesting:
            raise exceeded("nesting", work.limits.nesting, part.path)
        async with spooled(part.chunks, work, part.path) as spool:
            if isinstance(source, AsyncGenerator):
                await source.aclose()
            async with aclosing(_Archive(part, work, spool).files()) as files:
                async for file in files:
                    yield file


def _claims(part: Part, patterns: tuple[str, ...]) -> bool:
    """Whether its type or its name is among the patterns."""
    content_type = (part.content_type or "").partition(";")[0].strip().lower()
    claims = (content_type, part.label.lower())
    return any(fnmatchcase(claim, pattern) for claim in claims for pattern in patterns)


@dataclass(frozen=True, slots=True)
class _Archive:
    """One archive that lies in a spool."""

    part: Part
    work: Work
    spool: Spool

    async def files(self) -> AsyncGenerator[Part, None]:
        """Its files. All that its headers say has been checked when the first one comes. Raises `Refused`."""
        directory = await self.spool.run(
            partial(find_directory, self.spool, self.work.limits, self.part.path)
        )
        paths = iter(await self._paths(directory, await self._starts(directory)))
        entries = read_entries(self.spool, directory)
        while batch := await self.spool.run(partial(self._opened, entries)):
            for entry, content in batch:
                if not entry.folder:
                    yield self._file(entry, content, next(paths))

    async def _starts(self, directory: Directory) -> list[int]:
        """Where the entries begin, in order, and the directory after them.

        Nothing else is kept: the directory is read again for whatever comes next, so that its size is no matter of memory.
        """
        starts = array("Q")
        entries = read_entries(self.spool, directory)
        while batch := await self.spool.run(partial(_batch, entries)):
            for entry in batch:
                if entry.start + LOCAL.size > directory.start:
                    unsafe(f"overlap: {entry.shown} lies in the directory, or behind it")
                starts.append(entry.start)
        found = [*sorted(starts), directory.start]
        if found[0]:
            unsafe(f"gap: {found[0]} bytes before the first entry belong to nothing")
        return found

    async def _paths(self, directory: Directory, starts: list[int]) -> list[str]:
        """Those of the files, in the directory's order. Raises `Refused` for whatever is wrong with any entry's headers."""
        paths: list[str] = []
        checked = self._checked(directory, starts)
        while batch := await self.spool.run(partial(_batch, checked)):
            paths += filter(None, batch)
        return paths

    def _checked(self, directory: Directory, starts: list[int]) -> Iterator[str]:
        """The path of each entry that is all right; empty for folders."""
        work, below = self.work, self.part.path
        stated = 0
        for entry in read_entries(self.spool, directory):
            # Each ends where the next begins: none lies over another, and nothing lies between them.
            check_local(self.spool, entry, starts[bisect_left(starts, entry.start) + 1])
            # Some writers begin every name like that.
            name = entry.name.removeprefix("./")
            if entry.folder:
                folder = name.removesuffix("/")
                if entry.name != "./":
                    check_name(folder, work, f"{below}/{folder}" if below else folder)
                work.meter.entry(entry.name)
                yield ""
                continue
            path = entry_path(name, work, below)
            if entry.size > work.limits.entry:
                raise exceeded("entry", work.limits.entry, path)
            stated += entry.size
            work.meter.announced(stated, path)
            yield path

    def _opened(self, entries: Iterator[Entry]) -> list[tuple[Entry, "_Content"]]:
        """Some more entries: small ones with what they hold, about `CHUNK_SIZE` bytes in all."""
        batch: list[tuple[Entry, _Content]] = []
        room = CHUNK_SIZE
        for entry in islice(entries, _BATCH):
            content = Content(partial(self._decoder, entry), entry.size, entry.crc, entry.name)
            small = max(entry.size, entry.packed) <= _SMALL and not entry.folder
            batch.append((entry, _read(content) if small else content))
            room -= entry.size if small else 0
            if room <= 0:
                break
        return batch

    def _decoder(self, entry: Entry) -> Decoder:
        packed = Packed(self.spool, content_at(self.spool, entry), entry.packed, entry.name)
        return METHODS[entry.method](packed, entry.size, entry.flags, self.work.limits)

    def _file(self, entry: Entry, content: "_Content", path: str) -> Part:
        label = path.rpartition("/")[2]
        return Part(
            self._chunks(content, self.work.meter.entry(path)),
            path=path,
            member=entry.name,
            label=label,
            content_type=content_type_of(label),
            depth=self.part.depth + 1,
            steps=(*self.part.steps, Unzip.name),
            size=entry.size,
        )

    async def _chunks(self, content: "_Content", meter: EntryMeter) -> AsyncGenerator[bytes, None]:
        if isinstance(content, Refused):
            raise content
        if isinstance(content, bytes):
            meter.made(len(content))
            if content:
                yield content
            return
        while not content.whole:
            piece = await self.spool.run(content.read)
            meter.made(len(piece))
            if piece:
                yield piece


_Content = Content | bytes | Refused
"""Of an entry: to be read, or all of it, or why it cannot be had."""


def _read(content: Content) -> bytes | Refused:
    pieces: list[bytes] = []
    try:
        while not content.whole:
            pieces.append(content.read())
    except Refused as exc:
        return exc
    return b"".join(pieces)


def _batch(items: Iterator[Item]) -> list[Item]:
    return list(islice(items, _BATCH))
