"""Bundles in the layout of OC's bus: what a consumer finds, also after crashes, late resources and other bundles' completions."""

import asyncio
import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import text

from backends.base import Attributes, Receipt, StorageBackend, single
from backends.errors import PermissionDenied, Unavailable
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.layouts import make_layout
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
from handlers.naming import resource_name
from handlers.payload import Before
from handlers.plan import BundleTarget, StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.unzip import Unzip
from tests.support import bus
from tests.support.failpoints import known
from tests.support.s3 import s3_backend
from worker import belonging, bus_documents, bus_latest
from worker.belonging import Known
from worker.budget import Budget
from worker.bus_documents import bundle_hash, manifest_lines
from worker.bus_latest import LatestHash
from worker.delivery import LeaseKeeper
from worker.disposition import RetryPolicy
from worker.ledger.database import Database, migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import StoredObject, StoredResource
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import Ack, OutgoingMessage
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.relay import Relay, RelaySettings
from worker.verify import Verification, verify

OLD = "bid:v1:fr:20240115103000:0a1b2c3d"
NEW = "bid:v1:fr:20240116090000:00000000"
FOLDER = "raw/fr/data/year=2024/month=01/day=15/10-30-00-0a1b2c3d"
HASHES = "raw/fr/bundle_hashes"
LATEST = f"{HASHES}/_latest"
PAGES = {"https://example.com/a.html": b"one", "https://example.com/b/": b""}


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass(slots=True)
class World:
    """One target, `main`, with what leads there and on."""

    folder: Path
    database: Database
    queue: MemoryQueue
    publisher: EmbeddedPublisher
    staging: MemoryBackend
    target: StorageBackend
    ledger: SqlLedger = field(init=False)
    sent: int = 0

    def __post_init__(self) -> None:
        self.ledger = SqlLedger(self.database)

    def pipeline(self, layout: str) -> Pipeline:
        laid = make_layout(layout, "raw", keeps_attributes=self.target.features.attributes)
        routes = Routes((Route("default", (Target("main", laid),), transforms=(Gunzip(), Unzip())),))
        source = StagingSource("staging", self.staging.location)
        return Pipeline(
            ledger=self.ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": self.staging},
            targets={"main": self.target},
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=self.folder,
            on_complete=lambda: None,
        )

    def relay(self) -> Relay:
        return Relay(
            ledger=self.ledger,
            publisher=self.publisher,
            targets={"main": self.target},
            settings=RelaySettings(lease=0),
            retry=RetryPolicy(base=0.0),
            random=lambda: 0.0,
            metrics=Metrics(),
            budget=Budget(1 << 30),
        )

    async def _send(self, command: Command, layout: str) -> None:
        await self.queue.send([OutgoingMessage(encode(command))])
        (delivery,) = await LeaseKeeper(self.queue, Metrics()).hold(await self.queue.receive(1, 1))
        assert await asyncio.create_task(self.pipeline(layout).process(delivery)) == Ack()

    async def store(self, bid: str, pages: dict[str, bytes], layout: str = "oc-v1") -> None:
        """Stage and store these payloads, by their URLs."""
        for url, data in pages.items():
            self.sent += 1
            await self.staging.write(str(self.sent), single(data), Attributes())
            command = ResourceFetched(
                id=f"{bid}/{url}",
                bundle=Bundle(bid=bid, recipe_id="fr", primary_url="https://example.com/", meta={"by": "é"}),
                resource=Resource(url=url, content_type="text/html", status_code=200, meta={"n": 1}),
                payload=Payload(location=f"{self.staging.location}{self.sent}"),
            )
            await self._send(command, layout)

    async def close(self, bid: str, count: int) -> None:
        bundle = ClosedBundle(
            bid=bid,
            recipe_id="fr",
            primary_url="https://example.com/",
            resources_count=count,
            metadata={"source": "test", "run_id": "7"},
        )
        await self._send(BundleClosed(id=f"{bid}/closed", bundle=bundle), "oc-v1")

    async def complete(self, bid: str, pages: dict[str, bytes]) -> None:
        await self.store(bid, pages)
        await self.close(bid, len(pages))

    async def announce(self, count: int = 1) -> None:
        """Let the relay do what is due: so many bundles."""
        assert await self.relay().announce_due() == count
        assert await self.ledger.outbox("parked") == []
        assert await self.ledger.pending() == 0

    async def contents(self) -> dict[str, bytes]:
        return await bus.contents(self.target)

    async def verified(self, bid: str) -> Verification:
        bundle = await self.ledger.bundle(bid)
        assert bundle is not None
        return await verify(bundle, self.ledger, {"main": self.target}, lambda _: None)


