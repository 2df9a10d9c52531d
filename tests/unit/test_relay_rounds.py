"""One round of the relay with something broken in it: each fault stays with its own row."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing as closing_file
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from backends.base import Attributes, Receipt, StorageBackend
from backends.errors import Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from tests.conformance.ledgers import closing, entry
from worker.budget import Budget
from worker.disposition import RetryPolicy
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import OutboxRow
from worker.metrics import Metrics
from worker.notification import event_id
from worker.publishers.base import Notification, PublisherOptions, PublishError
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.relay import Relay, RelaySettings

HOUR = 3_600.0


class Ledger(SqlLedger):
    """`busy`: noting what went wrong with a row fails."""

    busy = False

    async def postpone(self, row: OutboxRow, delay: float, error: str) -> bool:
        if self.busy:
            raise LedgerUnavailable("busy")
        return await super().postpone(row, delay, error)

    async def park(self, row: OutboxRow, error: str) -> bool:
        if self.busy:
            raise LedgerUnavailable("busy")
        return await super().park(row, error)


class Publisher(EmbeddedPublisher):
    """The embedded publisher; `errors` maps bids to what they get instead."""

    Options: ClassVar[type[PublisherOptions]] = EmbeddedPublisherOptions
    errors: dict[str, PublishError]

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        good = [n for n in notifications if n.attributes["bundle_id"] not in self.errors]
        outcomes = dict(zip((n.event_id for n in good), await super().publish(good), strict=True))
        return [self.errors.get(n.attributes["bundle_id"]) or outcomes.get(n.event_id) for n in notifications]


class Backend(MemoryBackend):
    """`errors` maps a part of a key to what its write raises."""

    errors: dict[str, Exception]

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        for part, error in self.errors.items():
            if part in key:
                raise error
        return await super().write(key, chunks, attributes)


@dataclass(slots=True)
class World:
    folder: Path
    publisher: Publisher
    disk: Backend
    targets: dict[str, StorageBackend]
    ledgers: list[Ledger] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    async def open_ledger(self, name: str = "ledger.db") -> Ledger:
        database = open_database(f"sqlite:///{self.folder / name}")
        await migrate(database)
        self.ledgers.append(Ledger(database))
        return self.ledgers[-1]

    def relay(self, ledger: Ledger) -> Relay:
        return Relay(
            ledger=ledger,
            publisher=self.publisher,
            targets=self.targets,
            settings=RelaySettings(lease=HOUR, poll_interval=0.02),
            retry=RetryPolicy(base=0.0),
            random=lambda: 0.0,
            metrics=self.metrics,
            budget=Budget(64 << 20),
        )

    async def published(self) -> set[str]:
        return {stored.notification.event_id for stored in await self.publisher.read()}

    def damage(self, statement: str, *values: str) -> None:
        with closing_file(sqlite3.connect(self.folder / "ledger.db")) as connection, connection:
            assert connection.execute(statement, values).rowcount == 1


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    publisher = await Publisher.connect(EmbeddedPublisherOptions(path=tmp_path / "completions.db"))
    publisher.errors = {}
    disk = await Backend.connect(MemoryOptions())
    cloud = await Backend.connect(MemoryOptions())
    disk.errors, cloud.errors = {}, {}
    world = World(tmp_path, publisher, disk, {"disk": disk, "cloud": cloud})
    yield world
    await world.publisher.aclose()
    for ledger in world.ledgers:
        await ledger.aclose()


async def read(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def ids(*bids: str) -> set[str]:
    return {event_id(bid) for bid in bids}


async def states(ledger: Ledger, *bids: str) -> Mapping[str, str]:
    """One by one: a list would stumble over a damaged row."""
    found = {bid: await ledger.bundle(bid) for bid in bids}
    return {bid: bundle.state for bid, bundle in found.items() if bundle is not None}


@pytest.mark.parametrize("damage", ['{"a"', "[1, 2", "\x00"])
async def test_case_47_a_damaged_row_is_parked_and_the_others_flow(world: World, damage: str) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b", "c"):
        await ledger.record(closing(bid, 0))
    world.damage("UPDATE bundles SET metadata = ? WHERE bid = 'b'", damage)
    assert await world.relay(ledger).announce_due() == 3
    assert await world.published() == ids("a", "c")
    assert await states(ledger, "a", "c") == {"a": "published", "c": "published"}
    (parked,) = await ledger.outbox("parked")
    assert parked.bid == "b"
    assert "JSON" in str(parked.error) or "Expecting" in str(parked.error)
    world.damage("UPDATE bundles SET metadata = '{}' WHERE bid = 'b'")
    world.damage("UPDATE outbox SET state = 'pending', due_at = 0 WHERE state = 'parked'")
    await world.relay(ledger).announce_due()
    assert await world.published() == ids("a", "b", "c")


async def test_case_47_a_time_nobody_can_read_is_parked_and_the_others_flow(world: World) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b"):
        await ledger.record(closing(bid, 0))
    world.damage("UPDATE outbox SET completed_at = 9000000000000000 WHERE bid = 'a'")
    assert await world.relay(ledger).announce_due() == 2
    assert await world.published() == ids("b")
    assert [parked.bid for parked in await ledger.outbox("parked")] == ["a"]


async def test_case_47_a_damaged_resource_is_parked_and_the_others_flow(world: World) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b"):
        await ledger.record(entry(bid, 0, count=1))
    world.damage("UPDATE resources SET meta = '{' WHERE bid = 'a'")
    await world.relay(ledger).announce_due()
    assert await world.published() == ids("b")
    assert [parked.bid for parked in await ledger.outbox("parked")] == ["a"]


async def test_case_47_a_bundle_that_is_not_there_is_parked(world: World) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b"):
        await ledger.record(closing(bid, 0))
    world.damage("DELETE FROM bundles WHERE bid = 'a'")
    await world.relay(ledger).announce_due()
    assert await world.published() == ids("b")
    assert [parked.bid for parked in await ledger.outbox("parked")] == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("leaked"), Unavailable("down")])
async def test_what_one_write_raises_concerns_its_own_row(world: World, error: Exception) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b", "c"):
        await ledger.record(closing(bid, 0))
    world.disk.errors["disk/b/"] = error
    await world.relay(ledger).announce_due()
    assert await world.published() == ids("a", "c")
    assert await states(ledger, "a", "b", "c") == {"a": "published", "b": "complete", "c": "published"}
    assert await ledger.outbox("parked") == []
    world.disk.errors.clear()
    assert await world.relay(ledger).announce_due() == 1
    assert await world.published() == ids("a", "b", "c")


async def test_what_was_accepted_is_marked_though_nothing_else_can_be_noted(world: World) -> None:
    ledger = await world.open_ledger()
    for bid in ("a", "b", "c"):
        await ledger.record(closing(bid, 0))
    world.publisher.errors["a"] = PublishError("throttled")
    world.disk.errors["disk/b/"] = Unavailable("down")
    ledger.busy = True
    assert await world.relay(ledger).announce_due() == 3
    assert await world.published() == ids("c")
    assert await states(ledger, "a", "b", "c") == {"a": "complete", "b": "complete", "c": "published"}


async def test_a_target_that_is_not_configured_is_asked_for_until_it_is(world: World) -> None:
    ledger = await world.open_ledger()
    await ledger.record(closing("a", 0))
    cloud = world.targets.pop("cloud")
    for _ in range(3):
        assert await world.relay(ledger).announce_due() == 1
    assert await ledger.outbox("parked") == []
    assert await world.published() == set()
    assert b'transload_outbox_publish_total{result="error"} 3.0' in world.metrics.render()
    world.targets["cloud"] = cloud
    await world.relay(ledger).announce_due()
    assert await states(ledger, "a") == {"a": "published"}
    assert await read(cloud, "cloud/a/manifest") != b""


async def announced_an_hour_ago(world: World) -> bytes:
    """A bundle whose ledger is lost after the announcement; its manifest stays behind."""
    ledger = await world.open_ledger()
    await ledger.record(entry("a", 0))
    await ledger.record(closing("a", 1, run="1"))
    world.damage("UPDATE bundles SET completed_at = completed_at - 3600000")
    world.damage(
        "UPDATE outbox SET completed_at = completed_at - 3600000,"
        " body = CAST(replace(CAST(body AS TEXT), ?, ?) AS BLOB)",
        '"completion_timestamp": "20',
        '"completion_timestamp": "19',
    )
    await world.relay(ledger).announce_due()
    assert await states(ledger, "a") == {"a": "published"}
    return await read(world.disk, "disk/a/manifest")


async def published_again(world: World) -> Ledger:
    ledger = await world.open_ledger("restored.db")
    await ledger.record(entry("a", 0))
    await ledger.record(closing("a", 1, run="1"))
    return ledger


async def test_a_manifest_of_a_lost_ledger_is_found_equal(world: World) -> None:
    manifest = await announced_an_hour_ago(world)
    ledger = await published_again(world)
    await world.publisher.aclose()
    world.publisher = await Publisher.connect(EmbeddedPublisherOptions(path=world.folder / "others.db"))
    world.publisher.errors = {}
    await world.relay(ledger).announce_due()
    assert await states(ledger, "a") == {"a": "published"}
    assert await world.published() == ids("a")
    assert await read(world.disk, "disk/a/manifest") == manifest


async def test_a_completion_of_a_lost_ledger_that_is_still_there_stays(world: World) -> None:
    """The embedded publisher keeps the first copy, as the completion's time of day is another one now."""
    await announced_an_hour_ago(world)
    (first,) = await world.publisher.read()
    assert b'"completion_timestamp": "19' in first.notification.body
    ledger = await published_again(world)
    await world.relay(ledger).announce_due()
    (parked,) = await ledger.outbox("parked")
    assert "published before with other bytes" in str(parked.error)
    assert await world.publisher.read() == [first]
