"""Which queues belong to one RabbitMQ queue, and what they are made of. Used by worker/queues/rabbitmq.py
and the files beside it.

The queue itself, its dead letters, and a ladder of delay queues: a message waits in one of those until its own expiration,
and is passed on to the queue. Messages expire at a queue's head only, so each step of the ladder has a queue of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.rabbitmq.queues import QUORUM

LADDER = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 43_200)
"""Seconds. One delay queue each, for delays up to that many; the last is the longest delay there is."""
DELIVERY_LIMIT = 1_000_000
"""RabbitMQ 4 takes a message out of a quorum queue at its 20th return unless told otherwise. How often one is tried is for
worker/disposition.py to decide, so this limit is out of reach, and yet valid on RabbitMQ 3, which knows no `-1`."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The names. `dead` is None for the dead letters themselves, which have neither dead letters nor delays."""

    queue: str
    dead: str | None

    @property
    def delays(self) -> Mapping[int, str]:
        """Step of the ladder -> name of its queue."""
        return {} if self.dead is None else {step: f"{self.queue}.delay.{step}" for step in LADDER}

    @property
    def others(self) -> list[str]:
        """Every queue besides `queue`."""
        return [] if self.dead is None else [self.dead, *self.delays.values()]

    def after(self, delay: float) -> tuple[str, str | None]:
        """The queue to publish to for a message to arrive after `delay` seconds, and its expiration there (milliseconds)."""
        if delay <= 0 or self.dead is None:
            return self.queue, None
        step = next((each for each in LADDER if each >= delay), LADDER[-1])
        return self.delays[step], str(math.ceil(min(delay, step) * 1000))

    def arguments(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> what the queue is declared with. Those that messages are passed on to come first."""
        limited = QUORUM | {"x-delivery-limit": DELIVERY_LIMIT}
        if self.dead is None:
            return {self.queue: limited}
        wanted = {self.dead: limited, self.queue: limited | _passes_on_to(self.dead)}
        for step, name in self.delays.items():
            wanted[name] = QUORUM | _passes_on_to(self.queue) | {"x-message-ttl": step * 1000}
        return wanted


def _passes_on_to(queue: str) -> dict[str, Any]:
    """A queue whose dead or expired messages go to another one, and are lost nowhere between the two."""
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        # They leave once the other queue has confirmed them, which asks for this overflow behaviour:
        # https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
