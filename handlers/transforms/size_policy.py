"""Carries out a route's `max_size` on what would be stored: refuses it, compresses it, or splits it. Made by worker/steps.py.

`Squeeze` and `Ceiling` are `over: compress`, `Ceiling` alone is `over: reject`, `Split` is `over: split`. Where nobody knows a
part's size before it is read, whoever has to know (not `Ceiling`, which counts) reads up to 1 MiB of it into memory, or up to
the limit into a file without a name.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Part, Transform, Work
from handlers.transforms.max_size import NAME
from handlers.transforms.offload import offloaded
from handlers.transforms.parts_list import MOST, SUFFIX, ListedPart, PartsList, part_name
from handlers.transforms.peek import peek
from handlers.transforms.spool import Spool, spooled


class Ceiling:
    """Refuses a part of more than `limit` bytes, in place of its end where only reading tells: no target commits it."""

    name = NAME
    early = False

    def __init__(self, limit: int) -> None:
        self._limit = limit

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:  # noqa: ARG002 - nothing comes out
        """See the port. Raises `Refused("payload_limit")`."""
        if part.size is None:
            yield replace(part, chunks=self._counted(part))
        elif part.size > self._limit:
            raise self._refusal(part)
        else:
            yield part

    async def _counted(self, part: Part) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in part.chunks:
            size += len(chunk)
            if size > self._limit:
                raise self._refusal(part)
            yield chunk

    def _refusal(self, part: Part) -> Refused:
        compressed = ", though it was compressed" if "compress" in part.steps else ""
        return Refused(
            "payload_limit",
            f"max_size (max_size.bytes: {self._limit}) is exceeded at {part.path or 'the payload'!a}{compressed}",
        )


class Squeeze:
    """Compresses what has more than `room` bytes. What is compressed already stays as it is, and is `Ceiling`'s to refuse."""

    name = NAME
    early = False

    def __init__(self, room: int, compress: Transform) -> None:
        """`room`: what would still fit when the steps after this one have made it larger."""
        self._room = room
        self._compress = compress

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port."""
        async with _weighed(part, self._room, work) as (over, whole):
            if not over:
                yield whole
                return
            async with aclosing(self._compress.apply(whole, work)) as parts:
                async for made in parts:
                    yield made


class Split:
    """Cuts what has more than `size` bytes into parts of `size`, the last one shorter; their list comes last.

    Whoever sees the list therefore finds all parts. The list itself may be of any size.
    """

    name = NAME
    early = True

    def __init__(self, size: int) -> None:
        self._size = size

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port. Each part counts as an entry."""
        async with _weighed(part, self._size, work) as (over, whole):
            if not over:
                yield whole
                return
            async with aclosing(self._parts(work.settle(whole), work)) as parts:
                async for made in parts:
                    yield made

    async def _parts(self, whole: Part, work: Work) -> AsyncGenerator[Part, None]:
        pieces, listed = _Pieces(whole.chunks, self._size), list[ListedPart]()
        while await pieces.another():
            if len(listed) == MOST:
                raise Refused(
                    "payload_limit", f"max_size: it would take more than {MOST} parts; raise max_size.bytes"
                )
            name = part_name(len(listed) + 1)
            made = _beside(whole, f".{name}", pieces.read(), "application/octet-stream", work)
            work.meter.entry(made.path or name)
            yield made
            size, digest = await pieces.done()
            listed.append(ListedPart(name=name, size=size, sha256=digest))
        contents = PartsList(
            size=pieces.size,
            sha256=pieces.sha256,
            content_type=whole.content_type,
            parts=tuple(listed),
        )
        yield _beside(whole, SUFFIX, _text(contents), "application/json", work)


class _Pieces:
    """A stream in pieces of `size` bytes, the last one shorter, one after the other."""

    def __init__(self, chunks: AsyncIterator[bytes], size: int) -> None:
        self._chunks = chunks
        self._most = size
        self._held = memoryview(b"")
        self._left = 0
        self._piece = sha256()
        self._whole = sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of all pieces so far."""
        return self._whole.hexdigest()

    async def another(self) -> bool:
        """Begin the next piece; whether there is one."""
        self._left, self._piece = self._most, sha256()
        return await self._more()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """The piece, or what is left of it."""
        while self._left and await self._more():
            taken = bytes(self._held[: self._left])
            self._held = self._held[len(taken) :]
            self._left -= len(taken)
            self.size += len(taken)
            await offloaded(len(taken), partial(self._count, taken))
            yield taken

    async def done(self) -> tuple[int, str]:
        """Size and SHA-256 of the piece, all of it: who had enough of it may have closed it."""
        async with aclosing(self.read()) as rest:
            async for _ in rest:
                pass
        return self._most - self._left, self._piece.hexdigest()

    async def _more(self) -> bool:
        while not self._held:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return False
            self._held = memoryview(chunk)
        return True

    def _count(self, data: bytes) -> None:
        self._piece.update(data)
        self._whole.update(data)


async def _text(contents: PartsList) -> AsyncIterator[bytes]:
    for piece in contents.encode():
        yield piece


def _beside(whole: Part, suffix: str, chunks: AsyncIterator[bytes], content_type: str, work: Work) -> Part:
    """One of the objects that lie in place of the whole, under its name with a suffix."""
    made = whole.changed("split", chunks, add=suffix, content_type=content_type)
    made = replace(made, member=f"{whole.member}{suffix}" if whole.path else suffix[1:])
    settled = work.settle(made)
    if settled.path != made.path:
        # Whoever looks for the parts knows their names only by that of the whole.
        raise Refused(
            "payload_unsafe",
            f"collision: {whole.path[:200]!a} has to be split, and another entry has the name of its {suffix[1:]}",
        )
    return settled


@asynccontextmanager
async def _weighed(part: Part, limit: int, work: Work) -> AsyncGenerator[tuple[bool, Part], None]:
    """Whether the part has more than `limit` bytes, and the part, to be read within the context.

    Raises `Refused("payload_limit")` where the file it is kept in meanwhile outgrows `Limits.spool`.
    """
    if part.size is not None:
        yield part.size > limit, part
        return
    asked = min(limit + 1, CHUNK_SIZE)
    head, chunks = await peek(part.chunks, asked)
    if len(head) < asked:
        yield False, replace(part, chunks=chunks, size=len(head))
    elif len(head) > limit:
        yield True, replace(part, chunks=chunks)
    else:
        async with spooled(_beginning(chunks, limit + 1), work, part.path) as spool:
            over = spool.size > limit
            size = None if over else spool.size
            yield over, replace(part, chunks=_whole(spool, chunks), size=size)


async def _beginning(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Whole chunks until they are `size` bytes, or all there are. What follows can still be read from `chunks`."""
    while size > 0 and (chunk := await anext(chunks, None)) is not None:
        size -= len(chunk)
        yield chunk


async def _whole(spool: Spool, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What lies in the spool, and what comes after it."""
    offset = 0
    while piece := await spool.run(partial(spool.read, offset, CHUNK_SIZE)):
        offset += len(piece)
        yield piece
    async for chunk in chunks:
        yield chunk
