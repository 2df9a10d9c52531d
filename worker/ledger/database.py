"""Opens the ledger's database: URL to engine, schema check and migration, driver errors to `LedgerError`.

Called by worker/bootstrap.py and `transload migrate`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerUnavailable, SchemaMismatch
from worker.ledger.schema import HEAD

_SQLITE_BUSY_SECONDS = 30
_CORRUPT = ("malformed", "not a database", "file is encrypted")


def open_engine(url: str) -> AsyncEngine:
    """An engine for a `sqlite:///path` URL. Nothing is connected yet.

    Raises `LedgerError` for a URL this release cannot use.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise LedgerError("ledger.url is not a database URL; use sqlite:////absolute/path/ledger.db") from exc
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise LedgerError(
            f"ledger.url {parsed.render_as_string()} is not supported; use sqlite:////absolute/path/ledger.db"
        )
    engine = create_async_engine(
        parsed.set(drivername="sqlite+aiosqlite"), pool_size=4, connect_args={"timeout": _SQLITE_BUSY_SECONDS}
    )
    _prepare_sqlite(engine.sync_engine)
    return engine


async def schema_version(engine: AsyncEngine) -> str | None:
    """The revision the database is at, None when it is empty."""

    def read(conn: Connection) -> str | None:
        if not inspect(conn).has_table("alembic_version"):
            return None
        return conn.execute(
            select(text("version_num")).select_from(text("alembic_version"))
        ).scalar_one_or_none()

    with translated(engine.url):
        async with engine.execution_options(read_only=True).connect() as conn:
            return await conn.run_sync(read)


async def check_schema(engine: AsyncEngine) -> None:
    """Return when the database is at this release's revision.

    Raises `SchemaMismatch` with what to do otherwise.
    """
    found = await schema_version(engine)
    if found == HEAD:
        return
    where = engine.url.render_as_string()
    if found is None or found < HEAD:
        raise SchemaMismatch(
            f"the ledger {where} is at schema {found or 'none'}, this release needs {HEAD}; run: transload migrate"
        )
    raise SchemaMismatch(
        f"the ledger {where} is at schema {found}, newer than this release knows ({HEAD}); use a newer transload"
    )


async def migrate(engine: AsyncEngine) -> str | None:
    """Bring the database to this release's revision in one transaction; the revision it was at before.

    Several processes may try at once: on SQLite the transaction that begins first does it, the others find it done.

    Raises `SchemaMismatch` when the database is newer than this release.
    """
    if isinstance(database := engine.url.database, str):
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    before = await schema_version(engine)
    if before == HEAD:
        return before
    if before is not None and before > HEAD:
        await check_schema(engine)
    with translated(engine.url):
        async with engine.begin() as conn:
            await conn.run_sync(_upgrade)
    return before


def _upgrade(conn: Connection) -> None:
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
    except (SQLAlchemyError, OSError) as exc:
        raise LedgerUnavailable(f"ledger {url.render_as_string()}: {exc}") from exc


def _translate(exc: DBAPIError, url: URL) -> LedgerError:
    reason = str(exc.orig)
    where = f"ledger {url.render_as_string()}"
    if any(sign in reason for sign in _CORRUPT):
        return LedgerCorrupt(
            f"{where} is damaged ({reason}); restore it from a backup, do not delete it: it holds completions"
        )
    if "unable to open database file" in reason:
        return LedgerUnavailable(f"{where}: {reason}; does its folder exist, and may this user write there?")
    if type(exc.orig).__name__ in {"OperationalError", "InterfaceError"} or exc.connection_invalidated:
        return LedgerUnavailable(f"{where}: {reason}")
    return LedgerError(f"{where}: {reason}")


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
