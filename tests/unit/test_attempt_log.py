"""A message is counted against for what it did itself; one that kills its process is given up, its neighbours are not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from worker.attempt_log import AttemptLog
from worker.attempts import CRASHED, Attempt
from worker.delivery import Delivery, LeaseKeeper, LeaseLost
from worker.disposition import CrashedTooOften
from worker.ledger.base import LedgerRefused, LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.metrics import Metrics
from worker.queues.base import Message, WaitedTooLong
from worker.queues.memory import MemoryOptions, MemoryQueue

MAX_CRASHES = 3


class Ledger(SqlLedger):
    """`down`: nobody can be told how a try ended. `gate` holds back what a beginning returns."""

    down = False
    refuses = False
    gate: asyncio.Event | None = None

    async def begin(self, queue: str, message_id: str) -> int:
        number = await super().begin(queue, message_id)
        if self.gate is not None:
            await self.gate.wait()
        return number

    async def failed(self, queue: str, message_id: str, number: int | None, attempt: Attempt) -> None:
        if self.refuses:
            raise LedgerRefused("no such text")
        if self.down:
            raise LedgerUnavailable("down")
        await super().failed(queue, message_id, number, attempt)

    async def withdraw(self, queue: str, message_id: str, number: int) -> None:
        if self.down:
            raise LedgerUnavailable("down")
        await super().withdraw(queue, message_id, number)


class World:
    def __init__(self, ledger: Ledger, queue: MemoryQueue) -> None:
        self.ledger = ledger
        self.keeper = LeaseKeeper(queue, Metrics())
        self.silences: list[str] = []
        self.log = AttemptLog(ledger, "q", MAX_CRASHES, self.silences.append)

    async def received(self, times: int, name: str = "m") -> Delivery:
        message = Message(id=name, body=b"", handle=f"{name}.{times}", receive_count=times)
        (delivery,) = await self.keeper.hold([message])
        return delivery

    async def crash(self, name: str = "m") -> None:
        """A try of a process that dies in it: it begins, and nothing more is heard of it."""
        await self.ledger.begin("q", name)

    async def errors(self, name: str = "m") -> list[str]:
        return [attempt.error for attempt in await self.ledger.attempts("q", name)]

    def trying(self, delivery: Delivery, earlier: Any) -> Any:
        return self.log.trying(delivery, earlier)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = Ledger(database)
    queue = await MemoryQueue.connect(MemoryOptions())
    yield World(ledger, queue)
    await queue.aclose()
    await ledger.aclose()


async def attempt(world: World, delivery: Delivery, ends_with: BaseException | None = None) -> None:
    async with world.log.trying(delivery, await world.log.earlier(delivery.message)):
        if ends_with is not None:
            raise ends_with


async def test_the_first_try_costs_the_ledger_nothing(world: World) -> None:
    world.ledger.down = True
    await attempt(world, await world.received(1))
    assert await world.errors() == []


async def test_what_succeeds_leaves_no_note(world: World) -> None:
    for times in range(2, 12):
        await attempt(world, await world.received(times))
    assert await world.errors() == []


async def test_a_failure_is_noted_whether_its_beginning_was_or_not(world: World) -> None:
    for times, error in ((1, ValueError("first")), (2, KeyError("second"))):
        with pytest.raises(type(error)):
            await attempt(world, await world.received(times), error)
    assert await world.errors() == ["ValueError", "KeyError"]


async def test_case_18_tries_that_never_end_are_crashes_and_are_bounded(world: World) -> None:
    for _ in range(MAX_CRASHES):
        await world.crash()
    assert await world.errors() == [CRASHED] * MAX_CRASHES
    with pytest.raises(CrashedTooOften, match="3 tries"):
        await attempt(world, await world.received(9))
    assert len(await world.errors()) == MAX_CRASHES, "another try did not begin"


async def test_case_18_suspects_are_tried_one_at_a_time(world: World) -> None:
    """So only the one that kills the process goes on being counted."""
    for name in ("poison", "neighbour"):
        for _ in range(2):
            await world.crash(name)
    poison, neighbour = await world.received(4, "poison"), await world.received(4, "neighbour")
    async with world.log.trying(poison, await world.log.earlier(poison.message)):
        waiting = asyncio.create_task(attempt(world, neighbour))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await world.errors("neighbour") == [CRASHED] * 2, "waiting is no try"
        assert await world.errors("poison") == [CRASHED] * 3
    async with asyncio.timeout(5):
        await waiting


async def test_case_22_a_suspect_whose_turn_never_comes_is_not_counted_against(world: World) -> None:
    for name in ("first", "second"):
        for _ in range(2):
            await world.crash(name)
    first, second = await world.received(4, "first"), await world.received(4, "second")
    async with world.log.trying(first, await world.log.earlier(first.message)):
        waiting = asyncio.create_task(attempt(world, second))
        await asyncio.sleep(0.05)
        second.hand_over(60.0)
        with pytest.raises(WaitedTooLong):
            await asyncio.wait_for(waiting, 5)
    assert await world.errors("second") == [CRASHED] * 2
    async with asyncio.timeout(5):
        await attempt(world, await world.received(5, "second"))


async def test_one_crash_makes_no_suspect(world: World) -> None:
    for name in ("a", "b"):
        await world.crash(name)
    first, second = await world.received(3, "a"), await world.received(3, "b")
    async with (
        asyncio.timeout(5),
        world.log.trying(first, await world.log.earlier(first.message)),
        world.log.trying(second, await world.log.earlier(second.message)),
    ):
        pass


@pytest.mark.parametrize("end", [asyncio.CancelledError(), LeaseLost("gone")])
async def test_case_14_what_a_drain_or_a_lost_lease_gives_back_is_not_counted(
    world: World, end: BaseException
) -> None:
    with pytest.raises(type(end)):
        await attempt(world, await world.received(2), end)
    assert await world.errors() == []


async def test_case_14_a_drain_while_a_try_begins_is_no_crash(world: World) -> None:
    world.ledger.gate = asyncio.Event()
    beginning = asyncio.create_task(attempt(world, await world.received(2)))
    async with asyncio.timeout(5):
        while not await world.errors():  # noqa: ASYNC110 - the commit has no event
            await asyncio.sleep(0.001)
    beginning.cancel()
    await asyncio.sleep(0)
    world.ledger.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert await world.errors() == []


@pytest.mark.parametrize("end", [asyncio.CancelledError(), ValueError("why")])
async def test_case_41_an_outage_of_the_ledger_is_no_crash(world: World, end: BaseException) -> None:
    delivery = await world.received(2)
    world.ledger.down = True
    with pytest.raises(type(end)):
        await attempt(world, delivery, end)
    assert await world.errors() == [CRASHED]
    assert world.silences == ["down"], "the intake is to pause"
    with pytest.raises(LedgerUnavailable):
        await world.log.pay_owed()
    world.ledger.down = False
    await world.log.pay_owed()
    assert await world.errors() == []
    await world.log.pay_owed()


async def test_a_note_that_is_refused_pauses_nobody(world: World) -> None:
    world.ledger.refuses = True
    with pytest.raises(ValueError, match="why"):
        await attempt(world, await world.received(2), ValueError("why"))
    assert world.silences == []
