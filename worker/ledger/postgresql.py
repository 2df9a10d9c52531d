"""The ledger's database on a server: PostgreSQL through asyncpg, directly or behind PgBouncer. Opened by database.py.

docs/adr/0008-postgresql-ledger.md says why it is as it is.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import greenlet  # type: ignore[import-untyped] # noqa: F401 - SQLAlchemy misses it only in the first transaction
import structlog
from sqlalchemy import URL, Connection, event, func, select, text
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from worker.ledger.base import LedgerError, LedgerUnavailable
from worker.ledger.postgresql_connection import (
    CONNECT_SECONDS,
    LIMITS,
    ServerConnection,
    connector,
    limits_for,
    set_local,
)
from worker.ledger.postgresql_errors import sqlstate_of, translated

Result = TypeVar("Result")

CHANNEL = "transload_outbox"
"""Channels belong to a database, not to a schema: two ledgers in one database wake each other, which costs one look."""

_CLOSE_SECONDS = 2.0
_MIGRATION_SECONDS = 3_600.0
_PING_SECONDS = 30.0
_LONGEST_PAUSE = 30.0
_ROWS_PER_SECOND = 5_000
"""Far fewer than any server inserts: the entries of a large archive are recorded in one transaction."""
_CONNECTIONS = 4
_TRIES = 6
_STATEMENTS = 200
"""Prepared statements a connection keeps: a statement that is known takes one round trip instead of two."""
_MIGRATING = 0x7472616E736C6F61
"""The advisory lock of those who migrate: `transloa` in ASCII."""

_UNDONE = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the server has rolled back, and the same transaction may succeed now.

https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
"""
_READ_ONLY = "25006"


