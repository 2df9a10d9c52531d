import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import pytest

from backends.base import CHUNK_SIZE, Promise, StorageBackend, single
from backends.errors import (
    CircuitOpen,
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.guards.retry import RetryGuard, RetryOptions
from backends.testing.material import NOTHING, SourceBroke, put, some_bytes
from tests.support.troubled import Troubled

Call = Callable[[StorageBackend], Awaitable[object]]


async def read(backend: StorageBackend) -> bytes:
    async with backend.open("k") as chunks:
        return b"".join([chunk async for chunk in chunks])


async def listed(backend: StorageBackend) -> list[str]:
    return [found.key async for found in backend.list()]


REPLAYED: Mapping[str, Call] = MappingProxyType(
    {
        "stat": lambda backend: backend.stat("k"),
        "delete": lambda backend: backend.delete("k"),
        "health": lambda backend: backend.health(),
        "sweep": lambda backend: backend.sweep(0.0),
        "open": read,
        "list": listed,
    }
)
ONCE: Mapping[str, Call] = MappingProxyType(
    {
        "write": lambda backend: backend.write("new", single(b"x"), NOTHING),
        "copy_from": lambda backend: backend.copy_from(backend, "k", "copy", NOTHING, Promise(1)),
    }
)


@pytest.fixture
async def store() -> Troubled:
    store = await Troubled.empty()
    await put(store, "k", some_bytes(2 * CHUNK_SIZE))
    store.calls.clear()
    return store


class Pauses(list[float]):
    async def sleep(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def guard(store: Troubled, pauses: Pauses) -> RetryGuard:
    return RetryGuard(store, RetryOptions(attempts=4, base=1.0, cap=3.0), pauses.sleep)


@pytest.mark.parametrize("op", REPLAYED)
async def test_a_call_without_payload_is_tried_again(
    guard: RetryGuard, store: Troubled, pauses: Pauses, op: str
) -> None:
    expected = await REPLAYED[op](await _twin())
    store.trouble += [Unavailable("one"), Unavailable("two")]
    assert await REPLAYED[op](guard) == expected
    assert store.calls == {op: 3}
    assert len(pauses) == 2
    assert 0 <= pauses[0] <= 1.0
    assert 0 <= pauses[1] <= 2.0


async def _twin() -> Troubled:
    twin = await Troubled.empty()
    await put(twin, "k", some_bytes(2 * CHUNK_SIZE))
    return twin


@pytest.mark.parametrize("op", ONCE)
async def test_a_write_is_left_to_redelivery(guard: RetryGuard, store: Troubled, op: str) -> None:
    store.trouble.append(Unavailable("once"))
    with pytest.raises(Unavailable, match="once"):
        await ONCE[op](guard)
    assert store.calls == {op: 1}


@pytest.mark.parametrize(
    "exc",
    [
        NotFound("x"),
        PermissionDenied("x"),
        IntegrityError("x"),
        Conflict("x"),
        InvalidKey("x"),
        Unsupported("x"),
        StorageError("x"),
        CircuitOpen("x", 3.0),
        asyncio.CancelledError(),
        ValueError("a bug"),
    ],
    ids=lambda exc: type(exc).__name__,
)
@pytest.mark.parametrize("op", REPLAYED)
async def test_what_seconds_do_not_change_is_not_tried_again(
    guard: RetryGuard, store: Troubled, op: str, exc: BaseException
) -> None:
    store.trouble.append(exc)
    with pytest.raises(type(exc)) as raised:
        await REPLAYED[op](guard)
    assert raised.value is exc
    assert store.calls == {op: 1}


async def test_the_last_failure_comes_out_when_the_attempts_are_spent(
    guard: RetryGuard, store: Troubled, pauses: Pauses
) -> None:
    store.trouble += [Unavailable(str(number)) for number in range(9)]
    with pytest.raises(Unavailable, match="3"):
        await guard.stat("k")
    assert store.calls["stat"] == 4
    assert all(pause <= 3.0 for pause in pauses)


async def test_no_attempt_begins_after_the_deadline(store: Troubled, pauses: Pauses) -> None:
    guard = RetryGuard(store, RetryOptions(attempts=9, base=1e12, cap=1e12, deadline=60.0), pauses.sleep)
    store.trouble += [Unavailable("first"), Unavailable("second")]
    with pytest.raises(Unavailable, match="first"):
        await guard.stat("k")
    assert (store.calls["stat"], pauses) == (1, [])


async def test_the_pauses_are_jittered(store: Troubled, pauses: Pauses) -> None:
    guard = RetryGuard(store, RetryOptions(attempts=20, base=1.0, cap=1.0, deadline=1e9), pauses.sleep)
    store.trouble += [Unavailable("again")] * 19
    await guard.stat("k")
    assert len(set(pauses)) > 10


@pytest.mark.parametrize("op", ["open", "list"])
async def test_what_fails_before_its_first_piece_begins_anew(
    guard: RetryGuard, store: Troubled, op: str
) -> None:
    store.break_after = 0
    store.trouble += [Unavailable("first byte"), Unavailable("first byte")]
    assert await REPLAYED[op](guard) == await REPLAYED[op](await _twin())
    assert store.calls == {op: 3}


@pytest.mark.parametrize("op", ["open", "list"])
async def test_what_breaks_off_later_is_not_spliced(guard: RetryGuard, store: Troubled, op: str) -> None:
    await put(store.inner, "l", b"another")
    store.break_after = 1
    store.trouble.append(Unavailable("in the middle"))
    with pytest.raises(Unavailable, match="in the middle"):
        await REPLAYED[op](guard)
    assert store.calls == {op: 1}


async def test_what_the_reader_raises_is_no_reason_to_begin_anew(guard: RetryGuard, store: Troubled) -> None:
    broke = SourceBroke()

    async def leave() -> None:
        async with guard.open("k"):
            raise broke

    with pytest.raises(SourceBroke) as raised:
        await leave()
    assert raised.value is broke
    assert store.calls == {"open": 1}
