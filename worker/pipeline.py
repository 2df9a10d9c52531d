"""The whole path of one message, on one screen.

Called by worker/service.py for every delivery. What it raises, worker/disposition.py turns into a fate.
"""

from collections.abc import Callable, Mapping

import structlog

from backends.base import CHUNK_SIZE, StorageBackend
from backends.errors import Conflict
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.execute import Placement, execute
from handlers.messages import Command, decode
from handlers.plan import ClosePlan, Plan, StorePlan
from worker.budget import Budget
from worker.delivery import Delivery
from worker.ledger.base import Close, Entry, Ledger, Recorded, StoredObject, StoredResource
from worker.queues.base import Ack, Disposition

_READ_AHEAD = 4
"""Chunks between staging and target at most."""


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
        on_complete: Callable[[], None],
    ) -> None:
        """`staging` and `targets` hold a connected backend for every name the handlers plan with.

        `budget` is the memory all transfers of this process share.
        `on_complete` is called when a bundle was completed here.
        """
        self._ledger = ledger
        self._handlers = handlers
        self._staging = staging
        self._targets = targets
        self._max_message_bytes = max_message_bytes
        self._budget = budget
        self._on_complete = on_complete
        self._log = structlog.get_logger("pipeline")

    async def process(self, delivery: Delivery) -> Disposition:
        """Carry the message out. `Ack` is returned only after its record is durable.

        Raises `Refused`, `PayloadMissing`, a `StorageError`, a `LedgerError` or `LeaseLost`.
        """
        command = decode(delivery.body, self._max_message_bytes)
        structlog.contextvars.bind_contextvars(bid=command.bundle.bid)
        if recorded := await self._ledger.find(command.id):
            return self._known(command, recorded)
        plan = self._handlers.plan(command)
        async with delivery.kept_alive():
            placements = await self._execute(plan, delivery)
        outcome = await self._ledger.record(_entry(plan, placements))
        self._tell(command, outcome)
        return Ack()

    async def known(self, body: bytes) -> Disposition | None:
        """The answer to a message that was recorded before; None for one that was not.

        Raises `Refused` or a `LedgerError`.
        """
        command = decode(body, self._max_message_bytes)
        recorded = await self._ledger.find(command.id)
        return self._known(command, recorded) if recorded else None

    async def _execute(self, plan: Plan, delivery: Delivery) -> tuple[Placement, ...]:
        if isinstance(plan, ClosePlan):
            return ()
        try:
            async with self._budget.hold(self._memory(plan)):
                delivery.begun = True
                return await execute(plan, self._staging, self._targets)
        except Conflict as exc:
            raise Refused("conflict", f"{exc}; the object that lies there was kept") from exc

    def _memory(self, plan: StorePlan) -> int:
        """Bytes its transfer holds at most: a small payload no more than itself, a large one what is read ahead and buffered."""
        targets = (self._targets[write.target] for write in plan.writes)
        most = _READ_AHEAD * CHUNK_SIZE + max((target.write_buffer for target in targets), default=0)
        return most if plan.source.size is None else min(plan.source.size, most)

    def _known(self, command: Command, recorded: str) -> Disposition:
        """A message seen before: done already, unless it now says something else."""
        if recorded != command.fingerprint:
            raise Refused("conflict", f"message id {command.id!a} was used before for something else")
        self._log.debug("already recorded", command=command.id)
        return Ack()

    def _tell(self, command: Command, outcome: Recorded) -> None:
        if outcome.conflict:
            raise Refused("conflict", f"message id {command.id!a} was used before for something else")
        if outcome.late:
            self._log.warning(
                "late resource: stored, but its bundle was complete already", message=command.id
            )
        if outcome.completed:
            self._on_complete()
            self._log.info("bundle complete", recipe_id=command.bundle.recipe_id)


def _entry(plan: Plan, placements: tuple[Placement, ...]) -> Entry:
    bundle = plan.command.bundle
    return Entry(
        message_id=plan.command.id,
        fingerprint=plan.command.fingerprint,
        bid=bundle.bid,
        recipe_id=bundle.recipe_id,
        primary_url=bundle.primary_url,
        resources_count=bundle.resources_count,
        meta=bundle.meta,
        targets=plan.bundle_targets,
        resource=_stored(plan, placements) if isinstance(plan, StorePlan) else None,
        close=_close(plan) if isinstance(plan, ClosePlan) else None,
    )


def _close(plan: ClosePlan) -> Close:
    return Close(plan.command.bundle.resources_count, plan.command.bundle.metadata)


def _stored(plan: StorePlan, placements: tuple[Placement, ...]) -> StoredResource:
    resource = plan.command.resource
    return StoredResource(
        resource_id=plan.resource_id,
        url=resource.url,
        content_type=resource.content_type,
        status_code=resource.status_code,
        meta=resource.meta,
        location=plan.command.payload.location,
        objects=tuple(
            StoredObject(
                target=placement.target,
                key=placement.receipt.key,
                size=placement.receipt.size,
                sha256=placement.receipt.sha256,
                etag=placement.receipt.etag,
                version=placement.receipt.version,
            )
            for placement in placements
        ),
    )
