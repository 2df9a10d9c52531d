"""One received message while this process holds it: its lease, its heartbeat, its one `settle`.

worker/service.py hands every received message to a `LeaseKeeper`; worker/pipeline.py works under `Delivery.kept_alive`.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import structlog

from worker.metrics import Metrics
from worker.queues.base import Disposition, HeldTooLong, Message, Queue, QueueError, Retry, WaitedTooLong

BEATS = 3
"""Renewals in the time of one lease: two may fail before it is lost."""

Answer = Literal["ok", "lost", "error"]
"""What came of a renewal. `error`: nobody knows, and the next beat asks again."""


class LeaseLost(Exception):
    """Another worker may hold the message by now: whatever was under way must not be committed or settled."""


class Delivery:
    """One received message. Its heartbeat runs from `LeaseKeeper.hold` until it is settled."""

    def __init__(self, message: Message, keeper: "LeaseKeeper", taken_at: float) -> None:
        """Made by `LeaseKeeper.hold`; `taken_at` is when the lease began, by the keeper's clock."""
        self.message = message
        self.taken_at = taken_at
        self.held_until = taken_at + keeper.queue.lease
        self.settling = False
        self.route = "none"
        """The name of the route it takes, once that is known."""
        self.begun = False
        """Work on the message itself has begun; until then it waited for its turn."""
        self._keeper = keeper
        self._ended: LeaseLost | HeldTooLong | WaitedTooLong | None = None
        self._working: asyncio.Task[object] | None = None

    @property
    def body(self) -> bytes:
        """The message's body."""
        return self.message.body

    @property
    def held(self) -> bool:
        """Whether work may be committed: the lease is ours, as far as this process can know.

        False after a stall longer than the lease, before anyone tells us. The lease is counted from when the message arrived
        here; what a reply took on its way is not known, only that it was less than a beat.
        """
        return self._ended is None and self._keeper.clock() < self.held_until

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Work in here is cancelled when the lease is lost or cannot be renewed, and is let out only under a lease.

        Raises `LeaseLost`, or `HeldTooLong` or `WaitedTooLong` while the message is still ours to give back.
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
            if self._ended is not None and task.uncancel() == 0:
                raise self._ended from None
            raise
        except Exception as exc:
            # What the work made of our cancellation.
            if self._ended is not None:
                task.uncancel()
                raise self._ended from exc
            raise
        finally:
            self._working = None
        if self._ended is not None:
            # The work was done before it noticed.
            task.uncancel()
        self._require_lease()

    async def settle(self, disposition: Disposition) -> bool:
        """Carry out the disposition and stop the heartbeat. False when the handle was stale and nothing changed."""
        self.settling = True
        if isinstance(disposition, Retry):
            # A renewal that overtakes it would hide the message again, for nobody.
            self._keeper.release(self)
        try:
            return await self._keeper.queue.settle(self.message, disposition)
        finally:
            self._keeper.release(self)

    def abandon(self) -> None:
        """Stop the heartbeat without settling: the message comes back when its lease passes."""
        self._keeper.release(self)

    def lose(self) -> None:
        """The keeper learned that the lease is gone."""
        self._end(LeaseLost(f"message {self.message.id}: lease lost"))

    def hand_over(self, longest: float) -> None:
        """The queue renews no more: stop the work while the message can still be given back. `longest` in seconds."""
        kind = HeldTooLong if self.begun else WaitedTooLong
        self._end(
            kind(f"message {self.message.id} may be held for {longest:g} seconds, and the work took longer")
        )

    def _end(self, why: LeaseLost | HeldTooLong | WaitedTooLong) -> None:
        self._ended = why
        self._keeper.release(self)
        if self._working is not None:
            self._working.cancel()

    def _require_lease(self) -> None:
        if self._ended is not None:
            raise self._ended
        if not self.held:
            raise LeaseLost(f"message {self.message.id}: lease lost")


