"""Deadlines: a store that neither answers nor fails is given up. Put around a backend by backends/guards/stack.py.

Only time spent inside the store counts. While a write waits for its source, or the user of a read for anything else, no
clock runs: their slowness is not this store's.

A deadline cancels the call, waits until it has cleaned up, and raises `Unavailable` with the deadline's name. An abort sent
to a dead store waits for the SDK's own timeouts, a thread in a system call for the system; the targets that are fed by the same
source wait with them. So a call that is given up, by its deadline or by its caller, has `CLEAN_UP` seconds. After that it is
left behind and goes on by itself: what it still makes is whole, or for `sweep`. A read and a listing are waited for.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.errors import Unavailable
from backends.guards.sources import WatchedSource
from backends.wrapper import Wrapper

T = TypeVar("T")

Deadline = Literal["connect", "idle", "total"]

CLEAN_UP = 10.0
"""Seconds that a call which was given up may clean up while its caller waits."""

_NOT_MINE = 0.1
"""Seconds between two looks whether a source has let go of a write that was given up."""


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
        self._over = False
        self.awaited = False
        """Somebody waits for the next chunk at this moment."""

    def end(self) -> None:
        """The write was left behind: whoever owns the chunks closes them now."""
        self._over = True

    async def __anext__(self) -> bytes:
        if self._over:
            raise Unavailable("the write was given up")
        self._clock.leave()
        self._set(None)
        self.awaited = True
        try:
            chunk = await super().__anext__()
        except StopAsyncIteration:
            self._resume()
            raise
        finally:
            self.awaited = False
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

    def __init__(self, inner: StorageBackend, options: TimeoutOptions, clean_up: float = CLEAN_UP) -> None:
        """`clean_up` is in seconds."""
        super().__init__(inner)
        self._options = options
        self._clean_up = clean_up
        self._left: set[asyncio.Task[Any]] = set()

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
                return await self._owned(self.inner.write(key, source, attributes), source)
        except TimeoutError as exc:
            if exc is source.raised or not limit.expired():
                raise
            raise clock.passed() from exc

    async def stat(self, key: str) -> ObjectStat | None:
        async with self._clock("stat", key).within("connect", "total"):
            return await self._owned(self.inner.stat(key))

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
            return await self._owned(self.inner.delete(key))

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        async with self._clock("copy to", key).within("total"):
            return await self._owned(self.inner.copy_from(source, source_key, key, attributes, promise))

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        async with self._clock("sweep", prefix).within("total"):
            return await self._owned(self.inner.sweep(older_than, prefix))

    async def health(self) -> None:
        async with self._clock("health", "").within("connect", "total"):
            await self._owned(self.inner.health())

    async def aclose(self) -> None:
        """Gives those that were left behind as long again, while the store is still open to them."""
        if self._left:
            await asyncio.wait(self._left, timeout=self._clean_up)
        await self.inner.aclose()

    async def _owned(self, call: Coroutine[Any, Any, T], source: _TimedSource | None = None) -> T:
        """What the call gives. It has a task of its own, so that one that was cancelled need not be waited for for ever."""
        task = asyncio.create_task(call)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await self._cleaned_up(task, source)
            raise
        return task.result()

    async def _cleaned_up(self, task: asyncio.Task[Any], source: _TimedSource | None) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._clean_up
        while not task.done() and (loop.time() < until or (source and source.awaited)):
            # One cancellation is under way; another one is no reason to wait less.
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=max(until - loop.time(), _NOT_MINE))
        if source:
            source.end()
        self._left.add(task)
        task.add_done_callback(self._seen)

    def _seen(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()

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
