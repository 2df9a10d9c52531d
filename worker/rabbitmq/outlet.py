"""Publishing with confirms, for the queue and the publisher.

It has connections of its own. A broker under a memory or disk alarm stops reading from every connection that publishes, and
acknowledgements on the same one would wait with it (https://www.rabbitmq.com/docs/alarms).
"""

import asyncio

from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.commands import Basic

from backends.failpoints import failpoint
from worker.rabbitmq.calls import BrokerError, Once, Trouble, call, hang_up
from worker.rabbitmq.link import Link
from worker.rabbitmq.options import RabbitOptions

PERSISTENT = 2
"""The `delivery_mode` of a message that outlives the broker's end."""


class Outlet:
    """Publishes with confirms, one channel for everybody."""

    def __init__(self, options: RabbitOptions, *, heartbeat: float, name: str) -> None:
        """As `Link`, of which it has one of its own."""
        self.link = Link(options, heartbeat=heartbeat, name=name)
        self._apart = Link(options, heartbeat=heartbeat, name=f"{name} apart")
        self._one_apart = asyncio.Lock()
        self._channel: AbstractChannel | None = None
        self._connect = Once(self._open)
        self._flying: dict[str, asyncio.Event] = {}

    async def publish(
        self, body: bytes, properties: Basic.Properties, *, to: str, exchange: str = ""
    ) -> None:
        """Return when the broker has the message durably. `to` is a queue, or the routing key where `exchange` is given.

        Raises `BrokerError`: then it may be there or not; `MISSING` when no queue takes it.
        """
        patience = 3 * self.link.timeout
        try:
            async with asyncio.timeout(patience):
                await self._publish_once(body, properties, exchange, to)
        except TimeoutError as exc:
            raise BrokerError(Trouble.UNAVAILABLE, f"not published within {patience:g} seconds") from exc

    async def aclose(self) -> None:
        """Close the connection. Calling it twice is harmless."""
        await asyncio.gather(self.link.aclose(), self._apart.aclose())

    async def _publish_once(self, body: bytes, properties: Basic.Properties, exchange: str, to: str) -> None:
        id_ = properties.message_id or ""
        # aiormq tells which message came back as unroutable by its id alone. Of two with the same id in flight it would
        # report the first as accepted.
        while (other := self._flying.get(id_)) is not None:
            await other.wait()
        landed = self._flying[id_] = asyncio.Event()
        try:
            channel = self._channel
            if channel is None or channel.is_closed or not channel.connection.is_opened:
                channel = await self._connect()
            try:
                await self._publish(channel, body, properties, exchange, to)
            except BrokerError:
                if not _spoiled(channel):
                    raise
                await self._publish_apart(body, properties, exchange, to)
        finally:
            del self._flying[id_]
            landed.set()

    async def _publish_apart(self, body: bytes, properties: Basic.Properties, exchange: str, to: str) -> None:
        """The broker answers a message that is too large by closing the channel, and often the connection goes too, with
        all that was on its way. One by one, and where nobody else is, each message gets its own answer.
        """
        async with self._one_apart:
            channel = await self._apart.channel(confirms=True)
            try:
                await self._publish(channel, body, properties, exchange, to)
            finally:
                await hang_up(channel, self.link.timeout)

    async def _publish(
        self, channel: AbstractChannel, body: bytes, properties: Basic.Properties, exchange: str, to: str
    ) -> None:
        async def confirmed() -> None:
            failpoint("rabbitmq.publish.before")
            await channel.basic_publish(
                bytes(body), exchange=exchange, routing_key=to, properties=properties, mandatory=True
            )
            failpoint("rabbitmq.publish.after")

        await self._unblocked(channel, self.link.timeout)
        try:
            await call(confirmed(), self.link.timeout, cancel=True)
        except BrokerError as exc:
            if exc.silence:
                await self._unblocked(channel, 0)
                # No alarm and no answer: such a connection is of no use.
                if self._channel is channel:
                    self._channel = None
                for link in (self.link, self._apart):
                    link.drop(channel.connection)
            raise

    @staticmethod
    async def _unblocked(channel: AbstractChannel, seconds: float) -> None:
        """Wait while an alarm lasts. A connection that an alarm blocks is kept: the next one would fare no better."""
        try:
            await call(channel.connection.ready(), seconds, cancel=True)
        except BrokerError as exc:
            if exc.silence and channel.connection.is_opened:
                raise BrokerError(
                    Trouble.UNAVAILABLE, "a memory or disk alarm of the broker blocks publishing"
                ) from exc
            raise

    async def _open(self) -> AbstractChannel:
        self._channel = await self.link.channel(confirms=True)
        return self._channel


def _spoiled(channel: AbstractChannel) -> bool:
    """The broker closed the channel because of something that was sent on it."""
    closing = channel.closing
    if not closing.done() or closing.cancelled():
        return False
    return isinstance(closing.exception(), ChannelPreconditionFailed)