async def latest_of(target: StorageBackend) -> str:
    """The bundle that `_latest` leads to."""
    found = await bus.contents(target)
    return found[f"{HASHES}/{found[LATEST].decode()}"].decode()


async def _world(folder: Path, target: StorageBackend, stack: AsyncExitStack) -> World:
    database = open_database(f"sqlite:///{folder}/ledger.db")
    await migrate(database)
    queue = await MemoryQueue.connect(QueueOptions())
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=folder / "completions.db"))
    staging = await MemoryBackend.connect(MemoryOptions())
    world = World(folder, database, queue, publisher, staging, target)
    for each in (world.ledger, queue, publisher):
        stack.push_async_callback(each.aclose)
    return world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await _world(tmp_path, await MemoryBackend.connect(MemoryOptions()), stack)


@pytest.fixture(params=["memory", "file", "s3"])
async def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """As `world`, with each kind of target."""
    async with AsyncExitStack() as stack:
        target: StorageBackend = await MemoryBackend.connect(MemoryOptions())
        if request.param == "file":
            target = await FileBackend.connect(FileOptions(root=tmp_path / "root"))
            stack.push_async_callback(target.aclose)
        elif request.param == "s3":
            target = await stack.enter_async_context(s3_backend(request))
        yield await _world(tmp_path, target, stack)


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


async def test_a_consumer_finds_complete_bundles_and_the_latest_hash(any_world: World) -> None:
    world = any_world
    archive = zipped({"a/one.txt": b"1", "two.txt": b"22"})
    packed = {"https://example.com/x.txt.gz": gzip.compress(b"text"), "https://example.com/x.zip": archive}
    await world.complete(OLD, {**PAGES, **packed})
    await world.announce()
    await world.complete(NEW, PAGES)
    await world.announce()
    found = await world.contents()
    assert bus.problems(found) == []
    assert bus.bundles(found).keys() == {OLD, NEW}
    assert await latest_of(world.target) == NEW
    names = [line["name"] for line in bus.manifest(found, FOLDER)]
    archived = resource_name("https://example.com/x.zip")
    assert sorted(names) == sorted(
        [
            *map(resource_name, PAGES),
            resource_name("https://example.com/x.txt.gz").removesuffix(".gz"),
            f"{archived}/a/one.txt",
            f"{archived}/two.txt",
        ]
    )
    for bid in (OLD, NEW):
        assert (await world.verified(bid)).problems == []


async def test_what_the_documents_tell(world: World) -> None:
    await world.complete(OLD, PAGES)
    bundle = await world.ledger.bundle(OLD)
    assert bundle is not None
    await world.announce()
    found = await world.contents()
    discovered, completed = (
        bus.document(found, FOLDER, name) for name in ("_discovered.json", "_completed.json")
    )
    assert discovered.pop("discovered_at").endswith("Z")
    assert discovered == {
        "bid": OLD,
        "data_registry_id": "fr",
        "primary_url": "https://example.com/",
        "meta": {"by": "é"},
    }
    (announced,) = await world.publisher.read()
    body = json.loads(announced.notification.body)
    lines = bus.manifest(found, FOLDER)
    hashed = sha256()
    for line in lines:
        hashed.update(f"{line['size']} {line['hash'].removeprefix('sha256:')} {line['name']}\n".encode())
    assert completed == {
        "bid": OLD,
        "data_registry_id": "fr",
        "completed_at": body["completion_timestamp"],
        "resources_count": 2,
        "bundle_hash": hashed.hexdigest(),
        "source": "test",
        "run_id": "7",
        "event_id": body["event_id"],
        "meta": {"source": "test", "run_id": "7"},
    }
    assert (body["storage_key"], body["manifest_key"]) == (
        f"{FOLDER}/content",
        f"{FOLDER}/metadata/_manifest.jsonl",
    )
    assert {line["metadata"]["url"]: line["size"] for line in lines} == {
        url: len(data) for url, data in PAGES.items()
    }
    assert found[f"{HASHES}/{completed['bundle_hash']}"] == OLD.encode()
    assert found[LATEST].decode() == completed["bundle_hash"]


POINTS = [name for name in known() if name.startswith("bus.")]


