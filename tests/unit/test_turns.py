"""Received messages that wait for their turn: leases, cancellation, and who is put off. Real leases on a queue in memory."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from worker import intake as intake_module
from worker import turns as turns_module
from worker.delivery import Delivery, LeaseKeeper, LeaseLost
from worker.health import Health
from worker.intake import Intake
from worker.metrics import Metrics
from worker.queues.base import Message, OutgoingMessage
from worker.queues.memory import MemoryOptions, MemoryQueue
from worker.shares import Owner, Shares
from worker.turns import PutOff, Turns

NOW = 1_000_000.0


@dataclass(slots=True)
class World:
    queue: MemoryQueue
    keeper: LeaseKeeper
    turns: Turns
    slots: Shares
    ready: asyncio.Event
    metrics: Metrics
    tasks: list[asyncio.Task[str]] = field(default_factory=list)
    leave: asyncio.Event = field(default_factory=asyncio.Event)

    async def received(self, *bodies: bytes) -> Sequence[Delivery]:
        await self.queue.send([OutgoingMessage(body) for body in bodies])
        return await self.keeper.hold(await self.queue.receive(len(bodies), 1.0))

    async def work(self, delivery: Delivery) -> str:
        async with self.turns.turn(delivery):
            await self.leave.wait()
        return "done"

    async def start(self, *bodies: bytes) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.work(each)) for each in await self.received(*bodies)]
        self.tasks += tasks
        await asyncio.sleep(0)
        return tasks

    def waiting(self) -> float:
        return self.metrics.registry.get_sample_value("transload_messages_waiting", {"route": "all"}) or 0.0


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One place; with the parameter False nothing is put off."""
    queue = await MemoryQueue.connect(MemoryOptions())
    metrics, slots, ready = Metrics(), Shares(1), asyncio.Event()
    ready.set()

    async def passed() -> None:
        await ready.wait()

    turns = Turns(
        slots,
        lambda body: Owner("all", body[:1].decode()),
        put_off=getattr(request, "param", True),
        ready=passed,
        random=lambda: 1.0,
        metrics=metrics,
        clock=lambda: NOW,
    )
    world = World(queue, LeaseKeeper(queue, metrics), turns, slots, ready, metrics)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    assert (slots.held, len(slots)) == (0, 0)
    await queue.aclose()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.01)
    monkeypatch.setattr(turns_module, "_LONGEST_PATIENCE", 0.01)


async def test_it_waits_for_its_turn_and_has_it(world: World) -> None:
    first, second = await world.start(b"a1", b"b1")
    assert (world.turns.in_work, world.waiting()) == (1, 1.0)
    world.leave.set()
    assert {await first, await second} == {"done"}
    assert (world.turns.in_work, world.waiting()) == (0, 0.0)


async def test_case_23_a_lost_lease_ends_the_waiting_and_nobody_elses(world: World) -> None:
    await world.start(b"a1")
    (lost,) = await world.received(b"b1")
    waiting = asyncio.create_task(world.work(lost))
    (other,) = await world.start(b"c1")
    lost.lose()
    with pytest.raises(LeaseLost):
        await waiting
    world.leave.set()
    assert await other == "done"


async def test_a_cancelled_one_leaves_its_place_in_the_line(world: World) -> None:
    first, second, third = await world.start(b"a1", b"b1", b"c1")
    second.cancel()
    world.leave.set()
    assert {await first, await third} == {"done"}
    assert second.cancelled()


async def test_cancelled_as_its_turn_comes_it_gives_it_on(world: World) -> None:
    first, second, third = await world.start(b"a1", b"b1", b"c1")
    world.leave.set()
    await asyncio.wait([first])
    second.cancel()
    assert await third == "done"


@pytest.mark.usefixtures("hasty")
async def test_case_107_what_waits_for_long_is_put_off(world: World) -> None:
    first, second = await world.start(b"a1", b"a2")
    with pytest.raises(PutOff):
        await second
    assert not first.done()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("world", [False], indirect=True)
async def test_where_nothing_is_looked_for_nothing_is_put_off(world: World) -> None:
    _, second = await world.start(b"a1", b"a2")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(second), 0.1)


