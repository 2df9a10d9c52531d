"""What the archive formats share: members, the proof of their content, and blocks of even size. Used by the writers beside it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import ClassVar, Protocol, TypeAlias

from backends.errors import IntegrityError
from handlers.transforms.offload import offloaded

Piece: TypeAlias = bytes | memoryview
"""Pieces of an archive may be views of what was read: `blocks` makes the one copy."""


@dataclass(frozen=True, slots=True)
class Member:
    """One object that goes into the archive."""

    path: str
    """In the archive: the resource's name (handlers/naming.py), and what lies below it."""
    size: int
    sha256: str
    """64 hex digits, lower case."""
    open: Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
    """As `StorageBackend.open` of its key; called once, and what it raises comes out unchanged."""


class Writer(Protocol):
    """One format. Stateless: it may write many archives at a time."""

    content_type: ClassVar[str]

    def write(self, members: AsyncIterator[Member]) -> AsyncGenerator[bytes, None]:
        """The archive of the members, in their order. Raises as `handlers.bundling.archive.archive` does."""
        ...


async def content(member: Member, also: Callable[[bytes], None] | None = None) -> AsyncGenerator[bytes, None]:
    """The member's bytes, each chunk handed to `also` first, on the thread that hashes it.

    Raises `IntegrityError` in place of the end, or of the first byte too many, unless size and SHA-256 are as promised.
    """
    size, digest = 0, sha256()

    def take(chunk: bytes) -> None:
        digest.update(chunk)
        if also is not None:
            also(chunk)

    async with member.open() as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > member.size:
                raise IntegrityError(f"{member.path!a} is longer than its {member.size} bytes")
            await offloaded(len(chunk), partial(take, chunk))
            yield chunk
    if size != member.size:
        raise IntegrityError(f"{member.path!a} ends after {size} of its {member.size} bytes")
    if digest.hexdigest() != member.sha256:
        raise IntegrityError(f"{member.path!a} has SHA-256 {digest.hexdigest()}, not {member.sha256}")


async def blocks(pieces: AsyncIterator[Piece], size: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks of `size`, the last one shorter: independent of how they were cut before."""
    held: list[Piece] = []
    have = 0
    async for piece in pieces:
        rest = piece
        while have + len(rest) >= size:
            view = memoryview(rest)
            held.append(view[: size - have])
            rest = view[size - have :]
            yield b"".join(held)
            held.clear()
            have = 0
        if rest:
            held.append(rest)
            have += len(rest)
    if held:
        yield b"".join(held)
