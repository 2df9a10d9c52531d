"""One read of staging for several targets: what each gets, who waits for whom, and what one's failure does to the others."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import CHUNK_SIZE, Attributes, Features, Promise, Receipt, StorageBackend, single
from backends.errors import IntegrityError, Unavailable, Unsupported
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.execute import Executed, Placement, execute
from handlers.fan_out import READ_AHEAD, FanOut
from handlers.layouts import ObjectLayout
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.plan import StagingSource, StorePlan
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target

NAMES = ("a", "b", "c")
LARGE = bytes(range(256)) * (8 * CHUNK_SIZE // 256 + 3)


class Counted(Wrapper):
    """Staging that tells how often it was opened and how many chunks it has given away; `broken` is raised in the middle."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.opened = self.given = 0
        self.broken: BaseException | None = None

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened += 1
        async with self.inner.open(key) as chunks:
            yield self._counted(chunks)

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.given += 1
            yield chunk
            if self.broken is not None:
                raise self.broken


class Awkward(Wrapper):
    """A target that stops reading at its gate after the first chunk, or fails there; it counts the bytes it was sent.

    It never copies by itself: that would read nothing.
    """

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.fault: Exception | None = None
        self.sent = 0

    @property
    def features(self) -> Features:
        return replace(self.inner.features, server_copy=False)

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        return await self.inner.write(key, self._held(chunks), attributes)

    async def _held(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.sent += len(chunk)
            yield chunk
            self.waiting.set()
            await self.gate.wait()
            if self.fault is not None:
                raise self.fault


class World:
    def __init__(self, staging: StorageBackend, stores: list[StorageBackend]) -> None:
        self.staging = Counted(staging)
        self.targets = {name: Awkward(store) for name, store in zip(NAMES, stores, strict=True)}
        self.placed: list[str] = []

    async def stage(self, data: bytes) -> None:
        self.data = data
        await self.staging.write("x", single(data), Attributes())

    def plan(self, digest: str | None = None) -> StorePlan:
        route = Route("default", tuple(Target(name, ObjectLayout()) for name in NAMES))
        handler = ResourceFetchedHandler([StagingSource("s", self.staging.location)], Routes((route,)))
        return handler.plan(
            ResourceFetched(
                id="m",
                bundle=Bundle(bid="test-a", recipe_id="r"),
                resource=Resource(url="https://example.com/"),
                payload=Payload(location=f"{self.staging.location}x", sha256=digest),
            )
        )

    async def run(self, plan: StorePlan) -> Executed:
        async def placed(placement: Placement) -> None:
            self.placed.append(placement.target)

        return await execute(plan, {"s": self.staging}, self.targets, placed)

    async def holders(self) -> list[str]:
        """The targets that hold anything; what they hold is the payload."""
        found = []
        for name, target in self.targets.items():
            for key in [stat.key async for stat in target.list()]:
                async with target.open(key) as chunks:
                    assert b"".join([chunk async for chunk in chunks]) == self.data
                found.append(name)
        return found


@pytest.fixture
async def world() -> World:
    staging, *stores = [await MemoryBackend.connect(MemoryOptions()) for _ in range(4)]
    return World(staging, list(stores))


@pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=["empty", "small", "large"])
async def test_staging_is_read_once_for_all_targets(world: World, data: bytes) -> None:
    await world.stage(data)
    executed = await world.run(world.plan(hashlib.sha256(data).hexdigest()))
    assert [placement.target for placement in executed.placements] == list(NAMES)
    assert {placement.receipt.sha256 for placement in executed.placements} == {
        hashlib.sha256(data).hexdigest()
    }
    assert executed.misses == ()
    assert world.staging.opened == 1
    assert await world.holders() == list(NAMES)


async def test_the_slowest_target_sets_the_pace(world: World) -> None:
    await world.stage(LARGE)
    slow = world.targets["b"]
    slow.gate.clear()
    task = asyncio.create_task(world.run(world.plan()))
    await slow.waiting.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert world.staging.given <= READ_AHEAD + 2, "what is read ahead is bounded"
    slow.gate.set()
    assert len((await task).placements) == 3
    assert await world.holders() == list(NAMES)


async def test_case_72_one_targets_fault_is_not_the_others(world: World) -> None:
    await world.stage(LARGE)
    world.targets["b"].fault = Unavailable("b is down")
    executed = await world.run(world.plan())
    assert [placement.target for placement in executed.placements] == ["a", "c"]
    assert [(miss.write.target, str(miss.error)) for miss in executed.misses] == [("b", "b is down")]
    assert await world.holders() == ["a", "c"]


async def test_an_unforeseen_fault_of_one_target_is_a_miss_too(world: World) -> None:
    await world.stage(b"payload")
    world.targets["a"].fault = ZeroDivisionError("a bug")
    executed = await world.run(world.plan())
    assert [type(miss.error) for miss in executed.misses] == [ZeroDivisionError]
    assert await world.holders() == ["b", "c"]


async def test_all_targets_may_fail(world: World) -> None:
    await world.stage(LARGE)
    for name, target in world.targets.items():
        target.fault = Unavailable(f"{name} is down")
    executed = await world.run(world.plan())
    assert [miss.write.target for miss in executed.misses] == list(NAMES)
    assert await world.holders() == []


