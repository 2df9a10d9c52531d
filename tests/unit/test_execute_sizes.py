"""Carrying out a plan with a size policy on real backends: what lies there after a crash, a broken promise, a redo."""

import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Attributes, Receipt
from backends.errors import IntegrityError, Unavailable
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import Refused
from handlers.execute import Executed, execute
from handlers.plan import StagingSource, StorePlan
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes
from handlers.transforms.max_size import MaxSize
from handlers.transforms.parts_list import PartsList
from handlers.transforms.unzip import Unzip
from tests.unit.test_execute import World, contents, sha256
from tests.unit.test_size_policy import policy, zipped

LIMIT = 100
DATA = os.urandom(249) + b"."
NAMES = ["part-00001", "part-00002", "part-00003", "parts.json"]
"""What becomes of it."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    first = await FileBackend.connect(FileOptions(root=tmp_path / "first"))
    second = await MemoryBackend.connect(MemoryOptions())
    yield World(await MemoryBackend.connect(MemoryOptions()), first, second)
    await first.aclose()


async def prepared(world: World, over: str, data: bytes = DATA, promised: bytes | None = DATA) -> StorePlan:
    """A plan for the staged data, of which size and SHA-256 of `promised` are promised."""
    await world.stage(data)
    size, digest = (None, None) if promised is None else (len(promised), sha256(promised))
    return replace(world.plan(size=size, digest=digest), transforms=policy(over))


async def run(world: World, plan: StorePlan, tmp_path: Path) -> Executed:
    return await execute(plan, world.staging, world.targets, None, tmp_path)


@pytest.mark.parametrize("promised", [DATA, None], ids=["promised", "unknown"])
async def test_parts_lie_in_every_target_and_a_redo_finds_them(
    world: World, tmp_path: Path, promised: bytes | None
) -> None:
    plan = await prepared(world, "split", promised=promised)
    executed = await run(world, plan, tmp_path)
    for write, target in zip(plan.writes, world.targets.values(), strict=True):
        found = await contents(target)
        keys = [f"{write.key}.{name}" for name in NAMES]
        assert set(found) == {*keys, *filter(None, [write.sidecar_key])}
        assert b"".join(found[key] for key in keys[:3]) == DATA
        listed = PartsList.decode(found[keys[3]])
        assert (listed.size, listed.sha256) == (250, sha256(DATA))
        assert [part.name for part in listed.parts] == NAMES[:3]
    assert [each.member for each in executed.placements] == NAMES * 2
    assert executed.before is not None
    assert (executed.before.sha256, executed.before.steps) == (sha256(DATA), ("split",))
    again = await run(world, plan, tmp_path)
    assert [each.receipt for each in again.placements] == [
        replace(each.receipt, created=False) for each in executed.placements
    ]
    sidecar = json.loads((await contents(world.targets["first"]))[plan.writes[0].sidecar_key or ""])
    assert [each["member"] for each in sidecar["objects"]] == NAMES


class Stops(MemoryBackend):
    """Writes so many objects, and then no more."""

    left = 0

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        if self.left == 0:
            raise Unavailable("it stopped")
        self.left -= 1
        return await super().write(key, chunks, attributes)


@pytest.mark.parametrize("done", range(4))
async def test_where_there_is_no_list_the_parts_are_not_all_there(
    world: World, tmp_path: Path, done: int
) -> None:
    stops = await Stops.connect(MemoryOptions())
    stops.left = done
    plan = await prepared(world, "split")
    plan = replace(plan, writes=plan.writes[1:])
    world.targets = {"second": stops}
    executed = await run(world, plan, tmp_path)
    assert [type(miss.error) for miss in executed.misses] == [Unavailable]
    key = plan.writes[0].key
    assert set(await contents(stops)) == {f"{key}.{name}" for name in NAMES[:done]}
    stops.left = -1
    again = await run(world, plan, tmp_path)
    assert [each.receipt.created for each in again.placements] == [False] * done + [True] * (4 - done)


@pytest.mark.parametrize("over", ["reject", "compress"])
async def test_nothing_is_stored_of_what_is_refused(world: World, tmp_path: Path, over: str) -> None:
    for promised in (DATA, None):
        plan = (
            await prepared(world, over, promised=promised)
            if promised
            else replace(world.plan(size=None, digest=None), transforms=policy(over))
        )
        with pytest.raises(Refused, match="payload_limit: max_size"):
            await run(world, plan, tmp_path)
        assert await world.nothing_is_left()


@pytest.mark.parametrize(
    "promised",
    [DATA[:-1] + b"x", DATA + b"x", DATA[:LIMIT], b"x" * LIMIT],
    ids=["same", "more", "fits", "other"],
)
async def test_case_67_no_part_is_stored_of_a_payload_that_breaks_its_promise(
    world: World, tmp_path: Path, promised: bytes
) -> None:
    plan = await prepared(world, "split", promised=promised)
    with pytest.raises(IntegrityError, match="promised"):
        await run(world, plan, tmp_path)
    assert await world.nothing_is_left()


async def test_an_archive_with_nothing_in_it_is_held_to_it(world: World, tmp_path: Path) -> None:
    """It is stored as it is, but for what no payload goes without."""
    plan = await prepared(world, "reject", zipped({"a folder/": b""}), None)
    plan = replace(plan, transforms=(Unzip(), *plan.transforms))
    with pytest.raises(Refused, match="max_size"):
        await run(world, plan, tmp_path)
    assert await world.nothing_is_left()


async def test_what_is_known_to_fit_goes_the_way_of_routes_without_transforms() -> None:
    steps = policy("split")
    route = Route("r", (), transforms=steps, max_size=MaxSize(bytes=LIMIT, over="split"))
    assert route.transforms_of(LIMIT) == ()
    assert route.transforms_of(LIMIT + 1) == steps
    assert route.transforms_of(None) == steps
    others = replace(route, transforms=(Unzip(), *steps))
    assert others.transforms_of(1) == others.transforms
    assert replace(others, max_size=None).transforms_of(1) == others.transforms


@pytest.mark.parametrize(("size", "steps"), [(LIMIT, 0), (LIMIT + 1, 1), (None, 1)])
async def test_a_plan_asks_the_route_with_the_promised_size(
    world: World, size: int | None, steps: int
) -> None:
    limited = MaxSize(bytes=LIMIT, over="split")
    route = Route("r", (), transforms=policy("split"), max_size=limited)
    command = world.plan(size=size, digest=None).command
    source = StagingSource("staging", world.staging["staging"].location)
    plan = ResourceFetchedHandler([source], Routes((route,))).plan(command)
    assert (len(plan.transforms), plan.max_size) == (steps, limited)