class PostgresqlDatabase:
    """A pool of connections; blocking-looking code runs on them without blocking the loop."""

    def __init__(
        self,
        url: URL,
        connect: Callable[[], Awaitable[ServerConnection]],
        *,
        deadline: float,
        pooler: bool,
        listen: bool,
    ) -> None:
        """`connect` gives a new connection to the server of `url`. `deadline`: seconds a transaction may take."""
        self._url = url
        self._connect = connect
        self._deadline = deadline
        self._pooler = pooler
        self._listen = listen and not pooler
        # `record` waits for concurrent inserts and then sees them, as READ COMMITTED has it, whatever the server's default.
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            isolation_level="READ COMMITTED",
            pool_size=_CONNECTIONS,
            max_overflow=_CONNECTIONS,
            pool_timeout=deadline,
            connect_args={
                "async_creator_fn": connect,
                "prepared_statement_cache_size": 0 if pooler else _STATEMENTS,
            },
        )
        self._reading = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._in_use: set[ServerConnection] = set()
        self._closed = False
        _replace_dead_connections(self._engine)

    @property
    def url(self) -> URL:
        """As the setting spells it, without the driver."""
        return self._url

    @property
    def dialect(self) -> str:
        return "postgresql"

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        return await self._finish(partial(self._transact, self._reading, work, self._deadline))

    async def write(self, work: Callable[[Connection], Result], rows: int = 0) -> Result:
        return await self._finish(partial(self._insist, work, self._deadline + rows // _ROWS_PER_SECOND))

    async def exclusively(self, work: Callable[[Connection], Result]) -> Result:
        def alone(conn: Connection) -> Result:
            conn.execute(set_local(dict.fromkeys(LIMITS, "0")))
            conn.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
            # A change that waits for one long reader makes all others wait behind it: rather fail, and be run again.
            conn.execute(set_local({"lock_timeout": limits_for(self._deadline)["lock_timeout"]}))
            return work(conn)

        return await self._finish(partial(self._insist, alone, _MIGRATION_SECONDS))

    async def prepare(self) -> None:
        """The database itself is made by whoever runs the server."""

    async def check(self) -> None:
        """Look at the settings that the ledger's promises depend on."""
        statement = text(
            "SELECT current_setting('server_encoding'), current_setting('synchronous_commit'), pg_is_in_recovery()"
        )
        encoding, commit, standby = await self.read(lambda conn: tuple(conn.execute(statement).one()))
        where = f"ledger {self._url.render_as_string()}"
        if standby:
            raise LedgerUnavailable(
                f"{where} is a standby that cannot be written; give the primary's address"
            )
        if encoding != "UTF8":
            raise LedgerError(
                f"{where} stores text as {encoding}; create the database with: ENCODING 'UTF8' TEMPLATE template0"
            )
        if commit == "off":
            raise LedgerError(
                f"{where} has synchronous_commit off: a crash of the server would lose what is acknowledged; "
                "set it to on for the ledger's user: ALTER ROLE … SET synchronous_commit = on"
            )

    def notify(self, conn: Connection) -> None:
        conn.execute(select(func.pg_notify(CHANNEL, "")))

    async def watch(self, wake: Callable[[], None]) -> None:
        log, pause = structlog.get_logger("ledger"), 0.1

        def listening() -> None:
            nonlocal pause
            pause = 0.1
            # What was announced before is not told to a new listener.
            wake()

        while self._listen:
            try:
                with translated(self._url):
                    await self._listen_until_lost(listening, wake)
            except LedgerError as exc:
                log.warning("no notifications from the ledger; polling goes on", error=str(exc))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, no secret
            pause = min(pause * 2, _LONGEST_PAUSE)
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self._closed = True
        await self._wait_for_running()
        for connection in self._in_use:
            # Whoever waits for a silent server gets a lost connection. A cancellation would ask the server first.
            connection.terminate()
        await self._wait_for_running()
        for task in self._running:
            task.cancel()
        await self._wait_for_running()
        await self._engine.dispose()

    async def _wait_for_running(self) -> None:
        if self._running:
            await asyncio.wait(set(self._running), timeout=_CLOSE_SECONDS)

    async def _finish(self, transaction: Callable[[], Awaitable[Result]]) -> Result:
        """Run it to its end even when the caller is cancelled; `aclose` waits for it."""
        if self._closed:
            raise LedgerUnavailable(f"ledger {self._url.render_as_string()} is closed")

        async def run() -> Result:
            return await transaction()

        running = asyncio.create_task(run(), name="ledger-transaction")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        with translated(self._url):
            return await asyncio.shield(running)

    async def _insist(self, work: Callable[[Connection], Result], deadline: float) -> Result:
        """Again after a conflict that the server undid. A commit whose answer is lost is none of those."""
        conflicts = AsyncRetrying(
            retry=retry_if_exception(lambda exc: sqlstate_of(exc) in _UNDONE),
            stop=stop_after_attempt(_TRIES),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            reraise=True,
        )
        return await conflicts(self._transact, self._engine, work, deadline)

    async def _transact(
        self, engine: AsyncEngine, work: Callable[[Connection], Result], deadline: float
    ) -> Result:
        def limited(conn: Connection) -> Result:
            if self._pooler:
                conn.execute(set_local(limits_for(deadline)))
            return work(conn)

        async with engine.connect() as conn:
            driver = (await conn.get_raw_connection()).driver_connection
            assert isinstance(driver, ServerConnection)  # noqa: S101 - the pool's connections are made by `connect`
            driver.expire_in(deadline)
            self._in_use.add(driver)
            try:
                async with conn.begin():
                    return await conn.run_sync(limited)
            except SQLAlchemyError as exc:
                if driver.expired:
                    raise LedgerUnavailable(
                        f"ledger {self._url.render_as_string()} did not answer within {deadline:g} seconds"
                    ) from exc
                if sqlstate_of(exc) == _READ_ONLY:
                    # The primary has become a standby: the next connection may lead to the new one.
                    await conn.invalidate()
                raise
            finally:
                self._in_use.discard(driver)
                driver.expire_in(None)

    async def _listen_until_lost(self, listening: Callable[[], None], wake: Callable[[], None]) -> None:
        connection = await self._connect()
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, lambda *_: wake())
            connection.expire_in(None)
            listening()
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_SECONDS):
                        await lost.wait()
                        raise ConnectionResetError("the connection that listens was lost")
                # A peer that vanished without a word is noticed only by those who ask.
                connection.expire_in(CONNECT_SECONDS)
                await connection.execute("SELECT 1")
                connection.expire_in(None)
        finally:
            await connection.close()


def open_postgresql(
    url: URL, *, pooler: bool = False, listen: bool = True, deadline: float = 30.0
) -> PostgresqlDatabase:
    """The database behind a `postgresql://` URL as worker/ledger/urls.py gives it. Nothing is connected yet.

    `deadline`: seconds a transaction may take. `pooler`: the URL leads to a pooler that gives each transaction another
    connection, so no connection keeps anything: no prepared statement, no setting, no LISTEN.
    """
    connect = connector(url, pooler=pooler, deadline=deadline)
    return PostgresqlDatabase(url, connect, deadline=deadline, pooler=pooler, listen=listen)


def _replace_dead_connections(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "checkout")
    def alive(connection: Any, _record: object, _proxy: object) -> None:
        # The driver has noticed the end of the connection while it lay in the pool: no need to ask the server.
        if connection.driver_connection.is_closed():
            raise DisconnectionError
