"""What is taken from the queue while circuit breakers stand open."""

from collections.abc import AsyncIterator

import pytest

from backends.base import Attributes, Receipt, StorageBackend
from backends.errors import Unavailable
from backends.guards.breaker import BreakerGuard, BreakerOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from worker.circuits import Circuits

THRESHOLD, COOLDOWN = 2, 30.0


class Down(Wrapper):
    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - it never gets to them
        raise Unavailable("down")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def nothing() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


async def guard(clock: Clock, backend: type[Wrapper] = Down) -> BreakerGuard:
    inner: StorageBackend = backend(await MemoryBackend.connect(MemoryOptions()))
    return BreakerGuard(inner, BreakerOptions(threshold=THRESHOLD, cooldown=COOLDOWN), clock=clock)


async def opened(clock: Clock) -> BreakerGuard:
    made = await guard(clock)
    for _ in range(THRESHOLD):
        with pytest.raises(Unavailable):
            await made.write("k", nothing(), Attributes())
    return made


async def test_without_breakers_everything_is_taken() -> None:
    assert Circuits([]).admit(7) == (7, 0.0)
    assert Circuits([[], []]).admit(7) == (7, 0.0)


async def test_nothing_is_taken_while_the_only_route_waits() -> None:
    clock = Clock()
    circuits = Circuits([[await opened(clock)]])
    assert circuits.admit(7) == (0, COOLDOWN)
    clock.now = 20.0
    assert circuits.admit(7) == (0, COOLDOWN - 20.0)


async def test_after_the_cooldown_one_message_is_the_probe() -> None:
    clock = Clock()
    circuits = Circuits([[await opened(clock)]])
    clock.now = COOLDOWN
    assert circuits.admit(7) == (1, 0.0)


async def test_a_free_route_keeps_the_intake_open() -> None:
    clock = Clock()
    down, up = await opened(clock), await guard(clock, Wrapper)
    assert Circuits([[down], [up]]).admit(7) == (7, 0.0)
    assert Circuits([[down], []]).admit(7) == (7, 0.0)


async def test_a_route_waits_for_the_last_of_its_targets_and_the_intake_for_the_first_route() -> None:
    clock = Clock()
    early = await opened(clock)
    clock.now = 10.0
    late = await opened(clock)
    assert Circuits([[early, late]]).admit(7) == (0, COOLDOWN)
    assert Circuits([[early, late], [early]]).admit(7) == (0, COOLDOWN - 10.0)
