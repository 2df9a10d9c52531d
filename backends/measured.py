"""A wrapper that tells an observer of every call: what metrics are made of. Put around each backend by worker/bootstrap.py."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.errors import StorageError
from backends.wrapper import Wrapper


@dataclass(slots=True)
class Observation:
    """One finished call. `outcome` is `ok` or the error's class, `seconds` lasts until the last byte, sizes are bytes.

    Of errors of a store the class is one of backends/errors.py. `key` is that of the object where the call is about one.
    """

    op: str
    outcome: str = "ok"
    seconds: float = 0.0
    size: int = 0
    key: str = ""


class MeasuredBackend(Wrapper):
    """The backend it is given, observed. Changes neither results nor errors."""

    def __init__(self, backend: StorageBackend, observe: Callable[[Observation], None]) -> None:
        """`observe` is called after each call, on the event loop."""
        super().__init__(backend)
        self._observe = observe

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """What the reader's user raises is no failure of the read."""
        seen = Observation("open", key=key)
        started = time.monotonic()
        try:
            async with AsyncExitStack() as stack:
                with _outcome(seen):
                    chunks = await stack.enter_async_context(self.inner.open(key))
                yield _counted(chunks, seen)
        finally:
            seen.seconds = time.monotonic() - started
            self._observe(seen)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        with self._observed("write", key) as seen:
            receipt = await self.inner.write(key, chunks, attributes)
            seen.size = receipt.size
            return receipt

    async def stat(self, key: str) -> ObjectStat | None:
        with self._observed("stat", key):
            return await self.inner.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        with self._observed("list"):
            async for found in self.inner.list(prefix):
                yield found

    async def delete(self, key: str) -> bool:
        with self._observed("delete", key):
            return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        with self._observed("copy_from", key) as seen:
            receipt = await self.inner.copy_from(source, source_key, key, attributes, promise)
            seen.size = receipt.size
            return receipt

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        with self._observed("sweep"):
            return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        with self._observed("health"):
            await self.inner.health()

    @contextmanager
    def _observed(self, op: str, key: str = "") -> Iterator[Observation]:
        seen = Observation(op, key=key)
        started = time.monotonic()
        try:
            with _outcome(seen):
                yield seen
        finally:
            seen.seconds = time.monotonic() - started
            self._observe(seen)


@contextmanager
def _outcome(seen: Observation) -> Iterator[None]:
    try:
        yield
    except GeneratorExit:
        # A listing that is left early has not failed.
        raise
    except BaseException as exc:
        seen.outcome = _kind(type(exc)).__name__
        raise


def _kind(error: type[BaseException]) -> type[BaseException]:
    """Of an error of this house the class that everybody knows: an adapter may have made one of its own of it."""
    known = (each for each in error.__mro__ if each.__module__ == StorageError.__module__)
    return next(known, error)


async def _counted(chunks: AsyncIterator[bytes], seen: Observation) -> AsyncIterator[bytes]:
    reading = aiter(chunks)
    while True:
        with _outcome(seen):
            chunk = await anext(reading, None)
        if chunk is None:
            return
        seen.size += len(chunk)
        yield chunk
