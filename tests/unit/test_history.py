"""The checker of histories: it lets a good world pass, and finds each invariant's violation in a broken one."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Attributes, single
from backends.file import FileBackend, FileOptions
from handlers.naming import resource_id, resource_name
from handlers.plan import BundleTarget
from tests.support.history import (
    Notified,
    Published,
    Report,
    World,
    changes,
    check,
    completions,
    contents,
    received,
    snapshot,
)
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Close, Entry, StoredObject, StoredResource
from worker.manifest import manifest
from worker.notification import attributes
from worker.publishers.base import Notification
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import Dead, Message, OutgoingMessage
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue

CANARY = "canary-5b1f"
URLS = ("https://example.com/a.bin", "https://example.com/b.bin")
FIRST = Published("test-one", {url: f"{url} of one".encode() * 40 for url in URLS})
SECOND = Published("test-two", {URLS[0]: b""})


def key(bundle: Published, url: str) -> str:
    return f"bundle_{bundle.bid}/{resource_name(url)}"


def entry(bundle: Published, resource: StoredResource | None) -> Entry:
    return Entry(
        message_id=f"{bundle.bid}/{resource.resource_id if resource else 'closed'}",
        fingerprint="f",
        bid=bundle.bid,
        recipe_id="r",
        primary_url="https://example.com/",
        resources_count=None,
        meta={},
        targets=(BundleTarget("main", f"bundle_{bundle.bid}", f"bundle_{bundle.bid}/bundle.meta"),),
        resource=resource,
        close=None if resource else Close(len(bundle.payloads), {}),
    )


async def store(bundle: Published, url: str, target: FileBackend) -> StoredResource:
    receipt = await target.write(key(bundle, url), single(bundle.payloads[url]), Attributes())
    facts = {"key": receipt.key, "size": receipt.size, "sha256": receipt.sha256}
    await target.write(f"{receipt.key}.meta", single(json.dumps(facts).encode()), Attributes())
    stored = StoredObject("main", receipt.key, receipt.size, receipt.sha256)
    return StoredResource(resource_id(url), url, None, 200, {}, "file:///staging/x", (stored,))


async def live(home: Path) -> None:
    """What a run that went well leaves in `home`."""
    target = await FileBackend.connect(FileOptions(root=home / "storage"))
    database = open_database(ledger_url(home))
    await migrate(database)
    ledger = SqlLedger(database)
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=home / "completions.db"))
    for bundle in (FIRST, SECOND):
        for url in bundle.payloads:
            await ledger.record(entry(bundle, await store(bundle, url, target)))
        await ledger.record(entry(bundle, None))
    rows = await ledger.claim(10, 60.0)
    for row in rows:
        record = await ledger.bundle(row.bid)
        assert record is not None
        (place,) = record.targets
        pages = manifest(record, place, ledger.resources(row.bid))
        await target.write(place.manifest_key, pages, Attributes())
        told = attributes(bid=row.bid, recipe_id=row.recipe_id, completed_at=row.completed_at)
        await publisher.publish([Notification(row.event_id, row.recipe_id, row.body, told)])
    assert await ledger.mark_published(rows) == 2
    await publisher.aclose()
    await ledger.aclose()
    await target.aclose()


def ledger_url(home: Path) -> str:
    return f"sqlite:///{home / 'ledger.db'}"


@dataclass
class Home:
    """A world that a test may break."""

    path: Path
    world: World

    @property
    def storage(self) -> Path:
        return self.path / "storage"

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path / "ledger.db")) as connection, connection:
            connection.execute(statement)

    async def found(self, **other: Any) -> Report:
        return await check(replace(self.world, **other))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("history")
    asyncio.run(live(home))
    return home


@pytest.fixture
async def home(template: Path, tmp_path: Path) -> AsyncIterator[Home]:
    path = tmp_path / "home"
    shutil.copytree(template, path)
    (path / "staging").mkdir()
    (path / "worker.log").write_text("all is well\n")
    target = await FileBackend.connect(FileOptions(root=path / "storage"))
    staging = await FileBackend.connect(FileOptions(root=path / "staging"))
    yield Home(
        path,
        World(
            published=(FIRST, SECOND),
            ledger_url=ledger_url(path),
            targets={"main": target},
            notifications=await completions(path / "completions.db"),
            staging=[staging],
            logs=[path / "worker.log", path / "completions.db"],
            canary=CANARY,
        ),
    )
    await target.aclose()
    await staging.aclose()


def message(id_: str, **attributes_: str) -> Message:
    return Message("m", json.dumps({"id": id_}).encode(), "h", 1, attributes_)


def only(report: Report, *invariants: str) -> bool:
    """Each of these is violated, and no other."""
    return {line.partition(":")[0] for line in report.violations} == set(invariants)


async def test_a_good_world_passes(home: Home) -> None:
    report = await home.found()
    assert report == Report()
    assert len(home.world.notifications) == 2


async def test_i1_a_message_that_vanished_without_a_row(home: Home) -> None:
    id_ = f"{FIRST.bid}/{resource_id(URLS[0])}"
    home.sql(f"DELETE FROM messages WHERE id = '{id_}'")  # noqa: S608 - a constant of this test
    report = await home.found()
    assert report.violations == [f"I1: message {id_} is in no queue and has no row"]
    assert (await home.found(queued=[message(id_)])).unfinished == {FIRST.bid}
    assert (await home.found(dead=[message(id_)])).dead == {FIRST.bid}
    assert (await home.found(dead=[message(id_)])).violations == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE bundles SET state = 'open' WHERE bid = 'test-one'",
        "UPDATE bundles SET state = 'complete' WHERE bid = 'test-one'",
        "UPDATE outbox SET state = 'parked' WHERE bid = 'test-one'",
        "UPDATE bundles SET stored_count = 1 WHERE bid = 'test-one'",
    ],
)
async def test_i2_a_bundle_without_its_one_terminal_state(home: Home, damage: str) -> None:
    home.sql(damage)
    assert only(await home.found(), "I2")


async def test_i2_a_message_with_two_fates(home: Home) -> None:
    report = await home.found(dead=[message(f"{FIRST.bid}/closed")])
    assert report.violations == [f"I2: message {FIRST.bid}/closed is recorded and a dead letter as well"]


async def test_i2_a_bundle_nobody_knows_is_lost(home: Home) -> None:
    unknown = Published("test-three", {})
    report = await home.found(published=(FIRST, SECOND, unknown))
    assert only(report, "I1", "I2")
    assert report.lost == {"test-three"}


async def test_i3_a_bundle_without_notification_is_lost(home: Home) -> None:
    kept = [one for one in home.world.notifications if FIRST.bid.encode() not in one.body]
    report = await home.found(notifications=kept)
    assert report.violations == [f"I3: bundle {FIRST.bid} is published and no notification came"]
    assert report.lost == {FIRST.bid}


async def test_i3_copies_are_counted_and_have_to_be_equal(home: Home) -> None:
    first, second = home.world.notifications
    report = await home.found(notifications=[first, second, first, first])
    assert (report.violations, report.duplicates, report.inconsistent) == ([], 2, 0)
    body = first.body.replace(b'"status": "complete"', b'"status": "complete" ')
    report = await home.found(notifications=[first, second, Notified(body, first.attributes)])
    assert only(report, "I3")
    assert (report.duplicates, report.inconsistent) == (1, 1)
    report = await home.found(notifications=[first, second, Notified(first.body, {})])
    assert (only(report, "I3"), report.inconsistent) == (True, 1)


async def test_i3_a_notification_has_the_bytes_of_the_outbox(home: Home) -> None:
    first, second = home.world.notifications
    body = first.body.replace(b'"recipe_id": "r"', b'"recipe_id": "s"')
    report = await home.found(notifications=[Notified(body, first.attributes), second])
    assert only(report, "I3")


async def test_i4_a_missing_object_is_lost(home: Home) -> None:
    (home.storage / key(FIRST, URLS[1])).unlink()
    report = await home.found()
    assert (
        f"I4: the notification of bundle {FIRST.bid}: {key(FIRST, URLS[1])} is not there" in report.violations
    )
    assert report.lost == {FIRST.bid}


async def test_i4_a_missing_manifest(home: Home) -> None:
    (home.storage / f"bundle_{SECOND.bid}" / "bundle.meta").unlink()
    report = await home.found()
    assert only(report, "I4")
    assert report.lost == {SECOND.bid}


async def test_i4_a_manifest_that_forgot_one(home: Home) -> None:
    file = home.storage / f"bundle_{FIRST.bid}" / "bundle.meta"
    content = json.loads(file.read_bytes())
    content["resources"].pop()
    file.write_text(json.dumps(content))
    assert only(await home.found(), "I4")


async def test_i4_other_bytes_than_the_producers(home: Home) -> None:
    swapped = Published(FIRST.bid, dict(zip(reversed(URLS), FIRST.payloads.values(), strict=True)))
    report = await home.found(published=(swapped, SECOND))
    assert only(report, "I4")
    assert all("other bytes" in line for line in report.violations)


async def test_i4_a_notification_for_what_nobody_published(home: Home) -> None:
    report = await home.found(published=(FIRST,))
    assert only(report, "I4", "I5")
    assert report.lost == set()


async def test_i5_a_partial_object_under_a_final_name(home: Home) -> None:
    half = FIRST.payloads[URLS[0]][:100]
    (home.storage / "bundle_test-three").mkdir()
    (home.storage / "bundle_test-three" / "a.bin").write_bytes(half)
    report = await home.found()
    assert report.violations == [
        "I5: main bundle_test-three/a.bin (100 bytes) is no payload, no manifest and describes no object"
    ]


async def test_i5_a_truncated_object_and_a_sidecar_that_is_wrong_about_it(home: Home) -> None:
    file = home.storage / key(FIRST, URLS[0])
    file.write_bytes(file.read_bytes()[:-1])
    report = await home.found()
    assert only(report, "I4", "I5", "I7")
    assert sum(line.startswith("I5") for line in report.violations) == 2


async def test_i6_the_sweep_is_counted_and_what_it_leaves_is_found(home: Home) -> None:
    (home.storage / ".transload-0-0.part").write_bytes(b"half")
    report = await home.found()
    assert (report.violations, report.swept) == ([], 1)
    (home.path / "staging" / "link").symlink_to("/nowhere")
    report = await home.found()
    assert only(report, "I6")


async def test_i6_a_sweep_that_does_not_sweep(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: FileBackend, older_than: float, prefix: str = "") -> int:  # noqa: ARG001 - the backend's signature
        return 0

    monkeypatch.setattr(FileBackend, "sweep", nothing)
    (home.storage / ".transload-0-0.part").write_bytes(b"half")
    report = await home.found()
    assert only(report, "I6")


async def test_i7_an_object_that_is_not_as_its_receipt_said(home: Home) -> None:
    home.sql(f"UPDATE objects SET size = size + 1 WHERE bid = '{SECOND.bid}'")  # noqa: S608 - a constant of this test
    assert only(await home.found(), "I7")


async def test_i7_what_a_stale_owner_changes_between_two_snapshots(home: Home) -> None:
    before = await snapshot(home.world)
    (home.storage / "new").write_bytes(b"")
    home.sql("INSERT INTO messages VALUES ('new', 'f', 'test-three', 0)")
    assert changes(before, await snapshot(home.world)) == []
    (home.storage / key(FIRST, URLS[0])).write_bytes(b"other")
    home.sql(f"UPDATE outbox SET generation = generation + 1 WHERE bid = '{FIRST.bid}'")  # noqa: S608 - as above
    found = changes(before, await snapshot(home.world))
    assert len(found) == 2
    assert found[0].startswith("I7: a row of outbox is not as it was")
    assert found[1].startswith(f"I7: main {key(FIRST, URLS[0])} was ")


async def test_i8_a_secret_is_found_wherever_it_is(home: Home) -> None:
    with (home.path / "worker.log").open("a") as log:
        log.write(f"connecting with {CANARY}\n")
    home.sql(f"UPDATE outbox SET error = 'no access for {CANARY}'")  # noqa: S608 - as above
    report = await home.found(
        dead=[message("x", dead_letter_detail=CANARY)], queued=[message(CANARY)], texts={"metrics": CANARY}
    )
    assert only(report, "I8")
    places = {line.removeprefix("I8: the canary is in ") for line in report.violations}
    assert places >= {"the log worker.log", "the ledger's outbox", "a dead letter", "the queue", "metrics"}
    assert any(place.startswith("the file ledger.db") for place in places)
    assert (await home.found(canary="")).violations == []


async def test_i8_a_secret_in_a_notification_or_a_description(home: Home) -> None:
    file = home.storage / f"{key(FIRST, URLS[0])}.meta"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"note": CANARY}))
    first, second = home.world.notifications
    told = [first, second, Notified(first.body, {**first.attributes, "note": CANARY})]
    report = await home.found(notifications=told)
    assert only(report, "I3", "I8")
    assert sum(line.startswith("I8") for line in report.violations) == 2


async def test_a_queue_is_read_without_taking_or_for_good(tmp_path: Path) -> None:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=tmp_path / "queue.db", lease=1))
    try:
        await queue.send([OutgoingMessage(b"%d" % number, {"n": str(number)}) for number in range(12)])
        # Held by somebody who is dead: it comes back when the lease passes.
        (held,) = await queue.receive(1, 0.0)
        (bad,) = await queue.receive(1, 0.0)
        await queue.settle(bad, Dead("malformed"))
        bodies = {each.body for each in await contents(queue)}
        assert bodies == {b"%d" % number for number in range(12)} - {bad.body}
        assert held.body in bodies
        assert len(await received(queue)) == 11
        assert await contents(queue) == []
        dead = await queue.open_dead_letters()
        assert [each.body for each in await contents(dead)] == [bad.body]
        await dead.aclose()
    finally:
        await queue.aclose()
