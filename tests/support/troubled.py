"""A backend that can be told to fail, to hang and to break off; and time that passes only when it is told to.

For tests of what stands around a backend. What it does when it is left alone is the wrapped backend's.
"""

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper

T = TypeVar("T")


class Troubled(Wrapper):
    """Each call takes the next of `trouble`: an exception is raised, None lets it pass. An empty queue is no trouble."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.trouble: deque[BaseException | None] = deque()
        self.calls: Counter[str] = Counter()
        self.hang = False
        """Calls wait until they are cancelled, and count in `cleaned` when they have cleaned up after that."""
        self.hanging = asyncio.Event()
        self.may_clean = asyncio.Event()
        """Cleaning up takes until it is set, as it is from the start."""
        self.may_clean.set()
        self.cleaned = 0
        self.break_after: int | None = None
        """Chunks of a read, objects of a listing, chunks taken by a write, after which the next of `trouble` comes."""

    @classmethod
    async def empty(cls) -> "Troubled":
        return cls(await MemoryBackend.connect(MemoryOptions()))

    async def turn(self, op: str) -> None:
        self.calls[op] += 1
        if self.break_after is None:
            await self._trouble()

    async def _trouble(self) -> None:
        if self.hang:
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                await self.may_clean.wait()
                self.cleaned += 1
        if self.trouble and (exc := self.trouble.popleft()) is not None:
            raise exc

    async def _breaking(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        count = 0
        async for item in items:
            if count == self.break_after:
                await self._trouble()
            yield item
            count += 1
        if count == self.break_after:
            await self._trouble()

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        await self.turn("open")
        async with self.inner.open(key) as chunks:
            yield self._breaking(chunks)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        await self.turn("write")
        return await self.inner.write(key, self._breaking(chunks), attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        await self.turn("stat")
        return await self.inner.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        await self.turn("list")
        async for found in self._breaking(self.inner.list(prefix)):
            yield found

    async def delete(self, key: str) -> bool:
        await self.turn("delete")
        return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        await self.turn("copy_from")
        return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        await self.turn("sweep")
        return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        await self.turn("health")
        await self.inner.health()


class FakeTime:
    """A clock and a sleep that belong together."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        over = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._count), over))
        await over

    async def run(self, work: Awaitable[T]) -> T:
        """The result of `work`, while time jumps to the next sleeper's end whenever nobody has anything else to do."""
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                when, _, over = heapq.heappop(self._sleepers)
                if not over.done():
                    self.now = max(self.now, when)
                    over.set_result(None)
        return task.result()
