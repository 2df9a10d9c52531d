"""What every wrapper of a backend shares: it has the same port and hands on what it does not change.

Wrappers (measured, and the guards) inherit from `Wrapper` and override the calls they are about. `bare` finds the adapter
below them, for a copy inside the store.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from backends.base import Attributes, Features, ObjectStat, Promise, Receipt, StorageBackend


class Wrapper:
    """The backend it is given, unchanged."""

    def __init__(self, inner: StorageBackend) -> None:
        """`inner` is closed by this one's `aclose`."""
        self.inner = inner

    def inner_key(self, key: str) -> str:
        """What the wrapped backend calls the object."""
        return key

    @property
    def features(self) -> Features:
        return self.inner.features

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def write_buffer(self) -> int:
        return self.inner.write_buffer

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self.inner.open(key)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        return await self.inner.write(key, chunks, attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        return await self.inner.stat(key)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        return self.inner.list(prefix)

    async def delete(self, key: str) -> bool:
        return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        await self.inner.health()

    async def aclose(self) -> None:
        await self.inner.aclose()


def bare(backend: StorageBackend, key: str) -> tuple[StorageBackend, str]:
    """The adapter below all wrappers, and what it calls the object."""
    while isinstance(backend, Wrapper):
        key = backend.inner_key(key)
        backend = backend.inner
    return backend, key
