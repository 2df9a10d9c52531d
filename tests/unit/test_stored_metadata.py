"""`uuid`, `created_at`, `stored_at` and `storage_version` on every stored object: what they are, and what of them stays on a redo."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backends.base import Attributes, ObjectStat, single
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.s3_metadata import METADATA_LIMIT
from handlers.execute import execute
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.plan import StorePlan
from handlers.stored_metadata import moment, of_entry, planned, stamped
from tests.support.azure import azure_backend
from tests.support.gcs import gcs_backend
from tests.support.s3 import strict_backend
from tests.unit.test_execute import URL, World, contents
from tests.unit.test_execute_transforms import LINES, Lines

FOUR = {"uuid", "created_at", "stored_at", "storage_version"}
NOON = 1_763_726_400.25
LATER = NOON + 3600


def fetched(bid: str, url: str = URL) -> ResourceFetched:
    return ResourceFetched(
        id="m",
        bundle=Bundle(bid=bid, recipe_id="r"),
        resource=Resource(url=url),
        payload=Payload(location="s3://staging/x"),
    )


def test_the_uuid_is_that_of_the_resource_for_ever() -> None:
    """A change of this value breaks what people have stored."""
    assert planned(fetched("test-a"))["uuid"] == "1218206f-d109-55a5-9c19-80f40022e8fa"
    others = [fetched("test-b"), fetched("test-a", f"{URL}?a"), fetched("test-a")]
    uuids = [planned(command)["uuid"] for command in others]
    assert len(set(uuids)) == 3
    assert all(UUID(each).version == 5 for each in uuids)
    entries = [of_entry(uuids[0], "a"), of_entry(uuids[0], "b"), of_entry(uuids[1], "a")]
    assert len({*uuids, *entries}) == 6


@pytest.mark.parametrize(
    ("bid", "created_at"),
    [
        ("bid:v1:fr:20240115103000:0123abcd", "2024-01-15T10:30:00.000Z"),
        ("17571960-2065-e0cd-cf71-8196d8577b7e", "2025-09-06T22:00:20.650Z"),
        ("018d0d1c-5a00-7000-8000-000000000000", "2024-01-15T12:32:58.368Z"),
        ("test-a", None),
    ],
)
def test_created_at_is_the_time_of_the_bundle_where_its_id_tells_one(
    bid: str, created_at: str | None
) -> None:
    assert planned(fetched(bid)).get("created_at") == created_at


def test_a_moment() -> None:
    assert moment(NOON) == "2025-11-21T12:00:00.250Z"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    first = await FileBackend.connect(FileOptions(root=tmp_path / "first"))
    yield World(
        await MemoryBackend.connect(MemoryOptions()), first, await MemoryBackend.connect(MemoryOptions())
    )
    await first.aclose()


async def told(world: World, plan: StorePlan) -> tuple[dict[str, str], ObjectStat]:
    """The facts beside the object in the first target, and those with it in the second."""
    beside, there = plan.writes[0].sidecar_key, await world.targets["second"].stat(plan.writes[1].key)
    assert beside is not None
    assert there is not None
    return json.loads((await contents(world.targets["first"]))[beside]), there


async def test_a_redo_leaves_the_time_of_the_first_one(world: World) -> None:
    await world.stage(b"data")
    plan = world.plan(size=None, digest=None)
    for now in (NOON, LATER):
        executed = await execute(plan, world.staging, world.targets, clock=lambda now=now: now)  # type: ignore[misc] # mypy takes a default for a parameter
        assert not executed.misses
    sidecar, there = await told(world, plan)
    assert sidecar["stored_at"] == there.metadata["stored_at"] == moment(NOON)
    assert sidecar["uuid"] == there.metadata["uuid"] == planned(plan.command)["uuid"]
    assert sidecar["storage_version"] == there.metadata["storage_version"] == "1.0"
    assert sidecar.keys() >= FOUR


async def test_every_entry_of_an_archive_has_its_own(world: World, tmp_path: Path) -> None:
    await world.stage(LINES)
    plan = replace(world.plan(size=None, digest=None), transforms=(Lines(),))
    executed = await execute(plan, world.staging, world.targets, None, tmp_path, lambda: NOON)
    uuids = set()
    for placement in executed.placements:
        if placement.target == "second":
            stat = await world.targets["second"].stat(placement.receipt.key)
            assert stat is not None
            assert stat.metadata["uuid"] == of_entry(planned(plan.command)["uuid"], placement.member)
            assert stat.metadata["stored_at"] == moment(NOON)
            uuids.add(stat.metadata["uuid"])
    assert len(uuids) == 3
    beside = plan.writes[0].sidecar_key
    assert beside is not None
    sidecar = json.loads((await contents(world.targets["first"]))[beside])
    assert (sidecar["uuid"], sidecar["stored_at"]) == (planned(plan.command)["uuid"], moment(NOON))


async def test_none_of_the_four_is_cut_for_the_sake_of_a_long_url() -> None:
    plan = World(*[await MemoryBackend.connect(MemoryOptions()) for _ in range(3)]).plan(
        size=None, digest=None
    )
    long = replace(
        plan.writes[0].attributes, metadata={**plan.writes[0].attributes.metadata, "url": f"u{'ü' * 8000}"}
    )
    async with strict_backend() as (backend, store):
        await backend.write("k", single(b"x"), stamped(long, NOON))
        stat = await backend.stat("k")
        headers = store.buckets["bucket"]["k"].headers
    assert stat is not None
    assert {name: stat.metadata.get(name) for name in FOUR} == {
        "uuid": planned(plan.command)["uuid"],
        "created_at": None,
        "stored_at": moment(NOON),
        "storage_version": "1.0",
    }
    sizes = [len(name) - 11 + len(text) for name, text in headers.items() if name.startswith("x-amz-meta-")]
    assert METADATA_LIMIT - 6 < sum(sizes) <= METADATA_LIMIT


@pytest.mark.parametrize("service", ["azurite", "gcs"])
async def test_stores_with_rules_of_their_own_for_names_give_them_back(
    request: pytest.FixtureRequest, service: str
) -> None:
    running: Any = request.getfixturevalue(service)
    opened = (
        azure_backend(running)
        if service == "azurite"
        else gcs_backend(running.url, bucket=running.new_bucket())
    )
    command = fetched("bid:v1:fr:20240115103000:0123abcd")
    attributes = stamped(Attributes("text/html", planned(command)), NOON)
    async with opened as backend:
        await backend.write("k", single(b"x"), attributes)
        stat = await backend.stat("k")
    assert stat is not None
    assert stat.metadata.keys() == FOUR
    assert stat.metadata == attributes.metadata
