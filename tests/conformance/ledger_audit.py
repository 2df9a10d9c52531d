"""What every ledger promises about its audit trail. Part of tests/conformance/ledgers.py."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Executable, delete, insert, text, update

from tests.conformance.ledger_transfers import entry as transferred
from tests.conformance.ledger_transfers import lying
from worker.ledger.audit import PAGE
from worker.ledger.base import Ledger, LedgerError, LedgerRefused
from worker.ledger.database import Database as Connections
from worker.ledger.database import open_database
from worker.ledger.schema import audit, audit_retention, now_ms
from worker.ledger.sql import SqlLedger
from worker.ledger.values import (
    AuditQuery,
    AuditRecord,
    AuditRow,
    AuditSpan,
    Close,
    Entry,
    StoredObject,
    StoredResource,
    Transfer,
)

if TYPE_CHECKING:
    from tests.conformance.ledgers import Database

ACTOR = "worker@here"


def entry(number: int, count: int | None = None, bid: str = "b", **changes: Any) -> Entry:
    """The record of a bundle's resource, which lies in two targets."""
    resource = StoredResource(
        resource_id=f"r{number}",
        url=f"https://example.com/{number}",
        content_type=None,
        status_code=None,
        meta={},
        location=f"s3://staging/{number}",
        objects=tuple(
            StoredObject(target, f"{bid}/{number}", number, f"{number}a" * 32) for target in ("cloud", "disk")
        ),
    )
    made = Entry(
        message_id=f"{bid}/{number}",
        fingerprint=f"f{number}",
        bid=bid,
        recipe_id="recipe",
        primary_url="https://example.com/",
        resources_count=count,
        meta={},
        targets=transferred().targets,
        resource=resource,
    )
    return replace(made, **changes)


async def trail(ledger: Ledger, **asked: Any) -> list[AuditRow]:
    return [row async for row in ledger.audit_trail(AuditQuery(**asked))]


async def actions(ledger: Ledger) -> list[str]:
    return [row.record.action for row in await trail(ledger)]


async def told(ledger: Ledger, action: str) -> list[AuditRecord]:
    return [row.record for row in await trail(ledger) if row.record.action == action]


async def filled(ledger: Ledger, count: int) -> None:
    await ledger.audit([AuditRecord("redriven", f"b{number % 3}") for number in range(count)])


@contextlib.asynccontextmanager
async def connections(database: "Database") -> AsyncIterator[Connections]:
    opened = open_database(database.url, pooler=database.pooler)
    yield opened
    await opened.aclose()


def run(statement: Executable, conn: Connection) -> None:
    conn.execute(statement)


