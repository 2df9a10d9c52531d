"""Whose turn it is: received messages wait here until their recipe has its share of the worker. Used by worker/settling.py.

A queue hands out what was sent first, so a flood hides whatever was sent behind it. The worker therefore receives more than it
works on (worker/intake.py), lets each message wait for its owner's share, and puts those that wait for long back into the queue, uncounted,
to see what lies behind them (docs/adr/0025-fair-shares.md).
"""

import asyncio
import heapq
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from worker.delivery import Delivery
from worker.metrics import Metrics
from worker.queues.base import Message, WaitedTooLong
from worker.shares import Ask, Owner, Shares

_PATIENCE = 1.0
"""Seconds a message waits here before it is asked whether its place is of more use to those behind it, and its turn to another worker."""
_LONGEST_PATIENCE = 4.0
"""The same, once it has been found worth while to wait."""
_SOON = 20.0
"""It is, where all that wait of its owner would have their turn in so many seconds, at their pace since the last time."""
_AWAY = 1024
"""Messages that are put off at the same time, at most: SQS lets 120,000 of a queue be in flight, and these count."""
_SOONEST, _LATEST = 1.0, 60.0
"""Seconds for which a message is put back: between the two a third of its age, so that a flood of seconds leaves no pause of a minute
behind it."""
_BACK = 4.0
"""How many of them come back in a second, at least: a place that is free meanwhile waits for the next."""


class PutOff(Exception):
    """It was not this message's turn: it is to be given back for `delay` seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"put off for {delay:.1f} seconds")
        self.delay = delay


class Turns:
    """The places of one worker."""

    def __init__(
        self,
        slots: Shares,
        owner_of: Callable[[bytes], Owner],
        *,
        put_off: bool,
        ready: Callable[[], Awaitable[None]],
        random: Callable[[], float],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`slots`: messages in work at once. `put_off`: whether those that wait for long are put off.

        Whoever had to wait also waits until `ready`: what is down by now would only be met. `random` gives numbers in [0, 1), `clock` seconds since the epoch.
        """
        self._slots = slots
        self._owner_of = owner_of
        self._most_away = _AWAY if put_off else 0
        self._ready = ready
        self._random = random
        self._metrics = metrics
        self._clock = clock
        self._away: list[float] = []
        """A heap of when those that were put off come back, by the event loop's clock."""

    @property
    def in_work(self) -> int:
        """Messages that have their turn. May be read from any thread."""
        return self._slots.held

    @property
    def away(self) -> int:
        """Messages that were put off, and come back."""
        now = asyncio.get_running_loop().time()
        while self._away and self._away[0] <= now:
            heapq.heappop(self._away)
        return len(self._away)

    @asynccontextmanager
    async def turn(self, delivery: Delivery) -> AsyncGenerator[None, None]:
        """Wait for the message's turn, and have it inside. Raises `PutOff` where it does not come, and `LeaseLost`."""
        owner = self._owner_of(delivery.body)
        # Of one recipe the oldest first, or what was put off would be put off again.
        ask = self._slots.ask(owner, 1, delivery.message.sent_at or 0.0)
        try:
            if not ask.has:
                delivery.route = owner.route
                await self._wait(delivery, ask)
            yield
        finally:
            self._slots.give_back(ask)

    def close(self) -> None:
        """Whoever waits is put off, and whoever comes."""
        self._slots.close()

    async def _wait(self, delivery: Delivery, ask: Ask) -> None:
        waiting = self._metrics.messages_waiting.labels(route=delivery.route)
        waiting.inc()
        try:
            async with delivery.kept_alive():
                patience = _PATIENCE
                while not ask.granted.done():
                    _, before = ask.queue
                    await asyncio.wait([ask.granted], timeout=patience)
                    left, now = ask.queue
                    slow = left * patience > _SOON * (now - before)
                    if slow and not ask.granted.done() and self._may_be_put_off(delivery.message):
                        raise PutOff(self._put_off(delivery.message))
                    patience = min(2 * patience, _LONGEST_PATIENCE)
                if not ask.has:
                    raise PutOff(0.0)
                await self._ready()
        except WaitedTooLong as exc:
            raise PutOff(0.0) from exc
        finally:
            waiting.dec()

    def _may_be_put_off(self, message: Message) -> bool:
        return self.away < self._most_away and message.returnable

    def _put_off(self, message: Message) -> float:
        age = 0.0 if message.sent_at is None else self._clock() - message.sent_at
        latest = min(max(len(self._away) / _BACK, _SOONEST), _LATEST)
        delay = min(max(age / 3, _SOONEST), latest) * (0.5 + self._random() / 2)
        heapq.heappush(self._away, asyncio.get_running_loop().time() + delay)
        return delay
