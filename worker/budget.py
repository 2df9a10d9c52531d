"""The memory that all transfers of a process share, in bytes. worker/pipeline.py holds a part of it for every transfer.

Two lanes with a fixed share each, first come, first served in both. So their sum is never exceeded, a payload of one chunk
never waits for a large one, however slow that is, and no stream of small ones keeps a large one from its turn. In a lane
nobody is passed: whoever waits first gets what is given back first, and everybody gives back.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from backends.base import CHUNK_SIZE

_SMALL_SHARE = 8
"""One part in so many is for payloads of at most one chunk. They hold no more than their size, so that is room for many."""


class Budget:
    """For the tasks of one event loop."""

    def __init__(self, size: int) -> None:
        """`size`: bytes in all."""
        small = size // _SMALL_SHARE
        self._small = _Lane(small)
        self._large = _Lane(size - small)

    @property
    def held(self) -> int:
        """Bytes held now. May be read from any thread."""
        return self._small.held + self._large.held

    @asynccontextmanager
    async def hold(self, cost: int) -> AsyncGenerator[None, None]:
        """Wait until `cost` bytes are free and hold them inside. A cost beyond its whole lane counts as the whole lane."""
        lane = self._small if cost <= CHUNK_SIZE else self._large
        cost = min(cost, lane.size)
        await lane.take(cost)
        try:
            yield
        finally:
            lane.give(cost)


class _Lane:
    """Whoever gives back hands the bytes over, already counted: between being woken and running nobody can take them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, cost: int) -> None:
        turn = (cost, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._hand_over()
        try:
            await turn[1]
        except asyncio.CancelledError:
            if not turn[1].cancelled():
                # It was our turn already; nobody but us can give it back.
                self.give(cost)
            else:
                with suppress(ValueError):
                    self._waiting.remove(turn)
                # Those behind may have waited for nothing but this one.
                self._hand_over()
            raise

    def give(self, cost: int) -> None:
        self.held -= cost
        self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting:
            cost, turn = self._waiting[0]
            if not turn.cancelled():
                if self.held + cost > self.size:
                    return
                self.held += cost
                turn.set_result(None)
            self._waiting.popleft()
