"""The path of payloads whose route stores identical ones once: what is written, referred to, recorded and told."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import CHUNK_SIZE, Attributes, ObjectStat, Promise, Receipt, StorageBackend, single
from backends.errors import IntegrityError, Unavailable
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.bundle_closed import BundleClosedHandler
from handlers.dedup import MINIMUM
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.layouts import make_layout
from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.naming import resource_name
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Match, Route, Routes, Target
from worker import belonging, render_objects
from worker.belonging import MANY, Known
from worker.budget import Budget
from worker.delivery import LeaseKeeper
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import AuditQuery, Entry, Recorded, StoredObject, StoredResource
from worker.manifest import Manifests
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.queues.base import Ack, Disposition, OutgoingMessage
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.verify import verify

DATA = b"identical " * 1000
OTHER = b"different " * 1000
NOTHING = Attributes()


class Dying(Exception):
    """As a process that is killed: nothing comes after it."""


class Ledger(SqlLedger):
    """Dies before it records, while it is told to. Counts how often it was asked for contents."""

    doomed = False
    asked = 0

    async def contents(self, route: str, sha256: str) -> Mapping[str, StoredObject]:
        self.asked += 1
        return await super().contents(route, sha256)

    async def record(self, entry: Entry) -> Recorded:
        if self.doomed:
            raise Dying
        return await super().record(entry)


class Watched(Wrapper):
    """A target that tells which payloads it was sent, fails while it has a fault, and holds writes back."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.written: list[str] = []
        self.fault: Exception | None = None
        self.blind: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.copies = 0

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if self.fault is not None:
            raise self.fault
        if not key.endswith((".meta", ".json")):
            self.written.append(key)
            await self.gate.wait()
        return await self.inner.write(key, chunks, attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        if self.blind is not None:
            raise self.blind
        return await self.inner.stat(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        self.copies += 1
        return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def read(self, key: str) -> bytes:
        async with self.open(key) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def keys(self) -> list[str]:
        return [stat.key async for stat in self.list()]


class Staging(Wrapper):
    """Counts how often payloads are read; the second reading may find another one."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.opened = 0
        self.then: str | None = None

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        self.opened += 1
        return self.inner.open(self.then if self.then is not None and self.opened > 1 else key)


class World:
    """Recipes `r…` take the route `main`, the others `second`; both store identical payloads once."""

    def __init__(
        self,
        ledger: Ledger,
        queue: MemoryQueue,
        staging: StorageBackend,
        stores: Mapping[str, StorageBackend],
    ) -> None:
        self.ledger, self.queue = ledger, queue
        self.staging = Staging(staging)
        self.targets = {name: Watched(store) for name, store in stores.items()}
        self.keeper = LeaseKeeper(queue, Metrics())
        self.metrics = Metrics()
        self.route()

    def route(self, *names: str, deduplicate: bool = True, layout: str = "oc") -> None:
        """From here on the routes have these targets, of which `spare` is best effort."""
        targets = tuple(
            Target(
                name,
                make_layout(layout, "", keeps_attributes=self.targets[name].features.attributes),
                required=name != "spare",
            )
            for name in names or ("one",)
        )
        matches = {"main": Match({"recipe_id": ("r*",)}), "second": Match()}
        routes = Routes(
            tuple(Route(name, targets, match, deduplicate=deduplicate) for name, match in matches.items())
        )
        source = StagingSource("staging", self.staging.location)
        self.pipeline = Pipeline(
            ledger=self.ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": self.staging},
            targets=self.targets,
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=Path(),
            on_complete=lambda: None,
            on_referred=self.metrics.referred,
        )

    @property
    def one(self) -> Watched:
        return self.targets["one"]

    async def process(
        self,
        bid: str,
        data: bytes = DATA,
        *,
        message: str = "",
        url: str = "x",
        recipe: str = "r",
        promised: bytes | None = None,
        count: int = 1,
    ) -> Disposition:
        """A bundle's resource with that payload; `promised` is what its message says it is."""
        key = hashlib.sha256(data).hexdigest()
        await self.staging.inner.write(key, single(data), NOTHING)
        promise = (
            (len(promised), hashlib.sha256(promised).hexdigest()) if promised is not None else (None, None)
        )
        command = ResourceFetched(
            id=message or f"{bid}/{url}",
            bundle=Bundle(bid=f"test-{bid}", recipe_id=recipe, resources_count=count),
            resource=Resource(url=f"https://example.com/{url}"),
            payload=Payload(location=f"{self.staging.location}{key}", size=promise[0], sha256=promise[1]),
        )
        await self.queue.send([OutgoingMessage(encode(command))])
        (delivery,) = await self.keeper.hold(await self.queue.receive(1, 1))
        try:
            return await asyncio.create_task(self.pipeline.process(delivery))
        finally:
            await delivery.settle(Ack())

    async def resource(self, bid: str) -> StoredResource:
        (found,) = [each async for each in self.ledger.resources(f"test-{bid}")]
        return found

    async def lying(self, bid: str, target: str = "one") -> StoredObject:
        """Where the bundle's one resource lies."""
        (found,) = [each for each in (await self.resource(bid)).objects if each.target == target]
        return found

    async def details(self) -> list[str | None]:
        """What the audit trail says of stored objects."""
        rows = [row.record async for row in self.ledger.audit_trail(AuditQuery())]
        return [row.detail for row in rows if row.action == "stored"]

    def saved(self, target: str = "one") -> float | None:
        return self.metrics.registry.get_sample_value(
            "transload_deduplicated_bytes_total", {"target": target}
        )


@asynccontextmanager
async def opened(folder: Path, *, files: bool) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{folder}/ledger.db")
    await migrate(database)
    ledger = Ledger(database, actor="worker@here")
    queue = await MemoryQueue.connect(QueueOptions())
    stores: dict[str, StorageBackend] = {}
    for name in ("one", "two", "spare"):
        if files:
            stores[name] = await FileBackend.connect(FileOptions(root=folder / name))
        else:
            stores[name] = await MemoryBackend.connect(MemoryOptions())
    yield World(ledger, queue, await MemoryBackend.connect(MemoryOptions()), stores)
    for store in stores.values():
        await store.aclose()
    await queue.aclose()
    await ledger.aclose()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Objects have etags and attributes."""
    async with opened(tmp_path, files=False) as made:
        yield made


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[World]:
    """Objects have facts beside them, and no etag."""
    async with opened(tmp_path, files=True) as made:
        yield made


@pytest.fixture(params=["world", "folders"])
def either(request: pytest.FixtureRequest) -> World:
    made: World = request.getfixturevalue(request.param)
    return made


@pytest.mark.parametrize("promised", [None, DATA])
async def test_an_identical_payload_is_stored_once(either: World, promised: bytes | None) -> None:
    for bid in "abc":
        assert await either.process(bid, promised=promised) == Ack()
    first = await either.lying("a")
    assert either.one.written == [first.key]
    assert [await either.lying(bid) for bid in "bc"] == [first, first]
    assert await either.details() == [None, *["refers to an identical payload that was there"] * 2]
    assert either.saved() == 2 * len(DATA)
    assert await either.process("d", OTHER, promised=promised and OTHER) == Ack()
    assert either.one.written == [first.key, (await either.lying("d")).key]


async def test_each_resource_has_its_own_facts(folders: World) -> None:
    await folders.process("a")
    await folders.process("b")
    facts = [
        json.loads(await folders.one.read(key)) for key in await folders.one.keys() if key.endswith(".meta")
    ]
    assert [each["bid"] for each in facts] == ["test-a", "test-b"]
    assert {each["key"] for each in facts} == {(await folders.lying("a")).key}
    assert {each["sha256"] for each in facts} == {hashlib.sha256(DATA).hexdigest()}


async def test_a_payload_nobody_has_stored_is_read_once_where_its_digest_is_promised(world: World) -> None:
    await world.process("a", promised=DATA)
    assert world.staging.opened == 1
    await world.process("b", OTHER)
    assert world.staging.opened == 3, "for its digest, and to be stored"


async def test_without_it_everything_is_stored(world: World) -> None:
    world.route(deduplicate=False)
    await world.process("a")
    await world.process("b")
    world.route()
    await world.process("c")
    assert len(world.one.written) == 3
    await world.process("d")
    assert await world.lying("d") == await world.lying("c")


async def test_what_is_small_is_stored(world: World) -> None:
    for size in (0, 1, MINIMUM - 1):
        for bid in "ab":
            for promised in (None, b"x" * size):
                await world.process(
                    f"{bid}{size}{promised is None}", b"x" * size, promised=promised, url=str(size)
                )
    assert len(world.one.written) == 12
    assert world.ledger.asked == 0
    assert await world.ledger.contents("main", hashlib.sha256(b"x").hexdigest()) == {}
    world.one.written.clear()
    await world.process("c", b"x" * MINIMUM)
    await world.process("d", b"x" * MINIMUM)
    assert len(world.one.written) == 1


async def test_a_reference_crosses_neither_routes_nor_targets(world: World) -> None:
    await world.process("a")
    await world.process("b", recipe="other")
    assert len(world.one.written) == 2
    await world.process("c", recipe="other")
    assert await world.lying("c") == await world.lying("b")
    world.route("two")
    await world.process("d")
    assert world.targets["two"].written == [(await world.lying("d", "two")).key]


async def test_of_several_targets_only_those_without_it_are_sent_it(world: World) -> None:
    await world.process("a")
    world.route("one", "two")
    await world.process("b")
    assert world.one.written == [(await world.lying("a")).key]
    assert await world.lying("b") == await world.lying("a")
    assert world.targets["two"].written == [(await world.lying("b", "two")).key]


async def changed(world: World, key: str, data: bytes | None) -> None:
    """Somebody removes or replaces the object by hand."""
    await world.one.delete(key)
    if data is not None:
        await world.one.inner.write(key, single(data), NOTHING)


@pytest.mark.parametrize("data", [None, DATA[:-1], b""])
async def test_an_object_that_is_not_there_any_more_is_stored_anew(either: World, data: bytes | None) -> None:
    await either.process("a")
    await changed(either, (await either.lying("a")).key, data)
    await either.process("b")
    second = await either.lying("b")
    assert second.key != (await either.lying("a")).key
    assert await either.one.read(second.key) == DATA
    await either.process("c")
    assert await either.lying("c") == second, "the new one took the place of what is gone"


async def test_another_object_of_the_same_size_is_told_by_its_etag(world: World) -> None:
    await world.process("a")
    await changed(world, (await world.lying("a")).key, OTHER)
    await world.process("b")
    assert await world.one.read((await world.lying("b")).key) == DATA


async def test_what_a_message_promises_is_not_believed(world: World) -> None:
    await world.process("a")
    with pytest.raises(IntegrityError, match="promised"):
        await world.process("b", OTHER, promised=DATA)
    assert await world.ledger.bundle("test-b") is None
    assert len(world.one.written) == 1


async def test_a_payload_that_changes_between_two_readings_is_not_stored(world: World) -> None:
    await world.staging.inner.write("other", single(OTHER), NOTHING)
    world.staging.then = "other"
    with pytest.raises(IntegrityError, match="promised"):
        await world.process("a")
    assert await world.one.keys() == []


async def test_no_store_copies_what_others_will_refer_to(world: World) -> None:
    """The digest of a copy may be the promised one."""
    large = b"x" * (CHUNK_SIZE + 1)
    world.targets["one"] = Watched(world.staging.inner)
    world.route(deduplicate=False)
    await world.process("a", large, promised=large)
    assert world.one.copies == 1
    world.route()
    await world.process("b", large, promised=large)
    assert world.one.copies == 1
    assert len(world.one.written) == 1


async def test_a_target_that_cannot_be_asked_stores_it(world: World) -> None:
    await world.process("a")
    world.one.blind = Unavailable("no answer")
    await world.process("b")
    assert len(world.one.written) == 2


async def test_killed_between_reference_and_record(either: World) -> None:
    await either.process("a")
    either.ledger.doomed = True
    with pytest.raises(Dying):
        await either.process("b")
    either.ledger.doomed = False
    before = await either.one.keys()
    assert await either.process("b") == Ack()
    assert await either.lying("b") == await either.lying("a")
    assert await either.one.keys() == before
    assert len(either.one.written) == 1


async def test_killed_between_write_and_record_the_redo_keeps_its_object(world: World) -> None:
    """Although somebody else has recorded an identical one meanwhile: nothing is left that nobody knows of."""
    world.ledger.doomed = True
    with pytest.raises(Dying):
        await world.process("a")
    world.ledger.doomed = False
    await world.process("b")
    await world.process("a")
    assert world.one.written[0] == (await world.lying("a")).key
    assert (await world.lying("a")).key != (await world.lying("b")).key


async def test_two_at_once_may_both_store_it(world: World) -> None:
    world.one.gate.clear()
    both = [asyncio.create_task(world.process(bid)) for bid in "ab"]
    while len(world.one.written) < 2:  # noqa: ASYNC110 - two tasks to wait for
        await asyncio.sleep(0)
    world.one.gate.set()
    assert await asyncio.gather(*both) == [Ack(), Ack()]
    stored = [await world.lying(bid) for bid in "ab"]
    assert stored[0].key != stored[1].key
    await world.process("c")
    assert await world.lying("c") in stored
    assert len(world.one.written) == 2


async def test_two_deliveries_of_one_message_are_one_resource(world: World) -> None:
    await world.process("a")
    assert list(await asyncio.gather(world.process("b"), world.process("b"))) == [Ack(), Ack()]
    assert await world.lying("b") == await world.lying("a")
    assert len(world.one.written) == 1


async def test_another_message_of_the_same_resource_and_payload_writes_nothing(world: World) -> None:
    await world.process("a")
    assert await world.process("a", message="again") == Ack()
    assert len(world.one.written) == 1
    assert world.saved() is None


async def test_case_79_a_late_resource_refers_and_is_referred_to(world: World) -> None:
    await world.process("a")
    await world.process("b")
    await world.process("b", OTHER, url="late")
    await world.process("b", url="too")
    late = {each.url[-4:]: each for each in [each async for each in world.ledger.resources("test-b")]}
    assert late["/too"].late
    assert late["/too"].objects == (await world.lying("a"),)
    await world.process("c", OTHER)
    assert (await world.lying("c")) == late["late"].objects[0]


@pytest.mark.parametrize("known", [True, False])
async def test_case_78_another_payload_of_a_resource_that_refers_is_a_conflict(
    either: World, known: bool
) -> None:
    """Its own key is free: the store alone would not tell."""
    await either.process("a")
    if known:
        await either.process("known", OTHER)
    await either.process("b")
    for message in ("m2", "m3"):
        with pytest.raises(Refused) as raised:
            await either.process("b", OTHER, message=message)
        assert raised.value.reason == "conflict"
    assert await either.lying("b") == await either.lying("a")
    await either.process("c", OTHER)
    assert (await either.lying("c")).key == (await either.lying("known" if known else "c")).key


async def test_case_68_a_payload_that_changed_after_a_kill_gets_no_facts_of_the_other(folders: World) -> None:
    await folders.process("a")
    folders.ledger.doomed = True
    with pytest.raises(Dying):
        await folders.process("b")
    folders.ledger.doomed = False
    with pytest.raises(Refused, match=r"facts under .* are of another payload") as raised:
        await folders.process("b", OTHER)
    assert raised.value.reason == "conflict"
    assert await folders.ledger.bundle("test-b") is None


async def test_what_is_no_file_of_facts_is_in_the_way(folders: World) -> None:
    await folders.process("a")
    key = (await folders.lying("a")).key.replace("test-a", "test-b")
    await folders.one.inner.write(f"{key}.meta", single(b"[" * 100_000), NOTHING)
    with pytest.raises(Refused, match=r"facts under .* are of another payload"):
        await folders.process("b")


async def test_a_best_effort_target_refers_and_is_referred_to_later(world: World) -> None:
    world.route("one", "spare")
    spare = world.targets["spare"]
    spare.fault = Unavailable("spare is down")
    for bid in "ab":
        with pytest.raises(Unavailable):
            await world.process(bid)
    spare.fault = None
    assert [await world.process(bid) for bid in "ab"] == [Ack(), Ack()]
    assert spare.written == [(await world.lying("a", "spare")).key]
    assert await world.lying("b", "spare") == await world.lying("a", "spare")
    assert "refers to an identical payload that was there; later than the bundle's other copies" in (
        await world.details()
    )
    assert await world.ledger.bundle_transfers("test-b") == []


async def test_what_one_target_referred_to_is_found_again_when_another_failed(world: World) -> None:
    await world.process("a")
    world.route("one", "two")
    world.targets["two"].fault = Unavailable("two is down")
    with pytest.raises(Unavailable):
        await world.process("b")
    world.targets["two"].fault = None
    assert await world.process("b") == Ack()
    assert await world.lying("b") == await world.lying("a")
    assert len(world.one.written) == 1


async def test_a_route_that_no_longer_does_it_stores_what_a_killed_try_referred_to(world: World) -> None:
    await world.process("a")
    world.route("one", "two")
    world.targets["two"].fault = Unavailable("two is down")
    with pytest.raises(Unavailable):
        await world.process("b")
    world.targets["two"].fault = None
    world.route("one", "two", deduplicate=False)
    await world.process("b")
    assert (await world.lying("b")).key != (await world.lying("a")).key


async def test_manifest_and_verification_read_what_is_referred_to(world: World) -> None:
    """Also two resources of one bundle that share an object."""
    await world.process("a")
    await world.process("b", count=2)
    await world.process("b", url="y", count=2)
    bundle = await world.ledger.bundle("test-b")
    assert bundle is not None
    assert bundle.state == "complete"
    (place,) = bundle.targets
    place = replace(place, archive="zip", archive_key="p/resources.zip")
    await Manifests(world.ledger, world.targets, Budget(1 << 30)).write(bundle, place)
    with zipfile.ZipFile(io.BytesIO(await world.one.read(place.archive_key))) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            resource_name(f"https://example.com/{name}") for name in ("x", "y")
        }
    listed = json.loads(await world.one.read(place.manifest_key))["resources"]
    key = (await world.lying("a")).key
    assert [each["key"] for each in listed] == [key, key]
    assert {each["url"] for each in listed} == {"https://example.com/x", "https://example.com/y"}
    (row,) = [row for row in await world.ledger.claim(10, 60.0) if row.bid == "test-b"]
    await world.ledger.mark_published([row])
    bundle = await world.ledger.bundle("test-b")
    assert bundle is not None
    result = await verify(bundle, world.ledger, world.targets, lambda _: None)
    assert (result.problems, result.objects) == ([], 2)
    await world.one.delete(key)
    assert len((await verify(bundle, world.ledger, world.targets, lambda _: None)).problems) == 2


async def test_what_is_forgotten_is_stored_anew(world: World) -> None:
    """A bundle's objects are referred to for as long as the ledger knows the bundle."""
    await world.process("a")
    await world.process("b")
    (row,) = [row for row in await world.ledger.claim(10, 60.0) if row.bid == "test-a"]
    await world.ledger.mark_published([row])
    first = await world.lying("a")
    assert (await world.ledger.retire(0, 10)).bundles == 1
    await world.process("c")
    assert (await world.lying("c")).key != first.key
    assert await world.lying("b") == first


async def test_how_many_resources_share_an_object(world: World) -> None:
    await world.process("a")
    key = (await world.lying("a")).key
    alone = await belonging.known(world.ledger, "one", key)
    assert alone is not None
    assert alone.others == 0
    assert "same payload" not in render_objects.told(alone)
    await world.process("b")
    await world.process("c")
    found = await belonging.known(world.ledger, "one", key)
    assert found is not None
    assert found.others == 2
    assert render_objects.told(found).endswith("and of 2 other resources with the same payload")
    assert "of 1 other resource with" in render_objects.told(replace(found, others=1))
    assert f"of at least {MANY} other" in render_objects.told(Known("b", "r", "object", others=MANY))


async def test_the_facts_of_who_refers_are_no_stranger(folders: World) -> None:
    await folders.process("a")
    await folders.process("b")
    facts = [key for key in await folders.one.keys() if key.startswith("bundle_test-b/")]
    assert len(facts) == 1
    assert await belonging.known(folders.ledger, "one", facts[0]) == Known("test-b", "r", "sidecar")
    assert await belonging.known(folders.ledger, "one", facts[0].replace("test-b", "test-c")) is None


@pytest.mark.parametrize("layout", ["hive", "dated", "{recipe_id}/{name}.{bid}"])
async def test_the_facts_of_who_refers_are_no_stranger_by_a_template_either(
    folders: World, layout: str
) -> None:
    folders.route(layout=layout)
    await folders.process("a")
    await folders.process("b", url="y")
    payload = (await folders.lying("a")).key
    assert await folders.lying("b") == await folders.lying("a")
    own, referring = sorted(
        (key for key in await folders.one.keys() if key != payload), key=lambda key: "test-b" in key
    )
    url = "https://example.com/"
    beside = await belonging.known(folders.ledger, "one", own)
    assert beside is not None
    assert beside.part == "sidecar"
    # Where it lies tells nothing: no object has the key that it is beside.
    assert await belonging.known(folders.ledger, "one", referring) is None
    found = await belonging.known(folders.ledger, "one", referring, folders.one)
    assert found == Known("test-b", "r", "sidecar", f"{url}y")
    folder = referring.rpartition("/")[0]
    for text in (
        b"{}",
        b"[]",
        b"no json",
        b"",
        b'{"bid": "test-b", "url": "https://example.com/[y]"}',
        b"[" * 9999,
    ):
        stranger = f"{folder}/_meta.{hashlib.sha256(text).hexdigest()}.json"
        await folders.one.write(stranger, single(text), NOTHING)
        assert await belonging.known(folders.ledger, "one", stranger, folders.one) is None
    assert await belonging.known(folders.ledger, "one", f"{folder}/_meta.gone.json", folders.one) is None


async def test_without_its_facts_nothing_is_recorded(folders: World) -> None:
    await folders.process("a")
    folders.one.fault = Unavailable("full")
    with pytest.raises(Unavailable):
        await folders.process("b")
    assert await folders.ledger.find("b/x") is None


def test_the_metric_has_its_documented_name() -> None:
    metrics = Metrics()
    metrics.referred("lake", 5)
    assert b'transload_deduplicated_bytes_total{target="lake"} 5.0' in metrics.render()
