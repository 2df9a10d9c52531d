"""Carries out a `StorePlan`: the one file of this room that acts.

staging -> check -> transforms -> targets, streaming: the targets pull, so the slowest side sets the pace and memory stays at a
few chunks. Staging is read once, however many targets there are, and not at all where every target copies inside its store.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from backends.base import CHUNK_SIZE, Attributes, Promise, Receipt, StorageBackend, single
from backends.errors import Conflict, InvalidKey, NotFound, Unsupported
from backends.wrapper import bare
from handlers import dedup, sidecar
from handlers.fan_out import give_each
from handlers.payload import Before, Digest, checked, metered, opened
from handlers.plan import StorePlan, Write
from handlers.staged_version import expect_version
from handlers.stored_metadata import stamped
from handlers.transforms.base import Meter, Transform, Turn, Work, transformed
from handlers.transforms.names import Paths
from handlers.transforms.registry import ALWAYS
from handlers.writes import of_part, renamed, whole

_NOTES = 20
"""Of a payload's notes, so many are kept."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a target proved of one object."""

    target: str
    receipt: Receipt
    member: str = ""
    """The entry it was of the payload, as its archive names it; empty for a payload that is one object."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A target that does not have the payload, and why."""

    write: Write
    error: Exception


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of a plan: each of its writes is in one of the two, in the plan's order; as several placements for an archive."""

    placements: tuple[Placement, ...]
    misses: tuple[Miss, ...] = ()
    before: Before | None = None
    """Only where the plan has transforms."""


Done = Callable[[Write, Placement], Awaitable[None]]
"""What follows a write that went well."""


async def execute(
    plan: StorePlan,
    staging: Mapping[str, StorageBackend],
    targets: Mapping[str, StorageBackend],
    placed: Callable[[Placement], Awaitable[None]] | None = None,
    spool: Path = Path(),
    clock: Callable[[], float] = time.time,
    known: dedup.Known | None = None,
    turn: Turn = nullcontext,
) -> Executed:
    """Write the payload to every target of the plan; returns when each has it, durably, or has failed.

    Doing it again after a crash at any point finds identical objects and gives the same placements. `placed` is told of each
    target that has an untransformed payload while others are still at work. `spool` is a directory for the transforms' files;
    `clock` gives seconds since the epoch, for when something is stored. With `known`, a payload that was stored before is
    referred to: its placement names the key it has. Transforms use threads in a `turn`.

    Raises `PayloadMissing`, `IntegrityError` (nothing lies under the final names then), `Refused` (whole entries of an archive
    may lie there, or a payload that was replaced while it was read), and whatever else reading raises.
    """
    await expect_version(plan.source, staging[plan.source.staging])
    run = _Run(plan, staging[plan.source.staging], targets, placed, clock)
    if plan.transforms:
        await run.transform(spool, turn)
    elif known is not None:
        # Nothing is copied by the store: what others will refer to has its digest from the bytes that went by.
        await run.refer(known)
        await run.stream()
    else:
        await run.copy()
        await run.stream()
    await expect_version(plan.source, staging[plan.source.staging])
    return Executed(tuple(run.placements()), tuple(run.misses()), run.before)


