"""A worker in the fetcher's own process: the OC Fetcher's storages, without what their code got wrong."""

import asyncio
import contextlib
import gc
import gzip
import io
import json
import os
import sqlite3
import weakref
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Attributes, Receipt
from backends.errors import Unavailable, Unsupported
from backends.file import FileBackend
from handlers.errors import Refused
from tests.support.storages import Recipe, announced, files, ledger_states, stream
from worker import manifest, relay, settings_in_process
from worker.ledger import sql
from worker.ledger.base import LedgerUnavailable
from worker.notification import event_id
from worker.settings_process import WorkerSettings
from worker.storage import (
    BundleRef,
    BundleResourcesDecorator,
    BundleStorageContext,
    BundleStream,
    CompletionPending,
    FileStorage,
    PipelineStorage,
    ProducerError,
    SqsPublisher,
    Storage,
    StorageBuilder,
    StorageOptionsError,
    UnzipResourceDecorator,
    create_storage_stack,
    own,
)
from worker.storage.own import OwnStorage
from worker.storage.stream import bid_of

URL = "https://example.com/a.html"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FileStorage]:
    made = FileStorage(tmp_path / "out")
    yield made
    await made.aclose()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".transload"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# What is stored, and what is told of it.


async def test_a_bundle_lies_as_the_seed_lays_it(storage: FileStorage, out: Path) -> None:
    ref = BundleRef("https://example.com", bid="test-a", meta={"m": 1})
    bundle = await storage.start_bundle(ref, Recipe())
    await bundle.add_resource(URL, "text/html", 200, stream(b"pay", b"", b"load"))
    await bundle.complete({"source": "us-fl"})
    there = files(out)
    assert list(there) == [
        "bundle_test-a/a-cb61db39b3c22e99.html",
        "bundle_test-a/a-cb61db39b3c22e99.html.meta",
        "bundle_test-a/bundle.meta",
    ]
    assert there["bundle_test-a/a-cb61db39b3c22e99.html"] == b"payload"
    beside = json.loads(there["bundle_test-a/a-cb61db39b3c22e99.html.meta"])
    assert (beside["url"], beside["content_type"], beside["status_code"]) == (URL, "text/html", 200)
    assert json.loads(there["bundle_test-a/bundle.meta"])["metadata"] == {"source": "us-fl"}


async def test_a_reference_has_a_bid_from_the_beginning_and_tells_the_truth_in_the_end(
    storage: FileStorage, state: Path
) -> None:
    """[real] storage_key was always null and resources_count a guess."""
    ref = BundleRef(primary_url="https://example.com", resources_count=5)
    assert BundleRef.from_dict(ref.to_dict()) == ref
    recipe = Recipe()
    bundle = await storage.start_bundle(ref, recipe)
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    await bundle.complete({})
    for told in (bundle.bundle_ref, recipe.heard[0][1]):
        assert (told.bid, told.resources_count, told.storage_key) == (ref.bid, 1, f"bundle_{ref.bid}")
    (body,) = announced(state)
    assert (body["resources_count"], body["storage_key"]) == (1, f"bundle_{ref.bid}")


async def test_six_resources_stay_six(storage: FileStorage, out: Path) -> None:
    """[real] names dropped directory and query, and three of six were left."""
    urls = [f"https://example.com/{folder}/data.json?page={page}" for folder in "ab" for page in range(3)]
    bundle = await storage.start_bundle(BundleRef("u", bid="test-six"), "fr")
    for number, url in enumerate(urls):
        await bundle.add_resource(url, None, 200, stream(b"%d" % number))
    await bundle.complete({})
    there = {name: data for name, data in files(out).items() if name.endswith(".json")}
    assert sorted(there.values()) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert bundle.bundle_ref.resources_count == 6


async def test_nothing_is_left_beside_what_was_stored(storage: FileStorage, state: Path) -> None:
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    (own,) = [path for path in (state / "staging").iterdir() if path.is_dir()]
    assert [path for path in own.rglob("*") if path.is_file()] == []
    await storage.aclose()
    assert list((state / "staging").iterdir()) == []


# Streams that go wrong, and resources that do.


