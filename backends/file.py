"""The backend for a directory: staging on a shared disk, targets on a mounted volume. Called through the port only.

A write is a file without a name (or with a temporary one in the final directory), fsync, `link` to the final name, and an
fsync of the directory, which concurrent writers share. `link` never replaces, so it is what makes a write create-only; a
file system without hard links (FAT, some FUSE and SMB mounts) is refused with `Unsupported` by `health` and by the first
write.

How this adapter differs:

- No symbolic link below the root is followed, neither a directory nor a leaf: `InvalidKey`. (The root itself may be one.)
- Only regular files are objects. Where `a` is an object, writing `a/b` is `InvalidKey`, and so is writing `a` where `a/b`
  is one; reading such a key is `NotFound`.
- Keys whose last segment looks like a temporary file of ours (`.transload-….part`) are `InvalidKey`.
- A cancellation that arrives after `link` finds the object complete and leaves it: another writer may already have
  been told that it is there.
- `delete` leaves empty directories, because a concurrent write may be about to use them.
- Where the file system knows files without a name (O_TMPFILE), a process killed in mid-write leaves nothing. Elsewhere it
  leaves its temporary file; `sweep` removes those.
"""

import asyncio
import errno
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Self, TypeVar
from urllib.parse import quote

from pydantic import Field

from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
)
from backends.errors import InvalidKey, NotFound, PermissionDenied, StorageError, Unavailable, Unsupported
from backends.file_copy import Copy
from backends.file_small import SmallWrites
from backends.file_transfer import Reader, Upload
from backends.file_tree import Tree, is_temporary
from backends.wrapper import bare

T = TypeVar("T")

_BATCH = 512

_ERRORS: Mapping[int, type[StorageError]] = MappingProxyType(
    {
        errno.ENOENT: NotFound,
        errno.EACCES: PermissionDenied,
        errno.EPERM: PermissionDenied,
        errno.ENAMETOOLONG: InvalidKey,
        errno.ENOTDIR: InvalidKey,
        errno.EISDIR: InvalidKey,
        errno.ELOOP: InvalidKey,
        errno.EILSEQ: InvalidKey,
    }
)


class FileOptions(BackendOptions):
    """A directory, and how many of its files are worked on at once."""

    root: Path = Field(description="Directory every key hangs under. Created if it is missing.")
    threads: int = Field(default=16, ge=1, le=1024, description="Reads and writes in progress at once.")


def _translate(exc: OSError, where: str, missing: type[StorageError]) -> StorageError:
    """What an OS error means here. Whatever is not named (ENOSPC, EDQUOT, EIO, EROFS, EMFILE, …) may pass."""
    kind = missing if exc.errno == errno.ENOENT else _ERRORS.get(exc.errno or 0, Unavailable)
    return kind(f"{where}: {exc.strerror or exc}")


