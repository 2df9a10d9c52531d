"""RabbitMQ as the queue: quorum queues, confirmed publishing, and a lease that this process keeps.

How it differs from the port's ideal (docs/adr/0009-rabbitmq.md has the reasons):

- A lease is kept by the process that holds the message. Of a process that is stopped or cut off the broker learns by missed
  heartbeats, so its messages come back one to one and a half leases after it was last heard of; a connection that is reset
  gives them back at once.
- A delayed message may wait for one in front of it with a longer delay: at most four times its own delay.
- `depth` knows what this process holds; what other processes hold is invisible over AMQP.
- `wait` is at most one lease.

A quorum queue needs RabbitMQ 3.10 or newer.
"""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import ClassVar, Self, cast

from worker.queues.base import (
    Dead,
    Depth,
    Disposition,
    Message,
    OutgoingMessage,
    Queue,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueOptions,
    QueueUnavailable,
    Retry,
)
from worker.queues.rabbitmq_consumer import Consumer
from worker.queues.rabbitmq_declaring import check, make
from worker.queues.rabbitmq_messages import message_of, refusal, whole, worn
from worker.queues.rabbitmq_options import RabbitQueueOptions
from worker.queues.rabbitmq_sending import Sender
from worker.queues.rabbitmq_topology import Topology
from worker.queues.rabbitmq_untaken import Untaken
from worker.rabbitmq.calls import BrokerError, Trouble
from worker.rabbitmq.link import Link
from worker.rabbitmq.outlet import Outlet
from worker.rabbitmq.queues import counts

PREFETCH = 64
DEAD_PREFETCH = 1000
"""Dead letters are looked at by the hundred before they are given back."""

_AT_ONCE = 256
_LAST_WORDS = 5.0
"""Seconds, at most, in which `aclose` gives back what nobody has taken."""


