"""The running worker: what it counts, how it stops, and what an outage or a bug does to it. Real parts, all in one process."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.base import Attributes, Receipt, single
from backends.memory import MemoryBackend, MemoryOptions
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.layouts import ObjectLayout
from handlers.messages import Bundle, BundleClosed, ClosedBundle, Payload, Resource, ResourceFetched, encode
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from worker import service as service_module
from worker.budget import Budget
from worker.circuits import Circuits
from worker.disposition import RetryPolicy
from worker.health import Health
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Summary
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.base import Notification, PublisherOptions, PublishError
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import Ack, Disposition, Message, OutgoingMessage, QueueUnavailable, Retry
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.relay import Relay, RelaySettings
from worker.service import Service, ServiceSettings

PATIENCE = 10.0
"""Seconds after which a test has failed; all of them need a small part of it."""
SOON = 0.05
HOUR = 3_600.0
PAYLOAD = b"payload"


class Queue(MemoryQueue):
    """The memory queue; each attribute is one thing that goes wrong with it."""

    down = False
    receives = 0
    settles = 0
    overtaken = False
    """Before it settles, the lease passes and another worker receives the message."""
    taken: tuple[Message, ...] = ()
    silent = False
    """A settle gets no answer, ever."""

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        self.receives += 1
        if self.down:
            raise QueueUnavailable("down")
        return await super().receive(limit, wait)

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        self.settles += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.overtaken:
            await super().settle(message, Retry(0))
            self.taken = tuple(await super().receive(1, 0))
        return await super().settle(message, disposition)


class Publisher(EmbeddedPublisher):
    """The embedded publisher; `calls` counts, `gate` holds a call back after what it sent was accepted."""

    Options: ClassVar[type[PublisherOptions]] = EmbeddedPublisherOptions
    error: PublishError | None
    bug: Exception | None
    gate: asyncio.Event
    calls: int

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        self.calls += 1
        if self.bug is not None:
            raise self.bug
        if self.error is not None:
            await self.gate.wait()
            return [self.error] * len(notifications)
        outcomes = await super().publish(notifications)
        await self.gate.wait()
        return outcomes


class Ledger(SqlLedger):
    """`asked` counts how often somebody wanted to know whether all is announced."""

    asked = 0
    bug: Exception | None = None

    async def pending(self) -> int:
        self.asked += 1
        return await super().pending()

    async def summary(self) -> Summary:
        if self.bug is not None:
            raise self.bug
        return await super().summary()


class SlowBackend(MemoryBackend):
    """A write ends when `gate` is open."""

    entered: asyncio.Event
    gate: asyncio.Event

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        self.entered.set()
        await self.gate.wait()
        return await super().write(key, chunks, attributes)


class FullDisk:
    """A log that cannot write one of its lines."""

    def __init__(self, log: Any, event: str) -> None:
        self._log, self._event = log, event

    def warning(self, event: str, **fields: Any) -> None:
        if event == self._event:
            raise OSError(28, "No space left on device")
        self._log.warning(event, **fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class World:
    queue: Queue
    ledger: Ledger
    publisher: Publisher
    staging: MemoryBackend
    target: SlowBackend
    health: Health
    clock: Clock
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def service(self, *, drain: float = SOON) -> Service:
        metrics = Metrics()
        targets = {"target": self.target}
        routes = Routes((Route("default", (Target("target", ObjectLayout()),)),))
        source = StagingSource("staging", self.staging.location)
        relay = Relay(
            ledger=self.ledger,
            publisher=self.publisher,
            targets=targets,
            settings=RelaySettings(lease=HOUR, poll_interval=0.02),
            retry=RetryPolicy(base=0.0),
            random=lambda: 0.0,
            metrics=metrics,
            budget=Budget(64 << 20),
        )
        pipeline = Pipeline(
            ledger=self.ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": self.staging},
            targets=targets,
            max_message_bytes=100_000,
            budget=Budget(1 << 30),
            spool=Path(),
            on_complete=relay.wake,
        )
        return Service(
            queue=self.queue,
            pipeline=pipeline,
            relay=relay,
            ledger=self.ledger,
            housekeeping=None,
            settings=ServiceSettings(4, drain),
            retry=RetryPolicy(),
            random=lambda: 0.0,
            metrics=metrics,
            health=self.health,
            circuits=Circuits([]),
        )

    def start(self, service: Service, *, until_idle: bool = False) -> asyncio.Task[None]:
        task = asyncio.create_task(service.run(until_idle=until_idle))
        self.tasks.append(task)
        return task

    async def states(self) -> dict[str, str]:
        return {bundle.bid: bundle.state for bundle in await self.ledger.bundles()}

    async def receive_counts(self) -> list[int]:
        return [message.receive_count for message in await self.queue.receive(10, 0)]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(service_module, "_LAST_WORDS", SOON)
    monkeypatch.setattr(service_module, "_PAUSE_AFTER_QUEUE_ERROR", 0.01)
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = Ledger(database)
    publisher = await Publisher.connect(EmbeddedPublisherOptions(path=tmp_path / "completions.db"))
    publisher.error, publisher.bug, publisher.calls, publisher.gate = None, None, 0, asyncio.Event()
    publisher.gate.set()
    staging = await MemoryBackend.connect(MemoryOptions())
    await staging.write("x", single(PAYLOAD), Attributes())
    target = await SlowBackend.connect(MemoryOptions())
    target.entered, target.gate = asyncio.Event(), asyncio.Event()
    target.gate.set()
    queue = await Queue.connect(QueueOptions())
    clock = Clock()
    health = Health(loop_stall=HOUR, receive_stall=60.0, clock=clock)
    health.schema_current = True
    world = World(queue, ledger, publisher, staging, target, health, clock)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await queue.aclose()
    await publisher.aclose()
    await ledger.aclose()


def closed(bid: str, count: int = 0, delay: float = 0.0) -> OutgoingMessage:
    """With a count of 0 it is all that its bundle needs."""
    bundle = ClosedBundle(bid=bid, recipe_id="r", resources_count=count)
    return OutgoingMessage(encode(BundleClosed(id=f"{bid}/closed", bundle=bundle)), delay=delay)


def fetched(bid: str) -> OutgoingMessage:
    return OutgoingMessage(
        encode(
            ResourceFetched(
                id=f"{bid}/1",
                bundle=Bundle(bid=bid, recipe_id="r", resources_count=1),
                resource=Resource(url="https://example.com/a.html"),
                payload=Payload(
                    location="memory://main/x",
                    size=len(PAYLOAD),
                    sha256=hashlib.sha256(PAYLOAD).hexdigest(),
                ),
            )
        )
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the parts under test have no event for it
            await asyncio.sleep(0.005)


async def ended(running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE):
        await running


async def test_a_stale_settle_is_not_counted(world: World) -> None:
    world.queue.overtaken = True
    await world.queue.send([closed("test-a")])
    service = world.service()
    running = world.start(service)
    await until(lambda: len(world.queue.taken) == 1 and not service._in_work)
    assert service.progress.acked == 0
    assert b'outcome="ack",queue=' not in service._metrics.render()
    (taken,) = world.queue.taken
    world.queue.overtaken = False
    assert await world.queue.settle(taken, Ack()), "it is still the other worker's"
    service.stop()
    await ended(running)


async def test_a_settle_that_holds_is_counted(world: World) -> None:
    await world.queue.send([closed("test-a")])
    service = world.service()
    await ended(world.start(service, until_idle=True))
    assert (service.progress.acked, service.progress.retried, service.progress.dead) == (1, 0, 0)
    assert b'transload_messages_settled_total{outcome="ack",queue="memory"} 1.0' in service._metrics.render()


async def test_a_handler_that_dies_leaves_no_heartbeat(world: World) -> None:
    await world.queue.send([OutgoingMessage(b"no json")])
    service = world.service()
    service._settler._log = FullDisk(service._settler._log, "message failed")
    running = world.start(service)
    await until(lambda: world.queue.receives > 1 and not service._in_work)
    assert len(service._leases) == 0
    assert (await world.queue.depth()).in_flight == 1, "left to its lease"
    assert world.queue.settles == 0
    assert not running.done(), "one message's trouble"
    service.stop()
    await ended(running)


async def test_an_unreachable_queue_is_no_reason_to_restart(world: World) -> None:
    world.queue.down = True
    service = world.service()
    running = world.start(service)
    await until(lambda: world.queue.receives > 0)
    world.clock.now += HOUR
    asked = world.queue.receives
    # The second call after the jump begins when the first one's failure has been noted.
    await until(lambda: world.queue.receives >= asked + 2)
    world.health.tick()
    assert world.health.live().ok
    assert world.health.ready().reasons == ("the queue does not answer",)
    await world.queue.send([closed("test-a")])
    world.queue.down = False
    await until(lambda: service.progress.acked == 1)
    assert world.health.ready().ok
    service.stop()
    await ended(running)


async def test_stop_lets_a_publication_finish_and_marks_it(world: World) -> None:
    world.publisher.gate.clear()
    await world.queue.send([closed("test-a")])
    service = world.service(drain=PATIENCE)
    running = world.start(service)
    await until(lambda: world.publisher.calls == 1 and service.progress.acked == 1)
    service.stop()
    await until(lambda: service._relay._stopping)
    assert await world.states() == {"test-a": "complete"}
    world.publisher.gate.set()
    await ended(running)
    assert await world.states() == {"test-a": "published"}
    assert world.publisher.calls == 1


async def test_stop_announces_what_was_completed_meanwhile(world: World) -> None:
    """The relay is still busy with the first bundle when it is told to end after this round."""
    world.publisher.gate.clear()
    await world.queue.send([closed("test-a")])
    service = world.service(drain=PATIENCE)
    running = world.start(service)
    await until(lambda: world.publisher.calls == 1)
    await world.queue.send([closed("test-b")])
    await until(lambda: service.progress.acked == 2)
    service.stop()
    await until(lambda: service._relay._stopping)
    world.publisher.gate.set()
    await ended(running)
    assert await world.states() == {"test-a": "published", "test-b": "published"}
    assert world.publisher.calls == 2


async def test_what_is_in_work_may_finish_before_the_deadline(world: World) -> None:
    world.target.gate.clear()
    await world.queue.send([fetched("test-a")])
    service = world.service(drain=PATIENCE)
    running = world.start(service)
    await until(world.target.entered.is_set)
    service.stop()
    await until(lambda: world.health.draining)
    world.target.gate.set()
    await ended(running)
    assert service.progress.acked == 1
    assert await world.states() == {"test-a": "published"}


async def test_the_drain_ends_though_a_settle_never_returns(world: World) -> None:
    world.queue.silent = True
    await world.queue.send([closed("test-a")])
    service = world.service()
    running = world.start(service)
    await until(lambda: world.queue.settles == 1)
    service.stop()
    await ended(running)
    assert world.queue.settles == 1, "one message has one answer"
    assert service.progress.acked == 0
    assert len(service._leases) == 0
    assert await world.states() == {"test-a": "published"}


async def test_the_drain_ends_though_a_publisher_never_answers(world: World) -> None:
    world.publisher.gate.clear()
    await world.queue.send([closed("test-a")])
    service = world.service()
    running = world.start(service)
    await until(lambda: world.publisher.calls == 1 and service.progress.acked == 1)
    service.stop()
    await ended(running)
    assert await world.states() == {"test-a": "complete"}
    assert await world.ledger.pending() == 1, "left for the next worker"


async def test_the_drain_ends_though_every_publication_fails(world: World) -> None:
    world.publisher.error = PublishError("no answer")
    await world.queue.send([closed("test-a")])
    service = world.service()
    running = world.start(service)
    await until(lambda: world.publisher.calls > 1 and service.progress.acked == 1)
    service.stop()
    await ended(running)
    assert await world.ledger.pending() == 1


async def test_until_idle_waits_for_the_outbox(world: World) -> None:
    world.publisher.error = PublishError("no answer")
    await world.queue.send([closed("test-a")])
    running = world.start(world.service(), until_idle=True)
    await until(lambda: world.ledger.asked > 1)
    assert not running.done()
    world.publisher.error = None
    await ended(running)
    assert await world.states() == {"test-a": "published"}


async def test_until_idle_waits_for_delayed_messages(world: World) -> None:
    await world.queue.send([closed("test-a", delay=0.5)])
    service = world.service()
    await ended(world.start(service, until_idle=True))
    assert service.progress.acked == 1
    assert await world.states() == {"test-a": "published"}


async def test_until_idle_waits_for_what_another_worker_holds(world: World) -> None:
    await world.queue.send([closed("test-a")])
    (held,) = await world.queue.receive(1, 0)
    service = world.service()
    running = world.start(service, until_idle=True)
    await until(lambda: world.queue.receives > 4)
    assert not running.done()
    await world.queue.settle(held, Retry(0))
    await ended(running)
    assert service.progress.acked == 1


async def test_a_relay_that_dies_ends_the_run_with_its_error(world: World) -> None:
    world.publisher.bug = RuntimeError("nobody foresaw it")
    await world.queue.send([closed("test-a")])
    running = world.start(world.service())
    with pytest.raises(RuntimeError, match="nobody foresaw it"):
        await ended(running)
    assert world.health.draining
    assert await world.ledger.pending() == 1


async def test_any_background_task_that_dies_ends_the_run_with_its_error(world: World) -> None:
    world.ledger.bug = RuntimeError("gauges")
    with pytest.raises(RuntimeError, match="gauges"):
        await ended(world.start(world.service()))


async def test_stop_gives_a_long_transfer_back_and_another_worker_finishes_it(world: World) -> None:
    world.target.gate.clear()
    await world.queue.send([fetched("test-a")])
    first = world.service()
    running = world.start(first)
    await until(world.target.entered.is_set)
    first.stop()
    await ended(running)
    depth = await world.queue.depth()
    assert (depth.visible, depth.in_flight, depth.delayed) == (1, 0, 0), "given back, visible at once"
    assert first.progress.acked == 0
    assert [stat async for stat in world.target.list()] == []
    world.target.gate.set()
    second = world.service()
    await ended(world.start(second, until_idle=True))
    assert second.progress.acked == 1
    assert await world.states() == {"test-a": "published"}
    bundle = await world.ledger.bundle("test-a")
    assert bundle is not None
    assert bundle.stored_count == 1


@pytest.mark.parametrize("recorded", [True, False])
async def test_case_18_what_is_recorded_is_no_dead_letter_however_often_its_process_died(
    world: World, *, recorded: bool
) -> None:
    if recorded:
        await world.queue.send([closed("test-a")])
        await ended(world.start(world.service(), until_idle=True))
    await world.queue.send([closed("test-a")])
    (message,) = await world.queue.receive(1, 0)
    for _ in range(RetryPolicy().max_attempts):
        await world.ledger.begin(world.queue.name, message.id)
    await world.queue.settle(message, Retry(0))
    service = world.service()
    await ended(world.start(service, until_idle=True))
    assert (service.progress.acked, service.progress.dead) == ((1, 0) if recorded else (0, 1))
    assert (await world.queue.depth()).dead == service.progress.dead