class FileBackend:
    """Objects as files below one directory. See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = FileOptions

    def __init__(self, root: Path, threads: int) -> None:
        """`root` is absolute. Use `connect`, which creates it."""
        self._tree = Tree(root)
        self._location = _location(root)
        self._ended: deque[asyncio.Future[None]] = deque()
        self._waking = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="file-backend")
        self._small = SmallWrites(self._tree, self._pool)

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Create the root if it is missing. Raises `NotFound` when something else lies there."""
        if not isinstance(options, FileOptions):
            raise TypeError(f"FileBackend takes FileOptions, not {type(options).__name__}")
        backend = cls(options.root.absolute(), options.threads)
        try:
            await backend._run(backend._tree.prepare, str(options.root))
        except InvalidKey as exc:
            await backend.aclose()
            raise NotFound(f"{options.root} is not a directory; remove it or choose another root") from exc
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`file://`, the absolute root percent-quoted, `/`."""
        if not isinstance(options, FileOptions):
            raise TypeError(f"FileBackend takes FileOptions, not {type(options).__name__}")
        return _location(options.root.absolute())

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """The minimum, and copies."""
        return Features(attributes=False, server_copy=True)

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return Features(attributes=False, server_copy=True)

    @property
    def location(self) -> str:
        """`file://`, the absolute root percent-quoted, `/`."""
        return self._location

    @property
    def write_buffer(self) -> int:
        """What is gathered and what is written meanwhile, each less than two chunks, and the latter joined."""
        return 6 * CHUNK_SIZE

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """As the port says. An object of one chunk is opened, read and closed in one hop to a thread."""
        reader = Reader(self._tree, self._check(key))
        try:
            first = await self._run(reader.open, key)
            async with aclosing(self._chunks(reader, key, first)) as chunks:
                yield chunks
        finally:
            reader.close()

    async def _chunks(self, reader: Reader, key: str, chunk: bytes) -> AsyncGenerator[bytes, None]:
        while chunk:
            yield chunk
            chunk = await self._run(reader.read, key) if reader.remaining else b""

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - a directory keeps no attributes
        """As the port says. Up to `CHUNK_SIZE` bytes and one chunk are stored together with other small writes; beyond, the
        next chunks are pulled while the last ones are written.
        """
        upload = Upload(self._tree, self._check(key))
        gathered: list[bytes] = []
        size = 0
        writing: Future[None] | None = None
        try:
            async for chunk in chunks:
                if size >= CHUNK_SIZE:
                    if writing:
                        await self._result(writing, key, Unavailable)
                    writing = self._submit(partial(upload.append, gathered))
                    gathered, size = [], 0
                gathered.append(chunk)
                size += len(chunk)
            if writing:
                await self._result(writing, key, Unavailable)
                writing = None
            finishing = self._finish(upload, gathered)
            return await self._result(finishing, key, Unavailable, stop=upload.stop)
        except BaseException:
            if writing:
                await _finished(writing)
            if upload.started:
                await _finished(self._submit(upload.discard))
            raise

    def _finish(self, upload: Upload, pieces: Sequence[bytes]) -> Future[Receipt]:
        if upload.started:
            return self._submit(partial(upload.finish, pieces))
        try:
            return self._small.submit(upload, pieces)
        except RuntimeError as exc:
            raise Unavailable(f"{self._location} is closed") from exc

    async def stat(self, key: str) -> ObjectStat | None:
        """Size only."""
        return await self._run(partial(self._tree.status, self._check(key)), key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """As the port says; one hop per 512 files."""
        files = self._tree.files(prefix)
        while batch := await self._run(partial(_take, files), prefix):
            for key, status in batch:
                if not is_temporary(key.rpartition("/")[2]):
                    yield ObjectStat(key=key, size=status.st_size)

    async def delete(self, key: str) -> bool:
        """As the port says; the removal is durable."""
        return await self._run(partial(self._tree.remove, self._check(key)), key)

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - a directory keeps no attributes
        promise: Promise,
    ) -> Receipt:
        """From any directory on the same file system, as far as that can copy: by sharing blocks, or in the kernel."""
        upload = Upload(self._tree, self._check(key))
        origin, origin_key = bare(source, source_key)
        if not isinstance(origin, FileBackend):
            raise Unsupported(
                f"{self._location} cannot copy {source.location}{source_key} to {key!r} by itself"
            )
        copy = Copy(origin._tree, self._check(origin_key), upload, promise)  # noqa: SLF001 - one of its own kind
        try:
            return await self._result(self._submit(copy.run), key, Unavailable, stop=upload.stop)
        except BaseException:
            if upload.started:
                await _finished(self._submit(upload.discard))
            raise

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """The temporary files last written at least `older_than` seconds ago. Looks at every file under `prefix`."""
        outcomes = self._tree.swept(time.time() - older_than, prefix)
        removed = 0
        while batch := await self._run(partial(_take, outcomes), "sweep"):
            removed += sum(batch)
        return removed

    async def health(self) -> None:
        """The root is there and a file can be created, linked and removed in it."""
        await self._result(self._submit(self._tree.probe), "health", Unavailable)

    async def aclose(self) -> None:
        """Let the threads finish what they do, and end them."""
        await asyncio.to_thread(self._pool.shutdown)

    def _check(self, key: str) -> str:
        if is_temporary(check_key(key).rpartition("/")[2]):
            raise InvalidKey(f"{self._location}: {key!a} is a name of temporary files")
        return key

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        try:
            return self._pool.submit(job)
        except RuntimeError as exc:
            raise Unavailable(f"{self._location} is closed") from exc

    async def _run(self, job: Callable[[], T], what: str) -> T:
        return await self._result(self._submit(job), what, NotFound)

    async def _result(
        self,
        job: Future[T],
        what: str,
        missing: type[StorageError],
        stop: Callable[[], None] | None = None,
    ) -> T:
        """What the job gives. A cancelled caller waits until the job is over, so that nobody cleans up beside it."""
        try:
            await self._over(job)
            return job.result()
        except asyncio.CancelledError:
            if stop:
                stop()
            if not job.cancel():
                await _finished(job)
            raise
        except OSError as exc:
            raise _translate(exc, f"{self._location}: {what!r}", missing) from exc

    def _over(self, job: Future[T]) -> asyncio.Future[None]:
        """Done when the job is. Jobs that end close together wake the loop once: a wake-up costs a thread dearly."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def ended(_: Future[T]) -> None:
            self._ended.append(over)
            if not self._waking:
                self._waking = True
                loop.call_soon_threadsafe(self._wake)

        job.add_done_callback(ended)
        return over

    def _wake(self) -> None:
        # First, so that a job ending from here on either is seen below or wakes the loop again.
        self._waking = False
        while self._ended:
            over = self._ended.popleft()
            if not over.done():
                over.set_result(None)


def _take(items: Iterator[T]) -> list[T]:
    return [*itertools.islice(items, _BATCH)]


async def _finished(job: Future[T]) -> None:
    """Return when the job is over, however it ended and however often the caller is cancelled meanwhile."""
    over = asyncio.get_running_loop().create_future()
    loop = over.get_loop()
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set_result, None))
    while not over.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([over])


def _location(root: Path) -> str:
    return f"file://{quote(os.fsencode(root).rstrip(b'/'))}/"
