"""The archive of a complete bundle: there before anybody is told, the same on every redo, and in nobody's way."""

import asyncio
import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from sqlalchemy import select

from backends.base import CHUNK_SIZE, Attributes, Receipt, StorageBackend, single
from backends.errors import Unavailable
from backends.file import FileBackend, FileOptions
from backends.guards.breaker import BreakerGuard, BreakerOptions, CircuitState
from backends.guards.rate_limit import RateLimitOptions
from backends.guards.stack import GuardOptions, guarded
from backends.guards.timeouts import TimeoutOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.bundling.member_paths import member_path
from handlers.layouts import FolderLayout, ObjectLayout, make_layout
from handlers.naming import resource_id, resource_name
from handlers.plan import BundleTarget
from handlers.transforms.compress import Compress, CompressOptions
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.unzip import Unzip, UnzipOptions
from tests.support.archiving import BID, Killed, Watched, World, listed, open_world, unpacked
from tests.support.bundles import archived, members_of
from worker.belonging import Known, known
from worker.budget import Budget
from worker.ledger.rows import bundle_targets
from worker.ledger.schema import bundles
from worker.ledger.values import StoredResource
from worker.queues.base import Ack
from worker.render_objects import told
from worker.verify import verify

FORMATS = ["zip", "tar.gz", "tar.zst"]
PAYLOADS = {
    "https://example.com/page.html": b"<html>" * 500,
    "https://example.com/empty": b"",
    "https://example.com/large.bin": bytes(range(256)) * 10_000,
}
FILES = {resource_name(url): data for url, data in PAYLOADS.items()}
Make = Callable[..., Awaitable[World]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Worlds with memory for a target, unless others are given."""
    async with AsyncExitStack() as stack:

        async def made(*args: Any, targets: dict[str, StorageBackend] | None = None, **kwargs: Any) -> World:
            if targets is None:
                targets = {"main": Watched(await memory())}
            return await stack.enter_async_context(open_world(tmp_path, targets, *args, **kwargs))

        yield made


async def memory() -> MemoryBackend:
    return await MemoryBackend.connect(MemoryOptions())


def watched(world: World, target: str = "main") -> Watched:
    found = world.targets[target]
    assert isinstance(found, Watched)
    return found


@pytest.mark.parametrize("format_", FORMATS)
async def test_all_resources_are_in_it_and_the_manifest_lists_it(make: Make, format_: str) -> None:
    world = await make(format_)
    await world.store(PAYLOADS)
    assert await world.relay().announce_due() == 1
    data = await world.archive()
    assert unpacked(format_, data) == FILES
    manifest = await world.manifest()
    assert manifest["archive"] == listed(data, f"p/bundles/{BID}/resources.{format_}", format_)
    assert [each["url"] for each in manifest["resources"]] == sorted(PAYLOADS, key=resource_id)
    assert world.outbound.sent == [BID]
    last = [receipt.key.rpartition("/")[2] for receipt in watched(world).written[-2:]]
    assert last == [f"resources.{format_}", "metadata.json"]


async def test_without_the_setting_nothing_changes(make: Make) -> None:
    world = await make("")
    await world.store(PAYLOADS)
    await world.relay().announce_due()
    assert "archive" not in await world.manifest()
    assert len(await world.keys()) == len(PAYLOADS) + 1


@pytest.mark.parametrize("format_", FORMATS)
async def test_a_bundle_of_nothing_has_an_empty_archive(make: Make, format_: str) -> None:
    world = await make(format_)
    await world.close()
    await world.relay().announce_due()
    assert unpacked(format_, await world.archive()) == {}
    assert (await world.manifest())["resources"] == []


async def test_case_79_late_resources_are_not_in_it(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    await world.store({"https://example.com/late": b"late"}, count=3)
    await world.relay().announce_due()
    assert unpacked("zip", await world.archive()) == FILES


async def test_i4_nothing_is_announced_nor_listed_before_the_archive_is_there(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    watched(world).faults[".zip"] = Unavailable("down")
    await world.relay().announce_due()
    assert world.outbound.sent == []
    assert not [key for key in await world.keys() if key.endswith((".zip", ".json"))]
    assert "down" in await world.postponed()
    watched(world).faults.clear()
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]


@pytest.mark.parametrize("format_", FORMATS)
async def test_a_redo_after_a_crash_finds_the_same_bytes(make: Make, format_: str) -> None:
    world = await make(format_)
    await world.store(PAYLOADS)
    watched(world).dies_after = f".{format_}"
    with pytest.raises(Killed):
        await world.relay(lease=0).announce_due()
    before = await world.archive()
    watched(world).dies_after = ""
    await world.relay().announce_due()
    archive = next(each for each in reversed(watched(world).written) if each.key.endswith(format_))
    assert not archive.created
    assert await world.archive() == before
    assert (await world.manifest())["archive"]["sha256"] == archive.sha256


async def test_the_order_of_the_files_is_no_databases(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `B` and `a` it depends on the collation which one comes first."""
    world = await make(transforms=(Unzip(UnzipOptions()),))
    await world.store({"https://example.com/x.zip": zip_of({"a": b"a", "B": b"b", "c": b"c"})})
    watched(world).dies_after = ".zip"
    with pytest.raises(Killed):
        await world.relay(lease=0).announce_due()
    watched(world).dies_after = ""
    listed_so = world.ledger.resources

    async def otherwise(bid: str) -> AsyncIterator[StoredResource]:
        async for each in listed_so(bid):
            yield replace(each, objects=each.objects[::-1])

    monkeypatch.setattr(world.ledger, "resources", otherwise)
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]


