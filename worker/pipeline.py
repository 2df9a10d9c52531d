"""The whole path of one message, on one screen.

Called by worker/settling.py for every delivery. What it raises, worker/disposition.py turns into a fate.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from backends.base import CHUNK_SIZE, StorageBackend
from backends.errors import Conflict
from handlers.dispatch import Handlers, Said
from handlers.errors import Refused
from handlers.execute import Executed, Miss, Placement, execute
from handlers.fan_out import READ_AHEAD
from handlers.messages import Command
from handlers.plan import ClosePlan, StorePlan
from handlers.storage_notifications import OtherEvent
from worker import entries
from worker.budget import Budget
from worker.ledger.base import Ledger, LedgerError
from worker.ledger.values import Recorded
from worker.manifest import Manifests
from worker.queues.base import Ack, Disposition, Ignored
from worker.several import finality, one_by_one
from worker.shares import Owner, Shares
from worker.sharing import known_to, referring
from worker.tracing import UNTRACED, Tracing


class Delivery(Protocol):
    """What is worked on: a received message (worker/delivery.py), or one that was never sent (worker/storage)."""

    route: str
    """Is told the name of the route that is taken."""
    begun: bool
    """Is told when work on the payload begins."""

    @property
    def body(self) -> bytes:
        """The message."""
        ...

    def kept_alive(self) -> AbstractAsyncContextManager[None]:
        """Work in here is ended when it may not be committed any more."""
        ...


class Pipeline:
    """Decode, look up, plan, execute, record, answer."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        handlers: Handlers,
        staging: Mapping[str, StorageBackend],
        targets: Mapping[str, StorageBackend],
        max_message_bytes: int,
        budget: Budget,
        spool: Path,
        on_complete: Callable[[], None],
        clock: Callable[[], float] = time.time,
        on_referred: Callable[[str, int], None] | None = None,
        tracing: Tracing = UNTRACED,
        threads: Shares | None = None,
    ) -> None:
        """`staging` and `targets` hold a connected backend for every name the handlers plan with.

        `budget` is the memory all transfers of this process share, `spool` a directory for payloads that have to be read from
        their end.
        `on_complete` is called when a bundle was completed here, `on_referred` with a target and the bytes it had already. `clock`
        gives seconds since the epoch. `threads` is how many may transform at once, in all; None: as many as there are.
        """
        self._ledger = ledger
        self._handlers = handlers
        self._staging = staging
        self._targets = targets
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._spool = spool
        self._on_complete = on_complete
        self._clock = clock
        self._on_referred = on_referred
        self._manifests = Manifests(ledger, targets, budget)
        self._tracing = tracing
        self._threads = threads
        self._log = structlog.get_logger("pipeline")

    async def process(self, delivery: Delivery) -> Disposition:
        """Carry the message out. `Ack` is returned only after its record is durable, and every target has its payload.

        Raises `Refused`, `PayloadMissing`, a `StorageError`, a `LedgerError` or `LeaseLost`.
        """
        said = self._handlers.read(delivery.body, self._max_message_bytes)
        return await one_by_one(said, partial(self._carry_out, delivery))

    async def _carry_out(self, delivery: Delivery, said: Said) -> Disposition:
        """One thing that the message says."""
        command = self._handlers.command(said)
        if isinstance(command, OtherEvent):
            self._log.info("nothing to do for a notification", what=command.what)
            return Ignored()
        structlog.contextvars.bind_contextvars(bid=command.bundle.bid)
        self._tracing.about(command)
        if recorded := await self._ledger.find(command.id):
            _check_same(command, recorded)
            return await self._finish(command, delivery)
        plan = self._handlers.plan(command)
        delivery.route = plan.route
        if isinstance(plan, ClosePlan):
            self._tell(command, await self._tracing.record(self._ledger, entries.entry_of(plan)))
            return Ack()
        return await self._store(plan, delivery)

    async def known(self, body: bytes) -> Disposition | None:
        """The answer to a message of which nothing is left to do; None for any other.

        Raises `Refused` or a `LedgerError`.
        """
        for said in self._handlers.read(body, self._max_message_bytes):
            command = self._handlers.command(said)
            if isinstance(command, OtherEvent):
                continue
            recorded = await self._ledger.find(command.id)
            if recorded is None or await self._ledger.transfers(command.id):
                return None
            _check_same(command, recorded)
        return Ack()

    def owner(self, body: bytes) -> Owner:
        """For whom a message is: of several things it says, the first decides. What cannot be decoded, or has no route, is all one
        owner's.
        """
        try:
            command = self._handlers.command(self._handlers.read(body, self._max_message_bytes)[0])
            if isinstance(command, OtherEvent):
                return Owner("none")
            return Owner(self._handlers.route(command), command.bundle.recipe_id)
        except Exception:  # noqa: BLE001 - `process` meets it again, and there it is a failure like any other
            return Owner("none")

    async def _store(self, plan: StorePlan, delivery: Delivery) -> Disposition:
        """Payload to targets, then the record; with several targets, only those that are still without the payload."""
        several = len(plan.writes) > 1
        had = await self._had(plan) if several else ()
        executed = await self._execute(_without(plan, had), delivery)
        placements = (*had, *executed.placements)
        required = [miss for miss in executed.misses if miss.write.required]
        if required:
            if several:
                await self._ledger.note_transfers(entries.entry_of(plan), entries.notes(plan, executed))
            raise _reason(required)
        missing = tuple(map(entries.missed, executed.misses))
        entry = entries.entry_of(plan, placements, missing, executed.before)
        recorded = await self._tracing.record(self._ledger, entry)
        self._tell(plan.command, recorded)
        if recorded.unsettled:
            # Another delivery of it was faster. What it left undone is known only there.
            return await self._finish(plan.command, delivery)
        if executed.misses:
            # The bundle does not wait for them; the message does, until it is a dead letter.
            raise _reason(executed.misses)
        return Ack()

    async def _finish(self, command: Command, delivery: Delivery) -> Disposition:
        """A message recorded before: done, but for what best-effort targets may still be without."""
        transfers = await self._ledger.transfers(command.id)
        if not transfers:
            self._log.debug("already recorded", command=command.id)
            return Ack()
        plan = self._handlers.plan(command)
        delivery.route = plan.route
        if isinstance(plan, StorePlan):
            wanted = {each.target for each in transfers if each.stored is None or plan.transforms}
            left = replace(plan, writes=tuple(write for write in plan.writes if write.target in wanted))
            if gone := wanted - {write.target for write in left.writes}:
                self._log.warning(
                    "a payload is not owed any more: its route names these targets no longer",
                    route=plan.route,
                    targets=sorted(gone),
                )
            # What was noted may not have been settled: a crash, or another delivery, came between.
            noted = tuple(
                entries.placed(each.stored)
                for each in transfers
                if each.stored is not None and not plan.transforms
            )
            executed = await self._execute(left, delivery)
            entry = entries.entry_of(plan, (*noted, *executed.placements))
            await self._ledger.settle(entry, entries.notes(plan, executed))
            if executed.misses:
                raise _reason(executed.misses)
            # An archive may take long.
            async with delivery.kept_alive():
                delivery.begun = True
                await self._complete_manifests(
                    command.bundle.bid, {transfer.target for transfer in transfers}
                )
        await self._ledger.forget_transfers(command.id)
        return Ack()

    async def _complete_manifests(self, bid: str, targets: set[str]) -> None:
        """Of a bundle that was announced while these targets were without something, now that they have it."""
        bundle = await self._ledger.bundle(bid)
        if bundle is None or bundle.state == "open":
            return
        owed = await self._ledger.owed(bid)
        for place in bundle.targets:
            if place.target in targets and place.target not in owed:
                await self._manifests.write(bundle, place)

    async def _had(self, plan: StorePlan) -> tuple[Placement, ...]:
        """What an earlier try has left where it is to be."""
        if plan.transforms:
            # What the payload becomes there may be many objects: doing it again finds them.
            return ()
        keys = {write.target: write.key for write in plan.writes}
        return tuple(
            entries.placed(transfer.stored)
            for transfer in await self._ledger.transfers(plan.command.id)
            if transfer.stored is not None and keys.get(transfer.target) == transfer.stored.key
        )

    async def _execute(self, plan: StorePlan, delivery: Delivery) -> Executed:
        if not plan.writes:
            return Executed(())

        async def placed(placement: Placement) -> None:
            try:
                await self._ledger.note_transfers(entries.entry_of(plan), [entries.landed(placement)])
            except LedgerError as exc:
                # A note only saves work after a crash.
                self._log.warning("a transfer was not noted", target=placement.target, error=str(exc))

        owner = Owner(plan.route, plan.command.bundle.recipe_id)
        turn = nullcontext if self._threads is None else partial(self._threads.hold, owner, 1)
        async with delivery.kept_alive(), self._budget.hold(self._memory(plan), owner):
            delivery.begun = True
            known = known_to(self._ledger, plan)
            executed = await execute(
                plan, self._staging, self._targets, placed, self._spool, self._clock, known, turn
            )
        if known is not None and self._on_referred is not None:
            for each in referring(plan, executed.placements):
                self._on_referred(each.target, each.receipt.size)
        return executed

    def _memory(self, plan: StorePlan) -> int:
        """Bytes its transfer holds at most: what is read ahead, and what each target buffers, but never more than the payload."""
        buffers = [self._targets[write.target].write_buffer for write in plan.writes]
        most = READ_AHEAD * CHUNK_SIZE + sum(buffers)
        if plan.transforms:
            return most + plan.limits.memory
        if plan.source.size is None:
            return most
        return min(plan.source.size * max(1, len(buffers)), most)

    def _tell(self, command: Command, outcome: Recorded) -> None:
        if outcome.conflict:
            raise Refused("conflict", f"message id {command.id!a} was used before for something else")
        if outcome.differs:
            raise Refused(
                "conflict",
                "its resource was recorded with another payload; what was stored of that one was kept",
            )
        if outcome.late:
            self._log.warning(
                "late resource: stored, but its bundle was complete already", message=command.id
            )
        if outcome.completed:
            self._on_complete()
            self._log.info("bundle complete", recipe_id=command.bundle.recipe_id)


def _check_same(command: Command, recorded: str) -> None:
    if recorded != command.fingerprint:
        raise Refused("conflict", f"message id {command.id!a} was used before for something else")


def _without(plan: StorePlan, had: tuple[Placement, ...]) -> StorePlan:
    if not had:
        return plan
    names = {placement.target for placement in had}
    return replace(plan, writes=tuple(write for write in plan.writes if write.target not in names))


def _reason(misses: Sequence[Miss]) -> Exception:
    """The error that decides the message's fate: of several the one that leaves most hope, so that each target gets its tries."""
    error = min((miss.error for miss in misses), key=finality)
    if isinstance(error, Conflict):
        refused = Refused("conflict", f"{error}; the object that lies there was kept")
        refused.__cause__ = error
        return refused
    return error