def since_boot() -> float:
    """Seconds on a clock that goes on while the process is stopped and, where the system has one, while it sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseKeeper:
    """Renews the leases of everything held from one queue, three times a lease."""

    def __init__(self, queue: Queue, metrics: Metrics, clock: Callable[[], float] = since_boot) -> None:
        """`clock` must go on while the process is stopped."""
        self.queue = queue
        self.clock = clock
        self._beat = queue.lease / BEATS
        self._metrics = metrics
        self._held: set[Delivery] = set()
        self._due = math.inf
        """When `run` is to be heard of again, at the latest; later than that the process has been stopped."""
        self._stalled = False
        self._log = structlog.get_logger("leases")

    async def hold(self, messages: Sequence[Message]) -> Sequence[Delivery]:
        """Start the heartbeat of messages that were just received. Returns those that are ours.

        A process that was stopped may have had the reply in its socket buffer all the while, and hold nothing any more.
        After a stall, therefore, the leases begin with a renewal, and what cannot be renewed is left to come back.
        """
        taken_at = self.clock()
        if messages and (self._stalled or self._overdue()):
            self._stalled = False
            answers = await self._extend(messages)
            messages = [message for message in messages if answers[message.handle] == "ok"]
            self._log.warning("the process stood still", received=len(answers), held=len(messages))
        deliveries = [Delivery(message, self, taken_at) for message in messages]
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
        nap = self._beat
        while True:
            await self._timed(asyncio.sleep(nap))
            started = self.clock()
            await self._timed(self.renew())
            nap = max(0.0, self._beat - (self.clock() - started))

    async def renew(self) -> None:
        """Renew every lease once; takes a beat at most. Deliveries whose lease is over are told so.

        A lease that has passed by our clock is lost without asking: nothing may be committed while the answer is awaited.
        """
        asked_at = self.clock()
        asked = [delivery for delivery in tuple(self._held) if self._may_be_renewed(delivery, asked_at)]
        answers = await self._extend([delivery.message for delivery in asked])
        for delivery in asked:
            # What is settled, or about to be, may no longer be there to be renewed, and is no loss.
            if delivery not in self._held or delivery.settling:
                continue
            answer = answers[delivery.message.handle]
            if answer == "ok":
                delivery.held_until = asked_at + self.queue.lease
            elif answer == "lost" or not delivery.held:
                self._lose(delivery)
                continue
            self._metrics.visibility_extensions.labels(result=answer).inc()

    def _may_be_renewed(self, delivery: Delivery, now: float) -> bool:
        if delivery.settling:
            return True
        if not delivery.held:
            self._lose(delivery)
            return False
        longest = self.queue.longest_hold
        # A beat less than allowed: when exactly the message was taken only the queue knows.
        if longest is None or now + self.queue.lease + self._beat <= delivery.taken_at + longest:
            return True
        if delivery.held_until - now < 1.5 * self._beat:
            # The next beat might come too late to give it back.
            self._log.warning("handed over: held as long as the queue allows", message=delivery.message.id)
            delivery.hand_over(longest)
        return False

    def _lose(self, delivery: Delivery) -> None:
        self._metrics.visibility_extensions.labels(result="lost").inc()
        self._log.warning("lease lost", message=delivery.message.id)
        delivery.lose()

    async def _extend(self, messages: Sequence[Message]) -> Mapping[str, Answer]:
        """By handle. One call for each, so that one that fails says nothing of the others; adapters batch what is concurrent.

        What has not answered after a beat counts as `error`.
        """
        calls = {message.handle: asyncio.create_task(self._extend_one(message)) for message in messages}
        if not calls:
            return {}
        try:
            await asyncio.wait(calls.values(), timeout=self._beat)
            answers: dict[str, Answer | QueueError] = {
                handle: call.result() if call.done() else QueueError("no answer in time")
                for handle, call in calls.items()
            }
        finally:
            for call in calls.values():
                call.cancel()
        errors = [answer for answer in answers.values() if isinstance(answer, QueueError)]
        if errors:
            self._log.warning("leases not renewed", count=len(errors), error=str(errors[0]))
        return {
            handle: "error" if isinstance(answer, QueueError) else answer
            for handle, answer in answers.items()
        }

    async def _extend_one(self, message: Message) -> Answer | QueueError:
        try:
            return "lost" if await self.queue.extend([message]) else "ok"
        except QueueError as exc:
            return exc

    async def _timed(self, step: Awaitable[None]) -> None:
        """Do what takes a beat at most, and notice when it took longer."""
        self._due = self.clock() + self._beat
        await step
        self._stalled |= self._overdue()

    def _overdue(self) -> bool:
        return self.clock() > self._due + self._beat / 10
