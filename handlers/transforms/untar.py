"""The transform `untar`: a tar archive becomes its files, streaming, also out of gzip, bzip2, xz or zstd around it.

Made by whoever reads routes. tar_headers.py reads the headers; this module moves the bytes between them.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import EntryMeter, Meter, Part, Transform, Work, exceeded
from handlers.transforms.bunzip2 import Bunzip2
from handlers.transforms.content_types import content_type_of
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.names import check_name, entry_path
from handlers.transforms.peek import peek
from handlers.transforms.registry import NoOptions
from handlers.transforms.tar_headers import (
    BLOCK,
    EXTENDED_LIMIT,
    ZEROS,
    Entry,
    Extensions,
    looks_like_tar,
    parse,
)
from handlers.transforms.unxz import Unxz
from handlers.transforms.unzstd import Unzstd

_PROBE: Final = 1 << 20
"""Bytes of a payload that are decoded to see whether a tar is inside: bzip2 gives nothing before 900 kB."""
_BOUNDLESS: Final = 1 << 62
_ZEROS_AFTER: Final = 1 << 20
"""Writers fill up the last record, of 10,240 bytes unless told otherwise; 1 MiB is a usual "otherwise"."""
_TYPES: Final = frozenset(
    {"application/x-tar", "application/tar", "application/x-gtar", "application/x-ustar"}
)
_SUFFIXES: Final = (
    ".tar",
    ".tgz",
    ".tbz2",
    ".txz",
    ".tzst",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
)


class Decoder(Transform, Protocol):
    """What is asked for payloads with something around the tar."""

    @property
    def look(self) -> int:
        """Bytes that `begins` wants to see."""
        ...

    def begins(self, head: bytes) -> bool:
        """Whether a payload with these first bytes would be decoded."""
        ...


def decoders() -> tuple[Decoder, ...]:
    """All that a tar may be inside of."""
    return Gunzip(), Bunzip2(), Unxz(), Unzstd()


class Untar:
    """Takes tar archives apart: ustar, pax, GNU and version 7. Only files come out; directories give no part.

    What is compressed is looked into, and decoded if it has a tar inside. Everything else goes on as it was.
    """

    Options = NoOptions
    name = "untar"
    early = True

    def __init__(self) -> None:
        self._decoders = decoders()

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port."""
        start, chunks = await peek(part.chunks, BLOCK)
        part = replace(part, chunks=chunks)
        if looks_like_tar(start):
            async with aclosing(_Archive(part, part.path, work).files()) as files:
                async for file in files:
                    yield file
            return
        start, chunks = await peek(chunks, max(decoder.look for decoder in self._decoders))
        part = replace(part, chunks=chunks)
        decoder = next((one for one in self._decoders if one.begins(start)), None)
        if decoder is not None:
            start, chunks = await peek(chunks, _PROBE)
            part = replace(part, chunks=chunks)
            if looks_like_tar(await _beginning(decoder, part, start, work)):
                # What is in it lies below the whole name: only that is known to be nobody else's.
                async with aclosing(decoder.apply(part, work)) as parts:
                    async for decoded in parts:
                        async with aclosing(_Archive(decoded, part.path, work).files()) as files:
                            async for file in files:
                                yield file
                return
        yield part.noted("claims to be a tar and does not begin like one") if _claims(part) else part


async def _beginning(decoder: Transform, part: Part, start: bytes, work: Work) -> bytes:
    """The first block that `decoder` makes of a payload that begins with `start`; less where that does not suffice.

    Raises `Refused` where `start` alone shows it to be damaged.
    """
    # Nothing of this is stored, so it counts for nothing; what is decoded for real does.
    boundless = {"total": _BOUNDLESS, "entry": _BOUNDLESS, "entries": _BOUNDLESS, "nesting": _BOUNDLESS}
    trial = Work(Meter(work.limits.model_copy(update=boundless)), work.spool, work.identity, turn=work.turn)
    cut = _Cut(start)
    try:
        async with aclosing(decoder.apply(replace(part, chunks=cut), trial)) as parts:
            async for decoded in parts:
                async with _closing(decoded.chunks):
                    return await _Source(decoded.chunks).upto(BLOCK)
    except Refused:
        if len(start) < _PROBE or not cut.wanted_more:
            raise
    return b""


class _Cut(AsyncIterator[bytes]):
    """The beginning of a stream, as a stream; tells whether it was enough."""

    def __init__(self, start: bytes) -> None:
        self._left: bytes | None = start
        self.wanted_more = False

    async def __anext__(self) -> bytes:
        if self._left is None:
            self.wanted_more = True
            raise StopAsyncIteration
        start, self._left = self._left, None
        return start


