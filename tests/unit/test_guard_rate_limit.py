import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backends.base import CHUNK_SIZE, Promise, single
from backends.errors import Unsupported
from backends.guards.rate_limit import TURN, Bucket, RateLimitGuard, RateLimitOptions
from backends.testing.material import NOTHING, put, some_bytes
from tests.support.troubled import FakeTime, Troubled


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
async def store() -> Troubled:
    return await Troubled.empty()


def limited(store: Troubled, time: FakeTime, **options: float) -> RateLimitGuard:
    return RateLimitGuard(store, RateLimitOptions.model_validate(options), time.clock, time.sleep)


async def test_calls_take_turns_at_the_rate(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, requests=2.0, burst=1.0)
    began = time.now
    moments = []

    async def one() -> None:
        await guard.stat("k")
        moments.append(time.now - began)

    await time.run(asyncio.gather(*(one() for _ in range(7))))
    assert moments == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


async def test_every_call_is_a_request(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, requests=1.0, burst=0.0)
    await time.run(put(guard, "k", b"x"))
    began = time.now

    async def all_calls() -> None:
        async with guard.open("k") as chunks:
            assert [chunk async for chunk in chunks] == [b"x"]
        await guard.stat("k")
        assert [found.key async for found in guard.list()] == ["k"]
        with suppress(Unsupported):
            await guard.copy_from(guard, "k", "copy", NOTHING, Promise())
        await guard.delete("k")
        await guard.sweep(0.0)
        await guard.health()

    await time.run(all_calls())
    assert time.now - began == 7.0


async def test_bytes_in_and_out_share_the_rate(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, bytes=TURN, burst=0.0)
    data = some_bytes(4 * TURN + 1)
    began = time.now
    await time.run(put(guard, "k", data))
    assert time.now - began == pytest.approx(4.0)

    async def read() -> bytes:
        async with guard.open("k") as chunks:
            return b"".join([chunk async for chunk in chunks])

    assert await time.run(read()) == data
    assert time.now - began == pytest.approx(8.0, abs=0.01)


async def test_one_piece_of_any_size_passes_in_the_end(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, bytes=1000.0, burst=0.0)
    receipt = await time.run(put(guard, "k", some_bytes(3 * CHUNK_SIZE)))
    assert receipt.size == 3 * CHUNK_SIZE


async def test_a_small_object_does_not_wait_for_a_large_one(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, bytes=TURN, burst=0.0)
    large = asyncio.create_task(put(guard, "large", some_bytes(10 * TURN)))
    await asyncio.sleep(0)
    began = time.now
    await time.run(put(guard, "small", b"x"))
    assert time.now - began <= 2.0
    assert not large.done()
    await time.run(large)


async def test_a_cancelled_waiter_spends_nothing_and_holds_nobody_up(time: FakeTime) -> None:
    bucket = Bucket(1.0, 0.0, time.clock, time.sleep)
    await bucket.take(1)
    began = time.now
    waiting = [asyncio.create_task(bucket.take(1)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting[:4]:
        task.cancel()
    await time.run(asyncio.wait(waiting))
    assert [task.cancelled() for task in waiting] == [True] * 4 + [False]
    assert time.now - began == 1.0


async def test_what_the_source_raises_comes_out(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time, bytes=TURN)
    broke = FileNotFoundError("the source's")

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x"
        raise broke

    with pytest.raises(FileNotFoundError) as raised:
        await guard.write("k", breaking(), NOTHING)
    assert raised.value is broke


async def test_without_a_rate_nothing_waits(store: Troubled, time: FakeTime) -> None:
    guard = limited(store, time)
    began = time.now
    for number in range(20):
        await time.run(guard.write(f"k{number}", single(some_bytes(CHUNK_SIZE)), NOTHING))
    assert time.now == began


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"bytes": -1}, {"burst": -1}, {"rate": 1}])
def test_wrong_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RateLimitOptions.model_validate(wrong)


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from([1.0, 7.0, 64.0]),
    burst=st.sampled_from([0.0, 1.0, 3.0]),
    arrivals=st.lists(st.tuples(st.floats(0, 4), st.integers(1, 20)), min_size=1, max_size=25),
)
def test_the_rate_holds_in_every_window_and_nobody_overtakes(
    rate: float, burst: float, arrivals: list[tuple[float, int]]
) -> None:
    async def simulate() -> None:
        time = FakeTime()
        bucket = Bucket(rate, burst, time.clock, time.sleep)
        granted: list[tuple[float, int, int]] = []

        async def one(number: int, amount: int) -> None:
            await bucket.take(amount)
            granted.append((time.now, amount, number))

        async def arrive() -> None:
            async with asyncio.TaskGroup() as group:
                for number, (gap, amount) in enumerate(arrivals):
                    if gap:
                        await time.sleep(gap)
                    group.create_task(one(number, amount))

        await time.run(arrive())
        assert [number for _, _, number in granted] == list(range(len(arrivals)))
        for first, (start, _, _) in enumerate(granted):
            taken = 0.0
            for now, amount, _ in granted[first:]:
                # What was there before may have been in credit by the burst; the last one runs into debt.
                assert taken <= rate * (now - start + burst) + 1e-6
                taken += amount
        # Nobody waits longer than what was granted before takes at the rate.
        came = 1000.0
        owed = 1000.0
        for (gap, amount), (now, _, _) in zip(arrivals, granted, strict=True):
            came += gap
            assert now <= max(came, owed) + 1e-6
            owed = max(owed, now) + amount / rate

    asyncio.run(simulate())
