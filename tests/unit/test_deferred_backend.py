"""A target whose store comes up after the worker: backends/deferred.py, and how worker/stores.py uses it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest
from structlog.testing import capture_logs

from backends.base import Attributes, BackendOptions, single
from backends.deferred import PAUSE, DeferredBackend
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.memory import MemoryBackend, MemoryOptions
from tests.support.postgres_target import postgres_options
from tests.support.postgresql import PostgresqlServer
from tests.support.toxics import Proxy
from worker import stores
from worker.settings import load_settings


class Store:
    """Counts who connects; refuses with `error` as long as there is one."""

    def __init__(self) -> None:
        self.error: StorageError | None = Unavailable("nobody answers")
        self.attempts = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = 0.0

    def backend(self) -> DeferredBackend:
        store = self

        class Adapter(MemoryBackend):
            @classmethod
            async def connect(cls, options: BackendOptions) -> Self:
                store.attempts += 1
                await store.gate.wait()
                if store.error is not None:
                    raise store.error
                return await super().connect(options)

        return DeferredBackend(Adapter, MemoryOptions(), Unavailable("at the start"), lambda: store.now)


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def backend(store: Store) -> AsyncIterator[DeferredBackend]:
    backend = store.backend()
    yield backend
    await backend.aclose()


async def test_a_failed_attempt_is_not_repeated_at_once(store: Store, backend: DeferredBackend) -> None:
    with pytest.raises(Unavailable, match="at the start"):
        await backend.health()
    store.now = PAUSE
    for _ in range(2):
        with pytest.raises(Unavailable, match="nobody answers"):
            await backend.stat("k")
    assert store.attempts == 1
    store.now += PAUSE
    store.error = PermissionDenied("not you")
    for _ in range(2):
        with pytest.raises(PermissionDenied, match="not you"):
            await backend.write("k", single(b"x"), Attributes())
    assert store.attempts == 2


async def test_all_callers_share_one_attempt_and_its_backend(store: Store, backend: DeferredBackend) -> None:
    store.now, store.error = PAUSE, None
    store.gate.clear()
    calls = [asyncio.create_task(backend.write(f"k{n}", single(b"x"), Attributes())) for n in range(5)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.sleep(0)
    store.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [isinstance(each, BaseException) for each in results[1:]] == [False] * 4
    assert (store.attempts, [found.key async for found in backend.list()]) == (1, ["k1", "k2", "k3", "k4"])


async def test_closing_ends_an_attempt(store: Store) -> None:
    backend = store.backend()
    store.now = PAUSE
    store.gate.clear()
    call = asyncio.create_task(backend.health())
    await asyncio.sleep(0.01)
    await backend.aclose()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert store.attempts == 1
    store.gate.set()
    store.error = None
    with pytest.raises(Unavailable, match="closed"):
        await backend.stat("k")
    assert store.attempts == 1, "nobody would close what it opened"


async def test_a_target_that_is_down_at_the_start_does_not_keep_the_others(
    postgresql: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.deferred.PAUSE", 0.0)
    reachable = postgres_options(postgresql.url)
    async with Proxy.to(reachable.host, reachable.port) as proxy:
        options = reachable.model_dump(exclude_unset=True) | {"host": "127.0.0.1", "port": proxy.port}
        options["password"] = reachable.password.get_secret_value() if reachable.password else None
        told = tmp_path / "transload.yaml"
        disk = {"backend": "file", "root": str(tmp_path / "disk")}
        rows = {"backend": "postgres", **options}
        routes = {"default": {"targets": ["disk"], "best_effort": ["rows"]}}
        told.write_text(json.dumps({"targets": {"disk": disk, "rows": rows}, "routes": routes}))
        settings = load_settings(file=told, home=tmp_path, environ={})
        await proxy.down()
        with capture_logs() as logged:
            async with stores.open_targets(settings) as targets:
                await targets["disk"].write("k", single(b"x"), Attributes())
                with pytest.raises(Unavailable):
                    await targets["rows"].write("k", single(b"x"), Attributes())
                await proxy.up()
                receipt = await targets["rows"].write("k", single(b"x"), Attributes())
                assert await targets["rows"].stat("k") is not None
        assert receipt.created
        assert [entry["target"] for entry in logged if "unavailable" in entry["event"]] == ["rows"]
        await proxy.down()
        only = settings.model_copy(update={"targets": {"rows": settings.targets["rows"]}})
        with pytest.raises(Unavailable):
            async with stores.open_targets(only):
                pass
