"""Case 107: what one recipe sends does not keep another's messages from their turn. Whole workers, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.slow_worlds import until
from tests.support.crowd import Crowd, crowd
from worker import turns
from worker.queues.base import Depth

MANY = [f"{number:03}" for number in range(100)]
FEW = {"concurrency": 4}


def metric(world: Crowd, name: str) -> float:
    registry = world.service._metrics.registry
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"transload_{name}"
    )


async def depth(world: Crowd, holds: Callable[[Depth], bool]) -> None:
    while not holds(await world.queue.depth()):
        await until(lambda: True)


async def test_case_107_beside_a_hundred_that_do_not_end_another_recipes_is_stored(tmp_path: Path) -> None:
    async with crowd(tmp_path, worker=FEW) as world:
        await world.send("loud", MANY, held=True)
        await until(lambda: len(world.staging.halfway) == 3)
        await world.send("quiet", MANY[:5])
        await until(lambda: world.count("quiet") == 5)
        assert world.started("loud") == 3, "three of four places"
        await until(lambda: metric(world, "messages_in_flight") == 3)
        world.staging.released.set()
        await until(lambda: world.count("loud") == 100)
        assert world.started("loud") == 100


async def test_case_107_what_lies_behind_a_flood_is_found_and_none_of_it_counts_as_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fourteen may be held, and a hundred lie before it."""
    monkeypatch.setattr(turns, "_PATIENCE", 0.05)
    async with crowd(tmp_path, worker={**FEW, "look_ahead": 10}) as world:
        await world.send("loud", MANY, held=True)
        await world.send("quiet", ["one"])
        await until(lambda: world.count("quiet") == 1)
        assert world.started("loud") == 3
        assert metric(world, "messages_put_off_total") >= 87
        world.staging.released.set()
        await until(lambda: world.count("loud") == 100)
        assert world.started("loud") == 100, "each was tried once"
        assert world.service.progress.retried == 0


async def test_without_shares_it_is_first_come_first_served(tmp_path: Path) -> None:
    async with crowd(tmp_path, worker={**FEW, "fair": False}) as world:
        await world.send("loud", MANY[:10], held=True)
        await world.send("quiet", ["one"])
        await until(lambda: len(world.staging.halfway) == 4)
        await depth(world, lambda seen: (seen.visible, seen.in_flight) == (7, 4))
        world.staging.released.set()
        await until(lambda: world.count("quiet") == 1)
        assert world.begun.index("quiet-one") == 10


async def test_case_107_what_fails_and_comes_back_takes_no_more_than_its_share(tmp_path: Path) -> None:
    """Its payloads are not there: each is tried again and again, at once."""
    worker = {**FEW, "retry_base": 0.001, "retry_cap": 0.001, "max_attempts": 1000}
    async with crowd(tmp_path, worker=worker) as world:
        await world.send("loud", MANY, None)
        await until(lambda: world.started("loud") > 200)
        await world.send("quiet", MANY[:20])
        await until(lambda: world.count("quiet") == 20)
        assert world.count("loud") == 0


async def test_case_36_slow_payloads_hold_no_more_than_their_share_of_the_memory(tmp_path: Path) -> None:
    worker = {"concurrency": 64, "transfer_memory": 64 << 20}
    async with crowd(tmp_path, worker=worker) as world:
        await world.send("loud", MANY[:20], b"x" * (1 << 20), held=True)
        await until(lambda: len(world.staging.halfway) == 7)
        assert metric(world, "transfer_memory_bytes") == 7 << 20, "of the 8 MiB for payloads of that size"
        await world.send("quiet", MANY[:5], b"y" * (1 << 20))
        await until(lambda: world.count("quiet") == 5)
        assert len(world.staging.halfway) == 12


async def test_case_107_a_route_has_no_more_than_its_limits(tmp_path: Path) -> None:
    routes: dict[str, Any] = {
        "narrow": {"recipe_id": "loud*", "concurrency": 2},
        "rest": {},
    }
    async with crowd(tmp_path, worker={"concurrency": 16}, routes=routes) as world:
        for recipe in ("loud-a", "loud-b", "loud-c"):
            await world.send(recipe, MANY[:5], held=True)
        await until(lambda: len(world.staging.halfway) == 2)
        await world.send("quiet", MANY[:20])
        await until(lambda: world.count("quiet") == 20)
        assert world.started("loud") == 2


async def test_case_14_what_waits_for_its_turn_is_given_back_before_the_drain_is_over(tmp_path: Path) -> None:
    async with crowd(tmp_path, worker=FEW) as world:
        await world.send("loud", MANY[:20], held=True)
        await until(lambda: len(world.staging.halfway) == 3)
        await depth(world, lambda seen: seen.visible == 0)
        world.service.stop()
        await depth(world, lambda seen: (seen.visible, seen.in_flight) == (17, 3))
        assert {message.receive_count for message in await world.queue.receive(20, 0)} == {1}
        world.staging.released.set()
        await until(lambda: world.count("loud") == 3)