async def test_a_broken_stream_stores_nothing_and_may_be_repeated(storage: FileStorage, out: Path) -> None:
    class SourceBroke(Exception):
        pass

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"pay"
        raise SourceBroke

    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    with pytest.raises(SourceBroke):
        await bundle.add_resource(URL, None, 200, broken())
    assert files(out) == {}
    await bundle.add_resource(URL, None, 200, stream(b"payload"))
    await bundle.complete({})
    assert bundle.bundle_ref.resources_count == 1


async def test_a_cancelled_resource_is_not_stored(storage: FileStorage, out: Path, state: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        begun.set()
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0)

    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    adding = asyncio.create_task(bundle.add_resource(URL, None, 200, endless()))
    await begun.wait()
    with pytest.raises(ProducerError, match="still being added"):
        await bundle.complete({})
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await bundle.complete({})
    assert list(files(out)) == [f"bundle_{bundle.bid}/bundle.meta"]
    assert [
        path for path in (state / "staging").rglob("*") if path.is_file() and path.suffix != ".lock"
    ] == []


async def test_the_same_again_is_nothing_new_and_other_bytes_are_refused(storage: FileStorage) -> None:
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    await asyncio.gather(*(bundle.add_resource(URL, None, 200, stream(b"x")) for _ in range(5)))
    with pytest.raises(ProducerError, match="other bytes"):
        await bundle.add_resource(URL, None, 200, stream(b"y"))
    await bundle.complete({})
    assert bundle.bundle_ref.resources_count == 1


async def test_what_comes_after_the_end_is_refused(storage: FileStorage) -> None:
    ref = BundleRef("u", bid="test-late")
    bundle = await storage.start_bundle(ref, "fr")
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    await bundle.complete({})
    with pytest.raises(ProducerError, match="closed; start another"):
        await bundle.add_resource(f"{URL}?2", None, 200, stream(b"y"))
    again = await storage.start_bundle(ref, "fr")
    await again.add_resource(URL, None, 200, stream(b"x"))
    with pytest.raises(ProducerError, match="completed before"):
        await again.add_resource(f"{URL}?2", None, 200, stream(b"y"))
    await again.complete({})


async def test_a_resource_that_somebody_elses_completion_misses_is_refused(
    storage: FileStorage, state: Path
) -> None:
    ref, url, slow = BundleRef("u", bid="test-late"), f"{URL}?[a]*", asyncio.Event()
    bundle, other = [await storage.start_bundle(ref, "fr") for _ in range(2)]
    await other.add_resource(url, None, 200, stream(b"counts"))
    reading = asyncio.Event()

    async def waiting() -> AsyncGenerator[bytes, None]:
        yield b"x"
        reading.set()
        await slow.wait()

    adding = asyncio.create_task(other.add_resource(f"{url}&2", None, 200, waiting()))
    await reading.wait()
    find = sql.SqlLedger.find

    async def completing(ledger: sql.SqlLedger, message_id: str) -> str | None:
        between.undo()
        await bundle.complete({})
        return await find(ledger, message_id)

    with pytest.MonkeyPatch.context() as between:
        # After the look at the bundle, and before the record.
        between.setattr(sql.SqlLedger, "find", completing)
        slow.set()
        with pytest.raises(ProducerError, match="completed before"):
            await adding
    with pytest.raises(ProducerError, match="completed before"):
        await other.add_resource(f"{url}&2", None, 200, stream(b"x"))
    with pytest.raises(ProducerError, match="completed before"):
        await other.add_resource(f"{url}&3", None, 200, stream(b"z"))
    await other.add_resource(url, None, 200, stream(b"counts"))
    assert [body["resources_count"] for body in announced(state)] == [1]


async def test_metadata_nobody_could_announce_leaves_the_bundle_open(storage: FileStorage) -> None:
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    with pytest.raises(ProducerError):
        await bundle.complete({"x": object()})
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    await bundle.complete({})
    assert bundle.bundle_ref.resources_count == 1


