"""A read cache on a local disk: what was read once is read from there again. Put around a backend by backends/guards/stack.py.

Every `open` asks the store for the object's etag first, so what is served is what the store has now. A miss is filled whole
before its first byte is handed out: readers who want the same object meanwhile wait, and the store is read once. A hit is
read through before it is handed out, so a damaged file is a miss.

The budget holds for everything in the directory's slot: objects, those that are being filled, and those that were dropped
but are still being read. What does not fit is read from the store and not kept, and so is everything while the disk fails,
and everything of a store that tells no etags (a directory, for one).
"""

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field

from backends.base import CHUNK_SIZE, Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.errors import NotFound, PermissionDenied, StorageError, Unavailable
from backends.guards.cache_directory import CachedFile, CacheDirectory, Filling
from backends.wrapper import Wrapper

T = TypeVar("T")

_MOST = 100_000
"""Objects that are kept: each costs memory as well, and one without bytes nothing of the budget."""


class CacheOptions(BaseModel):
    """Where, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(
        description="Directory on a local disk; made if it is missing. Processes and targets may share one."
    )
    budget: int = Field(
        gt=0, description="Bytes the cache of this target may take, in each process that runs."
    )
    threads: int = Field(default=4, ge=1, le=64, description="Files that are read and written at once.")


@dataclass(slots=True, eq=False)
class _Entry:
    file: CachedFile
    users: int = 0
    removed: bool = False
    """Has no name any more; its bytes are free when its last user has closed it."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An entry in use, and a descriptor of it."""

    entry: _Entry
    descriptor: int


