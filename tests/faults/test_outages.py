"""Cases 36, 41, 43 and 53, and queues that are cut off: whole workers wait, lose nothing, and go on by themselves."""

import asyncio
import random
import resource
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.faults.slow_worlds import (
    Changes,
    SlowWorld,
    admin_port,
    detour,
    needed,
    probed,
    slow_world,
    told,
    until,
)
from tests.faults.worlds import Combination, Load, Place, Services, check, open_place
from tests.support.history import Published
from tests.support.localstack import LocalStackEndpoint
from tests.support.postgresql import OwnServer
from tests.support.s3 import new_bucket
from tests.support.toxics import Proxy
from tests.support.workers import Worker, Workers, workers
from worker import bootstrap, stores
from worker.producer import BundleRef, Producer

PROBES = 3
"""Unanswered ones, after which an intake that should pause would have received."""
SILENT = "the ledger takes no writes"


@pytest.fixture(scope="module")
def own() -> Iterator[OwnServer]:
    with OwnServer.create() as server:
        yield server


@pytest.mark.parametrize("end", ["case 41: stopped", "case 43: killed"])
async def test_case_41_and_43_without_its_database_a_worker_waits_and_goes_on(
    own: OwnServer, tmp_path: Path, end: str
) -> None:
    settings: Changes = {
        "queue": {"lease": 600},
        # What waits here for its turn would be tried, and given back.
        "worker": {"concurrency": 2, "max_attempts": 2, "drain_timeout": 0, "look_ahead": 0},
    }
    combination, services = Combination("embedded", "postgresql"), Services(postgresql=own)
    async with slow_world(combination, services, tmp_path, changes=settings) as world:
        world.staging.held = {"test-slow/one", "test-slow/two"}
        await world.put("test-before", "one")
        await world.put("test-slow", "one", "two")
        # Given back once: from the second receive on, tries are noted before they begin.
        first = world.start()
        await until(lambda: len(world.staging.halfway) == 3)
        await world.announced("test-before")
        first.terminate()
        assert await first.ended() == 0, first.tail()
        port, environ = admin_port()
        probes = tmp_path / "probes"
        worker = world.start(failpoints=f"ledger.probe.before=note:{probes}", environ=environ)
        await until(lambda: len(world.staging.halfway) == 5)
        await world.put("test-later", "one", "two")
        assert (await probed(port, "/readyz"))[0] == 200
        await asyncio.to_thread(own.kill if "killed" in end else own.stop)
        try:
            world.staging.released.set()
            await paused(worker, port, probes)
            assert receives(world) == [0, 0, 2, 2], "nothing was received, and nothing acknowledged"
        finally:
            await asyncio.to_thread(own.start)
        await resumed(world, worker, port)
        assert told(worker, "intake resumed")
        await world.nothing_lost()


async def test_case_53_on_a_full_disk_the_intake_pauses_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    settings: Changes = {
        "ledger": {"url": f"sqlite:///{disk / 'ledger.db'}"},
        "queue": {"lease": 600},
        "worker": {"concurrency": 2, "max_attempts": 2, "look_ahead": 0},
    }
    with small_disk(disk) as (fill, free):
        async with slow_world(Combination(), Services(), tmp_path, changes=settings) as world:
            port, environ = admin_port()
            probes = tmp_path / "probes"
            worker = world.start(failpoints=f"ledger.probe.before=note:{probes}", environ=environ)
            await at_work(world)
            fill(worker)
            world.staging.released.set()
            await paused(worker, port, probes)
            assert receives(world) == [0, 0, 1, 1], "nothing was received, and nothing acknowledged"
            free(worker)
            await resumed(world, worker, port)
            assert told(worker, "intake resumed")
            await world.nothing_lost()


