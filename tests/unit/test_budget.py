import asyncio
import random
from contextlib import AsyncExitStack, suppress

import pytest

from backends.base import CHUNK_SIZE
from worker.budget import Budget

SIZE = 16 * CHUNK_SIZE
LARGE_LANE = 14 * CHUNK_SIZE
SMALL_LANE = 2 * CHUNK_SIZE


class Holder:
    """A task that holds `cost` until it is told to let go."""

    def __init__(self, budget: Budget, cost: int) -> None:
        self.holds = False
        self._enough = asyncio.Event()
        self.task = asyncio.create_task(self._run(budget, cost))

    async def _run(self, budget: Budget, cost: int) -> None:
        async with budget.hold(cost):
            self.holds = True
            await self._enough.wait()

    async def let_go(self) -> None:
        self._enough.set()
        await self.task


async def settled() -> None:
    """Until every task has gone as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def holding(*holders: Holder) -> list[bool]:
    await settled()
    return [holder.holds for holder in holders]


@pytest.fixture
def budget() -> Budget:
    return Budget(SIZE)


async def test_what_fits_goes_on_at_once_and_is_given_back(budget: Budget) -> None:
    async with budget.hold(LARGE_LANE), budget.hold(SMALL_LANE // 2), budget.hold(0):
        assert budget.held == LARGE_LANE + SMALL_LANE // 2
    assert budget.held == 0


async def test_what_does_not_fit_waits(budget: Budget) -> None:
    first, second = Holder(budget, LARGE_LANE - CHUNK_SIZE), Holder(budget, 2 * CHUNK_SIZE)
    assert await holding(first, second) == [True, False]
    await first.let_go()
    assert await holding(second) == [True]
    await second.let_go()
    assert budget.held == 0


async def test_a_cost_beyond_everything_is_cut_and_goes_alone(budget: Budget) -> None:
    huge, large = Holder(budget, 100 * SIZE), Holder(budget, 2 * CHUNK_SIZE)
    assert await holding(huge, large) == [True, False]
    assert budget.held == LARGE_LANE
    await huge.let_go()
    assert await holding(large) == [True]
    await large.let_go()


async def test_an_error_inside_gives_back(budget: Budget) -> None:
    async def fail() -> None:
        async with budget.hold(CHUNK_SIZE):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it is ours, whatever it says
        await fail()
    assert budget.held == 0


async def test_case_36_small_ones_pass_large_ones_that_wait(budget: Budget) -> None:
    slow, waiting = Holder(budget, SIZE), Holder(budget, SIZE)
    assert await holding(slow, waiting) == [True, False]
    for _ in range(100):
        async with asyncio.timeout(5), budget.hold(CHUNK_SIZE):
            pass
    assert await holding(waiting) == [False]
    await slow.let_go()
    await waiting.let_go()


async def test_case_36_a_stream_of_small_ones_starves_no_large_one(budget: Budget) -> None:
    smalls = [Holder(budget, CHUNK_SIZE) for _ in range(20)]
    large = Holder(budget, SIZE)
    assert await holding(large) == [True]
    assert sum(await holding(*smalls)) == SMALL_LANE // CHUNK_SIZE
    assert budget.held == SIZE, "full, and no more"
    for small in smalls:
        await small.let_go()
    await large.let_go()
    assert budget.held == 0


async def test_large_ones_go_in_the_order_they_came(budget: Budget) -> None:
    """A smaller one that would fit does not pass the largest: it would never find its moment."""
    first, largest, smaller = (Holder(budget, n * CHUNK_SIZE) for n in (4, 14, 2))
    assert await holding(first, largest, smaller) == [True, False, False]
    await first.let_go()
    assert await holding(largest, smaller) == [True, False]
    await largest.let_go()
    assert await holding(smaller) == [True]
    await smaller.let_go()


async def test_one_who_gives_up_lets_those_behind_go_on(budget: Budget) -> None:
    first, largest, smaller = (Holder(budget, n * CHUNK_SIZE) for n in (4, 14, 2))
    await settled()
    largest.task.cancel()
    assert await holding(first, largest, smaller) == [True, False, True]
    await first.let_go()
    await smaller.let_go()
    assert budget.held == 0


async def test_a_turn_that_comes_together_with_a_cancellation_is_not_lost(budget: Budget) -> None:
    first, second, third = (Holder(budget, SIZE) for _ in range(3))
    await settled()
    first._enough.set()
    await asyncio.sleep(0)
    assert budget.held == LARGE_LANE, "handed over to the second, which has not run yet"
    assert not second.holds
    second.task.cancel()
    assert await holding(second, third) == [False, True]
    await third.let_go()
    assert budget.held == 0


async def test_a_turn_is_not_given_to_one_who_was_just_cancelled(budget: Budget) -> None:
    first, second, third = (Holder(budget, SIZE) for _ in range(3))
    await settled()
    second.task.cancel()
    first._enough.set()
    assert await holding(second, third) == [False, True]
    await third.let_go()
    assert budget.held == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_it_is_never_exceeded_and_all_comes_back(seed: int) -> None:
    chance = random.Random(seed)
    budget = Budget(SIZE)
    finished = 0

    async def transfer(cost: int, turns: int) -> None:
        nonlocal finished
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(budget.hold(cost))
            assert 0 <= budget.held <= SIZE
            for _ in range(turns):
                await asyncio.sleep(0)
        finished += 1

    tasks = []
    for _ in range(200):
        cost = chance.choice([100, CHUNK_SIZE, 3 * CHUNK_SIZE, 9 * CHUNK_SIZE, 2 * SIZE])
        tasks.append(asyncio.create_task(transfer(cost, chance.randrange(4))))
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
    cancelled = 0
    async with asyncio.timeout(10):
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
            cancelled += task.cancelled()
    assert cancelled + finished == 200
    assert budget.held == 0