class RabbitQueue:
    """One quorum queue, through two connections: one consumes, the other publishes."""

    Options: ClassVar[type[QueueOptions]] = RabbitQueueOptions

    def __init__(self, options: RabbitQueueOptions, name: str, dead: str | None) -> None:
        """`connect` and `open_dead_letters` construct; `dead` is None for the dead letters themselves."""
        self._options = options
        self._name = name
        self._dead = dead
        self._topology = Topology(name, dead)
        # The broker must not give up a process that still counts on its lease: it does after `heartbeat` at the earliest.
        self._link = Link(options, heartbeat=options.lease, name=f"transload {name} consumes")
        self._outlet = Outlet(options, heartbeat=options.lease, name=f"transload {name} publishes")
        self._sender = Sender(self._outlet, self._topology)
        self._untaken = Untaken(self._sender, patience=options.lease / 3, copies=dead is not None)
        self._longest_hold = options.consumer_timeout and options.consumer_timeout - min(
            options.lease, options.consumer_timeout / 10
        )
        self._prefetch = DEAD_PREFETCH if dead is None else options.prefetch or PREFETCH
        self._prefixes = (f"{uuid.uuid4().hex[:8]}.{number}" for number in count())
        self._consumer: Consumer | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(cls, options: QueueOptions) -> Self:
        """As the port says. `QueueError` when a queue of that name was made with other arguments."""
        options = cast("RabbitQueueOptions", options)
        return await cls._open(
            options,
            options.queue,
            options.dead_letter_queue or f"{options.queue}.dead",
            declared=options.declare,
        )

    @classmethod
    async def _open(cls, options: RabbitQueueOptions, name: str, dead: str | None, *, declared: bool) -> Self:
        queue = cls(options, name, dead)
        try:
            if declared:
                await make(queue._link, queue._topology)
            else:
                await check(queue._link, queue._topology, options.place)
        except BaseException as exc:
            await queue.aclose()
            if isinstance(exc, BrokerError):
                raise _translate(exc, name) from exc
            raise
        return queue

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    @property
    def lease(self) -> float:
        """As configured."""
        return self._options.lease

    @property
    def longest_hold(self) -> float | None:
        """A little less than the broker's `consumer_timeout`, at which it closes the channel and takes back all of it.

        See https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout.
        """
        return self._longest_hold

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As the port says. Raises `QueueUnavailable` when the consumer has ended; the next call makes a new one."""
        self._ensure_open()
        try:
            consumer = await self._consuming()
            if aged := consumer.aged():
                self._untaken.give_back_aside(consumer, aged)
            held = await consumer.take(max(1, limit), min(max(wait, 0.0), self.lease))
            if not held and wait > 0:
                await consumer.look()
        except BrokerError as exc:
            self._ensure_open()
            raise _translate(exc, self._name) from exc
        return [message_of(each.delivery, each.handle) for each in held]

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As the port says; asks the broker for a sign of life first, so a lease is not renewed on a dead connection."""
        self._ensure_open()
        if self._consumer is None:
            return list(messages)
        try:
            lost = set(await self._consumer.extend([message.handle for message in messages]))
        except BrokerError as exc:
            raise _translate(exc, self._name) from exc
        return [message for message in messages if message.handle in lost]

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """As the port says; `Retry` waits 12 hours at most, and not at all in the dead letters. One that does not count goes to the
        end of the queue: those that are delayed are in no one's count of what waits.

        An acknowledgement is not answered over AMQP: when the connection breaks behind it, the message may come back.
        """
        self._ensure_open()
        if isinstance(disposition, Dead) and self._dead is None:
            raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
        consumer = self._consumer
        held = consumer.leases.claim(message.handle) if consumer is not None else None
        if consumer is None or held is None:
            return False
        try:
            if isinstance(disposition, Dead):
                await self._sender.bury(message, disposition, held.delivery)
            elif isinstance(disposition, Retry):
                if self._dead is None:
                    # A look at a dead letter is no try at it, and must not bring it straight back.
                    await consumer.unsubscribe()
                at_once = disposition.counted and disposition.delay <= 0
                if self._dead is None or (at_once and not worn(held.delivery)):
                    await consumer.reject(held, counted=self._dead is not None)
                    return True
                if disposition.counted or not whole(held.delivery):
                    await self._sender.postpone(message, disposition.delay, held.delivery)
                else:
                    await self._sender.put_back(held.delivery)
            await consumer.ack(held)
        except (BrokerError, OSError) as exc:
            raise _translate(exc, self._name) from exc
        finally:
            consumer.leases.release(held)
        return True

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says; a delay is 12 hours at most. Raises `QueueError`, before anything is sent, for what cannot be carried."""
        self._ensure_open()
        for message in messages:
            if why := refusal(message.attributes):
                raise QueueError(f"queue {self._name!r}: {why}")
        for start in range(0, len(messages), _AT_ONCE):
            sending = (self._sender.send(message) for message in messages[start : start + _AT_ONCE])
            for outcome in await asyncio.gather(*sending, return_exceptions=True):
                if isinstance(outcome, BrokerError):
                    raise _translate(outcome, self._name) from outcome
                if outcome is not None:
                    raise outcome

    async def depth(self) -> Depth:
        """What waits, is delayed and is dead, as the broker has it; in flight is what this process holds."""
        self._ensure_open()
        try:
            consumer = self._consumer if self._consumer and self._consumer.ended is None else None
            names = self._topology.others
            if consumer is None:
                found = await counts(self._link, [*names, self._name])
                waiting = found[self._name]
                if waiting is None:
                    raise BrokerError(Trouble.MISSING, f"no queue {self._name!r}")
            else:
                found = await counts(self._link, names)
                waiting = await consumer.look()
        except BrokerError as exc:
            raise _translate(exc, self._name) from exc
        return Depth(
            visible=waiting + self._untaken.parting + (consumer.waiting if consumer else 0),
            in_flight=consumer.in_flight if consumer else 0,
            delayed=sum(found[name] or 0 for name in self._topology.delays.values()),
            dead=found[self._dead] if self._dead else None,
        )

    async def open_dead_letters(self) -> Queue:
        """The dead-letter queue, through connections of its own."""
        if self._dead is None:
            raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
        return await self._open(self._options, self._dead, None, declared=False)

    async def aclose(self) -> None:
        """As the port says; gives back what is held, and uncounted what nobody has taken."""
        if self._closed:
            return
        self._closed = True
        await self._untaken.stop()
        if self._consumer is not None and self._consumer.ended is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._untaken.give_back(self._consumer)
            self._consumer.end("the queue is closed")
        await asyncio.gather(self._outlet.aclose(), self._link.aclose())

    async def _consuming(self) -> Consumer:
        async with self._opening:
            if self._consumer is None or self._consumer.ended is not None:
                channel = await self._link.channel()
                self._ensure_open()
                self._consumer = Consumer(
                    self._link,
                    channel,
                    queue=self._name,
                    prefix=next(self._prefixes),
                    prefetch=self._prefetch,
                    lease=self.lease,
                    longest_hold=self.longest_hold,
                )
            self._untaken.watch(self._consumer)
            await self._consumer.subscribe()
            return self._consumer

    def _ensure_open(self) -> None:
        if self._closed:
            raise QueueUnavailable(f"queue {self._name!r} is closed")


def _translate(exc: BrokerError | OSError, name: str) -> QueueError:
    message = f"queue {name!r}: {exc}"
    if isinstance(exc, OSError):
        return QueueUnavailable(message)
    if exc.trouble is Trouble.MISSING:
        return QueueMissing(
            f"{message}; create it, set queue.declare, or correct queue.queue and the virtual host"
        )
    if exc.trouble is Trouble.DENIED:
        return QueueDenied(
            f"{message}; look at the user, its password and its permissions on the virtual host"
        )
    if exc.trouble is Trouble.UNAVAILABLE:
        return QueueUnavailable(message)
    return QueueError(message)
