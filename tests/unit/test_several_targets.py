"""The path of a message whose route has several targets: what is done again, and what the ledger and the completion tell."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import pytest

from backends.base import Attributes, Features, Receipt, StorageBackend, single
from backends.errors import Conflict, PermissionDenied, Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.layouts import ObjectLayout
from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from worker.budget import Budget
from worker.delivery import LeaseKeeper
from worker.disposition import RetryPolicy
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Entry, Transfer
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.base import Notification, PublisherOptions, PublishError
from worker.queues.base import Ack, Disposition, OutgoingMessage
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.relay import Relay, RelaySettings

DATA = b"payload" * 1000


class Watched(Wrapper):
    """A target that counts the payload bytes it is sent, and fails while it has a fault."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.sent = 0
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    @property
    def features(self) -> Features:
        return replace(self.inner.features, server_copy=False)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if self.fault is not None:
            raise self.fault
        self.waiting.set()
        await self.gate.wait()
        return await self.inner.write(key, self._counted(key, chunks), attributes)

    async def _counted(self, key: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            if not key.endswith(".json"):
                self.sent += len(chunk)
            yield chunk

    async def keys(self) -> list[str]:
        return [stat.key async for stat in self.list()]


class Outbound:
    """A publisher that keeps what it is given."""

    Options: ClassVar[type[PublisherOptions]] = PublisherOptions
    destination = "here"

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        self.sent += [notification.body for notification in notifications]
        return [None] * len(notifications)

    async def aclose(self) -> None: ...

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:  # noqa: ARG003 - there are none
        return cls()


class World:
    """Targets `one` and `two` are required, `spare` is best effort."""

    def __init__(self, ledger: SqlLedger, queue: MemoryQueue, stores: list[MemoryBackend]) -> None:
        self.ledger, self.queue = ledger, queue
        self.staging, *rest = stores
        self.targets = {
            name: Watched(store) for name, store in zip(("one", "two", "spare"), rest, strict=True)
        }
        route = Route(
            "default",
            tuple(
                Target(name, ObjectLayout(), required=name != "spare", rank=rank)
                for rank, name in enumerate(self.targets)
            ),
        )
        routes = Routes((route,))
        source = StagingSource("staging", self.staging.location)
        self.keeper = LeaseKeeper(queue, Metrics())
        self.pipeline = Pipeline(
            ledger=ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": self.staging},
            targets=self.targets,
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=Path(),
            on_complete=lambda: None,
        )
        self.outbound = Outbound()
        self.relay = Relay(
            ledger=ledger,
            publisher=self.outbound,
            targets=self.targets,
            settings=RelaySettings(batch=10, lease=30.0, poll_interval=0.05),
            retry=RetryPolicy(base=0.01, cap=0.01),
            random=lambda: 0.0,
            metrics=Metrics(),
            budget=Budget(64 << 20),
        )

    async def process(self, number: int = 0, count: int = 1) -> Disposition:
        command = ResourceFetched(
            id=f"m{number}",
            bundle=Bundle(bid="test-a", recipe_id="r", resources_count=count),
            resource=Resource(url=f"https://example.com/{number}"),
            payload=Payload(location=f"{self.staging.location}x"),
        )
        await self.queue.send([OutgoingMessage(encode(command))])
        (delivery,) = await self.keeper.hold(await self.queue.receive(1, 1))
        return await asyncio.create_task(self.pipeline.process(delivery))

    async def announce(self) -> dict[str, object]:
        """Let the relay do what is due; the one completion there is."""
        task = asyncio.create_task(self.relay.run())
        async with asyncio.timeout(10):
            while await self.ledger.pending():  # noqa: ASYNC110 - the relay has no event for it
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        (body,) = self.outbound.sent
        found: dict[str, object] = json.loads(body)
        return found

    async def listed(self, target: str) -> int:
        """How many objects the target's manifest names."""
        async with self.targets[target].open("bundles/test-a/metadata.json") as chunks:
            return len(json.loads(b"".join([chunk async for chunk in chunks]))["resources"])

    def sent(self) -> dict[str, int]:
        return {name: target.sent for name, target in self.targets.items()}

    async def manifests(self) -> list[str]:
        return [
            name
            for name, target in self.targets.items()
            if any(key.endswith("metadata.json") for key in await target.keys())
        ]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = SqlLedger(database)
    queue = await MemoryQueue.connect(QueueOptions())
    stores = [await MemoryBackend.connect(MemoryOptions()) for _ in range(4)]
    await stores[0].write("x", single(DATA), Attributes())
    yield World(ledger, queue, stores)
    await queue.aclose()
    await ledger.aclose()


async def test_every_target_gets_payload_and_manifest(world: World) -> None:
    assert await world.process() == Ack()
    completion = await world.announce()
    assert world.sent() == dict.fromkeys(("one", "two", "spare"), len(DATA))
    assert await world.manifests() == ["one", "two", "spare"]
    assert [target["status"] for target in completion["targets"]] == ["stored"] * 3  # type: ignore[attr-defined] # plain JSON
    assert await world.ledger.bundle_transfers("test-a") == []


async def test_case_72_redelivery_sends_bytes_only_to_the_target_that_failed(world: World) -> None:
    world.targets["two"].fault = Unavailable("two is down")
    for _ in range(3):
        with pytest.raises(Unavailable, match="two is down"):
            await world.process()
    assert world.sent() == {"one": len(DATA), "two": 0, "spare": len(DATA)}
    assert await world.ledger.find("m0") is None, "nothing is recorded, so nothing is announced"
    shown = {each.transfer.target: each.transfer for each in await world.ledger.bundle_transfers("test-a")}
    assert shown["two"].error == "Unavailable: two is down"
    assert shown["one"].stored is not None
    world.targets["two"].fault = None
    assert await world.process() == Ack()
    assert world.sent() == dict.fromkeys(("one", "two", "spare"), len(DATA))
    assert await world.ledger.bundle_transfers("test-a") == []
    (resource,) = [resource async for resource in world.ledger.resources("test-a")]
    assert sorted(found.target for found in resource.objects) == ["one", "spare", "two"]


async def test_the_error_that_leaves_most_hope_decides(world: World) -> None:
    world.targets["one"].fault = Conflict("one holds something else")
    world.targets["two"].fault = PermissionDenied("two refuses us")
    with pytest.raises(PermissionDenied):
        await world.process()
    world.targets["two"].fault = None
    with pytest.raises(Refused, match="one holds something else") as raised:
        await world.process()
    assert raised.value.reason == "conflict"
    assert world.sent() == {"one": 0, "two": len(DATA), "spare": len(DATA)}


async def test_a_bundle_does_not_wait_for_a_best_effort_target_but_its_message_does(world: World) -> None:
    world.targets["spare"].fault = Unavailable("spare is down")
    with pytest.raises(Unavailable, match="spare is down"):
        await world.process()
    completion = await world.announce()
    targets = {target["target"]: target for target in completion["targets"]}  # type: ignore[attr-defined] # plain JSON
    assert (targets["spare"]["status"], targets["spare"]["missing"]) == ("incomplete", 1)
    assert targets["one"]["status"] == "stored"
    assert await world.manifests() == ["one", "two"]
    with pytest.raises(Unavailable):
        await world.process()
    world.targets["spare"].fault = None
    assert await world.process() == Ack()
    assert world.sent() == dict.fromkeys(("one", "two", "spare"), len(DATA))
    assert await world.manifests() == ["one", "two", "spare"], "what was owed is complete"
    assert await world.ledger.bundle_transfers("test-a") == []
    assert await world.process() == Ack()
    assert world.outbound.sent == world.outbound.sent[:1], "it was announced once"


async def test_the_last_of_what_is_owed_brings_the_manifest(world: World) -> None:
    world.targets["spare"].fault = Unavailable("spare is down")
    for number in range(2):
        with pytest.raises(Unavailable):
            await world.process(number, count=2)
    await world.announce()
    world.targets["spare"].fault = None
    await world.process(0, count=2)
    assert await world.manifests() == ["one", "two"]
    await world.process(1, count=2)
    assert await world.manifests() == ["one", "two", "spare"]
    async with world.targets["spare"].open("bundles/test-a/metadata.json") as chunks:
        manifest = json.loads(b"".join([chunk async for chunk in chunks]))
    assert len(manifest["resources"]) == 2


async def test_a_best_effort_target_that_is_down_does_not_hold_the_completion(world: World) -> None:
    await world.process()
    world.targets["spare"].fault = Unavailable("spare is down")
    await world.announce()
    assert await world.manifests() == ["one", "two"]
    world.targets["spare"].fault = None
    assert await world.ledger.replay("test-a") == "published"
    world.outbound.sent.clear()
    await world.announce()
    assert await world.manifests() == ["one", "two", "spare"]


@pytest.mark.parametrize("announced", ["before", "after"])
async def test_case_19_the_slower_of_two_deliveries_sees_to_what_the_faster_one_left(
    world: World, announced: str
) -> None:
    spare = world.targets["spare"]
    spare.gate.clear()
    slower = asyncio.create_task(world.process())
    await spare.waiting.wait()
    spare.fault = Unavailable("spare is down")
    with pytest.raises(Unavailable):
        await world.process()
    if announced == "before":
        await world.announce()
        assert await world.manifests() == ["one", "two"]
    spare.fault = None
    spare.gate.set()
    assert await slower == Ack()
    if announced == "after":
        await world.announce()
    assert await world.listed("spare") == 1
    assert await world.ledger.bundle_transfers("test-a") == []


@pytest.mark.parametrize("announced", ["before", "after"])
async def test_case_19_two_deliveries_that_fail_alike_leave_the_debt(world: World, announced: str) -> None:
    spare, one = world.targets["spare"], world.targets["one"]
    spare.fault = Unavailable("spare is down")
    one.gate.clear()
    slower = asyncio.create_task(world.process())
    await one.waiting.wait()
    one.gate.set()
    with pytest.raises(Unavailable):
        await world.process()
    with pytest.raises(Unavailable):
        await slower
    if announced == "before":
        await world.announce()
    assert await world.ledger.owed("test-a") == {"spare": 1}
    spare.fault = None
    assert await world.process() == Ack()
    if announced == "after":
        await world.announce()
    assert await world.listed("spare") == 1


async def test_what_was_noted_before_a_crash_but_not_settled_is_settled(world: World) -> None:
    spare = world.targets["spare"]
    spare.fault = Unavailable("spare is down")
    with pytest.raises(Unavailable):
        await world.process()
    spare.fault = None
    (resource,) = [resource async for resource in world.ledger.resources("test-a")]
    written = replace(resource.objects[0], target="spare")
    await spare.write(written.key, single(DATA), Attributes())
    entry = Entry("m0", "", "test-a", "r", "", 1, {}, (), replace(resource, objects=()))
    await world.ledger.note_transfers(entry, [Transfer("spare", written)])
    await world.announce()
    assert await world.manifests() == ["one", "two"], "none that lacks what is there"
    assert await world.process() == Ack()
    assert await world.listed("spare") == 1


async def test_a_fault_nobody_foresaw_in_a_best_effort_target_does_not_hold_the_completion(
    world: World,
) -> None:
    await world.process()
    world.targets["spare"].fault = ZeroDivisionError("a bug")
    await world.announce()
    assert await world.manifests() == ["one", "two"]


async def test_what_is_owed_is_no_known_message(world: World) -> None:
    """The service asks this of messages that made processes crash: what is left to do would be lost with an Ack."""
    world.targets["spare"].fault = Unavailable("spare is down")
    with pytest.raises(Unavailable):
        await world.process()
    command = ResourceFetched(
        id="m0",
        bundle=Bundle(bid="test-a", recipe_id="r", resources_count=1),
        resource=Resource(url="https://example.com/0"),
        payload=Payload(location=f"{world.staging.location}x"),
    )
    assert await world.pipeline.known(encode(command)) is None
    world.targets["spare"].fault = None
    await world.process()
    assert await world.pipeline.known(encode(command)) == Ack()


async def test_a_note_the_ledger_refuses_costs_only_the_note(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object) -> None:
        raise LedgerUnavailable("down")

    monkeypatch.setattr(world.ledger, "note_transfers", down)
    assert await world.process() == Ack()
    assert world.sent() == dict.fromkeys(("one", "two", "spare"), len(DATA))
