"""What every ledger promises, as tests. `test_ledgers.py` runs it for each kind of database.

A subclass supplies the fixture `database`: an empty, migrated database that any number of ledgers can be opened on.

Run as a program (`python -m tests.conformance.ledgers`) this file is the other process of the tests that need one.
"""

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, insert, select

from handlers.payload import Before
from handlers.plan import BundleTarget
from tests.conformance.ledger_audit import Auditing
from tests.conformance.ledger_contents import Contents
from tests.conformance.ledger_search import Searching
from tests.conformance.ledger_transfers import Transfers
from tests.support.programs import Program, begin
from worker.attempts import CRASHED, Attempt
from worker.ledger.base import Ledger, LedgerError
from worker.ledger.database import migrate, open_database
from worker.ledger.queries import PAGE_OBJECTS
from worker.ledger.schema import now_ms, outbox
from worker.ledger.schema import transfers as notes
from worker.ledger.sql import SqlLedger
from worker.ledger.values import (
    Close,
    Entry,
    OutboxRow,
    Recorded,
    Retired,
    StoredObject,
    StoredResource,
    Summary,
    Transfer,
)
from worker.notification import event_id

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
HOUR = 3_600.0
NOTHING = Recorded()


def targets(bid: str) -> tuple[BundleTarget, ...]:
    """Where a bundle lies."""
    return tuple(BundleTarget(name, f"{name}/{bid}", f"{name}/{bid}/manifest") for name in ("disk", "cloud"))


def entry(bid: str, number: int = 0, *, count: int | None = None, **changes: Any) -> Entry:
    """The record of a bundle's resource `number`."""
    made = Entry(
        message_id=f"{bid}/{number}",
        fingerprint=f"fingerprint-{number}",
        bid=bid,
        recipe_id="recipe",
        primary_url="https://example.com/é",
        resources_count=count,
        meta={"run": "1", "text": "é😀"},
        targets=targets(bid),
        resource=StoredResource(
            resource_id=f"r{number:05}",
            url=f"https://example.com/{number}",
            content_type="text/html",
            status_code=200,
            meta={"n": number},
            location=f"s3://staging/{number}",
            objects=tuple(
                StoredObject(t.target, f"{t.storage_key}/{number}", number, "0" * 64, "etag", "v1")
                for t in sorted(targets(bid), key=lambda target: target.target)
            ),
        ),
    )
    return replace(made, **changes)


def closing(bid: str, count: int, message: str = "closed", **metadata: Any) -> Entry:
    """The record of `bundle.closed`."""
    return entry(
        bid,
        message_id=f"{bid}/{message}",
        fingerprint=f"closed-{count}",
        resource=None,
        close=Close(count, metadata),
        resources_count=count,
    )


def refused(bid: str) -> Entry:
    """An entry no database takes: a size beyond 64 bits."""
    good = entry(bid)
    assert good.resource is not None
    objects = (replace(good.resource.objects[0], size=2**63),)
    return replace(good, resource=replace(good.resource, objects=objects))


@dataclass(frozen=True, slots=True)
class Database:
    """An empty, migrated database; `opened` ends with every ledger closed."""

    url: str
    closing: contextlib.AsyncExitStack
    pooler: bool = False
    """The URL leads to a pooler."""

    def open(self, actor: str | None = None) -> SqlLedger:
        """Another ledger on the same database, as another process would have it; with an `actor` it keeps an audit trail."""
        ledger = SqlLedger(open_database(self.url, pooler=self.pooler), actor=actor)
        self.closing.push_async_callback(ledger.aclose)
        return ledger

    async def fill_outbox(self, rows: Sequence[tuple[str, int]]) -> None:
        """Pending rows, each due so many milliseconds from now (negative: overdue)."""

        def fill(conn: Connection) -> None:
            now = conn.execute(select(now_ms())).scalar_one()
            conn.execute(
                insert(outbox),
                [
                    {
                        "event_id": event_id(bid),
                        "bid": bid,
                        "recipe_id": "recipe",
                        "body": b"{}",
                        "state": "pending",
                        "due_at": now + due,
                        "attempts": 1,
                        "generation": 1,
                        "completed_at": now + due,
                    }
                    for bid, due in rows
                ],
            )

        database = open_database(self.url, pooler=self.pooler)
        await database.write(fill)
        await database.aclose()

    async def child(self, work: str, number: int = 0) -> Program:
        """Another process on the same database."""
        return await child(work, self.url, str(number), *(["pooler"] if self.pooler else []))


async def record_all(ledger: Ledger, entries: Sequence[Entry]) -> list[Recorded]:
    """One after the other."""
    return [await ledger.record(each) for each in entries]


async def together(calls: Sequence[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*calls))


async def claimed(ledger: Ledger, bid: str, lease: float = HOUR) -> OutboxRow:
    """The only due row, which is that bundle's."""
    (row,) = await ledger.claim(10, lease)
    assert row.bid == bid
    return row


async def publish(ledger: Ledger, *bids: str, resources: int = 1) -> None:
    """Bundles whose completion is out, published one after the other."""
    for bid in bids:
        await record_all(ledger, [entry(bid, number, count=resources) for number in range(resources)])
        await ledger.mark_published([await claimed(ledger, bid)])
        await past_publication(ledger, bid)


async def past_publication(ledger: Ledger, bid: str) -> None:
    """Until the clock has gone on, so that what is published next is younger."""
    bundle = await ledger.bundle(bid)
    assert bundle is not None
    assert bundle.published_at is not None
    while time.time() * 1000 < bundle.published_at + 1:  # noqa: ASYNC110 - nobody tells of the time
        await asyncio.sleep(0.0005)


async def listed(ledger: Ledger, bid: str) -> list[StoredResource]:
    return [resource async for resource in ledger.resources(bid)]


async def consistent(ledger: Ledger, bid: str) -> None:
    """The counter, the rows and the state of a bundle tell one story."""
    bundle = await ledger.bundle(bid)
    assert bundle is not None
    stored = [resource for resource in await listed(ledger, bid) if not resource.late]
    assert bundle.stored_count == len(stored)
    complete = bundle.resources_count is not None and bundle.stored_count >= bundle.resources_count
    assert (bundle.state != "open") is complete


