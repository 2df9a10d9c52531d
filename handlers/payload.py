"""Reads a payload from staging and holds it to what was promised of it. Called by handlers/execute.py."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from backends.base import StorageBackend
from backends.checksums import running
from backends.errors import IntegrityError, InvalidKey, NotFound
from handlers.errors import PayloadMissing, Refused
from handlers.plan import Source
from handlers.transforms.base import Meter

if TYPE_CHECKING:
    import hashlib

_INLINE_HASH = 128 * 1024
"""Chunks up to this size are hashed on the event loop (under 0.1 ms); larger ones on a thread."""


@dataclass(slots=True)
class Digest:
    """Size and SHA-256 of what went by."""

    size: int = 0
    _sha256: "hashlib._Hash" = field(default_factory=sha256)

    def update(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)

    @property
    def sha256(self) -> str:
        """In lower-case hex."""
        return self._sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class Before:
    """A payload as it lay in staging, when something else is stored: size in bytes, SHA-256 in hex, and what was done."""

    size: int
    sha256: str
    steps: tuple[str, ...]
    """The transforms that changed something, in the order they first did."""
    notes: tuple[str, ...]


class opened:  # noqa: N801 - used as a function: an async context manager without the generator's overhead
    """Opens the source; only a missing *payload* is `PayloadMissing`, a target's NotFound is not.

    What cannot lie in this staging at all, as what a symbolic link leads to, is `Refused`.
    """

    def __init__(self, source: Source, staging: StorageBackend) -> None:
        self._source = source
        self._context = staging.open(source.key)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        try:
            return await self._context.__aenter__()
        except NotFound as exc:
            raise PayloadMissing(
                f"no payload {self._source.key!r} in staging {self._source.staging!r}"
            ) from exc
        except InvalidKey as exc:
            raise Refused("staging_not_allowed", str(exc)) from exc

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return await self._context.__aexit__(*exc_info)  # type: ignore[arg-type] # object is what the protocol hands on


async def checked(
    chunks: AsyncIterator[bytes], source: Source, digest: Digest | None = None
) -> AsyncGenerator[bytes, None]:
    """The same chunks; raises `IntegrityError` instead of ending when size, SHA-256 or a checksum are not as promised.

    A backend that is fed by it therefore never commits a wrong payload. With a `digest` size and SHA-256 are computed in any
    case.
    """
    size = 0
    if digest is None and source.sha256 is not None:
        digest = Digest()
    sums = {algorithm: running(algorithm) for algorithm in source.checksums}
    updates = [each.update for each in (digest, *sums.values()) if each is not None]
    async for chunk in chunks:
        size += len(chunk)
        if source.size is not None and size > source.size:
            raise IntegrityError(f"payload {source.key!r} is longer than the {source.size} bytes promised")
        if updates and len(chunk) > _INLINE_HASH:
            await asyncio.to_thread(_update, updates, chunk)
        else:
            _update(updates, chunk)
        yield chunk
    if source.size is not None and size != source.size:
        raise IntegrityError(f"payload {source.key!r} has {size} bytes; {source.size} were promised")
    if digest is not None and source.sha256 is not None and digest.sha256 != source.sha256:
        raise IntegrityError(
            f"payload {source.key!r} has SHA-256 {digest.sha256}; {source.sha256} was promised"
        )
    for algorithm, promised in source.checksums.items():
        if (found := sums[algorithm].digest().hex()) != promised:
            raise IntegrityError(f"payload {source.key!r} has {algorithm} {found}; {promised} was promised")


def _update(updates: Sequence[Callable[[bytes], None]], chunk: bytes) -> None:
    for update in updates:
        update(chunk)


async def metered(chunks: AsyncIterator[bytes], meter: Meter) -> AsyncIterator[bytes]:
    """The same chunks, counted as read."""
    async for chunk in chunks:
        meter.read(len(chunk))
        yield chunk
