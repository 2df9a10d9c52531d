"""The S3 adapter on a network and with credentials that fail it."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.base import Attributes, Promise, single
from backends.errors import Conflict, NotFound, PermissionDenied, StorageError, Unavailable
from backends.s3 import S3Backend
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_options, strict_backend
from tests.support.strict_s3 import StrictS3
from tests.support.toxics import Proxy

MIB = 1 << 20
PART = 5 * MIB
NOTHING = Attributes()
LARGE = random.Random(8).randbytes(2 * PART + 17)

CREATE = r"POST \S+\?uploads"
PUT_PART = r"PUT \S+partNumber="
ABORT = r"DELETE \S+uploadId="


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def read(backend: S3Backend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def listed(backend: S3Backend) -> list[str]:
    return [stat.key async for stat in backend.list()]


CALLS: dict[str, Callable[[S3Backend], Awaitable[object]]] = {
    "put": lambda backend: backend.write("new", single(b"x"), NOTHING),
    "multipart": lambda backend: backend.write("new", pieces(LARGE), NOTHING),
    "copy": lambda backend: backend.copy_from(backend, "there", "new", NOTHING, Promise()),
    "read": lambda backend: read(backend, "there"),
    "stat": lambda backend: backend.stat("there"),
    "list": listed,
    "delete": lambda backend: backend.delete("there"),
    "sweep": lambda backend: backend.sweep(0.0),
    "health": lambda backend: backend.health(),
}


@asynccontextmanager
async def behind_proxy(**changes: Any) -> AsyncIterator[tuple[S3Backend, StrictS3, Proxy]]:
    """A backend with an object, and the proxy through which alone it reaches its store."""
    async with strict_backend(part_size=PART) as (direct, store):
        await direct.write("there", pieces(LARGE), NOTHING)
        async with Proxy.to("127.0.0.1", int(store.url.rpartition(":")[2])) as proxy:
            endpoint = LocalStackEndpoint(f"http://127.0.0.1:{proxy.port}")
            backend = await S3Backend.connect(
                s3_options(endpoint, "bucket", part_size=PART, max_retries=0, **changes)
            )
            try:
                yield backend, store, proxy
            finally:
                await backend.aclose()


async def ended(backend: S3Backend) -> dict[str, object]:
    """What became of every call, all of them at once."""
    async with asyncio.timeout(20):
        outcomes = await asyncio.gather(*(call(backend) for call in CALLS.values()), return_exceptions=True)
    return dict(zip(CALLS, map(type, outcomes), strict=True))


async def test_case_64_a_half_open_connection_ends_every_call() -> None:
    async with behind_proxy(read_timeout=1, connect_timeout=1) as (backend, store, proxy):
        proxy.black_hole()
        assert await ended(backend) == dict.fromkeys(CALLS, Unavailable)
        proxy.heal()
        assert (list(store.buckets["bucket"]), store.uploads) == (["there"], {})
        assert await read(backend, "there") == LARGE
        assert (await backend.write("new", pieces(LARGE), NOTHING)).created


async def test_case_64_one_byte_a_second_ends_every_call() -> None:
    async with behind_proxy(request_timeout=1) as (backend, _, proxy):
        proxy.slow(rate=1)
        assert await ended(backend) == dict.fromkeys(CALLS, Unavailable)
        proxy.heal()
        proxy.reset()
        assert await read(backend, "there") == LARGE


async def test_case_64_a_read_that_dries_up_half_way_is_no_short_object() -> None:
    async with behind_proxy(request_timeout=1) as (backend, _, proxy):

        async def drying() -> None:
            async with backend.open("there") as chunks:
                await anext(aiter(chunks))
                proxy.slow("replies", rate=1)
                async for _ in chunks:
                    pass

        with pytest.raises(Unavailable):
            async with asyncio.timeout(20):
                await drying()


@pytest.mark.parametrize("call", sorted(CALLS))
async def test_case_59_what_is_denied_is_denied_everywhere(call: str) -> None:
    async with strict_backend(part_size=PART) as (backend, store):
        await backend.write("there", single(b"x"), NOTHING)
        store.fail_next(".", "denied", times=40)
        with pytest.raises(StorageError) as raised:
            await CALLS[call](backend)
        assert type(raised.value) is PermissionDenied
        store.forgive()
        assert (list(store.buckets["bucket"]), store.uploads) == (["there"], {})


async def test_case_71_credentials_that_expire_in_mid_multipart_fail_the_write_for_now() -> None:
    async with strict_backend(part_size=PART) as (backend, store):
        store.fail_next(r"partNumber=2", "expired", times=4)
        with pytest.raises(PermissionDenied, match="ExpiredToken") as raised:
            await backend.write("k", pieces(LARGE), NOTHING)
        assert raised.value.retryable
        assert (store.buckets["bucket"], store.uploads) == ({}, {})
        store.forgive()
        assert (await backend.write("k", pieces(LARGE), NOTHING)).created


async def test_case_71_what_expired_credentials_cannot_abort_a_sweep_finds() -> None:
    async with strict_backend(part_size=PART) as (backend, store):
        store.fail_next(rf"partNumber=2|{ABORT}", "expired", times=8)
        with pytest.raises(PermissionDenied) as raised:
            await backend.write("k", pieces(LARGE), NOTHING)
        assert any("a sweep has to remove it" in note for note in raised.value.__notes__)
        assert len(store.uploads) == 1
        store.forgive()
        assert await backend.sweep(0.0) == 1
        assert (store.buckets["bucket"], store.uploads) == ({}, {})


async def test_cancelled_calls_give_their_connections_back() -> None:
    async with strict_backend(part_size=PART, max_connections=2) as (backend, store):
        for pattern, call in ((PUT_PART, "multipart"), (CREATE, "multipart"), (r"^HEAD", "stat")):
            store.held.clear()
            store.released.clear()
            store.fail_next(pattern, "hold", times=2)
            task = asyncio.ensure_future(CALLS[call](backend))
            await store.held.wait()
            task.cancel()
            if pattern == CREATE:
                store.released.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            store.forgive()
        store.released.set()
        async with asyncio.timeout(10):
            assert (await backend.write("new", pieces(LARGE), NOTHING)).created
        assert re.search(ABORT, "\n".join(store.requests))
        assert store.uploads == {}


@pytest.mark.parametrize("error", [NotFound("staging"), Conflict("of the source")])
async def test_a_storage_error_of_the_source_in_a_later_part_is_no_fault_of_the_store(
    error: StorageError,
) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(1 << 20)
        raise error

    async with strict_backend(part_size=5 << 20) as (backend, store):
        with pytest.raises(type(error)) as raised:
            await backend.write("k", breaking(), Attributes())
        assert raised.value is error
        assert store.uploads == {}
