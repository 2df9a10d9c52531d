"""How much is received when. Used by worker/service.py.

First what can be worked on at once. Beyond that, a look at a time, what may lie behind it: worker/turns.py says what for.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from worker.health import Health
from worker.queues.base import Message

_LOOK_EVERY = 0.05
"""Seconds after a look that found all it had room for, before the next: a worker that has nothing to do shall be quicker."""
LOOK = 10
"""Messages in a look, at least: as many as SQS has in one receive."""
_BODIES = 16 << 20
"""Bytes of all messages that are held, beyond which nothing is received but what can be worked on at once."""


@dataclass(slots=True)
class Intake:
    """How much is received when: what can be worked on at once, and then, a look at a time, what may lie behind it."""

    concurrency: int
    look_ahead: int
    """Messages received beyond that, at most."""
    max_message_bytes: int
    messages: int = 0
    """Held now, in work or waiting."""
    bodies: int = 0
    """Their bytes."""
    found: int = 0
    """Messages since the last receive."""

    def add(self, message: Message) -> None:
        self.found += 1
        self.messages += 1
        self.bodies += len(message.body)

    def remove(self, message: Message) -> None:
        self.messages -= 1
        self.bodies -= len(message.body)

    @property
    def room(self) -> int:
        """How many more may be received to be worked on at once."""
        return max(0, self.concurrency - self.messages)

    @property
    def ahead(self) -> int:
        """How many more may be received beyond that, by one look, if all of them are as long as they may be."""
        places = self.concurrency + self.look_ahead - self.messages
        fitting = (_BODIES - self.bodies) // self.max_message_bytes
        return max(0, min(self._look, places, fitting))

    @property
    def _look(self) -> int:
        return max(LOOK, self.concurrency)

    async def next(self, freed: asyncio.Event, health: Health) -> int:
        """How many to receive now; waits until it is at least one.

        `freed` is set whenever a message has left; `health` is told while nothing can be received before that.
        """
        loop = asyncio.get_running_loop()
        look_at = loop.time() + _LOOK_EVERY * self.found / self._look
        self.found = 0
        while not (room := self.room):
            pause = look_at - loop.time()
            if (ahead := self.ahead) and pause <= 0:
                room = ahead
                break
            health.busy = not ahead
            freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if ahead else None):
                    await freed.wait()
        health.busy = False
        return room
