"""Notifications on the path of messages: bundles of one, versions that were replaced, several events in one message."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from backends.base import Attributes, ObjectStat, Receipt, StorageBackend, single
from backends.errors import Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import PayloadMissing, Refused
from handlers.execute import execute
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.plan import StorePlan
from tests.support.s3_events import direct, record
from worker.budget import Budget
from worker.cli import app
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Entry, Recorded
from worker.pipeline import Pipeline
from worker.queues.base import Ack, Ignored
from worker.routing import make_handlers
from worker.settings import Settings, SettingsError, load_settings

NOTIFIED: dict[str, Any] = {"backend": "s3", "bucket": "drops", "prefix": "in", "notifications": {}}


def etag(data: bytes) -> str:
    """As the memory backend has it."""
    return hashlib.sha256(data).hexdigest()


def put(key: str, data: bytes, **changed: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"eTag": etag(data), "size": len(data)}
    return record(key, **(facts | changed))


def settings(folder: Path, **staging: Any) -> Settings:
    file = folder / "transload.yaml"
    content = {
        "staging": {"drop": NOTIFIED | staging},
        "targets": {"lake": {"backend": "memory", "layout": "{recipe_id}/{bid}/{name}"}},
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_settings(file=file, home=folder / "home", environ={})


class SilentLedger(SqlLedger):
    """Does not answer from the record of that number on."""

    silent_from = 10**9
    asked = 0

    async def record(self, entry: Entry) -> Recorded:
        self.asked += 1
        if self.asked >= self.silent_from:
            raise LedgerUnavailable("not now")
        return await super().record(entry)


class Handed:
    """A message without a lease."""

    def __init__(self, content: Any) -> None:
        self.body = json.dumps(content).encode()
        self.route = ""
        self.begun = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        yield


class World:
    def __init__(
        self, ledger: SilentLedger, staging: MemoryBackend, target: MemoryBackend, chosen: Settings
    ) -> None:
        self.ledger, self.staging, self.target = ledger, staging, target
        self.completed = 0
        self.pipeline = Pipeline(
            ledger=ledger,
            handlers=make_handlers(chosen),
            staging={"drop": staging},
            targets={"lake": target},
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=Path(),
            on_complete=self.on_complete,
        )

    def on_complete(self) -> None:
        self.completed += 1

    async def drop(self, key: str, data: bytes) -> None:
        """As a fetcher does, which may replace what is there."""
        await self.staging.delete(key)
        await self.staging.write(key, single(data), Attributes())

    async def process(self, content: Any) -> Any:
        return await asyncio.create_task(self.pipeline.process(Handed(content)))

    async def stored(self) -> dict[str, bytes]:
        """The content of the target by the last part of its keys."""
        found = {}
        async for stat in self.target.list():
            async with self.target.open(stat.key) as chunks:
                found[stat.key.rpartition("/")[2].partition("-")[0]] = b"".join(
                    [chunk async for chunk in chunks]
                )
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = SilentLedger(database)
    staging = await MemoryBackend.connect(MemoryOptions(name="drops"))
    target = await MemoryBackend.connect(MemoryOptions(name="lake"))
    yield World(ledger, staging, target, settings(tmp_path))
    await ledger.aclose()


async def test_an_object_is_a_complete_bundle(world: World) -> None:
    await world.drop("in/a.html", b"one")
    assert await world.process({"Records": [put("in/a.html", b"one")]}) == Ack()
    (bundle,) = await world.ledger.bundles()
    assert (bundle.state, bundle.recipe_id, bundle.resources_count) == ("complete", "drop", 1)
    assert world.completed == 1
    assert await world.stored() == {"a": b"one"}


async def test_case_20_a_notification_that_comes_again_changes_nothing(world: World) -> None:
    await world.drop("in/a.html", b"one")
    for _ in range(2):
        assert await world.process({"Records": [put("in/a.html", b"one")]}) == Ack()
    await world.drop("in/a.html", b"two")
    assert await world.process({"Records": [put("in/a.html", b"one")]}) == Ack()
    assert world.completed == 1
    assert len(await world.ledger.bundles()) == 1


async def test_each_version_that_is_found_is_a_bundle_in_any_order(world: World) -> None:
    await world.drop("in/a.html", b"two")
    second = {"Records": [put("in/a.html", b"two", sequencer="02")]}
    assert await world.process(second) == Ack()
    with pytest.raises(Refused, match="it was replaced") as refused:
        await world.process({"Records": [put("in/a.html", b"one", sequencer="01")]})
    assert refused.value.reason == "conflict"
    await world.drop("in/a.html", b"tri")
    assert await world.process({"Records": [put("in/a.html", b"tri", sequencer="03")]}) == Ack()
    assert world.completed == 2
    assert sorted([bundle.state for bundle in await world.ledger.bundles()]) == ["complete", "complete"]


async def test_case_68_what_is_replaced_while_it_is_read_is_not_recorded(world: World) -> None:
    await world.drop("in/a.html", b"one")
    write = world.target.write

    async def replaced(key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        receipt = await write(key, chunks, attributes)
        await world.drop("in/a.html", b"two")
        return receipt

    world.target.write = replaced  # type: ignore[method-assign] # it happens between two looks
    with pytest.raises(Refused, match="it was replaced"):
        await world.process({"Records": [put("in/a.html", b"one")]})
    assert await world.ledger.bundles() == []


async def test_an_object_that_is_gone_is_waited_for(world: World) -> None:
    with pytest.raises(PayloadMissing):
        await world.process({"Records": [put("in/a.html", b"one")]})
    await world.drop("in/a.html", b"one")
    assert await world.process({"Records": [put("in/a.html", b"one")]}) == Ack()


async def test_of_a_test_event_nothing_follows_but_a_line_in_the_log(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        assert await world.process({"Event": "s3:TestEvent", "Bucket": "drops"}) == Ignored()
    (line,) = lines
    assert (line["event"], line["what"]) == ("nothing to do for a notification", "s3:TestEvent")
    assert await world.ledger.bundles() == []
    assert await world.pipeline.known(b'{"Event": "s3:TestEvent"}') == Ack()


async def test_several_events_are_several_bundles_and_one_ack(world: World) -> None:
    removed = record("in/z", eventName="ObjectRemoved:Delete")
    events = [removed]
    for number in range(3):
        await world.drop(f"in/{number}", b"%d" % number)
        events.append(put(f"in/{number}", b"%d" % number))
    assert await world.process({"Records": events}) == Ack()
    assert await world.stored() == {"0": b"0", "1": b"1", "2": b"2"}
    assert world.completed == 3


async def test_what_fails_does_not_keep_the_rest_and_is_all_that_is_left(world: World) -> None:
    await world.drop("in/c", b"c")
    outside, missing, good = put("out/a", b"a"), put("in/b", b"b"), put("in/c", b"c")
    message = {"Records": [outside, missing, good]}
    body = json.dumps(message).encode()
    # What may still come leaves more hope than what is refused.
    with pytest.raises(PayloadMissing):
        await world.process(message)
    assert await world.stored() == {"c": b"c"}
    assert await world.pipeline.known(json.dumps({"Records": [good]}).encode()) == Ack()
    assert await world.pipeline.known(json.dumps({"Records": [good, missing]}).encode()) is None
    await world.drop("in/b", b"b")
    with pytest.raises(Refused) as refused:
        await world.process(message)
    assert refused.value.reason == "staging_not_allowed"
    with pytest.raises(Refused):
        await world.pipeline.known(body)
    assert world.completed == 2


async def test_case_41_a_ledger_that_does_not_answer_ends_it_at_once(world: World) -> None:
    events = []
    for name in "abc":
        await world.drop(f"in/{name}", name.encode())
        events.append(put(f"in/{name}", name.encode()))
    world.ledger.silent_from = 2
    with pytest.raises(LedgerUnavailable):
        await world.process({"Records": events})
    assert world.ledger.asked == 2
    world.ledger.silent_from = 10**9
    assert await world.process({"Records": events}) == Ack()
    # The first one was known; the others were recorded now.
    assert world.ledger.asked == 4
    assert world.completed == 3


def announced(chosen: Settings, **payload: Any) -> StorePlan:
    command = ResourceFetched(
        id="m",
        bundle=Bundle(bid="test-a", recipe_id="r"),
        resource=Resource(url="https://example.com/a"),
        payload=Payload(location="s3://drops/in/a", **payload),
    )
    plan = make_handlers(chosen).plan(command)
    assert isinstance(plan, StorePlan)
    return plan


class Unversioned(MemoryBackend):
    """Knows no ETags."""

    async def stat(self, key: str) -> ObjectStat | None:
        found = await super().stat(key)
        return found and ObjectStat(found.key, found.size)


async def test_a_message_may_announce_an_etag_as_well(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    for store, promised, expected in (
        (MemoryBackend, etag(b"one"), None),
        (MemoryBackend, "other", "has ETag"),
        (Unversioned, etag(b"one"), "has no ETag"),
    ):
        staging = await store.connect(MemoryOptions(name="drops"))
        await staging.write("in/a", single(b"one"), Attributes())
        target = await MemoryBackend.connect(MemoryOptions(name="lake"))
        places: tuple[dict[str, StorageBackend], dict[str, StorageBackend]] = (
            {"drop": staging},
            {"lake": target},
        )
        doing = execute(announced(chosen, etag=promised), *places)
        if expected is None:
            assert len((await doing).placements) == 1
            continue
        with pytest.raises(Refused, match=expected):
            await doing
        assert [stat async for stat in target.list()] == []


async def test_without_an_etag_nothing_is_asked(tmp_path: Path) -> None:
    class Mute(MemoryBackend):
        async def stat(self, key: str) -> ObjectStat | None:
            raise Unavailable(f"asked for {key}")

    staging = await Mute.connect(MemoryOptions(name="drops"))
    await staging.write("in/a", single(b"one"), Attributes())
    target = await MemoryBackend.connect(MemoryOptions(name="lake"))
    done = await execute(announced(settings(tmp_path)), {"drop": staging}, {"lake": target})
    assert len(done.placements) == 1


@pytest.mark.parametrize(
    ("staging", "expected"),
    [
        ({"notifications": {"recipe_id": "{bid}"}}, "'{bid}' is not known; there are {staging} and {folder}"),
        ({"notifications": {"recipe_id": "a}"}}, "is not known"),
        ({"notifications": {"bundle": "folder"}}, "staging.drop.notifications.bundle"),
        ({"delete_published": True}, "with delete_published an object could be deleted"),
    ],
)
def test_settings_that_mean_nothing_or_harm_are_refused(
    tmp_path: Path, staging: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(tmp_path, **staging)
    assert expected in str(refused.value)


def test_notifications_are_of_buckets(tmp_path: Path) -> None:
    file = tmp_path / "transload.yaml"
    file.write_text(yaml.safe_dump({"staging": {"drop": {"notifications": {}}}}), encoding="utf-8")
    with pytest.raises(SettingsError, match="'file' has none; remove notifications"):
        load_settings(file=file, home=tmp_path, environ={})


def test_explain_tells_what_would_become_of_each_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(tmp_path)
    file = tmp_path / "notification.json"
    events = [record("in/a.html"), record("in/b", eventName="ObjectRemoved:Delete"), record("out/c")]
    file.write_text(json.dumps({"Records": events}), encoding="utf-8")
    command = ["--config", str(tmp_path / "transload.yaml"), "--home", str(tmp_path), "explain", str(file)]
    with pytest.raises(Refused, match="not under a configured staging source"):
        app([*command, "--json"], standalone_mode=False)
    plan, ignored = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert plan["source"] == "drop: in/a.html"
    assert ignored == {"ignored": "ObjectRemoved:Delete"}
    file.write_text('{"Event": "s3:TestEvent"}', encoding="utf-8")
    app(command, standalone_mode=False)
    assert capsys.readouterr().out == "nothing to do for s3:TestEvent\n"


def test_notifications_are_off_unless_they_are_configured(tmp_path: Path) -> None:
    chosen = settings(tmp_path, notifications=None)
    with pytest.raises(Refused, match="no staging source takes notifications"):
        make_handlers(chosen).read(json.dumps(direct()).encode())
