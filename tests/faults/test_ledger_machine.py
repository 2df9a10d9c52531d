"""Hypothesis plays against ledger and relay: any order of messages, claims, deaths and requests, compared with a model.

`make test ARGS=tests/faults/test_ledger_machine.py EXAMPLES=2000` plays longer.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from structlog.testing import capture_logs

from tests.conformance.ledgers import closing, entry
from tests.faults.doomed import HOUR, Faults
from tests.faults.ledger_model import ModelBundle
from tests.faults.ledger_world import QUEUE, LedgerWorld, Place, outbox_rows
from tests.support.postgresql import PostgresqlServer
from worker.attempts import Attempt
from worker.ledger.database import migrate, open_database
from worker.ledger.schema import attempts
from worker.ledger.values import Entry, OutboxState, Retired
from worker.notification import event_id
from worker.publishers.embedded import EmbeddedPublisher

SLOTS = st.integers(0, 2)
"""Which of the bundles at play. One that is retired makes room for a new one."""
DEATHS = st.sampled_from([*[None] * 8, 0, 1])
"""Effects until the process dies: before the commit, after it, or not at all."""
LATER_DEATHS = st.sampled_from([*[None] * 24, *range(12)])
NOBODY = 0
"""Owns the claims of relays that ended, or died, in their round. Others are owned by their place in `claims`, from 1 on."""
OVERTAKERS = st.sampled_from(["nobody", "a claim", "a relay", "a person", "a relay, and a replay"])
CHANGES = ("postpone", "park", "renew", "mark")


@dataclass(frozen=True, slots=True)
class Told:
    """A message of a fetcher. Two with the same slot, resource and copy have the same id."""

    slot: int
    resource: int | None
    """None: it closes the bundle."""
    count: int | None
    copy: bool
    """The same thing said under another id."""
    other: bool
    """Other content."""

    def entry(self, bid: str) -> Entry:
        suffix = "again" if self.copy else "first"
        if self.resource is None:
            return closing(bid, self.count or 0, f"closed-{suffix}", told=self.count or 0)
        made = entry(bid, self.resource, count=self.count, message_id=f"{bid}/{self.resource}-{suffix}")
        return _other(made) if self.other else made


MESSAGES = st.builds(
    Told,
    slot=SLOTS,
    resource=st.sampled_from([0, 1, 2, None]),
    count=st.sampled_from([1, 2, 2, 3, None, 0, 5]),
    copy=st.sampled_from([False, False, True]),
    other=st.sampled_from([False, False, False, True]),
)
FAULTS: st.SearchStrategy[dict[int, str]] = st.just({}) | st.dictionaries(
    SLOTS, st.sampled_from(["unreachable", "refused", "unwritable"]), max_size=2
)


class LedgerMachine(LedgerWorld):
    """Rules: what happens, to the ledger and to the model."""

    def teardown(self) -> None:
        try:
            if self.sound:
                self.run(self._drain())
        finally:
            self._runner.run(self._close())
            self._runner.close()

    # What happens.

    @rule(told=st.lists(MESSAGES, min_size=1, max_size=5), death=DEATHS)
    def deliver(self, told: list[Told], death: int | None) -> None:
        self.run(self._deliver([each.entry(self.bids[each.slot]) for each in told], death))

    @rule()
    @precondition(lambda self: self.unacked)
    def redeliver(self) -> None:
        self.run(self._redeliver())

    @rule(faults=FAULTS, death=LATER_DEATHS)
    @precondition(lambda self: self.model.due())
    def announce(self, faults: dict[int, str], death: int | None) -> None:
        self.run(self._announce(self._faults(faults), death))

    @rule(limit=st.integers(1, 3), death=DEATHS)
    @precondition(lambda self: self.model.due())
    def claim(self, limit: int, death: int | None) -> None:
        """Somebody claims, and falls asleep."""
        self.run(self._claim(limit, death))

    @rule(which=st.integers(0, 20), faults=FAULTS, death=LATER_DEATHS)
    @precondition(lambda self: self.claims)
    def wake(self, which: int, faults: dict[int, str], death: int | None) -> None:
        """A relay wakes up with what it claimed, however long ago that was."""
        self.run(self._wake(which % len(self.claims), self._faults(faults), death))

    @rule(which=st.integers(0, 20), change=st.sampled_from(CHANGES), death=DEATHS)
    @precondition(lambda self: self.claims)
    def change(self, which: int, change: str, death: int | None) -> None:
        """As `wake`, one thing at a time."""
        self.run(self._change(which % len(self.claims), change, death))

    @rule(
        nights=st.lists(st.tuples(OVERTAKERS, st.sampled_from(CHANGES)), min_size=2, max_size=4),
        faults=FAULTS,
    )
    @precondition(lambda self: self.model.pending())
    def oversleep(self, nights: list[tuple[str, str]], faults: dict[int, str]) -> None:
        """A relay claims, is overtaken in its sleep, and wakes up; and again."""
        for overtaker, change in nights:
            self.run(self._oversleep(overtaker, self._faults(faults), change))
            self.run(self._agree())

    @rule(slot=SLOTS, everything=st.booleans())
    @precondition(lambda self: self.model.pending() != self.model.due())
    def expire(self, slot: int, everything: bool) -> None:
        self.run(self._expire(self.model.pending() if everything else [self.bids[slot]]))

    @rule(slot=SLOTS, everything=st.booleans(), death=DEATHS)
    @precondition(lambda self: self.model.parked())
    def retry_parked(self, slot: int, everything: bool, death: int | None) -> None:
        self.run(self._retry_parked(None if everything else [self.bids[slot]], death))

    @rule(slot=SLOTS, death=DEATHS)
    @precondition(lambda self: self.model.published())
    def replay(self, slot: int, death: int | None) -> None:
        self.run(self._replay(self.bids[slot], death))

    @rule(slot=SLOTS, overlooked=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: any(self.model.bundles[bid].staged for bid in self.model.published()))
    def unstage(self, slot: int, overlooked: int) -> None:
        self.run(self._unstage(self.bids[slot], overlooked))

    @rule(limit=st.integers(1, 3), death=DEATHS)
    @precondition(lambda self: self.model.published())
    def retire(self, limit: int, death: int | None) -> None:
        self.run(self._retire(limit, death))

    @rule(
        message_id=st.sampled_from(["m1", "m2"]),
        step=st.sampled_from(["begin", "failed", "withdraw"]),
        outage=st.booleans(),
        death=DEATHS,
    )
    @precondition(lambda self: self.steps_at_tries < 10)
    def attempt(self, message_id: str, step: str, outage: bool, death: int | None) -> None:
        # Enough to see, and then no more in the way of the rest.
        self.steps_at_tries += 1
        self.run(self._attempt(message_id, step, outage, death))

    # What it does, to the ledger and to the model.

    async def _deliver(self, entries: Sequence[Entry], death: int | None) -> None:
        ledger = self.process.ledger
        recorded, commits = await self._survive(
            lambda: asyncio.gather(*(ledger.record(each) for each in entries)), death
        )
        if recorded is None:
            # Nobody acknowledged: the queue delivers them again.
            self.unacked += entries
        if commits:
            expected = self.model.record(entries)
            assert recorded is None or list(recorded) == expected

    async def _redeliver(self) -> None:
        entries, self.unacked = self.unacked, []
        await self._deliver(entries, None)

    async def _announce(self, faults: Faults, death: int | None) -> None:
        due = self.model.due()
        self.process.suffer(faults)
        claimed, commits = await self._survive(self.process.relay.announce_due, death)
        assert claimed in {None, len(due)}
        if commits:
            for bid in due:
                self.model.bundles[bid].claim(NOBODY)
            await self._outcomes(due, faults, certain=claimed is not None)

    async def _claim(self, limit: int, death: int | None) -> None:
        due = self.model.due()
        rows, commits = await self._survive(lambda: self.process.ledger.claim(limit, HOUR), death)
        still_due = {row.bid for row in await self.database.read(outbox_rows) if row.due}
        taken = [bid for bid in due if bid not in still_due]
        assert len(taken) == (min(limit, len(due)) if commits else 0)
        if rows is not None:
            assert sorted(row.bid for row in rows) == sorted(taken)
            assert all(row.body == self.bodies[row.event_id] for row in rows)
            self.claims.append(rows)
        for bid in taken:
            self.model.bundles[bid].claim(NOBODY if rows is None else len(self.claims))

    async def _oversleep(self, overtaker: str, faults: Faults, change: str) -> None:
        if not self.model.pending():
            return
        await self._expire(self.model.pending())
        await self._claim(1, None)
        which = len(self.claims) - 1
        (row,) = self.claims[which]
        if overtaker == "a person":
            await self._change(which, "park", None)
            await self._retry_parked([row.bid], None)
        else:
            await self._expire([row.bid])
        if overtaker == "a claim":
            await self._claim(3, None)
        if overtaker in {"a relay", "a relay, and a replay"}:
            await self._announce(faults, None)
        if overtaker == "a relay, and a replay":
            await self._replay(row.bid, None)
        await self._change(which, change, None)

    async def _wake(self, which: int, faults: Faults, death: int | None) -> None:
        rows, owner = self.claims[which], which + 1
        self.process.suffer(faults)
        done, _ = await self._survive(lambda: _done(self.process.relay._announce(rows)), death)
        ours = [row.bid for row in rows if self.model.owned(row.bid, owner)]
        await self._outcomes(ours, faults, certain=done is not None)
        now = {row.bid: row.generation for row in await self.database.read(outbox_rows)}
        for row in rows:
            if row.bid in ours and now[row.bid] != row.generation:
                # It was postponed, and the claim has ended with that; one that died may not have come so far.
                self.model.bundles[row.bid].owner = NOBODY

    async def _outcomes(self, bids: Sequence[str], faults: Faults, *, certain: bool) -> None:
        """What a relay made of rows that are its own. One that died may have stopped before any of it."""
        rows = {row.bid: row for row in await self.database.read(outbox_rows)}
        for bid in bids:
            bundle, row, fate = self.model.bundles[bid], rows[bid], _fate(bid, faults)
            assert row.state in ({fate} if certain else {fate, "pending"})
            assert not row.due or (bundle.due and not certain)
            bundle.outbox, bundle.due = row.state, row.due
            if row.state == "published":
                bundle.publish()

    async def _change(self, which: int, change: str, death: int | None) -> None:
        row = self.claims[which][0]
        bundle = self.model.owned(row.bid, which + 1)
        if change == "mark" and bundle and bundle.state != "published":
            # No relay marks what nobody has sent.
            return
        ledger = self.process.ledger
        calls: Mapping[str, Callable[[], Coroutine[Any, Any, int]]] = {
            "postpone": lambda: ledger.postpone(row, HOUR, "later"),
            "park": lambda: ledger.park(row, "no"),
            "renew": lambda: ledger.renew([row], HOUR),
            "mark": lambda: ledger.mark_published([row]),
        }
        changed, commits = await self._survive(calls[change], death)
        assert changed in {None, int(bundle is not None)}
        if bundle is None or not commits:
            return
        if change == "mark":
            bundle.publish()
        elif change == "park":
            bundle.outbox = "parked"
        elif change == "postpone":
            # The claim ends with it.
            bundle.owner = NOBODY
        bundle.due = False

    async def _retry_parked(self, bids: Sequence[str] | None, death: int | None) -> None:
        meant = [bid for bid in self.model.parked() if bids is None or bid in bids]
        ids = None if bids is None else [event_id(bid) for bid in bids]
        changed, commits = await self._survive(lambda: self.process.ledger.retry_parked(ids), death)
        assert changed in {None, len(meant)}
        for bid in meant if commits else []:
            self.model.bundles[bid].due_anew()

    async def _replay(self, bid: str, death: int | None) -> None:
        bundle = self.model.bundles.get(bid, ModelBundle())
        found, commits = await self._survive(lambda: _told(self.process.ledger.replay(bid)), death)
        assert found in {None, (bundle.outbox,)}
        if commits and bundle.outbox == "published":
            bundle.due_anew()
            bundle.replays += 1

    async def _unstage(self, bid: str, overlooked: int) -> None:
        """The payloads are deleted, but for one that comes too late to be seen."""
        bundle = self.model.bundles.get(bid, ModelBundle())
        if bundle.state == "published":
            resources = len(bundle.stored) + len(bundle.late)
            await self.process.ledger.mark_unstaged({bid: resources - overlooked})
            bundle.staged = bundle.staged and overlooked > 0

    async def _retire(self, limit: int, death: int | None) -> None:
        meant = self.model.retirable()
        retired, commits = await self._survive(lambda: self.process.ledger.retire(0, limit), death)
        left = {bundle.bid for bundle in await self.observer.bundles()}
        gone = [bid for bid in meant if bid not in left]
        assert len(gone) == (min(limit, len(meant)) if commits else 0)
        resources = sum(len(self.model.bundles[bid].stored | self.model.bundles[bid].late) for bid in gone)
        messages = sum(bid in gone for _, bid in self.model.messages.values())
        assert retired in {None, Retired(len(gone), resources, messages)}
        self.model.forget(gone)
        for slot, bid in enumerate(self.bids):
            if bid in gone:
                self.retired += 1
                self.bids[slot] = f"test-{slot}-{self.retired}"
        # Bundles are kept for longer than any queue keeps a message.
        self.unacked = [each for each in self.unacked if each.bid not in gone]

    async def _attempt(self, message_id: str, step: str, outage: bool, death: int | None) -> None:
        ledger = self.process.ledger
        number = await self._under_way(message_id)
        calls: Mapping[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "begin": lambda: ledger.begin(QUEUE, message_id),
            "failed": lambda: ledger.failed(QUEUE, message_id, number, Attempt(0.0, "Error", "why", outage)),
            "withdraw": lambda: ledger.withdraw(QUEUE, message_id, number or 0),
        }
        _, commits = await self._survive(lambda: _done(calls[step]()), death)
        if not commits:
            return
        if step == "begin":
            self.model.begin(message_id)
        elif step == "failed":
            self.model.fail(message_id, ("Error", outage))
        else:
            self.model.withdraw(message_id)

    async def _under_way(self, message_id: str) -> int | None:
        """The number of the message's last try, unless that has ended."""
        last = (
            select(attempts.c.number, attempts.c.ended_at)
            .where(attempts.c.queue == QUEUE, attempts.c.message_id == message_id)
            .order_by(attempts.c.number.desc())
            .limit(1)
        )
        row = await self.observer._database.read(lambda conn: conn.execute(last).one_or_none())
        return row.number if row is not None and row.ended_at is None else None

    async def _drain(self) -> None:
        """Whatever happened: once everybody works again, what is complete gets announced, and nothing else."""
        if self.unacked:
            await self._redeliver()
        await self._retry_parked(None, None)
        await self._expire(self.model.pending())
        await self._announce(Faults(), None)
        await self._agree()
        assert await self.observer.pending() == 0
        log = await EmbeddedPublisher(self.shared.completions, self.shared.log).read()
        announced = {stored.notification.event_id: stored.notification.body for stored in log}
        assert len(log) == len(announced)
        assert announced == {event: body for event, body in self.bodies.items() if event in announced}
        for bid, bundle in self.model.bundles.items():
            assert (bundle.state == "published") is (event_id(bid) in announced)
            assert bundle.state in {"open", "published"}


