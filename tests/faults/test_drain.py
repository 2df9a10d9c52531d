"""Cases 14 and 15: SIGTERM to whole workers, parked, at work, past the deadline; once, twice, and to a pool in turn."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.slow_worlds import Changes, SlowWorld, needed, slow_world, told, until
from tests.faults.worlds import Combination
from tests.support.workers import Worker

QUEUES = pytest.mark.parametrize("queue", ["embedded", "sqs", "rabbitmq"])
ENDLESS = {"lease": 600}
"""A lease that no test waits for: what comes back before was given back."""
POLL = 20.0
"""Seconds of a worker's long poll."""


@QUEUES
async def test_case_14_a_parked_poll_ends_with_sigterm(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str
) -> None:
    combination = Combination(queue)
    # RabbitMQ parks a receive for one lease at most; a poll that SQS lost sight of may take one more message along.
    lease = {"lease": 2 if queue == "sqs" else 600}
    async with slow_world(
        combination, needed(request, combination), tmp_path, changes={"queue": lease}
    ) as world:
        parked = world.start()
        await world.put("test-before", "one")
        # Whoever has worked on the first message is asking for the second.
        await world.announced()
        await world.settled()
        began = time.monotonic()
        parked.terminate()
        assert await parked.ended() == 0, parked.tail()
        assert time.monotonic() - began < POLL / 2
        assert told(parked, "draining") == [], "nothing was in work"
        await world.put("test-after", "two")
        other = world.start()
        await world.announced()
        other.terminate()
        assert await other.ended() == 0, other.tail()
        await world.nothing_lost()


@QUEUES
async def test_case_14_work_that_ends_in_time_is_done_and_announced(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str
) -> None:
    combination = Combination(queue)
    async with slow_world(
        combination, needed(request, combination), tmp_path, changes={"queue": ENDLESS}
    ) as world:
        world.staging.held = {"test-bundle/slow"}
        await world.put("test-bundle", "slow")
        worker = await working(world)
        worker.terminate()
        await until(lambda: worker.says("draining"))
        world.staging.released.set()
        assert await worker.ended() == 0, worker.tail()
        assert [line["bid"] for line in told(worker, "bundle published")] == ["test-bundle"]
        assert world.staging.begun == ["test-bundle/slow"]
        await world.nothing_lost()


@pytest.mark.parametrize(("queue", "times"), [("embedded", 7), ("sqs", 2), ("rabbitmq", 2)])
async def test_case_14_work_past_the_deadline_is_given_back_uncounted(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str, times: int
) -> None:
    combination = Combination(queue)
    # One at a time: of a poll that was cancelled LocalStack lets the server's half go on, and it would take the message.
    worker_settings = {"concurrency": 1, "look_ahead": 0, "max_attempts": 2, "drain_timeout": 0.05}
    settings: Changes = {"queue": ENDLESS, "worker": worker_settings}
    async with slow_world(combination, needed(request, combination), tmp_path, changes=settings) as world:
        world.staging.held = {"test-bundle/slow"}
        await world.put("test-bundle", "slow")
        for number in range(1, times + 1):
            worker = await working(world, number)
            worker.terminate()
            assert await worker.ended() == 0, worker.tail()
            assert [line["messages"] for line in told(worker, "given back")] == [1]
            assert await world.rows("SELECT * FROM attempts") == []
        assert await world.dead_letters() == []
        world.staging.released.set()
        last = world.start()
        await world.announced()
        last.terminate()
        assert await last.ended() == 0, last.tail()
        assert await world.rows("SELECT * FROM attempts") == []
        await world.nothing_lost()