class _Source:
    """A stream by bytes instead of chunks."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._held = b""
        self._at = 0
        self.position = 0

    async def some(self, size: int) -> bytes:
        """1 to `size` bytes; none at the end of the stream."""
        while self._at == len(self._held):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return b""
            self._held, self._at = chunk, 0
        piece = self._held[self._at : self._at + size]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    async def upto(self, size: int) -> bytes:
        """`size` bytes; fewer where the stream ends."""
        pieces, missing = [], size
        while missing and (piece := await self.some(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


class _Body:
    """The content of one file, which ends with the padding behind it."""

    def __init__(self, source: _Source, size: int, meter: EntryMeter, path: str) -> None:
        self._source = source
        self._left = size
        self._padding = -size % BLOCK
        self._meter = meter
        self._path = path
        self._over = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Raises `Refused` in place of the end of what is damaged."""
        while True:
            if self._over:
                raise RuntimeError(f"{self._path!a} is read after the next part was asked for")
            if not (piece := await self._piece()):
                return
            yield piece

    async def skip(self) -> None:
        """Go to the end of what was not read; nothing of it can be read any more."""
        self._over = True
        while await self._piece():
            pass

    async def _piece(self) -> bytes:
        if not self._left:
            padding, self._padding = self._padding, 0
            if (await self._source.upto(padding)) != bytes(padding):
                raise _corrupt(f"the padding after {self._path!a} is damaged or cut off")
            return b""
        piece = await self._source.some(min(self._left, CHUNK_SIZE))
        if not piece:
            raise _corrupt(f"it ends {self._left} bytes before the end of {self._path!a}")
        self._left -= len(piece)
        self._meter.made(len(piece))
        return piece


class _Archive:
    """One archive while it is read."""

    def __init__(self, part: Part, below: str, work: Work) -> None:
        self._part = part
        self._below = below
        self._work = work
        self._source = _Source(part.chunks)
        self._extensions = Extensions()

    async def files(self) -> AsyncGenerator[Part, None]:
        """Its files, in its order. Raises `Refused`."""
        nesting = self._work.limits.nesting
        if self._part.depth >= nesting:
            raise exceeded("nesting", nesting, self._below or self._part.label)
        async with _closing(self._part.chunks):
            while (entry := await self._entry()) is not None:
                file = self._file(entry)
                if file is None:
                    continue
                part, body = file
                yield part
                await body.skip()
            await self._end()

    async def _entry(self) -> Entry | None:
        """The next file or directory; None where the first of the two blocks of zeros is."""
        extensions = self._extensions
        while True:
            at = self._source.position
            block = await self._source.upto(BLOCK)
            try:
                if len(block) < BLOCK:
                    raise _corrupt("it ends without two blocks of zeros, so it is cut off")
                if block == ZEROS:
                    extensions.finish()
                    return None
                header = parse(block)
                if not header.extends:
                    return extensions.entry(header)
                extensions.add(header, await self._extended(header.size))
            except Refused as exc:
                raise Refused(exc.reason, f"{exc.detail} (header at byte {at})") from exc

    async def _extended(self, size: int) -> bytes:
        if size > EXTENDED_LIMIT:
            raise Refused(
                "payload_limit", f"tar: an extended header of {size} bytes; {EXTENDED_LIMIT} are allowed"
            )
        padded = size + -size % BLOCK
        data = await self._source.upto(padded)
        if len(data) < padded or data[size:] != bytes(padded - size):
            raise _corrupt("an extended header is damaged or cut off")
        return data[:size]

    def _file(self, entry: Entry) -> tuple[Part, _Body] | None:
        """The part of a file; None for a directory."""
        work = self._work
        # `tar -C folder -c .` writes every name like that.
        name = entry.name.removeprefix("./")
        if entry.directory:
            if name != ".":
                check_name(name, work, f"{self._below}/{name}" if self._below else name)
            work.meter.entry(name)
            return None
        path = entry_path(name, work, self._below)
        meter = work.meter.entry(path)
        if entry.size > work.limits.entry:
            raise exceeded("entry", work.limits.entry, path)
        body = _Body(self._source, entry.size, meter, path)
        part = Part(
            body.chunks(),
            path=path,
            member=entry.name,
            label=path.rpartition("/")[2],
            content_type=content_type_of(path),
            depth=self._part.depth + 1,
            notes=(entry.note,) if entry.note else (),
            steps=(*self._part.steps, Untar.name),
            size=entry.size,
        )
        return part, body

    async def _end(self) -> None:
        """Only zeros may follow. Reads to the end of the stream, which proves itself there."""
        if await self._source.upto(BLOCK) != ZEROS:
            raise _corrupt("it ends without two blocks of zeros, so it is cut off or damaged")
        after = self._source.position
        while piece := await self._source.some(CHUNK_SIZE):
            if piece.strip(b"\0") or self._source.position - after > _ZEROS_AFTER:
                raise _corrupt(f"something follows its end (at byte {after})")
        if self._source.position % BLOCK:
            raise _corrupt("its last block is cut off")


@asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Close what was made of a stream by whoever stops early."""
    try:
        yield
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _corrupt(what: str) -> Refused:
    return Refused("payload_corrupt", f"tar: {what}")


def _claims(part: Part) -> bool:
    content_type = (part.content_type or "").partition(";")[0].strip().lower()
    return content_type in _TYPES or part.label.lower().endswith(_SUFFIXES)
