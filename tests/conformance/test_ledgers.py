"""Runs the suite for every kind of database, then what only concerns SQLite files, their schema and their faults."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from threading import Barrier
from types import MappingProxyType

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, inspect, text

from tests.conformance.ledgers import (
    HOUR,
    ROOT,
    Database,
    LedgerConformance,
    child,
    entry,
    together,
)
from tests.support.kept_databases import KeptDatabases
from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import PostgresqlServer, in_thread
from worker.ledger import schema
from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerUnavailable, SchemaMismatch
from worker.ledger.database import Database as LedgerDatabase
from worker.ledger.database import SqliteDatabase, check_schema, migrate, open_database, schema_version
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Recorded


@asynccontextmanager
async def sqlite_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    path: Path = request.getfixturevalue("tmp_path") / "ledger.db"
    database = Database(f"sqlite:///{path}", AsyncExitStack())
    opened = open_database(database.url)
    await migrate(opened)
    await opened.aclose()
    async with database.closing:
        yield database


@asynccontextmanager
async def postgresql_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    kept: KeptDatabases = request.getfixturevalue("kept_databases")
    async with kept.database() as url, (database := Database(url, AsyncExitStack())).closing:
        yield database


@asynccontextmanager
async def pooled_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    kept: KeptDatabases = request.getfixturevalue("kept_behind_pgbouncer")
    pooler: PgBouncer = request.getfixturevalue("pgbouncer")
    async with kept.database() as url:
        database = Database(pooler.through(url), AsyncExitStack(), pooler=True)
        async with database.closing:
            yield database


DATABASES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Database]]] = (
    MappingProxyType(
        {
            "postgresql": postgresql_database,
            "postgresql behind PgBouncer": pooled_database,
            "sqlite": sqlite_database,
        }
    )
)


@pytest.fixture(scope="module")
def kept_behind_pgbouncer(postgresql: PostgresqlServer) -> Iterator[KeptDatabases]:
    kept = KeptDatabases(postgresql, pooled=True)
    yield kept
    in_thread(kept.forget())


@pytest.fixture(scope="module")
def kept_of_a_later_release(postgresql: PostgresqlServer) -> Iterator[KeptDatabases]:
    async def prepare(url: str) -> None:
        await change(Database(url, AsyncExitStack()), advance)

    kept = KeptDatabases(postgresql, prepare)
    yield kept
    in_thread(kept.forget())


@pytest.fixture(params=sorted(DATABASES))
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    async with DATABASES[request.param](request) as database:
        yield database


LATER = "9999"
"""The revision of a release that is not there yet."""


def advance(conn: Connection) -> None:
    """What the migration of a later release does when it only adds."""
    known = {"alembic_version", "schema_compatibility"}
    for table in set(inspect(conn).get_table_names()) - known:
        conn.execute(text(f"ALTER TABLE {table} ADD COLUMN of_a_later_release TEXT"))
    conn.execute(text("CREATE TABLE of_a_later_release (id TEXT PRIMARY KEY)"))
    conn.execute(text("UPDATE schema_compatibility SET oldest = :head"), {"head": schema.HEAD})
    conn.execute(text("UPDATE alembic_version SET version_num = :later"), {"later": LATER})


async def run_in(database: Database, *statements: str) -> None:
    def run(conn: Connection) -> None:
        for statement in statements:
            conn.execute(text(statement))

    await change(database, run)


async def change(database: Database, work: Callable[[Connection], None]) -> None:
    opened = open_database(database.url, pooler=database.pooler)
    await opened.write(work)
    await opened.aclose()


class TestLedgers(LedgerConformance):
    pass


class TestLedgersOfALaterRelease(LedgerConformance):
    """Workers of this release go on while those of the next are rolled out, and may have to come back after that.

    On the server, which several of them share: a SQLite file is migrated by the one that opens it.
    """

    @pytest.fixture
    async def database(self, kept_of_a_later_release: KeptDatabases) -> AsyncIterator[Database]:
        async with (
            kept_of_a_later_release.database() as url,
            (database := Database(url, AsyncExitStack())).closing,
        ):
            yield database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def open_file(path: Path) -> SqliteDatabase:
    opened = open_database(f"sqlite:///{path}")
    assert isinstance(opened, SqliteDatabase)
    return opened


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = open_file(path)
    yield opened
    await opened.aclose()


def run_sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def damage(path: Path, first: int) -> None:
    """Overwrite the head of every page from `first` on, as a failing disk may."""
    damaged = bytearray(path.read_bytes())
    for at in range(first * 4_096, len(damaged), 4_096):
        damaged[at : at + 64] = b"\xa5" * 64
    path.write_bytes(damaged)


async def start(opened: LedgerDatabase) -> None:
    """What a worker does before it takes messages."""
    await migrate(opened)
    await check_schema(opened)


async def test_case_52_every_connection_commits_to_the_disk(opened: SqliteDatabase) -> None:
    both = Barrier(2, timeout=10)

    def settings(conn: Connection) -> list[object]:
        both.wait()  # so that it is not one connection asked twice
        pragmas = ("synchronous", "journal_mode", "foreign_keys")
        return [conn.execute(text(f"PRAGMA {pragma}")).scalar_one() for pragma in pragmas]

    await migrate(opened)
    assert await together([opened.read(settings), opened.write(settings)]) == [[2, "wal", 1]] * 2


async def test_a_new_database_is_made_with_its_folder(tmp_path: Path) -> None:
    opened = open_file(tmp_path / "new/folder/ledger.db")
    with pytest.raises(LedgerUnavailable, match="folder"):
        await schema_version(opened)
    assert await migrate(opened) is None
    assert await migrate(opened) == schema.HEAD
    await check_schema(opened)
    await opened.aclose()


async def test_the_migrated_tables_are_the_tables_of_this_release(migrated: LedgerDatabase) -> None:
    differences = await migrated.read(
        lambda conn: compare_metadata(MigrationContext.configure(conn), schema.metadata)
    )
    assert differences == []


def test_the_head_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "worker/ledger/migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


async def test_case_12_several_may_migrate_at_once(path: Path) -> None:
    several = [open_file(path) for _ in range(6)]
    await together([start(opened) for opened in several])
    await together([opened.aclose() for opened in several])


async def test_case_12_several_processes_may_migrate_at_once(path: Path, opened: SqliteDatabase) -> None:
    """The children migrate, then write: one whose migration failed would end with an error."""
    processes = [await child("write", f"sqlite:///{path}", str(number)) for number in range(3)]
    for process in processes:
        await process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    await check_schema(opened)


async def test_case_12_a_migration_that_did_not_commit_is_done_anew(
    path: Path, opened: SqliteDatabase
) -> None:
    """Killed in mid-migration, as the file shows it: tables of an open transaction are not there."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE messages (half TEXT)")
    connection.close()
    await start(opened)