async def test_once_the_manifest_lists_it_nothing_is_read_again(make: Make) -> None:
    """A completion that cannot be sent is tried again and again, and an archive may be large."""
    world = await make()
    await world.store(PAYLOADS)
    watched(world).dies_after = "metadata.json"
    with pytest.raises(Killed):
        await world.relay(lease=0).announce_due()
    watched(world).dies_after = ""
    watched(world).opened.clear()
    watched(world).written.clear()
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]
    manifest = f"p/bundles/{BID}/metadata.json"
    assert watched(world).opened == [manifest]
    assert [(receipt.key, receipt.created) for receipt in watched(world).written] == [(manifest, False)]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"no JSON",
        b'{"archive": 1,\n  "resources": [',
        b'{"archive": {"x": 1},\n  "resources": [',
        b'[1,\n  "resources": [',
        b'{"archive": ' + b"[" * 100_000 + b',\n  "resources": [',
    ],
)
async def test_a_manifest_that_is_none_is_no_sign_of_the_archive(make: Make, manifest: bytes) -> None:
    world = await make()
    await world.store(PAYLOADS)
    watched(world).dies_after = ".zip"
    with pytest.raises(Killed):
        await world.relay(lease=0).announce_due()
    watched(world).dies_after = ""
    await world.targets["main"].write(f"p/bundles/{BID}/metadata.json", single(manifest), Attributes())
    await world.relay().announce_due()
    assert "metadata.json" in await world.parked()
    assert world.outbound.sent == []


async def test_something_else_in_its_place_parks_the_completion(make: Make) -> None:
    world = await make("zip")
    await world.store(PAYLOADS)
    key = (await world.place()).archive_key
    await world.targets["main"].write(key, single(b"other"), Attributes())
    await world.relay().announce_due()
    assert key in await world.parked()
    assert await world.read(key) == b"other"
    assert world.outbound.sent == []


def other_library(format_: str, data: bytes) -> bytes:
    """The same tar in other bytes, as another release's compressor would have made them."""
    if format_ == "tar.gz":
        return gzip.compress(gzip.decompress(data), compresslevel=1, mtime=1)
    tar = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return zstandard.ZstdCompressor(level=1).compress(tar)


@pytest.mark.parametrize("format_", ["tar.gz", "tar.zst"])
async def test_what_another_release_compressed_is_taken_as_it_is(make: Make, format_: str) -> None:
    world = await make(format_)
    await world.store(PAYLOADS)
    members = {name: FILES[name] for name in sorted(FILES, key=lambda name: name.rpartition("-")[2])}
    theirs = other_library(format_, await archived(format_, members_of(members)))
    key = (await world.place()).archive_key
    await world.targets["main"].write(key, single(theirs), Attributes())
    await world.relay().announce_due()
    assert await world.archive() == theirs
    assert (await world.manifest())["archive"] == listed(theirs, key, format_)
    assert world.outbound.sent == [BID]
    assert (watched(world).written[-2].key, watched(world).written[-2].created) == (key, False)


