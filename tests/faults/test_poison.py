"""Case 18: a message that takes its process along, every time, among messages that do not."""

import json
from pathlib import Path

import pytest

from tests.faults.slow_worlds import Changes, SlowWorld, needed, slow_world, told, until
from tests.faults.worlds import Combination
from tests.support.workers import Worker

MAX_ATTEMPTS = 3
POISON = "test-poison"
FATE = "dead: crashed"


@pytest.mark.parametrize("combination", [Combination(), Combination("rabbitmq", "postgresql")], ids=str)
async def test_case_18_a_poison_ends_as_a_dead_letter_and_its_neighbours_are_stored(
    request: pytest.FixtureRequest, tmp_path: Path, combination: Combination
) -> None:
    """Killed from outside, as the kernel's OOM killer does it, half way through the poison's payload."""
    settings: Changes = {"worker": {"max_attempts": MAX_ATTEMPTS}}
    async with slow_world(combination, needed(request, combination), tmp_path, changes=settings) as world:
        world.staging.held = {f"{POISON}/payload"}
        await world.put(POISON, "payload")
        deaths = 0
        while (worker := await survivor(world, deaths)) is None:
            deaths += 1
            assert deaths <= MAX_ATTEMPTS + 1, "a restart loop"
        # The first receive is not noted: nearly all messages need no second one.
        assert deaths == MAX_ATTEMPTS + 1
        await world.put("test-afterwards", "one", "two")
        await world.announced(*(world.published.keys() - {POISON}))
        worker.terminate()
        assert await worker.ended() == 0, worker.tail()
        (letter,) = await world.dead_letters()
        (fate,) = [line for line in told(worker, "message failed") if line["fate"] == FATE]
        assert letter.id == fate["message"]
        assert json.loads(letter.body)["bundle"]["bid"] == POISON
        assert letter.attributes["dead_letter_reason"] == "crashed"
        log = json.loads(letter.attributes["dead_letter_attempts"])
        assert [attempt["error"] for attempt in log] == ["Crashed"] * MAX_ATTEMPTS + ["CrashedTooOften"]
        begun = [key.partition("/")[0] for key in world.staging.begun]
        assert all(begun.count(f"test-near-{death}") > 2 for death in range(2)), "they were in work at a kill"
        await world.nothing_lost(POISON, killed=True)


async def survivor(world: SlowWorld, deaths: int) -> Worker | None:
    """A worker that got rid of the poison; None when the poison killed it, after so many others."""
    worker = world.start()
    await until(
        lambda: world.staging.halfway.count(f"{POISON}/payload") > deaths or worker.says(FATE), seconds=30
    )
    if worker.says(FATE):
        return worker
    neighbour = f"test-near-{deaths}/one"
    world.staging.held.add(neighbour)
    await world.put(f"test-near-{deaths}", "one", "two")
    await until(lambda: neighbour in world.staging.halfway, seconds=30)
    worker.kill()
    world.staging.held.remove(neighbour)
    return None
