"""A world whose payloads take as long as a test wants, and whole worker processes on it.

    async with slow_world(Combination("rabbitmq"), services, folder, changes=settings) as world:
        world.staging.held.add("test-a/slow")
        await world.put("test-a", "slow", "quick")
        worker = world.start()

Used by the tests of drains, poison and outages beside it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.naming import resource_id
from tests.faults.worlds import Combination, Place, Services, open_place
from tests.support import history
from tests.support.cli import Transload
from tests.support.history import Published, Report, World
from tests.support.processes import free_port
from tests.support.slow_staging import BUCKET, SlowStaging, slow_staging
from tests.support.workers import Worker, Workers, workers
from worker import bootstrap, stores
from worker.ledger.database import open_database
from worker.queues.base import Message, OutgoingMessage, Queue

PATIENCE = 60.0
"""Seconds after which a test has failed."""
Changes = Mapping[str, Mapping[str, Any]]
"""Section of the settings file -> keys that go over its own."""
_ANNOUNCED = "SELECT bid FROM bundles WHERE state = 'published'"


def needed(request: pytest.FixtureRequest, combination: Combination) -> Services:
    """The servers of this combination; no other one is started."""
    return Services(
        localstack=request.getfixturevalue("localstack") if combination.queue == "sqs" else None,
        postgresql=request.getfixturevalue("postgresql") if combination.ledger == "postgresql" else None,
        rabbitmq=request.getfixturevalue("rabbitmq") if combination.queue == "rabbitmq" else None,
    )


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look until it holds, while the test's event loop goes on."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what a process does sets no event here
            await asyncio.sleep(0.02)


@dataclass(slots=True)
class SlowWorld:
    """One configuration; keys of the staging are `BID/NAME`."""

    place: Place
    staging: SlowStaging
    queue: Queue
    pool: Workers
    published: dict[str, Published] = field(default_factory=dict)

    def start(self, *, failpoints: str = "", environ: Mapping[str, str] | None = None) -> Worker:
        """A worker that runs until it is told to stop."""
        return self.pool.start("run", failpoints=failpoints, environ=environ)

    async def put(self, bid: str, *names: str, payload: bytes = b"payload" * 20) -> None:
        """Stage and announce a bundle of these resources, which its messages count."""
        payloads = {name: payload + f"{bid}/{name}".encode() for name in names}
        urls = {name: f"https://example.com/{bid}/{name}" for name in names}
        self.staging.payloads |= {f"{bid}/{name}": data for name, data in payloads.items()}
        # Known before it is sent: what was sent half is checked as well.
        self.published[bid] = Published(
            bid, {urls[name]: data for name, data in payloads.items()}, closed=False
        )
        bodies = (
            encode(
                ResourceFetched(
                    id=f"{bid}/{resource_id(urls[name])}",
                    bundle=Bundle(bid=bid, recipe_id="slow", resources_count=len(names)),
                    resource=Resource(url=urls[name], status_code=200),
                    payload=Payload(location=f"s3://{BUCKET}/{bid}/{name}", size=len(data)),
                )
            )
            for name, data in payloads.items()
        )
        await self.queue.send([OutgoingMessage(body) for body in bodies])

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the ledger answers."""
        database = open_database(self.place.settings.ledger.url)
        try:
            return await database.read(lambda conn: [tuple(row) for row in conn.execute(text(statement))])
        finally:
            await database.aclose()

    async def announced(self, *bids: str, seconds: float = PATIENCE) -> None:
        """Wait until these bundles, by default all, are published."""
        wanted = set(bids or self.published)
        async with asyncio.timeout(seconds):
            while wanted - {bid for (bid,) in await self.rows(_ANNOUNCED)}:  # noqa: ASYNC110 - nor does a database
                await asyncio.sleep(0.05)

    async def settled(self, seconds: float = PATIENCE) -> None:
        """Wait until no message is left in the queue, as far as the queue can tell."""
        async with asyncio.timeout(seconds):
            while not (await self.queue.depth()).idle:  # noqa: ASYNC110 - nor does a queue on a server
                await asyncio.sleep(0.05)

    async def dead_letters(self) -> list[Message]:
        """Looked at, and given back."""
        letters = await self.queue.open_dead_letters()
        try:
            return await history.contents(letters)
        finally:
            await letters.aclose()

    async def report(self) -> Report:
        """Everything that must hold once all work is done. The workers have ended; this takes the notifications."""
        dead = await self.dead_letters()
        async with stores.open_targets(self.place.settings) as targets:
            return await history.check(
                World(
                    list(self.published.values()),
                    self.place.settings.ledger.url,
                    targets,
                    await self.place.received(),
                    queued=await history.contents(self.queue),
                    dead=dead,
                    logs=[worker.log for worker in self.pool.started],
                    canary=self.place.canary,
                )
            )

    async def nothing_lost(self, *dead: str, killed: bool = False) -> None:
        """Everything was announced once, as it was staged, but for the bundles with a message among the dead letters.

        Where workers were `killed`, one may have died between an announcement and its note: that one is made again.
        """
        report = await self.report()
        assert report.violations == []
        assert (report.lost, report.dead, report.unfinished) == (set(), set(dead), set())
        assert killed or report.duplicates == 0


@asynccontextmanager
async def slow_world(
    combination: Combination,
    services: Services,
    folder: Path,
    *,
    changes: Changes = MappingProxyType({}),
    logs: Path | None = None,
) -> AsyncIterator[SlowWorld]:
    """A world of its own, and its staging. `logs`: where the workers' logs go, when not into `folder`."""
    async with AsyncExitStack() as stack:
        staging = await stack.enter_async_context(slow_staging())
        access = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}
        source = {"main": {"backend": "s3", "bucket": BUCKET, "endpoint_url": staging.url, **access}}
        place = await stack.enter_async_context(
            open_place(combination, services, folder, changes={"staging": source, **changes})
        )
        # From here on the ledger can be asked, whether a worker has run or not.
        async with bootstrap.open_ledger(place.settings):
            pass
        queue = await stack.enter_async_context(bootstrap.open_queue(place.settings))
        pool = stack.enter_context(workers(place.transload, logs or folder / "logs"))
        yield SlowWorld(place, staging, queue, pool)


def detour(place: Place, changes: Changes) -> Transload:
    """The same place by another way, such as a proxy's: workers take it, and the test looks past it."""
    original = place.transload.config
    assert original is not None
    sections = yaml.safe_load(original.read_text(encoding="utf-8"))
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values}
    file = original.with_name("detour.yaml")
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return Transload(place.transload.home, file)


def admin_port() -> tuple[int, Mapping[str, str]]:
    """A port for a worker's metrics and probes, and the variables that make the worker listen there."""
    port = free_port()
    return port, {"TRANSLOAD_ADMIN__PORT": str(port)}


async def probed(port: int, path: str) -> tuple[int, str]:
    """Status and body of a page of the admin server."""

    def ask() -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


def told(worker: Worker, event: str) -> list[dict[str, Any]]:
    """The lines of that event in its log, which is JSON."""
    lines = (line for line in worker.log.read_text(encoding="utf-8").splitlines() if line.startswith("{"))
    return [line for line in map(json.loads, lines) if line["event"] == event]
