"""Worlds for crash tests: one configuration on real services, a load for it, and what is left of it in the end.

    async with open_world(Combination("sqs", "sqlite", "s3"), services, folder) as world:
        load = await publish(world, seed)
        ...  # run and kill workers of `world.transload`
        report = await check(world, load, logs)

Used by tests/faults/crash/ and tests/faults/test_crash_points.py. Every world has names of its own on the shared servers.
"""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import aiormq
import yaml
from pamqp.commands import Basic

from backends.base import Attributes, StorageBackend
from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.naming import resource_id, resource_name
from handlers.plan import StagingSource
from tests.support import history
from tests.support.cli import Transload
from tests.support.history import Notified, Published, Report, World
from tests.support.localstack import LocalStack, LocalStackEndpoint
from tests.support.postgresql import Postgresql, PostgresqlServer, in_thread
from tests.support.rabbitmq import RabbitBroker, RabbitMq, rabbit_queues
from tests.support.s3 import new_bucket
from tests.support.services import Board
from tests.support.sqs import sqs_queues
from tests.support.workers import Worker
from worker import bootstrap, stores
from worker.producer import BundleRef, Producer
from worker.queues.base import Message, OutgoingMessage, Queue, Retry
from worker.queues.sqs import SqsQueue, SqsQueueOptions
from worker.settings import Settings, load_settings

QUEUES = ("embedded", "sqs", "rabbitmq")
LEDGERS = ("sqlite", "postgresql")
BACKENDS = ("file", "s3")

LARGE = (5 << 20) + 1000
"""Bytes: several chunks for the file backend, two parts of an S3 upload."""
RECIPE = "crash"
UNREADABLE = b"{"
LATEST = 60.0
"""Seconds after which whatever a dead process held has come back."""


@dataclass(frozen=True, slots=True, order=True)
class Combination:
    """What a world is made of. The publisher is of the queue's kind, the staging of the target's."""

    queue: str = "embedded"
    ledger: str = "sqlite"
    backend: str = "file"

    def __str__(self) -> str:
        return f"{self.queue} x {self.ledger} x {self.backend}"


def combinations(queues: Sequence[str], ledgers: Sequence[str], backends: Sequence[str]) -> list[Combination]:
    """All combinations of these."""
    return [Combination(*parts) for parts in product(queues, ledgers, backends)]


@dataclass(slots=True)
class Services:
    """The shared servers; one that no world needs may be missing."""

    localstack: LocalStackEndpoint | None = None
    postgresql: PostgresqlServer | None = None
    rabbitmq: RabbitBroker | None = None


@contextmanager
def started(wanted: Sequence[Combination]) -> Iterator[Services]:
    """The servers that these combinations need, for the time of the block. Raises `NotAvailable`."""
    board = Board()
    with ExitStack() as stack:
        stack.callback(board.stop)
        services = Services()
        if any(each.queue == "sqs" or each.backend == "s3" for each in wanted):
            services.localstack = LocalStackEndpoint(board.demand(LocalStack()).endpoint_url)
        if any(each.ledger == "postgresql" for each in wanted):
            services.postgresql = PostgresqlServer(board.demand(Postgresql()).endpoint_url)
            stack.callback(lambda server: in_thread(server.forget()), services.postgresql)
            in_thread(_warmed(services.postgresql))
        if any(each.queue == "rabbitmq" for each in wanted):
            services.rabbitmq = RabbitBroker(board.demand(RabbitMq()).endpoint_url)
            stack.callback(lambda broker: in_thread(broker.forget()), services.rabbitmq)
        yield services


async def _warmed(server: PostgresqlServer) -> None:
    """Migrate once, before several ask for it at the same time."""
    async with server.database():
        pass


@dataclass(frozen=True, slots=True)
class Place:
    """One configuration, and how to get at what it announced."""

    transload: Transload
    settings: Settings
    canary: str
    """A secret of the settings; empty where they have none."""
    received: Callable[[], Awaitable[list[Notified]]]
    """Takes the notifications that lie in a queue for good, so it is called once."""


@dataclass(slots=True)
class Load:
    """What was announced. `refused` are the bodies that have to become dead letters."""

    published: list[Published] = field(default_factory=list)
    refused: set[bytes] = field(default_factory=set)