@pytest.mark.parametrize("error", [Unavailable("staging is down"), ZeroDivisionError("a bug")])
async def test_what_staging_raises_leaves_nothing_anywhere_and_is_no_targets_fault(
    world: World, error: Exception
) -> None:
    await world.stage(LARGE)
    world.staging.broken = error
    with pytest.raises(type(error)) as raised:
        await world.run(world.plan())
    assert raised.value is error
    assert await world.holders() == []


async def test_case_66_a_payload_that_is_not_as_promised_reaches_no_target(world: World) -> None:
    await world.stage(LARGE)
    with pytest.raises(IntegrityError):
        await world.run(world.plan("0" * 64))
    assert await world.holders() == []


async def test_cancelled_it_leaves_nothing_anywhere(world: World) -> None:
    await world.stage(LARGE)
    for target in world.targets.values():
        target.gate.clear()
    task = asyncio.create_task(world.run(world.plan()))
    await world.targets["c"].waiting.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert await world.holders() == []
    assert len(asyncio.all_tasks()) == 1, "nobody goes on in the background"


async def test_who_has_it_is_told_while_others_are_at_work(world: World) -> None:
    await world.stage(b"payload")
    slow = world.targets["c"]
    slow.gate.clear()
    task = asyncio.create_task(world.run(world.plan()))
    await slow.waiting.wait()
    while len(world.placed) < 2:  # noqa: ASYNC110 - turns of the loop, not time
        await asyncio.sleep(0)
    assert sorted(world.placed) == ["a", "b"]
    slow.gate.set()
    await task
    assert sorted(world.placed) == ["a", "b"], "nobody is told of the last one"


async def test_a_source_that_is_cancelled_from_inside_is_no_end_and_nobody_waits(world: World) -> None:
    """As a library does that gives up a request of its own."""
    await world.stage(LARGE)
    world.staging.broken = asyncio.CancelledError()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="broken off"):
            await world.run(world.plan())
    assert await world.holders() == []


async def test_readers_that_leave_do_not_hold_the_others_up() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            yield bytes([number])

    fan_out = FanOut({"stays", "leaves", "never reads"}, 2)
    pump = asyncio.create_task(fan_out.pump(chunks()))
    leaving = fan_out.reader("leaves")
    assert await anext(leaving) == b"\0"
    await leaving.aclose()
    await fan_out.leave("leaves")
    await fan_out.leave("never reads")
    assert b"".join([chunk async for chunk in fan_out.reader("stays")]) == bytes(range(100))
    await fan_out.leave("stays")
    await pump


async def test_a_source_nobody_reads_any_more_is_left_alone() -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x"

    fan_out = FanOut({"only"}, 2)
    await fan_out.leave("only")
    await fan_out.pump(endless())
    assert given == 1


class Copying(Wrapper):
    """A target that counts the copies it makes by itself; `refusal` is what it answers instead."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.copies = 0
        self.refusal: Exception | None = None

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        if self.refusal is not None:
            raise self.refusal
        self.copies += 1
        return await self.inner.copy_from(source, source_key, key, attributes, promise)


async def copied(world: World, size: int | None, **refusals: Exception) -> tuple[Executed, list[int]]:
    """Run with targets that copy; how often each did."""
    targets = {name: Copying(target.inner) for name, target in world.targets.items()}
    for name, refusal in refusals.items():
        targets[name].refusal = refusal
    plan = world.plan(hashlib.sha256(world.data).hexdigest())
    plan = replace(plan, source=replace(plan.source, size=size))
    executed = await execute(plan, {"s": world.staging}, targets)
    return executed, [target.copies for target in targets.values()]


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[World]:
    """Staging and targets on one file system."""
    backends = [await FileBackend.connect(FileOptions(root=tmp_path / name)) for name in ("staging", *NAMES)]
    yield World(backends[0], list(backends[1:]))
    for backend in backends:
        await backend.aclose()


async def test_targets_in_the_store_of_staging_copy_and_nothing_is_read(disk: World) -> None:
    await disk.stage(LARGE)
    executed, copies = await copied(disk, len(LARGE))
    assert copies == [1, 1, 1]
    assert disk.staging.opened == 0
    assert [placement.receipt.sha256 for placement in executed.placements] == [
        hashlib.sha256(LARGE).hexdigest()
    ] * 3
    assert await disk.holders() == list(NAMES)


async def test_a_small_payload_is_read(disk: World) -> None:
    await disk.stage(b"payload")
    _, copies = await copied(disk, 7)
    assert copies == [0, 0, 0]
    assert disk.staging.opened == 1


async def test_a_target_that_cannot_copy_it_gets_the_stream(disk: World) -> None:
    await disk.stage(LARGE)
    _, copies = await copied(disk, None, b=Unsupported("not provable"))
    assert copies == [1, 0, 1]
    assert disk.staging.opened == 1
    assert await disk.holders() == list(NAMES)


async def test_a_copy_that_fails_is_that_targets_miss(disk: World) -> None:
    await disk.stage(LARGE)
    executed, copies = await copied(disk, None, b=Unavailable("b is down"))
    assert copies == [1, 0, 1]
    assert [miss.write.target for miss in executed.misses] == ["b"]
    assert await disk.holders() == ["a", "c"]
