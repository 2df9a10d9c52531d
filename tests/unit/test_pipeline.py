"""The path of one message: acknowledged only when recorded, whatever fails on the way."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import Attributes, single
from backends.memory import MemoryBackend, MemoryOptions
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.errors import PayloadMissing, Refused
from handlers.layouts import ObjectLayout
from handlers.messages import (
    Bundle,
    BundleClosed,
    ClosedBundle,
    Command,
    Payload,
    Resource,
    ResourceFetched,
    encode,
)
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from worker.budget import Budget
from worker.delivery import Delivery, LeaseKeeper, LeaseLost
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Entry, Recorded
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.queues.base import Ack, OutgoingMessage, Retry
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.shares import Owner

URL = "https://example.com/a.html"
NOTHING = Attributes()


class FlakyLedger(SqlLedger):
    """`before` and `after` are raised around the commit; `entered` tells that a record was asked for, `asked` counts."""

    before: BaseException | None = None
    after: BaseException | None = None
    entered: asyncio.Event
    asked: asyncio.Semaphore
    gate: asyncio.Event

    async def record(self, entry: Entry) -> Recorded:
        self.entered.set()
        self.asked.release()
        await self.gate.wait()
        if self.before is not None:
            raise self.before
        outcome = await super().record(entry)
        if self.after is not None:
            raise self.after
        return outcome


class World:
    def __init__(
        self, ledger: FlakyLedger, queue: MemoryQueue, staging: MemoryBackend, target: MemoryBackend
    ) -> None:
        self.ledger, self.queue, self.staging, self.target = ledger, queue, staging, target
        self.completed = 0
        routes = Routes((Route("default", (Target("target", ObjectLayout()),)),))
        source = StagingSource("staging", staging.location)
        self.keeper = LeaseKeeper(queue, Metrics())
        self.pipeline = Pipeline(
            ledger=ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": staging},
            targets={"target": target},
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=Path(),
            on_complete=self.on_complete,
        )

    def on_complete(self) -> None:
        self.completed += 1

    async def delivery(self, command: Command | bytes) -> Delivery:
        body = command if isinstance(command, bytes) else encode(command)
        await self.queue.send([OutgoingMessage(body)])
        (delivery,) = await self.keeper.hold(await self.queue.receive(1, 1))
        return delivery

    async def process(self, command: Command | bytes) -> Any:
        return await asyncio.create_task(self.pipeline.process(await self.delivery(command)))

    async def objects(self) -> list[str]:
        return [stat.key async for stat in self.target.list()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = FlakyLedger(database)
    ledger.entered, ledger.gate = asyncio.Event(), asyncio.Event()
    ledger.asked = asyncio.Semaphore(0)
    ledger.gate.set()
    queue = await MemoryQueue.connect(QueueOptions())
    staging = await MemoryBackend.connect(MemoryOptions())
    await staging.write("x", single(b"payload"), NOTHING)
    await staging.write("y", single(b"other payload"), NOTHING)
    yield World(ledger, queue, staging, await MemoryBackend.connect(MemoryOptions()))
    await queue.aclose()
    await ledger.aclose()


def fetched(
    message: str = "m1", url: str = URL, payload: bytes = b"payload", key: str = "x", **bundle: Any
) -> Command:
    return ResourceFetched(
        id=message,
        bundle=Bundle(bid="test-a", recipe_id="r", **bundle),
        resource=Resource(url=url),
        payload=Payload(
            location=f"memory://main/{key}", size=len(payload), sha256=hashlib.sha256(payload).hexdigest()
        ),
    )


def close(count: int, message: str = "c1") -> Command:
    return BundleClosed(id=message, bundle=ClosedBundle(bid="test-a", recipe_id="r", resources_count=count))


async def test_a_bundle_is_stored_recorded_and_complete(world: World) -> None:
    assert await world.process(fetched()) == Ack()
    assert await world.process(close(2)) == Ack()
    assert world.completed == 0
    assert await world.process(fetched("m2", URL + "2", b"other payload", "y")) == Ack()
    assert world.completed == 1
    bundle = await world.ledger.bundle("test-a")
    assert bundle is not None
    assert (bundle.state, bundle.stored_count) == ("complete", 2)
    stored = [each async for each in world.ledger.resources("test-a")]
    assert sorted(each.objects[0].key for each in stored) == await world.objects()
    assert {each.objects[0].sha256 for each in stored} == {
        hashlib.sha256(data).hexdigest() for data in (b"payload", b"other payload")
    }


async def test_case_20_a_redelivered_message_is_acknowledged_without_work(world: World) -> None:
    await world.process(fetched())
    await world.staging.delete("x")
    assert await world.process(fetched()) == Ack()


async def test_case_78_an_id_used_for_something_else_is_a_conflict(world: World) -> None:
    await world.process(fetched())
    for other in (fetched(url=URL + "2"), fetched(payload=b"other payload", key="y"), close(1, "m1")):
        with pytest.raises(Refused) as caught:
            await world.process(other)
        assert caught.value.reason == "conflict"
    assert len(await world.objects()) == 1


async def test_case_78_two_at_once_with_one_id_one_is_a_conflict(world: World) -> None:
    """Both looked the id up before either was recorded: the ledger decides, and only one changes it."""
    world.ledger.gate.clear()
    deliveries = [
        await world.delivery(fetched(resources_count=1)),
        await world.delivery(fetched(url=URL + "2", payload=b"other payload", key="y", resources_count=1)),
    ]
    tasks = [asyncio.create_task(world.pipeline.process(delivery)) for delivery in deliveries]
    for _ in tasks:
        await world.ledger.asked.acquire()
    world.ledger.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    (refused,) = (outcome for outcome in outcomes if isinstance(outcome, Refused))
    assert refused.reason == "conflict"
    assert outcomes.count(Ack()) == 1
    assert world.completed == 1
    bundle = await world.ledger.bundle("test-a")
    assert bundle is not None
    assert bundle.stored_count == 1


async def test_other_content_under_the_same_url_is_a_conflict(world: World) -> None:
    await world.process(fetched())
    with pytest.raises(Refused, match="conflict") as caught:
        await world.process(fetched("m2", payload=b"other payload", key="y"))
    assert "kept" in caught.value.detail
    assert await world.ledger.find("m2") is None


async def test_what_cannot_be_decoded_touches_nothing(world: World) -> None:
    with pytest.raises(Refused, match="malformed"):
        await world.process(b"no json")
    with pytest.raises(Refused, match="malformed"):
        await world.process(b" " * 100_001)
    assert await world.objects() == []


async def test_a_location_outside_staging_touches_nothing(world: World) -> None:
    outside = ResourceFetched(
        id="m",
        bundle=Bundle(bid="test-a", recipe_id="r"),
        resource=Resource(url=URL),
        payload=Payload(location="memory://other/x"),
    )
    with pytest.raises(Refused, match="staging_not_allowed"):
        await world.process(outside)
    assert await world.ledger.find("m") is None


async def test_a_payload_that_is_not_there_yet_is_not_recorded(world: World) -> None:
    with pytest.raises(PayloadMissing):
        await world.process(fetched(key="z"))
    assert await world.ledger.find("m1") is None


async def test_i1_no_ack_when_the_record_fails(world: World) -> None:
    world.ledger.before = LedgerUnavailable("down")
    with pytest.raises(LedgerUnavailable):
        await world.process(fetched(resources_count=1))
    assert await world.ledger.find("m1") is None
    assert len(await world.objects()) == 1
    world.ledger.before = None
    assert await world.process(fetched(resources_count=1)) == Ack()
    assert world.completed == 1


async def test_case_42_a_lost_reply_of_the_commit_is_resolved_on_redelivery(world: World) -> None:
    world.ledger.after = LedgerUnavailable("connection lost after COMMIT")
    with pytest.raises(LedgerUnavailable):
        await world.process(fetched(resources_count=1))
    world.ledger.after = None
    assert await world.process(fetched(resources_count=1)) == Ack()
    assert await world.ledger.pending() == 1


async def test_i1_a_cancelled_record_is_no_ack(world: World) -> None:
    world.ledger.gate.clear()
    task = asyncio.create_task(world.pipeline.process(await world.delivery(fetched())))
    await world.ledger.entered.wait()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.ledger.gate.set()
    assert await world.process(fetched()) == Ack()


async def test_i1_no_ack_while_the_record_is_under_way(world: World) -> None:
    world.ledger.gate.clear()
    task = asyncio.create_task(world.pipeline.process(await world.delivery(fetched())))
    await world.ledger.entered.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    world.ledger.gate.set()
    assert await task == Ack()


async def test_i7_a_lost_lease_records_nothing(world: World) -> None:
    delivery = await world.delivery(fetched())
    await world.queue.settle(delivery.message, Retry(0))
    await world.keeper.renew()
    with pytest.raises(LeaseLost):
        await asyncio.create_task(world.pipeline.process(delivery))
    assert not world.ledger.entered.is_set()


async def test_a_late_resource_is_acknowledged(world: World) -> None:
    await world.process(fetched(resources_count=1))
    assert await world.process(fetched("m2", URL + "2", b"other payload", "y")) == Ack()
    assert world.completed == 1


async def test_case_19_two_workers_with_the_same_message(world: World) -> None:
    deliveries = [await world.delivery(fetched(resources_count=1)) for _ in range(2)]
    outcomes = await asyncio.gather(*(world.pipeline.process(delivery) for delivery in deliveries))
    assert outcomes == [Ack(), Ack()]
    assert world.completed == 1
    assert await world.ledger.pending() == 1


async def test_for_whom_a_message_is_can_always_be_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is a surprise, too: what it fails with is told when it is tried."""
    assert world.pipeline.owner(encode(fetched())) == Owner("default", "r")
    assert world.pipeline.owner(encode(close(1))) == Owner("default", "r")
    assert world.pipeline.owner(b"{") == Owner("none")
    monkeypatch.setattr(Handlers, "route", None)
    assert world.pipeline.owner(encode(fetched())) == Owner("none")
