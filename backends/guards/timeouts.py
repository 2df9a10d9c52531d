"""Deadlines: a store that neither answers nor fails is given up. Put around a backend by backends/guards/stack.py.

Only time spent inside the store counts. While a write waits for its source, or the user of a read for anything else, no
clock runs: their slowness is not this store's.

A deadline cancels the call, waits until it has cleaned up, and raises `Unavailable` with the deadline's name. How long the
cleaning takes is the adapter's: an abort sent to a dead store waits for the SDK's own timeouts, a thread in a system call for
the system.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.errors import Unavailable
from backends.guards.sources import WatchedSource
from backends.wrapper import Wrapper

Deadline = Literal["connect", "idle", "total"]


class TimeoutOptions(BaseModel):
    """Seconds, of the store's own time. None: no such deadline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect: float | None = Field(
        default=30.0,
        gt=0,
        description="Until the first answer: of a call without payload, of a read, of a listing's first page.",
    )
    idle: float | None = Field(
        default=60.0,
        gt=0,
        description="Without progress: between two chunks of a read, two objects of a listing, two chunks that a write asks "
        "its source for. After the last of these a write still has to send what it holds in memory.",
    )
    total: float | None = Field(
        default=None,
        gt=0,
        description="For the whole call, the time of a write's source and a read's user excepted.",
    )


class _StoreTime:
    """The clock of one call: how long it has been in the store, and which deadline comes first."""

    def __init__(self, options: TimeoutOptions, what: str) -> None:
        self._options = options
        self._what = what
        self._spent = 0.0
        self._since = 0.0
        self._first: tuple[float, Deadline] | None = None

    def enter(self, *kinds: Deadline) -> float | None:
        """The moment, in the loop's time, at which the first of `kinds` passes if the store keeps the call until then."""
        self._since = asyncio.get_running_loop().time()
        limits: dict[Deadline, float | None] = {
            "connect": self._options.connect,
            "idle": self._options.idle,
            "total": None if self._options.total is None else self._options.total - self._spent,
        }
        left = [(seconds, kind) for kind in kinds if (seconds := limits[kind]) is not None]
        self._first = min(left, default=None)
        return self._first and self._since + self._first[0]

    def leave(self) -> None:
        self._spent += asyncio.get_running_loop().time() - self._since

    def passed(self) -> Unavailable:
        """What is raised when the moment that `enter` told has come."""
        kind: Deadline = self._first[1] if self._first else "total"
        seconds = {
            "connect": self._options.connect,
            "idle": self._options.idle,
            "total": self._options.total,
        }[kind]
        wanted = {"connect": "no answer", "idle": "no progress", "total": "not done"}[kind]
        return Unavailable(f"{self._what}: {wanted} within {seconds:g} s ({kind} timeout)")

    @asynccontextmanager
    async def within(self, *kinds: Deadline) -> AsyncIterator[None]:
        """Inside is the store. Raises `Unavailable` when a deadline passes."""
        limit = asyncio.timeout_at(self.enter(*kinds))
        try:
            async with limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise self.passed() from exc
        finally:
            self.leave()


class _TimedSource(WatchedSource):
    """Stops the clock of a write while the source is awaited."""

    def __init__(self, chunks: AsyncIterator[bytes], clock: _StoreTime, limit: asyncio.Timeout) -> None:
        super().__init__(chunks)
        self._clock = clock
        self._limit = limit

    async def __anext__(self) -> bytes:
        self._clock.leave()
        self._set(None)
        try:
            chunk = await super().__anext__()
        except StopAsyncIteration:
            self._resume()
            raise
        # After any other exception the write cleans up, and nothing may interrupt that.
        self._resume()
        return chunk

    def _resume(self) -> None:
        self._set(self._clock.enter("idle", "total"))

    def _set(self, when: float | None) -> None:
        # A deadline that has passed cannot be moved; the cancellation is under way.
        if not self._limit.expired():
            self._limit.reschedule(when)


class TimeoutGuard(Wrapper):
    """See the module's docstring. A copy and a sweep have the `total` deadline only: they show no progress."""

    def __init__(self, inner: StorageBackend, options: TimeoutOptions) -> None:
        super().__init__(inner)
        self._options = options

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        clock = self._clock("read", key)
        async with AsyncExitStack() as stack:
            async with clock.within("connect", "total"):
                chunks = await stack.enter_async_context(self.inner.open(key))
            yield await stack.enter_async_context(aclosing(_timed(chunks, clock)))

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        clock = self._clock("write", key)
        limit = asyncio.timeout(None)
        source = _TimedSource(chunks, clock, limit)
        try:
            async with limit:
                limit.reschedule(clock.enter("idle", "total"))
                return await self.inner.write(key, source, attributes)
        except TimeoutError as exc:
            if exc is source.raised or not limit.expired():
                raise
            raise clock.passed() from exc

    async def stat(self, key: str) -> ObjectStat | None:
        async with self._clock("stat", key).within("connect", "total"):
            return await self.inner.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        clock = self._clock("list", prefix)
        found = aiter(self.inner.list(prefix))
        waiting_for: Deadline = "connect"
        while True:
            async with clock.within(waiting_for, "total"):
                item = await anext(found, None)
            if item is None:
                return
            waiting_for = "idle"
            yield item

    async def delete(self, key: str) -> bool:
        async with self._clock("delete", key).within("connect", "total"):
            return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        async with self._clock("copy to", key).within("total"):
            return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        async with self._clock("sweep", prefix).within("total"):
            return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        async with self._clock("health", "").within("connect", "total"):
            await self.inner.health()

    def _clock(self, doing: str, key: str) -> _StoreTime:
        return _StoreTime(self._options, f"{doing} {self.location}{key}")


async def _timed(chunks: AsyncIterator[bytes], clock: _StoreTime) -> AsyncGenerator[bytes, None]:
    reading = aiter(chunks)
    while True:
        async with clock.within("idle", "total"):
            chunk = await anext(reading, None)
        if chunk is None:
            return
        yield chunk
