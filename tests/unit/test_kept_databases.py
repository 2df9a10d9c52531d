"""A database that comes back is as new."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg  # type: ignore[import-untyped] # it ships no type information
import pytest

from tests.support import kept_databases
from tests.support.kept_databases import KeptDatabases
from tests.support.postgresql import PostgresqlServer

AUDIT = "INSERT INTO audit (at, actor, action) VALUES (1, 'somebody', 'stored') RETURNING id"


@pytest.fixture
async def kept(postgresql: PostgresqlServer) -> AsyncIterator[KeptDatabases]:
    kept = KeptDatabases(postgresql)
    yield kept
    await kept.forget()


async def one(kept: KeptDatabases, *statements: str) -> tuple[str, list[Any]]:
    """What a test would do with it: the database, and what the last statement gave."""
    async with kept.database() as url:
        connection = await asyncpg.connect(url)
        found = [await connection.fetch(statement) for statement in statements]
        # It stays connected, in a transaction that holds a lock.
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE messages")
        return url, [record[0] for record in found[-1]]


async def test_it_comes_back_without_a_trace(kept: KeptDatabases) -> None:
    first, ids = await one(
        kept,
        "UPDATE alembic_version SET version_num = '9999'",
        "DELETE FROM schema_compatibility",
        "INSERT INTO probe (id, at) VALUES (77, 1)",
        AUDIT,
        AUDIT,
    )
    assert ids == [2]
    again, ids = await one(kept, AUDIT)
    assert again == first
    assert ids == [1]
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    _, names = await one(kept, tables)
    async with kept.server.database() as fresh:
        connection = await asyncpg.connect(fresh)
        new = {name: await connection.fetch(f"SELECT * FROM {name}") for name in names}  # noqa: S608 - a table's name
        await connection.close()
    async with kept.database() as url:
        assert url == first
        connection = await asyncpg.connect(url)
        assert {name: await connection.fetch(f"SELECT * FROM {name}") for name in names} == new  # noqa: S608 - as above
        await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE schema_compatibility",
        "ALTER TABLE messages ADD COLUMN more TEXT",
        "CREATE TABLE more (id TEXT)",
        "ALTER TABLE audit DISABLE TRIGGER audit_rows",
        "DROP INDEX messages_by_bid",
        "REVOKE ALL ON messages FROM PUBLIC; GRANT SELECT ON messages TO PUBLIC",
        "ALTER TABLE messages ALTER COLUMN fingerprint DROP NOT NULL",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END $$",
    ],
)
async def test_what_was_changed_otherwise_does_not(kept: KeptDatabases, statement: str) -> None:
    first, _ = await one(kept, *statement.split(";") if "DO" not in statement else [statement])
    again, _ = await one(kept, "SELECT 1")
    assert again != first


async def test_what_was_filled_does_not(kept: KeptDatabases, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = await one(kept, "SELECT 1")
    monkeypatch.setattr(kept_databases, "FULL", 0)
    assert (await one(kept, "SELECT 1"))[0] == first
    assert (await one(kept, "SELECT 1"))[0] != first


async def test_two_at_once_are_two(kept: KeptDatabases) -> None:
    async with kept.database() as one_url, kept.database() as other:
        assert one_url != other