@pytest.mark.parametrize("point", POINTS)
async def test_after_a_crash_at_any_document_the_redo_finds_equal_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await world.complete(OLD, {"https://example.com/": b"before"})
    await world.announce()
    await world.complete(NEW, PAGES)

    def die(name: str) -> None:
        if name == point:
            raise Killed

    with monkeypatch.context() as patch:
        for module in (bus_documents, bus_latest):
            patch.setattr(module, "failpoint", die)
        with pytest.raises(Killed):
            await world.relay().announce_due()
    halfway = await world.contents()
    assert await world.ledger.pending() == 1
    await world.announce()
    found = await world.contents()
    assert bus.problems(found) == []
    assert halfway.items() - found.items() <= {(LATEST, halfway.get(LATEST))}
    assert await latest_of(world.target) == NEW
    assert len(await world.publisher.read()) == 2


async def test_bundles_are_discovered_before_and_completed_after_everything_else(world: World) -> None:
    order: list[str] = []

    class Noting(Wrapper):
        async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
            receipt = await self.inner.write(key, chunks, attributes)
            order.append(key.rpartition("/")[2])
            return receipt

    await world.complete(OLD, PAGES)
    world.target = Noting(world.target)
    await world.announce()
    digest = order[2]
    assert order == ["_discovered.json", "_manifest.jsonl", digest, "_completed.json", "_latest"]


async def test_case_79_late_resources_are_described_and_in_no_manifest(world: World) -> None:
    await world.complete(OLD, PAGES)
    await world.announce()
    before = await world.contents()
    await world.store(OLD, {"https://example.com/late": b"late"})
    assert await world.ledger.replay(OLD) == "published"
    await world.announce()
    found = await world.contents()
    name = resource_name("https://example.com/late")
    assert found.keys() - before.keys() == {
        f"{FOLDER}/content/{name}",
        f"{FOLDER}/metadata/{name}.metadata.json",
    }
    assert before.items() <= found.items()
    assert bus.problems(found, late=1) == []
    assert (await world.verified(OLD)).problems == []


async def test_a_bundle_of_nothing_is_complete_too(world: World) -> None:
    await world.complete(OLD, {})
    await world.announce()
    found = await world.contents()
    assert bus.problems(found) == []
    assert found[f"{FOLDER}/metadata/_manifest.jsonl"] == b""
    assert bus.document(found, FOLDER, "_completed.json")["bundle_hash"] == sha256().hexdigest()
    assert await latest_of(world.target) == OLD


async def test_bundles_of_the_same_content_share_a_hash_that_names_the_first(any_world: World) -> None:
    world = any_world
    await world.complete(OLD, PAGES)
    await world.announce()
    await world.complete(NEW, PAGES)
    await world.announce()
    found = await world.contents()
    assert bus.problems(found) == []
    hashes = {
        bus.document(found, folder, "_completed.json")["bundle_hash"]
        for folder in bus.bundles(found).values()
    }
    assert len(hashes) == 1
    assert await latest_of(world.target) == OLD


async def test_an_older_completion_after_a_newer_one_does_not_move_latest_back(any_world: World) -> None:
    world = any_world
    await world.complete(NEW, PAGES)
    await world.announce()
    await world.complete(OLD, {"https://example.com/": b"older"})
    await world.announce()
    assert await latest_of(world.target) == NEW
    assert bus.problems(await world.contents()) == []


async def test_of_many_that_are_completed_at_once_the_newest_is_the_latest(world: World) -> None:
    bids = [f"bid:v1:fr:202401{day:02}000000:0000000{day % 8}" for day in (3, 9, 1, 8, 2, 7, 5, 4, 6)]
    for bid in bids:
        await world.complete(bid, {"https://example.com/": bid.encode()})
    await world.announce(len(bids))
    assert await latest_of(world.target) == max(bids)
    assert bus.problems(await world.contents()) == []


async def test_a_completion_waits_until_latest_may_be_moved(world: World) -> None:
    class Denying(Wrapper):
        async def delete(self, key: str) -> bool:
            raise PermissionDenied(f"{key}: may not be deleted")

    await world.complete(OLD, {"https://example.com/": b"older"})
    await world.announce()
    allowed, world.target = world.target, Denying(world.target)
    await world.complete(NEW, PAGES)
    await world.relay().announce_due()
    assert await world.ledger.pending() == 1
    assert await latest_of(world.target) == OLD
    world.target = allowed
    await world.announce()
    assert await latest_of(world.target) == NEW


