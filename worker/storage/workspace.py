"""A directory for payloads on their way, of one open storage: nobody else's, and gone when its process is.

Used by worker/storage/parts.py. What a dead process left is removed by the next one that opens a storage with the same state: a
payload in there belongs to an `add_resource` that never returned. Who is alive, the locks of the kernel tell (flock), which end
with their process.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from backends.failpoints import failpoint
from backends.file import FileBackend, FileOptions

_LOCK = ".lock"


@asynccontextmanager
async def workspace(folder: Path) -> AsyncGenerator[Path, None]:
    """A new path below `folder`, for a directory that is removed in the end.

    Raises a `StorageError` when there can be no such folder.
    """
    # It makes the folder, and every new entry on the way there durable: the ledger will lie beside it.
    await (await FileBackend.connect(FileOptions(root=folder, threads=1))).aclose()
    path, lock = await asyncio.to_thread(_take, folder)
    try:
        yield path
    finally:
        await asyncio.to_thread(_remove, path, lock)


def _take(folder: Path) -> tuple[Path, int]:
    with _alone(folder):
        for file in sorted(folder.glob(f"?*{_LOCK}")):
            try:
                lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                # Its process, which waits for nobody, is done with it.
                continue
            if _locked(lock):
                _remove(file.with_suffix(""), lock)
            else:
                os.close(lock)
        path = folder / secrets.token_hex(8)
        failpoint("workspace.lock.before")
        lock = os.open(path.with_suffix(_LOCK), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        failpoint("workspace.lock.after")
        return path, lock


def _remove(path: Path, lock: int) -> None:
    """What is left of a directory that nobody uses; last its lock, so that a crash leaves it to the next one."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        failpoint("workspace.unlock.before")
        path.with_suffix(_LOCK).unlink(missing_ok=True)
        failpoint("workspace.unlock.after")
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: between making a lock and holding it, it would look like a dead one's."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
