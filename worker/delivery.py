"""One received message while this process holds it: its lease, its heartbeat, its one `settle`.

worker/service.py hands every received message to a `LeaseKeeper`; worker/pipeline.py works under `Delivery.kept_alive`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from worker.metrics import Metrics
from worker.queues.base import Disposition, Message, Queue, QueueError


class LeaseLost(Exception):
    """Another worker may hold the message by now: whatever was under way must not be committed or settled."""


class Delivery:
    """One received message. Its heartbeat runs from `LeaseKeeper.hold` until it is settled."""

    def __init__(self, message: Message, keeper: "LeaseKeeper") -> None:
        """Made by `LeaseKeeper.hold`."""
        self.message = message
        self._keeper = keeper
        self._held_until = keeper.clock() + keeper.queue.lease
        self._lost = False
        self._working: asyncio.Task[object] | None = None
        self.settling = False

    @property
    def body(self) -> bytes:
        """The message's body."""
        return self.message.body

    @property
    def held(self) -> bool:
        """Whether the lease is ours, as far as this process can know: False after a stall longer than the lease, before anyone
        tells us. It is counted from when the message arrived here; what a reply took on its way is not known.
        """
        return not self._lost and self._keeper.clock() < self._held_until

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Work in here is cancelled when the lease is lost, and not let out as done unless the lease still holds.

        Raises `LeaseLost` in both cases.
        """
        self._require_lease()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("kept_alive needs a task to cancel")
        self._working = task
        try:
            yield
        except asyncio.CancelledError:
            # Ours only when the keeper cancelled and nobody else did (as asyncio.timeout tells its own from others').
            if self._lost and task.uncancel() == 0:
                raise LeaseLost(f"message {self.message.id}: lease lost during the work") from None
            raise
        finally:
            self._working = None
        self._require_lease()

    async def settle(self, disposition: Disposition) -> bool:
        """Carry out the disposition and stop the heartbeat. False when the handle was stale and nothing changed."""
        self.settling = True
        try:
            return await self._keeper.queue.settle(self.message, disposition)
        finally:
            self._keeper.release(self)

    def abandon(self) -> None:
        """Stop the heartbeat without settling: the message comes back when its lease passes."""
        self._keeper.release(self)

    def extended(self, held_until: float) -> None:
        """The keeper renewed the lease."""
        self._held_until = held_until

    def lose(self) -> None:
        """The keeper learned that the lease is gone."""
        self._lost = True
        self._keeper.release(self)
        if self._working is not None:
            self._working.cancel()

    def _require_lease(self) -> None:
        if not self.held:
            raise LeaseLost(f"message {self.message.id}: lease lost")


class LeaseKeeper:
    """Renews the leases of everything held from one queue, in batches, three times a lease."""

    def __init__(self, queue: Queue, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` must go on while the process is stopped, as the monotonic clock does."""
        self.queue = queue
        self.clock = clock
        self._metrics = metrics
        self._held: set[Delivery] = set()
        self._log = structlog.get_logger("leases")

    def hold(self, messages: Sequence[Message]) -> Sequence[Delivery]:
        """Start the heartbeat of messages that were just received."""
        deliveries = [Delivery(message, self) for message in messages]
        self._held.update(deliveries)
        return deliveries

    def release(self, delivery: Delivery) -> None:
        """Stop the heartbeat of one delivery."""
        self._held.discard(delivery)

    def __len__(self) -> int:
        """How many deliveries are held."""
        return len(self._held)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(self.queue.lease / 3)
            await self.renew()

    async def renew(self) -> None:
        """Renew every lease once; deliveries whose lease is lost, or has run out unrenewed, are told so."""
        held = {delivery.message.handle: delivery for delivery in self._held}
        if not held:
            return
        asked_at = self.clock()
        try:
            lost = {message.handle for message in await self.queue.extend([d.message for d in held.values()])}
        except QueueError as exc:
            self._metrics.visibility_extensions.labels(result="error").inc(len(held))
            self._log.warning("leases not renewed", held=len(held), error=str(exc))
            for delivery in held.values():
                if not delivery.held:
                    delivery.lose()
            return
        # What is settled, or about to be, may no longer be there to be renewed, and is no loss.
        still_held = {
            handle: delivery
            for handle, delivery in held.items()
            if delivery in self._held and not delivery.settling
        }
        lost &= still_held.keys()
        for handle, delivery in still_held.items():
            if handle in lost:
                delivery.lose()
            else:
                delivery.extended(asked_at + self.queue.lease)
        self._metrics.visibility_extensions.labels(result="ok").inc(len(still_held) - len(lost))
        if lost:
            self._metrics.visibility_extensions.labels(result="lost").inc(len(lost))
            self._log.warning("leases lost", lost=len(lost))
