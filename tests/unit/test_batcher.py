"""Gathering calls: each gets its own answer, nobody waits for ever, nothing submitted is dropped."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from worker.batcher import Batcher


class Gate:
    """A flush that notes its batches and, while closed, waits. Negative items fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.opened = asyncio.Event()
        self.entered = asyncio.Event()
        self.under_way = 0
        self.most_under_way = 0

    async def flush(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.batches.append(list(items))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.entered.set()
        await self.opened.wait()
        self.under_way -= 1
        return [ValueError(item) if item < 0 else item * 10 for item in items]


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture(autouse=True)
async def _bounded() -> AsyncIterator[None]:
    """A caller whom nobody answers is what these tests look for: it fails its test instead of holding up the run."""
    loop = asyncio.get_running_loop()
    stuck = loop.call_later(10, lambda: [task.cancel("stuck") for task in asyncio.all_tasks(loop)])
    yield
    stuck.cancel()


def submitted(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher.submit(item)) for item in items]


async def test_calls_that_are_ready_together_share_a_batch(gate: Gate) -> None:
    gate.opened.set()
    batcher = Batcher(gate.flush, limit=10)
    assert await asyncio.gather(*submitted(batcher, *range(10))) == list(range(0, 100, 10))
    assert gate.batches == [list(range(10))]


async def test_a_lone_caller_may_call_again_and_again(gate: Gate) -> None:
    gate.opened.set()
    batcher = Batcher(gate.flush, limit=10)
    async with asyncio.timeout(5):
        for item in range(100):
            assert await batcher.submit(item) == item * 10
    assert gate.batches == [[item] for item in range(100)]


async def test_callers_that_call_again_at_once_are_all_answered(gate: Gate) -> None:
    gate.opened.set()
    batcher = Batcher(gate.flush, limit=3, parallel=2)

    async def again(first: int) -> list[int]:
        return [await batcher.submit(first + step) for step in range(20)]

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(again(first * 100) for first in range(7)))
    assert answers == [[(first * 100 + step) * 10 for step in range(20)] for first in range(7)]


async def test_while_one_batch_runs_the_next_gathers(gate: Gate) -> None:
    batcher = Batcher(gate.flush, limit=4)
    first = submitted(batcher, 1)
    await gate.entered.wait()
    rest = submitted(batcher, *range(2, 8))
    await asyncio.sleep(0)
    assert gate.batches == [[1]]
    gate.opened.set()
    await asyncio.gather(*first, *rest)
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]]
    assert gate.most_under_way == 1


async def test_as_many_flushes_at_once_as_allowed(gate: Gate) -> None:
    batcher = Batcher(gate.flush, limit=1, parallel=3)
    tasks = submitted(batcher, *range(6))
    for _ in range(20):
        await asyncio.sleep(0)
    assert gate.under_way == 3
    gate.opened.set()
    assert await asyncio.gather(*tasks) == list(range(0, 60, 10))
    assert gate.most_under_way == 3


async def test_lingering_fills_the_batch(gate: Gate) -> None:
    gate.opened.set()
    batcher = Batcher(gate.flush, limit=10, linger=0.05)
    early = submitted(batcher, 1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert gate.batches == []
    late = submitted(batcher, 2)
    await asyncio.gather(*early, *late)
    assert gate.batches == [[1, 2]]


async def test_one_bad_item_fails_alone(gate: Gate) -> None:
    gate.opened.set()
    batcher = Batcher(gate.flush, limit=10)
    outcomes = await asyncio.gather(*submitted(batcher, 1, -2, 3), return_exceptions=True)
    assert outcomes[0] == 10
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == 30
    assert gate.batches == [[1, -2, 3]]


async def test_what_the_flush_raises_reaches_every_caller_of_that_batch_only() -> None:
    calls = 0

    async def flush(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("disk")
        return items

    batcher = Batcher(flush, limit=2)
    outcomes = await asyncio.gather(*submitted(batcher, 1, 2, 3), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError, int]


async def test_a_cancelled_caller_leaves_its_item_and_its_neighbours(gate: Gate) -> None:
    batcher = Batcher(gate.flush, limit=10)
    one, other, third = submitted(batcher, 1, 2, -3)
    await gate.entered.wait()
    one.cancel()
    third.cancel()
    gate.opened.set()
    assert await other == 20
    assert one.cancelled()
    assert gate.batches == [[1, 2, -3]]


async def test_closing_waits_for_what_was_submitted_and_refuses_more(gate: Gate) -> None:
    batcher = Batcher(gate.flush, limit=1, name="commits")
    tasks = submitted(batcher, 1, 2, 3)
    await gate.entered.wait()
    closing = asyncio.create_task(batcher.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    with pytest.raises(RuntimeError, match="commits is closed"):
        await batcher.submit(4)
    gate.opened.set()
    await closing
    assert [task.result() for task in tasks] == [10, 20, 30]
    await batcher.aclose()


async def test_closing_an_idle_one_returns(gate: Gate) -> None:
    batcher = Batcher(gate.flush, limit=1)
    await batcher.aclose()
    await batcher.aclose()
    assert gate.batches == []
