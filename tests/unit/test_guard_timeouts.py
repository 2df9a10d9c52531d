import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType

import pytest

from backends.base import CHUNK_SIZE, Promise, StorageBackend, single
from backends.errors import Unavailable
from backends.guards.timeouts import TimeoutGuard, TimeoutOptions
from backends.testing.material import NOTHING, put, some_bytes
from tests.support.troubled import Troubled

Call = Callable[[StorageBackend], Awaitable[object]]
SHORT = 0.05


async def read(backend: StorageBackend) -> int:
    async with backend.open("k") as chunks:
        return len([chunk async for chunk in chunks])


async def listed(backend: StorageBackend) -> int:
    return len([found async for found in backend.list()])


CALLS: Mapping[str, Call] = MappingProxyType(
    {
        "stat": lambda backend: backend.stat("k"),
        "delete": lambda backend: backend.delete("k"),
        "health": lambda backend: backend.health(),
        "open": read,
        "list": listed,
        "write": lambda backend: backend.write("new", single(b"x"), NOTHING),
        "copy_from": lambda backend: backend.copy_from(backend, "k", "c", NOTHING, Promise()),
        "sweep": lambda backend: backend.sweep(0.0),
    }
)


@pytest.fixture
async def store() -> Troubled:
    store = await Troubled.empty()
    await put(store, "k", some_bytes(2 * CHUNK_SIZE))
    await put(store, "l", b"x")
    return store


def guarded(store: Troubled, **seconds: float) -> TimeoutGuard:
    limits = {"connect": None, "idle": None, "total": None, **seconds}
    return TimeoutGuard(store, TimeoutOptions.model_validate(limits))


@pytest.mark.parametrize(
    ("op", "deadline"),
    [
        ("stat", "connect"),
        ("delete", "connect"),
        ("health", "connect"),
        ("open", "connect"),
        ("list", "connect"),
        ("write", "idle"),
        *((op, "total") for op in CALLS),
    ],
)
async def test_a_store_that_never_answers_is_given_up_after_it_has_cleaned_up(
    store: Troubled, op: str, deadline: str
) -> None:
    guard = guarded(store, **{deadline: SHORT})
    store.hang = True
    with pytest.raises(Unavailable, match=rf"{deadline} timeout") as raised:
        await CALLS[op](guard)
    assert str(SHORT) in str(raised.value)
    assert store.location in str(raised.value)
    assert store.cleaned == 1


@pytest.mark.parametrize("op", ["open", "list", "write"])
@pytest.mark.parametrize("deadline", ["idle", "total"])
async def test_a_store_that_falls_silent_in_the_middle_is_given_up(
    store: Troubled, op: str, deadline: str
) -> None:
    guard = guarded(store, **{deadline: SHORT})
    store.hang, store.break_after = True, 1
    with pytest.raises(Unavailable, match=rf"{deadline} timeout"):
        await CALLS[op](guard)
    assert store.cleaned == 1


async def test_a_slow_source_is_not_the_stores_fault(store: Troubled) -> None:
    guard = guarded(store, connect=SHORT, idle=SHORT, total=SHORT)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(2 * SHORT)
            yield b"x"
        await asyncio.sleep(2 * SHORT)

    assert (await guard.write("new", slow(), NOTHING)).size == 3


async def test_a_slow_reader_is_not_the_stores_fault(store: Troubled) -> None:
    guard = guarded(store, connect=SHORT, idle=SHORT, total=SHORT)
    async with guard.open("k") as chunks:
        async for _ in chunks:
            await asyncio.sleep(2 * SHORT)
    async for _ in guard.list():
        await asyncio.sleep(2 * SHORT)


async def test_the_total_adds_up_what_the_store_took(store: Troubled) -> None:
    class Slow(Troubled):
        async def _breaking(self, items: AsyncIterator[bytes]) -> AsyncIterator[bytes]:  # type: ignore[override]
            async for item in items:
                await asyncio.sleep(SHORT)
                yield item

    slow = Slow(store.inner)
    await put(store, "many", some_bytes(8 * CHUNK_SIZE))
    guard = guarded(slow, idle=60.0, total=3 * SHORT)

    async def all_of_it() -> None:
        async with guard.open("many") as chunks:
            async for _ in chunks:
                pass

    with pytest.raises(Unavailable, match="total timeout"):
        await all_of_it()


async def test_a_timeout_of_the_source_is_the_sources(store: Troubled) -> None:
    guard = guarded(store, idle=SHORT)
    broke = TimeoutError("the source's own")

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(2 * SHORT)
        raise broke

    with pytest.raises(TimeoutError) as raised:
        await guard.write("new", breaking(), NOTHING)
    assert raised.value is broke


@pytest.mark.parametrize("op", CALLS)
async def test_a_cancellation_stays_one(store: Troubled, op: str) -> None:
    guard = guarded(store, connect=60.0, idle=60.0, total=60.0)
    store.hang = True
    task = asyncio.create_task(_awaited(CALLS[op], guard))
    await store.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.cleaned == 1


async def _awaited(call: Call, backend: StorageBackend) -> object:
    return await call(backend)


OWNED = sorted(CALLS.keys() - {"open", "list"})


@pytest.mark.parametrize("op", OWNED)
async def test_a_call_that_does_not_end_is_left_behind_after_a_while(store: Troubled, op: str) -> None:
    limits = TimeoutOptions(connect=SHORT, idle=SHORT, total=SHORT)
    guard = TimeoutGuard(store, limits, clean_up=SHORT)
    store.hang = True
    store.may_clean.clear()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="timeout"):
            await CALLS[op](guard)
    assert store.cleaned == 0
    store.may_clean.set()
    await guard.aclose()
    assert store.cleaned == 1, "the end waits for those that were left behind"


@pytest.mark.parametrize("op", OWNED)
async def test_a_cancellation_is_not_held_up_for_ever(store: Troubled, op: str) -> None:
    guard = TimeoutGuard(store, TimeoutOptions(), clean_up=SHORT)
    store.hang = True
    store.may_clean.clear()
    task = asyncio.create_task(_awaited(CALLS[op], guard))
    await store.hanging.wait()
    async with asyncio.timeout(10):
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.cancelling() == 2
    assert store.cleaned == 0
    await guard.aclose()
    store.may_clean.set()


async def test_a_source_is_let_go_before_a_write_is_left_behind(store: Troubled) -> None:
    guard = TimeoutGuard(store, TimeoutOptions(), clean_up=SHORT)
    asked, closing = asyncio.Event(), asyncio.Event()

    async def stubborn() -> AsyncIterator[bytes]:
        try:
            asked.set()
            await asyncio.Event().wait()
            yield b"never"
        finally:
            await asyncio.sleep(4 * SHORT)
            closing.set()

    source = stubborn()
    task = asyncio.create_task(_awaited(lambda backend: backend.write("new", source, NOTHING), guard))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closing.is_set()


async def test_a_deadline_that_is_off_never_passes(store: Troubled) -> None:
    guard = guarded(store)
    for op in CALLS.keys() - {"delete", "copy_from"}:
        await CALLS[op](guard)
    assert await guard.delete("k")