class _Run:
    """One execution: what has become of each write so far."""

    def __init__(
        self,
        plan: StorePlan,
        staging: StorageBackend,
        targets: Mapping[str, StorageBackend],
        placed: Callable[[Placement], Awaitable[None]] | None,
        clock: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._staging = staging
        self._targets = targets
        self._placed = placed
        self._placements: dict[str, list[Placement]] = {}
        self._misses: dict[str, Miss] = {}
        self.before: Before | None = None

    def placements(self) -> list[Placement]:
        return [
            placement
            for write in self._plan.writes
            if write.target not in self._misses
            for placement in self._placements[write.target]
        ]

    def misses(self) -> list[Miss]:
        return [self._misses[write.target] for write in self._plan.writes if write.target in self._misses]

    def _left(self) -> list[Write]:
        """The writes that have not failed."""
        return [write for write in self._plan.writes if write.target not in self._misses]

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
        if not target.features.copy_proves.issuperset(self._plan.source.checksums):
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
        promise = Promise(source.size, source.sha256, source.checksums)
        attributes = stamped(write.attributes, self._clock())
        try:
            receipt = await target.copy_from(self._staging, source.key, write.key, attributes, promise)
        except (Unsupported, NotFound, InvalidKey):
            return  # the stream finds out, and says whose fault it is
        except Exception as exc:  # noqa: BLE001 - as in `_write`
            self._misses[write.target] = Miss(write, exc)
        else:
            await self._copied(write, Placement(write.target, receipt))

    async def refer(self, known: dedup.Known) -> None:
        """Leave the payload where targets have it already."""
        source, contents = await dedup.contents(self._plan.source, self._staging, known)
        # What is still to be written has to be what was compared.
        self._plan = replace(self._plan, source=source)
        async with asyncio.TaskGroup() as group:
            for write in self._plan.writes:
                if (content := contents.get(write.target)) is not None:
                    group.create_task(self._refer(write, content))

    async def _refer(self, write: Write, content: Receipt) -> None:
        receipt = await dedup.usable(self._targets[write.target], write.key, content)
        if receipt is not None:
            await self._copied(write, Placement(write.target, receipt))

    async def stream(self) -> None:
        """Read the payload once, for all targets that are still without it."""
        waiting = [write for write in self._left() if write.target not in self._placements]
        if not waiting:
            return
        source = self._plan.source
        async with (
            opened(source, self._staging) as chunks,
            aclosing(checked(chunks, source)) as payload,
        ):
            await self._deliver(waiting, payload, self._copied)

    async def transform(self, spool: Path, turn: Turn) -> None:
        """Read the payload once, and write what the transforms make of it to all targets, one part after the other."""
        plan = self._plan
        if not plan.writes:
            return
        paths = Paths()
        identity = f"{plan.command.bundle.bid}/{plan.resource_id}"
        work = Work(Meter(plan.limits), spool, identity, settle=paths.settle, turn=turn)
        if any(transform.early for transform in plan.transforms):
            await self._prove()
        before = await self._through(plan.transforms, work)
        if not self._placements and self._left():
            kept = tuple(transform for transform in plan.transforms if transform.name in ALWAYS)
            before = await self._through(kept, work)
            before = replace(before, notes=("nothing is in it: stored unchanged", *before.notes))
        if not self._left():
            return
        self.before = before
        async with asyncio.TaskGroup() as group:
            for write in self._left():
                group.create_task(self._describe(write, before))

    async def _through(self, transforms: Sequence[Transform], work: Work) -> Before:
        """Write all parts to the targets, until none is left; what the payload was."""
        plan, digest = self._plan, Digest()
        steps: dict[str, None] = {}
        notes: dict[str, None] = {}
        async with (
            opened(plan.source, self._staging) as chunks,
            aclosing(checked(chunks, plan.source, digest)) as payload,
            aclosing(transformed(transforms, whole(plan, metered(payload, work.meter)), work)) as parts,
        ):
            async for part in parts:
                steps |= dict.fromkeys(part.steps)
                notes |= dict.fromkeys(part.notes[: _NOTES - len(notes)])
                placed = work.settle(part)
                try:
                    await self._deliver(
                        [of_part(write, placed) for write in self._left()], part.chunks, self._kept
                    )
                finally:
                    if isinstance(part.chunks, AsyncGenerator):
                        await part.chunks.aclose()
                if not self._left():
                    break
            else:
                # Whoever decodes may stop before the end; the promise is about all of it.
                async for _ in payload:
                    pass
        return Before(digest.size, digest.sha256, tuple(steps), tuple(notes))

    async def _prove(self) -> None:
        """Read the payload once more, only to see whether it is what was promised."""
        source = self._plan.source
        if not source.promises:
            return
        async with opened(source, self._staging) as chunks, aclosing(checked(chunks, source)) as payload:
            async for _ in payload:
                pass

    async def _deliver(self, writes: Sequence[Write], chunks: AsyncIterator[bytes], done: Done) -> None:
        """One stream to the writes; raises what the stream raises, and keeps what a target does."""

        async def one(write: Write, feed: AsyncIterator[bytes]) -> None:
            await self._write(write, feed, done)

        await give_each(writes, chunks, one)

    async def _write(self, write: Write, chunks: AsyncIterator[bytes], done: Done) -> None:
        attributes = stamped(write.attributes, self._clock())
        try:
            receipt = await self._targets[write.target].write(write.key, chunks, attributes)
        except Exception as exc:  # noqa: BLE001 - one target's fault, whatever it is, is not the other targets'
            self._misses[write.target] = Miss(write, exc)
        else:
            await done(write, Placement(write.target, receipt, write.member))

    async def _kept(self, _: Write, placement: Placement) -> None:
        """One part is there."""
        self._placements.setdefault(placement.target, []).append(placement)

    async def _copied(self, write: Write, placement: Placement) -> None:
        """The payload is there as it was staged: add what goes beside it."""
        facts = sidecar.of_object(self._plan.command, placement.receipt, self._clock())
        if not await self._beside(write, single(facts), placement.receipt.sha256):
            return
        self._placements[write.target] = [placement]
        if self._placed is not None and len(self._placements) + len(self._misses) < len(self._plan.writes):
            await self._placed(placement)

    async def _describe(self, write: Write, before: Before) -> None:
        """All parts are there: add what goes beside them."""
        placements = self._placements[write.target]
        if not before.steps:
            facts = sidecar.of_object(self._plan.command, placements[0].receipt, self._clock(), before.notes)
            await self._beside(write, single(facts))
            return
        parts = ((placed.member, placed.receipt) for placed in placements)
        if len(placements) == 1:
            write = renamed(write, placements[0].receipt.key)
        await self._beside(write, sidecar.of_parts(self._plan.command, asdict(before), parts, self._clock()))

    async def _beside(self, write: Write, facts: AsyncIterator[bytes], sha256: str | None = None) -> bool:
        """Whether the facts lie where they have to, if they have to lie anywhere. `sha256`: of the payload they are about."""
        if write.sidecar_key is None:
            return True
        try:
            try:
                await self._targets[write.target].write(write.sidecar_key, facts, _JSON)
            except Conflict:
                # The payload is the same; when only its description differs, the first one stays, as with attributes.
                if sha256 is not None and self._plan.deduplicate:
                    await dedup.check_facts(self._targets[write.target], write.sidecar_key, sha256)
        except Exception as exc:  # noqa: BLE001 - as in `_write`
            self._misses[write.target] = Miss(write, exc)
            return False
        return True


_JSON = Attributes("application/json")
