"""One SQLite file: a connection, the one thread that owns it, and whole transactions on it.

The embedded queue and the embedded publisher call it. They know SQL; what SQLite wants of its users is known here.
"""

import asyncio
import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from backends.failpoints import failpoint

Result = TypeVar("Result")

OLDEST = (3, 35)
"""RETURNING, UPSERT without a target and the JSON functions are all there from 3.35 on."""

CHECK_LIMIT = 64 << 20
"""Bytes up to which a file's structure is checked when it is opened: a fraction of a second."""


class DatabaseError(Exception):
    """The root; every message names the file and says what to do.

    DatabaseError
    ├── DatabaseBusy       another process kept the write lock longer than we wait
    ├── DatabaseFull       the disk is full
    ├── DatabaseFailing    the file system reports errors, or the file cannot be opened now
    ├── DatabaseDenied     the file or its directory may not be written
    ├── DatabaseDamaged    not a database, or a torn one
    └── DatabaseMismatch   another program's file, a newer schema, or a SQLite library too old
    """


class DatabaseBusy(DatabaseError):
    """Another process kept the write lock longer than we wait."""


class DatabaseFull(DatabaseError):
    """The disk is full."""


class DatabaseFailing(DatabaseError):
    """The file system reports errors, or the file cannot be opened now."""


class DatabaseDenied(DatabaseError):
    """The file or its directory may not be written."""


class DatabaseDamaged(DatabaseError):
    """Not a database, or a torn one."""


class DatabaseMismatch(DatabaseError):
    """Another program's file, a newer schema, or a SQLite library too old."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds. `versions[n]` are the statements that lead from `PRAGMA user_version` n to n + 1."""

    content: str
    """For messages: `a queue`."""
    application_id: int
    """Kept in the file's header, so that no adapter writes into another's file."""
    versions: tuple[tuple[str, ...], ...]


