"""Decodes all members of a payload, one after another, off the event loop. Used by codecs.py and content_encoding.py."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from functools import partial

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits, Work
from handlers.transforms.coding import TRUNCATED, Coding, Decompressor, corrupt
from handlers.transforms.offload import offloaded

_FIRST = 4096
"""Bytes a member is given at first, eight times as many each time after: what is behind its end is copied back."""

_ZEROS = 16 * 1024
"""Bytes of padding that are looked at in one go."""

_BATCH = 4 * CHUNK_SIZE
"""Bytes after which a thread hands out what it has made."""

_QUICK = 4096
"""Chunks up to this size are begun in the event loop, where the coding has no large blocks."""

_NOTHING = memoryview(b"")


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
            batch, more = await offloaded(0 if inline else CHUNK_SIZE, make, work.turn)
            inline = False
            for piece in batch:
                yield piece
    members.end()


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
