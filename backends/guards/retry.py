"""Calls that can be replayed are tried again, with jitter. Put around a backend by backends/guards/stack.py.

Replayed are `stat`, `delete`, `health`, `sweep`, the beginning of a read until its first bytes are there, and the first page
of a listing. A write is not: its source can be read once. Nor is a copy, which proves itself like a write. Redelivery of the
message is the level that repeats both, from the start. Nor is a read that broke later: what was handed out cannot be taken
back, and a spliced stream may be of two objects.

Only `Unavailable` is worth another try at once. `NotFound`, `PermissionDenied` and `IntegrityError` are retryable too, but
not within seconds. An open circuit is left alone.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from pydantic import BaseModel, ConfigDict, Field
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from backends.base import ObjectStat, StorageBackend
from backends.errors import CircuitOpen, Unavailable
from backends.wrapper import Wrapper


class RetryOptions(BaseModel):
    """How often, and how far apart. The pause before try n+1 is a random part of `base` * 2^(n-1), capped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(default=3, ge=1, le=20, description="Tries of one call, the first included.")
    base: float = Field(default=0.2, ge=0, description="Longest pause after the first try, in seconds.")
    cap: float = Field(default=5.0, ge=0, description="Longest pause of all, in seconds.")
    deadline: float = Field(
        default=30.0,
        gt=0,
        description="Seconds after the first try began within which the last one must begin. A try that hangs is for `timeouts`.",
    )


class RetryGuard(Wrapper):
    """See the module's docstring. After a lost answer a repeated `delete` may say False of an object that it removed."""

    def __init__(
        self,
        inner: StorageBackend,
        options: RetryOptions,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`sleep` takes seconds."""
        super().__init__(inner)
        self._options = options
        self._sleep = sleep

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The first chunk is read here, so that a store which accepts and then falls silent is tried again as well."""
        async with AsyncExitStack() as stack:
            begun: tuple[bytes | None, AsyncIterator[bytes]]
            begun = await self._retrying()(self._begin, stack, key)
            async with aclosing(_joined(*begun)) as chunks:
                yield chunks

    async def _begin(self, stack: AsyncExitStack, key: str) -> tuple[bytes | None, AsyncIterator[bytes]]:
        async with AsyncExitStack() as attempt:
            chunks = aiter(await attempt.enter_async_context(self.inner.open(key)))
            first = await anext(chunks, None)
            await stack.enter_async_context(attempt.pop_all())
        return first, chunks

    async def stat(self, key: str) -> ObjectStat | None:
        return await self._retrying()(self.inner.stat, key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        page: tuple[ObjectStat | None, AsyncIterator[ObjectStat]]
        page = await self._retrying()(self._first_page, prefix)
        first, rest = page
        if first is None:
            return
        yield first
        async for found in rest:
            yield found

    async def _first_page(self, prefix: str) -> tuple[ObjectStat | None, AsyncIterator[ObjectStat]]:
        found = aiter(self.inner.list(prefix))
        return await anext(found, None), found

    async def delete(self, key: str) -> bool:
        return await self._retrying()(self.inner.delete, key)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Counts what the last try removed."""
        return await self._retrying()(self.inner.sweep, older_than, prefix)

    async def health(self) -> None:
        await self._retrying()(self.inner.health)

    def _retrying(self) -> AsyncRetrying:
        options = self._options
        return AsyncRetrying(
            stop=stop_after_attempt(options.attempts) | stop_before_delay(options.deadline),
            wait=wait_random_exponential(multiplier=options.base, max=options.cap),
            retry=retry_if_exception(_worth_another_try),
            sleep=self._sleep,
            reraise=True,
        )


def _worth_another_try(exc: BaseException) -> bool:
    return isinstance(exc, Unavailable) and not isinstance(exc, CircuitOpen)


async def _joined(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    if first is None:
        return
    yield first
    async for chunk in rest:
        yield chunk
