"""Runs the suite for every guard around the memory backend, and for all of them at once around the file backend.

What one guard does to the port does not depend on the store below; that they fit together over one with threads, leftovers and
no etags, only all of them can show.
"""

import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.base import StorageBackend
from backends.deferred import PAUSE, DeferredBackend
from backends.errors import Unavailable
from backends.file import FileBackend, FileOptions
from backends.file_transfer import Upload
from backends.guards.breaker import BreakerOptions
from backends.guards.prefixed import Prefixed
from backends.guards.rate_limit import RateLimitOptions
from backends.guards.read_cache import CacheOptions
from backends.guards.retry import RetryOptions
from backends.guards.stack import GuardOptions, guarded
from backends.guards.timeouts import TimeoutOptions
from backends.memory import MemoryBackend, MemoryOptions
from backends.testing import BackendConformance
from backends.testing.material import KEYS
from backends.wrapper import Wrapper, bare

GIGABYTE = 1 << 30


def options(guard: str, directory: Path) -> GuardOptions:
    every = GuardOptions(
        prefix="a b/é%",
        timeouts=TimeoutOptions(),
        rate_limit=RateLimitOptions(requests=100_000, bytes=10 * GIGABYTE),
        breaker=BreakerOptions(),
        retry=RetryOptions(),
        cache=CacheOptions(directory=directory / "cache", budget=GIGABYTE),
    )
    return every if guard == "all" else GuardOptions(**{guard: getattr(every, guard)})


class Guarded(BackendConformance):
    huge = 64 << 20
    """The wrapped ones prove the size; the memory one keeps what it is given."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        inner, inner_key = bare(backend, key)
        if not isinstance(inner, FileBackend):
            return 0
        upload = Upload(inner._tree, inner_key)
        upload.append([b"half"])
        upload.leave()
        os.close(upload._file)
        return 1


async def memory() -> StorageBackend:
    return await MemoryBackend.connect(MemoryOptions())


async def file(root: Path) -> StorageBackend:
    """With named temporaries, so that there is something to sweep."""
    backend = await FileBackend.connect(FileOptions(root=root))
    backend._tree._has_unnamed = False
    return backend


class TestGuards(Guarded):
    @pytest.fixture(params=["breaker", "cache", "rate_limit", "retry", "timeouts"])
    async def backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageBackend]:
        backend = await guarded(await memory(), options(request.param, tmp_path))
        assert isinstance(backend, Wrapper)
        yield backend
        await backend.aclose()


class TestDeferredBackend(BackendConformance):
    """Not a guard, but of their kind: the adapter that is connected later."""

    @pytest.fixture
    async def backend(self) -> AsyncIterator[StorageBackend]:
        clock = itertools.count(0.0, 2 * PAUSE)
        backend = DeferredBackend(MemoryBackend, MemoryOptions(), Unavailable("at the start"), clock.__next__)
        yield backend
        await backend.aclose()


class TestPrefixedGuards(Guarded):
    untold_keys = (max(KEYS, key=len),)
    """As long as a key may be, so too long with a prefix before it."""

    @pytest.fixture(params=["prefix", "all"])
    async def backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageBackend]:
        store = await (memory() if request.param == "prefix" else file(tmp_path / "root"))
        backend = await guarded(store, options(request.param, tmp_path))
        yield backend
        await backend.aclose()

    async def test_what_lies_beside_the_prefix_is_not_seen(self, backend: StorageBackend) -> None:
        beside = Prefixed(bare(backend, "k")[0], "a b/é%-not")
        await self.fill(beside, ["k", "dir/k"])
        left = await self.abandoned(beside, "gone")
        assert await self.keys(backend) == []
        assert await backend.sweep(0.0) == 0
        assert not await backend.delete("k")
        assert await self.keys(beside) == ["dir/k", "k"]
        assert await beside.sweep(0.0) == left
