"""The embedded ledger database: one SQLite file. Opened by worker/ledger/database.py."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerRefused, LedgerUnavailable
from worker.sqlite import CHECK_LIMIT

Result = TypeVar("Result")

_BUSY_SECONDS = 30
_CORRUPT = ("malformed", "not a database", "file is encrypted")


class SqliteDatabase:
    """One file; one thread that writes and one that reads, as SQLite in WAL mode has it: one hop a transaction."""

    def __init__(self, engine: Engine) -> None:
        """Takes over the engine."""
        self._engine = engine
        self._reading = engine.execution_options(read_only=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ledger-read")

    @property
    def url(self) -> URL:
        """As the setting spells it, without the driver."""
        return self._engine.url.set(drivername="sqlite")

    @property
    def dialect(self) -> str:
        return "sqlite"

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        def transaction() -> Result:
            with self._reading.connect() as conn:
                return work(conn)

        return await self._run(self._reader, transaction)

    async def write(self, work: Callable[[Connection], Result], rows: int = 0) -> Result:  # noqa: ARG002 - nothing ends it here
        def transaction() -> Result:
            with self._engine.begin() as conn:
                return work(conn)

        return await self._run(self._writer, transaction)

    async def exclusively(self, work: Callable[[Connection], Result]) -> Result:
        """Every write transaction is alone."""
        return await self.write(work)

    async def prepare(self) -> None:
        """Make the file and its folder. It holds URLs and what fetchers said of them: for its owner only."""
        with translated(self.url):
            await asyncio.to_thread(_make_file, Path(self.url.database or ""))

    async def check(self) -> None:
        """Read every page of a file up to `CHECK_LIMIT`; a larger one is trusted until it is read."""

        def quick_check(conn: Connection) -> str:
            size = Path(self.url.database or "").stat().st_size
            if size > CHECK_LIMIT:
                return "ok"
            return str(conn.execute(text("PRAGMA quick_check(1)")).scalar_one())

        if (verdict := await self.read(quick_check)) != "ok":
            raise _corrupt(self.url, verdict)

    def notify(self, conn: Connection) -> None:
        """Nobody is told: other processes on this machine poll."""

    async def watch(self, wake: Callable[[], None]) -> None:  # noqa: ARG002 - the port's name
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        for pool in (self._writer, self._reader):
            await asyncio.to_thread(pool.shutdown)
        self._engine.dispose()

    async def _run(self, pool: ThreadPoolExecutor, transaction: Callable[[], Result]) -> Result:
        try:
            running = asyncio.get_running_loop().run_in_executor(pool, transaction)
        except RuntimeError as exc:
            raise LedgerUnavailable(f"ledger {self.url.render_as_string()} is closed") from exc
        with translated(self.url):
            return await running


def open_sqlite(url: URL) -> SqliteDatabase:
    """The database in the file of a `sqlite:///path` URL. Nothing is opened yet."""
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        pool_size=2,
        max_overflow=0,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )
    _prepare(engine)
    return SqliteDatabase(engine)


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Turn what the driver raises into the ledger's own errors."""
    try:
        yield
    except DBAPIError as exc:
        raise _translate(exc, url) from exc
    except (StatementError, ArithmeticError, TypeError, ValueError, RecursionError) as exc:
        # Raised before the database was asked: a value it has no type for.
        reason = exc.orig if isinstance(exc, StatementError) else exc
        raise LedgerRefused(f"ledger {url.render_as_string()}: {reason}") from exc
    except (SQLAlchemyError, OSError) as exc:
        raise LedgerUnavailable(f"ledger {url.render_as_string()}: {exc}") from exc


def _translate(exc: DBAPIError, url: URL) -> LedgerError:
    reason = str(exc.orig)
    where = f"ledger {url.render_as_string()}"
    if any(sign in reason for sign in _CORRUPT):
        return _corrupt(url, reason)
    if "unable to open database file" in reason:
        return LedgerUnavailable(f"{where}: {reason}; does its folder exist, and may this user write there?")
    if type(exc.orig).__name__ in {"OperationalError", "InterfaceError"} or exc.connection_invalidated:
        return LedgerUnavailable(f"{where}: {reason}")
    return LedgerRefused(f"{where}: {reason}")


def _corrupt(url: URL, reason: str) -> LedgerCorrupt:
    return LedgerCorrupt(
        f"ledger {url.render_as_string()} is damaged ({reason}); restore it from a backup, do not delete it: it holds completions"
    )


def _make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)


def _prepare(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver's own idea of when to BEGIN would start write transactions as readers and let them fail later.
        connection.isolation_level = None
        cursor = connection.cursor()
        # FULL: a commit is on disk when it returns, in WAL mode too (https://www.sqlite.org/pragma.html#pragma_synchronous).
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        read_only = conn.get_execution_options().get("read_only", False)
        conn.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
