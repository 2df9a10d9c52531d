"""Carrying out a plan on real backends: what is written, what is left when the payload is not as promised."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import CHUNK_SIZE, Attributes, Receipt, StorageBackend, single
from backends.errors import Conflict, IntegrityError
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import PayloadMissing
from handlers.execute import execute
from handlers.layouts import make_layout
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.payload import checked
from handlers.plan import Source, StagingSource, StorePlan
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target

DATA = b"<html>" * 1_000
URL = "https://example.com/page.html"
NOTHING = Attributes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def contents(backend: StorageBackend) -> dict[str, bytes]:
    found = {}
    for key in [stat.key async for stat in backend.list()]:
        async with backend.open(key) as chunks:
            found[key] = b"".join([chunk async for chunk in chunks])
    return found


class World:
    """A staging and two targets; `stage` leaves a payload, `plan` and `run` do what the pipeline does."""

    def __init__(self, staging: StorageBackend, first: StorageBackend, second: StorageBackend) -> None:
        self.staging = {"staging": staging}
        self.targets = {"first": first, "second": second}

    async def stage(self, data: bytes) -> None:
        await self.staging["staging"].write("x", single(data), NOTHING)

    def plan(self, *, size: int | None, digest: str | None, **resource: Any) -> StorePlan:
        staging = self.staging["staging"]
        targets = [
            Target(name, make_layout("oc", "p", keeps_attributes=backend.features.attributes))
            for name, backend in self.targets.items()
        ]
        handler = ResourceFetchedHandler(
            [StagingSource("staging", staging.location)], Routes((Route("default", tuple(targets)),))
        )
        return handler.plan(
            ResourceFetched(
                id="m",
                bundle=Bundle(bid="test-a", recipe_id="r"),
                resource=Resource(url=URL, **resource),
                payload=Payload(location=f"{staging.location}x", size=size, sha256=digest),
            )
        )

    async def run(self, plan: StorePlan) -> list[Receipt]:
        executed = await execute(plan, self.staging, self.targets)
        if executed.misses:
            raise executed.misses[0].error
        return [placement.receipt for placement in executed.placements]

    async def nothing_is_left(self) -> bool:
        return not any([await contents(target) for target in self.targets.values()])


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(params=["file", "memory"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        backends: list[StorageBackend] = [await MemoryBackend.connect(MemoryOptions()) for _ in range(3)]
    else:
        backends = [await FileBackend.connect(FileOptions(root=tmp_path / name)) for name in "abc"]
    yield World(*backends)
    for backend in backends:
        await backend.aclose()
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("data", [b"", DATA, b"x" * (2 * CHUNK_SIZE + 1)])
async def test_every_target_gets_the_payload(world: World, data: bytes, promised: bool) -> None:
    await world.stage(data)
    plan = world.plan(
        size=len(data) if promised else None, digest=sha256(data) if promised else None, status_code=200
    )
    receipts = await world.run(plan)
    for write, receipt, target in zip(plan.writes, receipts, world.targets.values(), strict=True):
        assert (receipt.key, receipt.size, receipt.sha256) == (write.key, len(data), sha256(data))
        assert receipt.created
        assert (await contents(target))[write.key] == data


async def test_doing_it_again_gives_the_same_receipts(world: World) -> None:
    await world.stage(DATA)
    plan = world.plan(size=len(DATA), digest=sha256(DATA), status_code=200)
    first = await world.run(plan)
    before = [await contents(target) for target in world.targets.values()]
    assert await world.run(plan) == [replace(receipt, created=False) for receipt in first]
    assert [await contents(target) for target in world.targets.values()] == before


async def test_case_6_a_redo_finds_what_a_killed_run_left(world: World) -> None:
    """Killed between the object and everything after it: sidecar, second target."""
    await world.stage(DATA)
    plan = world.plan(size=None, digest=None)
    await world.targets["first"].write(plan.writes[0].key, single(DATA), NOTHING)
    receipts = await world.run(plan)
    assert [receipt.created for receipt in receipts] == [False, True]
    if (sidecar := plan.writes[0].sidecar_key) is not None:
        assert await world.targets["first"].stat(sidecar) is not None


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (len(DATA) + 1, None),
        (len(DATA) - 1, None),
        (0, None),
        (len(DATA), "0" * 64),
        (None, sha256(DATA[:-1])),
    ],
)
async def test_case_67_another_payload_than_promised_leaves_nothing(
    world: World, size: int | None, digest: str | None
) -> None:
    await world.stage(DATA)
    with pytest.raises(IntegrityError, match="promised"):
        await world.run(world.plan(size=size, digest=digest))
    assert await world.nothing_is_left()


async def test_a_large_payload_with_a_wrong_digest_leaves_nothing(world: World) -> None:
    await world.stage(b"x" * (3 * CHUNK_SIZE))
    with pytest.raises(IntegrityError):
        await world.run(world.plan(size=3 * CHUNK_SIZE, digest="0" * 64))
    assert await world.nothing_is_left()


async def test_a_missing_payload_is_its_own_error(world: World) -> None:
    with pytest.raises(PayloadMissing, match="staging") as caught:
        await world.run(world.plan(size=None, digest=None))
    assert caught.value.retryable
    assert await world.nothing_is_left()


async def test_case_60_other_content_under_the_key_stays(world: World) -> None:
    await world.stage(DATA)
    plan = world.plan(size=None, digest=None)
    await world.targets["first"].write(plan.writes[0].key, single(b"older"), NOTHING)
    with pytest.raises(Conflict):
        await world.run(plan)
    assert await contents(world.targets["first"]) == {plan.writes[0].key: b"older"}
    assert (await contents(world.targets["second"]))[plan.writes[1].key] == DATA


async def test_facts_lie_beside_the_object_or_on_it(world: World) -> None:
    await world.stage(DATA)
    plan = world.plan(
        size=None, digest=None, content_type="text/html", status_code=200, meta={"héllo": [1, "😀"]}
    )
    await world.run(plan)
    for write, target in zip(plan.writes, world.targets.values(), strict=True):
        if write.sidecar_key is None:
            stat = await target.stat(write.key)
            assert stat is not None
            assert (stat.content_type, stat.metadata["url"]) == ("text/html", URL)
        else:
            text = (await contents(target))[write.sidecar_key]
            assert text.endswith(b"}\n")
            told = json.loads(text)
            assert told.pop("stored_at").endswith("Z")
            assert told == {
                "uuid": plan.writes[0].attributes.metadata["uuid"],
                "created_at": None,
                "storage_version": "1.0",
                "bid": "test-a",
                "recipe_id": "r",
                "url": URL,
                "content_type": "text/html",
                "status_code": 200,
                "meta": {"héllo": [1, "😀"]},
                "key": write.key,
                "size": len(DATA),
                "sha256": sha256(DATA),
            }


async def test_a_payload_that_is_too_long_is_not_read_to_its_end() -> None:
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"x" * 1_000

    with pytest.raises(IntegrityError, match="longer than the 2500 bytes promised"):
        async for _ in checked(endless(), Source("staging", "x", 2_500, None)):
            pass
    assert pulled == 3


async def test_checking_hands_on_every_chunk_before_it_pulls_the_next() -> None:
    pulled = 0

    async def three() -> AsyncIterator[bytes]:
        nonlocal pulled
        for chunk in (b"a", b"", b"b" * 300_000):
            pulled += 1
            yield chunk

    data = b"a" + b"b" * 300_000
    seen = []
    async for chunk in checked(three(), Source("staging", "x", len(data), sha256(data))):
        seen.append(chunk)
        assert len(seen) == pulled
    assert b"".join(seen) == data


async def test_i5_a_cancelled_run_leaves_nothing(world: World) -> None:
    """The staging stops in mid-payload, for ever; the run is cancelled there."""
    halted = asyncio.Event()

    class Halting(MemoryBackend):
        def open(self, key: str) -> Any:
            opened = super().open(key)

            class Context:
                async def __aenter__(self) -> AsyncIterator[bytes]:
                    return self.chunks(await opened.__aenter__())

                async def __aexit__(self, *exc_info: object) -> bool | None:
                    return await opened.__aexit__(*exc_info)  # type: ignore[arg-type] # object is what the protocol hands on

                async def chunks(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
                    async for chunk in source:
                        yield chunk
                        halted.set()
                        await asyncio.Event().wait()

            return Context()

    staging = await Halting.connect(MemoryOptions())
    await staging.write("x", single(b"x" * (2 * CHUNK_SIZE)), NOTHING)
    world.staging = {"staging": staging}
    running = asyncio.create_task(world.run(world.plan(size=None, digest=None)))
    await halted.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await world.nothing_is_left()