async def test_case_53_where_everything_lies_on_the_full_disk_work_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    """Queue, ledger and target: not even what was in work can be given back, and returns with its lease."""
    disk = tmp_path / "disk"
    settings: Changes = {
        "queue": {"lease": 2},
        "worker": {"concurrency": 2, "max_attempts": 2, "look_ahead": 0},
    }
    with small_disk(disk) as (fill, free):
        async with slow_world(
            Combination(), Services(), disk, changes=settings, logs=tmp_path / "logs"
        ) as world:
            port, environ = admin_port()
            worker = world.start(environ=environ)
            await at_work(world)
            fill(worker)
            world.staging.released.set()
            while (await probed(port, "/readyz"))[0] == 200:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)
            assert (await probed(port, "/livez"))[0] == 200
            assert receives(world) == [0, 0, 1, 1]
            free(worker)
            await resumed(world, worker, port)
            await world.nothing_lost()


async def at_work(world: SlowWorld) -> None:
    """One bundle done, two payloads in work, two messages waiting."""
    world.staging.held = {"test-slow/one", "test-slow/two"}
    await world.put("test-before", "one")
    await world.put("test-slow", "one", "two")
    await until(lambda: len(world.staging.halfway) == 3)
    await world.announced("test-before")
    await world.put("test-later", "one", "two")


async def paused(worker: Worker, port: int, probes: Path) -> None:
    """Wait until the intake has been closed for a while: alive, not ready, and asking the ledger again and again."""
    await until(lambda: probes.exists() and len(probes.read_text().splitlines()) >= PROBES)
    status, reasons = await probed(port, "/readyz")
    assert (status, SILENT in reasons) == (503, True), reasons
    assert (await probed(port, "/livez"))[0] == 200
    assert told(worker, "intake resumed") == []


async def resumed(world: SlowWorld, worker: Worker, port: int) -> None:
    """Wait until everything is done by the worker that waited, and it has left. Nothing was held against a message.

    A try whose end a silent ledger could not be told would be left, and pass for a crash.
    """
    await world.announced()
    await world.settled()
    assert (await probed(port, "/readyz"))[0] == 200
    worker.terminate()
    assert await worker.ended() == 0, worker.tail()
    assert await world.rows("SELECT * FROM attempts") == []


def receives(world: SlowWorld) -> list[int]:
    """How often each message of the embedded queue has been received; those acknowledged are not there."""
    file = world.place.settings.home / "queue.db"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as queue:
        rows = queue.execute("SELECT receive_count FROM messages WHERE queue = 'resources'").fetchall()
    return sorted(count for (count,) in rows)


Deed = Callable[[Worker], None]


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Deed, Deed]]:
    """A file system of its own at `folder`; how to fill it, and how to make room again.

    Who may not mount one gets a limit on how far the worker's files grow (setrlimit(2), RLIMIT_FSIZE), at the size that the
    smallest write-ahead log there has when it is filled.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    filler = folder / "filler"

    def fill(worker: Worker) -> None:
        if not mounted:
            size = min(log.stat().st_size for log in folder.rglob("*.db-wal") if log.stat().st_size)
            psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                continue

    def free(worker: Worker) -> None:
        filler.unlink(missing_ok=True)
        if not mounted:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            psutil.Process(worker.pid).rlimit(psutil.RLIMIT_FSIZE, unlimited)

    try:
        yield fill, free
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("queue", ["sqs", "rabbitmq"])
async def test_a_worker_outlives_the_outage_of_its_queue(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str
) -> None:
    """Queue and publisher go down with work in progress, which is recorded meanwhile, and done again by nobody."""
    combination = Combination(queue)
    services = needed(request, combination)
    # The message comes back with its lease; RabbitMQ gives it back when the connection is gone.
    settings: Changes = {"queue": {"lease": 6 if queue == "sqs" else 600}, "worker": {"max_attempts": 2}}
    async with (
        slow_world(combination, services, tmp_path, changes=settings) as world,
        proxied(services) as cut,
    ):
        proxy, way = cut
        world.staging.held = {"test-slow/one"}
        port, environ = admin_port()
        pool = Workers(
            detour(world.place, {"queue": way, "publisher": way}), world.pool.logs, world.pool.started
        )
        worker = pool.start("run", environ=environ)
        await world.put("test-slow", "one")
        await until(lambda: len(world.staging.halfway) == 1)
        await proxy.down()
        world.staging.released.set()
        while await world.rows("SELECT bid FROM bundles WHERE state = 'complete'") == []:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)
        await until(lambda: worker.says("cannot receive") and worker.says("completion postponed"))
        status, reasons = await probed(port, "/readyz")
        assert (status, "the queue does not answer" in reasons) == (503, True), reasons
        assert (await probed(port, "/livez"))[0] == 200
        await world.put("test-meanwhile", "one", "two")
        await proxy.up()
        await world.announced()
        await world.settled()
        assert (await probed(port, "/readyz"))[0] == 200
        worker.terminate()
        assert await worker.ended() == 0, worker.tail()
        assert sorted(world.staging.begun) == ["test-meanwhile/one", "test-meanwhile/two", "test-slow/one"]
        assert await world.rows("SELECT * FROM attempts") == []
        await world.nothing_lost()


@asynccontextmanager
async def proxied(services: Services) -> AsyncIterator[tuple[Proxy, Mapping[str, str]]]:
    """A proxy before the queue's server, and the options that lead through it."""
    if services.rabbitmq is not None:
        async with Proxy.to(*services.rabbitmq.address) as proxy:
            yield proxy, {"url": services.rabbitmq.through(proxy.port)}
    else:
        assert services.localstack is not None
        async with before(services.localstack) as proxy:
            yield proxy, {"endpoint_url": f"http://127.0.0.1:{proxy.port}"}


