"""The fetcher's side: everything may be repeated, and a bundle is closed with what was really announced."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from backends.base import StorageBackend, single
from backends.memory import MemoryBackend, MemoryOptions
from handlers.bids import is_bid
from handlers.messages import BundleClosed, Command, ResourceFetched, decode
from handlers.plan import StagingSource
from worker.producer import BundleRef, BundleStorageContext, Producer, ProducerError
from worker.queues.base import OutgoingMessage, QueueUnavailable
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue

REF = BundleRef("https://example.com", bid="test-a", meta={"m": 1})
URL = "https://example.com/a.html"


class Queue(MemoryQueue):
    """The memory queue; while `held`, a send has begun and does not go on; while `down`, it fails."""

    down = False
    sending: asyncio.Event
    free: asyncio.Event

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.sending.clear()
        self.free.clear()
        yield
        self.free.set()

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        self.sending.set()
        await self.free.wait()
        if self.down:
            raise QueueUnavailable("down")
        await super().send(messages)


@dataclass(slots=True)
class World:
    queue: Queue
    staging: StorageBackend
    source: StagingSource

    async def start(self, ref: BundleRef = REF) -> BundleStorageContext:
        return await Producer(queue=self.queue, staging=self.staging, source=self.source).start_bundle(
            ref, "fr"
        )

    async def sent(self) -> list[Command]:
        """Everything announced so far and not looked at yet."""
        commands = []
        while messages := await self.queue.receive(10, 0):
            commands += [decode(message.body) for message in messages]
        return commands


@pytest.fixture
async def world() -> AsyncIterator[World]:
    queue = await Queue.connect(QueueOptions())
    queue.sending, queue.free = asyncio.Event(), asyncio.Event()
    queue.free.set()
    staging = await MemoryBackend.connect(MemoryOptions())
    yield World(queue, staging, StagingSource("staging", staging.location, "in"))
    await queue.aclose()


async def test_what_is_announced_lies_in_staging(world: World) -> None:
    bundle = await world.start()
    await bundle.add_resource(URL, "text/html", 200, single(b"payload"), {"r": 1})
    await bundle.complete({"run": "1"})
    fetched, closed = await world.sent()
    assert isinstance(fetched, ResourceFetched)
    key = world.source.key_of(fetched.payload.location)
    assert key is not None
    assert key.startswith("in/test-a/a-")
    async with world.staging.open(key) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == b"payload"
    assert (fetched.payload.size, fetched.resource.status_code, fetched.resource.meta) == (7, 200, {"r": 1})
    assert (fetched.bundle.recipe_id, fetched.bundle.meta) == ("fr", {"m": 1})
    assert isinstance(closed, BundleClosed)
    assert (closed.bundle.resources_count, closed.bundle.metadata) == (1, {"run": "1"})


async def test_a_bundle_without_a_bid_gets_one(world: World) -> None:
    one, other = await world.start(BundleRef("u")), await world.start(BundleRef("u"))
    assert is_bid(one.bid)
    assert one.bid != other.bid
    assert one.bundle_ref.bid == one.bid
    assert await world.sent() == []


async def test_a_recipe_may_name_itself(world: World) -> None:
    class Recipe:
        recipe_id = "own"

    producer = Producer(queue=world.queue, staging=world.staging, source=world.source)
    await (await producer.start_bundle(REF, Recipe())).complete({})
    (closed,) = await world.sent()
    assert (closed.bundle.recipe_id, closed.bundle.bid) == ("own", "test-a")


async def test_repeating_everything_announces_the_same(world: World) -> None:
    runs = []
    for _ in range(2):
        bundle = await world.start()
        await bundle.add_resource(URL, None, None, single(b"payload"))
        await bundle.complete({})
        runs.append(await world.sent())
    assert runs[0] == runs[1]


async def test_a_url_added_twice_counts_once(world: World) -> None:
    bundle = await world.start()
    for _ in range(2):
        await bundle.add_resource(URL, None, None, single(b"payload"))
    await bundle.complete({})
    first, second, closed = await world.sent()
    assert first == second
    assert isinstance(closed, BundleClosed)
    assert closed.bundle.resources_count == 1


async def test_other_bytes_under_one_url_are_refused(world: World) -> None:
    bundle = await world.start()
    await bundle.add_resource(URL, None, None, single(b"payload"))
    with pytest.raises(ProducerError, match="other bytes"):
        await bundle.add_resource(URL, None, None, single(b"changed"))
    await bundle.complete({})
    first, closed = await world.sent()
    assert isinstance(first, ResourceFetched)
    assert first.payload.size == 7
    assert isinstance(closed, BundleClosed)
    assert closed.bundle.resources_count == 1


async def test_resources_may_be_added_at_once(world: World) -> None:
    bundle = await world.start()
    await asyncio.gather(
        *(bundle.add_resource(f"{URL}?{n}", None, None, single(b"%d" % n)) for n in range(50))
    )
    await bundle.complete({})
    commands = await world.sent()
    closed = commands[-1]
    assert isinstance(closed, BundleClosed)
    assert closed.bundle.resources_count == 50
    assert len({command.id for command in commands}) == 51


async def test_completing_while_adding_is_refused(world: World) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        entered.set()
        await go_on.wait()
        yield b"payload"

    bundle = await world.start()
    adding = asyncio.create_task(bundle.add_resource(URL, None, None, slow()))
    await entered.wait()
    with pytest.raises(ProducerError, match="still being added"):
        await bundle.complete({})
    go_on.set()
    await adding
    await bundle.complete({})
    closed = (await world.sent())[-1]
    assert isinstance(closed, BundleClosed)
    assert closed.bundle.resources_count == 1


async def test_case_79_nothing_is_added_after_completing(world: World) -> None:
    bundle = await world.start()
    await bundle.add_resource(URL, None, None, single(b"payload"))
    await bundle.complete({})
    before = await world.sent()
    with pytest.raises(ProducerError, match="closed; start another"):
        await bundle.add_resource(f"{URL}?late", None, None, single(b"late"))
    assert await world.sent() == []
    assert len([stat async for stat in world.staging.list()]) == 1
    await bundle.complete({})
    assert await world.sent() == before[1:], "closing again says the same"


async def test_case_79_nothing_is_added_while_completing(world: World) -> None:
    """The count is on its way: what came now would be late, stored and in no manifest."""
    bundle = await world.start()
    await bundle.add_resource(URL, None, None, single(b"payload"))
    async with world.queue.held():
        completing = asyncio.create_task(bundle.complete({}))
        await world.queue.sending.wait()
        with pytest.raises(ProducerError, match="closed; start another"):
            async with asyncio.timeout(10):
                await bundle.add_resource(f"{URL}?late", None, None, single(b"late"))
    await completing
    assert len(await world.sent()) == 2


async def test_a_completion_that_was_not_sent_may_be_sent_again(world: World) -> None:
    bundle = await world.start()
    await bundle.add_resource(URL, None, None, single(b"payload"))
    world.queue.down = True
    with pytest.raises(QueueUnavailable):
        await bundle.complete({})
    world.queue.down = False
    await bundle.complete({})
    closed = (await world.sent())[-1]
    assert isinstance(closed, BundleClosed)
    assert closed.bundle.resources_count == 1


async def test_metadata_nobody_can_send_leaves_the_bundle_open(world: World) -> None:
    bundle = await world.start()
    with pytest.raises(ProducerError):
        await bundle.complete({"x": object()})
    await bundle.add_resource(URL, None, None, single(b"payload"))
    await bundle.complete({})
    assert len(await world.sent()) == 2


class SourceBroke(Exception):
    pass


async def test_a_stream_that_breaks_announces_nothing_and_may_be_repeated(world: World) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"pay"
        raise SourceBroke

    bundle = await world.start()
    with pytest.raises(SourceBroke):
        await bundle.add_resource(URL, None, None, broken())
    assert await world.sent() == []
    assert [stat async for stat in world.staging.list()] == []
    await bundle.add_resource(URL, None, None, single(b"payload"))
    await bundle.complete({})
    assert len(await world.sent()) == 2


async def test_a_queue_that_is_down_is_told_and_may_be_tried_again(world: World) -> None:
    bundle = await world.start()
    await world.queue.aclose()
    with pytest.raises(QueueUnavailable):
        await bundle.add_resource(URL, None, None, single(b"payload"))
    with pytest.raises(ProducerError, match="not announced"):
        await bundle.complete({})


@pytest.mark.parametrize("ref", [BundleRef("u", bid="../x"), BundleRef("u\n"), BundleRef("u" * 9_000)])
async def test_a_bundle_that_cannot_be_announced(world: World, ref: BundleRef) -> None:
    with pytest.raises(ProducerError):
        await world.start(ref)


RESOURCES: list[Callable[[BundleStorageContext], Any]] = [
    lambda bundle: bundle.add_resource("", None, None, single(b"")),
    lambda bundle: bundle.add_resource("a\nb", None, None, single(b"")),
    lambda bundle: bundle.add_resource("\ud800", None, None, single(b"")),
    lambda bundle: bundle.add_resource(URL, "x" * 300, None, single(b"")),
    lambda bundle: bundle.add_resource(URL, None, 1_000, single(b"")),
    lambda bundle: bundle.add_resource(URL, None, None, single(b""), {"x": object()}),
    lambda bundle: bundle.add_resource(URL, None, None, single(b""), {"x": "\ud800"}),
]


@pytest.mark.parametrize("add", RESOURCES)
async def test_a_resource_that_cannot_be_announced(
    world: World, add: Callable[[BundleStorageContext], Any]
) -> None:
    bundle = await world.start()
    with pytest.raises(ProducerError):
        await add(bundle)
    assert await world.sent() == []
    await bundle.complete({})


async def test_nothing_the_worker_would_refuse_is_announced(world: World) -> None:
    """Also what is too large: it would end as a dead letter far from whoever can change it."""
    bundle = await world.start()
    with pytest.raises(ProducerError):
        await bundle.add_resource(URL, None, None, single(b""), {"x": "y" * 300_000})


def test_references_are_kept_as_dicts() -> None:
    assert BundleRef.from_dict(REF.to_dict()) == REF
    with pytest.raises(ProducerError, match="bundle reference"):
        BundleRef.from_dict({"primary_url": "u", "unknown": 1})
    with pytest.raises(ProducerError, match="bundle reference"):
        BundleRef.from_dict({})


async def test_what_is_staged_but_not_announced_keeps_the_bundle_from_closing(world: World) -> None:
    bundle = await world.start()
    await bundle.add_resource(URL, None, 200, single(b"one"))
    world.queue.down = True
    with pytest.raises(QueueUnavailable):
        await bundle.add_resource("https://example.com/b", None, 200, single(b"two"))
    world.queue.down = False
    with pytest.raises(ProducerError, match="not announced"):
        await bundle.complete({})
    await bundle.add_resource("https://example.com/b", None, 200, single(b"two"))
    await bundle.complete({})
    closed = (await world.sent())[-1]
    assert closed.bundle.resources_count == 2
