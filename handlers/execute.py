"""Carries out a `StorePlan`: the one file of this room that acts.

staging -> check -> target, streaming: the target pulls, so the slowest side sets the pace and memory stays at a few chunks.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from backends.base import Attributes, Receipt, StorageBackend, single
from backends.errors import Conflict, IntegrityError, NotFound
from handlers.errors import PayloadMissing
from handlers.messages import ResourceFetched
from handlers.plan import Source, StorePlan, Write

_INLINE_HASH = 128 * 1024
"""Chunks up to this size are hashed on the event loop (under 0.1 ms); larger ones on a thread."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a target proved of one object."""

    target: str
    receipt: Receipt


async def execute(
    plan: StorePlan,
    staging: Mapping[str, StorageBackend],
    targets: Mapping[str, StorageBackend],
) -> tuple[Placement, ...]:
    """Write the payload to every target of the plan; returns when all of it is durable.

    Doing it again after a crash at any point finds identical objects and gives the same placements.

    Raises `PayloadMissing`, `IntegrityError` (nothing lies under the final name then), and what the targets raise.
    """
    placements = []
    for write in plan.writes:
        target = targets[write.target]
        receipt = await _copy(plan.source, staging[plan.source.staging], write, target)
        if write.sidecar_key is not None:
            # The payload is the same; when only its description differs, the first one stays, as it does with attributes.
            with suppress(Conflict):
                await target.write(write.sidecar_key, single(_sidecar(plan.command, receipt)), _JSON)
        placements.append(Placement(write.target, receipt))
    return tuple(placements)


async def _copy(source: Source, staging: StorageBackend, write: Write, target: StorageBackend) -> Receipt:
    async with _payload(source, staging) as chunks:
        return await target.write(write.key, checked(chunks, source), write.attributes)


class _payload:  # noqa: N801 - used as a function: an async context manager without the generator's overhead
    """Opens the source; only a missing *payload* is `PayloadMissing`, a target's NotFound is not."""

    def __init__(self, source: Source, staging: StorageBackend) -> None:
        self._source = source
        self._opened = staging.open(source.key)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        try:
            return await self._opened.__aenter__()
        except NotFound as exc:
            raise PayloadMissing(
                f"no payload {self._source.key!r} in staging {self._source.staging!r}"
            ) from exc

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return await self._opened.__aexit__(*exc_info)  # type: ignore[arg-type] # object is what the protocol hands on


async def checked(chunks: AsyncIterator[bytes], source: Source) -> AsyncIterator[bytes]:
    """The same chunks; raises `IntegrityError` instead of ending when size or SHA-256 are not as promised.

    A backend that is fed by it therefore never commits a wrong payload.
    """
    size, digest = 0, sha256()
    async for chunk in chunks:
        size += len(chunk)
        if source.size is not None and size > source.size:
            raise IntegrityError(f"payload {source.key!r} is longer than the {source.size} bytes promised")
        if source.sha256 is not None:
            if len(chunk) <= _INLINE_HASH:
                digest.update(chunk)
            else:
                await asyncio.to_thread(digest.update, chunk)
        yield chunk
    if source.size is not None and size != source.size:
        raise IntegrityError(f"payload {source.key!r} has {size} bytes; {source.size} were promised")
    if source.sha256 is not None and digest.hexdigest() != source.sha256:
        raise IntegrityError(
            f"payload {source.key!r} has SHA-256 {digest.hexdigest()}; {source.sha256} was promised"
        )


def _sidecar(command: ResourceFetched, receipt: Receipt) -> bytes:
    """The facts about one object, the same bytes on every redo."""
    facts = {
        "bid": command.bundle.bid,
        "recipe_id": command.bundle.recipe_id,
        "url": command.resource.url,
        "content_type": command.resource.content_type,
        "status_code": command.resource.status_code,
        "meta": command.resource.meta,
        "key": receipt.key,
        "size": receipt.size,
        "sha256": receipt.sha256,
    }
    return json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n"


_JSON = Attributes("application/json")
