"""Leases: work under a lost one is cancelled and never let out as done; everybody else's cancellation stays theirs."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from worker.delivery import Delivery, LeaseKeeper, LeaseLost
from worker.metrics import Metrics
from worker.queues.base import (
    Ack,
    Disposition,
    HeldTooLong,
    Message,
    OutgoingMessage,
    QueueUnavailable,
    Retry,
    WaitedTooLong,
)
from worker.queues.memory import MemoryOptions, MemoryQueue

LEASE = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FlakyQueue(MemoryQueue):
    """The memory queue, whose calls fail while `down`, and which counts settles and extends. `longest` is its `longest_hold`."""

    down = False
    settled = 0
    extended = 0
    extended_often: asyncio.Event | None = None
    longest: float | None = None
    failing = b""
    """The body of a message whose lease cannot be renewed now, and of one that gets no answer."""
    silent = b""

    @property
    def longest_hold(self) -> float | None:
        return self.longest

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        self.extended += 1
        if self.extended_often is not None and self.extended >= 4:
            self.extended_often.set()
        if self.down or any(message.body == self.failing for message in messages):
            raise QueueUnavailable("down")
        if any(message.body == self.silent for message in messages):
            await asyncio.Event().wait()
        return await super().extend(messages)

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        self.settled += 1
        if self.down:
            raise QueueUnavailable("down")
        return await super().settle(message, disposition)


@pytest.fixture
async def queue() -> AsyncIterator[FlakyQueue]:
    queue = await FlakyQueue.connect(MemoryOptions(lease=LEASE))
    yield queue
    await queue.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(queue: FlakyQueue, clock: Clock) -> LeaseKeeper:
    return LeaseKeeper(queue, Metrics(), clock)


async def received(queue: FlakyQueue, keeper: LeaseKeeper, count: int = 1) -> Sequence[Delivery]:
    await queue.send([OutgoingMessage(f"{number}".encode()) for number in range(count)])
    return await keeper.hold(await queue.receive(count, 1.0))


async def work(delivery: Delivery, started: asyncio.Event, log: list[str]) -> None:
    try:
        async with delivery.kept_alive():
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cleaned up")
    except LeaseLost:
        log.append("lost")


async def take_over(queue: FlakyQueue, delivery: Delivery) -> Message:
    """Another worker receives the message, as after a lease that ran out."""
    await queue.settle(delivery.message, Retry(0))
    (taken,) = await queue.receive(1, 1.0)
    return taken


async def test_work_under_a_held_lease_is_let_out(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    assert (delivery.body, delivery.held, len(keeper)) == (b"0", True, 1)
    async with delivery.kept_alive():
        await keeper.renew()
    assert await delivery.settle(Ack())
    assert len(keeper) == 0
    assert (await queue.depth()).idle


async def test_case_23_a_lost_lease_cancels_the_work(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    one, other = await received(queue, keeper, 2)
    started, log = asyncio.Event(), list[str]()
    task = asyncio.create_task(work(one, started, log))
    await started.wait()
    await take_over(queue, one)
    await keeper.renew()
    await task
    assert log == ["cleaned up", "lost"]
    assert not one.held
    assert other.held
    assert len(keeper) == 1
    assert task.cancelling() == 0, "the task goes on as if nobody had cancelled it"


async def test_a_lost_lease_is_not_let_out_even_when_the_work_was_quicker(
    queue: FlakyQueue, keeper: LeaseKeeper
) -> None:
    (delivery,) = await received(queue, keeper)
    delivery.lose()
    with pytest.raises(LeaseLost):
        async with delivery.kept_alive():
            pytest.fail("began under a lost lease")


async def test_case_23_a_stalled_process_notices_by_its_clock(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    """Stopped for longer than the lease: nobody has told us yet, and still nothing may be committed."""
    (delivery,) = await received(queue, keeper)

    async def stalled() -> None:
        async with delivery.kept_alive():
            clock.now += LEASE + 0.1

    with pytest.raises(LeaseLost):
        await stalled()
    assert not delivery.held


async def test_a_renewal_counts_from_when_it_was_asked_for(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    (delivery,) = await received(queue, keeper)
    clock.now += LEASE - 1
    await keeper.renew()
    clock.now += LEASE - 1
    assert delivery.held
    clock.now += 2
    assert not delivery.held


async def test_a_slow_renewal_gives_no_time_that_has_passed(clock: Clock) -> None:
    class Slow(FlakyQueue):
        async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
            lost = await super().extend(messages)
            clock.now += LEASE + 1
            return lost

    slow = await Slow.connect(MemoryOptions(lease=LEASE))
    keeper = LeaseKeeper(slow, Metrics(), clock)
    (delivery,) = await received(slow, keeper)
    await keeper.renew()
    assert not delivery.held
    await slow.aclose()


async def test_case_41_a_failing_renewal_loses_only_what_has_run_out(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    (delivery,) = await received(queue, keeper)
    started, log = asyncio.Event(), list[str]()
    task = asyncio.create_task(work(delivery, started, log))
    await started.wait()
    queue.down = True
    clock.now += LEASE / 2
    await keeper.renew()
    assert delivery.held
    assert not task.done()
    clock.now += LEASE
    await keeper.renew()
    await task
    assert log == ["cleaned up", "lost"]
    assert len(keeper) == 0


async def test_a_lease_that_passed_by_our_clock_is_lost_without_asking(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    """The queue might take long to say so, and the work might be done meanwhile."""
    (delivery,) = await received(queue, keeper)
    started, log = asyncio.Event(), list[str]()
    task = asyncio.create_task(work(delivery, started, log))
    await started.wait()
    clock.now += LEASE + 0.1
    await keeper.renew()
    await task
    assert (log, queue.extended) == (["cleaned up", "lost"], 0)


async def test_case_25_one_failed_renewal_of_ten_fails_alone(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    deliveries = await received(queue, keeper, 10)
    queue.failing = b"3"
    clock.now += LEASE / 2
    await keeper.renew()
    clock.now += LEASE / 3
    assert all(delivery.held for delivery in deliveries)
    clock.now += LEASE / 3
    assert [d.body for d in deliveries if not d.held] == [b"3"]


async def test_case_25_a_renewal_that_failed_is_made_good_at_the_next_beat(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    (delivery,) = await received(queue, keeper)
    queue.failing = b"0"
    clock.now += LEASE / 3
    await keeper.renew()
    queue.failing = b""
    clock.now += LEASE / 3
    await keeper.renew()
    clock.now += LEASE / 2
    assert delivery.held


async def test_a_renewal_without_an_answer_holds_up_no_other() -> None:
    queue = await FlakyQueue.connect(MemoryOptions(lease=LEASE))
    await queue.send([OutgoingMessage(b"0"), OutgoingMessage(b"1")])
    messages = await queue.receive(2, 1.0)
    # A beat is of real time, and short. What was received stays hidden for long, however slow the machine is.
    queue._options = MemoryOptions(lease=0.3)
    clock = Clock()
    keeper = LeaseKeeper(queue, Metrics(), clock)
    silent, other = await keeper.hold(messages)
    queue.silent = b"0"
    clock.now += 0.2
    async with asyncio.timeout(10):
        await keeper.renew()
    clock.now += 0.2
    assert (silent.held, other.held) == (False, True)
    await queue.aclose()


async def hold_for(keeper: LeaseKeeper, clock: Clock, delivery: Delivery, seconds: int) -> None:
    """Let time pass, with a beat every ten seconds, until the work is stopped."""
    async with delivery.kept_alive():
        for _ in range(seconds // 10):
            clock.now += 10
            await keeper.renew()
            await asyncio.sleep(0)


async def test_case_22_what_is_held_as_long_as_allowed_is_handed_over(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    queue.longest = 200.0
    (delivery,) = await received(queue, keeper)
    delivery.begun = True
    with pytest.raises(HeldTooLong) as raised:
        await hold_for(keeper, clock, delivery, 1_000)
    assert raised.value.retryable, "it counts as an attempt, and attempts are bounded"
    assert 200 - LEASE - 20 <= clock.now - delivery.taken_at <= 200 - 10, "there is time to give it back"
    assert queue.extended == 16, "no renewal reaches past what is allowed"
    assert await delivery.settle(Retry(0)), "it is still ours"
    (again,) = await queue.receive(1, 0)
    assert again.receive_count == 2
    assert not delivery.held
    assert len(keeper) == 0


async def test_case_22_work_cannot_begin_on_what_was_handed_over(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    queue.longest = 60.0
    (delivery,) = await received(queue, keeper)
    for _ in range(4):
        clock.now += 10
        await keeper.renew()
    with pytest.raises(WaitedTooLong):
        async with delivery.kept_alive():
            pytest.fail("began what has to be given back")


async def test_case_22_a_lease_as_long_as_allowed_is_used(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    queue.longest = LEASE
    (delivery,) = await received(queue, keeper)
    delivery.begun = True
    await hold_for(keeper, clock, delivery, 10)
    assert delivery.held
    with pytest.raises(HeldTooLong):
        await hold_for(keeper, clock, delivery, 30)
    assert queue.extended == 0


async def test_a_stopped_process_asks_before_it_believes_in_what_it_received(
    queue: FlakyQueue, keeper: LeaseKeeper, clock: Clock
) -> None:
    """The reply lay in its socket buffer while it was stopped: one lease has passed meanwhile, one has not."""
    (busy,) = await received(queue, keeper)
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    await queue.send([OutgoingMessage(b"taken over"), OutgoingMessage(b"still ours")])
    reply = await queue.receive(2, 1.0)
    await queue.settle(reply[0], Retry(0))
    await queue.receive(1, 1.0)
    clock.now += 1000
    (ours,) = await keeper.hold(reply)
    assert ours.body == b"still ours"
    assert (ours.held, busy.held) == (True, False)
    assert queue.extended == 2
    running.cancel()
    await asyncio.wait([running])


async def test_a_stall_that_the_heartbeat_noticed_first_is_not_forgotten(clock: Clock) -> None:
    queue = await FlakyQueue.connect(MemoryOptions(lease=1.5))
    keeper = LeaseKeeper(queue, Metrics(), clock)
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    await queue.send([OutgoingMessage(b"0")])
    reply = await queue.receive(1, 1.0)
    clock.now += 1000
    lost_at_the_next_beat = Delivery(reply[0], keeper, clock.now - 1000)
    keeper._held.add(lost_at_the_next_beat)
    async with asyncio.timeout(10):
        while len(keeper):  # noqa: ASYNC110 - the beat is the keeper's own
            await asyncio.sleep(0.01)
    asked = queue.extended
    assert len(await keeper.hold(reply)) == 1
    assert queue.extended == asked + 1
    assert len(await keeper.hold(reply)) == 1
    assert queue.extended == asked + 1, "once is enough"
    running.cancel()
    await asyncio.wait([running])
    await queue.aclose()


async def test_after_a_stall_nothing_is_believed_that_nobody_confirms(
    queue: FlakyQueue, keeper: LeaseKeeper
) -> None:
    await queue.send([OutgoingMessage(b"0")])
    reply = await queue.receive(1, 1.0)
    keeper._stalled = True
    queue.down = True
    assert await keeper.hold(reply) == []
    assert len(keeper) == 0


@pytest.mark.parametrize("ending", ["done", "another error"])
async def test_what_work_makes_of_its_cancellation_is_no_outcome(
    queue: FlakyQueue, keeper: LeaseKeeper, ending: str
) -> None:
    (delivery,) = await received(queue, keeper)
    started = asyncio.Event()

    async def stubborn() -> None:
        async with delivery.kept_alive():
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if ending == "another error":
                    raise KeyError("x") from None

    async def caller() -> int:
        with pytest.raises(LeaseLost):
            await stubborn()
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(caller())
    await started.wait()
    delivery.lose()
    assert await task == 0


async def test_an_external_cancel_stays_a_cancel(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    started, log = asyncio.Event(), list[str]()
    task = asyncio.create_task(work(delivery, started, log))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["cleaned up"]
    assert delivery.held


@pytest.mark.parametrize("lost_first", [True, False])
async def test_an_external_cancel_stays_one_when_the_lease_is_lost_too(
    queue: FlakyQueue, keeper: LeaseKeeper, lost_first: bool
) -> None:
    (delivery,) = await received(queue, keeper)
    started, log = asyncio.Event(), list[str]()
    task = asyncio.create_task(work(delivery, started, log))
    await started.wait()
    for step in (delivery.lose, task.cancel) if lost_first else (task.cancel, delivery.lose):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["cleaned up"]


async def test_a_timeout_around_the_work_stays_a_timeout(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), delivery.kept_alive():
            await asyncio.Event().wait()
    assert delivery.held


async def test_what_the_work_raises_comes_out(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    with pytest.raises(KeyError):
        async with delivery.kept_alive():
            raise KeyError("x")
    delivery.lose()
    await asyncio.sleep(0)


async def test_losing_a_lease_outside_the_work_cancels_nobody(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    async with delivery.kept_alive():
        pass
    delivery.lose()
    await asyncio.sleep(0)
    assert not delivery.held


async def test_settled_once_and_no_longer_renewed(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    one, other = await received(queue, keeper, 2)
    assert await one.settle(Ack())
    assert not await one.settle(Ack())
    assert len(keeper) == 1
    await other.settle(Ack())
    await keeper.renew()
    assert queue.extended == 0


@pytest.mark.parametrize("settle_ends_first", [True, False])
@pytest.mark.parametrize("disposition", [Ack(), Retry(0)])
async def test_a_renewal_that_overlaps_a_settle_counts_nothing_as_lost(
    clock: Clock, settle_ends_first: bool, disposition: Disposition
) -> None:
    """The queue has settled the message when the renewal comes, so it reports it lost; which reply is first is luck."""
    settled, renewed = asyncio.Event(), asyncio.Event()
    let_settle, let_renew = asyncio.Event(), asyncio.Event()

    class Slow(FlakyQueue):
        async def settle(self, message: Message, disposition: Disposition) -> bool:
            done = await super().settle(message, disposition)
            settled.set()
            await let_settle.wait()
            return done

        async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
            await settled.wait()
            lost = await super().extend(messages)
            assert bool(lost) is (messages[0].body == b"0")
            if lost:
                renewed.set()
            await let_renew.wait()
            return lost

    queue, metrics = await Slow.connect(MemoryOptions(lease=LEASE)), Metrics()
    keeper = LeaseKeeper(queue, metrics, clock)
    one, other = await received(queue, keeper, 2)
    renewing = asyncio.create_task(keeper.renew())
    await asyncio.sleep(0)
    settling = asyncio.create_task(one.settle(disposition))
    await renewed.wait()
    for go_on, task in ((let_settle, settling), (let_renew, renewing))[:: 1 if settle_ends_first else -1]:
        go_on.set()
        await task
    assert settling.result()
    assert other.held
    assert len(keeper) == 1
    counted = {
        result: metrics.visibility_extensions.labels(result=result)._value.get() for result in ("ok", "lost")
    }
    assert counted == {"ok": 1, "lost": 0}
    await queue.aclose()


async def test_case_24_a_stale_handle_settles_nothing(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    taken = await take_over(queue, delivery)
    assert not await delivery.settle(Ack())
    assert len(keeper) == 0
    assert await queue.settle(taken, Ack()), "the other worker's message is still there"


async def test_a_settle_that_fails_stops_the_heartbeat(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    queue.down = True
    with pytest.raises(QueueUnavailable):
        await delivery.settle(Ack())
    assert len(keeper) == 0


async def test_an_abandoned_delivery_is_not_settled(queue: FlakyQueue, keeper: LeaseKeeper) -> None:
    (delivery,) = await received(queue, keeper)
    delivery.abandon()
    assert (len(keeper), queue.settled) == (0, 0)
    assert (await queue.depth()).in_flight == 1


async def test_case_21_the_keeper_renews_by_itself() -> None:
    """Three times a lease, from the moment of receive, also what nobody works on yet."""
    queue = await FlakyQueue.connect(MemoryOptions(lease=0.3))
    keeper = LeaseKeeper(queue, Metrics())
    queue.extended_often = asyncio.Event()
    (delivery,) = await received(queue, keeper)
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(10):
        await queue.extended_often.wait()
    assert delivery.held
    assert await delivery.settle(Ack())
    running.cancel()
    await asyncio.wait([running])
    await queue.aclose()
