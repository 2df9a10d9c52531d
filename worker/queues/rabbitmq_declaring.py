"""Makes the queues of one RabbitMQ queue, or sees that they are there. Used by worker/queues/rabbitmq.py where it connects."""

import structlog
from aiormq.abc import AbstractChannel

from worker.queues.base import QueueError, QueueMissing
from worker.queues.rabbitmq_topology import Topology
from worker.rabbitmq.calls import BrokerError, Trouble, hang_up
from worker.rabbitmq.link import Link
from worker.rabbitmq.queues import counts, declare


async def make(link: Link, topology: Topology) -> None:
    """Make what is missing. Raises `BrokerError`, or `QueueError` when a queue of that name was made with other arguments."""
    channel = await link.channel()
    for name, arguments in topology.arguments().items():
        try:
            await declare(channel, name, arguments, link.timeout)
        except BrokerError as exc:
            if exc.trouble is Trouble.REFUSED:
                raise QueueError(
                    f"queue {name!r} exists, made otherwise: {exc}; delete it when it is empty, "
                    "or set queue.declare to false to use it as it is"
                ) from exc
            raise
    await hang_up(channel, link.timeout)


async def check(link: Link, topology: Topology, place: str) -> None:
    """See that they are there, and warn of what is made otherwise than here. `place` is the broker, for a person.

    Raises `BrokerError`, or `QueueMissing` with the names of all that are missing.
    """
    names = [topology.queue, *topology.others]
    found = await counts(link, names)
    if missing := [name for name in names if found[name] is None]:
        raise QueueMissing(
            f"{place} has no queue {', '.join(missing)}; "
            "make it as docs/adr/0009-rabbitmq.md says, or set queue.declare"
        )
    if topology.dead is None:
        return
    if differences := await _differences(link, topology):
        structlog.get_logger("rabbitmq").warning(
            "a queue is made otherwise than worker/queues/rabbitmq_topology.py describes it: unless a policy makes up for "
            "that, the broker may drop messages or bury them without a reason",
            queue=topology.queue,
            differences=differences,
        )


async def _differences(link: Link, topology: Topology) -> list[str]:
    """In the broker's words. A queue that is there is not changed by being declared."""
    differences: list[str] = []
    channel: AbstractChannel | None = None
    for name, arguments in topology.arguments().items():
        channel = channel or await link.channel()
        try:
            await declare(channel, name, arguments, link.timeout)
        except BrokerError as exc:
            # The broker closes the channel with this answer.
            channel = None
            if exc.trouble is Trouble.DENIED:
                break
            if exc.trouble is not Trouble.REFUSED:
                raise
            differences.append(str(exc))
    if channel is not None:
        await hang_up(channel, link.timeout)
    return differences
