"""What was delivered to this process and handed to nobody: given back, uncounted. Used by worker/queues/rabbitmq.py."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from aiormq.abc import DeliveredMessage

from worker.queues.rabbitmq_consumer import Consumer
from worker.queues.rabbitmq_messages import whole
from worker.queues.rabbitmq_sending import Sender
from worker.rabbitmq.calls import BrokerError


class Untaken:
    """Gives back what waits here, on the side while the queue is open, and at once where it is asked to."""

    def __init__(self, sender: Sender, *, patience: float, copies: bool) -> None:
        """`patience`: seconds without a receive after which others may have more time for it.

        `copies`: a copy may take the place of a message. The order of dead letters is worth more than their count.
        """
        self._sender = sender
        self._patience = patience
        self._copies = copies
        self._consumer: Consumer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self.parting = 0
        """Messages on their way back."""

    def watch(self, consumer: Consumer) -> None:
        """From now on give back what waits at this one, and at none before it, while nobody receives."""
        self._consumer = consumer
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="untaken")

    def give_back_aside(self, consumer: Consumer, deliveries: Sequence[DeliveredMessage]) -> None:
        """Begin to give these back, and do not wait for it."""
        task = asyncio.create_task(self._return_all(consumer, deliveries))
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def give_back(self, consumer: Consumer) -> None:
        """Have the broker deliver no more to it, and give back what waits."""
        with suppress(BrokerError):
            await consumer.unsubscribe()
        await self._return_all(consumer, consumer.untaken())

    async def stop(self) -> None:
        """End what is done on the side."""
        tasks = self._chores | ({self._watching} if self._watching is not None else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._patience)
            consumer = self._consumer
            if consumer is None or consumer.ended is not None or not consumer.waiting:
                continue
            if asyncio.get_running_loop().time() - consumer.taken_at > self._patience:
                await self.give_back(consumer)

    async def _return_all(self, consumer: Consumer, deliveries: Sequence[DeliveredMessage]) -> None:
        self.parting += len(deliveries)
        try:
            await asyncio.gather(*(self._return(consumer, delivery) for delivery in deliveries))
        finally:
            self.parting -= len(deliveries)

    async def _return(self, consumer: Consumer, delivery: DeliveredMessage) -> None:
        """Brokers before RabbitMQ 4.3 count every return, so there a copy takes its place, unless it would bring less along."""
        copied = False
        if self._copies and whole(delivery):
            with suppress(BrokerError):
                await self._sender.put_back(delivery)
                copied = True
        with suppress(BrokerError):
            await consumer.give_back(delivery, copied=copied)
