import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backends.base import CHUNK_SIZE, Promise, StorageBackend, single
from backends.errors import (
    CircuitOpen,
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from backends.guards.breaker import (
    BreakerGuard,
    BreakerOptions,
    Circuit,
    CircuitState,
    Permit,
    breaker_of,
)
from backends.measured import MeasuredBackend
from backends.testing.material import NOTHING, SourceBroke, put, some_bytes
from tests.support.troubled import FakeTime, Troubled

Call = Callable[[StorageBackend], Awaitable[object]]


async def read(backend: StorageBackend) -> int:
    async with backend.open("k") as chunks:
        return len([chunk async for chunk in chunks])


async def listed(backend: StorageBackend) -> int:
    return len([found async for found in backend.list()])


CALLS: Mapping[str, Call] = MappingProxyType(
    {
        "stat": lambda backend: backend.stat("k"),
        "delete": lambda backend: backend.delete("missing"),
        "health": lambda backend: backend.health(),
        "sweep": lambda backend: backend.sweep(0.0),
        "open": read,
        "list": listed,
        "write": lambda backend: backend.write("new", single(b"x"), NOTHING),
    }
)


@pytest.fixture
async def store() -> Troubled:
    store = await Troubled.empty()
    await put(store, "k", some_bytes(2 * CHUNK_SIZE))
    await put(store, "l", b"x")
    store.calls.clear()
    return store


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def heard() -> list[CircuitState]:
    return []


@pytest.fixture
def guard(store: Troubled, time: FakeTime, heard: list[CircuitState]) -> BreakerGuard:
    return BreakerGuard(store, BreakerOptions(), heard.append, time.clock)


def told(guard: BreakerGuard) -> str:
    """The state, of which mypy does not believe that it is the one of a line above."""
    return guard.state


async def fail(guard: BreakerGuard, times: int = 1, call: Call = CALLS["stat"]) -> None:
    store = guard.inner
    assert isinstance(store, Troubled)
    for _ in range(times):
        store.trouble.append(Unavailable("down"))
        with pytest.raises(Unavailable, match="down"):
            await call(guard)


def test_the_defaults_are_five_failures_and_thirty_seconds() -> None:
    assert BreakerOptions() == BreakerOptions(threshold=5, cooldown=30.0)


@pytest.mark.parametrize("op", CALLS)
async def test_five_failures_in_a_row_open_it_and_no_call_reaches_the_store(
    guard: BreakerGuard, store: Troubled, heard: list[CircuitState], op: str
) -> None:
    await fail(guard, 4, CALLS[op])
    assert guard.state == "closed"
    await fail(guard, 1, CALLS[op])
    assert (guard.state, guard.retry_after, heard) == ("open", 30.0, ["open"])
    store.calls.clear()
    calls: list[Call] = [
        *CALLS.values(),
        lambda guard: guard.copy_from(guard, "k", "c", NOTHING, Promise()),
    ]
    for call in calls:
        with pytest.raises(CircuitOpen) as raised:
            await call(guard)
        assert raised.value.retry_after == 30.0
        assert store.location in str(raised.value)
    assert not store.calls


@pytest.mark.parametrize("op", CALLS)
async def test_any_answer_in_between_begins_the_count_anew(guard: BreakerGuard, op: str) -> None:
    await fail(guard, 4)
    await CALLS[op](guard)
    await fail(guard, 4)
    assert guard.state == "closed"


@pytest.mark.parametrize(
    "exc",
    [NotFound("x"), Conflict("x"), PermissionDenied("x"), IntegrityError("x")],
    ids=lambda exc: type(exc).__name__,
)
async def test_a_refusal_is_a_sign_of_life(guard: BreakerGuard, store: Troubled, exc: Exception) -> None:
    await fail(guard, 4)
    store.trouble.append(exc)
    with pytest.raises(type(exc)):
        await guard.stat("k")
    await fail(guard, 4)
    assert guard.state == "closed"


@pytest.mark.parametrize(
    "exc",
    [InvalidKey("x"), Unsupported("x"), asyncio.CancelledError(), ValueError("a bug")],
    ids=lambda exc: type(exc).__name__,
)
async def test_what_says_nothing_of_the_store_changes_nothing(
    guard: BreakerGuard, store: Troubled, exc: BaseException
) -> None:
    await fail(guard, 4)
    for _ in range(9):
        store.trouble.append(exc)
        with pytest.raises(type(exc)):
            await guard.stat("k")
    assert told(guard) == "closed"
    await fail(guard)
    assert told(guard) == "open"


async def test_the_source_of_a_write_is_not_the_store(guard: BreakerGuard) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x"
        raise Unavailable("staging is down")

    for number in range(9):
        with pytest.raises(Unavailable, match="staging"):
            await guard.write(f"n{number}", breaking(), NOTHING)
    assert told(guard) == "closed"
    await fail(guard, 5, CALLS["write"])
    assert told(guard) == "open"


async def test_the_user_of_a_read_is_not_the_store(guard: BreakerGuard) -> None:
    async def leave() -> None:
        async with guard.open("k"):
            raise Unavailable("another store")

    for _ in range(9):
        with pytest.raises(Unavailable, match="another store"):
            await leave()
    assert guard.state == "closed"


@pytest.mark.parametrize("call", [read, listed])
async def test_what_breaks_off_in_the_middle_is_a_failure(
    guard: BreakerGuard, store: Troubled, call: Call
) -> None:
    store.break_after = 1
    await fail(guard, 5, call)
    assert guard.state == "open"


async def test_after_the_cooldown_one_probe_decides(
    guard: BreakerGuard, store: Troubled, time: FakeTime, heard: list[CircuitState]
) -> None:
    await fail(guard, 5)
    time.now += 29.0
    assert (guard.state, guard.retry_after) == ("open", 1.0)
    time.now += 1.0
    assert (guard.state, guard.retry_after) == ("half_open", 0.0)
    await fail(guard)
    assert (guard.state, guard.retry_after, heard) == ("open", 30.0, ["open", "half_open", "open"])
    time.now += 30.0
    await guard.stat("k")
    assert (guard.state, heard[3:]) == ("closed", ["half_open", "closed"])
    await fail(guard, 4)
    assert guard.state == "closed"
    assert store.calls["stat"] == 5 + 1 + 1 + 4


async def test_while_a_probe_is_under_way_no_second_call_reaches_the_store(
    guard: BreakerGuard, store: Troubled, time: FakeTime
) -> None:
    await fail(guard, 5)
    time.now += 30.0
    going, go_on = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        going.set()
        await go_on.wait()
        yield b"x"

    probe = asyncio.create_task(guard.write("new", halting(), NOTHING))
    await going.wait()
    assert (guard.state, guard.retry_after) == ("half_open", 1.0)
    for call in CALLS.values():
        with pytest.raises(CircuitOpen):
            await call(guard)
    go_on.set()
    await probe
    assert (guard.state, store.calls["write"]) == ("closed", 1)


async def test_a_cancelled_probe_leaves_its_place_to_the_next(
    guard: BreakerGuard, store: Troubled, time: FakeTime
) -> None:
    await fail(guard, 5)
    time.now += 30.0
    store.hang = True
    probe = asyncio.create_task(guard.stat("k"))
    await store.hanging.wait()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert (guard.state, guard.retry_after) == ("half_open", 0.0)
    store.hang = False
    await guard.stat("k")
    assert guard.state == "closed"


async def test_a_probe_that_reads_ends_with_the_first_answer_not_with_the_last_byte(
    guard: BreakerGuard, time: FakeTime
) -> None:
    await fail(guard, 5)
    time.now += 30.0
    async with guard.open("k"):
        assert guard.state == "closed"
    guard.circuit.failed(guard.circuit.admit())
    await fail(guard, 4)
    time.now += 30.0
    walking = guard.list()
    await anext(walking)
    assert guard.state == "closed"
    assert await guard.stat("k")


async def test_a_call_from_before_the_opening_says_nothing_about_now(
    guard: BreakerGuard, store: Troubled, time: FakeTime
) -> None:
    going, go_on = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        going.set()
        await go_on.wait()
        yield b"x"

    old = asyncio.create_task(guard.write("new", halting(), NOTHING))
    await going.wait()
    await fail(guard, 5)
    go_on.set()
    assert (await old).created
    assert guard.state == "open"
    time.now += 30.0
    assert await guard.stat("k")
    assert store.calls["stat"] == 6


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
async def test_a_call_from_before_the_last_closing_neither_counts_nor_begins_the_count_anew(
    guard: BreakerGuard, time: FakeTime, outcome: str
) -> None:
    old = guard.circuit.admit()
    await fail(guard, 5)
    time.now += 30.0
    await guard.stat("k")
    await fail(guard, 4)
    getattr(guard.circuit, outcome)(old)
    assert told(guard) == "closed"
    await fail(guard)
    assert told(guard) == "open"


async def test_the_breaker_is_found_among_the_wrappers(guard: BreakerGuard, store: Troubled) -> None:
    assert breaker_of(MeasuredBackend(guard, lambda _: None)) is guard
    assert breaker_of(MeasuredBackend(store, lambda _: None)) is None


async def test_a_source_that_breaks_during_a_probe_leaves_it_undecided(
    guard: BreakerGuard, time: FakeTime
) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x"
        raise SourceBroke

    await fail(guard, 5)
    time.now += 30.0
    with pytest.raises(SourceBroke):
        await guard.write("new", breaking(), NOTHING)
    assert (guard.state, guard.retry_after) == ("half_open", 0.0)


class CircuitMachine(RuleBasedStateMachine):
    """Compares the circuit with what its history says: the verdicts since it last closed, and when it last opened."""

    @initialize(threshold=st.integers(1, 4), cooldown=st.sampled_from([0.5, 10.0]))
    def begin(self, threshold: int, cooldown: float) -> None:
        self.time = FakeTime()
        self.heard: list[CircuitState] = ["closed"]
        self.options = BreakerOptions(threshold=threshold, cooldown=cooldown)
        self.circuit = Circuit(self.options, "the store", self.heard.append, self.time.clock)
        self.under_way: list[tuple[Permit, int]] = []
        self.verdicts: list[bool] = []
        self.opened_at: float | None = None
        self.probe: Permit | None = None
        self.times_changed = 0

    @rule()
    def call(self) -> None:
        may = self.opened_at is None or (
            self.probe is None and self.time.now >= self.opened_at + self.options.cooldown
        )
        try:
            permit = self.circuit.admit()
        except CircuitOpen:
            assert not may
            return
        assert may
        self.under_way.append((permit, self.times_changed))
        if self.opened_at is not None:
            self.probe = permit

    @rule(which=st.integers(0, 50), how=st.sampled_from(["succeeded", "failed", "released"]))
    def end(self, which: int, how: str) -> None:
        if not self.under_way:
            return
        permit, begun = self.under_way.pop(which % len(self.under_way))
        getattr(self.circuit, how)(permit)
        if permit is self.probe:
            self.probe = None
            if how == "succeeded":
                self._change(opened_at=None)
            elif how == "failed":
                self._change(opened_at=self.time.now)
        elif begun == self.times_changed and self.opened_at is None and how != "released":
            self.verdicts.append(how == "succeeded")
            last = self.verdicts[-self.options.threshold :]
            if len(last) == self.options.threshold and not any(last):
                self._change(opened_at=self.time.now)

    def _change(self, opened_at: float | None) -> None:
        self.opened_at = opened_at
        self.verdicts = []
        self.times_changed += 1

    @rule(seconds=st.sampled_from([0.25, 0.5, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.time.now += seconds

    @invariant()
    def tells_what_its_history_says(self) -> None:
        if not hasattr(self, "circuit"):
            return
        if self.opened_at is None:
            assert (self.circuit.state, self.circuit.retry_after) == ("closed", 0.0)
            assert self.heard[-1] == "closed"
            return
        rest = self.opened_at + self.options.cooldown - self.time.now
        assert self.circuit.state == ("open" if self.probe is None and rest > 0 else "half_open")
        assert self.circuit.retry_after == (max(0.0, rest) if self.probe is None else 1.0)
        assert self.heard[-1] in {"open", "half_open"}

    @invariant()
    def every_state_it_tells_of_is_news(self) -> None:
        heard = getattr(self, "heard", [])
        assert all(one != other for one, other in itertools.pairwise(heard))


CircuitMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCircuitMachine = CircuitMachine.TestCase