def tar_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def truncated(format_: str) -> bytes:
    whole = gzip.compress(tar_of(FILES)) if format_ == "tar.gz" else zstandard.compress(tar_of(FILES))
    return whole[:-5]


@pytest.mark.parametrize("format_", ["tar.gz", "tar.zst"])
@pytest.mark.parametrize("there", ["another", "longer", "shorter", "truncated", "plain", "empty"])
async def test_what_holds_something_else_is_a_conflict(make: Make, format_: str, there: str) -> None:
    world = await make(format_)
    await world.store(PAYLOADS)
    members = {name: FILES[name] for name in sorted(FILES, key=lambda name: name.rpartition("-")[2])}
    ours = await archived(format_, members_of(members))
    inside = gzip.decompress(ours) if format_ == "tar.gz" else b""
    if format_ == "tar.zst":
        inside = zstandard.ZstdDecompressor().decompressobj().decompress(ours)
    pack = gzip.compress if format_ == "tar.gz" else zstandard.compress
    data = {
        "another": pack(tar_of(FILES)),
        "longer": pack(inside + bytes(512)),
        "shorter": pack(inside[:-512]),
        "truncated": truncated(format_),
        "plain": inside,
        "empty": b"",
    }[there]
    key = (await world.place()).archive_key
    await world.targets["main"].write(key, single(data), Attributes())
    await world.relay().announce_due()
    assert key in await world.parked()
    assert await world.read(key) == data
    assert world.outbound.sent == []


async def test_what_never_comes_to_an_end_there_is_a_conflict(make: Make) -> None:
    """Much is read, and nothing comes out to be compared: a frame that decoders skip."""
    world = await make("tar.zst")
    await world.store(PAYLOADS)
    key = (await world.place()).archive_key
    skipped = struct.pack("<LL", 0x184D2A50, 64 << 20) + bytes(64 << 20)
    await world.targets["main"].write(key, single(zstandard.compress(b"") + skipped), Attributes())
    del skipped
    tracemalloc.start()
    try:
        await world.relay().announce_due()
        assert tracemalloc.get_traced_memory()[1] < 44 << 20
    finally:
        tracemalloc.stop()
    assert key in await world.parked()


def zip_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


async def test_entries_lie_below_the_archive_they_came_in(make: Make) -> None:
    inner = zip_of({"a/b.txt": b"b", "CON.txt": b"c", "d.gz": gzip.compress(b"d")})
    world = await make(transforms=(Unzip(UnzipOptions()), Gunzip()))
    urls = {"https://example.com/x.zip": inner, "https://example.com/y.csv.gz": gzip.compress(b"y")}
    await world.store(urls)
    await world.relay().announce_due()
    x, y = (resource_name(url) for url in urls)
    found = unpacked("zip", await world.archive())
    assert {name: data for name, data in found.items() if "CON" not in name} == {
        f"{x}/a/b.txt": b"b",
        f"{x}/d": b"d",
        y.removesuffix(".gz"): b"y",
    }
    assert [data for name, data in found.items() if name.startswith(f"{x}/CON~")] == [b"c"]


@pytest.mark.parametrize("spec", ["hive", "dated", "{recipe_id}/{bid}/{resource_id}.{ext}"])
async def test_the_names_in_it_do_not_depend_on_the_layout(make: Make, spec: str) -> None:
    layout = make_layout(spec, "", keeps_attributes=True)
    world = await make(layout=layout, transforms=(Compress(CompressOptions(codec="gzip")),))
    await world.store({"https://example.com/a.csv": b"a" * 3000})
    await world.relay().announce_due()
    name = resource_name("https://example.com/a.csv")
    found = unpacked("zip", await world.archive())
    assert {each: gzip.decompress(data) for each, data in found.items()} == {f"{name}.gz": b"a" * 3000}
    assert (await world.place()).archive_key == f"_bundles/undated/_{BID}.zip"