async def test_case_55_an_empty_database_is_not_worked_with(opened: SqliteDatabase) -> None:
    with pytest.raises(SchemaMismatch, match=r"schema none.*transload migrate"):
        await check_schema(opened)


@pytest.fixture
async def migrated(database: Database) -> AsyncIterator[LedgerDatabase]:
    """The connections of a worker that has not looked at the schema yet."""
    opened = open_database(database.url, pooler=database.pooler)
    yield opened
    await opened.aclose()


async def test_case_55_an_older_schema_asks_for_a_migration(
    database: Database, migrated: LedgerDatabase
) -> None:
    await run_in(database, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaMismatch, match=r"schema 0000.*transload migrate"):
        await check_schema(migrated)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE schema_compatibility SET oldest = '9999'",
        "DELETE FROM schema_compatibility",
        "DROP TABLE schema_compatibility",
    ],
)
async def test_case_55_a_newer_schema_is_left_alone(
    database: Database, migrated: LedgerDatabase, statement: str
) -> None:
    await change(database, advance)
    await run_in(database, statement)
    for attempt in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match=r"schema 9999.*newer transload"):
            await attempt(migrated)


async def test_case_55_a_newer_schema_that_only_adds_is_worked_with_and_left_as_it_is(
    database: Database, migrated: LedgerDatabase
) -> None:
    await change(database, advance)
    assert await migrate(migrated) == LATER
    await check_schema(migrated)
    assert await schema_version(migrated) == LATER


@pytest.fixture(params=[b"this is no database, whatever its name says" * 100, b"\xff" * 8_192])
def no_database(request: pytest.FixtureRequest, path: Path) -> bytes:
    content: bytes = request.param
    path.write_bytes(content)
    return content


async def test_case_54_what_is_no_database_is_refused(
    path: Path, opened: SqliteDatabase, no_database: bytes
) -> None:
    with pytest.raises(LedgerCorrupt, match=r"ledger\.db is damaged.*backup"):
        await start(opened)
    assert await asyncio.to_thread(path.read_bytes) == no_database, "evidence is not touched"


async def test_case_54_a_flipped_page_is_refused_at_the_start(path: Path, opened: SqliteDatabase) -> None:
    writing = SqlLedger(other := open_file(path))
    await migrate(other)
    await together([writing.record(entry(f"b{number}", count=1)) for number in range(200)])
    await writing.aclose()
    damage(path, first=10)
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await start(opened)


