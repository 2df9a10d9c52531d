"""Opens the ledger's database: transactions on it, schema check and migration, driver errors to `LedgerError`.

Called by worker/bootstrap.py and `transload migrate`; worker/ledger/sql.py runs its transactions here.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError, StatementError

from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerRefused, LedgerUnavailable, SchemaMismatch
from worker.ledger.schema import HEAD
from worker.sqlite import CHECK_LIMIT, OLDEST

Result = TypeVar("Result")

_SQLITE_BUSY_SECONDS = 30
_CORRUPT = ("malformed", "not a database", "file is encrypted")


class Database(Protocol):
    """Runs whole transactions. `work` is plain blocking code: it sees one connection and one transaction, already begun."""

    @property
    def url(self) -> URL:
        """Where it is; rendered without its password."""
        ...

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        ...

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """A transaction that changes nothing. Raises `LedgerError`."""
        ...

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """A transaction, committed when this returns. A cancelled caller leaves it to finish: unknown, never half done.

        Raises `LedgerError`; nothing was changed then, unless the connection broke during the commit.
        """
        ...

    def notify(self, conn: Connection) -> None:
        """Within a transaction: tell whoever watches that a completion is due once it commits."""
        ...

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another connection notified, and after each reconnect. Runs until cancelled."""
        ...

    async def check(self) -> None:
        """Return when the database is sound, as far as that can be told quickly. Raises `LedgerCorrupt`."""
        ...

    async def aclose(self) -> None:
        """Let transactions under way finish, close the connections. Calling it twice is harmless."""
        ...


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

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        def transaction() -> Result:
            with self._engine.begin() as conn:
                return work(conn)

        return await self._run(self._writer, transaction)

    def notify(self, conn: Connection) -> None:
        """Other processes find it by polling."""

    async def watch(self, wake: Callable[[], None]) -> None:  # noqa: ARG002 - nobody tells
        await asyncio.Event().wait()

    async def check(self) -> None:
        """Read every page of a file up to `CHECK_LIMIT`; a larger one is trusted until it is read."""

        def quick_check(conn: Connection) -> str:
            size = Path(self.url.database or "").stat().st_size
            if size > CHECK_LIMIT:
                return "ok"
            return str(conn.execute(text("PRAGMA quick_check(1)")).scalar_one())

        if (verdict := await self.read(quick_check)) != "ok":
            raise _corrupt(self.url, verdict)

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


def open_database(url: str) -> Database:
    """The database behind a `sqlite:///path` URL. Nothing is connected yet.

    Raises `LedgerError` for a URL or a SQLite library this release cannot use.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise LedgerError("ledger.url is not a database URL; use sqlite:////absolute/path/ledger.db") from exc
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise LedgerError(
            f"ledger.url {parsed.render_as_string()} is not supported; use sqlite:////absolute/path/ledger.db"
        )
    if sqlite3.sqlite_version_info < OLDEST:
        raise LedgerError(
            f"this Python's SQLite is {sqlite3.sqlite_version}; the ledger needs 3.35 or newer: use another Python"
        )
    engine = create_engine(
        parsed.set(drivername="sqlite+pysqlite"),
        pool_size=2,
        max_overflow=0,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS, "check_same_thread": False},
    )
    _prepare_sqlite(engine)
    return SqliteDatabase(engine)


async def schema_version(database: Database) -> str | None:
    """The revision the database is at, None when it is empty."""

    def find(conn: Connection) -> str | None:
        if not inspect(conn).has_table("alembic_version"):
            return None
        return conn.execute(
            select(text("version_num")).select_from(text("alembic_version"))
        ).scalar_one_or_none()

    return await database.read(find)


async def check_schema(database: Database) -> None:
    """Return when the database is at this release's revision.

    Raises `SchemaMismatch` with what to do otherwise.
    """
    found = await schema_version(database)
    if found == HEAD:
        await database.check()
        return
    where = database.url.render_as_string()
    if found is None or found < HEAD:
        raise SchemaMismatch(
            f"the ledger {where} is at schema {found or 'none'}, this release needs {HEAD}; run: transload migrate"
        )
    raise SchemaMismatch(
        f"the ledger {where} is at schema {found}, newer than this release knows ({HEAD}); use a newer transload"
    )


async def migrate(database: Database) -> str | None:
    """Bring the database to this release's revision in one transaction; the revision it was at before.

    Several processes may try at once: on SQLite the transaction that begins first does it, the others find it done.

    Raises `SchemaMismatch` when the database is newer than this release.
    """
    if database.dialect == "sqlite":
        with translated(database.url):
            await asyncio.to_thread(_make_file, Path(database.url.database or ""))
    before = await schema_version(database)
    if before == HEAD:
        return before
    if before is not None and before > HEAD:
        await check_schema(database)
    await database.write(_upgrade)
    return before


def _make_file(path: Path) -> None:
    """It holds URLs and what fetchers said of them: for its owner only, like the queue beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)


def _upgrade(conn: Connection) -> None:
    # Importing Alembic takes a quarter of a second, which only those who migrate should pay.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    with as_file(files("worker.ledger") / "migrations") as scripts:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = conn
        command.upgrade(config, HEAD)


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


def _prepare_sqlite(engine: Engine) -> None:
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