async def _done(work: Coroutine[Any, Any, None]) -> bool:
    await work
    return True


async def _told(work: Coroutine[Any, Any, OutboxState | None]) -> tuple[OutboxState | None]:
    return (await work,)


def _other(made: Entry) -> Entry:
    """The same resource with other bytes."""
    assert made.resource is not None
    objects = tuple(replace(stored, size=stored.size + 100) for stored in made.resource.objects)
    resource = replace(made.resource, objects=objects)
    return replace(made, fingerprint=f"{made.fingerprint}-other", resource=resource)


def _fate(bid: str, faults: Faults) -> OutboxState:
    if bid in faults.unwritable | faults.unreachable:
        return "pending"
    return "parked" if bid in faults.refused else "published"


def play(place: Place, examples: int) -> None:
    """Let Hypothesis play; `EXAMPLES` says how often instead."""
    chosen = settings(
        max_examples=int(os.environ.get("EXAMPLES", examples)),
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        print_blob=True,
    )
    with capture_logs():
        run_state_machine_as_test(lambda: LedgerMachine(place), settings=chosen)  # type: ignore[arg-type] # typed for a class; documented for any factory


def test_ledger_and_relay_agree_with_the_model_on_sqlite(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    asyncio.run(_make(f"sqlite:///{template}"))

    @asynccontextmanager
    async def place(folder: Path) -> AsyncIterator[str]:
        shutil.copy(template, folder / "ledger.db")
        yield f"sqlite:///{folder}/ledger.db"

    play(place, 12)


def test_ledger_and_relay_agree_with_the_model_on_postgresql(postgresql: PostgresqlServer) -> None:
    play(lambda _: postgresql.database(), 3)


async def _make(url: str) -> None:
    database = open_database(url)
    await migrate(database)
    await database.aclose()
