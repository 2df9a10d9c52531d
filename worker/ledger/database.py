"""The ledger's database: the port its adapters keep to, which adapter a URL means, schema check and migration.

Called by worker/bootstrap.py and `transload migrate`; worker/ledger/sql.py runs its transactions here. Adapters: `sqlite.py`,
`postgresql.py`.
"""

import sqlite3
from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Protocol, TypeVar

from sqlalchemy import URL, Connection, inspect, text

from backends.failpoints import failpoint
from worker.ledger.base import LedgerError, SchemaMismatch
from worker.ledger.schema import HEAD
from worker.ledger.sqlite import SqliteDatabase, open_sqlite, translated
from worker.ledger.urls import ledger_url
from worker.sqlite import OLDEST

__all__ = [
    "Database",
    "SqliteDatabase",
    "check_schema",
    "migrate",
    "open_database",
    "schema_version",
    "translated",
]

Result = TypeVar("Result")


class Database(Protocol):
    """Runs whole transactions. `work` is plain blocking code: it sees one connection and one transaction, already begun.

    It may run more than once, when the database undid the first run because of a conflict: it keeps nothing between runs.
    """

    @property
    def url(self) -> URL:
        """Where it is; rendered without its password."""
        ...

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        ...

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """A transaction that changes nothing and sees one state of the database. Raises `LedgerError`."""
        ...

    async def write(self, work: Callable[[Connection], Result], rows: int = 0) -> Result:
        """A transaction, committed when this returns. A cancelled caller leaves it to finish: unknown, never half done.

        It may take longer where it adds that many `rows`.
        Raises `LedgerError`; nothing was changed then, unless the connection broke during the commit.
        """
        ...

    async def exclusively(self, work: Callable[[Connection], Result]) -> Result:
        """As `write`, but no two of these run at once, whatever process they are in, and it may take its time."""
        ...

    async def prepare(self) -> None:
        """Make what has to be there before the first transaction. Raises `LedgerError`."""
        ...

    async def check(self) -> None:
        """Return when the database is sound, as far as that can be told quickly. Raises `LedgerError`."""
        ...

    def notify(self, conn: Connection) -> None:
        """Inside a transaction: when it commits, tell those who `watch` that a completion is due."""
        ...

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever a transaction that notified has committed, in any process. Runs until it is cancelled.

        A notification may be missed, and then `wake` is called once more than needed: those who watch poll as well.
        """
        ...

    async def aclose(self) -> None:
        """Let transactions under way finish, close the connections. Calling it twice is harmless."""
        ...


def open_database(url: str, *, pooler: bool = False, listen: bool = True) -> Database:
    """The database behind a `sqlite:///path` or `postgresql://…` URL. Nothing is connected yet.

    `pooler`: the URL leads to PgBouncer or its like. With `listen=False`, and behind a pooler, no connection is held for
    notifications: `watch` wakes nobody.

    Raises `LedgerError` for a URL or a library this release cannot use, and for an extra that is not installed.
    """
    try:
        parsed = ledger_url(url)
    except ValueError as exc:
        raise LedgerError(f"ledger.url: {exc}") from exc
    if parsed.drivername == "sqlite":
        if sqlite3.sqlite_version_info < OLDEST:
            raise LedgerError(
                f"this Python's SQLite is {sqlite3.sqlite_version}; the ledger needs 3.35 or newer: use another Python"
            )
        return open_sqlite(parsed)
    try:
        # Its packages are of an extra, and importing them takes time that an embedded worker need not spend.
        from worker.ledger.postgresql import open_postgresql  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise LedgerError(
            f"ledger 'postgresql' needs the package {exc.name!r}; "
            "install it with: pip install 'transload[postgres]'"
        ) from exc
    return open_postgresql(parsed, pooler=pooler, listen=listen)


async def schema_version(database: Database) -> str | None:
    """The revision the database is at, None when it is empty."""
    return await database.read(_version)


async def check_schema(database: Database) -> None:
    """Return when this release can work with the database: it has its revision, or a newer one that says it is compatible.

    Raises `SchemaMismatch` with what to do otherwise.
    """
    found, oldest = await database.read(lambda conn: (_version(conn), _oldest(conn)))
    where = f"the ledger {database.url.render_as_string()} is at schema {found or 'none'}"
    if found is None or found < HEAD:
        raise SchemaMismatch(f"{where}, this release needs {HEAD}; run: transload migrate")
    if found > HEAD and (oldest is None or oldest > HEAD):
        raise SchemaMismatch(f"{where}, newer than this release knows ({HEAD}); use a newer transload")
    await database.check()


async def migrate(database: Database) -> str | None:
    """Bring the database to this release's revision in one transaction; the revision it was at before.

    Several processes may try at once: the first does it, the others find it done. A newer database that says it is
    compatible is left as it is.

    Raises `SchemaMismatch` when the database is newer than this release.
    """
    await database.prepare()
    before = await schema_version(database)
    if before is None or before < HEAD:
        failpoint("ledger.migrate.before")
        await database.exclusively(_upgrade)
        failpoint("ledger.migrate.after")
    elif before > HEAD:
        await check_schema(database)
    return before


def _version(conn: Connection) -> str | None:
    if not inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _oldest(conn: Connection) -> str | None:
    """The oldest revision whose release may still work with the database, as the migration that came last wrote it."""
    if not inspect(conn).has_table("schema_compatibility"):
        return None
    return conn.execute(text("SELECT oldest FROM schema_compatibility")).scalar_one_or_none()


def _upgrade(conn: Connection) -> None:
    # Another process may have migrated while this one waited to be alone.
    if (_version(conn) or "") >= HEAD:
        return
    # Importing Alembic takes a quarter of a second, which only those who migrate should pay.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    with as_file(files("worker.ledger") / "migrations") as scripts:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = conn
        command.upgrade(config, HEAD)
