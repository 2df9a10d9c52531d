"""Completions on RabbitMQ: confirmed, persistent, and never reported as published when no queue took them."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Self, cast

from pamqp.commands import Basic
from pydantic import Field, model_validator

from backends.failpoints import failpoint
from worker.publishers.base import Notification, PublisherOptions, PublishError, PublishRefused
from worker.rabbitmq.calls import BrokerError, Trouble, call, hang_up
from worker.rabbitmq.limits import objection
from worker.rabbitmq.options import RabbitOptions
from worker.rabbitmq.outlet import PERSISTENT, Outlet
from worker.rabbitmq.queues import QUORUM, counts, declare

HEARTBEAT = 30.0
_AT_ONCE = 256


class RabbitPublisherOptions(RabbitOptions, PublisherOptions):
    """The queue or the exchange notifications go to."""

    queue: str | None = Field(
        default=None, min_length=1, max_length=255, description="The queue, through the default exchange."
    )
    exchange: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="An exchange that is there, instead of a queue.",
    )
    routing_key: str = Field(
        default="", max_length=255, description="The routing key, where `exchange` is given."
    )
    declare: bool = Field(
        default=True,
        description="Make `queue` a quorum queue when it is missing; one that is there is used as it is.",
    )

    @model_validator(mode="after")
    def _one_destination(self) -> Self:
        if (self.queue is None) is (self.exchange is None):
            raise ValueError("set either queue, or exchange and routing_key")
        if self.queue is not None and self.routing_key:
            raise ValueError("routing_key goes with exchange")
        return self

    @property
    def destination_name(self) -> str:
        """The queue, or the exchange."""
        return self.queue or self.exchange or ""


class RabbitPublisher:
    """The body goes out byte for byte, the event's id as message id, its attributes as headers."""

    Options: ClassVar[type[PublisherOptions]] = RabbitPublisherOptions

    def __init__(self, options: RabbitPublisherOptions) -> None:
        """`connect` constructs."""
        self._options = options
        self._outlet = Outlet(options, heartbeat=HEARTBEAT, name="transload publishes completions")
        self._closed = False

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:
        """As the port says."""
        publisher = cls(cast("RabbitPublisherOptions", options))
        try:
            await publisher._prepare()
        except BaseException as exc:
            await publisher.aclose()
            if isinstance(exc, BrokerError):
                raise _translate(exc, publisher.destination) from exc
            raise
        return publisher

    @property
    def destination(self) -> str:
        """`amqp://host:5672/vhost queue name`, without the credentials."""
        options = self._options
        if options.queue is not None:
            return f"{options.place} queue {options.queue}"
        return f"{options.place} exchange {options.exchange} routing key {options.routing_key!r}"

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        """As the port says; all at once, so their order is not kept."""
        if self._closed:
            return [PublishError(f"{self.destination} is closed")] * len(notifications)
        outcomes: list[PublishError | None] = []
        for start in range(0, len(notifications), _AT_ONCE):
            batch = notifications[start : start + _AT_ONCE]
            outcomes += await asyncio.gather(*map(self._outcome, batch))
        return outcomes

    async def aclose(self) -> None:
        """As the port says."""
        self._closed = True
        await self._outlet.aclose()

    async def _outcome(self, notification: Notification) -> PublishError | None:
        if why := objection(notification.event_id, notification.attributes):
            return PublishRefused(f"event {notification.event_id!r}: {why}")
        properties = Basic.Properties(
            content_type="application/json",
            headers=dict(notification.attributes),
            delivery_mode=PERSISTENT,
            message_id=notification.event_id,
        )
        to = self._options.queue or self._options.routing_key
        try:
            failpoint("rabbitmq_publisher.send.before")
            await self._outlet.publish(
                notification.body, properties, to=to, exchange=self._options.exchange or ""
            )
            failpoint("rabbitmq_publisher.send.after")
        except (BrokerError, OSError) as exc:
            return _translate(exc, f"event {notification.event_id!r} to {self.destination}")
        return None

    async def _prepare(self) -> None:
        link, queue = self._outlet.link, self._options.queue
        if queue is not None and (await counts(link, [queue]))[queue] is not None:
            return
        if queue is not None and not self._options.declare:
            raise BrokerError(Trouble.MISSING, f"no queue {queue!r}")
        channel = await link.channel()
        if queue is not None:
            await declare(channel, queue, QUORUM, link.timeout)
        else:
            await call(channel.exchange_declare(self._options.exchange or "", passive=True), link.timeout)
        await hang_up(channel, link.timeout)


def _translate(exc: BrokerError | OSError, what: str) -> PublishError:
    if isinstance(exc, OSError):
        return PublishError(f"{what}: {exc}")
    if exc.trouble is Trouble.REFUSED:
        return PublishRefused(f"{what}: {exc}")
    hint = {
        Trouble.MISSING: "; create it, or bind a queue to the exchange",
        Trouble.DENIED: "; look at the user, its password and its permissions on the virtual host",
    }.get(exc.trouble, "")
    return PublishError(f"{what}: {exc}{hint}")
