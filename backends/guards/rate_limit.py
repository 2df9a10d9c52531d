"""So many requests and bytes a second, and no more. Put around a backend by backends/guards/stack.py.

Calls wait for their turn in the order they came, and a payload takes its turn anew for every few kilobytes, so a large
object holds up a small one for a moment only. Why not a library: docs/adr/0013-guards.md.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from pydantic import BaseModel, ConfigDict, Field

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.wrapper import Wrapper

TURN = 64 << 10
"""Bytes a payload may move before others have their turn."""


class RateLimitOptions(BaseModel):
    """Rates over all calls of this process to the target. Several workers share nothing: divide by their number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: float | None = Field(default=None, gt=0, description="Calls a second; unset: no limit.")
    bytes: float | None = Field(
        default=None, gt=0, description="Payload bytes a second, read and written together; unset: no limit."
    )
    burst: float = Field(
        default=1.0, ge=0, description="Seconds' worth of unused rate that may be spent at once."
    )


class Bucket:
    """A token bucket that runs into debt: whoever finds it in credit takes any amount, those after wait until it is paid."""

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`rate` is in units a second, `burst` in seconds. It begins with its whole burst unspent."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._paid_at = clock() - burst
        # First come, first served, and a cancelled waiter leaves the queue without having spent anything.
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Return once the bucket is out of debt, and charge `amount` to it."""
        async with self._turn:
            while (debt := self._paid_at - self._clock()) > 0:
                await self._sleep(debt)
            self._paid_at = max(self._paid_at, self._clock() - self._burst) + amount / self._rate


class RateLimitGuard(Wrapper):
    """One bucket of requests and one of bytes for all calls. A listing is one request, however many pages it has."""

    def __init__(
        self,
        inner: StorageBackend,
        options: RateLimitOptions,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` gives seconds, `sleep` takes them."""
        super().__init__(inner)
        self._requests = Bucket(options.requests, options.burst, clock, sleep) if options.requests else None
        self._bytes = Bucket(options.bytes, options.burst, clock, sleep) if options.bytes else None

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        await self._request()
        async with self.inner.open(key) as chunks, aclosing(self._limited(chunks)) as limited:
            yield limited

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        await self._request()
        async with aclosing(self._limited(chunks)) as limited:
            return await self.inner.write(key, limited, attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        await self._request()
        return await self.inner.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        await self._request()
        async for found in self.inner.list(prefix):
            yield found

    async def delete(self, key: str) -> bool:
        await self._request()
        return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """One request; the bytes do not pass here."""
        await self._request()
        return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        await self._request()
        return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        await self._request()
        await self.inner.health()

    async def _request(self) -> None:
        if self._requests:
            await self._requests.take(1)

    async def _limited(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            if self._bytes:
                for start in range(0, len(chunk), TURN):
                    await self._bytes.take(min(TURN, len(chunk) - start))
            yield chunk