class ReadCache(Wrapper):
    """See the module's docstring. `stat` and `list` always ask the store."""

    def __init__(self, inner: StorageBackend, options: CacheOptions) -> None:
        """Use `connect`."""
        super().__init__(inner)
        self._budget = options.budget
        self._directory = CacheDirectory(options.directory)
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="read-cache")
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By the digest of the key, the longest unused first."""
        self._used = 0
        """Bytes on the disk, and those that a filling has been promised."""
        self._filling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def connect(cls, inner: StorageBackend, options: CacheOptions) -> Self:
        """Take a slot of the directory and what it still holds. Raises a `StorageError`; `inner` is left open then."""
        cache = cls(inner, options)
        try:
            for file in await cache._run(cache._directory.claim):
                cache._entries[file.key] = _Entry(file)
                cache._used += file.size
            await cache._make_room(0)
        except BaseException as exc:
            await cache._close()
            if isinstance(exc, OSError):
                raise _translate(exc, options.directory) from exc
            raise
        return cache

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        found = await self.inner.stat(key)
        if found is None:
            raise NotFound(f"{self.location}: no object {key!r}")
        held = await self._held(key, found)
        if held is None:
            async with self.inner.open(key) as chunks:
                yield chunks
            return
        try:
            async with aclosing(self._chunks(held, key)) as cached:
                yield cached
        finally:
            os.close(held.descriptor)
            self._let_go(held.entry)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        try:
            return await self.inner.write(key, chunks, attributes)
        finally:
            await self._drop(self._name(key))

    async def delete(self, key: str) -> bool:
        try:
            return await self.inner.delete(key)
        finally:
            await self._drop(self._name(key))

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        try:
            return await self.inner.copy_from(source, source_key, key, attributes, promise)
        finally:
            await self._drop(self._name(key))

    async def aclose(self) -> None:
        """The files stay for the next one."""
        await self.inner.aclose()
        await self._close()

    async def _close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        self._directory.release()

    def _name(self, key: str) -> str:
        """Tells the store as well: the next owner of the slot may be another target."""
        return _digest(f"{self.location}\0{key}")

    async def _held(self, key: str, found: ObjectStat) -> _Held | None:
        """The object as it is now, in use; None when it is to be read from the store."""
        if found.etag is None or found.size > self._budget:
            return None
        name, etag = self._name(key), _digest(found.etag)
        if held := await self._hit(name, etag, found.size):
            return held
        async with self._filling.setdefault(name, asyncio.Lock()):
            return await self._hit(name, etag, found.size) or await self._fill(name, etag, key, found)

    async def _hit(self, name: str, etag: str, size: int) -> _Held | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        if (entry.file.etag, entry.file.size) != (etag, size):
            await self._drop(name, entry)
            return None
        self._entries.move_to_end(name)
        entry.users += 1
        descriptor = None
        try:
            with suppress(OSError):
                descriptor = await self._run(partial(self._directory.open, entry.file), undo=_close)
        finally:
            if descriptor is None:
                self._let_go(entry)
        if descriptor is None:
            await self._drop(name, entry)
            return None
        return _Held(entry, descriptor)

    async def _fill(self, name: str, etag: str, key: str, found: ObjectStat) -> _Held | None:
        """None when there is no room, the disk fails, or the object changes meanwhile. Raises what the store raises."""
        if not await self._make_room(found.size):
            return None
        filling: Filling | None = None
        file: CachedFile | None = None
        try:
            filling = await self._run(self._directory.create, undo=self._directory.discard)
            if await self._filled(filling, key, found):
                commit = partial(self._directory.commit, filling, name, etag)
                file = await self._run(commit, undo=lambda file: self._directory.remove([file]))
        except OSError:
            pass
        finally:
            if file is None:
                self._used -= found.size
                if filling is not None:
                    with suppress(OSError):
                        await self._run(partial(self._directory.discard, filling))
        if filling is None or file is None:
            return None
        entry = self._entries[name] = _Entry(file, users=1)
        return _Held(entry, filling.descriptor)

    async def _filled(self, filling: Filling, key: str, found: ObjectStat) -> bool:
        """Whether it now holds the object that was found, which still is the one that the store has."""
        async with self.inner.open(key) as chunks:
            async for chunk in chunks:
                if filling.size + len(chunk) > found.size:
                    return False
                await self._run(partial(filling.write, chunk))
        now = await self.inner.stat(key)
        return filling.size == found.size and now is not None and now.etag == found.etag

    async def _make_room(self, size: int) -> bool:
        """Reserve `size` bytes, at the cost of what was unused longest. False when too much is in use."""
        victims: list[str] = []
        free = self._budget - self._used
        too_many = len(self._entries) + 1 - _MOST
        for name, entry in self._entries.items():
            if free >= size and len(victims) >= too_many:
                break
            if not entry.users:
                victims.append(name)
                free += entry.file.size
        if free < size:
            return False
        files = [self._entries.pop(name).file for name in victims]
        # At once, so that nobody else counts on these bytes; they are written after the removal.
        self._used += size - sum(file.size for file in files)
        try:
            if files:
                await self._run(partial(self._directory.remove, files))
        except BaseException as exc:
            self._used -= size
            if isinstance(exc, OSError):
                return False
            raise
        return True

    async def _drop(self, name: str, only: _Entry | None = None) -> None:
        """Forget the object, or, with `only`, that entry of it if it still is the one."""
        entry = self._entries.get(name)
        if entry is None or only not in {None, entry}:
            return
        del self._entries[name]
        try:
            with suppress(OSError):
                await self._run(partial(self._directory.remove, [entry.file]))
        finally:
            entry.removed = True
            if not entry.users:
                self._used -= entry.file.size

    def _let_go(self, entry: _Entry) -> None:
        entry.users -= 1
        if entry.removed and not entry.users:
            self._used -= entry.file.size

    async def _chunks(self, held: _Held, key: str) -> AsyncGenerator[bytes, None]:
        size = held.entry.file.size
        for start in range(0, size, CHUNK_SIZE):
            length = min(CHUNK_SIZE, size - start)
            try:
                chunk = await self._run(partial(os.pread, held.descriptor, length, start))
            except OSError as exc:
                raise Unavailable(
                    f"{self.location}{key}: the cached copy cannot be read: {exc.strerror}"
                ) from exc
            if len(chunk) != length:
                raise Unavailable(f"{self.location}{key}: the cached copy was cut short while it was read")
            yield chunk

    async def _run(self, job: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """What the job gives. A cancelled caller waits until the job is over, and its result is undone."""
        try:
            running = asyncio.get_running_loop().run_in_executor(self._pool, job)
        except RuntimeError as exc:
            raise Unavailable(f"the read cache of {self.location} is closed") from exc
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is None:
            return running.result()
        if running.exception() is None and undo is not None:
            undo(running.result())
        raise cancelled


def _translate(exc: OSError, directory: Path) -> StorageError:
    kind = PermissionDenied if isinstance(exc, PermissionError) else Unavailable
    return kind(
        f"read cache {directory}: {exc.strerror}; name a directory this process may write, or no cache"
    )


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _digest(text: str) -> str:
    """Of keys that cannot be used, too: they are only looked up."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
