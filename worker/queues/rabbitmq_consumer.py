"""One channel that consumes, from its opening to its end: what waits here, and what has been handed out under a lease.

worker/queues/rabbitmq.py makes one, and another when it has ended. A delivery tag means something on its own channel only,
so what was handed out is looked up here and nowhere else: with the channel it ends.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from backends.failpoints import failpoint
from worker.queues.rabbitmq_leases import Held, Leases
from worker.rabbitmq.calls import BrokerError, Once, Trouble, call
from worker.rabbitmq.link import Link

T = TypeVar("T")


class Consumer:
    """What one channel delivered. `ended` says why it will deliver no more."""

    def __init__(
        self,
        link: Link,
        channel: AbstractChannel,
        *,
        queue: str,
        prefix: str,
        prefetch: int,
        lease: float,
        longest_hold: float | None,
    ) -> None:
        """`channel` is this consumer's alone; `prefix` makes its handles unique; `prefetch` 0 means no limit."""
        self._link = link
        self._channel = channel
        self._queue = queue
        self._prefix = prefix
        self._prefetch = prefetch
        self._lease = lease
        self._longest_hold = longest_hold
        self._loop = asyncio.get_running_loop()
        self._tag: str | None = None
        self._subscription: asyncio.Task[None] | None = None
        self._sign = Once(self._ask_for_life)
        self._numbers = count()
        self._subscribing = asyncio.Lock()
        self._buffer: deque[tuple[DeliveredMessage, float]] = deque()
        self._changed = asyncio.Event()
        self._unfed_since: float | None = None
        self._unseen = 0
        self._chores: set[asyncio.Task[None]] = set()
        self.ended: str | None = None
        self.leases = Leases(prefix, lease, longest_hold, self._lapsed)
        self.taken_at = self._loop.time()
        channel.on_consumer_cancel_callbacks.add(self._cancelled)
        channel.closing.add_done_callback(self._closed)

    @property
    def waiting(self) -> int:
        """How many messages are here and were given to nobody."""
        return len(self._buffer)

    @property
    def in_flight(self) -> int:
        """How many messages are handed out."""
        return len(self.leases)

    async def subscribe(self) -> None:
        """Have the broker deliver, unless it does already. Raises `BrokerError`."""
        async with self._subscribing:
            self.require()
            if self._subscription is None:
                # Never twice the same tag: RabbitMQ 3.10 breaks the connection when one comes back to a channel that holds
                # messages.
                earlier, self._tag = self._tag, f"transload.{self._prefix}.{next(self._numbers)}"
                self._subscription = asyncio.create_task(self._consume(earlier, self._tag))
            await self._subscribed(self._subscription)

    def aged(self) -> Sequence[DeliveredMessage]:
        """What waited here for half the time it may be held. It is the caller's now, to be given back: others may still have time
        for it.
        """
        aged: list[DeliveredMessage] = []
        if self._longest_hold is not None:
            newest = self._loop.time() - self._longest_hold / 2
            while self._buffer and self._buffer[0][1] <= newest:
                aged.append(self._buffer.popleft()[0])
        return aged

    async def take(self, limit: int, wait: float) -> list[Held]:
        """Hand out up to `limit`, waiting for the first. Raises `BrokerError` when the channel has ended."""
        deadline = self._loop.time() + wait
        while True:
            self.taken_at = self._loop.time()
            self.require()
            if self._buffer or self.taken_at >= deadline:
                return [
                    self.leases.begin(*self._buffer.popleft()) for _ in range(min(limit, len(self._buffer)))
                ]
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()

    async def look(self) -> int:
        """How many messages wait in the queue. Notices a consumer that the broker forgot. Raises `BrokerError`.

        Asked on the consumer's own channel, so what was delivered before the answer is here before it.
        """
        self.require()
        answer = await self._ask(self._channel.queue_declare(self._queue, passive=True))
        waiting, now = answer.message_count or 0, self._loop.time()
        full = 0 < self._prefetch <= self.in_flight
        consuming = self._subscription is not None and self._subscription.done()
        if not waiting or self._buffer or full or not consuming:
            self._unfed_since = None
        elif self._unfed_since is None:
            self._unfed_since = now
        unfed = self._unfed_since is not None and now - self._unfed_since >= self._lease
        # A quorum queue that has no leader just now counts nothing at all.
        self._unseen = self._unseen + 1 if consuming and not answer.consumer_count else 0
        if consuming and (unfed or self._unseen > 1):
            if not self.in_flight:
                self.end("the broker delivers nothing, to a consumer that nobody cancelled")
            # What is held is worth more than a fresh channel: the next `subscribe` consumes anew on this one.
            self._subscription, self._unfed_since, self._unseen = None, None, 0
        return waiting

    async def extend(self, handles: Sequence[str]) -> Sequence[str]:
        """Start these leases anew, once the broker has shown that it hears us; returns the lost ones. Raises `BrokerError`.

        Whoever asks at the same time shares one question, and a lease counts from that question.
        """
        asked_at = await self._sign() if any(map(self.leases.find, handles)) else 0.0
        return [handle for handle in handles if not self.leases.renew(handle, asked_at)]

    async def ack(self, held: Held) -> None:
        """Remove a claimed message from the queue. Raises `BrokerError`; then it may have been removed or not."""
        self.require()
        try:
            await self._answer(self._remove(held.tag))
        finally:
            self.leases.drop(held)

    async def reject(self, held: Held, *, counted: bool) -> None:
        """Give a claimed message back. Raises `BrokerError`; then it comes back when the channel ends."""
        self.require()
        try:
            await self._answer(self._requeue(held.tag, counted=counted))
        finally:
            self.leases.drop(held)

    async def unsubscribe(self) -> None:
        """Have the broker deliver no more until `subscribe`. Raises `BrokerError`."""
        async with self._subscribing:
            if self._tag is None or self.ended is not None:
                return
            if self._subscription is not None:
                # Of one that is under way the broker hears later than of what is said now.
                await self._subscribed(self._subscription)
            tag, self._tag, self._subscription = self._tag, None, None
            await self._ask(self._channel.basic_cancel(tag))

    def untaken(self) -> Sequence[DeliveredMessage]:
        """What was handed to nobody. It is the caller's now, to be given back."""
        buffer, self._buffer = self._buffer, deque()
        return [delivery for delivery, _ in buffer]

    async def give_back(self, delivery: DeliveredMessage, *, copied: bool) -> None:
        """Give back what was handed to nobody: requeue it, or remove it where a copy of it is in the queue."""
        tag = delivery.delivery_tag or 0
        await self._answer(self._remove(tag) if copied else self._requeue(tag, counted=False))

    def end(self, reason: str) -> None:
        """Forget everything: the broker gives it to somebody else when the channel is closed, which this does."""
        if self.ended is not None:
            return
        self.ended = reason
        self.leases.clear()
        self._buffer.clear()
        self._wake()
        self._later(self._close())

    def require(self) -> None:
        """Raise `BrokerError` when the channel has ended."""
        if self.ended is not None:
            raise BrokerError(Trouble.UNAVAILABLE, self.ended)

    async def _consume(self, earlier: str | None, tag: str) -> None:
        if earlier is not None:
            await self._channel.basic_cancel(earlier)
        await self._channel.basic_qos(prefetch_count=self._prefetch)
        await self._channel.basic_consume(self._queue, self._deliver, consumer_tag=tag)

    async def _subscribed(self, subscription: "asyncio.Task[None]") -> None:
        try:
            await call(subscription, self._link.timeout)
        except BrokerError:
            self.end("it could not consume")
            raise

    async def _ask_for_life(self) -> float:
        asked_at = self._loop.time()
        # Without effect on a consumer that exists, but it has an answer.
        await self._ask(self._channel.basic_qos(prefetch_count=self._prefetch))
        return asked_at

    async def _ask(self, question: Awaitable[T]) -> T:
        try:
            return await call(question, min(self._link.timeout, max(self._lease, 1.0)))
        except BrokerError as exc:
            if exc.silence:
                self.end("the broker does not answer")
                self._link.drop(self._channel.connection)
            raise

    async def _answer(self, work: Awaitable[None]) -> None:
        try:
            await call(work, self._link.timeout)
        except BrokerError:
            # The broker may have it or not, and it closes the channel of whoever answers twice.
            self.end("an answer did not get through")
            raise

    async def _remove(self, tag: int) -> None:
        failpoint("rabbitmq.ack.before")
        await self._channel.basic_ack(tag)
        failpoint("rabbitmq.ack.after")

    async def _requeue(self, tag: int, *, counted: bool) -> None:
        # From RabbitMQ 4.3 on basic.reject counts as a failed delivery and basic.nack does not; before, both do
        # (https://www.rabbitmq.com/docs/4.3/nack).
        answer = self._channel.basic_reject if counted else self._channel.basic_nack
        failpoint("rabbitmq.requeue.before")
        await answer(tag, requeue=True)
        failpoint("rabbitmq.requeue.after")

    async def _deliver(self, delivery: DeliveredMessage) -> None:
        if self.ended is None:
            self._unfed_since = None
            self._buffer.append((delivery, self._loop.time()))
            self._wake()

    def _lapsed(self, held: Held) -> None:
        self._later(self._answer(self._requeue(held.tag, counted=True)))

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _cancelled(self, _: Basic.Cancel) -> None:
        self.end("the broker cancelled the consumer: the queue is gone, or has moved")

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self.end(f"the channel was closed: {str(reason) or type(reason).__name__}")

    async def _close(self) -> None:
        if not self._channel.is_closed:
            await call(self._channel.close(), self._link.timeout)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it on the side. When it fails the channel is at its end, and everything comes back anyway."""
        task = asyncio.create_task(_quietly(work))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    with suppress(BrokerError):
        await work
