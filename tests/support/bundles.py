"""Members of archives out of thin air, for the tests and the fuzz target of handlers/bundling."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import sha256

from backends.base import CHUNK_SIZE
from handlers.bundling.archive import archive
from handlers.bundling.base import Member

Opening = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]


def opening(chunks: Iterable[bytes]) -> Opening:
    """Opens to those chunks, once."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[bytes], None]:
        async def stream() -> AsyncGenerator[bytes, None]:
            for chunk in chunks:
                yield chunk

        yield stream()

    return opened


def member(path: str, data: bytes = b"", cut: int = CHUNK_SIZE) -> Member:
    """A member whose stream comes in chunks of `cut` bytes."""
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    return Member(path, len(data), sha256(data).hexdigest(), opening(pieces))


def members_of(files: Mapping[str, bytes], cut: int = CHUNK_SIZE) -> list[Member]:
    return [member(path, data, cut) for path, data in files.items()]


def listing(members: Iterable[Member]) -> Callable[[], AsyncGenerator[Member, None]]:
    """The members, as often as they are asked for."""

    async def again() -> AsyncGenerator[Member, None]:
        for one in members:
            yield one

    return again


async def archived(format_: str, members: Iterable[Member]) -> bytes:
    return b"".join([chunk async for chunk in archive(format_, listing([*members]))])