@asynccontextmanager
async def open_place(
    combination: Combination,
    services: Services,
    folder: Path,
    *,
    migrated: bool = True,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> AsyncIterator[Place]:
    """A configuration with names of its own. `changes` go over the sections of the settings file; a place that names no
    backend goes over the one there is.

    A PostgreSQL database is made; `migrated` says whether it has its tables.
    """
    async with AsyncExitStack() as stack:
        canary = f"canary-{secrets.token_hex(12)}"
        sections: dict[str, Any] = {
            "worker": {"max_attempts": 3, "retry_base": 0.05, "retry_cap": 0.2},
            "relay": {"lease": 1, "poll_interval": 0.2, "retry_base": 0.05, "retry_cap": 0.2},
            "housekeeping": {"enabled": False, "keep_published": 1_296_000},
            "logs": {"format": "json"},
        }
        home = folder / "home"
        received = await _queue(combination, services, stack, canary, sections) or partial(
            history.completions, home / "completions.db"
        )
        if combination.ledger == "postgresql":
            assert services.postgresql is not None
            url = await stack.enter_async_context(services.postgresql.database(migrated=migrated))
            sections["ledger"] = {"url": url}
        await _backend(combination, services, canary, sections)
        for name, values in (changes or {}).items():
            sections[name] = _over(sections.get(name, {}), values)
        file = _written(folder, sections)
        settings = load_settings(file=file, home=home, environ={})
        secret = canary if canary in repr(sections) else ""
        yield Place(Transload(home, file), settings, secret, received)


def _over(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    places = {
        name: {**section[name], **change}
        for name, change in changes.items()
        if isinstance(change, Mapping) and "backend" not in change and isinstance(section.get(name), Mapping)
    }
    return {**section, **changes, **places}


def _written(folder: Path, sections: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "transload.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return file


async def publish(place: Place, seed: int) -> Load:
    """Announce a bundle that is closed and one that is counted, and send a message that nobody can read.

    Payloads: a small one, an empty one, one of several chunks or parts, two small ones.
    """
    draw = random.Random(seed)
    load = Load(refused={UNREADABLE})
    payloads = {
        "https://example.com/page.html": draw.randbytes(300),
        "https://example.com/empty.txt": b"",
        "https://example.com/large.bin": draw.randbytes(LARGE),
    }
    async with _producing(place) as (queue, staging, source):
        producer = Producer(queue=queue, staging=staging, source=source)
        bundle = await producer.start_bundle(BundleRef("https://example.com/"), RECIPE)
        for url, data in payloads.items():
            await bundle.add_resource(url, "text/html", 200, _stream(data))
        await bundle.complete({"seed": seed})
        load.published.append(Published(bundle.bid, payloads))
        load.published.append(await _counted(queue, staging, source, draw))
        await queue.send([OutgoingMessage(body) for body in load.refused])
    return load


async def publish_small(place: Place, seed: int) -> Load:
    """Announce one bundle of two small payloads, by its count."""
    async with _producing(place) as parts:
        return Load([await _counted(*parts, random.Random(seed))])


async def publish_missing(place: Place, seed: int) -> Load:
    """Announce a bundle of one payload that is not there: it is tried again and becomes a dead letter."""
    async with _producing(place) as (queue, _, source):
        body = _fetched(source, f"test-missing-{seed:x}", "https://example.com/late.bin", None, 1)
        await queue.send([OutgoingMessage(body)])
    return Load(refused={body})


async def stage_missing(place: Place, seed: int) -> Load:
    """Stage the payload after all. What it adds to the load once its dead letter is sent back."""
    bid, url, data = (
        f"test-missing-{seed:x}",
        "https://example.com/late.bin",
        random.Random(seed).randbytes(500),
    )
    async with _producing(place) as (_, staging, _):
        await staging.write(f"{bid}/{resource_name(url)}", _stream(data), Attributes())
    return Load([Published(bid, {url: data}, closed=False)])


@asynccontextmanager
async def _producing(place: Place) -> AsyncIterator[tuple[Queue, StorageBackend, StagingSource]]:
    (source,) = stores.staging_sources(place.settings)
    async with (
        bootstrap.open_queue(place.settings) as queue,
        stores.open_staging(place.settings) as staging,
    ):
        yield queue, staging[source.name], source


async def check(place: Place, load: Load, logs: Sequence[Path]) -> Report:
    """Everything that must hold once all work is done."""
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(bootstrap.open_queue(place.settings))
        dead_letters = await queue.open_dead_letters()
        stack.push_async_callback(dead_letters.aclose)
        targets = await stack.enter_async_context(stores.open_targets(place.settings))
        staging = await stack.enter_async_context(stores.open_staging(place.settings))
        dead, queued, notifications = await asyncio.gather(
            _lying_in(dead_letters), _lying_in(queue), place.received()
        )
        report = await history.check(
            World(
                load.published,
                place.settings.ledger.url,
                targets,
                notifications,
                queued=queued,
                dead=dead,
                staging=list(staging.values()),
                logs=logs,
                canary=place.canary,
            )
        )
    _dead_letters(load, dead, report)
    return report


async def _lying_in(queue: Queue) -> list[Message]:
    """Every message of the queue, two copies of one as well: a dead letter that was written twice is no fault."""
    held: dict[str, Message] = {}
    async with asyncio.timeout(LATEST):
        while True:
            received = await queue.receive(10, 0.2)
            held |= {message.handle: message for message in received}
            depth = await queue.depth()
            if not (received or depth.visible or depth.delayed) and depth.in_flight <= len(held):
                break
    for message in held.values():
        await queue.settle(message, Retry())
    return list(held.values())


def announced_after(worker: Worker, since: float) -> float | None:
    """Seconds from then (by the wall clock) to the last notification the worker sent; None when it sent none."""
    times = [
        datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
        for line in worker.log.read_text(encoding="utf-8").splitlines()
        if '"bundle published"' in line
    ]
    return max(times) - since if times else None


def _dead_letters(load: Load, dead: Sequence[Message], report: Report) -> None:
    bodies = {message.body for message in dead}
    for body in sorted(load.refused - bodies):
        report.say("I2", f"the message {body[:60]!r} has to be a dead letter and is none")
    for body in sorted(bodies - load.refused):
        report.say("I2", f"the message {body[:60]!r} is a dead letter")


async def _counted(
    queue: Queue, staging: StorageBackend, source: StagingSource, draw: random.Random
) -> Published:
    """A bundle whose messages carry its count, and that nobody closes."""
    bid = f"test-{draw.getrandbits(48):012x}"
    payloads = {f"https://example.com/{number}.txt": draw.randbytes(1000) for number in (1, 2)}
    for url, data in payloads.items():
        await staging.write(f"{bid}/{resource_name(url)}", _stream(data), Attributes())
        await queue.send([OutgoingMessage(_fetched(source, bid, url, len(data), len(payloads)))])
    return Published(bid, payloads, closed=False)


def _fetched(source: StagingSource, bid: str, url: str, size: int | None, count: int) -> bytes:
    return encode(
        ResourceFetched(
            id=f"{bid}/{resource_id(url)}",
            bundle=Bundle(bid=bid, recipe_id=RECIPE, resources_count=count),
            resource=Resource(url=url, status_code=200),
            payload=Payload(location=source.location_of(f"{bid}/{resource_name(url)}"), size=size),
        )
    )


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


async def _queue(
    combination: Combination,
    services: Services,
    stack: AsyncExitStack,
    canary: str,
    sections: dict[str, Any],
) -> Callable[[], Awaitable[list[Notified]]] | None:
    """Fill in queue and publisher. What takes the notifications, where they go to a queue."""
    if combination.queue == "sqs":
        assert services.localstack is not None
        access = _access(services.localstack, canary)
        main = await stack.enter_async_context(sqs_queues(services.localstack, lease=1))
        completions = await stack.enter_async_context(sqs_queues(services.localstack, lease=30))
        sections["queue"] = {"type": "sqs", "queue_url": main.url, **access}
        sections["publisher"] = {"type": "sqs", "queue_url": completions.url, **access}
        options = SqsQueueOptions(**completions.options())

        async def received() -> list[Notified]:
            queue = await SqsQueue.connect(options)
            try:
                return await history.received(queue)
            finally:
                await queue.aclose()

        return received
    if combination.queue == "rabbitmq":
        assert services.rabbitmq is not None
        queues = await stack.enter_async_context(rabbit_queues(services.rabbitmq))
        url, completions_name = queues.url, f"{queues.name}.completions"
        sections["queue"] = {"type": "rabbitmq", "url": url, "queue": queues.name, "lease": 2}
        sections["publisher"] = {"type": "rabbitmq", "url": url, "queue": completions_name}
        stack.push_async_callback(queues.channel.queue_delete, completions_name)
        return partial(_taken, url, completions_name)
    sections["queue"] = {"type": "embedded", "lease": 1, "poll_interval": 0.02}
    return None


async def _taken(url: str, name: str) -> list[Notified]:
    """Everything in a queue of RabbitMQ, acknowledged."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        found: list[Notified] = []
        while True:
            message = await channel.basic_get(name, no_ack=True)
            if isinstance(message.delivery, Basic.GetEmpty):
                return found
            headers = message.header.properties.headers or {}
            found.append(Notified(message.body, {key: str(value) for key, value in headers.items()}))
    finally:
        await connection.close()


async def _backend(
    combination: Combination, services: Services, canary: str, sections: dict[str, Any]
) -> None:
    """Fill in staging and target."""
    if combination.backend == "file":
        places = [{"backend": "file"}, {"backend": "file"}]
    else:
        assert services.localstack is not None
        access = {"backend": "s3", "part_size": 5 << 20, **_access(services.localstack, canary)}
        places = [{**access, "bucket": await new_bucket(services.localstack)} for _ in range(2)]
    sections["staging"] = {"main": {"delete_published": True, **places[0]}}
    # Both are of one kind: a copy inside the store would leave nothing of the path from one to the other to be killed in.
    sections["targets"] = {"main": {**places[1], "server_copy": False}}


def _access(localstack: LocalStackEndpoint, canary: str) -> dict[str, Any]:
    """LocalStack takes any secret."""
    return {
        "region": localstack.region,
        "endpoint_url": localstack.endpoint_url,
        "access_key_id": localstack.access_key_id,
        "secret_access_key": canary,
    }
