"""FAILURES.md, case 64, with a real client: sockets that trickle, and sockets whose other end is gone without a word."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from backends.base import StorageBackend
from backends.errors import CircuitOpen, Unavailable
from backends.guards.breaker import breaker_of
from backends.guards.stack import GuardOptions, guarded
from backends.s3 import S3Backend
from backends.testing.material import NOTHING, fed, put, some_bytes
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket, s3_options
from tests.support.toxics import Proxy

SHORT = 0.3


@asynccontextmanager
async def behind_a_proxy(localstack: LocalStackEndpoint) -> AsyncIterator[tuple[S3Backend, Proxy]]:
    bucket = await new_bucket(localstack)
    url = urlsplit(localstack.endpoint_url)
    assert url.hostname
    assert url.port
    async with Proxy.to(url.hostname, url.port) as proxy:
        backend = await S3Backend.connect(
            s3_options(localstack, bucket, endpoint_url=f"http://127.0.0.1:{proxy.port}", part_size=5 << 20)
        )
        try:
            yield backend, proxy
        finally:
            proxy.heal()
            await backend.aclose()


def limits(**seconds: float) -> GuardOptions:
    return GuardOptions.model_validate({"timeouts": {"connect": None, "idle": None, **seconds}})


async def opened(backend: StorageBackend) -> None:
    async with backend.open("k"):
        pass


async def listed(backend: StorageBackend) -> None:
    async for _ in backend.list():
        pass


CALLS: tuple[Callable[[StorageBackend], Awaitable[object]], ...] = (
    lambda backend: backend.stat("k"),
    lambda backend: backend.delete("k"),
    lambda backend: backend.health(),
    opened,
    listed,
)


@pytest.mark.parametrize("toxic", ["half-open", "1 byte/s"])
async def test_case_64_a_call_without_an_answer_ends_at_its_deadline(
    localstack: LocalStackEndpoint, toxic: str
) -> None:
    async with behind_a_proxy(localstack) as (store, proxy):
        await put(store, "k", b"data")
        backend = await guarded(store, limits(connect=SHORT))
        proxy.black_hole("replies") if toxic == "half-open" else proxy.slow("replies", rate=1.0)
        for call in CALLS:
            with pytest.raises(Unavailable, match="connect timeout"):
                await call(backend)


async def test_case_64_a_read_that_trickles_ends_at_its_deadline(localstack: LocalStackEndpoint) -> None:
    data = some_bytes(24 << 20)
    async with behind_a_proxy(localstack) as (store, proxy):
        await store.write("k", fed(data), NOTHING)
        backend = await guarded(store, limits(idle=SHORT))
        received = 0

        async def trickling() -> None:
            nonlocal received
            async with backend.open("k") as chunks:
                async for chunk in chunks:
                    received += len(chunk)
                    proxy.slow("replies", rate=1.0)

        with pytest.raises(Unavailable, match="idle timeout"):
            await trickling()
        assert 0 < received < len(data)


@pytest.mark.parametrize("toxic", ["half-open", "1 byte/s"])
async def test_case_64_a_write_that_gets_nowhere_ends_at_its_deadline_and_leaves_nothing(
    localstack: LocalStackEndpoint, toxic: str
) -> None:
    async with behind_a_proxy(localstack) as (store, proxy):
        backend = await guarded(store, limits(idle=SHORT))
        proxy.black_hole() if toxic == "half-open" else proxy.slow("requests", rate=1.0)
        with pytest.raises(Unavailable, match="idle timeout"):
            await put(backend, "k", some_bytes(100_000))
        # What is still in the proxy is lost with the connection, as what is in a network is.
        proxy.reset()
        proxy.heal()
        assert await backend.stat("k") is None
        assert (await put(backend, "k", b"now")).created


async def test_case_64_a_deadline_waits_until_the_upload_is_aborted(localstack: LocalStackEndpoint) -> None:
    async with behind_a_proxy(localstack) as (store, proxy):
        backend = await guarded(store, limits(idle=SHORT))

        async def chunks() -> AsyncIterator[bytes]:
            yield some_bytes(6 << 20)
            # More than a part is asked for once the upload was begun. The store comes back after the deadline only.
            proxy.black_hole()
            asyncio.get_running_loop().call_later(3 * SHORT, proxy.heal)
            yield some_bytes(6 << 20)

        with pytest.raises(Unavailable, match="idle timeout"):
            await backend.write("k", chunks(), NOTHING)
        assert await store.sweep(0.0) == 0
        assert await store.stat("k") is None


async def test_case_64_a_slow_source_is_not_taken_for_a_slow_store(localstack: LocalStackEndpoint) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(SHORT)
            yield some_bytes(1000)

    async with behind_a_proxy(localstack) as (store, _):
        backend = await guarded(store, limits(idle=2 * SHORT, total=2 * SHORT))
        assert (await backend.write("k", slow(), NOTHING)).size == 3000


async def test_case_64_a_dead_store_is_soon_left_alone(localstack: LocalStackEndpoint) -> None:
    options = GuardOptions.model_validate(
        {
            "timeouts": {"connect": SHORT},
            "breaker": {"threshold": 2, "cooldown": 0.5},
            "retry": {"attempts": 9, "base": 0, "cap": 0},
        }
    )
    async with behind_a_proxy(localstack) as (store, proxy):
        backend = await guarded(store, options)
        breaker = breaker_of(backend)
        assert breaker is not None
        proxy.black_hole()
        with pytest.raises(CircuitOpen) as raised:
            await backend.stat("k")
        assert 0 < raised.value.retry_after <= 0.5
        accepted = proxy.accepted
        for call in CALLS:
            with pytest.raises(CircuitOpen):
                await call(backend)
        assert proxy.accepted == accepted
        proxy.heal()
        # As the worker does: nothing is tried before the breaker lets it through. A probe may fail on a stale connection.
        async with asyncio.timeout(30):
            while breaker.state != "closed":
                await asyncio.sleep(breaker.retry_after)
                with suppress(Unavailable):
                    await backend.stat("k")
