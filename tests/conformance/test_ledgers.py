"""Runs the suite for every kind of database, then what only concerns SQLite files, their schema and their faults."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conformance.ledgers import (
    HOUR,
    ROOT,
    Database,
    LedgerConformance,
    child,
    entry,
    together,
)
from worker.ledger import schema
from worker.ledger.base import LedgerCorrupt, LedgerError, LedgerUnavailable, Recorded, SchemaMismatch
from worker.ledger.database import check_schema, migrate, open_engine, schema_version
from worker.ledger.sql import SqlLedger


@asynccontextmanager
async def sqlite_database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    path: Path = request.getfixturevalue("tmp_path") / "ledger.db"
    database = Database(f"sqlite:///{path}", AsyncExitStack())
    async with database.engine() as engine:
        await migrate(engine)
    async with database.closing:
        yield database


DATABASES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Database]]] = (
    MappingProxyType({"sqlite": sqlite_database})
)


class TestLedgers(LedgerConformance):
    @pytest.fixture(params=sorted(DATABASES))
    async def database(self, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
        async with DATABASES[request.param](request) as database:
            yield database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(f"sqlite:///{path}")
    yield engine
    await engine.dispose()


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


async def start(engine: AsyncEngine) -> None:
    """What a worker does before it takes messages."""
    await migrate(engine)
    await check_schema(engine)


async def test_case_52_every_connection_commits_to_the_disk(engine: AsyncEngine) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(4):
            conn = await stack.enter_async_context(engine.connect())
            for pragma, value in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1)):
                assert (await conn.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value
            await conn.commit()


async def test_a_new_database_is_made_with_its_folder(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/new/folder/ledger.db")
    with pytest.raises(LedgerUnavailable, match="folder"):
        await schema_version(engine)
    assert await migrate(engine) is None
    assert await migrate(engine) == schema.HEAD
    await check_schema(engine)
    await engine.dispose()


async def test_the_migrated_tables_are_the_tables_of_this_release(engine: AsyncEngine) -> None:
    await migrate(engine)
    async with engine.connect() as conn:
        differences = await conn.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), schema.metadata)
        )
    assert differences == []


def test_the_head_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "worker/ledger/migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


async def test_case_12_several_may_migrate_at_once(path: Path) -> None:
    engines = [open_engine(f"sqlite:///{path}") for _ in range(6)]
    await together([start(engine) for engine in engines])
    await together([engine.dispose() for engine in engines])


async def test_case_12_several_processes_may_migrate_at_once(path: Path, engine: AsyncEngine) -> None:
    """The children migrate, then write: one whose migration failed would end with an error."""
    processes = [await child("write", f"sqlite:///{path}", str(number)) for number in range(3)]
    for process in processes:
        await process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    await check_schema(engine)


async def test_case_12_a_migration_that_did_not_commit_is_done_anew(path: Path, engine: AsyncEngine) -> None:
    """Killed in mid-migration, as the file shows it: tables of an open transaction are not there."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE messages (half TEXT)")
    connection.close()
    await start(engine)


async def test_case_55_an_empty_database_is_not_worked_with(engine: AsyncEngine) -> None:
    with pytest.raises(SchemaMismatch, match=r"schema none.*transload migrate"):
        await check_schema(engine)


async def test_case_55_an_older_schema_asks_for_a_migration(path: Path, engine: AsyncEngine) -> None:
    await migrate(engine)
    run_sql(path, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaMismatch, match=r"schema 0000.*transload migrate"):
        await check_schema(engine)


async def test_case_55_a_newer_schema_is_left_alone(path: Path, engine: AsyncEngine) -> None:
    await migrate(engine)
    run_sql(path, "UPDATE alembic_version SET version_num = '9999'")
    for attempt in (migrate, check_schema):
        with pytest.raises(SchemaMismatch, match=r"schema 9999.*newer transload"):
            await attempt(engine)