async def test_case_54_a_page_that_flips_under_a_running_worker(path: Path) -> None:
    ledger = SqlLedger(opened := open_file(path))
    await migrate(opened)
    await together([ledger.record(entry("b", number)) for number in range(500)])
    await ledger.aclose()
    damage(path, first=1)
    ledger = SqlLedger(open_file(path))
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await ledger.find("b/0")
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await ledger.record(entry("c"))
    await ledger.aclose()


async def test_case_53_a_full_disk_pauses_and_resumes_unaided(opened: SqliteDatabase) -> None:
    await migrate(opened)
    room = 1_000_000

    @event.listens_for(opened._engine, "checkout")
    def limit(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {room}")
        cursor.close()

    ledger = SqlLedger(opened)
    await ledger.record(entry("a"))
    room = 1
    with pytest.raises(LedgerUnavailable, match="full") as caught:
        await ledger.record(entry("b", meta={"x": "y" * 100_000}))
    assert caught.value.retryable
    room = 1_000_000
    assert await ledger.find("b/0") is None
    assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_case_41_a_database_that_is_locked_for_too_long_is_unavailable(path: Path) -> None:
    opened = open_file(path)
    await migrate(opened)

    @event.listens_for(opened._engine, "checkout")
    def impatient(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 1")
        cursor.close()

    ledger = SqlLedger(opened)
    blocking = sqlite3.connect(path, isolation_level=None)
    blocking.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked") as caught:
        await ledger.record(entry("b"))
    assert caught.value.retryable
    assert await ledger.find("b/0") is None, "readers go on"
    blocking.execute("ROLLBACK")
    blocking.close()
    await ledger.record(entry("b"))
    await ledger.aclose()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "use sqlite:///"),
        ("no url", "use sqlite:///"),
        ("mysql://user:canary@host/db", "use sqlite:///"),
        ("sqlite://", "use sqlite:///"),
        ("sqlite:///", "use sqlite:///"),
        ("sqlite+aiosqlite:///ledger.db", "use sqlite:///"),
        ("postgresql+psycopg://user:canary@host/db", "write postgresql://"),
        ("postgresql://user:canary@host", "use postgresql://"),
        ("postgresql:///db", "use postgresql://"),
        ("postgresql://user:canary@host:port/db", "use sqlite:///"),
        ("postgresql://host/db?password=canary", "write postgresql://"),
        ("postgresql://host/db?sslpassword=canary", "write postgresql://"),
    ],
)
def test_urls_that_cannot_be_used(url: str, told: str) -> None:
    with pytest.raises(LedgerError, match=told) as caught:
        open_database(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/ledger.db", "sqlite:////var/ledger.db"),
        ("postgresql+asyncpg://u:p@h:5/db", "postgresql://u:***@h:5/db"),
        ("postgres://u:p@h1,h2/db?ssl=require", "postgresql://u:***@h1,h2/db?sslmode=require"),
        ("postgresql://u@/db?host=%2Frun", "postgresql://u@/db?host=%2Frun"),
    ],
)
def test_urls_as_they_are_shown(url: str, shown: str) -> None:
    assert open_database(url).url.render_as_string() == shown


@pytest.mark.parametrize("package", ["asyncpg", "greenlet"])
def test_a_missing_extra_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in [name for name in sys.modules if name.startswith("worker.ledger.postgresql")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LedgerError, match=rf"{package}.*pip install 'transload\[postgres\]'"):
        open_database("postgresql://host/db")


async def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "file").write_text, "x")
    opened = open_file(tmp_path / "file/ledger.db")
    with pytest.raises(LedgerError):
        await migrate(opened)
    await opened.aclose()


async def test_a_folder_where_the_file_should_be(path: Path, opened: SqliteDatabase) -> None:
    await asyncio.to_thread(path.mkdir)
    with pytest.raises(LedgerUnavailable):
        await start(opened)


async def test_case_50_claims_follow_the_clock_of_the_database(opened: SqliteDatabase) -> None:
    """The time of a due row is written by the database itself, in milliseconds since the epoch."""
    await migrate(opened)
    ledger = SqlLedger(opened)
    await ledger.record(entry("b", count=1))
    (row,) = await ledger.claim(1, HOUR)
    statement = text("SELECT due_at, CAST(strftime('%s', 'now') AS INTEGER) FROM outbox")
    due, now = await opened.read(lambda conn: conn.execute(statement).one())
    assert HOUR - 5 <= due / 1000 - now <= HOUR + 5
    assert abs(row.completed_at / 1000 - now) <= 5