class Auditing:
    """See `audit` and its neighbours in worker/ledger/base.py."""

    @pytest.fixture
    def audited(self, database: "Database") -> SqlLedger:
        return database.open(actor=ACTOR)

    async def test_what_is_stored_is_told_of_each_object(self, audited: Ledger) -> None:
        await audited.record(entry(1))
        await audited.record(entry(2))
        rows = await trail(audited)
        assert [row.id for row in rows] == sorted(row.id for row in rows)
        assert {row.actor for row in rows} == {ACTOR}
        assert [row.record for row in rows] == [
            AuditRecord(
                "stored",
                "b",
                "recipe",
                f"https://example.com/{number}",
                target,
                f"b/{number}",
                number,
                f"{number}a" * 32,
            )
            for number in (1, 2)
            for target in ("cloud", "disk")
        ]
        bundle = await audited.bundle("b")
        assert bundle is not None
        assert all(0 <= row.at - bundle.created_at < 60_000 for row in rows)

    async def test_what_is_recorded_twice_is_told_once(self, audited: Ledger) -> None:
        await asyncio.gather(*(audited.record(entry(1)) for _ in range(5)))
        await audited.record(entry(1))
        await audited.record(entry(1, message_id="another", fingerprint="f"))
        assert await actions(audited) == ["stored", "stored"]

    async def test_nothing_is_told_of_what_is_refused(self, audited: Ledger) -> None:
        good = entry(1)
        assert good.resource is not None
        objects = (replace(good.resource.objects[0], size=2**63),)
        outcomes = await asyncio.gather(
            audited.record(replace(good, resource=replace(good.resource, objects=objects))),
            audited.record(entry(2, bid="other")),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], LedgerRefused)
        assert {row.record.bid for row in await trail(audited)} == {"other"}

    async def test_a_bundle_from_its_completion_to_its_end(self, audited: Ledger) -> None:
        await audited.record(entry(1, count=1))
        (row,) = await audited.claim(10, 60)
        await audited.mark_published([row])
        await audited.mark_published([row])
        await audited.replay("b")
        await audited.replay("b")
        (again,) = await audited.claim(10, 60)
        await audited.mark_published([again])
        await audited.mark_unstaged({"b": 0})
        await audited.mark_unstaged({"b": 1})
        await audited.mark_unstaged({"b": 1})
        await audited.retire(0, 10)
        await audited.retire(0, 10)
        expected = ["stored"] * 2 + ["completed", "published", "replayed", "published", "unstaged", "retired"]
        assert await actions(audited) == expected
        digest = hashlib.sha256(row.body).hexdigest()
        for action in ("completed", "published"):
            record = (await told(audited, action))[0]
            assert (record.bid, record.recipe_id) == ("b", "recipe")
            assert (record.size, record.sha256) == (len(row.body), digest)
            assert row.event_id in str(record.detail)
        (unstaged,) = await told(audited, "unstaged")
        assert (unstaged.url, unstaged.detail) == ("https://example.com/", "the payloads of 1 resources")
        assert await told(audited, "retired") == [
            AuditRecord("retired", "b", "recipe", "https://example.com/")
        ]

    async def test_a_closing_that_completes_is_told(self, audited: Ledger) -> None:
        await audited.record(entry(1))
        await audited.record(
            entry(0, message_id="c", fingerprint="c", resource=None, close=Close(1, {}), resources_count=1)
        )
        assert await actions(audited) == ["stored", "stored", "completed"]

    async def test_a_claim_that_has_passed_tells_nothing(self, audited: Ledger) -> None:
        await audited.record(entry(1, count=1))
        (stale,) = await audited.claim(10, -1)
        (row,) = await audited.claim(10, 60)
        assert await audited.mark_published([stale]) == 0
        assert "published" not in await actions(audited)
        assert await audited.mark_published([row]) == 1
        assert (await actions(audited))[-1] == "published"

    async def test_parked_completions_that_are_tried_again_are_told(self, audited: Ledger) -> None:
        for bid in ("a", "b"):
            await audited.record(entry(1, count=1, bid=bid))
        for row in await audited.claim(10, 60):
            await audited.park(row, "refused")
        assert await audited.retry_parked(["nobody"]) == 0
        assert await audited.retry_parked() == 2
        assert sorted(record.bid or "" for record in await told(audited, "retried")) == ["a", "b"]

    async def test_a_later_copy_is_told_when_it_is_there(self, audited: Ledger) -> None:
        await audited.record(transferred(0, "disk", missing=["mirror"]))
        late = transferred(0, "mirror")
        for _ in range(2):
            await audited.settle(late, [Transfer("mirror", lying("mirror"))])
        copies = await told(audited, "stored")
        assert [(copy.target, copy.key) for copy in copies] == [
            ("disk", lying("disk").key),
            ("mirror", lying("mirror").key),
        ]
        assert (copies[0].detail is None, copies[1].detail is None) == (True, False)

    async def test_without_an_actor_nothing_is_kept(self, database: "Database") -> None:
        ledger = database.open()
        await ledger.record(entry(1, count=1))
        await ledger.audit([AuditRecord("redriven")])
        assert await trail(ledger) == []
        assert await ledger.audit_span() == AuditSpan(0, 0)

    async def test_what_operators_do_is_told_in_their_name(self, database: "Database") -> None:
        ledger = database.open(actor="cli:eve@desk")
        record = AuditRecord("removed", "b", "r", "u", "t", "k", 2**40, "ab" * 32, "by hand\0\ud800")
        await ledger.audit([record])
        await ledger.audit([])
        (row,) = await trail(ledger)
        assert (row.actor, row.record) == (
            "cli:eve@desk",
            replace(record, detail="by hand\N{REPLACEMENT CHARACTER}?"),
        )

    # Nothing is changed, and nothing is deleted but by retention.

    async def test_no_row_can_be_changed_or_deleted(self, database: "Database", audited: Ledger) -> None:
        await filled(audited, 5)
        before = await trail(audited)
        number = before[0].id
        deletions: list[Executable] = [delete(audit), delete(audit).where(audit.c.id == number)]
        forged = f"INTO audit (id, at, actor, action) VALUES ({number}, 0, 'nobody', 'stored')"
        if database.url.startswith("sqlite"):
            special = [f"INSERT OR REPLACE {forged}", "UPDATE OR REPLACE audit SET id = id + 1"]
        else:
            special = [f"INSERT {forged}", "TRUNCATE audit", f"INSERT {forged} ON CONFLICT (id) DO NOTHING"]
        changes: list[Executable] = [
            update(audit).values(actor="nobody"),
            update(audit).where(audit.c.id == number).values(detail="x"),
            *map(text, special),
        ]
        async with connections(database) as opened:
            for statement in (*deletions, *changes):
                with pytest.raises(LedgerError, match=r"append-only|non-DEFAULT value"):
                    await opened.write(partial(run, statement))
            await opened.write(partial(run, delete(audit_retention)))
            for statement in deletions:
                # Without the row that says what may go, nothing may.
                with pytest.raises(LedgerError, match="append-only"):
                    await opened.write(partial(run, statement))
        assert await trail(audited) == before

    async def test_old_rows_go_from_the_beginning(self, audited: Ledger) -> None:
        await filled(audited, 10)
        rows = await trail(audited)
        assert await audited.trim_audit(3600, 100) == 0
        assert await audited.trim_audit(0, 4) == 4
        assert await trail(audited) == rows[4:]
        assert await audited.audit_span() == AuditSpan(rows[3].id, rows[9].id)
        assert await audited.trim_audit(0, 100) == 6
        assert await audited.trim_audit(0, 100) == 0
        assert await audited.audit_span() == AuditSpan(rows[9].id, rows[9].id)
        await filled(audited, 1)
        (fresh,) = await trail(audited)
        assert fresh.id > rows[9].id, "ids are not used again"

    async def test_a_young_row_keeps_those_behind_it(self, database: "Database", audited: Ledger) -> None:
        """A clock that jumped makes no hole in the trail."""

        def fill(conn: Connection) -> None:
            for age in (7200, 7200, 0, 7200):
                values = {"at": now_ms() - age * 1000, "actor": "a", "action": "stored"}
                conn.execute(insert(audit).values(values))

        async with connections(database) as opened:
            await opened.write(fill)
        assert await audited.trim_audit(3600, 100) == 2
        assert len(await trail(audited)) == 2

    async def test_several_workers_trim_at_once(self, database: "Database") -> None:
        ledgers = [database.open(actor=ACTOR) for _ in range(3)]
        await filled(ledgers[0], 30)
        counts = await asyncio.gather(*(each.trim_audit(0, 10) for each in ledgers))
        assert sum(counts) == 30
        assert await trail(ledgers[0]) == []

    # Reading it.

    async def test_it_is_read_in_pages(self, audited: Ledger) -> None:
        await filled(audited, PAGE + 10)
        rows = await trail(audited)
        assert len(rows) == PAGE + 10
        assert [row.id for row in rows] == sorted({row.id for row in rows})
        assert await trail(audited, after=rows[PAGE - 1].id) == rows[PAGE:]
        assert await trail(audited, after=rows[-1].id) == []
        assert await trail(audited, after=rows[4].id, through=rows[6].id) == rows[5:7]
        assert await trail(audited, bid="b2", after=rows[PAGE - 3].id) == [
            row for row in rows[PAGE - 2 :] if row.record.bid == "b2"
        ]
        assert len(await trail(audited, bid="b1")) == sum(row.record.bid == "b1" for row in rows)

    async def test_times_are_the_databases(self, audited: Ledger) -> None:
        await filled(audited, 1)
        (row,) = await trail(audited)
        assert await trail(audited, since=row.at) == [row]
        assert await trail(audited, since=row.at + 1) == []
        assert await trail(audited, until=row.at) == []
        assert await trail(audited, since=row.at, until=row.at + 1) == [row]

    async def test_a_reader_who_goes_on_from_the_last_id_misses_nothing(self, database: "Database") -> None:
        """Writers commit in another order than that of their ids, while somebody reads up to the safe point again and again."""
        writers = [database.open(actor=f"worker@{number}") for number in range(3)]
        reader = database.open()
        writing = asyncio.gather(*(write(ledger, number) for number, ledger in enumerate(writers)))
        seen: list[AuditRow] = []
        after = 0
        while not writing.done() or (await reader.audit_span()).last > after:
            span = await reader.audit_span()
            seen += await trail(reader, after=after, through=span.last)
            after = span.last
        await writing
        assert seen == await trail(reader)
        assert len(seen) == len(writers) * 20 * 2


async def write(ledger: Ledger, number: int) -> None:
    for at in range(20):
        await ledger.record(entry(at, bid=f"b{number}"))