@QUEUES
@pytest.mark.parametrize("end", ["the second SIGTERM", "SIGKILL"])
async def test_case_15_a_drain_cut_short_loses_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str, end: str
) -> None:
    combination = Combination(queue)
    # A broker sees at once that the connection is gone; the others wait for the lease.
    settings: Changes = {
        "queue": {"lease": 600 if queue == "rabbitmq" else 2},
        "worker": {"drain_timeout": 600.0},
    }
    async with slow_world(combination, needed(request, combination), tmp_path, changes=settings) as world:
        world.staging.held = {"test-bundle/slow"}
        await world.put("test-bundle", "slow", "quick")
        worker = await working(world)
        worker.terminate()
        await until(lambda: worker.says("draining"))
        if end == "SIGKILL":
            worker.kill()
        else:
            worker.terminate()
            assert await worker.ended() == 128 + 15, worker.tail()
        assert told(worker, "given back") == []
        other = await working(world, 2)
        world.staging.released.set()
        await world.announced()
        other.terminate()
        assert await other.ended() == 0, other.tail()
        await world.nothing_lost()


async def working(world: SlowWorld, times: int = 1) -> Worker:
    """A new worker, in the middle of the payload that is held for the so-many-th time."""
    worker = world.start()
    await until(lambda: len([key for key in world.staging.halfway if key.endswith("/slow")]) == times)
    return worker


POOL = pytest.mark.parametrize("combination", [Combination(), Combination("rabbitmq", "postgresql")], ids=str)


@POOL
async def test_case_14_a_pool_whose_workers_leave_in_turn_loses_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, combination: Combination
) -> None:
    await leave_in_turn(request, tmp_path, combination, every=1.0, times=5)


@pytest.mark.slow
@POOL
async def test_case_14_a_pool_whose_workers_leave_every_five_seconds_loses_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, combination: Combination
) -> None:
    await leave_in_turn(request, tmp_path, combination, every=5.0, times=8)


async def leave_in_turn(
    request: pytest.FixtureRequest, folder: Path, combination: Combination, *, every: float, times: int
) -> None:
    """Three workers under load; one of them is told to leave every so often, and another one takes its place.

    Slow payloads end together: by turns before the deadline of the worker that leaves, and after it.
    """
    settings: Changes = {
        "queue": ENDLESS,
        "worker": {"drain_timeout": 0.5, "concurrency": 16, "max_attempts": 2},
    }
    async with slow_world(combination, needed(request, combination), folder, changes=settings) as world:
        over = asyncio.Event()
        load = asyncio.create_task(produce(world, over))
        pool = [world.start() for _ in range(3)]
        for turn in range(times):
            leaving = pool.pop(0)
            await until(lambda: leaving.says("bundle complete"))  # noqa: B023 - it ends within the turn
            await asyncio.sleep(every)
            leaving.terminate()
            pool.append(world.start())
            if turn % 2:
                await leaving.ended()
            world.staging.released.set()
            world.staging.released.clear()
        over.set()
        await load
        world.staging.released.set()
        await world.announced()
        # What was recorded as its worker's time ran out comes once more, and is known.
        await world.settled()
        for worker in pool:
            await until(lambda: worker.drains)  # noqa: B023 - as above
            worker.terminate()
        for worker in world.pool.started:
            assert await worker.ended() == 0, worker.tail()
        late = sum(line["messages"] for worker in world.pool.started for line in told(worker, "given back"))
        again = sum(times - 1 for times in Counter(world.staging.begun).values())
        print(f"{combination}: {len(world.published)} bundles, {late} past the deadline, {again} read again")
        assert late, "some were past the deadline"
        assert again <= late, "no transfer was done again but those"
        assert await world.rows("SELECT * FROM attempts") == []
        # On a machine that is busy with other things the last words of one may take longer than it has for them; it says so.
        cut = any(told(worker, "completions left for the next worker") for worker in world.pool.started)
        await world.nothing_lost(killed=cut)


async def produce(world: SlowWorld, over: asyncio.Event) -> None:
    """Bundles of one to four resources, one in three of them slow, until told to stop."""
    draw = random.Random(14)
    number = 0
    while not over.is_set():
        bid = f"test-{number}"
        if number % 3 == 0:
            world.staging.held.add(f"{bid}/0")
        await world.put(bid, *map(str, range(draw.randint(1, 4))))
        number += 1
        await asyncio.sleep(0.05)