def before(localstack: LocalStackEndpoint) -> AbstractAsyncContextManager[Proxy]:
    address = urlsplit(localstack.endpoint_url)
    return Proxy.to(address.hostname or "", address.port or 80)


SMALL = 40


@pytest.mark.parametrize("queue", ["embedded", "rabbitmq"])
async def test_case_36_a_slow_source_starves_nobody(
    request: pytest.FixtureRequest, localstack: LocalStackEndpoint, tmp_path: Path, queue: str
) -> None:
    """One payload trickles in from S3, more slots than one are there, and many small ones come after it."""
    combination = Combination(queue)
    bucket = await new_bucket(localstack)
    s3 = {"backend": "s3", "bucket": bucket, "region": localstack.region}
    s3 |= {"access_key_id": localstack.access_key_id, "secret_access_key": localstack.secret_access_key}
    direct = {"slow": {**s3, "endpoint_url": localstack.endpoint_url}}
    changes: Changes = {
        "staging": direct,
        "worker": {"concurrency": 4, "transfer_memory": 8 << 20},
    }
    async with (
        open_place(combination, needed(request, combination), tmp_path, changes=changes) as place,
        before(localstack) as proxy,
    ):
        through = {"slow": {**s3, "endpoint_url": f"http://127.0.0.1:{proxy.port}"}}
        proxy.slow("replies", rate=64 << 10)
        large = await publish(place, "slow", 1, 4 << 20)
        with workers(detour(place, {"staging": through}), tmp_path / "logs") as pool:
            worker = pool.start("run")
            await until(lambda: proxy.accepted > 0)
            small = await publish(place, "main", SMALL, 500)
            await until(lambda: told(worker, "bundle published") != [])
            assert [line["bid"] for line in told(worker, "bundle published")] == [small.bid]
            proxy.heal()
            await until(lambda: len(told(worker, "bundle published")) == 2)
            worker.terminate()
            assert await worker.ended() == 0, worker.tail()
            assert told(worker, "message failed") == []
            report = await check(place, Load([large, small]), [worker.log])
        assert report.violations == []
        assert (report.lost, report.unfinished, report.duplicates) == (set(), set(), 0)


async def publish(place: Place, source_name: str, count: int, size: int) -> Published:
    """A bundle of so many payloads of that size, staged in that source."""
    source = next(each for each in stores.staging_sources(place.settings) if each.name == source_name)
    payloads = {
        f"https://example.com/{source_name}/{number}": random.randbytes(size) for number in range(count)
    }
    async with (
        bootstrap.open_queue(place.settings) as queue,
        stores.open_staging(place.settings) as staging,
    ):
        producer = Producer(queue=queue, staging=staging[source_name], source=source)
        bundle = await producer.start_bundle(BundleRef("https://example.com/"), "slow")
        for url, data in payloads.items():
            await bundle.add_resource(url, None, 200, pieces(data))
        await bundle.complete({})
    return Published(bundle.bid, payloads)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]