@pytest.fixture
def troubles(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What a target on disk raises, one write after the other."""
    left: list[Exception] = []
    write = FileBackend.write

    async def failing(
        self: FileBackend, key: str, chunks: AsyncIterator[bytes], attributes: Attributes
    ) -> Receipt:
        if key.startswith("bundle_") and left:
            raise left.pop(0)
        return await write(self, key, chunks, attributes)

    monkeypatch.setattr(FileBackend, "write", failing)
    return left


async def test_what_may_pass_is_tried_again(out: Path, troubles: list[Exception]) -> None:
    storage = hurried(FileStorage(out))
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    troubles += [Unavailable("down"), Unavailable("down")]
    await bundle.add_resource(URL, None, 200, stream(b"once only"))
    assert b"once only" in files(out).values()
    troubles += [Unavailable("down")] * 3
    with pytest.raises(Unavailable, match="down"):
        await bundle.add_resource(f"{URL}?2", None, 200, stream(b"x"))
    assert troubles == [], "three tries"
    troubles += [Unsupported("never")]
    with pytest.raises(Unsupported, match="never"):
        await bundle.add_resource(f"{URL}?2", None, 200, stream(b"x"))
    await bundle.add_resource(f"{URL}?2", None, 200, stream(b"x"))
    await bundle.complete({})
    assert bundle.bundle_ref.resources_count == 2
    await storage.aclose()


def hurried(storage: OwnStorage) -> OwnStorage:
    """The same with three tries and hardly a pause between them."""
    worker = WorkerSettings(max_attempts=3, max_outage_attempts=3, retry_base=0.01, retry_cap=0.01)
    return OwnStorage(replace(storage.storing, worker=worker))


# Hooks and completions.


async def test_hooks_are_called_in_order_before_the_notification(storage: FileStorage, state: Path) -> None:
    recipe = Recipe()
    there: list[bool] = []

    class Late:
        def on_bundle_complete_hook(self, bundle_ref: BundleRef) -> None:
            there.append(
                bool(announced(state)) or not files(state.parent)[f"bundle_{bundle_ref.bid}/bundle.meta"]
            )

    recipe.bundle_locators.append(Late())
    bundle = await storage.start_bundle(BundleRef("u"), recipe)
    await bundle.complete({})
    assert [name for name, _ in recipe.heard] == ["loader", "first", "second"]
    assert there == [False], "the manifest is there, the notification is not"
    assert len(announced(state)) == 1


async def test_a_hook_that_fails_is_raised_and_complete_may_be_called_again(
    storage: FileStorage, state: Path
) -> None:
    """[real] errors of callbacks were swallowed, and a repeated complete() did nothing and said all was well."""
    recipe = Recipe()
    bundle = await storage.start_bundle(BundleRef("u"), recipe)
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    recipe.bundle_locators[0].down = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="first is down") as raised:
            await bundle.complete({})
        assert "pending" in raised.value.__notes__[0]
        assert announced(state) == []
        assert ledger_states(state) == {bundle.bid: "complete"}
    recipe.bundle_locators[0].down = False
    await bundle.complete({})
    await bundle.complete({})
    assert [body["bundle_id"] for body in announced(state)] == [bundle.bid]
    assert [name for name, _ in recipe.heard] == ["loader", "first"] * 2 + ["loader", "first", "second"]


@pytest.mark.parametrize(
    "place", ["relay.manifest.before", "relay.publish.before", "relay.publish.after", "ledger.mark.before"]
)
async def test_what_an_earlier_run_left_is_announced_when_a_run_starts(
    out: Path, state: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[real] what was pending was never written, and recovery could not be reached behind a decorator."""
    monkeypatch.setattr(settings_in_process, "CLAIM_SECONDS", 0.2)
    before = FileStorage(out)
    bundle = await before.start_bundle(BundleRef("https://example.com", bid="test-left"), Recipe())
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    with monkeypatch.context() as dying:
        for room in (relay, manifest, sql):
            dying.setattr(room, "failpoint", _killing(place))
        with pytest.raises((Killed, BaseExceptionGroup)):
            await bundle.complete({"source": "us-fl"})
    await before.aclose()
    assert ledger_states(state) == {"test-left": "complete"}

    after, recipe = UnzipResourceDecorator(FileStorage(out)), Recipe()
    await after.on_run_start(None, Recipe("another"))
    assert ledger_states(state) == {"test-left": "complete"}, "another recipe's hooks are not these"
    await after.on_run_start(None, recipe)
    assert [name for name, _ in recipe.heard] == ["loader", "first", "second"]
    assert recipe.heard[0][1].storage_key == "bundle_test-left"
    (body,) = announced(state)
    assert body["metadata"] == {"source": "us-fl", "resources_count": 1}
    await after.on_run_start(None, recipe)
    assert len(recipe.heard) == 3, "announced once"
    await after.aclose()


def _killing(place: str) -> object:
    def failpoint(name: str) -> None:
        if name == place:
            raise Killed

    return failpoint


async def test_case_101_bundles_published_long_ago_are_forgotten_where_that_is_wanted(
    out: Path, state: Path
) -> None:
    days = 86_400.0
    with pytest.raises(StorageOptionsError, match="keep_state is 1296000 seconds"):
        FileStorage(out, keep_state=1 * days)
    async with FileStorage(out) as storage:
        for bid in ("test-old", "test-new", "test-open"):
            bundle = await storage.start_bundle(BundleRef("u", bid=bid), "fr")
            await bundle.add_resource(f"{URL}?{bid}", None, 200, stream(b"x"))
            if bid != "test-open":
                await bundle.complete({})
    with contextlib.closing(sqlite3.connect(state / "ledger.db")) as ledger, ledger:
        ledger.execute(
            "UPDATE bundles SET published_at = published_at - 20 * 86400000 WHERE bid != 'test-new'"
        )
    async with FileStorage(out):
        assert len(ledger_states(state)) == 3, "for ever, unless told"
    async with FileStorage(out, keep_state=16 * days):
        assert ledger_states(state) == {"test-new": "published", "test-open": "open"}


async def test_case_101_recipes_do_not_pile_up(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_REMEMBERED", 3)
    for number in range(10):
        await storage.start_bundle(BundleRef("u"), f"recipe-{number}")
        assert len(storage._recovered) <= 3
        assert f"recipe-{number}" in storage._recovered


async def test_the_first_bundle_of_a_recipe_announces_what_was_left_too(out: Path, state: Path) -> None:
    before, broken = FileStorage(out), Recipe()
    broken.bundle_loader.down = True
    left = await before.start_bundle(BundleRef("u", bid="test-left"), broken)
    with pytest.raises(RuntimeError):
        await left.complete({})
    await before.aclose()

    after = FileStorage(out)
    await after.start_bundle(BundleRef("u"), broken)
    assert announced(state) == [], "a hook that fails again does not keep a run from starting"
    with pytest.raises(ExceptionGroup, match="1 completions are still pending") as raised:
        await after.on_run_start(None, broken)
    assert raised.group_contains(RuntimeError, match="loader is down")
    await after.aclose()
    again = FileStorage(out)
    await again.start_bundle(BundleRef("u"), Recipe())
    assert [body["bundle_id"] for body in announced(state)] == ["test-left"]
    await again.aclose()


async def test_what_a_dead_process_still_holds_is_announced_with_a_later_bundle(
    out: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_in_process, "CLAIM_SECONDS", 0.5)
    before = FileStorage(out)
    left = await before.start_bundle(BundleRef("u", bid="test-left"), Recipe())
    with monkeypatch.context() as dying:
        dying.setattr(relay, "failpoint", _killing("relay.publish.before"))
        with pytest.raises((Killed, BaseExceptionGroup)):
            await left.complete({})
    await before.aclose()
    async with FileStorage(out) as after, asyncio.timeout(10):
        while ledger_states(state)["test-left"] != "published":
            await after.start_bundle(BundleRef("u"), Recipe())


async def test_a_run_that_could_not_start_has_not_looked_at_what_was_left(
    storage: FileStorage, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: object, **__: object) -> None:
        raise LedgerUnavailable("down")

    with monkeypatch.context() as outage:
        outage.setattr(own, "pending", down)
        with pytest.raises(LedgerUnavailable):
            await storage.on_run_start(None, Recipe())
    before, broken = FileStorage(storage.output_dir), Recipe()
    broken.bundle_loader.down = True
    left = await before.start_bundle(BundleRef("u", bid="test-left"), broken)
    with pytest.raises(RuntimeError):
        await left.complete({})
    await before.aclose()
    await storage.start_bundle(BundleRef("u"), Recipe())
    assert ledger_states(state) == {"test-left": "published"}


async def test_a_manifest_in_the_way_is_told_and_tried_again_when_it_is_gone(
    storage: FileStorage, out: Path, state: Path
) -> None:
    bundle = await storage.start_bundle(BundleRef("u", bid="test-other"), "fr")
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    there = out / "bundle_test-other/bundle.meta"
    there.write_bytes(b"somebody else's")
    with pytest.raises(CompletionPending, match=r"bundle\.meta.*call complete\(\) again"):
        await bundle.complete({})
    there.unlink()
    await bundle.complete({})
    assert len(announced(state)) == 1
    assert announced(state)[0]["event_id"] == event_id("test-other")


async def test_two_that_complete_one_bundle_announce_it_once(storage: FileStorage, state: Path) -> None:
    ref = BundleRef("u", bid="test-two")
    bundles = [await storage.start_bundle(ref, "fr") for _ in range(2)]
    await bundles[0].add_resource(URL, None, 200, stream(b"x"))
    await asyncio.gather(*(bundle.complete({}) for bundle in bundles))
    assert len(announced(state)) == 1


async def test_many_bundles_and_resources_at_once(storage: FileStorage, out: Path, state: Path) -> None:
    """Through two storages of one folder, as two processes have them."""
    storages = [storage, FileStorage(out)]

    async def one(number: int) -> None:
        bundle = await storages[number % 2].start_bundle(BundleRef("u", bid=f"test-{number}"), "fr")
        await asyncio.gather(
            *(bundle.add_resource(f"{URL}?{n}", None, 200, stream(b"%d/%d" % (number, n))) for n in range(8))
        )
        await bundle.complete({})

    await asyncio.gather(*(one(number) for number in range(10)))
    await storages[1].aclose()
    assert sorted(body["bundle_id"] for body in announced(state)) == sorted(f"test-{n}" for n in range(10))
    assert {body["resources_count"] for body in announced(state)} == {8}
    assert len([name for name in files(out) if name.endswith(".html")]) == 80


# Decorators.


async def test_gzips_and_zips_are_taken_apart_by_what_they_are(out: Path) -> None:
    """[real] a `.zip` was never unzipped."""
    storage = UnzipResourceDecorator(FileStorage(out))
    bundle = await storage.start_bundle(BundleRef("u", bid="test-z"), "fr")
    await bundle.add_resource(
        "https://example.com/data.json.gz",
        None,
        200,
        stream(gzip.compress(b"{}")[:7], gzip.compress(b"{}")[7:]),
    )
    await bundle.add_resource("https://example.com/set.zip", None, 200, stream(zipped(a=b"1", b=b"2")))
    await bundle.add_resource("https://example.com/plain.gz", None, 200, stream(b"not compressed"))
    await bundle.complete({})
    there = {name.partition("/")[2]: data for name, data in files(out).items() if not name.endswith(".meta")}
    assert {name.split("-")[0] + name[name.index(".") :]: data for name, data in there.items()} == {
        "data.json": b"{}",
        "set.zip/a": b"1",
        "set.zip/b": b"2",
        "plain.gz": b"not compressed",
    }
    assert bundle.bundle_ref.resources_count == 3
    await storage.aclose()


async def test_a_truncated_gzip_is_a_failure_and_the_rest_may_be_completed(out: Path) -> None:
    """[real] it was stored as success, under the name of what it should have been."""
    storage = UnzipResourceDecorator(FileStorage(out))
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    with pytest.raises(Refused, match="payload_corrupt"):
        await bundle.add_resource(f"{URL}.gz", None, 200, stream(gzip.compress(b"x" * 1000)[:-9]))
    await bundle.complete({})
    assert len([name for name in files(out) if not name.endswith(".meta")]) == 1
    assert bundle.bundle_ref.resources_count == 1
    await storage.aclose()


def test_decorators_stack_and_leave_what_is_underneath_as_it_was(out: Path) -> None:
    base = FileStorage(out)
    stack = create_storage_stack(base, unzip_resources=True)
    assert stack.storing.transforms == ("gunzip", "unzip")
    assert UnzipResourceDecorator(stack).storing.transforms == ("gunzip", "unzip")
    assert base.storing.transforms == ()
    assert create_storage_stack(base) is base
    built = StorageBuilder().file_storage(out).unzip_resources().build()
    assert isinstance(built, UnzipResourceDecorator)
    with pytest.raises(StorageOptionsError, match="file_storage"):
        StorageBuilder().build()


@pytest.mark.parametrize("decorator", [UnzipResourceDecorator, BundleResourcesDecorator])
def test_other_peoples_storages_are_not_decorated(decorator: type) -> None:
    class MyCustomStorage:
        pass

    with pytest.raises(StorageOptionsError, match=r"MyCustomStorage is none of them; .*extending\.md"):
        decorator(MyCustomStorage())


def test_the_port_is_what_storages_have(out: Path) -> None:
    storage: Storage = FileStorage(out)
    assert isinstance(storage, OwnStorage)


# Bundles like files.


async def test_a_block_that_fails_announces_nothing(storage: FileStorage, out: Path, state: Path) -> None:
    async def failing() -> None:
        async with storage.open_bundle("bundle_123", {}) as bundle:
            await bundle.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        await failing()
    assert files(out) == {}
    assert announced(state) == []
    async with storage.open_bundle("bundle_123", {}) as bundle:
        await bundle.write(b"whole")
    assert len(announced(state)) == 1


async def test_a_bundle_that_was_given_up_is_not_completed_by_closing_it(
    storage: FileStorage, state: Path
) -> None:
    written, resources = [await storage.open_bundle(name, {}) for name in ("written", "resources")]
    await written.write(b"half")
    await resources.write_resource(URL, None, 200, stream(b"x"))
    for bundle in (written, resources):
        await bundle.abort()
        with pytest.raises(ProducerError, match="given up"):
            await storage.close_bundle(bundle)
    async with storage.open_bundle("block", {}) as bundle:
        await bundle.write_resource(URL, None, 200, stream(b"x"))
        await bundle.abort()
    assert announced(state) == []


@pytest.mark.parametrize("place", ["open_parts", "staging"])
async def test_a_close_that_was_cancelled_may_be_repeated(
    storage: FileStorage, state: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, waiting = asyncio.Event(), asyncio.Event()
    real = BundleStorageContext._add if place == "open_parts" else FileBackend.write

    async def slow(*arguments: Any, **named: Any) -> Any:
        waiting.set()
        await going_on.wait()
        return await real(*arguments, **named)

    stream = await storage.open_bundle("slow", {})
    owner = BundleStorageContext if place == "open_parts" else FileBackend
    monkeypatch.setattr(owner, real.__name__, slow)
    await stream.write(b"whole")
    closing = asyncio.create_task(stream.close())
    await waiting.wait()
    for _ in range(5):
        # It has to wait by now.
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    going_on.set()
    async with asyncio.timeout(10):
        await stream.close()
    assert len(announced(state)) == 1


async def test_a_bundle_may_be_opened_without_a_block(storage: FileStorage, out: Path) -> None:
    bundle: BundleStream = await storage.open_bundle(
        "test-s", {"source": "us-fl", "url": URL, "content_type": "text/html"}
    )
    for _ in range(3):
        await bundle.write(b"ab")
    await bundle.write_resource(f"{URL}?2", "text/html", 200, stream(b"other"))
    await storage.close_bundle(bundle)
    await bundle.close()
    with pytest.raises(ProducerError, match="closed"):
        await bundle.write(b"more")
    assert (bundle.get_bundle_ref().resources_count, bundle.get_bundle_ref().bid) == (2, "test-s")
    assert bundle.get_metadata()["source"] == "us-fl"
    beside = json.loads(files(out)["bundle_test-s/a-cb61db39b3c22e99.html.meta"])
    assert (beside["recipe_id"], beside["url"], beside["content_type"]) == ("us-fl", URL, "text/html")
    assert b"ababab" in files(out).values()


async def test_what_cannot_be_stored_is_told_to_whoever_writes(out: Path) -> None:
    storage = UnzipResourceDecorator(FileStorage(out))
    bundle = await storage.open_bundle("cut", {})
    await bundle.write(gzip.compress(b"x" * 1000)[:-9])
    for _ in range(2):
        with pytest.raises(Refused, match="payload_corrupt"):
            await bundle.close()
    await storage.aclose()


async def test_writing_to_a_resource_that_has_failed_does_not_wait(storage: FileStorage) -> None:
    bundle = await storage.open_bundle("test-w", {"content_type": "x" * 300})

    async def writing() -> None:
        for _ in range(5):
            await bundle.write(b"x")

    with pytest.raises(ProducerError, match="content_type"):
        await writing()


@pytest.mark.parametrize(
    ("bundle_id", "bid"),
    [
        ("test-a", "test-a"),
        ("17571960-2065-e0cd-cf71-8196d8577b7e", "17571960-2065-e0cd-cf71-8196d8577b7e"),
        ("bundle_123", "custom-bundle_123"),
        ("../a/b", "custom-a-b-8e7e11e418be0303"),
        ("é", "custom-4a99557e4033c353"),
    ],
)
def test_every_id_is_one_bid(bundle_id: str, bid: str) -> None:
    assert bid_of(bundle_id) == bid


# What is open, and for how long.


def test_a_storage_outlives_its_event_loops_and_closes_with_each(out: Path, state: Path) -> None:
    storage = FileStorage(out)

    async def one(name: str) -> weakref.ref[asyncio.AbstractEventLoop]:
        bundle = await storage.start_bundle(BundleRef("u", bid=name), "fr")
        await bundle.add_resource(URL, None, 200, stream(b"x"))
        await bundle.complete({})
        return weakref.ref(asyncio.get_running_loop())

    first = asyncio.run(one("test-1"))
    assert list((state / "staging").iterdir()) == [], "closed, though nobody did"
    asyncio.run(one("test-2"))
    assert ledger_states(state) == {"test-1": "published", "test-2": "published"}
    gc.collect()
    assert first() is None, "nothing is kept of a loop that has ended"


async def test_a_storage_of_another_loop_is_refused(storage: FileStorage) -> None:
    await storage.start_bundle(BundleRef("u"), "fr")

    def elsewhere() -> None:
        asyncio.run(_started(storage))

    with pytest.raises(StorageOptionsError, match="another event loop"):
        await asyncio.to_thread(elsewhere)


async def _started(storage: OwnStorage) -> None:
    await storage.start_bundle(BundleRef("u"), "fr")


async def test_a_forgotten_storage_is_closed_and_an_open_bundle_keeps_it(out: Path, state: Path) -> None:
    storage: FileStorage | None = FileStorage(out)
    assert storage is not None
    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    forgotten = weakref.ref(storage)
    storage = None
    gc.collect()
    assert forgotten() is None
    await bundle.add_resource(URL, None, 200, stream(b"x"))
    await bundle.complete({})
    del bundle
    gc.collect()
    (holding,) = [task for task in asyncio.all_tasks() if task.get_name() == "storage"]
    async with asyncio.timeout(30):
        await holding
    assert list((state / "staging").iterdir()) == []


async def test_opening_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    blocked = tmp_path / "out"
    storage = FileStorage(blocked)
    blocked.write_bytes(b"a file")
    for _ in range(2):
        with pytest.raises(Exception, match="out"):
            await storage.start_bundle(BundleRef("u"), "fr")
    blocked.unlink()
    await storage.start_bundle(BundleRef("u"), "fr")
    await storage.aclose()


async def test_what_a_dead_process_left_on_its_way_is_removed_and_what_a_living_one_has_is_not(
    storage: FileStorage, out: Path, state: Path
) -> None:
    staging = state / "staging"
    (staging / "dead").mkdir(parents=True)
    (staging / "dead.lock").touch()
    (staging / "dead" / "payload").write_bytes(b"x")
    await storage.start_bundle(BundleRef("u"), "fr")
    own = {path.name for path in staging.iterdir()}
    assert "dead" not in own
    assert "dead.lock" not in own
    async with FileStorage(out):
        assert own < {path.name for path in staging.iterdir()}
    assert own == {path.name for path in staging.iterdir()}


async def test_a_storage_that_closes_while_another_one_opens_is_not_in_its_way(
    storage: FileStorage, out: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.start_bundle(BundleRef("u"), "fr")
    open_file = os.open

    def closing(path: Path | str, *arguments: int) -> int:
        if str(path).endswith(".lock"):
            # The other process had it when the folder was listed.
            Path(path).unlink(missing_ok=True)
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", closing)
    async with FileStorage(out):
        assert len(list((state / "staging").iterdir())) >= 1


async def test_the_event_loop_goes_on_while_bytes_are_stored(storage: FileStorage) -> None:
    """[real] it stood still for a whole upload."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    bundle = await storage.start_bundle(BundleRef("u"), "fr")
    task = asyncio.create_task(turning())
    seen = []

    async def large() -> AsyncGenerator[bytes, None]:
        for _ in range(16):
            seen.append(turns)
            yield bytes(1 << 20)

    await bundle.add_resource(URL, None, 200, large())
    task.cancel()
    assert turns > 16
    assert seen[-1] > seen[0], "also between the chunks"


# Options.


def test_a_folder_that_is_not_to_be_made_has_to_be_there(out: Path) -> None:
    with pytest.raises(StorageOptionsError, match="is not there; make it"):
        FileStorage(out, create_dirs=False)
    out.mkdir()
    FileStorage(output_dir=out, create_dirs=False)


async def test_a_pipeline_storage_without_a_queue_begins_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OC_SQS_QUEUE_URL", raising=False)
    storage = PipelineStorage("my-bucket", "data/", state_dir=tmp_path)
    with pytest.raises(StorageOptionsError, match=r"pass sqs_publisher=.*or set OC_SQS_QUEUE_URL"):
        await storage.start_bundle(BundleRef("u"), "fr")
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "bucket_name"),
        ({"bucket_name": "b-1", "bucket": "b-1"}, "once"),
        ({"bucket_name": "b-1", "prefix": SqsPublisher("http://localhost/q")}, "pass the publisher as"),
        ({"bucket_name": "b-1", "encrypton": "AES256"}, "encrypton: unknown key; did you mean 'encryption'"),
        ({"bucket_name": "b-1", "encryption": "rot13"}, "encryption"),
        ({"bucket_name": "b-1", "kms_key_id": "k"}, "kms_key_id needs"),
        ({"bucket_name": "b-1", "bucket_policy": "public-read"}, "allow_public"),
        ({"bucket_name": "b-1", "lifecycle_policy": "sometimes"}, "archive-after-30-days"),
        ({"bucket_name": "b-1", "prefix": "a/../b"}, "segments"),
        ({"bucket_name": "b-1", "max_retries": 3, "retry_delay": -1}, "retry_base"),
    ],
)
def test_what_cannot_be_is_told_at_once(arguments: dict[str, object], why: str) -> None:
    with pytest.raises(StorageOptionsError, match=why):
        PipelineStorage(**arguments)  # type: ignore[arg-type]  # that is the point


def test_the_variables_stand_in_for_what_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "OC_SQS_QUEUE_URL": "http://localhost:4566/000000000000/done",
        "OC_S3_ENDPOINT_URL": "http://localhost:4566",
        "AWS_REGION": "eu-west-2",
        "OC_STORAGE_PIPELINE_AWS_PROFILE": "fetcher",
        "TRANSLOAD_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    storing = PipelineStorage("my-bucket").storing
    target = storing.target.options.model_dump()
    assert storing.publisher is not None
    queue = storing.publisher.options.model_dump()
    assert (target["endpoint_url"], target["region"], target["profile"]) == (
        "http://localhost:4566",
        "eu-west-2",
        "fetcher",
    )
    assert (queue["endpoint_url"], queue["region"], queue["profile"]) == (
        "http://localhost:4566",
        "eu-west-2",
        "fetcher",
    )
    assert storing.home.parent == tmp_path / "in-process"
    given = PipelineStorage("my-bucket", region="us-east-1", endpoint_url="http://other:1").storing
    assert given.target.options.model_dump()["endpoint_url"] == "http://other:1"
    assert given.home != storing.home, "another place has a state of its own"


@pytest.mark.parametrize("prefix", ["", "a/", "/a//b/"])
def test_prefixes_leave_no_empty_segment(prefix: str) -> None:
    """[real] they gave `//`."""
    target = PipelineStorage("my-bucket", prefix).storing.target
    assert target.prefix == "/".join(part for part in prefix.split("/") if part)
