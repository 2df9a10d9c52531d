"""From outbox to announcement: nothing announced unfinalized, nothing announced twice with other bytes, nothing lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from backends.base import Attributes, Receipt, StorageBackend, single
from backends.errors import Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from tests.conformance.ledgers import closing, entry, targets
from worker.budget import Budget
from worker.disposition import RetryPolicy
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import OutboxRow
from worker.manifest import manifest
from worker.metrics import Metrics
from worker.notification import event_id
from worker.publishers.base import Notification, PublisherOptions, PublishError, PublishRefused
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.relay import Relay, RelaySettings

HOUR = 3_600.0
LAPSED = 0.001
"""Seconds: a claim that has run out before anyone else asks."""


class Killed(BaseException):
    """Stands for the end of the process."""


class Publisher(EmbeddedPublisher):
    """The embedded publisher; `errors` maps bids to what they get instead. `sent` is every copy that went out."""

    Options: ClassVar[type[PublisherOptions]] = EmbeddedPublisherOptions
    errors: dict[str, PublishError]
    sent: list[Notification]

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        good = [n for n in notifications if n.attributes["bundle_id"] not in self.errors]
        self.sent += good
        outcomes = dict(zip((n.event_id for n in good), await super().publish(good), strict=True))
        return [self.errors.get(n.attributes["bundle_id"]) or outcomes.get(n.event_id) for n in notifications]


class DownBackend(MemoryBackend):
    down = False

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if self.down:
            raise Unavailable("down")
        return await super().write(key, chunks, attributes)


class DyingLedger(SqlLedger):
    """Its process dies between publish and mark, as long as `dying`."""

    dying = False
    marked: asyncio.Event

    async def mark_published(self, rows: Sequence[OutboxRow]) -> int:
        if self.dying:
            raise Killed
        count = await super().mark_published(rows)
        if count:
            self.marked.set()
        return count


@dataclass(slots=True)
class World:
    ledger: DyingLedger
    publisher: Publisher
    targets: dict[str, StorageBackend]
    disk: DownBackend

    def relay(self, lease: float = HOUR, ledger: SqlLedger | None = None, poll: float = 0.02) -> Relay:
        return Relay(
            ledger=self.ledger if ledger is None else ledger,
            publisher=self.publisher,
            targets=self.targets,
            settings=RelaySettings(lease=lease, poll_interval=poll),
            retry=RetryPolicy(base=0.0),
            random=lambda: 0.0,
            metrics=Metrics(),
            budget=Budget(64 << 20),
        )

    async def complete(self, *bids: str) -> None:
        for bid in bids:
            await asyncio.gather(self.ledger.record(entry(bid, 0)), self.ledger.record(entry(bid, 1)))
            await asyncio.create_task(self.ledger.record(closing(bid, 2, run="1")))

    async def states(self) -> dict[str, str]:
        return {bundle.bid: bundle.state for bundle in await self.ledger.bundles()}

    async def published(self) -> list[str]:
        return [stored.notification.event_id for stored in await self.publisher.read()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = DyingLedger(database)
    ledger.marked = asyncio.Event()
    publisher = await Publisher.connect(EmbeddedPublisherOptions(path=tmp_path / "completions.db"))
    publisher.errors, publisher.sent = {}, []
    disk = await DownBackend.connect(MemoryOptions())
    cloud = await MemoryBackend.connect(MemoryOptions())
    yield World(ledger, publisher, {"disk": disk, "cloud": cloud}, disk)
    await publisher.aclose()
    await ledger.aclose()


async def read(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_complete_bundle_is_finalized_published_and_marked(world: World) -> None:
    await world.complete("a")
    assert await world.relay().announce_due() == 1
    (sent,) = world.publisher.sent
    assert (sent.event_id, sent.group) == (event_id("a"), "recipe")
    assert sent.attributes["bundle_id"] == "a"
    assert json.loads(sent.body)["manifest_key"] == "disk/a/manifest"
    assert await world.states() == {"a": "published"}
    assert await world.ledger.pending() == 0
    assert await world.relay().announce_due() == 0


async def test_the_manifest_lists_what_lies_in_its_target(world: World) -> None:
    await world.complete("a")
    await world.relay().announce_due()
    for place in targets("a"):
        content = json.loads(await read(world.targets[place.target], place.manifest_key))
        assert content["bid"] == "a"
        assert content["resources_count"] == 2
        assert content["storage_key"] == place.storage_key
        assert content["event_id"] == event_id("a")
        assert content["metadata"] == {"run": "1"}
        assert content["meta"] == {"run": "1", "text": "é😀"}
        assert content["resources"] == [
            {
                "key": f"{place.storage_key}/{number}",
                "size": number,
                "sha256": "0" * 64,
                "url": f"https://example.com/{number}",
                "content_type": "text/html",
                "status_code": 200,
                "meta": {"n": number},
            }
            for number in range(2)
        ]


async def test_case_79_late_resources_are_in_no_manifest(world: World) -> None:
    await world.complete("a")
    bundle = await world.ledger.bundle("a")
    assert bundle is not None
    place = targets("a")[0]

    async def made() -> bytes:
        chunks = manifest(bundle, place, world.ledger.resources("a"))
        return b"".join([chunk async for chunk in chunks])

    before = await made()
    await asyncio.create_task(world.ledger.record(entry("a", 7)))
    assert await made() == before
    await world.relay().announce_due()
    assert await read(world.disk, place.manifest_key) == before


async def test_the_manifest_of_a_published_bundle_is_the_same_bytes(world: World) -> None:
    await world.complete("a")
    await world.relay().announce_due()
    bundle = await world.ledger.bundle("a")
    assert bundle is not None
    chunks = manifest(bundle, targets("a")[0], world.ledger.resources("a"))
    assert b"".join([chunk async for chunk in chunks]) == await read(world.disk, "disk/a/manifest")


async def test_the_manifest_of_nothing_is_json(world: World) -> None:
    await world.ledger.record(closing("a", 0))
    await world.relay().announce_due()
    assert json.loads(await read(world.disk, "disk/a/manifest"))["resources"] == []


async def test_case_10_a_crash_between_publish_and_mark_sends_the_same_bytes_again(world: World) -> None:
    await world.complete("a")
    world.ledger.dying = True
    with pytest.raises(Killed):
        await world.relay(lease=0).announce_due()
    assert await world.states() == {"a": "complete"}
    world.ledger.dying = False
    assert await world.relay().announce_due() == 1
    first, second = world.publisher.sent
    assert first == second
    assert await world.published() == [event_id("a")]
    assert await world.states() == {"a": "published"}


async def test_a_failing_publisher_postpones_and_its_neighbours_go_out(world: World) -> None:
    await world.complete("a", "b")
    world.publisher.errors["a"] = PublishError("queue down")
    await world.relay().announce_due()
    assert await world.states() == {"a": "complete", "b": "published"}
    assert await world.ledger.outbox("parked") == []
    world.publisher.errors.clear()
    assert await world.relay().announce_due() == 1
    assert await world.states() == {"a": "published", "b": "published"}


async def test_case_47_a_refused_notification_is_parked_with_its_reason(world: World) -> None:
    await world.complete("a", "b")
    world.publisher.errors["a"] = PublishRefused("too large")
    await world.relay().announce_due()
    (parked,) = await world.ledger.outbox("parked")
    assert (parked.bid, parked.error) == ("a", "too large")
    assert await world.states() == {"a": "complete", "b": "published"}
    assert await world.relay().announce_due() == 0


async def test_a_target_that_is_gone_is_waited_for(world: World) -> None:
    await world.complete("a")
    cloud = world.targets.pop("cloud")
    await world.relay().announce_due()
    assert world.publisher.sent == []
    assert await world.ledger.pending() == 1
    world.targets["cloud"] = cloud
    await world.relay().announce_due()
    assert await world.states() == {"a": "published"}


async def test_another_manifest_in_the_way_parks_the_completion(world: World) -> None:
    await world.disk.write("disk/a/manifest", single(b"other"), Attributes())
    await world.complete("a")
    await world.relay().announce_due()
    assert [parked.bid for parked in await world.ledger.outbox("parked")] == ["a"]
    assert world.publisher.sent == []
    assert await read(world.disk, "disk/a/manifest") == b"other"


async def test_i4_no_notification_before_every_manifest(world: World) -> None:
    await world.complete("a")
    world.disk.down = True
    assert await world.relay().announce_due() == 1
    assert world.publisher.sent == []
    assert await world.states() == {"a": "complete"}
    world.disk.down = False
    assert await world.relay().announce_due() == 1
    assert await world.states() == {"a": "published"}


async def test_case_49_two_relays_have_one_effect(world: World) -> None:
    """Both hold the row, because the first one's claim ran out while it was busy."""
    await world.complete("a")
    arrived = asyncio.Event()
    go_on = asyncio.Event()

    class Slow(DownBackend):
        async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
            if not arrived.is_set():
                arrived.set()
                await go_on.wait()
            return await super().write(key, chunks, attributes)

    world.targets["disk"] = await Slow.connect(MemoryOptions())
    old = asyncio.create_task(world.relay(lease=LAPSED).announce_due())
    await arrived.wait()
    new = world.relay(lease=HOUR)
    async with asyncio.timeout(10):
        # The old one renews its claim as long as it runs; in between it lapses.
        while not await new.announce_due():
            continue
    bundle = await world.ledger.bundle("a")
    go_on.set()
    assert await old == 1
    assert await world.ledger.bundle("a") == bundle, "the old relay marks nothing"
    first, second = world.publisher.sent
    assert first == second
    assert await world.published() == [event_id("a")]


async def test_it_runs_until_cancelled_and_wakes_at_once(world: World) -> None:
    relay = world.relay(poll=HOUR)
    running = asyncio.create_task(relay.run())
    async with asyncio.timeout(10):
        await world.complete("a")
        relay.wake()
        await world.ledger.marked.wait()
    assert await world.states() == {"a": "published"}
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_it_polls_for_what_others_completed(world: World) -> None:
    running = asyncio.create_task(world.relay(poll=0.02).run())
    async with asyncio.timeout(10):
        await world.complete("a")
        await world.ledger.marked.wait()
    assert await world.states() == {"a": "published"}
    running.cancel()
    await asyncio.wait([running])
