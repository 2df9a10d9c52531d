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
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, ClassVar, Self, cast

import structlog
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from pydantic import Field

from backends.failpoints import failpoint
from worker.queues.base import (
    REDRIVES_ATTRIBUTE,
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
    obituary,
)
from worker.rabbitmq import (
    PERSISTENT,
    BrokerError,
    Link,
    Outlet,
    RabbitOptions,
    Trouble,
    counts,
    declare,
    fits,
    hang_up,
)
from worker.rabbitmq_consumer import Consumer
from worker.rabbitmq_messages import (
    ID,
    RECEIVES,
    SENT,
    kept_headers,
    message_of,
    own_headers,
    receives_of,
    refusal,
    whole,
    worn,
)
from worker.rabbitmq_topology import Topology

PREFETCH = 64
DEAD_PREFETCH = 1000
"""Dead letters are looked at by the hundred before they are given back."""

_AT_ONCE = 256
_LAST_WORDS = 5.0
"""Seconds, at most, in which `aclose` gives back what nobody has taken."""
_LONGEST = 8000
"""Characters of each attribute a dead letter gains."""


class RabbitQueueOptions(RabbitOptions, QueueOptions):
    """The queue, its lease, and where its dead letters go."""

    queue: str = Field(min_length=1, max_length=200, description="The queue's name.")
    dead_letter_queue: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Where dead letters go; default: the queue's name with `.dead`.",
    )
    prefetch: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Messages the broker hands to this process ahead of its answers; default: worker.concurrency.",
    )
    lease: float = Field(default=30.0, ge=0.5, description="Seconds a received message stays hidden.")
    consumer_timeout: float | None = Field(
        default=1800.0,
        gt=0,
        description="Seconds after which the broker takes back what is not settled, as its `consumer_timeout` says; "
        "none where that is switched off.",
    )
    declare: bool = Field(
        default=True,
        description="Make the queue, its dead-letter queue and its delay queues when they are missing; "
        "false: they must be there.",
    )

    @property
    def queue_name(self) -> str:
        """As configured."""
        return self.queue


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
        self._longest_hold = options.consumer_timeout and options.consumer_timeout - min(
            options.lease, options.consumer_timeout / 10
        )
        self._prefetch = DEAD_PREFETCH if dead is None else options.prefetch or PREFETCH
        self._prefixes = (f"{uuid.uuid4().hex[:8]}.{number}" for number in count())
        self._consumer: Consumer | None = None
        self._opening = asyncio.Lock()
        self._parting = 0
        self._tidying: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
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
            await (queue._declare() if declared else queue._check())
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
                task = asyncio.create_task(self._return_all(consumer, aged))
                self._chores.add(task)
                task.add_done_callback(self._chores.discard)
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
        """As the port says; `Retry` waits 12 hours at most, and not at all in the dead letters.

        An acknowledgement is not answered over AMQP: when the connection breaks behind it, the message may come back.
        """
        self._ensure_open()
        if isinstance(disposition, Dead) and self._dead is None:
            raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
        consumer = self._consumer
        held = consumer.claim(message.handle) if consumer is not None else None
        if consumer is None or held is None:
            return False
        try:
            if isinstance(disposition, Dead):
                await self._bury(message, disposition, held.delivery)
            elif isinstance(disposition, Retry):
                if self._dead is None:
                    # A look at a dead letter is no try at it, and must not bring it straight back.
                    await consumer.unsubscribe()
                if self._dead is None or (disposition.delay <= 0 and not worn(held.delivery)):
                    await consumer.reject(held, counted=self._dead is not None)
                    return True
                await self._postpone(message, disposition.delay, held.delivery)
            await consumer.ack(held)
        except (BrokerError, OSError) as exc:
            raise _translate(exc, self._name) from exc
        finally:
            consumer.release(held)
        return True

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says; a delay is 12 hours at most. Raises `QueueError`, before anything is sent, for what cannot be carried."""
        self._ensure_open()
        for message in messages:
            if why := refusal(message.attributes):
                raise QueueError(f"queue {self._name!r}: {why}")
        for start in range(0, len(messages), _AT_ONCE):
            sending = (self._send(message) for message in messages[start : start + _AT_ONCE])
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
            visible=waiting + self._parting + (consumer.waiting if consumer else 0),
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
        asides = self._chores | ({self._tidying} if self._tidying is not None else set())
        for task in asides:
            task.cancel()
        if asides:
            await asyncio.wait(asides)
        if self._consumer is not None and self._consumer.ended is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._give_back(self._consumer)
            self._consumer.end("the queue is closed")
        await asyncio.gather(self._outlet.aclose(), self._link.aclose())

    async def _declare(self) -> None:
        channel = await self._link.channel()
        for name, arguments in self._topology.arguments().items():
            try:
                await declare(channel, name, arguments, self._link.timeout)
            except BrokerError as exc:
                if exc.trouble is Trouble.REFUSED:
                    raise QueueError(
                        f"queue {name!r} exists, made otherwise: {exc}; delete it when it is empty, "
                        "or set queue.declare to false to use it as it is"
                    ) from exc
                raise
        await hang_up(channel, self._link.timeout)

    async def _check(self) -> None:
        names = [self._name, *self._topology.others]
        found = await counts(self._link, names)
        if missing := [name for name in names if found[name] is None]:
            raise QueueMissing(
                f"{self._options.place} has no queue {', '.join(missing)}; "
                "make it as docs/adr/0009-rabbitmq.md says, or set queue.declare"
            )
        if self._dead is not None:
            await self._compare()

    async def _compare(self) -> None:
        """Say what is made otherwise than here. A queue that is there is not changed by being declared."""
        differences: list[str] = []
        channel: AbstractChannel | None = None
        for name, arguments in self._topology.arguments().items():
            channel = channel or await self._link.channel()
            try:
                await declare(channel, name, arguments, self._link.timeout)
            except BrokerError as exc:
                # The broker closes the channel with this answer.
                channel = None
                if exc.trouble is Trouble.DENIED:
                    break
                if exc.trouble is not Trouble.REFUSED:
                    raise
                differences.append(str(exc))
        if channel is not None:
            await hang_up(channel, self._link.timeout)
        if differences:
            structlog.get_logger("rabbitmq").warning(
                "a queue is made otherwise than worker/rabbitmq_topology.py describes it: unless a policy makes up for that, the "
                "broker may drop messages or bury them without a reason",
                queue=self._name,
                differences=differences,
            )

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
            if self._tidying is None:
                self._tidying = asyncio.create_task(self._tidy(), name=f"{self._name} untaken")
            await self._consumer.subscribe()
            return self._consumer

    async def _tidy(self) -> None:
        """Give back what was delivered here while nobody receives any more: others may have time for it."""
        patience = self.lease / 3
        while True:
            await asyncio.sleep(patience)
            consumer = self._consumer
            idle = consumer is not None and asyncio.get_running_loop().time() - consumer.taken_at > patience
            if consumer is not None and idle and consumer.waiting and consumer.ended is None:
                await self._give_back(consumer)

    async def _give_back(self, consumer: Consumer) -> None:
        with suppress(BrokerError):
            await consumer.unsubscribe()
        await self._return_all(consumer, consumer.untaken())

    async def _return_all(self, consumer: Consumer, unclaimed: Sequence[DeliveredMessage]) -> None:
        self._parting += len(unclaimed)
        try:
            await asyncio.gather(*(self._return(consumer, delivery) for delivery in unclaimed))
        finally:
            self._parting -= len(unclaimed)

    async def _return(self, consumer: Consumer, delivery: DeliveredMessage) -> None:
        """Give it back uncounted. Brokers before RabbitMQ 4.3 count every return, so there a copy takes its place."""
        copied = False
        # The order of dead letters is worth more than their count, and so is all that a message brought along.
        if self._dead is not None and whole(delivery):
            ours = {RECEIVES: receives_of(delivery) - 1}
            with suppress(BrokerError):
                await self._publish_copy(delivery, kept_headers(delivery), ours, to=self._name)
                copied = True
        with suppress(BrokerError):
            await consumer.give_back(delivery, copied=copied)

    async def _postpone(self, message: Message, delay: float, delivery: DeliveredMessage) -> None:
        to, expiration = self._topology.after(delay)
        ours = {RECEIVES: message.receive_count}
        failpoint("rabbitmq.retry.before")
        await self._publish_copy(delivery, kept_headers(delivery), ours, to=to, expiration=expiration)
        failpoint("rabbitmq.retry.after")

    async def _bury(self, message: Message, dead: Dead, delivery: DeliveredMessage) -> None:
        added = {name: value[:_LONGEST] for name, value in obituary(message, dead, self._name).items()}
        if redrives := message.attributes.get(REDRIVES_ATTRIBUTE):
            added[REDRIVES_ATTRIBUTE] = redrives[:_LONGEST]
        failpoint("rabbitmq.bury.before")
        try:
            await self._publish_copy(delivery, message.attributes, added, to=self._dead or "")
        except (BrokerError, OSError) as exc:
            raise QueueUnavailable(
                f"queue {self._name!r}: no dead letter could be written to {self._dead!r}: {exc}"
            ) from exc
        failpoint("rabbitmq.bury.after")

    async def _send(self, message: OutgoingMessage) -> None:
        to, expiration = self._topology.after(message.delay)
        id_ = uuid.uuid4().hex
        properties = Basic.Properties(
            headers={**message.attributes, ID: id_, SENT: time.time_ns() // 1_000_000},
            delivery_mode=PERSISTENT,
            message_id=id_,
            expiration=expiration,
        )
        await self._outlet.publish(message.body, properties, to=to)

    async def _publish_copy(
        self,
        delivery: DeliveredMessage,
        theirs: Mapping[str, Any],
        ours: Mapping[str, Any],
        *,
        to: str,
        expiration: str | None = None,
    ) -> None:
        """`theirs`: headers that give way where there is no room for all; `ours`: more of ours."""
        needed = {**own_headers(delivery), **ours}
        headers = {**theirs, **needed}
        original = delivery.header.properties
        properties = Basic.Properties(
            content_type=original.content_type,
            content_encoding=original.content_encoding,
            headers=headers if fits(headers) else needed,
            delivery_mode=PERSISTENT,
            priority=original.priority,
            correlation_id=original.correlation_id,
            reply_to=original.reply_to,
            expiration=expiration,
            message_id=original.message_id or needed[ID],
            timestamp=original.timestamp,
            message_type=original.message_type,
            app_id=original.app_id,
            # Not user_id: the broker refuses any but our own.
        )
        await self._outlet.publish(delivery.body, properties, to=to)

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