@pytest.mark.usefixtures("hasty")
async def test_what_its_turn_is_near_for_is_not_put_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner's messages have a turn now and then, and it is the last that waits."""
    monkeypatch.setattr(turns_module, "_SOON", 1e9)
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.1)
    first, second = await world.start(b"a1", b"a2")
    order: list[str] = []

    async def busy() -> None:
        for _ in range(40):
            ask = world.slots.ask(Owner("all", "a"), 1, rank=-1.0)
            await ask.granted
            await asyncio.sleep(0.01)
            world.slots.give_back(ask)
        order.append("busy")

    others = asyncio.create_task(busy())
    world.leave.set()
    assert await first == "done"
    assert await second == "done"
    await others
    assert order == ["busy"]


@pytest.mark.usefixtures("hasty")
async def test_what_its_queue_would_bury_stays(world: World) -> None:
    await world.start(b"a1")
    (delivery,) = await world.received(b"a2")
    delivery.message = replace(delivery.message, returnable=False)
    second = asyncio.create_task(world.work(delivery))
    world.tasks.append(second)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(second), 0.1)


@pytest.mark.usefixtures("hasty")
async def test_so_many_are_away_at_once_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_AWAY", 0)
    monkeypatch.setattr(world.turns, "_most_away", 2)
    _, *others = await world.start(b"a1", b"a2", b"a3", b"a4", b"a5")
    async with asyncio.timeout(5):
        while sum(task.done() for task in others) < 2:  # noqa: ASYNC110 - tasks that fail set no event
            await asyncio.sleep(0.01)
    done, waiting = await asyncio.wait(others, timeout=0.1)
    assert (len(done), len(waiting)) == (2, 2)
    assert all(isinstance(task.exception(), PutOff) for task in done)


@pytest.mark.parametrize(
    ("age", "away", "delay"),
    [
        (0.0, 1000, 1.0),
        (-3600.0, 1000, 1.0),
        (None, 1000, 1.0),
        (30.0, 1000, 10.0),
        (3600.0, 1000, 60.0),
        (1e12, 1000, 60.0),
        # Of few, one soon comes back for a place that is free.
        (3600.0, 40, 10.0),
        (3600.0, 0, 1.0),
    ],
)
async def test_case_50_it_is_put_off_for_a_third_of_its_age(
    world: World, age: float | None, away: int, delay: float
) -> None:
    world.turns._away += [math.inf] * away
    (delivery,) = await world.received(b"a1")
    message = replace(delivery.message, sent_at=None if age is None else NOW - age)
    assert world.turns._put_off(message) == pytest.approx(delay)


async def test_case_14_closed_it_puts_everybody_off_at_once(world: World) -> None:
    first, second = await world.start(b"a1", b"b1")
    world.turns.close()
    with pytest.raises(PutOff) as late:
        await second
    (third,) = await world.start(b"c1")
    with pytest.raises(PutOff):
        await third
    assert late.value.delay == 0.0
    world.leave.set()
    assert await first == "done"


async def test_case_41_a_turn_that_comes_in_an_outage_waits_for_its_end(world: World) -> None:
    first, second = await world.start(b"a1", b"b1")
    world.ready.clear()
    world.leave.set()
    assert await first == "done"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(second), 0.05)
    world.ready.set()
    assert await second == "done"


def message(size: int) -> Message:
    return Message("id", b"x" * size, "handle", 1)


async def test_first_what_can_be_worked_on_is_received_then_a_look_at_a_time() -> None:
    intake, freed, health = Intake(16, 40, 100_000), asyncio.Event(), Health()
    taken = []
    for _ in range(4):
        room = await intake.next(freed, health)
        taken.append(room)
        for _ in range(room):
            intake.add(message(10))
    assert taken == [16, 16, 16, 8]
    waiting = asyncio.create_task(intake.next(freed, health))
    await asyncio.sleep(0)
    assert health.busy, "nothing is received now, and that is well"
    intake.remove(message(10))
    freed.set()
    assert await waiting == 1
    assert not health.busy


async def test_large_messages_are_not_received_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_BODIES", 1_000_000)
    intake = Intake(16, 1000, 100_000)
    for _ in range(16):
        intake.add(message(10))
    assert intake.ahead == 9
    for _ in range(5):
        intake.add(message(100_000))
    assert intake.ahead == 4
    for _ in range(5):
        intake.add(message(100_000))
    assert intake.ahead == 0
