from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from backends.base import Attributes, ObjectStat, single
from backends.errors import Conflict, NotFound
from backends.measured import MeasuredBackend, Observation
from backends.memory import MemoryBackend, MemoryOptions
from worker.metrics import Metrics


@pytest.fixture
def seen() -> list[Observation]:
    return []


@pytest.fixture
async def backend(seen: list[Observation]) -> AsyncIterator[MeasuredBackend]:
    inner = await MemoryBackend.connect(MemoryOptions())
    yield MeasuredBackend(inner, seen.append)
    await inner.aclose()


async def test_a_write_and_a_read_tell_their_bytes(backend: MeasuredBackend, seen: list[Observation]) -> None:
    await backend.write("a/b", single(b"x" * 1000), Attributes())
    async with backend.open("a/b") as chunks:
        assert [len(chunk) async for chunk in chunks] == [1000]
    assert [(o.op, o.outcome, o.size) for o in seen] == [("write", "ok", 1000), ("open", "ok", 1000)]
    assert all(o.seconds >= 0 for o in seen)


async def test_a_failure_tells_its_class_and_comes_out(
    backend: MeasuredBackend, seen: list[Observation]
) -> None:
    await backend.write("a", single(b"1"), Attributes())
    with pytest.raises(Conflict):
        await backend.write("a", single(b"2"), Attributes())
    with pytest.raises(NotFound):
        async with backend.open("b"):
            pass
    assert [(o.op, o.outcome) for o in seen] == [("write", "ok"), ("write", "Conflict"), ("open", "NotFound")]


async def test_a_listing_left_early_is_no_failure(backend: MeasuredBackend, seen: list[Observation]) -> None:
    for key in "ab":
        await backend.write(key, single(b"1"), Attributes())
    async with aclosing(cast("AsyncGenerator[ObjectStat, None]", backend.list())) as found:
        assert (await anext(found)).key == "a"
    assert (seen[-1].op, seen[-1].outcome) == ("list", "ok")


async def test_what_is_observed_becomes_metrics(backend: MeasuredBackend, seen: list[Observation]) -> None:
    metrics = Metrics()
    await backend.write("a", single(b"12345"), Attributes())
    await backend.stat("a")
    for observation in seen:
        metrics.observe_backend("lake", observation)
    text = metrics.render().decode()
    assert 'transload_backend_requests_total{backend="lake",op="write",outcome="ok"} 1.0' in text
    assert 'transload_backend_requests_total{backend="lake",op="stat",outcome="ok"} 1.0' in text
    assert 'transload_transfer_bytes_total{backend="lake",direction="out"} 5.0' in text
