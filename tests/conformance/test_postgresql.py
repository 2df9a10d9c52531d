"""What only concerns a ledger on PostgreSQL: its server's faults, locks, clock, notifications and settings.

The suite for every database is run by test_ledgers.py.
"""

import asyncio
import contextlib
import itertools
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

import asyncpg  # type: ignore[import-untyped] # it ships no type information
import psutil
import pytest
from sqlalchemy import Connection, make_url, text

from handlers.plan import BundleTarget
from tests.conformance.ledgers import HOUR, NOTHING, child, claimed, consistent, entry, together
from tests.support.pgbouncer import SERVER_CONNECTIONS, PgBouncer
from tests.support.postgresql import OwnServer, PostgresqlServer
from tests.support.services import NotAvailable
from tests.support.toxics import Proxy
from worker.ledger.base import (
    LedgerBusy,
    LedgerCorrupt,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
    SchemaMismatch,
)
from worker.ledger.database import check_schema, migrate, schema_version
from worker.ledger.postgresql import PostgresqlDatabase, open_postgresql
from worker.ledger.schema import HEAD
from worker.ledger.sql import SqlLedger
from worker.ledger.urls import ledger_url
from worker.ledger.values import Recorded, Retired

SHORT = 1.0
"""Seconds of patience where a test waits for the end of it."""


@pytest.fixture(autouse=True)
async def _bounded() -> AsyncIterator[None]:
    """A call that is never answered fails its test instead of holding up the run."""
    loop = asyncio.get_running_loop()
    stuck = loop.call_later(60, lambda: [task.cancel("stuck") for task in asyncio.all_tasks(loop)])
    yield
    stuck.cancel()


@pytest.fixture
async def url(postgresql: PostgresqlServer) -> AsyncIterator[str]:
    async with postgresql.database() as url:
        yield url


@pytest.fixture
async def empty(postgresql: PostgresqlServer) -> AsyncIterator[str]:
    async with postgresql.database(migrated=False) as url:
        yield url


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(OwnServer.create())
        except NotAvailable as exc:
            pytest.fail(f"no PostgreSQL of the test's own: {exc}\nget it with: {exc.command}", pytrace=False)
        yield server


@pytest.fixture
async def own(own_server: OwnServer) -> AsyncIterator[OwnServer]:
    """A server that a test may stop and kill; it runs again for the next one."""
    yield own_server
    if not own_server.alive:
        await asyncio.to_thread(own_server.start)


@pytest.fixture
async def own_url(own: OwnServer) -> AsyncIterator[str]:
    async with own.database() as url:
        yield url
        if not own.alive:
            await asyncio.to_thread(own.start)


@contextlib.asynccontextmanager
async def opening(url: str, **options: Any) -> AsyncIterator[PostgresqlDatabase]:
    opened = open_postgresql(ledger_url(url), **options)
    try:
        yield opened
    finally:
        await opened.aclose()


@pytest.fixture
async def opened(url: str) -> AsyncIterator[PostgresqlDatabase]:
    async with opening(url) as opened:
        yield opened


@contextlib.asynccontextmanager
async def session(url: str) -> AsyncIterator[Any]:
    """Somebody else's connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def ask(url: str, query: str) -> Any:
    async with session(url) as other:
        return await other.fetchval(query)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    while not await condition():  # noqa: ASYNC110 - what a server does sets no event here
        await asyncio.sleep(0.01)


async def somebody_waits(url: str) -> None:
    """Return when a session of this database waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with session(url) as other:
        await until(lambda: other.fetchval(query))


async def redelivered(ledger: SqlLedger) -> None:
    """Record what was not, as often as a queue would bring it: a busy machine may need longer than the short deadline."""
    while True:
        with contextlib.suppress(LedgerUnavailable):
            await ledger.record(entry("b", count=1))
            return


