"""Takes one layer of compression off a payload: what all one-to-one decoders have in common.

A `Coding` knows a format: how it begins, what decodes one member of it, which exceptions mean what. `Unpack` is the transform
of a coding, `Members` the machine inside. The transforms: gunzip.py (`Gunzip`), bunzip2.py (`Bunzip2`), unxz.py (`Unxz`),
unzstd.py (`Unzstd`); content_encoding.py (`Decode`) uses the codings by what HTTP calls them.

`Limits.memory` holds for a decoder's window; the tables beside it take less than `TABLES`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Protocol

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits, Part, Work, exceeded
from handlers.transforms.content_types import content_type_of
from handlers.transforms.offload import offloaded
from handlers.transforms.peek import peek
from handlers.transforms.registry import NoOptions

TABLES = 1 << 20
"""Bytes that a decoder may take beside its window."""

TRUNCATED = "it ends before its end: truncated"
"""What is said of a payload that lacks its end."""

_FIRST = 4096
"""Bytes a member is given at first, eight times as many each time after: what is behind its end is copied back."""

_ZEROS = 16 * 1024
"""Bytes of padding that are looked at in one go."""

_BATCH = 4 * CHUNK_SIZE
"""Bytes after which a thread hands out what it has made."""

_QUICK = 4096
"""Chunks up to this size are begun in the event loop, where the coding has no large blocks."""


class Decompressor(Protocol):
    """Decodes one member; as `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended, checked."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without more data."""
        ...

    @property
    def unused_data(self) -> bytes:
        """After the end: what was given and is not the member's."""
        ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """At most `max_length` bytes more; the rest of `data` is kept."""
        ...


class Coding(ABC):
    """A format of compression. Has no state."""

    name: str
    """As people call the format."""
    magics: Sequence[Sequence[bytes]]
    """For each way a member may begin: the values that its first bytes may have."""
    suffixes: Mapping[str, str]
    """Of names, in lower case, and what stands in their place after decoding."""
    types: frozenset[str] = frozenset()
    """Content types that claim the format."""
    errors: tuple[type[Exception], ...]
    """What its decompressor raises."""
    look: int = 16
    """Bytes that `begins` wants to see."""
    padding: int = 0
    """Zero bytes may follow the last member, a multiple of so many; 0 where none may."""
    padded_between: bool = False
    """Whether the padding may be followed by another member."""
    several: bool = True
    """Whether a member may follow another."""
    quick: bool = True
    """Whether little input means little work."""

    def begins(self, head: bytes) -> bool:
        """Whether a payload with these first bytes is of this format."""
        return any(_fits(head, magic) and len(head) >= len(magic) for magic in self.magics)

    def cut(self, payload: bytes) -> bool:
        """Whether a payload of these bytes and no more ends within a magic number."""
        return bool(payload) and any(
            _fits(payload, magic) and len(payload) < len(magic) for magic in self.magics
        )

    @property
    def magic(self) -> int:
        """Bytes that tell whether a member begins."""
        return max((len(magic) for magic in self.magics), default=0)

    def follows(self, head: bytes) -> bool:
        """Whether a member begins with these `magic` bytes."""
        return any(_fits(head, magic) for magic in self.magics)

    @abstractmethod
    def member(self, limits: Limits, path: str) -> Decompressor:
        """For one member, from its first byte. It may raise `Refused` by itself."""

    def refused(self, exc: Exception, limits: Limits, path: str) -> Refused:  # noqa: ARG002 - for codings with a memory limit
        """What one of `errors` means."""
        return corrupt(self, str(exc), path)


class Members:
    """Decodes all members of one payload, one after another. For one thread at a time."""

    def __init__(self, coding: Coding, limits: Limits, path: str, made: Callable[[int], None]) -> None:
        """`made` is told the size of each piece before it is handed out."""
        self._coding = coding
        self._limits = limits
        self._path = path
        self._made = made
        self._waiting: deque[memoryview] = deque()
        self._head = bytearray()
        self._member: Decompressor | None = None
        self._ended = 0
        self._zeros = 0
        self._portion = _FIRST

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out for `data`. To be read to its end before more is fed. Raises `Refused`."""
        self._waiting.append(memoryview(data))
        while self._waiting:
            if self._member is None:
                self._seek()
            else:
                yield from self._decode(self._member)

    def end(self) -> None:
        """There is no more. Raises `Refused` unless the last member was whole."""
        if self._member is not None or not self._ended:
            raise corrupt(self._coding, TRUNCATED, self._path)
        if self._head:
            raise self._junk()
        if self._zeros % (self._coding.padding or 1):
            raise corrupt(self._coding, f"{self._zeros} bytes of padding, not a multiple of four", self._path)

    def _seek(self) -> None:
        """Between members: take padding and the first bytes of the next one."""
        data = self._waiting.popleft()
        if self._ended and self._coding.padding and not self._head:
            skipped = _zeros(data[:_ZEROS])
            self._zeros += skipped
            data = data[skipped:]
            if not data:
                return
            if skipped == _ZEROS:
                self._waiting.appendleft(data)
                return
            if self._zeros and (self._zeros % self._coding.padding or not self._coding.padded_between):
                raise self._junk()
        if self._ended and not self._coding.several:
            raise self._junk()
        wanted = self._coding.magic - len(self._head)
        self._head += data[:wanted]
        if len(self._head) < self._coding.magic:
            return
        head = bytes(self._head)
        if not self._coding.follows(head):
            raise self._junk()
        if len(data) > wanted:
            self._waiting.appendleft(data[wanted:])
        self._waiting.appendleft(memoryview(head))
        self._head.clear()
        self._zeros = 0
        self._member = self._coding.member(self._limits, self._path)
        self._portion = _FIRST

    def _decode(self, member: Decompressor) -> Iterator[bytes]:
        """Give the member a portion, and take what comes out."""
        waiting = self._waiting.popleft()
        data = waiting[: self._portion]
        if len(waiting) > self._portion:
            self._waiting.appendleft(waiting[self._portion :])
        if len(data) == self._portion:
            self._portion = min(self._portion * 8, CHUNK_SIZE)
        while True:
            try:
                piece = member.decompress(data, CHUNK_SIZE)
            except self._coding.errors as exc:
                raise self._coding.refused(exc, self._limits, self._path) from exc
            if piece:
                self._made(len(piece))
                yield piece
            if member.eof:
                self._member = None
                self._ended += 1
                if unused := member.unused_data:
                    self._waiting.appendleft(memoryview(unused))
                return
            # A decoder that neither makes nor wants anything gets what there is next: nothing may go round for ever.
            if member.needs_input or not (piece or data):
                return
            data = _NOTHING

    def _junk(self) -> Refused:
        return corrupt(self._coding, f"something else follows its member {self._ended}", self._path)


async def decoded(
    coding: Coding, chunks: AsyncIterator[bytes], path: str, work: Work
) -> AsyncGenerator[bytes, None]:
    """What `chunks` hold, decoded and counted as one entry. Raises `Refused`."""
    members = Members(coding, work.limits, path, work.meter.entry(path).made)
    async for chunk in chunks:
        pieces = members.feed(chunk)
        # The one piece a small chunk is good for is no reason to wait for a thread.
        inline = coding.quick and len(chunk) <= _QUICK
        more = True
        while more:
            make = partial(_batch, pieces, 1 if inline else _BATCH)
            batch, more = await offloaded(0 if inline else CHUNK_SIZE, make)
            inline = False
            for piece in batch:
                yield piece
    members.end()


class Unpack:
    """The transform of one coding: takes off one layer of it."""

    Options = NoOptions
    early = False

    def __init__(self, name: str, coding: Coding) -> None:
        """`name` is the configuration's, of the step."""
        self._name = name
        self._coding = coding

    @property
    def name(self) -> str:
        return self._name

    @property
    def look(self) -> int:
        """Bytes that `begins` wants to see."""
        return self._coding.look

    def begins(self, head: bytes) -> bool:
        """Whether a payload with these first bytes would be decoded."""
        return self._coding.begins(head)

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        coding = self._coding
        head, chunks = await peek(part.chunks, coding.look)
        part = replace(part, chunks=chunks)
        if coding.begins(head):
            check_nesting(part, work)
            async with aclosing(decoded(coding, chunks, part.path, work)) as decoding:
                yield unpacked(self._name, coding, part, decoding)
            return
        claimed = claim(part, coding)
        if claimed and coding.cut(head):
            raise corrupt(coding, TRUNCATED, part.path)
        is_something = "something else" if head else "empty"
        yield part.noted(f"{claimed} claims {coding.name}, but it is {is_something}") if claimed else part


def check_nesting(part: Part, work: Work) -> None:
    """Raise `Refused("payload_limit")` where a part within this one would be beyond `Limits.nesting`."""
    if part.depth >= work.limits.nesting:
        raise exceeded("nesting", work.limits.nesting, part.path)


def unpacked(step: str, coding: Coding, part: Part, chunks: AsyncIterator[bytes]) -> Part:
    """`part` with one layer of `coding` taken off, which leaves `chunks`: one level deeper, without the suffix.

    A content type that claimed the coding, or nothing, is replaced by what the name stands for.
    """
    suffix = suffix_of(part.label, coding)
    drop, add = ((suffix,), coding.suffixes[suffix]) if suffix else ((), "")
    content_type = part.content_type
    if media_type(content_type) in coding.types | _ANY:
        content_type = content_type_of(part.label[: len(part.label) - len(suffix)] + add)
    made = part.changed(step, chunks, drop=drop, add=add, content_type=content_type)
    return replace(made, depth=part.depth + 1)


def claim(part: Part, coding: Coding) -> str:
    """What of its name and type says that the part is of this coding; empty where nothing does."""
    if media_type(part.content_type) in coding.types:
        return f"content type {part.content_type!a}"
    if suffix_of(part.label, coding):
        return f"name {part.label[-200:]!a}"
    return ""


def suffix_of(label: str, coding: Coding) -> str:
    """The suffix of the coding that a name ends in; empty when it has none, or is nothing else."""
    found = (suffix for suffix in coding.suffixes if label.lower().endswith(suffix))
    return next((suffix for suffix in found if len(label) > len(suffix)), "")


def media_type(content_type: str | None) -> str:
    """Without parameters, in lower case; empty for None."""
    return (content_type or "").partition(";")[0].strip().lower()


def corrupt(coding: Coding, what: str, path: str) -> Refused:
    """The refusal of a payload that is damaged."""
    return Refused("payload_corrupt", f"{coding.name}: {what}, at {path or 'the payload'!a}")


def unsupported(coding: Coding, what: str, path: str) -> Refused:
    """The refusal of a payload that may be right, and cannot be decoded here."""
    return Refused("payload_unsupported", f"{coding.name}: {what}, at {path or 'the payload'!a}")


_NOTHING = memoryview(b"")

_ANY = frozenset({"", "application/octet-stream", "binary/octet-stream"})
"""Content types that say nothing."""


def _fits(head: bytes, magic: Sequence[bytes]) -> bool:
    return all(byte in values for byte, values in zip(head, magic, strict=False))


def _zeros(data: memoryview) -> int:
    """How many zero bytes `data` begins with."""
    raw = bytes(data)
    return len(raw) - len(raw.lstrip(b"\0"))


def _batch(pieces: Iterator[bytes], size: int) -> tuple[list[bytes], bool]:
    """The next pieces, about `size` bytes, small ones joined; and whether there may be more."""
    batch: list[bytes] = []
    held: list[bytes] = []
    have = total = 0
    more = False
    for piece in pieces:
        if have + len(piece) > CHUNK_SIZE:
            batch.append(b"".join(held))
            held, have = [], 0
        held.append(piece)
        have += len(piece)
        total += len(piece)
        if total >= size:
            more = True
            break
    if held:
        batch.append(b"".join(held))
    return batch, more
