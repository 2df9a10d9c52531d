"""One database under test, the model beside it, and what must hold of both at any time.

The ground of the state machine in test_ledger_machine.py, which adds what happens.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import Connection, select, update

from backends.memory import MemoryBackend, MemoryOptions
from tests.conformance.ledgers import targets
from tests.faults.doomed import Faults, Killed, Shared
from tests.faults.ledger_model import Model
from worker.ledger.database import open_database
from worker.ledger.schema import now_ms, outbox
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Entry, OutboxRow, OutboxState, StoredResource
from worker.notification import event_id
from worker.publishers.embedded import SCHEMA
from worker.sqlite import Database as SqliteFile

Result = TypeVar("Result")
Place = Callable[[Path], AbstractAsyncContextManager[str]]
"""Gives the URL of an empty, migrated database; the folder is the example's own."""

QUEUE = "resources"


class LedgerWorld(RuleBasedStateMachine):
    """One database, one process that may die and be started again, and claims of processes that slept."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.model = Model()
        self.bids = [f"test-{slot}-0" for slot in range(3)]
        self.unacked: list[Entry] = []
        self.claims: list[Sequence[OutboxRow]] = []
        self.bodies: dict[str, bytes] = {}
        self.retired = 0
        self.steps_at_tries = 0
        self.sound = True
        self._runner = asyncio.Runner()
        self._closing = AsyncExitStack()
        self.run(self._open(place))

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return self._runner.run(work)
        except BaseException:
            self.sound = False
            raise

    async def _open(self, place: Place) -> None:
        folder = Path(self._closing.enter_context(TemporaryDirectory(prefix="ledger-machine-")))
        url = await self._closing.enter_async_context(place(folder))
        log = await SqliteFile.open(folder / "completions.db", SCHEMA)
        self._closing.push_async_callback(log.aclose)
        stores = {place.target: await MemoryBackend.connect(MemoryOptions()) for place in targets("any")}
        self.shared = Shared(url, folder / "completions.db", log, stores)
        self.database = open_database(url)
        self.observer = SqlLedger(self.database)
        self._closing.push_async_callback(self.observer.aclose)
        self.process = self.shared.start()

    async def _close(self) -> None:
        await self.process.ledger.aclose()
        await self._closing.aclose()

    async def _expire(self, bids: Sequence[str]) -> None:
        """Time passes for these rows."""
        statement = (
            update(outbox).where(outbox.c.bid.in_(bids), outbox.c.state == "pending").values(due_at=now_ms())
        )
        await self.database.write(lambda conn: conn.execute(statement))
        for bid in bids:
            if (bundle := self.model.bundles.get(bid)) and bundle.outbox == "pending":
                bundle.due = True

    async def _survive(
        self, work: Callable[[], Awaitable[Result]], death: int | None
    ) -> tuple[Result | None, int]:
        """What it gave, None when the process died of it; and how often it had committed."""
        fuse = self.process.fuse
        fuse.light(death)
        try:
            result: Result | None = await work()
        except Killed:
            await self._restart()
            result = None
        fuse.length = None
        return result, fuse.commits

    async def _restart(self) -> None:
        await self.process.ledger.aclose()
        self.process = self.shared.start()

    def _faults(self, drawn: Mapping[int, str]) -> Faults:
        by_kind = {
            kind: frozenset(self.bids[slot] for slot, fault in drawn.items() if fault == kind)
            for kind in ("unreachable", "refused", "unwritable")
        }
        return Faults(**by_kind)

    # What must hold at any time.

    @invariant()
    def agrees(self) -> None:
        self.run(self._agree())

    async def _agree(self) -> None:
        await self._bundles_agree()
        await self._outbox_agrees()
        await self._copies_agree()
        finds = await asyncio.gather(*(self.observer.find(id_) for id_ in self.model.messages))
        assert finds == [fingerprint for fingerprint, _ in self.model.messages.values()]
        for message_id in self.model.tries:
            tries = await self.observer.attempts(QUEUE, message_id)
            assert [(each.error, each.outage) for each in tries] == self.model.told(message_id)

    async def _bundles_agree(self) -> None:
        found = {bundle.bid: bundle for bundle in await self.observer.bundles()}
        assert found.keys() == self.model.bundles.keys()
        for bid, expected in self.model.bundles.items():
            real = found[bid]
            assert (real.state, real.resources_count) == (expected.state, expected.count)
            assert (real.stored_count, real.closed) == (len(expected.stored), expected.closed is not None)
            assert real.metadata == expected.metadata
            resources = [resource async for resource in self.observer.resources(bid)]
            assert _sizes(r for r in resources if not r.late) == expected.stored
            assert _sizes(r for r in resources if r.late) == expected.late
        staged = await self.observer.staged(0, 100)
        assert set(staged) == {bid for bid in self.model.published() if self.model.bundles[bid].staged}

    async def _outbox_agrees(self) -> None:
        rows = await self.database.read(outbox_rows)
        complete = {bid for bid, bundle in self.model.bundles.items() if bundle.outbox is not None}
        assert sorted(row.bid for row in rows) == sorted(complete)
        for row in rows:
            bundle = self.model.bundles[row.bid]
            assert (row.event_id, row.state, row.replays) == (
                event_id(row.bid),
                bundle.outbox,
                bundle.replays,
            )
            assert row.state != "pending" or row.due is bundle.due
            assert self.bodies.setdefault(row.event_id, row.body) == row.body
            content = json.loads(row.body)
            assert (content["bundle_id"], content["event_id"]) == (row.bid, row.event_id)
            assert content["resources_count"] == len(bundle.stored)
            assert content["metadata"] == {**bundle.metadata, "resources_count": len(bundle.stored)}
        assert await self.observer.pending() == len(self.model.pending())

    async def _copies_agree(self) -> None:
        """Every copy has the same bytes and was preceded by its manifests; what counts as published was sent."""
        for copy in self.shared.copies:
            assert copy.body == self.bodies[copy.event_id]
            bid = copy.attributes["bundle_id"]
            bundle = self.model.bundles.get(bid)
            for place in targets(bid) if bundle else ():
                content = self.shared.stores[place.target]._objects[place.manifest_key].data
                listed = {item["url"]: item["size"] for item in json.loads(content)["resources"]}
                assert bundle is not None
                assert listed == {_url(id_): size for id_, size in bundle.stored.items()}
        sent = {copy.event_id for copy in self.shared.copies}
        assert {event_id(bid) for bid in self.model.published()} <= sent


def _sizes(resources: Iterable[StoredResource]) -> dict[str, int]:
    return {resource.resource_id: resource.objects[0].size for resource in resources}


def _url(resource_id: str) -> str:
    """As tests/conformance/ledgers.py names them."""
    return f"https://example.com/{int(resource_id[1:])}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the outbox; `due` by the database's clock."""

    event_id: str
    bid: str
    state: OutboxState
    body: bytes
    replays: int
    due: bool
    generation: int


def outbox_rows(conn: Connection) -> list[Row]:
    columns = (outbox.c.event_id, outbox.c.bid, outbox.c.state, outbox.c.body, outbox.c.replays)
    due = (outbox.c.state == "pending") & (outbox.c.due_at <= now_ms())
    statement = select(*columns, due, outbox.c.generation)
    return [Row(*row) for row in conn.execute(statement)]