class Database:
    """Transactions on one file, one after the other. `open` makes it; whoever opened it calls `aclose`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, executor: ThreadPoolExecutor) -> None:
        """`executor` has exactly one thread, the only one that uses `connection`."""
        self._path = path
        self._connection = connection
        self._executor = executor
        self._durable = True
        self._closed = False

    @classmethod
    async def open(cls, path: Path, schema: Schema, *, busy_timeout: float = 5.0) -> Self:
        """Open the file, or create it (mode 0600, parent directories included) and bring its schema up to date.

        `busy_timeout` is how many seconds a transaction waits for another process's. Raises a `DatabaseError`.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"sqlite {path.name}")
        opening = executor.submit(_open, path, schema, busy_timeout)
        try:
            return cls(path, await asyncio.wrap_future(opening), executor)
        except BaseException:
            opening.add_done_callback(_close_unused)
            executor.shutdown(wait=False)
            raise

    async def run(self, work: Callable[[sqlite3.Connection], Result], *, durable: bool = True) -> Result:
        """Run `work` on the connection's thread as one transaction; it commits unless `work` raises.

        With `durable=False` a power failure may undo the transaction together with all later ones, never others and
        never half of one; a killed process undoes nothing (https://www.sqlite.org/pragma.html#pragma_synchronous).

        A cancelled caller does not know whether the transaction took place. Raises a `DatabaseError`.
        """
        if self._closed:
            raise DatabaseFailing(f"{self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._transact, work, durable)

    async def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work`, which changes nothing, over one snapshot of the file; it waits for no other process's write.

        Raises a `DatabaseError`.
        """
        if self._closed:
            raise DatabaseFailing(f"{self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._look, work)

    async def aclose(self) -> None:
        """Finish what is under way, close the file and end the thread. Calling it twice is harmless."""
        if self._closed:
            return
        self._closed = True
        closing = self._executor.submit(self._connection.close)
        self._executor.shutdown(wait=False)
        # A cancelled caller must not take the close out of the executor's queue.
        await asyncio.shield(asyncio.wrap_future(closing))

    def _look(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            self._connection.execute("BEGIN")
            try:
                return work(self._connection)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as exc:
            raise _translate(exc, self._path) from exc

    def _transact(self, work: Callable[[sqlite3.Connection], Result], durable: bool) -> Result:
        try:
            if durable is not self._durable:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._connection.execute("BEGIN IMMEDIATE")
            return _finish(self._connection, work)
        except (sqlite3.Error, OSError) as exc:
            raise _translate(exc, self._path) from exc


def _finish(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Result]) -> Result:
    try:
        result = work(connection)
        failpoint("sqlite.commit.before")
        connection.execute("COMMIT")
        failpoint("sqlite.commit.after")
    except BaseException:
        # Some errors have rolled back already; one while rolling back must not hide the first.
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise
    return result


def _open(path: Path, schema: Schema, busy_timeout: float) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST:
        raise DatabaseMismatch(
            f"{path}: this Python uses SQLite {sqlite3.sqlite_version}; {'.'.join(map(str, OLDEST))} or newer is needed. "
            "Use a newer Python build"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that turn a new file to WAL at once get SQLITE_BUSY without any waiting: one after the other.
        with _alone(path.parent):
            return _connect(path, schema, busy_timeout)
    except (sqlite3.Error, OSError) as exc:
        raise _translate(exc, path) from exc


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; the kernel drops it when the process dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _connect(path: Path, schema: Schema, busy_timeout: float) -> sqlite3.Connection:
    # Only a file that is not there yet is touched here: closing a descriptor of one that is in use would drop the
    # locks of this process's other connections (https://www.sqlite.org/howtocorrupt.html, 2.2).
    with suppress(FileExistsError):
        failpoint("sqlite.create.before")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        failpoint("sqlite.create.after")
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _check(connection, path)
        _migrate(connection, path, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size <= CHECK_LIMIT:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(path, verdict)


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    def work(connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != schema.application_id and (application or tables):
            raise DatabaseMismatch(f"{path} does not hold {schema.content}; give another path")
        if version > len(schema.versions):
            raise DatabaseMismatch(
                f"{path} was written by a newer release (schema {version}, known here: {len(schema.versions)}); "
                "upgrade, or give another path"
            )
        if version == len(schema.versions):
            return
        for statements in schema.versions[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.application_id}")
        connection.execute(f"PRAGMA user_version = {len(schema.versions)}")

    connection.execute("BEGIN IMMEDIATE")
    _finish(connection, work)


def _close_unused(opening: "Future[sqlite3.Connection]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _damaged(path: Path, detail: object) -> DatabaseDamaged:
    return DatabaseDamaged(
        f"{path} is damaged or not a database ({detail}). Stop every process that uses it, keep a copy of it with its "
        f"-wal file, and restore a backup, or save what can be read with: sqlite3 {path} .recover"
    )


_NOT_ALLOWED = frozenset({sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH})
_NOT_NOW = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL}
)


def _translate(exc: sqlite3.Error | OSError, path: Path) -> DatabaseError:
    """SQLite's primary result code (https://www.sqlite.org/rescode.html), or the error number, as one of ours."""
    if isinstance(exc, OSError):
        return _translate_os(exc, path)
    code = (getattr(exc, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF
    result = DatabaseError(f"{path}: {exc}")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        result = DatabaseBusy(
            f"{path}: another process kept it locked ({exc}); it may be working hard, or hang"
        )
    elif code == sqlite3.SQLITE_FULL:
        result = DatabaseFull(f"{path}: the disk is full; free some space")
    elif code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        result = _damaged(path, exc)
    elif code in _NOT_ALLOWED:
        result = DatabaseDenied(
            f"{path} may not be written ({exc}); look at its owner, its mode and its file system"
        )
    elif code in _NOT_NOW:
        result = DatabaseFailing(f"{path}: {exc}; look at the disk, the directory and the open file limit")
    return result


def _translate_os(exc: OSError, path: Path) -> DatabaseError:
    if exc.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return DatabaseDenied(f"{path} may not be created here ({exc.strerror}); give another path")
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DatabaseFull(f"{path}: {exc.strerror}; free some space")
    return DatabaseFailing(f"{path} cannot be opened: {exc.strerror}")
