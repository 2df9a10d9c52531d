"""Who gets how much of what there is too little of."""

import asyncio
import gzip
import io
import random
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.base import CHUNK_SIZE, single
from handlers.transforms.base import Limits, Meter, Part, Transform, Work, transformed
from handlers.transforms.compress import Compress, CompressOptions
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.unzip import Unzip
from worker.budget import Budget
from worker.shares import Ask, Owner, Shares

LOUD, QUIET, OTHER = Owner("all", "loud"), Owner("all", "quiet"), Owner("all", "other")


def has(*asks: Ask) -> list[bool]:
    return [ask.has for ask in asks]


@pytest.mark.parametrize(
    ("size", "most"), [(1, 1), (2, 2), (3, 2), (4, 3), (8, 7), (16, 14), (64, 56), (1024, 896)]
)
async def test_case_107_one_alone_leaves_an_eighth(size: int, most: int) -> None:
    shares = Shares(size)
    assert sum(has(*(shares.ask(LOUD, 1) for _ in range(2 * size)))) == most
    assert shares.held == most


async def test_case_107_who_comes_later_has_a_place_at_once() -> None:
    shares = Shares(64)
    for _ in range(200):
        shares.ask(LOUD, 1)
    quiet = [shares.ask(QUIET, 1) for _ in range(10)]
    assert 0 < sum(has(*quiet)) < 8, "and leaves room for a third"
    assert has(shares.ask(OTHER, 1)) == [True]


async def test_case_107_two_floods_come_to_have_the_same() -> None:
    shares = Shares(16)
    loud = [shares.ask(LOUD, 1) for _ in range(60)]
    quiet = [shares.ask(QUIET, 1) for _ in range(60)]
    for _ in range(20):
        shares.give_back(next(ask for ask in loud if ask.has))
    assert abs(sum(has(*loud)) - sum(has(*quiet))) <= 1


async def test_who_gives_up_behind_one_who_stays_leaves_nothing_behind() -> None:
    """A flood that stands still is put off again and again, but for its oldest."""
    shares = Shares(1)
    held, oldest = shares.ask(LOUD, 1, 0.0), shares.ask(LOUD, 1, 1.0)
    for rank in range(2, 1000):
        shares.give_back(shares.ask(LOUD, 1, rank))
    assert oldest.queue == (1, 1)
    assert len(oldest.account.waiting) == 1
    shares.give_back(held)
    assert has(oldest) == [True]


async def test_of_one_place_owners_have_it_in_turns() -> None:
    shares = Shares(1)
    order: list[str] = []
    first = shares.ask(LOUD, 1)
    asks = [(owner.recipe, shares.ask(owner, 1)) for owner in (LOUD, LOUD, QUIET, QUIET, OTHER)]
    shares.give_back(first)
    while asks:
        (turn,) = (turn for turn in asks if turn[1].has)
        asks.remove(turn)
        order.append(turn[0])
        shares.give_back(turn[1])
    assert order[:3].count("loud") <= 1
    assert sorted(order) == sorted(["loud", "loud", "quiet", "quiet", "other"])
    assert order.index("other") < 3


async def test_of_one_owner_the_least_rank_is_first() -> None:
    shares = Shares(1)
    held = shares.ask(LOUD, 1)
    young, old = shares.ask(LOUD, 1, rank=2.0), shares.ask(LOUD, 1, rank=1.0)
    shares.give_back(held)
    assert has(young, old) == [False, True]


async def test_a_large_wish_is_not_passed_by_those_of_others_for_ever() -> None:
    shares = Shares(10)
    small = [shares.ask(Owner("all", str(number)), 1) for number in range(5)]
    large, later = shares.ask(QUIET, 8), shares.ask(OTHER, 1)
    assert has(large, later) == [False, False]
    for ask in small:
        shares.give_back(ask)
    assert has(large, later) == [True, True]


async def test_case_107_bytes_leave_room_for_another_of_the_same_size() -> None:
    """Three fit; the third waits, and the next owner's does not."""
    shares = Shares(168)
    loud = [shares.ask(LOUD, 48) for _ in range(3)]
    assert has(*loud) == [True, True, False]
    assert has(shares.ask(QUIET, 48)) == [True]


@pytest.mark.parametrize("fair", [True, False])
async def test_a_route_has_no_more_than_its_limit(fair: bool) -> None:
    shares = Shares(16, {"narrow": 2}, fair=fair)
    narrow = [shares.ask(Owner("narrow", str(number)), 1) for number in range(5)]
    assert has(*narrow) == [True, True, False, False, False]
    assert has(shares.ask(LOUD, 1)) == [True], "those that may not are passed"
    shares.give_back(narrow[0])
    assert has(*narrow) == [False, True, True, False, False]