def every(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    """The server's helpers come and go."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def name_of(url: str) -> str:
    return str(make_url(url).database)


def sql(statement: str) -> Callable[[Connection], Any]:
    return lambda conn: conn.execute(text(statement))


def answer(query: str) -> Callable[[Connection], Any]:
    return lambda conn: conn.execute(text(query)).scalar_one()


async def on_every_connection(opened: PostgresqlDatabase, query: str, count: int = 4) -> list[Any]:
    """The answer of so many connections, kept busy until all of them are: none is asked twice."""
    slow = query.replace("SELECT ", "SELECT pg_sleep(0.05), ", 1)
    return await together([opened.read(lambda conn: conn.execute(text(slow)).one()[1]) for _ in range(count)])


# The server goes, and comes back.


async def test_case_41_a_stopped_server_is_unavailable_at_once_and_needs_nobody_when_it_is_back(
    own: OwnServer, own_url: str
) -> None:
    async with opening(own_url) as opened:
        ledger = SqlLedger(opened)
        before = await on_every_connection(opened, "SELECT pg_backend_pid()")
        assert len(set(before)) == 4
        await asyncio.to_thread(own.stop)
        for call in (ledger.record(entry("b", count=1)), ledger.find("b/0"), ledger.claim(1, HOUR)):
            with pytest.raises(LedgerUnavailable) as caught:
                await call
            assert caught.value.retryable
        await asyncio.to_thread(own.start)
        # Not one of the dead connections is handed out.
        await on_every_connection(opened, "SELECT pg_backend_pid()")
        assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_case_41_connections_that_died_in_the_pool_are_replaced(own: OwnServer, own_url: str) -> None:
    async with opening(own_url) as opened:
        before = await on_every_connection(opened, "SELECT pg_backend_pid()")
        await asyncio.to_thread(own.stop)
        await asyncio.to_thread(own.start)
        after = await on_every_connection(opened, "SELECT pg_backend_pid()")
        assert len(set(after)) == 4
        assert not set(before) & set(after)


async def test_case_41_a_ledger_that_is_closed_while_the_server_hangs_ends_soon(
    own: OwnServer, own_url: str
) -> None:
    """With a transaction under way and more waiting; nobody waits for the thirty seconds they may take."""
    async with opening(own_url) as opened:
        ledger = SqlLedger(opened)
        await ledger.record(entry("a"))
        processes = own.processes()
        every(processes, psutil.Process.suspend)
        try:
            recording = [asyncio.create_task(ledger.record(entry("b", number))) for number in range(3)]
            await asyncio.sleep(0.1)
            recording.append(asyncio.create_task(ledger.record(entry("c"))))
            async with asyncio.timeout(20):
                await ledger.aclose()
                outcomes = await asyncio.gather(*recording, return_exceptions=True)
        finally:
            every(processes, psutil.Process.resume)
        assert all(isinstance(outcome, (LedgerUnavailable, asyncio.CancelledError)) for outcome in outcomes)


@pytest.mark.parametrize("connected", [True, False])
async def test_case_41_a_server_that_hangs_is_left_after_the_deadline(
    own: OwnServer, own_url: str, connected: bool
) -> None:
    async with opening(own_url, deadline=SHORT) as opened:
        ledger = SqlLedger(opened)
        if connected:
            await ledger.record(entry("a"))
        processes = own.processes()
        every(processes, psutil.Process.suspend)
        try:
            with pytest.raises(LedgerUnavailable, match=r"did not answer (within 1 seconds|in time)"):
                await ledger.record(entry("b", count=1))
        finally:
            every(processes, psutil.Process.resume)
        await redelivered(ledger)
        await consistent(ledger, "b")
        assert await ledger.pending() == 1


async def test_case_43_nothing_that_was_recorded_is_lost_when_the_server_is_killed(
    own: OwnServer, own_url: str
) -> None:
    recorded: set[str] = set()
    enough = asyncio.Event()

    async def go_on_recording(ledger: SqlLedger, worker: int) -> None:
        for number in itertools.count():
            made = entry(f"b{worker}-{number // 2}", number % 2, count=2)
            await ledger.record(made)
            recorded.add(made.message_id)
            if len(recorded) >= 300:
                enough.set()

    async with opening(own_url) as opened:
        ledger = SqlLedger(opened)
        workers = [asyncio.create_task(go_on_recording(ledger, worker)) for worker in range(20)]
        await enough.wait()
        await asyncio.to_thread(own.kill)
        outcomes = await asyncio.gather(*workers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {LedgerUnavailable}
        await asyncio.to_thread(own.start)
        assert None not in await together([ledger.find(message_id) for message_id in recorded])
        for bundle in await ledger.bundles(limit=10_000):
            await consistent(ledger, bundle.bid)


async def test_case_53_a_full_disk_pauses_and_resumes_unaided(own: OwnServer, own_url: str) -> None:
    """The file of a table leads to /dev/full, where every write ends with ENOSPC, until the table gets a new one."""
    path = own.data / await ask(own_url, "SELECT pg_relation_filepath('resources')")
    assert path.stat().st_size == 0
    path.unlink()
    path.symlink_to("/dev/full")
    async with opening(own_url) as opened:
        ledger = SqlLedger(opened)
        with pytest.raises(LedgerUnavailable, match=r"No space left.*disk is full") as caught:
            await ledger.record(entry("b", count=1))
        assert caught.value.retryable
        assert await ledger.find("b/0") is None
        assert await ledger.bundle("b") is None
        await ask(own_url, "TRUNCATE resources")
        assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_case_54_a_flipped_page_is_told(own: OwnServer, own_url: str) -> None:
    async with opening(own_url) as opened:
        ledger = SqlLedger(opened)
        await ledger.record(entry("b"))
        path = own.data / await ask(own_url, "SELECT pg_relation_filepath('bundles')")
        await asyncio.to_thread(own.stop)
        content = bytearray(path.read_bytes())
        content[:64] = b"\xa5" * 64
        path.write_bytes(content)
        await asyncio.to_thread(own.start)
        with pytest.raises(LedgerCorrupt, match="damaged"):
            await ledger.bundles()


# Answers that do not come.


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    direct = make_url(url)
    async with Proxy.to(str(direct.host), direct.port or 5432) as proxy:
        through = direct.set(host="127.0.0.1", port=proxy.port)
        yield proxy, through.render_as_string(hide_password=False)


async def test_case_42_a_commit_whose_reply_is_lost_is_found(url: str) -> None:
    async with proxied(url) as (proxy, through), opening(through) as opened:
        ledger = SqlLedger(opened)
        lost = proxy.drop_reply(lambda said: b"COMMIT;" in said)
        with pytest.raises(LedgerUnavailable):
            await ledger.record(entry("b", count=1))
        assert lost.is_set()
        assert await ledger.find("b/0") == "fingerprint-0"
        assert await ledger.record(entry("b", count=1)) == NOTHING
        assert await ledger.pending() == 1


async def test_case_42_a_connection_that_breaks_before_the_commit_changes_nothing(url: str) -> None:
    async with proxied(url) as (proxy, through), opening(through) as opened:
        ledger = SqlLedger(opened)
        lost = proxy.drop_reply(lambda said: b"INSERT INTO outbox" in said)
        with pytest.raises(LedgerUnavailable):
            await ledger.record(entry("b", count=1))
        assert lost.is_set()
        assert await ledger.find("b/0") is None
        assert await ledger.bundle("b") is None
        assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_case_41_a_half_open_connection_is_left_after_the_deadline(url: str) -> None:
    async with proxied(url) as (proxy, through), opening(through, deadline=SHORT) as opened:
        ledger = SqlLedger(opened)
        await ledger.record(entry("a"))
        proxy.black_hole()
        with pytest.raises(LedgerUnavailable, match="did not answer within 1 seconds"):
            await ledger.record(entry("b"))
        proxy.heal()
        await redelivered(ledger)
        await consistent(ledger, "b")


async def test_many_rows_may_take_longer_than_the_deadline(url: str) -> None:
    def slowly(conn: Connection) -> None:
        for _ in range(3):
            conn.execute(text("SELECT pg_sleep(0.5)"))

    async with opening(url, deadline=SHORT) as opened:
        with pytest.raises(LedgerUnavailable, match="did not answer within 1 seconds"):
            await opened.write(slowly)
        await opened.write(slowly, rows=100_000)


async def test_case_41_what_takes_too_long_is_ended_by_the_server(url: str) -> None:
    async with opening(url, deadline=3) as opened:
        pid = await opened.write(answer("SELECT pg_backend_pid()"))
        with pytest.raises(LedgerUnavailable, match="statement timeout"):
            await opened.write(sql("SELECT pg_sleep(60)"))
        assert await opened.write(answer("SELECT pg_backend_pid()")) == pid, "the connection is still good"


async def test_case_41_a_closing_does_not_wait_for_a_server_that_hangs(url: str) -> None:
    async with proxied(url) as (proxy, through), opening(through) as opened:
        await opened.read(sql("SELECT 1"))
        proxy.black_hole()
        await opened.aclose()
        with pytest.raises(LedgerUnavailable, match="is closed"):
            await opened.read(sql("SELECT 1"))


async def test_case_42_a_cancelled_caller_leaves_the_transaction_to_its_end(url: str) -> None:
    async with opening(url) as opened, session(url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE probe")
        task = asyncio.create_task(opened.write(sql("UPDATE probe SET at = 7")))
        await somebody_waits(url)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        closing = asyncio.create_task(opened.aclose())
        await asyncio.sleep(0)
        await transaction.rollback()
        await closing
        assert await other.fetchval("SELECT at FROM probe") == 7


# Conflicts and locks.


async def test_case_44_the_victim_of_a_deadlock_tries_again(url: str) -> None:
    async with opening(url) as opened, session(url) as other:
        # Who looks for the deadlock last is not its victim.
        await other.execute("SET deadlock_timeout = '1min'")
        ledger = SqlLedger(opened)
        await ledger.record(entry("b", 0))
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT 1 FROM bundles WHERE bid = 'b' FOR UPDATE")
        recording = asyncio.create_task(ledger.record(entry("b", 1, count=2)))
        await somebody_waits(url)
        # It has its message's row, and waits for the bundle's. Now the other way round:
        await other.execute("INSERT INTO messages VALUES ('b/1', 'foreign', 'b', 0)")
        assert not recording.done()
        await transaction.rollback()
        assert await recording == Recorded(completed=True)
        await consistent(ledger, "b")


async def conflicts(url: str, count: int) -> None:
    """The first `count` inserts of a message fail with a serialization failure."""
    async with session(url) as other:
        await other.execute(f"""
            CREATE SEQUENCE tries;
            CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('tries') <= {count} THEN
                    RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER conflict BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION conflict();
        """)


async def test_case_44_a_serialization_failure_is_tried_again(url: str, opened: PostgresqlDatabase) -> None:
    await conflicts(url, 3)
    assert await SqlLedger(opened).record(entry("b", count=1)) == Recorded(completed=True)
    assert await ask(url, "SELECT last_value FROM tries") == 4


async def test_case_44_conflicts_without_end_are_given_back_to_the_caller(
    url: str, opened: PostgresqlDatabase
) -> None:
    await conflicts(url, 1_000)
    with pytest.raises(LedgerUnavailable, match="could not serialize"):
        await SqlLedger(opened).record(entry("b", count=1))
    assert await ask(url, "SELECT last_value FROM tries") == 6


async def test_case_44_the_servers_default_isolation_does_not_matter(url: str) -> None:
    async with session(url) as other:
        await other.execute(f"ALTER DATABASE {name_of(url)} SET default_transaction_isolation = serializable")
    async with opening(url) as opened:
        isolation = answer("SELECT current_setting('transaction_isolation')")
        assert await opened.write(isolation) == "read committed"
        assert await opened.read(isolation) == "repeatable read", "what is read is of one moment"
        assert await opened.write(isolation) == "read committed", "a connection forgets what it was used for"
        with pytest.raises(LedgerUnavailable, match="read-only transaction"):
            await opened.read(sql("UPDATE probe SET at = 7"))


OUTBOX = "INSERT INTO outbox (event_id, bid, recipe_id, body, state, due_at, attempts, generation, completed_at) VALUES "


async def test_case_45_a_row_that_is_committed_late_is_claimed(url: str, opened: PostgresqlDatabase) -> None:
    """Its place in any order is before the row that was announced meanwhile."""
    ledger = SqlLedger(opened)
    async with session(url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(OUTBOX + "('early', 'early', 'r', '', 'pending', 0, 0, 0, 0)")
        await ledger.record(entry("b", count=1))
        assert await ledger.mark_published([await claimed(ledger, "b")]) == 1
        await transaction.commit()
        assert await ledger.mark_published([await claimed(ledger, "early")]) == 1


async def test_case_46_a_bundle_that_somebody_holds_fails_alone(url: str) -> None:
    async with opening(url, deadline=3) as opened, session(url) as other:
        ledger = SqlLedger(opened)
        await ledger.record(entry("held", 0))
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT 1 FROM bundles WHERE bid = 'held' FOR UPDATE")
        entries = [entry("held", 1), *(entry(bid, count=1) for bid in "abc")]
        outcomes = await asyncio.gather(*map(ledger.record, entries), return_exceptions=True)
        assert isinstance(outcomes[0], LedgerBusy)
        assert outcomes[1:] == [Recorded(completed=True)] * 3
        await transaction.rollback()
        assert await ledger.record(entry("held", 1)) == NOTHING


async def test_a_replay_that_was_answered_is_not_retired(url: str, opened: PostgresqlDatabase) -> None:
    """The sweep waits for a row that the replay holds, and then looks again."""
    ledger = SqlLedger(opened)
    await ledger.record(entry("b", count=1))
    await ledger.mark_published([await claimed(ledger, "b")])
    async with session(url) as other:
        transaction = other.transaction()
        await transaction.start()
        # As the ledger's own replay, halted before its commit.
        await other.execute("SELECT 1 FROM bundles WHERE bid = 'b' FOR UPDATE")
        await other.execute("UPDATE outbox SET state = 'pending', due_at = 0 WHERE bid = 'b'")
        assert await ledger.retire(0, 10) == Retired()
        await transaction.commit()
    assert await ledger.retire(0, 10) == Retired()
    assert await ledger.pending() == 1


async def test_a_claim_takes_no_more_than_its_limit_whatever_the_plan(url: str) -> None:
    """With statistics of one row the planner runs a subquery once for each row, and each run locks others."""
    async with opening(url) as opened, session(url) as other:
        ledger = SqlLedger(opened)
        await ledger.record(entry("a", count=1))
        await other.execute("VACUUM ANALYZE outbox")
        await together([ledger.record(entry(bid, count=1)) for bid in "bcde"])
        assert len(await ledger.claim(1, HOUR)) == 1


async def test_case_46_a_long_foreign_transaction_does_not_hold_up_the_others(url: str) -> None:
    async with opening(url, deadline=6) as opened, session(url) as other:
        ledger = SqlLedger(opened)
        await together([ledger.record(entry(bid, count=1)) for bid in "abcde"])
        transaction = other.transaction(isolation="repeatable_read")
        await transaction.start()
        await other.execute("SELECT 1 FROM outbox WHERE bid IN ('a', 'b') FOR UPDATE")
        rows = await ledger.claim(10, HOUR)
        assert {row.bid for row in rows} == {"c", "d", "e"}
        assert await ledger.mark_published(rows) == 3
        assert await ledger.record(entry("f", count=1)) == Recorded(completed=True)
        await transaction.rollback()
        assert {row.bid for row in await ledger.claim(10, HOUR)} == {"a", "b", "f"}


@pytest.mark.parametrize("hours", [1, -1])
async def test_case_50_only_the_clock_of_the_server_counts(url: str, hours: int) -> None:
    """Against a server whose clock is an hour off, and is moved on by hand."""
    async with session(url) as other:
        await other.execute(f"""
            CREATE SCHEMA skewed;
            CREATE TABLE skewed.shift AS SELECT interval '0' AS by;
            CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
                'SELECT pg_catalog.clock_timestamp() + by FROM skewed.shift';
            ALTER DATABASE {name_of(url)} SET search_path = skewed, pg_catalog, public;
        """)  # noqa: S608 - the name is the test's own

        async def move_on(seconds: int) -> None:
            await other.execute("UPDATE skewed.shift SET by = by + make_interval(secs => $1)", seconds)

        await move_on(3_600 * hours)

        async with opening(url) as opened:
            ledger = SqlLedger(opened)
            await ledger.record(entry("b", count=1))
            row = await claimed(ledger, "b", lease=60)
            assert abs(row.completed_at / 1000 - time.time() - 3_600 * hours) < 30
            await move_on(30)
            assert await ledger.claim(1, 60) == []
            assert await ledger.renew([row], 60) == 1
            await move_on(50)
            assert await ledger.claim(1, 60) == []
            await move_on(11)
            again = await claimed(ledger, "b", lease=60)
            assert await ledger.mark_published([row]) == 0
            assert await ledger.postpone(again, 100, "later")
            await move_on(89)
            assert await ledger.claim(1, 60) == []
            await move_on(12)
            assert await ledger.mark_published([await claimed(ledger, "b")]) == 1


# The schema.


async def test_case_12_several_processes_may_migrate_at_once(empty: str) -> None:
    """The children migrate, then write: one whose migration failed would end with an error."""
    processes = [await child("write", empty, str(number)) for number in range(3)]
    for process in processes:
        await process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    async with opening(empty) as opened:
        await check_schema(opened)


async def test_case_12_several_may_migrate_at_once(empty: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        several = [await stack.enter_async_context(opening(empty)) for _ in range(6)]
        await together([migrate(opened) for opened in several])
        await together([check_schema(opened) for opened in several])


async def test_case_12_a_process_killed_in_mid_migration_leaves_nothing(empty: str) -> None:
    async with session(empty) as other, opening(empty) as opened:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("CREATE TABLE outbox (in_the_way TEXT)")
        process = await child("write", empty)
        await somebody_waits(empty)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        assert await schema_version(opened) is None
        migrating = asyncio.create_task(migrate(opened))
        await transaction.rollback()
        assert await migrating is None
        assert await schema_version(opened) == HEAD
        await check_schema(opened)


async def test_case_12_a_migration_waits_for_another_beyond_the_deadline(empty: str) -> None:
    held = asyncio.Event()

    def hold(conn: Connection) -> None:
        held.set()
        conn.execute(text("SELECT pg_sleep(1.2)"))

    async with opening(empty) as opened, opening(empty, deadline=SHORT) as impatient:
        holding = asyncio.create_task(opened.exclusively(hold))
        await held.wait()
        assert await migrate(impatient) is None
        await holding


async def test_case_55_tables_that_are_not_there_ask_for_a_migration(empty: str) -> None:
    async with opening(empty) as opened:
        with pytest.raises(SchemaMismatch, match="does not exist; run: transload migrate"):
            await SqlLedger(opened).find("b/0")


# Behind PgBouncer the whole suite runs, in test_ledgers.py.


async def test_case_56_no_session_keeps_anything(url: str, pgbouncer: PgBouncer) -> None:
    async with opening(pgbouncer.through(url), pooler=True) as opened:
        ledger = SqlLedger(opened)
        await together([ledger.record(entry(f"b{number}", count=1)) for number in range(20)])
        await ledger.mark_published(await ledger.claim(100, HOUR))
    async with session(url) as other:
        await until(
            lambda: other.fetchval(
                "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
    # The next client of the same sessions finds them as they were.
    async with opening(pgbouncer.through(url), pooler=True) as opened:
        for query, expected in {
            "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''": 0,
            "SELECT reset_val FROM pg_settings WHERE name = 'statement_timeout'": "0",
            "SELECT count(*) FROM pg_listening_channels()": 0,
        }.items():
            assert (
                await on_every_connection(opened, query, SERVER_CONNECTIONS)
                == [expected] * SERVER_CONNECTIONS
            )


async def test_case_56_a_pooler_nobody_spoke_of_is_told(url: str, pgbouncer: PgBouncer) -> None:
    async with opening(pgbouncer.through(url)) as opened:
        with pytest.raises(LedgerUnavailable, match=r"statement_timeout.*set ledger\.pooler: true"):
            await opened.check()


async def test_case_56_limits_hold_behind_a_pooler(url: str, pgbouncer: PgBouncer) -> None:
    async with opening(pgbouncer.through(url), pooler=True, deadline=3) as opened:
        with pytest.raises(LedgerUnavailable, match="statement timeout"):
            await opened.write(sql("SELECT pg_sleep(60)"))


# Notifications.


@contextlib.asynccontextmanager
async def watching(opened: PostgresqlDatabase) -> AsyncIterator[asyncio.Queue[None]]:
    """One item for each wake-up; the first has been taken."""
    wakes: asyncio.Queue[None] = asyncio.Queue()
    task = asyncio.create_task(opened.watch(lambda: wakes.put_nowait(None)))
    try:
        await wakes.get()
        yield wakes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_completion_recorded_by_another_process_wakes_those_who_watch(url: str) -> None:
    async with opening(url) as opened, watching(opened) as wakes:
        process = await child("burst", url)
        await wakes.get()
        process.kill()
        await process.communicate()
        assert await SqlLedger(opened).claim(1, HOUR)


async def test_only_what_is_committed_wakes_anybody(url: str, opened: PostgresqlDatabase) -> None:
    def fail(conn: Connection) -> NoReturn:
        opened.notify(conn)
        raise LedgerRefused("the test says so")

    async with watching(opened) as wakes, opening(url) as other:
        with pytest.raises(LedgerRefused):
            await other.write(fail)
        await SqlLedger(other).record(entry("a"))
        await SqlLedger(other).record(entry("b", count=1))
        await wakes.get()
        await other.write(other.notify)
        await wakes.get()
        assert wakes.empty()


async def test_those_who_watch_are_woken_when_the_server_is_back_and_listen_again(
    own: OwnServer, own_url: str
) -> None:
    async with opening(own_url) as opened, watching(opened) as wakes:
        await asyncio.to_thread(own.stop)
        await asyncio.to_thread(own.start)
        await wakes.get()
        await opened.write(opened.notify)
        await wakes.get()


async def test_watching_ends_when_it_is_cancelled_and_leaves_no_connection(url: str) -> None:
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^LISTEN'"
    )
    async with opening(url) as opened, session(url) as other:
        async with watching(opened):
            assert await other.fetchval(listening) == 1
        await until(lambda: other.fetchval(listening.replace("count(*)", "count(*) = 0")))


@pytest.mark.parametrize("options", [{"listen": False}, {"pooler": True}])
async def test_watching_may_be_turned_off(url: str, options: dict[str, bool]) -> None:
    async with opening(url, **options) as opened:
        task = asyncio.create_task(opened.watch(lambda: pytest.fail("nobody listens")))
        await opened.write(opened.notify)
        listening = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^LISTEN'"
        )
        assert await ask(url, listening) == 0
        assert not task.done()
        task.cancel()


# What the server refuses, and how that is told.


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("22003", LedgerRefused, ""),
        ("23514", LedgerRefused, ""),
        ("54000", LedgerUnavailable, "session that listens"),
        ("0A000", LedgerUnavailable, ""),
        ("26000", LedgerError, "ledger.pooler: true"),
        ("42501", LedgerError, "grant it"),
        ("42601", LedgerError, ""),
        ("42P01", SchemaMismatch, "transload migrate"),
        ("42703", SchemaMismatch, "transload migrate"),
        ("40P01", LedgerUnavailable, ""),
        ("53100", LedgerUnavailable, "disk is full"),
        ("53300", LedgerUnavailable, ""),
        ("55P03", LedgerBusy, ""),
        ("57P01", LedgerUnavailable, ""),
        ("58030", LedgerUnavailable, ""),
        ("XX000", LedgerUnavailable, ""),
        ("XX001", LedgerCorrupt, "damaged"),
        ("XX002", LedgerCorrupt, "damaged"),
    ],
)
async def test_the_servers_errors(
    opened: PostgresqlDatabase, code: str, kind: type[LedgerError], told: str
) -> None:
    secret = str(opened.url.password)
    with pytest.raises(kind, match=f"the test says so.*{re.escape(told)}") as caught:
        await opened.write(
            sql(f"DO $$ BEGIN RAISE 'the test says so {secret}' USING ERRCODE = '{code}'; END $$")
        )
    assert type(caught.value) is kind
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "a\0b"},
        {"recipe_id": "\ud800"},
        {"count": 2**31},
        {"targets": (BundleTarget("t", "\0", "m"),), "meta": {"n": float("nan")}},
    ],
    ids=["NUL", "lone surrogate", "beyond 32 bits", "no JSON"],
)
async def test_what_a_column_cannot_hold_is_refused_alone(
    opened: PostgresqlDatabase, changes: dict[str, Any]
) -> None:
    ledger = SqlLedger(opened)
    entries = [entry("a", count=1), entry("bad", **changes), entry("c", count=1)]
    outcomes: Sequence[Any] = await asyncio.gather(*map(ledger.record, entries), return_exceptions=True)
    assert outcomes[0] == outcomes[2] == Recorded(completed=True)
    assert type(outcomes[1]) is LedgerRefused
    assert await ledger.find("bad/0") is None
    assert await ledger.bundle("bad") is None


async def test_json_holds_a_nul(opened: PostgresqlDatabase) -> None:
    ledger = SqlLedger(opened)
    await ledger.record(entry("b", meta={"text": "a\0b"}))
    bundle = await ledger.bundle("b")
    assert bundle is not None
    assert bundle.meta == {"text": "a\0b"}


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"password": "canary"}, LedgerError, "password authentication failed.*correct user and password"),
        ({"database": "nowhere"}, LedgerError, "does not exist; create the database"),
        ({"port": 1}, LedgerUnavailable, "Connect call failed"),
        ({"query": {"sslmode": "nonsense"}}, LedgerError, "sslmode.*correct ledger.url"),
        ({"query": {"sslmode": "require"}}, LedgerUnavailable, "SSL"),
    ],
)
async def test_a_connection_that_cannot_be_made_is_told_without_the_password(
    url: str, changes: dict[str, Any], kind: type[LedgerError], told: str
) -> None:
    wrong = make_url(url).set(**changes)
    async with opening(wrong.render_as_string(hide_password=False)) as opened:
        with pytest.raises(kind, match=told) as caught:
            await opened.check()
        assert type(caught.value) is kind
        assert str(wrong.password) not in str(caught.value)


async def test_a_server_that_acknowledges_before_it_wrote_is_refused(
    url: str, postgresql: PostgresqlServer
) -> None:
    await postgresql.run(f"ALTER DATABASE {name_of(url)} SET synchronous_commit = off")
    async with opening(url) as opened:
        with pytest.raises(LedgerError, match="synchronous_commit = on"):
            await check_schema(opened)


async def test_a_database_that_cannot_hold_all_text_is_refused(postgresql: PostgresqlServer) -> None:
    making = postgresql.database(migrated=False, options="ENCODING 'SQL_ASCII'")
    async with making as url, opening(url) as opened:
        await migrate(opened)
        with pytest.raises(LedgerError, match=r"SQL_ASCII.*ENCODING 'UTF8'"):
            await check_schema(opened)


async def test_a_primary_that_became_a_standby_is_left(url: str, postgresql: PostgresqlServer) -> None:
    await postgresql.run(f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
    async with opening(url) as opened:
        ledger = SqlLedger(opened)
        with pytest.raises(LedgerUnavailable, match="read-only"):
            await ledger.record(entry("b", count=1))
        await postgresql.run(f"ALTER DATABASE {name_of(url)} RESET default_transaction_read_only")
        assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)


async def test_a_standby_is_refused_at_the_start(url: str) -> None:
    async with session(url) as other:
        await other.execute(f"""
            CREATE SCHEMA standby;
            CREATE FUNCTION standby.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true';
            ALTER DATABASE {name_of(url)} SET search_path = standby, pg_catalog, public;
        """)
    async with opening(url) as opened:
        with pytest.raises(LedgerUnavailable, match="the primary's address"):
            await check_schema(opened)
