"""A backend whose store was unavailable when the process started: every call tries to connect it, until one succeeds.

Made by worker/bootstrap.py where other targets can be written meanwhile. Guards stand around it as around any other.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from backends.base import (
    Attributes,
    BackendAdapter,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
)
from backends.errors import StorageError, Unavailable

PAUSE = 5.0
"""Seconds after a failed attempt in which calls get its error, and the store its peace."""

_WRITE_BUFFER = 64 << 20
"""Of an adapter that cannot be asked yet: as much as the largest of them holds by default."""


class DeferredBackend:
    """The port, before and after the store can be reached.

    Copies inside the store are for targets that were there at the start: this one's `features` offer none.
    """

    def __init__(
        self,
        adapter: type[BackendAdapter],
        options: BackendOptions,
        reason: Unavailable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reason` is what the first attempt raised; `clock` gives seconds."""
        self._adapter = adapter
        self._options = options
        self._clock = clock
        self._inner: StorageBackend | None = None
        self._attempt: asyncio.Task[StorageBackend] | None = None
        self._reason: StorageError = reason
        self._not_before = clock() + PAUSE
        self._closed = False
        self.features: Features = replace(adapter.features_of(options), server_copy=False)
        self.location: str = adapter.location_of(options)

    @property
    def write_buffer(self) -> int:
        return _WRITE_BUFFER if self._inner is None else self._inner.write_buffer

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        inner = await self._connected()
        async with inner.open(key) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        return await (await self._connected()).write(key, chunks, attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        return await (await self._connected()).stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        inner = await self._connected()
        async for item in inner.list(prefix):
            yield item

    async def delete(self, key: str) -> bool:
        return await (await self._connected()).delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        inner = await self._connected()
        return await inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        return await (await self._connected()).sweep(older_than, prefix)

    async def health(self) -> None:
        await (await self._connected()).health()

    async def aclose(self) -> None:
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._inner is not None:
            await self._inner.aclose()

    async def _connected(self) -> StorageBackend:
        """The backend. Raises what connecting to it raised, `PAUSE` seconds ago at most."""
        if self._inner is not None:
            return self._inner
        if self._attempt is None:
            if self._closed:
                raise Unavailable(f"{self.location} is closed")
            if self._clock() < self._not_before:
                raise type(self._reason)(str(self._reason))
            self._attempt = asyncio.create_task(self._connect(), name=f"connect-{self.location}")
            self._attempt.add_done_callback(_seen)
        # Whoever is cancelled leaves the attempt to the others that wait for it.
        return await asyncio.shield(self._attempt)

    async def _connect(self) -> StorageBackend:
        try:
            self._inner = await self._adapter.connect(self._options)
        except StorageError as exc:
            self._reason, self._not_before = exc, self._clock() + PAUSE
            raise
        finally:
            self._attempt = None
        return self._inner


def _seen(attempt: asyncio.Task[StorageBackend]) -> None:
    """Its error is kept; perhaps nobody waited for it to the end."""
    if not attempt.cancelled():
        attempt.exception()
