"""The audit trail where transactions run side by side, on PostgreSQL; what holds everywhere is in ledger_audit.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg  # type: ignore[import-untyped] # it ships no type information
import pytest

from tests.conformance.ledger_audit import filled, trail
from tests.conformance.ledgers import Database
from tests.support.kept_databases import KeptDatabases
from worker.ledger import sql
from worker.ledger.base import LedgerBusy

APPEND = "INSERT INTO audit (at, actor, action) VALUES (1, 'slow', 'stored') RETURNING id"


@pytest.fixture
async def database(kept_databases: KeptDatabases) -> AsyncIterator[Database]:
    async with kept_databases.database() as url, (made := Database(url, AsyncExitStack())).closing:
        yield made


@pytest.fixture
async def slow(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """Whoever takes long to commit."""
    connection = await asyncpg.connect(database.url)
    yield connection
    await connection.close()


async def test_the_span_ends_where_every_row_is_there(database: Database, slow: asyncpg.Connection) -> None:
    ledger = database.open(actor="worker@quick")
    transaction = slow.transaction()
    await transaction.start()
    early = await slow.fetchval(APPEND)
    await filled(ledger, 1)
    (quick,) = await trail(ledger)
    assert quick.id > early, "it committed before a row with a lower id"
    asking = asyncio.create_task(ledger.audit_span())
    await asyncio.wait([asking], timeout=0.2)
    assert not asking.done()
    await transaction.commit()
    span = await asking
    assert span.last == quick.id
    assert [row.id for row in await trail(ledger, through=span.last)] == [early, quick.id]


async def test_a_writer_that_gives_up_leaves_a_gap_that_stays(
    database: Database, slow: asyncpg.Connection
) -> None:
    ledger = database.open(actor="worker@quick")
    transaction = slow.transaction()
    await transaction.start()
    await slow.fetchval(APPEND)
    await filled(ledger, 1)
    asking = asyncio.create_task(ledger.audit_span())
    await asyncio.sleep(0)
    await transaction.rollback()
    (only,) = await trail(ledger)
    assert (await asking).last == only.id


async def test_who_does_not_write_to_it_is_not_waited_for(
    database: Database, slow: asyncpg.Connection
) -> None:
    ledger = database.open(actor="worker@quick")
    await filled(ledger, 1)
    async with slow.transaction(), asyncio.timeout(20):
        await slow.execute("UPDATE probe SET at = 1")
        await slow.fetch("SELECT * FROM audit")
        assert (await ledger.audit_span()).last == 1


async def test_a_writer_that_never_ends_is_told_of(
    database: Database, slow: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_SETTLE_SECONDS", 0.05)
    ledger = database.open()
    async with slow.transaction():
        await slow.fetchval(APPEND)
        with pytest.raises(LedgerBusy, match="try again"):
            await ledger.audit_span()
