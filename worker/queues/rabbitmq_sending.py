"""What the RabbitMQ queue publishes: new messages, and copies of those it holds. Used by worker/queues/rabbitmq.py.

A copy stands in for a message that is to come back later, or uncounted, or among the dead letters. It is confirmed before the
original is acknowledged.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from backends.failpoints import failpoint
from worker.queues.base import REDRIVES_ATTRIBUTE, Dead, Message, OutgoingMessage, QueueUnavailable, obituary
from worker.queues.rabbitmq_messages import ID, RECEIVES, SENT, kept_headers, own_headers, receives_of
from worker.queues.rabbitmq_topology import Topology
from worker.rabbitmq.calls import BrokerError
from worker.rabbitmq.limits import fits
from worker.rabbitmq.outlet import PERSISTENT, Outlet

_LONGEST = 8000
"""Characters of each attribute a dead letter gains."""


class Sender:
    """Publishes to the queues of one topology. Everything returns when the broker has confirmed, and raises `BrokerError`."""

    def __init__(self, outlet: Outlet, topology: Topology) -> None:
        """The caller closes the outlet."""
        self._outlet = outlet
        self._topology = topology

    async def send(self, message: OutgoingMessage) -> None:
        """A new message."""
        to, expiration = self._topology.after(message.delay)
        id_ = uuid.uuid4().hex
        properties = Basic.Properties(
            headers={**message.attributes, ID: id_, SENT: _now_ms()},
            delivery_mode=PERSISTENT,
            message_id=id_,
            expiration=expiration,
        )
        await self._outlet.publish(message.body, properties, to=to)

    async def put_back(self, delivery: DeliveredMessage) -> None:
        """A copy at the end of the queue, as if this delivery had not been, but that one nobody dated has an age from now on."""
        ours = {SENT: _now_ms(), **own_headers(delivery), RECEIVES: receives_of(delivery) - 1}
        failpoint("rabbitmq.put_back.before")
        await self._copy(delivery, kept_headers(delivery), ours, to=self._topology.queue)
        failpoint("rabbitmq.put_back.after")

    async def postpone(self, message: Message, delay: float, delivery: DeliveredMessage) -> None:
        """A copy that arrives after `delay` seconds."""
        to, expiration = self._topology.after(delay)
        ours = {RECEIVES: message.receive_count}
        failpoint("rabbitmq.retry.before")
        await self._copy(delivery, kept_headers(delivery), ours, to=to, expiration=expiration)
        failpoint("rabbitmq.retry.after")

    async def bury(self, message: Message, dead: Dead, delivery: DeliveredMessage) -> None:
        """A dead letter. Raises `QueueUnavailable` for whatever goes wrong: the message stays where it is."""
        queue, letters = self._topology.queue, self._topology.dead or ""
        added = {name: value[:_LONGEST] for name, value in obituary(message, dead, queue).items()}
        if redrives := message.attributes.get(REDRIVES_ATTRIBUTE):
            added[REDRIVES_ATTRIBUTE] = redrives[:_LONGEST]
        failpoint("rabbitmq.bury.before")
        try:
            await self._copy(delivery, message.attributes, added, to=letters)
        except (BrokerError, OSError) as exc:
            raise QueueUnavailable(
                f"queue {queue!r}: no dead letter could be written to {letters!r}: {exc}"
            ) from exc
        failpoint("rabbitmq.bury.after")

    async def _copy(
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