async def test_a_name_that_no_archive_may_hold_gets_another(make: Make) -> None:
    world = await make()
    url = "https://example.com/con.a.b.c.html"
    await world.store({url: b"device"})
    await world.relay().announce_due()
    ((name, data),) = unpacked("zip", await world.archive()).items()
    assert (name[:17], name[-5:], data) == (f"{resource_id(url)}~", ".html", b"device")


def test_paths_are_the_resources_names_and_what_lies_below() -> None:
    url = "https://example.com/x.tar.gz"
    name, id_ = resource_name(url), resource_id(url)
    assert member_path(url, "anything", transformed=False) == name
    assert member_path(url, f"p/{name}", transformed=True) == name
    assert member_path(url, f"p/x-{id_}.tar", transformed=True) == f"x-{id_}.tar"
    assert member_path(url, f"p/{id_}/q/{name}/a b", transformed=True) == f"{name}/a b"
    assert member_path(url, f"p/{id_}.tar.gz/a", transformed=True) == f"x-{id_}.tar.gz/a"
    for unusable in ("p/elsewhere.csv", f"p/{name}/{'x' * 950}.csv", f"p/{name}/nul.a.csv"):
        path = member_path(url, unusable, transformed=True)
        assert path.startswith(f"{id_}~")
        assert path.endswith(".csv")
        assert path != member_path(url, f"{unusable}x.csv", transformed=True)


async def test_an_object_that_is_gone_holds_the_completion(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    lost = next(key for key in await world.keys() if "large" in key)
    data = await world.read(lost)
    await world.targets["main"].delete(lost)
    await world.relay().announce_due()
    assert lost in await world.postponed()
    assert world.outbound.sent == []
    assert not [key for key in await world.keys() if key.endswith(".zip")]
    await world.targets["main"].write(lost, single(data), Attributes())
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]


