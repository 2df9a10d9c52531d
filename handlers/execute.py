"""Carries out a `StorePlan`: the one file of this room that acts.

staging -> check -> targets, streaming: the targets pull, so the slowest side sets the pace and memory stays at a few chunks.
Staging is read once, however many targets there are, and not at all where every target copies inside its store.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256

from backends.base import CHUNK_SIZE, Attributes, Promise, Receipt, StorageBackend, single
from backends.errors import Conflict, IntegrityError, NotFound, Unsupported
from backends.wrapper import bare
from handlers.errors import PayloadMissing
from handlers.fan_out import FanOut
from handlers.messages import ResourceFetched
from handlers.plan import Source, StorePlan, Write

READ_AHEAD = 4
"""Chunks between staging and the slowest target at most."""

_INLINE_HASH = 128 * 1024
"""Chunks up to this size are hashed on the event loop (under 0.1 ms); larger ones on a thread."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a target proved of one object."""

    target: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Miss:
    """A target that does not have the payload, and why."""

    write: Write
    error: Exception


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of a plan: each of its writes is in one of the two, in the plan's order."""

    placements: tuple[Placement, ...]
    misses: tuple[Miss, ...] = ()


async def execute(
    plan: StorePlan,
    staging: Mapping[str, StorageBackend],
    targets: Mapping[str, StorageBackend],
    placed: Callable[[Placement], Awaitable[None]] | None = None,
) -> Executed:
    """Write the payload to every target of the plan; returns when each has it, durably, or has failed.

    Doing it again after a crash at any point finds identical objects and gives the same placements. `placed` is told of each
    target that has it while others are still at work.

    Raises `PayloadMissing`, `IntegrityError` (nothing lies under the final names then), and whatever else reading raises.
    """
    run = _Run(plan, staging[plan.source.staging], targets, placed)
    await run.copy()
    await run.stream()
    return Executed(tuple(run.placements()), tuple(run.misses()))


class _Run:
    """One execution: what has become of each write so far."""

    def __init__(
        self,
        plan: StorePlan,
        staging: StorageBackend,
        targets: Mapping[str, StorageBackend],
        placed: Callable[[Placement], Awaitable[None]] | None,
    ) -> None:
        self._plan = plan
        self._staging = staging
        self._targets = targets
        self._placed = placed
        self._outcomes: dict[str, Placement | Miss] = {}

    def placements(self) -> list[Placement]:
        found = (self._outcomes[write.target] for write in self._plan.writes)
        return [outcome for outcome in found if isinstance(outcome, Placement)]

    def misses(self) -> list[Miss]:
        found = (self._outcomes[write.target] for write in self._plan.writes)
        return [outcome for outcome in found if isinstance(outcome, Miss)]

    async def copy(self) -> None:
        """Let the targets copy that lie in the same store as the payload."""
        candidates = [write for write in self._plan.writes if self._may_copy(write)]
        async with asyncio.TaskGroup() as group:
            for write in candidates:
                group.create_task(self._copy(write))

    def _may_copy(self, write: Write) -> bool:
        target = self._targets[write.target]
        if not (write.server_copy and target.features.server_copy):
            return False
        size = self._plan.source.size
        if size is not None and size <= CHUNK_SIZE:
            # Read and written in fewer calls than any store needs to copy and prove it.
            return False
        adapter, _ = bare(target, write.key)
        source, _ = bare(self._staging, self._plan.source.key)
        return type(adapter) is type(source)

    async def _copy(self, write: Write) -> None:
        source, target = self._plan.source, self._targets[write.target]
        promise = Promise(source.size, source.sha256)
        try:
            receipt = await target.copy_from(self._staging, source.key, write.key, write.attributes, promise)
        except (Unsupported, NotFound):
            return  # the stream finds out, and says whose fault it is
        except Exception as exc:  # noqa: BLE001 - as in `_write`
            self._outcomes[write.target] = Miss(write, exc)
        else:
            await self._complete(write, receipt)

    async def stream(self) -> None:
        """Read the payload once, for all targets that are still without it."""
        waiting = [write for write in self._plan.writes if write.target not in self._outcomes]
        if not waiting:
            return
        source = self._plan.source
        async with (
            _payload(source, self._staging) as chunks,
            aclosing(checked(chunks, source)) as payload,
        ):
            if len(waiting) == 1:
                await self._write_alone(waiting[0], payload)
            else:
                await self._fan_out(waiting, payload)

    async def _write_alone(self, write: Write, payload: AsyncIterator[bytes]) -> None:
        feed = _Feed(payload)
        await self._write(write, feed)
        if feed.error is not None:
            raise feed.error

    async def _fan_out(self, waiting: list[Write], payload: AsyncIterator[bytes]) -> None:
        fan_out = FanOut({write.target for write in waiting}, READ_AHEAD)

        async def one(write: Write) -> None:
            try:
                async with aclosing(fan_out.reader(write.target)) as reader:
                    await self._write(write, reader)
            finally:
                await fan_out.leave(write.target)

        async with asyncio.TaskGroup() as group:
            pump = group.create_task(fan_out.pump(payload))
            writes = [group.create_task(one(write)) for write in waiting]
            await asyncio.wait(writes)
            # Nobody reads any more, and the source may be one that never answers.
            pump.cancel()
        if fan_out.error is not None:
            raise fan_out.error

    async def _write(self, write: Write, payload: AsyncIterator[bytes]) -> None:
        try:
            receipt = await self._targets[write.target].write(write.key, payload, write.attributes)
        except Exception as exc:  # noqa: BLE001 - one target's fault, whatever it is, is not the other targets'
            self._outcomes[write.target] = Miss(write, exc)
        else:
            await self._complete(write, receipt)

    async def _complete(self, write: Write, receipt: Receipt) -> None:
        """The payload is there: add what goes beside it."""
        if write.sidecar_key is not None:
            try:
                sidecar = single(_sidecar(self._plan.command, receipt))
                await self._targets[write.target].write(write.sidecar_key, sidecar, _JSON)
            except Conflict:
                pass  # the payload is the same; when only its description differs, the first one stays, as with attributes
            except Exception as exc:  # noqa: BLE001 - as in `_write`
                self._outcomes[write.target] = Miss(write, exc)
                return
        placement = self._outcomes[write.target] = Placement(write.target, receipt)
        if self._placed is not None and len(self._outcomes) < len(self._plan.writes):
            await self._placed(placement)


class _Feed:
    """A stream that remembers what it raised: that is the source's fault, not the target's."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except Exception as exc:
            self.error = exc
            raise


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


async def checked(chunks: AsyncIterator[bytes], source: Source) -> AsyncGenerator[bytes, None]:
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