async def test_what_is_beyond_its_routes_limit_goes_alone() -> None:
    shares = Shares(16, {"narrow": 2})
    first, second = shares.ask(Owner("narrow", "a"), 5), shares.ask(Owner("narrow", "b"), 5)
    assert has(first, second) == [True, False]
    shares.give_back(first)
    assert has(second) == [True]


async def test_unfair_is_first_come_first_served() -> None:
    shares = Shares(4, fair=False)
    loud = [shares.ask(LOUD, 1) for _ in range(5)]
    quiet = shares.ask(QUIET, 1)
    shares.give_back(loud[0])
    assert has(*loud, quiet) == [False, True, True, True, True, False]


async def test_closed_it_grants_nothing_more() -> None:
    shares = Shares(1)
    held, waiting = shares.ask(LOUD, 1), shares.ask(QUIET, 1)
    shares.close()
    late = shares.ask(OTHER, 1)
    await asyncio.wait([waiting.granted, late.granted], timeout=5)
    assert waiting.granted.done()
    assert late.granted.done()
    for ask in (held, waiting, late):
        shares.give_back(ask)
    assert has(waiting, late) == [False, False]
    assert (shares.held, len(shares)) == (0, 0)


async def test_case_101_of_owners_that_are_gone_nothing_is_kept() -> None:
    shares = Shares(4)
    for number in range(10_000):
        asks = [shares.ask(Owner("all", f"{number}.{more}"), 1) for more in range(6)]
        for ask in asks:
            shares.give_back(ask)
    assert (shares.held, len(shares), len(shares._first), len(shares._more)) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_happens_nothing_is_lost_and_nobody_is_forgotten(seed: int) -> None:
    chance = random.Random(seed)
    limits: Mapping[str, int] = {"narrow": 5}
    shares = Shares(20, limits)
    narrow = finished = 0

    async def work(owner: Owner, cost: int) -> None:
        nonlocal narrow, finished
        async with shares.hold(owner, cost):
            assert 0 < shares.held <= 20
            narrow += cost * (owner.route == "narrow")
            assert narrow <= 5
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                narrow -= cost * (owner.route == "narrow")
        finished += 1

    tasks = []
    for _ in range(300):
        owner = Owner(chance.choice(["narrow", "wide"]), chance.choice("abcd"))
        cost = chance.randint(1, 5 if owner.route == "narrow" else 20)
        tasks.append(asyncio.create_task(work(owner, cost)))
        if chance.random() < 0.3:
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert cancelled + finished == 300
    assert (shares.held, len(shares)) == (0, 0)


async def test_case_107_a_routes_memory_is_divided_as_the_whole_is() -> None:
    budget = Budget(32 * CHUNK_SIZE, {"narrow": 16 * CHUNK_SIZE})
    entered: list[str] = []

    async def hold(recipe: str, cost: int) -> None:
        async with budget.hold(cost, Owner("narrow", recipe)):
            entered.append(recipe)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert budget.held <= 16 * CHUNK_SIZE

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(hold(f"large-{number}", 4 * CHUNK_SIZE))
            group.create_task(hold(f"small-{number}", CHUNK_SIZE))
    assert len(entered) == 20
    assert budget.held == 0


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("entry", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("step", "payload"),
    [
        (Gunzip(), gzip.compress(random.Random(1).randbytes(CHUNK_SIZE), 1)),
        (Compress(CompressOptions()), random.Random(1).randbytes(CHUNK_SIZE)),
        (Unzip(), zipped(random.Random(1).randbytes(CHUNK_SIZE))),
    ],
    ids=["gunzip", "compress", "unzip"],
)
async def test_case_107_whoever_computes_waits_for_a_thread_of_its_share(
    tmp_path: Path, step: Transform, payload: bytes
) -> None:
    threads, turns = Shares(1), 0
    before = threads.ask(QUIET, 1)

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        nonlocal turns
        async with threads.hold(LOUD, 1):
            turns += 1
            yield

    async def work() -> int:
        part = Part(single(payload), label="name")
        size = 0
        async for made in transformed([step], part, Work(Meter(Limits()), tmp_path, turn=turn)):
            async for chunk in made.chunks:
                size += len(chunk)
        return size

    working = asyncio.create_task(work())
    done, _ = await asyncio.wait([working], timeout=0.2)
    assert (done, turns) == (set(), 0)
    threads.give_back(before)
    assert await working >= CHUNK_SIZE
    assert turns > 0
    assert threads.held == 0