async def test_an_object_that_changed_holds_the_completion(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    changed = next(key for key in await world.keys() if "page" in key)
    await world.targets["main"].delete(changed)
    await world.targets["main"].write(changed, single(b"x" * 3000), Attributes())
    await world.relay().announce_due()
    assert "has SHA-256" in await world.postponed()
    assert world.outbound.sent == []


async def test_a_format_that_is_not_known_here_is_left_to_another_worker(make: Make) -> None:
    world = await make("rar")
    await world.store(PAYLOADS)
    await world.relay().announce_due()
    assert "no archive format named 'rar'" in await world.postponed()


async def test_members_that_get_in_each_others_way_park_the_completion(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names see to it that there are none; should there be any, a person is told which."""
    monkeypatch.setattr("worker.bundle_archive.member_path", lambda *_, **__: "same")
    world = await make()
    await world.store(PAYLOADS)
    await world.relay().announce_due()
    reason = await world.parked()
    assert "cannot be archived in 'main'" in reason
    assert "in the way of 'same'" in reason
    assert world.outbound.sent == []


async def test_case_72_every_target_has_an_archive_and_a_best_effort_one_when_it_has_everything(
    make: Make,
) -> None:
    targets: dict[str, StorageBackend] = {name: Watched(await memory()) for name in ("main", "spare")}
    world = await make(targets=targets)
    watched(world, "spare").faults[""] = Unavailable("spare is down")
    with pytest.raises(Unavailable):
        await world.store({"https://example.com/a": b"a"})
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]
    assert unpacked("zip", await world.archive()) == {resource_name("https://example.com/a"): b"a"}
    assert await world.keys("spare") == []
    watched(world, "spare").faults.clear()
    assert await world.store({"https://example.com/a": b"a"}) == [Ack()]
    assert await world.archive("spare") == await world.archive()
    assert (await world.manifest("spare"))["archive"] == (await world.manifest())["archive"]


async def test_a_best_effort_target_that_was_sent_the_files_in_it_has_each_of_them(
    make: Make, tmp_path: Path
) -> None:
    """Its route unzips by now; when the bundle was completed it did not."""
    world = await make(targets={name: Watched(await memory()) for name in ("main", "spare")})
    url = "https://example.com/x.zip"
    watched(world, "spare").faults[""] = Unavailable("spare is down")
    payload = {url: zip_of({"a/b.txt": b"b", "c.txt": b"c"})}
    with pytest.raises(Unavailable):
        await world.store(payload)
    await world.relay().announce_due()
    watched(world, "spare").faults.clear()
    unzips = (Unzip(UnzipOptions()),)
    later = World(
        world.ledger, world.queue, world.staging, world.targets, "zip", unzips, ObjectLayout("p"), tmp_path
    )
    assert await later.store(payload) == [Ack()]
    name = resource_name(url)
    assert unpacked("zip", await world.archive()) == {name: payload[url]}
    assert unpacked("zip", await world.archive("spare")) == {f"{name}/a/b.txt": b"b", f"{name}/c.txt": b"c"}


async def test_a_best_effort_target_without_room_for_it_does_not_hold_the_completion(make: Make) -> None:
    targets: dict[str, StorageBackend] = {name: Watched(await memory()) for name in ("main", "spare")}
    world = await make(targets=targets)
    await world.store(PAYLOADS)
    watched(world, "spare").faults[".zip"] = Unavailable("full")
    await world.relay().announce_due()
    assert world.outbound.sent == [BID]
    assert len(await world.keys("spare")) == len(PAYLOADS)


async def test_a_long_archive_does_not_hold_other_completions(make: Make) -> None:
    world = await make()
    watched(world).slow.clear()
    await world.store(PAYLOADS)
    running = asyncio.create_task(world.relay().run())
    async with asyncio.timeout(10):
        while await claimed(world) == 0:  # noqa: ASYNC110 - the relay has no event for it
            await asyncio.sleep(0.01)
        # Of a worker that makes no archives.
        plain = World(world.ledger, world.queue, world.staging, world.targets, "", (), FolderLayout(), Path())
        await plain.store({"https://example.com/b": b"b"}, bid="test-b")
        await world.outbound.news.wait()
        assert world.outbound.sent == ["test-b"]
        world.outbound.news.clear()
        watched(world).slow.set()
        await world.outbound.news.wait()
    assert world.outbound.sent == ["test-b", BID]
    running.cancel()
    await asyncio.wait([running])


async def claimed(world: World) -> int:
    return sum(row.attempts for row in await world.ledger.outbox("pending"))


async def test_small_ones_do_not_wait_for_a_large_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.bundle_archive._LARGE", 1_000)
    world = await make()
    watched(world).slow.clear()
    for bid in ("test-a", "test-b"):
        await world.store(PAYLOADS, bid=bid)
    await world.store({"https://example.com/small": b"small"}, bid="test-c")
    budget = Budget(256 << 20)
    round_ = asyncio.create_task(world.relay(budget=budget).announce_due())
    large, small = 4 * CHUNK_SIZE + 400 * len(PAYLOADS), 2 * len(b"small") + 400
    async with asyncio.timeout(10):
        while budget.held < large + small:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
    assert budget.held == large + small, "of the large ones, one at a time"
    watched(world).slow.set()
    assert await round_ == 3
    assert sorted(world.outbound.sent) == ["test-a", "test-b", "test-c"]
    assert budget.held == 0


async def test_a_cancelled_relay_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "target", threads=1))
    entered = asyncio.Event()

    class Stuck(Wrapper):
        async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
            async def slowly() -> AsyncIterator[bytes]:
                async for chunk in chunks:
                    yield chunk
                    if key.endswith(".zip"):
                        entered.set()
                        await asyncio.Event().wait()

            return await self.inner.write(key, slowly(), attributes)

    world = await make(targets={"main": Stuck(backend)}, layout=FolderLayout())
    await world.store(PAYLOADS)
    before = await world.keys()
    running = asyncio.create_task(world.relay().run())
    async with asyncio.timeout(10):
        await entered.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert await world.keys() == before
    assert await backend.sweep(0) == 0
    await backend.aclose()


async def test_files_behind_all_guards(make: Make, tmp_path: Path) -> None:
    """One thread; limits for calls, bytes and time: a write that reads from its own store waits for none of them for ever."""
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "target", threads=1))
    options = GuardOptions(
        timeouts=TimeoutOptions(connect=5, idle=5, total=20),
        rate_limit=RateLimitOptions(requests=10_000, bytes=200_000_000, burst=0),
        breaker=BreakerOptions(),
        retry=None,
        cache=None,
    )
    target = await guarded(backend, options, lambda _: None)
    world = await make("tar.gz", targets={"main": target}, layout=FolderLayout())
    await world.store(PAYLOADS)
    async with asyncio.timeout(20):
        await world.relay().announce_due()
    path = tmp_path / "target" / f"bundle_{BID}" / "bundle.tar.gz"
    assert unpacked("tar.gz", await asyncio.to_thread(path.read_bytes)) == FILES
    assert world.outbound.sent == [BID]
    await target.aclose()
    await backend.aclose()


def after(target: BreakerGuard) -> CircuitState:
    return target.circuit.state


async def test_it_closes_a_circuit_that_waits_for_a_probe(make: Make) -> None:
    """Its write could not be the one call that is let through: what it reads is a call too."""
    store = Watched(await memory())
    target = BreakerGuard(store, BreakerOptions(threshold=1, cooldown=0.01))
    world = await make(targets={"main": target})
    await world.store(PAYLOADS)
    store.faults[".zip"] = Unavailable("down")
    relay = world.relay()
    await relay.announce_due()
    assert target.circuit.state != "closed"
    store.faults.clear()
    async with asyncio.timeout(10):
        while not world.outbound.sent:
            await relay.announce_due()
            await asyncio.sleep(0.005)
    assert after(target) == "closed"


async def test_memory_does_not_grow_with_the_bundle(make: Make, tmp_path: Path) -> None:
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "target", threads=2))
    world = await make(targets={"main": backend}, layout=FolderLayout())
    noise = zlib.compress(b"") * 1_000_000
    await world.store({f"https://example.com/{number}": noise for number in range(8)})
    # The ledger and the format are loaded by now, or will be by this one.
    tracemalloc.start()
    try:
        await world.relay().announce_due()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert world.outbound.sent == [BID]
    assert peak < 24 << 20 < 8 * len(noise)
    await backend.aclose()


async def test_rows_hold_as_many_facts_as_a_release_has_to_know(make: Make) -> None:
    """One that makes no archives takes five at most, and must not announce a bundle without its archive."""
    world = await make("zip")
    await world.store(PAYLOADS)
    plain = World(world.ledger, world.queue, world.staging, world.targets, "", (), FolderLayout(), Path())
    await plain.store({"https://example.com/b": b"b"}, bid="test-b")
    stored = await world.ledger._database.read(
        lambda conn: {row.bid: row.targets for row in conn.execute(select(bundles.c.bid, bundles.c.targets))}
    )
    assert {bid: [len(facts) for facts in places] for bid, places in stored.items()} == {
        BID: [7],
        "test-b": [3],
    }
    of_older_releases: list[list[Any]] = [["a", "s", "m"], ["b", "s", "m", False, 1]]
    assert bundle_targets(of_older_releases) == (
        BundleTarget("a", "s", "m"),
        BundleTarget("b", "s", "m", required=False, rank=1),
    )


async def test_the_ledger_knows_an_archive_by_its_key(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    place = await world.place()
    found = await known(world.ledger, "main", place.archive_key)
    assert found == Known(BID, "fr", "archive")
    assert told(found) == f"it is the archive of bundle {BID}"
    found = await known(world.ledger, "main", place.manifest_key)
    assert found is not None
    assert found.part == "manifest"


async def test_verify_reads_archives_too(make: Make) -> None:
    world = await make()
    await world.store(PAYLOADS)
    await world.relay().announce_due()

    async def problems() -> list[str]:
        return (await verify(await world.bundle(), world.ledger, world.targets, lambda _: None)).problems

    assert await problems() == []
    manifest = (await world.place()).manifest_key
    listing = await world.read(manifest)
    await world.targets["main"].delete(manifest)
    await world.targets["main"].write(manifest, single(b"[" * 100_000), Attributes())
    assert await problems() == [f"{manifest}: is not a manifest"]
    await world.targets["main"].delete(manifest)
    await world.targets["main"].write(manifest, single(listing), Attributes())
    key = (await world.place()).archive_key
    await world.targets["main"].delete(key)
    (problem,) = await problems()
    assert problem.startswith(f"{key}: ")
    await world.targets["main"].write(key, single(b"other"), Attributes())
    (problem,) = await problems()
    assert "which is not what the manifest says" in problem
