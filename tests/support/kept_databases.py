"""Databases that one test after the other may have as new: to empty one takes a tenth of what it takes to make one.

What a test left in its tables goes, sequences begin anew, what the tables held at first is there again, and whoever is still
connected is thrown out. A database that a test changed otherwise, or filled, is dropped. For tests of what a ledger does with its
tables; whoever tests how they come to be takes a new database (`PostgresqlServer.database`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg  # type: ignore[import-untyped] # it ships no type information

from tests.support.postgresql import PostgresqlServer

FULL = 4 << 20
"""Bytes in its tables beyond which a database is not kept: what was deleted lies in them until it is vacuumed."""

_STRUCTURE = """
SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
    SELECT format('%s %s %s %s', oid, relname, relnatts, relacl) FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT format('%s %s %s %s', attrelid, attname, atttypid, attnotnull) FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT format('%s %s', oid, tgenabled) FROM pg_trigger
    UNION ALL SELECT format('%s %s', oid, prosrc) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT format('%s %s', oid, nspacl) FROM pg_namespace
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting, pg_database d WHERE setdatabase = d.oid AND datname = current_database()
) AS lines (line)
"""
_TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 ORDER BY 1"
_SIZE = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE oid >= 16384"
_SEQUENCES = "SELECT setval(seqrelid, seqstart, false) FROM pg_sequence"
_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True, slots=True)
class _Kept:
    name: str
    structure: str
    rows: dict[str, list[Any]]
    """What every table held at first."""


@dataclass(slots=True)
class KeptDatabases:
    """The ones of one kind on one server. Used by one test at a time, each in a loop of its own."""

    server: PostgresqlServer
    prepare: Callable[[str], Awaitable[None]] | None = None
    """Done once to the URL of a migrated database, so that it is of that kind."""
    pooled: bool = False
    """Connections of a pooler are left alone: they stay from one client to the next."""
    _free: list[_Kept] = field(default_factory=list)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of a migrated database without a trace of anybody."""
        kept = self._free.pop() if self._free else await self._make()
        try:
            yield self.server.url_of(kept.name)
        finally:
            if await self._emptied(kept):
                self._free.append(kept)
            else:
                await self.server.drop(kept.name)

    async def forget(self) -> None:
        """Drop them all: the server may live longer than the tests."""
        while self._free:
            await self.server.drop(self._free.pop().name)

    async def _make(self) -> _Kept:
        name = await self.server.make()
        if self.prepare is not None:
            await self.prepare(self.server.url_of(name))
        connection = await asyncpg.connect(self.server.url_of(name))
        try:
            tables = [record[0] for record in await connection.fetch(_TABLES)]
            rows = {table: await connection.fetch(f"SELECT * FROM {table}") for table in tables}  # noqa: S608 - a table's name
            return _Kept(name, await connection.fetchval(_STRUCTURE), rows)
        finally:
            await connection.close()

    async def _emptied(self, kept: _Kept) -> bool:
        """Whether it is as it was."""
        connection = await asyncpg.connect(self.server.url_of(kept.name))
        try:
            if not self.pooled:
                await connection.execute(_OTHERS)
            if await connection.fetchval(_STRUCTURE) != kept.structure:
                return False
            if await connection.fetchval(_SIZE) > FULL:
                return False
            async with connection.transaction():
                # Neither triggers nor keys have a say in it.
                await connection.execute("SET LOCAL session_replication_role = replica")
                await connection.execute(";".join(f"DELETE FROM {table}" for table in kept.rows))  # noqa: S608 - as above
                await connection.execute(_SEQUENCES)
                for table, rows in kept.rows.items():
                    for row in rows:
                        values = ", ".join(f"${number}" for number in range(1, len(row) + 1))
                        await connection.execute(
                            f"INSERT INTO {table} OVERRIDING SYSTEM VALUE VALUES ({values})",  # noqa: S608 - as above
                            *row,
                        )
            return True
        finally:
            await connection.close()
