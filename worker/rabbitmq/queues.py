"""A broker's queues: made, and counted. Used by worker/queues/rabbitmq*.py and worker/publishers/rabbitmq.py."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity

from worker.rabbitmq.calls import call
from worker.rabbitmq.link import Link

QUORUM = MappingProxyType({"x-queue-type": "quorum"})


async def declare(channel: AbstractChannel, name: str, arguments: Mapping[str, Any], seconds: float) -> None:
    """Make a durable queue, or see that the one there is the same. Raises `BrokerError`; then the channel is gone."""
    await call(channel.queue_declare(name, durable=True, arguments=dict(arguments)), seconds)


async def counts(link: Link, names: Sequence[str]) -> Mapping[str, int | None]:
    """How many messages wait in each queue; None for one that is not there. Raises `BrokerError`."""
    connection = await link.connection()
    return await link.ask(connection, _counts(connection, names))


async def _counts(connection: AbstractConnection, names: Sequence[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    channel: AbstractChannel | None = None
    for name in names:
        channel = channel or await connection.channel(publisher_confirms=False)
        try:
            found[name] = (await channel.queue_declare(name, passive=True)).message_count
        except ChannelNotFoundEntity:
            # The broker closes the channel with this answer.
            found[name], channel = None, None
    if channel is not None:
        await channel.close()
    return found
