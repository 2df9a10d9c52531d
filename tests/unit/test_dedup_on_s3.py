"""Identical payloads on S3: what goes over the wire, and what is made of an object that was removed or replaced there."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from backends.base import Attributes, single
from backends.memory import MemoryBackend, MemoryOptions
from backends.s3 import S3Backend
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import fronted_backend
from tests.support.s3_front import Front
from tests.unit.test_dedup import DATA, OTHER, Ledger, World
from worker.ledger.database import migrate, open_database
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue


class OnS3:
    """A world whose target is a bucket, and what it was asked."""

    def __init__(self, world: World, front: Front, backend: S3Backend) -> None:
        self.world, self.front, self.backend = world, front, backend

    async def asked(self, bid: str, data: bytes = DATA) -> list[str]:
        """The methods of the requests that a payload takes."""
        self.front.requests.clear()
        await self.world.process(bid, data)
        return [line.split(" ", 1)[0] for line in self.front.requests]


@pytest.fixture
async def on_s3(localstack: LocalStackEndpoint, tmp_path: Path) -> AsyncIterator[OnS3]:
    async with AsyncExitStack() as stack:
        backend, front = await stack.enter_async_context(fronted_backend(localstack))
        database = open_database(f"sqlite:///{tmp_path}/ledger.db")
        await migrate(database)
        ledger = Ledger(database)
        stack.push_async_callback(ledger.aclose)
        queue = await MemoryQueue.connect(QueueOptions())
        stack.push_async_callback(queue.aclose)
        staging = await MemoryBackend.connect(MemoryOptions())
        yield OnS3(World(ledger, queue, staging, {"one": backend}), front, backend)


async def test_an_identical_payload_is_looked_at_and_not_sent(on_s3: OnS3) -> None:
    assert "PUT" in await on_s3.asked("a")
    before = on_s3.front.carried
    assert await on_s3.asked("b") == ["HEAD", "HEAD"]
    assert on_s3.front.carried == before
    assert await on_s3.world.lying("b") == await on_s3.world.lying("a")


async def test_an_object_that_was_removed_or_replaced_is_stored_anew(on_s3: OnS3) -> None:
    await on_s3.asked("a")
    key = (await on_s3.world.lying("a")).key
    await on_s3.backend.delete(key)
    assert "PUT" in await on_s3.asked("b")
    assert await on_s3.asked("c") == ["HEAD", "HEAD"]
    second = await on_s3.world.lying("b")
    assert await on_s3.world.lying("c") == second
    await on_s3.backend.delete(second.key)
    await on_s3.backend.write(second.key, single(OTHER), Attributes())
    assert "PUT" in await on_s3.asked("d"), "as long, with another etag"
    assert await on_s3.world.one.read((await on_s3.world.lying("d")).key) == DATA


async def test_an_object_in_parts_is_referred_to_as_well(on_s3: OnS3) -> None:
    """Its etag is no digest of it."""
    large = bytes(range(256)) * (36 << 10)
    assert "POST" in await on_s3.asked("a", large)
    assert await on_s3.asked("b", large) == ["HEAD", "HEAD"]