@pytest.fixture(params=[b"this is no database, whatever its name says" * 100, b"\xff" * 8_192])
def no_database(request: pytest.FixtureRequest, path: Path) -> bytes:
    content: bytes = request.param
    path.write_bytes(content)
    return content


async def test_case_54_what_is_no_database_is_refused(
    path: Path, engine: AsyncEngine, no_database: bytes
) -> None:
    with pytest.raises(LedgerCorrupt, match=r"ledger\.db is damaged.*backup"):
        await start(engine)
    assert await asyncio.to_thread(path.read_bytes) == no_database, "evidence is not touched"


async def test_case_54_a_flipped_page_is_refused_at_the_start(path: Path, engine: AsyncEngine) -> None:
    writing = SqlLedger(open_engine(f"sqlite:///{path}"))
    await migrate(writing._engine)
    await together([writing.record(entry(f"b{number}", count=1)) for number in range(200)])
    await writing.aclose()
    damage(path, first=10)
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await start(engine)


async def test_case_54_a_page_that_flips_under_a_running_worker(path: Path) -> None:
    ledger = SqlLedger(open_engine(f"sqlite:///{path}"))
    await migrate(ledger._engine)
    await together([ledger.record(entry("b", number)) for number in range(500)])
    await ledger.aclose()
    damage(path, first=1)
    ledger = SqlLedger(open_engine(f"sqlite:///{path}"))
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await ledger.find("b/0")
    with pytest.raises(LedgerCorrupt, match="damaged"):
        await ledger.record(entry("c"))
    await ledger.aclose()


async def test_case_53_a_full_disk_pauses_and_resumes_unaided(engine: AsyncEngine) -> None:
    await migrate(engine)
    room = 1_000_000

    @event.listens_for(engine.sync_engine, "checkout")
    def limit(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {room}")
        cursor.close()

    ledger = SqlLedger(engine)
    await ledger.record(entry("a"))
    room = 1
    with pytest.raises(LedgerUnavailable, match="full") as caught:
        await ledger.record(entry("b", meta={"x": "y" * 100_000}))
    assert caught.value.retryable
    room = 1_000_000
    assert await ledger.find("b/0") is None
    assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_case_41_a_database_that_is_locked_for_too_long_is_unavailable(path: Path) -> None:
    engine = open_engine(f"sqlite:///{path}")
    await migrate(engine)

    @event.listens_for(engine.sync_engine, "checkout")
    def impatient(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 1")
        cursor.close()

    ledger = SqlLedger(engine)
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
    "url", ["", "no url", "mysql://host/db", "sqlite://", "sqlite:///", "postgresql://user:canary@host/db"]
)
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(LedgerError, match="use sqlite:///") as caught:
        open_engine(url)
    assert "canary" not in str(caught.value)


async def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "file").write_text, "x")
    engine = open_engine(f"sqlite:///{tmp_path}/file/ledger.db")
    with pytest.raises(LedgerError):
        await migrate(engine)
    await engine.dispose()


async def test_a_folder_where_the_file_should_be(path: Path, engine: AsyncEngine) -> None:
    await asyncio.to_thread(path.mkdir)
    with pytest.raises(LedgerUnavailable):
        await start(engine)


async def test_case_50_claims_follow_the_clock_of_the_database(engine: AsyncEngine) -> None:
    """The time of a due row is written by the database itself, in milliseconds since the epoch."""
    await migrate(engine)
    ledger = SqlLedger(engine)
    await ledger.record(entry("b", count=1))
    (row,) = await ledger.claim(1, HOUR)
    async with engine.connect() as conn:
        due, now = (
            await conn.execute(text("SELECT due_at, CAST(strftime('%s', 'now') AS INTEGER) FROM outbox"))
        ).one()
    assert HOUR - 5 <= due / 1000 - now <= HOUR + 5
    assert abs(row.completed_at / 1000 - now) <= 5