def child(*arguments: str) -> Awaitable[Program]:
    return begin("-m", "tests.conformance.ledgers", *arguments)


def attempt(detail: str, *, outage: bool = False) -> Attempt:
    return Attempt(0.0, "Refused", detail, outage)


class LedgerConformance(Auditing, Contents, Searching, Transfers):
    """See worker/ledger/base.py for the contract."""

    @pytest.fixture(autouse=True)
    async def _bounded(self) -> AsyncIterator[None]:
        """A call that is never answered fails its test instead of holding up the run."""
        loop = asyncio.get_running_loop()
        stuck = loop.call_later(60, lambda: [task.cancel("stuck") for task in asyncio.all_tasks(loop)])
        yield
        stuck.cancel()

    @pytest.fixture
    def ledger(self, database: Database) -> SqlLedger:
        return database.open()

    # What was recorded is known.

    async def test_a_message_is_found_once_it_is_recorded(self, ledger: Ledger) -> None:
        assert await ledger.find("b/0") is None
        assert await ledger.record(entry("b")) == NOTHING
        assert await ledger.find("b/0") == "fingerprint-0"
        assert await ledger.find("b/1") is None

    async def test_many_finds_at_once(self, ledger: Ledger) -> None:
        await together([ledger.record(entry("b", number)) for number in range(300)])
        ids = [f"b/{number}" for number in [*range(600), *range(50)]]
        found = await together([ledger.find(id_) for id_ in ids])
        assert found == [f"fingerprint-{n}" if n < 300 else None for n in [*range(600), *range(50)]]

    async def test_what_was_recorded_reads_back(self, ledger: Ledger) -> None:
        first = entry("b", 1, count=2)
        await ledger.record(first)
        bundle = await ledger.bundle("b")
        assert bundle is not None
        assert (bundle.bid, bundle.recipe_id, bundle.primary_url) == ("b", "recipe", "https://example.com/é")
        assert (bundle.state, bundle.resources_count, bundle.stored_count) == ("open", 2, 1)
        assert (bundle.closed, bundle.meta, bundle.metadata) == (False, {"run": "1", "text": "é😀"}, {})
        assert bundle.targets == targets("b")
        assert bundle.completed_at is bundle.published_at is None
        assert await listed(ledger, "b") == [first.resource]
        assert await ledger.bundle("other") is None
        assert await listed(ledger, "other") == []

    async def test_recording_again_changes_nothing(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0, count=2), entry("b", 0, count=2)])
        before = await ledger.bundle("b")
        assert before is not None
        assert (before.state, before.stored_count) == ("open", 1)
        assert await ledger.record(entry("b", 1)) == Recorded(completed=True)
        after = await ledger.bundle("b")
        assert await record_all(ledger, [entry("b", 0), entry("b", 1)]) == [NOTHING, NOTHING]
        assert await ledger.bundle("b") == after
        assert await ledger.pending() == 1

    async def test_case_19_a_duplicate_in_one_batch_has_one_effect(self, ledger: Ledger) -> None:
        outcomes = await together([ledger.record(entry("b", 0, count=2)) for _ in range(5)])
        assert outcomes == [NOTHING] * 5
        outcomes = await together([ledger.record(entry("b", 1, count=2)) for _ in range(5)])
        assert sum(outcome.completed for outcome in outcomes) == 1
        assert not any(outcome.late for outcome in outcomes)
        await consistent(ledger, "b")
        assert await ledger.pending() == 1

    async def test_case_19_a_duplicate_on_two_workers_has_one_effect(self, database: Database) -> None:
        ledgers = [database.open(), database.open()]
        for number in range(10):
            bid = f"b{number}"
            outcomes = await together([each.record(entry(bid, count=1)) for each in ledgers])
            assert sum(outcome.completed for outcome in outcomes) == 1
            await consistent(ledgers[0], bid)
        assert await ledgers[0].pending() == 10

    async def test_case_78_one_id_for_two_things_in_one_batch(self, ledger: Ledger) -> None:
        first = entry("a", count=1, message_id="m")
        other = entry("b", count=1, message_id="m", fingerprint="other")
        outcomes = await together(
            [ledger.record(each) for each in (first, other, replace(first), replace(other))]
        )
        assert [outcome.conflict for outcome in outcomes] == [False, True, False, True]
        assert sum(outcome.completed for outcome in outcomes) == 1
        assert await ledger.find("m") == first.fingerprint
        assert await ledger.bundle("b") is None, "no ghost of what was refused"
        assert await listed(ledger, "b") == []
        assert (await claimed(ledger, "a")).bid == "a"

    async def test_case_78_one_id_for_two_things_one_after_the_other(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0, count=2)])
        before = await ledger.bundle("b")
        for other in (
            entry("b", 1, count=2, message_id="b/0"),
            closing("b", 1, message="0"),
            entry("ghost", 7, count=1, message_id="b/0"),
        ):
            assert await ledger.record(other) == Recorded(conflict=True)
        assert await ledger.bundle("b") == before
        assert await listed(ledger, "b") == [entry("b", 0).resource]
        assert await ledger.bundle("ghost") is None
        assert await ledger.pending() == 0

    async def test_case_78_one_id_for_two_things_on_two_workers(self, database: Database) -> None:
        ledgers = [database.open(), database.open()]
        for number in range(10):
            rivals = [
                entry(f"b{number}-{at}", count=1, message_id=f"m{number}", fingerprint=f"f{at}")
                for at in range(2)
            ]
            outcomes = await together(
                [each.record(rival) for each, rival in zip(ledgers, rivals, strict=True)]
            )
            assert sorted(outcome.conflict for outcome in outcomes) == [False, True]
            winner, loser = sorted(zip(outcomes, rivals, strict=True), key=lambda each: each[0].conflict)
            assert winner[0] == Recorded(completed=True)
            for each in ledgers:
                assert await each.find(f"m{number}") == winner[1].fingerprint
                assert await each.record(loser[1]) == Recorded(conflict=True)
                assert await each.bundle(loser[1].bid) is None
                assert await listed(each, loser[1].bid) == []
        assert await ledgers[0].pending() == 10

    # Completion.

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("counted_by", ["messages", "close"])
    @pytest.mark.parametrize("at_once", [False, True])
    async def test_any_order_completes_with_the_last(
        self, ledger: Ledger, order: tuple[int, ...], counted_by: str, at_once: bool
    ) -> None:
        if counted_by == "messages":
            parts = [entry("b", number, count=3) for number in range(3)]
        else:
            parts = [entry("b", 0), entry("b", 1), closing("b", 2, source="x")]
        entries = [parts[index] for index in order]
        if at_once:
            outcomes = await together([ledger.record(each) for each in entries])
        else:
            outcomes = await record_all(ledger, entries)
        assert [outcome.completed for outcome in outcomes] == [False, False, True]
        stored = 3 if counted_by == "messages" else 2
        bundle = await ledger.bundle("b")
        assert bundle is not None
        assert (bundle.state, bundle.resources_count, bundle.stored_count) == ("complete", stored, stored)
        body = json.loads((await claimed(ledger, "b")).body)
        assert body["resources_count"] == stored
        assert body["metadata"].get("source") == (None if counted_by == "messages" else "x")
        assert [target["target"] for target in body["targets"]] == ["disk", "cloud"]
        assert (body["event_id"], body["storage_key"]) == (event_id("b"), "disk/b")

    async def test_case_9_the_last_two_resources_on_two_workers(self, database: Database) -> None:
        ledgers = [database.open(), database.open()]
        for number in range(30):
            bid = f"b{number}"
            await ledgers[number % 2].record(entry(bid, 0, count=3))
            outcomes = await together(
                [each.record(entry(bid, at, count=3)) for at, each in enumerate(ledgers, 1)]
            )
            assert sorted(outcome.completed for outcome in outcomes) == [False, True]
            await consistent(ledgers[0], bid)
        rows = await ledgers[0].claim(100, HOUR)
        assert sorted(row.bid for row in rows) == sorted(f"b{number}" for number in range(30))

    async def test_an_empty_bundle_is_complete_when_it_is_closed(self, ledger: Ledger) -> None:
        assert await ledger.record(closing("b", 0)) == Recorded(completed=True)
        assert json.loads((await claimed(ledger, "b")).body)["resources_count"] == 0
        assert await listed(ledger, "b") == []

    async def test_case_79_a_late_resource_is_stored_and_completes_nothing(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0), closing("b", 1)])
        before = await ledger.bundle("b")
        row = await claimed(ledger, "b", lease=0)
        assert await ledger.record(entry("b", 1)) == Recorded(late=True)
        assert await ledger.record(entry("b", 1)) == NOTHING
        assert await ledger.bundle("b") == before
        assert [resource.late for resource in await listed(ledger, "b")] == [False, True]
        again = await claimed(ledger, "b")
        assert (again.body, again.event_id) == (row.body, row.event_id)
        await ledger.mark_published([again])
        assert await ledger.record(entry("b", 2)) == Recorded(late=True)
        assert await ledger.pending() == 0

    async def test_case_79_a_close_after_completion_changes_nothing(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", 0, count=1))
        before = await ledger.bundle("b")
        for number, count in enumerate((1, 5, 0)):
            assert await ledger.record(closing("b", count, message=f"closed-{number}")) == NOTHING
        assert await ledger.bundle("b") == before
        assert await ledger.pending() == 1

    async def test_case_79_the_first_count_named_holds_until_the_close(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0), entry("b", 1, count=4), entry("b", 2, count=3)])
        bundle = await ledger.bundle("b")
        assert bundle is not None
        assert (bundle.state, bundle.resources_count, bundle.stored_count) == ("open", 4, 3)
        assert await ledger.record(closing("b", 3)) == Recorded(completed=True)

    async def test_case_79_the_close_has_the_last_word(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0, count=9), closing("b", 2, run="1"), closing("b", 5, "again")])
        bundle = await ledger.bundle("b")
        assert bundle is not None
        assert (bundle.resources_count, bundle.closed, bundle.metadata) == (2, True, {"run": "1"})
        assert await ledger.record(entry("b", 1, count=9)) == Recorded(completed=True)

    async def test_a_close_below_what_is_stored_completes(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("b", 0), entry("b", 1)])
        assert await ledger.record(closing("b", 1)) == Recorded(completed=True)
        assert json.loads((await claimed(ledger, "b")).body)["resources_count"] == 2

    async def test_bundles_of_one_batch_do_not_mix(self, ledger: Ledger) -> None:
        bids = [f"b{number}" for number in range(40)]
        entries = [entry(bid, number, count=5) for number in range(5) for bid in bids]
        outcomes = await together([ledger.record(each) for each in entries])
        assert sum(outcome.completed for outcome in outcomes) == len(bids)
        for bid in bids:
            await consistent(ledger, bid)
        assert {row.bid for row in await ledger.claim(100, HOUR)} == set(bids)

    # Claims.

    async def test_a_claim_hides_its_rows_while_the_lease_runs(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        row = await claimed(ledger, "b", lease=HOUR)
        assert (row.attempts, row.recipe_id, row.event_id) == (1, "recipe", event_id("b"))
        assert await ledger.claim(10, HOUR) == []
        assert await ledger.pending() == 1

    async def test_one_bundles_row_may_be_claimed_alone(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("a", count=1), entry("b", count=1)])
        assert [row.bid for row in await ledger.claim(10, HOUR, "b")] == ["b"]
        assert await ledger.claim(10, HOUR, "b") == []
        assert await ledger.claim(10, HOUR, "none") == []
        assert [row.bid for row in await ledger.claim(10, HOUR)] == ["a"]

    async def test_a_lease_that_has_run_out_is_claimed_again(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        first = await claimed(ledger, "b", lease=0)
        second = await claimed(ledger, "b")
        assert second.generation > first.generation
        assert (second.attempts, second.body, second.completed_at) == (2, first.body, first.completed_at)

    async def test_case_49_a_stale_owner_changes_no_row(self, database: Database) -> None:
        old, new = database.open(), database.open()
        await old.record(entry("b", count=1))
        stale = await claimed(old, "b", lease=0)
        row = await claimed(new, "b")
        assert await old.mark_published([stale]) == 0
        assert not await old.postpone(stale, 0, "late")
        assert not await old.park(stale, "late")
        assert await old.renew([stale], 0) == 0
        assert await new.claim(10, HOUR) == [], "the stale owner has not made it due"
        assert await new.outbox("parked") == []
        assert await new.mark_published([row]) == 1
        assert await new.mark_published([row]) == 0, "marked once"

    async def test_a_mark_publishes_row_and_bundle(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("a", count=1), entry("b", count=1), entry("c")])
        rows = await ledger.claim(10, HOUR)
        assert await ledger.mark_published(rows) == 2
        assert await ledger.pending() == 0
        for bid, state in (("a", "published"), ("b", "published"), ("c", "open")):
            bundle = await ledger.bundle(bid)
            assert bundle is not None
            assert bundle.state == state
            assert (bundle.published_at is not None) is (state == "published")
        assert await ledger.mark_published([]) == 0

    async def test_a_mark_of_many_changes_those_still_held(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("a", count=1), entry("b", count=1)])
        first, second = await ledger.claim(10, HOUR)
        assert await ledger.mark_published([first, replace(second, generation=99)]) == 1
        assert await ledger.pending() == 1

    async def test_renewing_holds_the_row_for_longer(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        row = await claimed(ledger, "b", lease=0)
        assert await ledger.renew([row], HOUR) == 1
        assert await ledger.claim(10, HOUR) == []
        assert await ledger.mark_published([row]) == 1
        assert await ledger.renew([], HOUR) == 0

    async def test_postponing_makes_the_row_due_later(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        assert await ledger.postpone(await claimed(ledger, "b"), HOUR, "queue down")
        assert await ledger.claim(10, HOUR) == []
        assert await ledger.pending() == 1

    async def test_postponing_by_nothing_makes_it_due_now(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        assert await ledger.postpone(await claimed(ledger, "b"), 0, "queue down")
        assert (await claimed(ledger, "b")).attempts == 2

    async def test_case_47_a_parked_row_waits_and_others_flow_on(self, ledger: Ledger) -> None:
        await ledger.record(entry("a", count=1))
        row = await claimed(ledger, "a", lease=0)
        assert await ledger.park(row, "target gone")
        await ledger.record(entry("b", count=1))
        assert (await claimed(ledger, "b")).bid == "b"
        assert await ledger.pending() == 1
        (parked,) = await ledger.outbox("parked")
        assert (parked.event_id, parked.bid, parked.error) == (event_id("a"), "a", "target gone")
        assert not await ledger.postpone(row, 0, "too late")
        assert await ledger.mark_published([row]) == 0

    async def test_the_longest_due_is_claimed_first(self, database: Database, ledger: Ledger) -> None:
        await database.fill_outbox([("b", -2_000), ("d", 100_000), ("a", -3_000), ("c", -1_000)])
        assert [row.bid for row in await ledger.claim(2, HOUR)] == ["a", "b"]
        assert [row.bid for row in await ledger.claim(2, HOUR)] == ["c"]
        assert await ledger.claim(2, HOUR) == []

    async def test_case_48_backed_off_rows_do_not_hide_a_due_one(
        self, database: Database, ledger: Ledger
    ) -> None:
        await database.fill_outbox([(f"later{number}", 3_600_000) for number in range(10_000)])
        await database.fill_outbox([("due", -1)])
        assert [row.bid for row in await ledger.claim(50, HOUR)] == ["due"]
        assert await ledger.pending() == 10_001

    async def test_case_49_two_relays_share_without_overlap(self, database: Database) -> None:
        await database.fill_outbox([(f"b{number}", -number) for number in range(60)])
        ledgers = [database.open(), database.open()]
        batches = await together([ledgers[turn % 2].claim(10, HOUR) for turn in range(8)])
        bids = [row.bid for batch in batches for row in batch]
        assert len(bids) == 60
        assert len(set(bids)) == 60

    # Crashes, cancellation, bad neighbours.

    async def test_cases_8_and_43_what_was_reported_survives_a_kill(self, database: Database) -> None:
        process = await database.child("burst")
        reported = [await process.stdout.readline() for _ in range(300)]
        process.send_signal(signal.SIGKILL)
        reported += (await process.stdout.read()).splitlines(keepends=True)
        assert await process.wait() == -signal.SIGKILL
        ids = [line.decode().strip() for line in reported if line.endswith(b"\n")]
        assert len(ids) >= 300
        ledger = database.open()
        assert None not in await together([ledger.find(id_) for id_ in ids])
        bundles = await ledger.bundles(limit=100_000)
        for bundle in bundles:
            await consistent(ledger, bundle.bid)
        complete = {bundle.bid for bundle in bundles if bundle.state == "complete"}
        assert {row.bid for row in await ledger.claim(100_000, HOUR)} == complete

    async def test_case_51_eight_writers_in_four_processes_lose_no_commit(self, database: Database) -> None:
        processes = [await database.child("write", number) for number in range(4)]
        outputs = [(await process.communicate())[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
        assert sum(int(output) for output in outputs) == WRITTEN_BUNDLES
        ledger = database.open()
        for number in range(WRITTEN_BUNDLES):
            await consistent(ledger, f"b{number}")
        summary = await ledger.summary()
        assert (summary.resources, summary.outbox_pending) == (8 * WRITTEN_BUNDLES, WRITTEN_BUNDLES)

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 40])
    async def test_case_42_a_cancelled_record_is_all_there_or_not_at_all(
        self, ledger: Ledger, turns: int
    ) -> None:
        task = asyncio.create_task(ledger.record(entry("b", count=1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        # A later record waits for the earlier transaction, so that what is seen below is final.
        await ledger.record(entry("later"))
        if await ledger.find("b/0") is None:
            assert await ledger.bundle("b") is None
            assert await ledger.pending() == 0
        else:
            await consistent(ledger, "b")
            assert await ledger.pending() == 1
            assert len(await listed(ledger, "b")) == 1

    async def test_a_cancelled_claim_leaves_a_usable_ledger(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        for turns in range(12):
            task = asyncio.create_task(ledger.claim(10, 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # A cancelled claim goes on to its end, and hides its row from others until then.
        rows: Sequence[OutboxRow] = []
        while not rows:
            rows = await ledger.claim(10, HOUR)
        assert await ledger.mark_published(rows) == 1

    async def test_an_entry_the_database_refuses_fails_alone(self, ledger: Ledger) -> None:
        entries = [entry("a", count=1), refused("bad"), entry("c", count=1)]
        outcomes = await asyncio.gather(*map(ledger.record, entries), return_exceptions=True)
        assert outcomes[0] == outcomes[2] == Recorded(completed=True)
        assert isinstance(outcomes[1], LedgerError)
        assert await ledger.find("bad/0") is None
        assert await ledger.bundle("bad") is None
        assert await ledger.pending() == 2

    async def test_a_refused_entry_is_not_called_unavailable(self, ledger: Ledger) -> None:
        for bad in (refused("bad"), entry("bad", meta={"x": object()})):
            with pytest.raises(LedgerError) as caught:
                await ledger.record(bad)
            assert not caught.value.retryable
        await ledger.record(entry("good"))

    async def test_closing_finishes_what_is_under_way(self, database: Database) -> None:
        ledger = database.open()
        tasks = [asyncio.create_task(ledger.record(entry("b", number))) for number in range(20)]
        await asyncio.sleep(0)
        await ledger.aclose()
        await ledger.aclose()
        assert [task.result() for task in tasks] == [NOTHING] * 20
        assert await database.open().find("b/19") == "fingerprint-19"

    # Reading.

    async def test_resources_come_in_pages_and_in_one_order(self, ledger: Ledger) -> None:
        numbers = [(number * 7_919) % 1_201 for number in range(1_201)]
        await together([ledger.record(entry("b", number)) for number in numbers])
        await together([ledger.record(entry("c", number)) for number in range(3)])
        resources = await listed(ledger, "b")
        assert [resource.meta["n"] for resource in resources] == list(range(1_201))
        assert resources == [entry("b", number).resource for number in range(1_201)]
        assert await listed(ledger, "b") == resources

    async def test_a_full_last_page_ends(self, ledger: Ledger) -> None:
        await together([ledger.record(entry("b", number)) for number in range(500)])
        assert len(await listed(ledger, "b")) == 500

    async def test_what_a_payload_was_and_its_entries_are_kept(self, ledger: Ledger) -> None:
        made = entry("b")
        assert made.resource is not None
        before = Before(7, "1" * 64, ("gunzip", "untar"), ("a note, é",))
        objects = tuple(
            replace(stored, key=f"{stored.key}/{member}", member=member)
            for stored in made.resource.objects
            for member in ("a", "é/b")
        )
        resource = replace(made.resource, objects=objects, before=before)
        await ledger.record(replace(made, resource=resource))
        assert await listed(ledger, "b") == [resource]

    async def test_resources_that_became_many_objects_come_in_smaller_pages(self, ledger: Ledger) -> None:
        def archive(number: int, count: int) -> Entry:
            made = entry("b", number)
            assert made.resource is not None
            (first, *_) = made.resource.objects
            objects = tuple(replace(first, key=f"{number}/{n:05}", member=f"{n}") for n in range(count))
            return replace(made, resource=replace(made.resource, objects=objects))

        counts = [3, PAGE_OBJECTS - 4, 1, 2, PAGE_OBJECTS + 1, 1]
        await record_all(ledger, [archive(number, count) for number, count in enumerate(counts)])
        assert [len(resource.objects) for resource in await listed(ledger, "b")] == counts

    async def test_what_is_noted_of_one_object_is_what_the_release_before_knows(
        self, ledger: Ledger, database: Database
    ) -> None:
        """It reads a note with exactly these facts, in a fleet that is upgraded one by one."""
        made = entry("b")
        assert made.resource is not None
        noted = made.resource.objects[0]
        await ledger.note_transfers(made, [Transfer(noted.target, noted)])
        opened = open_database(database.url, pooler=database.pooler)
        try:
            row = await opened.read(lambda conn: conn.execute(select(notes.c.stored)).scalar_one())
        finally:
            await opened.aclose()
        assert set(row) == {"target", "key", "size", "sha256", "etag", "version"}

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_another_payload_of_a_recorded_resource_changes_nothing(
        self, ledger: Ledger, *, at_once: bool
    ) -> None:
        def archive(message: str, payload: str, *names: str) -> Entry:
            made = entry("b", message_id=message, fingerprint=message, count=2)
            assert made.resource is not None
            (first, *_) = made.resource.objects
            objects = tuple(replace(first, key=f"0/{name}", member=name) for name in names)
            before = Before(1, payload, ("unzip",), ())
            return replace(made, resource=replace(made.resource, objects=objects, before=before))

        entries = [archive("m1", "1" * 64, "a"), archive("m2", "2" * 64, "b"), archive("m3", "1" * 64, "a")]
        if at_once:
            outcomes = await together([ledger.record(each) for each in entries])
        else:
            outcomes = await record_all(ledger, entries)
        assert outcomes == [NOTHING, Recorded(differs=True), NOTHING]
        assert [await ledger.find(each.message_id) for each in entries] == ["m1", None, "m3"]
        (resource,) = await listed(ledger, "b")
        assert [found.member for found in resource.objects] == ["a"]
        assert await ledger.record(entries[1]) == Recorded(differs=True)
        # As it was staged: another route did nothing with it.
        plain = entry("b", message_id="m4", fingerprint="m4")
        assert plain.resource is not None
        (first, *_) = plain.resource.objects
        for digest, expected in (("1" * 64, NOTHING), ("3" * 64, Recorded(differs=True))):
            objects = (replace(first, sha256=digest),)
            other = replace(plain, message_id=digest, resource=replace(plain.resource, objects=objects))
            assert await ledger.record(other) == expected

    async def test_bundles_are_listed_newest_first(self, ledger: Ledger) -> None:
        for bid in ("a", "b", "c"):
            await ledger.record(entry(bid, count=1 if bid == "b" else None))
        listing = await ledger.bundles()
        assert [bundle.bid for bundle in listing] == [
            bundle.bid
            for bundle in sorted(listing, key=lambda bundle: (bundle.created_at, bundle.bid), reverse=True)
        ]
        assert {bundle.bid for bundle in listing} == {"a", "b", "c"}
        assert [bundle.bid for bundle in await ledger.bundles("complete")] == ["b"]
        assert await ledger.bundles("published") == []
        assert len(await ledger.bundles(limit=2)) == 2

    async def test_the_summary_of_nothing(self, ledger: Ledger) -> None:
        assert await ledger.summary() == Summary(
            {"open": 0, "complete": 0, "published": 0}, 0, 0, 0, None, None
        )

    async def test_the_summary(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("published", count=1), entry("parked", count=1)])
        for row in await ledger.claim(10, HOUR):
            if row.bid == "parked":
                await ledger.park(row, "x")
            else:
                await ledger.mark_published([row])
        await record_all(ledger, [entry("open", 0), entry("open", 1), entry("due", count=1)])
        summary = await ledger.summary()
        assert summary.bundles == {"open": 1, "complete": 2, "published": 1}
        assert (summary.resources, summary.outbox_pending, summary.outbox_parked) == (5, 1, 1)
        assert summary.oldest_incomplete_age is not None
        assert summary.oldest_pending_age is not None
        assert 0 <= summary.oldest_pending_age <= summary.oldest_incomplete_age < 60

    # Tries at messages.

    async def test_a_renewal_of_its_batch_does_not_move_a_row_that_was_postponed(
        self, ledger: Ledger
    ) -> None:
        await record_all(ledger, [entry("a", count=1), entry("b", count=1)])
        rows = await ledger.claim(10, HOUR)
        assert await ledger.postpone(rows[0], 0, "later")
        assert await ledger.renew(rows, HOUR) == 1
        assert [row.bid for row in await ledger.claim(10, HOUR)] == [rows[0].bid]

    async def test_a_message_nobody_tried_has_no_attempts(self, ledger: Ledger) -> None:
        assert await ledger.attempts("q", "m") == []

    async def test_case_18_a_try_that_never_ended_crashed(self, database: Database) -> None:
        await database.open().begin("q", "m")
        (crashed,) = await database.open().attempts("q", "m")
        assert (crashed.error, crashed.outage) == (CRASHED, False)
        assert abs(crashed.at - time.time()) < 60

    async def test_case_28_tries_are_told_in_their_order(self, ledger: Ledger) -> None:
        first = await ledger.begin("q", "m")
        await ledger.failed("q", "m", first, attempt("no answer", outage=True))
        await ledger.begin("q", "m")
        third = await ledger.begin("q", "m")
        await ledger.failed("q", "m", third, attempt("é😀"))
        told = [(each.error, each.detail, each.outage) for each in await ledger.attempts("q", "m")]
        assert told[0] == ("Refused", "no answer", True)
        assert told[1][0] == CRASHED
        assert told[2] == ("Refused", "é😀", False)

    async def test_a_failure_whose_beginning_was_not_noted_counts(self, ledger: Ledger) -> None:
        for number in range(3):
            await ledger.failed("q", "m", None, attempt(str(number)))
        assert [each.detail for each in await ledger.attempts("q", "m")] == ["0", "1", "2"]

    @pytest.mark.parametrize("text", ["x" * 1_000_000, "a\0b", "half a \ud800 pair"])
    async def test_any_story_can_be_kept(self, ledger: Ledger, text: str) -> None:
        await ledger.failed("q", "m", None, attempt(text))
        (kept,) = await ledger.attempts("q", "m")
        assert 0 < len(kept.detail) < 10_000

    async def test_a_try_that_is_withdrawn_is_forgotten(self, ledger: Ledger) -> None:
        await ledger.withdraw("q", "m", 1)
        await ledger.failed("q", "m", None, attempt("first"))
        await ledger.withdraw("q", "m", 1)
        assert len(await ledger.attempts("q", "m")) == 1, "what has ended stays"
        await ledger.withdraw("q", "m", await ledger.begin("q", "m"))
        assert [each.detail for each in await ledger.attempts("q", "m")] == ["first"]

    async def test_case_23_a_stale_owner_ends_no_other_try(self, ledger: Ledger) -> None:
        stale = await ledger.begin("q", "m")
        current = await ledger.begin("q", "m")
        await ledger.failed("q", "m", stale, attempt("of the stale one"))
        await ledger.withdraw("q", "m", stale)
        assert [each.error for each in await ledger.attempts("q", "m")] == ["Refused", CRASHED]
        await ledger.withdraw("q", "m", current)
        assert [each.detail for each in await ledger.attempts("q", "m")] == ["of the stale one"]

    async def test_tries_belong_to_one_message_of_one_queue(self, ledger: Ledger) -> None:
        await ledger.begin("q", "m")
        await ledger.failed("q", "n", None, attempt("of n"))
        await ledger.failed("other", "m", None, attempt("of the other queue"))
        await ledger.withdraw("q", "n", 1)
        await ledger.withdraw("other", "m", 1)
        assert [each.error for each in await ledger.attempts("q", "m")] == [CRASHED]
        assert [each.detail for each in await ledger.attempts("q", "n")] == ["of n"]
        assert [each.detail for each in await ledger.attempts("other", "m")] == ["of the other queue"]

    async def test_case_19_several_workers_begin_the_same_messages_at_once(self, database: Database) -> None:
        ledgers = [database.open() for _ in range(3)]
        for round_ in range(5):
            begun = await together(
                [each.begin("q", f"m{number}") for number in range(10) for each in ledgers]
            )
            assert sorted(begun) == sorted(3 * round_ + number for number in (1, 2, 3) for _ in range(10))
        assert [len(await ledgers[0].attempts("q", f"m{number}")) for number in range(10)] == [15] * 10

    async def test_many_tries_begin_at_once(self, database: Database) -> None:
        ledgers = [database.open(), database.open()]
        await together([each.begin("q", f"m{n}-{at}") for n in range(100) for at, each in enumerate(ledgers)])
        await together([ledgers[0].begin("q", "m") for _ in range(3)])
        for number in range(100):
            assert len(await ledgers[0].attempts("q", f"m{number}-{number % 2}")) == 1
        assert len(await ledgers[0].attempts("q", "m")) == 3

    async def test_old_notes_are_forgotten_a_few_at_a_time(self, ledger: Ledger) -> None:
        for number in range(5):
            await ledger.failed("q", f"m{number}", None, attempt(""))
        assert await ledger.forget_attempts(HOUR, 100) == 0
        assert await ledger.forget_attempts(0, 2) == 2
        assert await ledger.attempts("q", "m0") == await ledger.attempts("q", "m1") == []
        assert len(await ledger.attempts("q", "m2")) == 1
        assert [await ledger.forget_attempts(0, 2) for _ in range(3)] == [2, 1, 0]

    # What a person does.

    async def test_the_outbox_is_listed_the_oldest_first(self, database: Database, ledger: Ledger) -> None:
        await record_all(ledger, [entry(bid, count=1) for bid in ("published", "parked")])
        for row in await ledger.claim(10, HOUR):
            if row.bid == "parked":
                await ledger.park(row, "refused: é")
            else:
                await ledger.mark_published([row])
        await database.fill_outbox([("second", 2_000_000), ("first", 1_000_000)])
        assert [row.bid for row in await ledger.outbox("pending")] == ["first", "second"]
        (published,) = await ledger.outbox("published")
        (parked,) = await ledger.outbox("parked")
        assert {row.bid for row in await ledger.outbox()} == {"published", "parked", "first", "second"}
        assert len(await ledger.outbox(limit=3)) == 3
        assert [row.bid for row in await ledger.outbox(bid="parked")] == ["parked"]
        assert await ledger.outbox("pending", bid="parked") == []
        assert {row.bid for row in await ledger.outbox(recipe_id="recipe", limit=2)} == {
            "published",
            "parked",
        }
        assert await ledger.outbox(recipe_id="another") == []
        assert (published.event_id, published.recipe_id) == (event_id("published"), "recipe")
        assert published.published_at is not None
        assert published.published_at >= published.completed_at
        assert (parked.state, parked.attempts, parked.replays) == ("parked", 1, 0)
        assert (parked.error, parked.published_at) == ("refused: é", None)

    async def test_parked_rows_are_due_again_on_request(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry(bid, count=1) for bid in ("a", "b", "c", "d")])
        rows = {row.bid: row for row in await ledger.claim(10, HOUR)}
        for bid in ("a", "b", "c"):
            assert await ledger.park(rows[bid], "refused")
        assert await ledger.retry_parked([event_id("a"), event_id("d"), "no such"]) == 1
        again = await claimed(ledger, "a")
        assert (again.attempts, again.body) == (1, rows["a"].body)
        assert await ledger.mark_published([rows["a"]]) == 0, "an earlier claim is stale"
        assert await ledger.retry_parked([]) == 0
        assert await ledger.retry_parked() == 2
        assert {row.bid for row in await ledger.claim(10, HOUR)} == {"b", "c"}
        assert await ledger.retry_parked() == 0
        assert all(row.error is None for row in await ledger.outbox())

    async def test_a_replay_announces_the_same_bytes_once_more(self, ledger: Ledger) -> None:
        await publish(ledger, "b")
        before = (await ledger.outbox())[0]
        assert await ledger.replay("b") == "published"
        bundle = await ledger.bundle("b")
        assert bundle is not None
        assert bundle.state == "published"
        (due,) = await ledger.outbox("pending")
        assert (due.replays, due.attempts) == (1, 0)
        assert await ledger.replay("b") == "pending", "it is under way"
        row = await claimed(ledger, "b")
        assert (row.event_id, row.completed_at) == (before.event_id, before.completed_at)
        assert json.loads(row.body)["bundle_id"] == "b"
        await ledger.mark_published([row])
        assert await ledger.replay("b") == "published"
        again = await claimed(ledger, "b")
        assert (again.body, again.event_id) == (row.body, row.event_id)
        assert (await ledger.outbox())[0].replays == 2

    async def test_a_replay_makes_earlier_claims_stale(self, ledger: Ledger) -> None:
        await ledger.record(entry("b", count=1))
        first = await claimed(ledger, "b")
        await ledger.mark_published([first])
        await ledger.replay("b")
        assert await ledger.mark_published([first]) == 0
        assert not await ledger.park(first, "late")
        assert await ledger.pending() == 1

    async def test_what_is_not_published_is_not_replayed(self, ledger: Ledger) -> None:
        await record_all(ledger, [entry("open"), entry("parked", count=1)])
        await ledger.park(await claimed(ledger, "parked"), "refused")
        await ledger.record(entry("pending", count=1))
        assert [await ledger.replay(bid) for bid in ("none", "open", "pending", "parked")] == [
            None,
            None,
            "pending",
            "parked",
        ]
        (parked,) = await ledger.outbox("parked")
        assert (parked.bid, parked.error, parked.replays) == ("parked", "refused", 0)

    async def test_a_ledger_that_takes_writes_says_so(self, database: Database) -> None:
        await together([database.open().probe() for _ in range(4)])
        assert await database.open().summary() == Summary(
            {"open": 0, "complete": 0, "published": 0}, 0, 0, 0, None, None
        )

    # What is forgotten.

    async def test_published_bundles_are_staged_until_they_are_marked(self, ledger: Ledger) -> None:
        await publish(ledger, "a", "b", "c")
        await record_all(ledger, [entry("due", count=1), entry("open")])
        assert await ledger.staged(HOUR, 10) == []
        assert await ledger.staged(0, 10) == ["a", "b", "c"]
        assert await ledger.staged(0, 2) == ["a", "b"], "the oldest first"
        await ledger.mark_unstaged({"a": 1, "c": 1})
        assert await ledger.staged(0, 10) == ["b"]
        await ledger.mark_unstaged({})
        await ledger.mark_unstaged({"b": 1, "none such": 0})
        assert await ledger.staged(0, 10) == []

    async def test_case_79_a_late_resource_makes_its_bundle_staged_again(self, ledger: Ledger) -> None:
        await publish(ledger, "b")
        await ledger.mark_unstaged({"b": 0})
        assert await ledger.staged(0, 10) == ["b"], "it has a resource nobody has seen"
        await ledger.mark_unstaged({"b": 1})
        assert await ledger.record(entry("b", 0, count=1)) == NOTHING
        assert await ledger.staged(0, 10) == [], "a duplicate stages nothing"
        assert await ledger.record(entry("b", 1)) == Recorded(late=True)
        assert await ledger.staged(0, 10) == ["b"]

    async def test_what_may_still_be_staged_can_be_kept(self, ledger: Ledger) -> None:
        await publish(ledger, "a", "b")
        await ledger.mark_unstaged({"a": 1})
        assert (await ledger.retire(0, 10, unstaged_only=True)).bundles == 1
        assert [bundle.bid for bundle in await ledger.bundles()] == ["b"]
        assert (await ledger.retire(0, 10)).bundles == 1

    async def test_case_13_a_bundle_is_forgotten_whole(self, ledger: Ledger) -> None:
        await publish(ledger, "a", "b", resources=3)
        await ledger.record(entry("a", 3))
        assert await ledger.retire(HOUR, 10) == Retired()
        assert await ledger.retire(0, 1) == Retired(bundles=1, resources=4, messages=4)
        assert await ledger.bundle("a") is None
        assert await listed(ledger, "a") == []
        assert await ledger.find("a/0") is None
        assert await ledger.replay("a") is None
        assert [row.bid for row in await ledger.outbox()] == ["b"]
        assert len(await listed(ledger, "b")) == 3
        await consistent(ledger, "b")
        assert await ledger.retire(0, 10) == Retired(bundles=1, resources=3, messages=3)
        assert await ledger.retire(0, 10) == Retired()

    async def test_case_13_nothing_unsent_is_ever_forgotten(self, ledger: Ledger) -> None:
        await publish(ledger, "replayed", "replayed and parked", "gone")
        for bid in ("replayed", "replayed and parked"):
            await ledger.replay(bid)
        await record_all(ledger, [entry("open"), entry("pending", count=1), entry("parked", count=1)])
        for row in await ledger.claim(10, HOUR):
            if "parked" in row.bid:
                await ledger.park(row, "refused")
        kept = {"replayed", "replayed and parked", "open", "pending", "parked"}
        assert (await ledger.retire(0, 100)).bundles == 1
        assert {bundle.bid for bundle in await ledger.bundles()} == kept
        assert {row.bid for row in await ledger.outbox()} == kept - {"open"}
        for bid in kept:
            assert await ledger.find(f"{bid}/0") == "fingerprint-0"
            assert await listed(ledger, bid) == [entry(bid).resource]

    async def test_a_forgotten_bundle_begins_anew(self, ledger: Ledger) -> None:
        await publish(ledger, "b")
        await ledger.retire(0, 10)
        assert await ledger.record(entry("b", count=1)) == Recorded(completed=True)
        assert (await claimed(ledger, "b")).event_id == event_id("b")

    async def test_case_13_two_workers_forget_each_bundle_once(self, database: Database) -> None:
        ledgers = [database.open(), database.open()]
        await publish(ledgers[0], *(f"b{number}" for number in range(40)))
        retired = await together([ledgers[turn % 2].retire(0, 10) for turn in range(6)])
        left = len(await ledgers[0].bundles())
        assert sum(each.bundles for each in retired) == 40 - left
        while (await ledgers[1].retire(0, 10)).bundles:
            pass
        assert await ledgers[0].bundles() == []
        assert await ledgers[0].outbox() == []

    async def test_case_13_a_late_resource_beside_the_sweep_is_whole(self, database: Database) -> None:
        """It is forgotten with its bundle, keeps the bundle from being forgotten now, or begins it anew."""
        ledgers = [database.open(), database.open()]
        for number in range(10):
            bid = f"b{number}"
            await publish(ledgers[0], bid)
            late, retired = await asyncio.gather(
                ledgers[1].record(entry(bid, 1)), ledgers[0].retire(0, 10), return_exceptions=True
            )
            assert isinstance(retired, Retired)
            if isinstance(late, LedgerError):
                assert late.retryable, "it met the sweep midway"
                late = await ledgers[1].record(entry(bid, 1))
            bundle = await ledgers[0].bundle(bid)
            state = bundle.state if bundle else None
            assert state in ({None, "published"} if late == Recorded(late=True) else {"open"})
            whole = {None: 0, "published": 2, "open": 1}
            assert len(await listed(ledgers[0], bid)) == whole[state]
            assert (await ledgers[0].find(f"{bid}/1") is None) is (state is None)


WRITTEN_BUNDLES = 40


async def _burst(ledger: Ledger) -> None:
    """Record bundles of two until killed; report each message once it is recorded."""
    gate = asyncio.Semaphore(50)

    async def one(bid: str, number: int) -> None:
        async with gate:
            await ledger.record(entry(bid, number, count=2))
            print(f"{bid}/{number}", flush=True)

    for start in itertools.count(step=500):
        await together([one(f"b{number // 2}", number % 2) for number in range(start, start + 500)])


async def _write(ledgers: Sequence[Ledger], first: int) -> int:
    """Record one resource of every bundle through each ledger; how many bundles that completed."""
    outcomes = await together(
        [
            ledger.record(entry(f"b{number}", first + at, count=8))
            for number in range(WRITTEN_BUNDLES)
            for at, ledger in enumerate(ledgers)
        ]
    )
    return sum(outcome.completed for outcome in outcomes)


async def _child(work: str, url: str, number: str = "0", pooler: str = "") -> None:
    database = open_database(url, pooler=bool(pooler))
    await migrate(database)
    ledgers = [SqlLedger(database), SqlLedger(open_database(url, pooler=bool(pooler)))]
    if work == "burst":
        await _burst(ledgers[0])
    else:
        print(await _write(ledgers, 2 * int(number)))
    for ledger in ledgers:
        await ledger.aclose()


if __name__ == "__main__":
    asyncio.run(_child(*sys.argv[1:]))