async def test_a_lost_ledger_that_learns_of_a_bundle_later_changes_no_document(world: World) -> None:
    await world.complete(OLD, PAGES)
    await world.announce()
    before = await world.contents()
    later = "UPDATE bundles SET created_at = created_at + 5000, completed_at = completed_at + 9000"
    await world.database.write(lambda conn: conn.execute(text(later)))
    assert await world.ledger.replay(OLD) == "published"
    await world.announce()
    assert await world.contents() == before
    assert (await world.verified(OLD)).problems == []


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[", b"[]", b"[" * 1_100, b"x" * 5_000, b'{"discovered_at": "2024-01-15T00:00:00Z"}'],
)
async def test_another_document_in_the_way_parks_the_completion(world: World, content: bytes) -> None:
    key = f"{FOLDER}/metadata/_discovered.json"
    await world.target.write(key, single(content), Attributes())
    await world.complete(OLD, PAGES)
    await world.relay().announce_due()
    (parked,) = await world.ledger.outbox("parked")
    assert parked.bid == OLD
    assert (await world.contents())[key] == content
    assert f"{FOLDER}/metadata/_completed.json" not in await world.contents()


async def test_the_recorded_keys_hold_when_the_layout_changes_meanwhile(world: World) -> None:
    first, *rest = PAGES
    await world.store(OLD, {first: PAGES[first]}, layout="oc")
    await world.store(OLD, {url: PAGES[url] for url in rest})
    await world.close(OLD, 2)
    await world.announce()
    found = await world.contents()
    assert bus.problems(found) == []
    assert [line["metadata"]["url"] for line in bus.manifest(found, FOLDER)] == rest
    listed = json.loads(found[f"raw/bundles/{OLD}/metadata.json"])["resources"]
    assert {each["url"] for each in listed} == PAGES.keys()
    assert (await world.verified(OLD)).problems == []


async def test_verify_tells_what_is_amiss(world: World) -> None:
    await world.complete(OLD, PAGES)
    await world.announce()
    found = await world.contents()
    names = ["_discovered.json", "_manifest.jsonl", "_completed.json"]
    keys = [f"{FOLDER}/metadata/{name}" for name in names]
    keys.append(f"{HASHES}/{found[LATEST].decode()}")
    for key in keys:
        await world.target.delete(key)
        (problem,) = (await world.verified(OLD)).problems
        assert problem.startswith(key)
        if not key.startswith(HASHES):
            await world.target.write(key, single(b"{}"), Attributes())
            (problem,) = (await world.verified(OLD)).problems
            assert problem.startswith(key)
            await world.target.delete(key)
            await world.target.write(key, single(b"[" * 1_100), Attributes())
            (problem,) = (await world.verified(OLD)).problems
            assert problem.startswith(key)
            await world.target.delete(key)
        await world.target.write(key, single(found[key]), Attributes())
    assert (await world.verified(OLD)).passed


async def test_what_single_objects_are_to_the_ledger(world: World) -> None:
    archive = "https://example.com/x.zip"
    await world.complete(OLD, {**PAGES, archive: zipped({"a/metadata/b": b"1"})})
    await world.announce()

    async def part(key: str) -> tuple[str, str | None] | None:
        known_ = await belonging.known(world.ledger, "main", key)
        return None if known_ is None else _of(known_)

    def _of(found: Known) -> tuple[str, str | None]:
        assert (found.bid, found.recipe_id) == (OLD, "fr")
        return found.part, found.url

    (url, *_) = PAGES
    name = resource_name(url)
    assert await part(f"{FOLDER}/content/{name}") == ("object", url)
    assert await part(f"{FOLDER}/metadata/{name}.metadata.json") == ("sidecar", url)
    assert await part(f"{FOLDER}/content/{resource_name(archive)}/a/metadata/b") == ("object", archive)
    assert await part(f"{FOLDER}/metadata/{resource_name(archive)}.metadata.json") == ("sidecar", None)
    assert await part(f"{FOLDER}/metadata/_manifest.jsonl") == ("manifest", None)
    assert await part(f"{FOLDER}/metadata/_completed.json") == ("document", None)
    assert await part(LATEST) is None
    assert await part(f"{FOLDER}x/metadata/_completed.json") is None


async def test_a_manifest_of_many_comes_in_many_pieces_and_one_order() -> None:
    place = BundleTarget("main", f"{FOLDER}/content", f"{FOLDER}/metadata/_manifest.jsonl")

    def resources(numbers: Iterable[int]) -> AsyncIterator[StoredResource]:
        stored = tuple(
            StoredObject(target, f"{FOLDER}/content/x.zip/{number:04}", 1, "0" * 64, member=f"{number}")
            for target in ("cloud", "main")
            for number in numbers
        )
        before = Before(1, "1" * 64, ("unzip",), ())
        meta = {"text": "x" * 1_000}
        archive = StoredResource("r", "https://example.com/", None, 200, meta, "s", stored, before=before)

        async def one() -> AsyncIterator[StoredResource]:
            yield archive

        return one()

    pieces = [piece async for piece in manifest_lines(place, resources(range(2_000)))]
    assert max(map(len, pieces)) < 1 << 19
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert [line["metadata"]["member"] for line in lines] == [f"{number}" for number in range(2_000)]
    assert pieces == [piece async for piece in manifest_lines(place, resources(range(1_999, -1, -1)))]
    assert await bundle_hash(place, resources(range(9))) == await bundle_hash(
        place, resources(range(8, -1, -1))
    )


class Contended(Wrapper):
    """Another process is always faster to make `_latest`, as long as there is something `others` write."""

    def __init__(self, inner: StorageBackend, others: list[str]) -> None:
        super().__init__(inner)
        self.others = others

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if key == LATEST and self.others:
            await self.inner.write(key, single(self.others.pop(0).encode()), attributes)
        return await self.inner.write(key, chunks, attributes)


@pytest.fixture
async def target() -> StorageBackend:
    return await MemoryBackend.connect(MemoryOptions())


async def hashed(target: StorageBackend, *bids: str) -> list[str]:
    """The hashes of bundles, of which only these are there."""
    digests = [sha256(bid.encode()).hexdigest() for bid in bids]
    for digest, bid in zip(digests, bids, strict=True):
        await target.write(f"{HASHES}/{digest}", single(bid.encode()), Attributes())
    return digests


async def test_another_process_that_was_faster_is_looked_at_again(target: StorageBackend) -> None:
    old, new = await hashed(target, OLD, NEW)
    await LatestHash().point(Contended(target, [old]), HASHES, new, NEW)
    assert await latest_of(target) == NEW
    await target.delete(LATEST)
    await LatestHash().point(Contended(target, [new]), HASHES, old, OLD)
    assert await latest_of(target) == NEW


class Held(Wrapper):
    """Its first deletion waits."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.arrived, self.gate = asyncio.Event(), asyncio.Event()

    async def delete(self, key: str) -> bool:
        if not self.arrived.is_set():
            self.arrived.set()
            await self.gate.wait()
        return await self.inner.delete(key)


async def test_tasks_of_one_process_take_turns(target: StorageBackend) -> None:
    first, old, new = await hashed(target, "test-a", OLD, NEW)
    await target.write(LATEST, single(first.encode()), Attributes())
    latest, held = LatestHash(), Held(target)
    older = asyncio.create_task(latest.point(held, HASHES, old, OLD))
    await held.arrived.wait()
    newer = asyncio.create_task(latest.point(held, HASHES, new, NEW))
    for _ in range(50):
        # As far as it comes.
        await asyncio.sleep(0)
    held.gate.set()
    await asyncio.gather(older, newer)
    assert await latest_of(target) == NEW


async def test_it_does_not_contend_for_ever(target: StorageBackend) -> None:
    old, new = await hashed(target, OLD, NEW)
    with pytest.raises(Unavailable, match="all the time"):
        await LatestHash().point(Contended(target, [old] * 100), HASHES, new, NEW)


FOREIGN = (b"", b"..", b"../x", b"a:b", b"_latest", b"0" * 64, b"\xff\0", b"x" * 600, b"a\nb")


async def test_what_somebody_else_wrote_there_gives_way(any_world: World) -> None:
    (new,) = await hashed(any_world.target, NEW)
    for content in FOREIGN:
        await any_world.target.delete(LATEST)
        await any_world.target.write(LATEST, single(content), Attributes())
        await LatestHash().point(any_world.target, HASHES, new, NEW)
        assert await latest_of(any_world.target) == NEW


@pytest.mark.parametrize(
    ("there", "comes", "stays"),
    [
        ("test-a", "test-b", "test-b"),
        ("test-b", "test-a", "test-a"),
        ("test-a", OLD, OLD),
        (OLD, "test-a", OLD),
        (OLD, OLD.replace("0a1b", "0a1a"), OLD),
        (OLD.replace("0a1b", "0a1a"), OLD, OLD),
        ("no bid", OLD, OLD),
    ],
)
async def test_which_of_two_is_the_latest(target: StorageBackend, there: str, comes: str, stays: str) -> None:
    first, second = await hashed(target, there, comes)
    latest = LatestHash()
    await latest.point(target, HASHES, first, there)
    await latest.point(target, HASHES, second, comes)
    assert await latest_of(target) == stays
