from pathlib import Path

import pytest
from pydantic import ValidationError

from backends.base import StorageBackend
from backends.errors import CircuitOpen, Unavailable
from backends.guards.breaker import BreakerGuard, CircuitState, breaker_of
from backends.guards.prefixed import Prefixed
from backends.guards.rate_limit import RateLimitGuard
from backends.guards.read_cache import ReadCache
from backends.guards.retry import RetryGuard
from backends.guards.stack import GuardOptions, guarded
from backends.guards.timeouts import TimeoutGuard
from backends.memory import MemoryBackend, MemoryOptions
from backends.testing.material import put
from backends.wrapper import Wrapper, bare
from tests.support.troubled import Troubled


def layers(backend: StorageBackend) -> list[type]:
    found = []
    while isinstance(backend, Wrapper):
        found.append(type(backend))
        backend = backend.inner
    return [*found, type(backend)]


async def test_as_configured_below_a_target_in_this_order(tmp_path: Path) -> None:
    options = GuardOptions.model_validate(
        {
            "cache": {"directory": str(tmp_path / "cache"), "budget": 1000},
            "retry": {"attempts": 3, "base": 0.1, "cap": 1, "deadline": 10},
            "breaker": {"threshold": 5, "cooldown": 30},
            "rate_limit": {"requests": 100, "bytes": 1_000_000},
            "timeouts": {"connect": 5, "idle": 30, "total": 300},
            "prefix": "/raw/html/",
        }
    )
    backend = await guarded(await MemoryBackend.connect(MemoryOptions()), options)
    assert layers(backend) == [
        ReadCache,
        RetryGuard,
        BreakerGuard,
        RateLimitGuard,
        TimeoutGuard,
        Prefixed,
        MemoryBackend,
    ]
    assert backend.location == "memory://main/raw/html/"
    assert bare(backend, "k")[1] == "raw/html/k"
    await backend.aclose()


async def test_nothing_is_around_a_target_that_names_nothing() -> None:
    store = await MemoryBackend.connect(MemoryOptions())
    assert await guarded(store, GuardOptions()) is store


@pytest.mark.parametrize("prefix", ["a//b", "../a", "a/./b", "n\0l", "x" * 1025])
def test_an_unusable_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        GuardOptions(prefix=prefix)


@pytest.mark.parametrize(("given", "used"), [("", ""), ("/", ""), ("a/", "a"), ("/a/b", "a/b")])
def test_slashes_around_a_prefix_make_no_empty_segments(given: str, used: str) -> None:
    assert GuardOptions(prefix=given).prefix == used


async def test_each_try_counts_at_the_breaker_and_an_open_one_ends_the_tries() -> None:
    store = await Troubled.empty()
    heard: list[CircuitState] = []
    options = GuardOptions.model_validate(
        {"breaker": {"threshold": 2}, "retry": {"attempts": 9, "base": 0, "cap": 0}}
    )
    backend = await guarded(store, options, heard.append)
    store.trouble += [Unavailable("down")] * 9
    with pytest.raises(CircuitOpen):
        await backend.stat("k")
    assert (store.calls["stat"], heard) == (2, ["open"])
    breaker = breaker_of(backend)
    assert breaker is not None
    assert breaker.state == "open"


async def test_a_hit_passes_an_open_circuit_no_more_than_a_miss(tmp_path: Path) -> None:
    """It could not know that it is still what the store has."""
    store = await Troubled.empty()
    options = GuardOptions.model_validate(
        {"breaker": {"threshold": 1}, "cache": {"directory": tmp_path / "cache", "budget": 1000}}
    )
    backend = await guarded(store, options)
    await put(backend, "k", b"data")
    async with backend.open("k") as chunks:
        assert [chunk async for chunk in chunks] == [b"data"]
    store.trouble.append(Unavailable("down"))
    with pytest.raises(Unavailable):
        await backend.health()
    with pytest.raises(CircuitOpen):
        async with backend.open("k"):
            pytest.fail("the store was not asked")
    await backend.aclose()


async def test_the_store_stays_open_when_the_cache_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = await MemoryBackend.connect(MemoryOptions())
    options = GuardOptions.model_validate({"cache": {"directory": tmp_path / "file", "budget": 1}})
    with pytest.raises(Unavailable):
        await guarded(store, options)
    assert (await put(store, "k", b"x")).created
