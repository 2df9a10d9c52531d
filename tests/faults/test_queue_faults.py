"""Group B of the failures on SQS: duplicates, leases, stalls, half-failed batches. Whole workers against a strict SQS."""

import asyncio
import hashlib
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.naming import resource_id
from tests.support.cli import Transload
from tests.support.slow_staging import BUCKET, SlowStaging, slow_staging
from tests.support.strict_s3 import StrictS3, strict_s3
from tests.support.strict_sqs import Refusal, StrictSqs, strict_sqs
from tests.support.workers import Worker, workers
from worker.bootstrap import open_housekeeping, open_producer, open_service
from worker.delivery import LeaseKeeper
from worker.metrics import Metrics
from worker.producer import BundleRef
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import QueueUnavailable
from worker.queues.sqs import SqsQueue, SqsQueueOptions
from worker.service import Service
from worker.settings import Settings, load_settings

PATIENCE = 60.0
"""Seconds after which a test has failed."""
ACCESS = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}
BID = "test-faults"
DAY = 86_400_000


@dataclass(slots=True)
class World:
    """One queue, one staging, one ledger. Every worker may have a target of its own."""

    sqs: StrictSqs
    staging: SlowStaging
    folder: Path

    def config(self, name: str = "a", target: dict[str, Any] | None = None, **worker: Any) -> Path:
        """The configuration of a worker that writes to the folder `name`, or to `target`."""
        content = {
            "queue": {
                "type": "sqs",
                "queue_url": self.sqs.url(),
                "endpoint_url": self.sqs.endpoint_url,
                **ACCESS,
            },
            "staging": {
                "main": {"backend": "s3", "bucket": BUCKET, "endpoint_url": self.staging.url, **ACCESS}
            },
            "targets": {"lake": target or {"backend": "file", "root": str(self.folder / name)}},
            "worker": {"retry_base": 0.01, **worker},
            "housekeeping": {"keep_published": 15 * 86_400},
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    def transload(self, config: Path) -> Transload:
        return Transload(self.folder / "home", config)

    def settings(self, config: Path) -> Settings:
        return load_settings(file=config, home=self.folder / "home", environ={})

    @asynccontextmanager
    async def running(self, config: Path) -> AsyncIterator[Service]:
        async with open_service(self.settings(config), admin=False) as service:
            task = asyncio.create_task(service.run())
            try:
                yield service
            finally:
                service.stop()
                async with asyncio.timeout(PATIENCE):
                    await task

    def put(self, *names: str, payload: bytes = b"payload", count: int | None = None) -> None:
        """Announce these resources of one bundle, and stage their payloads."""
        self.staging.payloads |= {name: payload + name.encode() for name in names}
        self.sqs.put(*(fetched(name, self.staging.payloads[name], count) for name in names))

    def objects(self, name: str = "a") -> dict[str, bytes]:
        """The payloads a worker stored, and whatever it left half done, by their path below its folder."""
        root = self.folder / name
        paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".meta")
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "home" / "ledger.db")) as connection, connection:
            return connection.execute(statement).fetchall()

    async def completions(self) -> int:
        publisher = await EmbeddedPublisher.connect(
            EmbeddedPublisherOptions(path=self.folder / "home" / "completions.db")
        )
        try:
            return await publisher.count()
        finally:
            await publisher.aclose()

    @property
    def waiting(self) -> int:
        return len(self.sqs.queues["main"])


def fetched(name: str, payload: bytes, count: int | None = None) -> bytes:
    url = f"https://example.com/{name}"
    return encode(
        ResourceFetched(
            id=f"{BID}/{resource_id(url)}",
            bundle=Bundle(bid=BID, recipe_id="r", resources_count=count),
            resource=Resource(url=url),
            payload=Payload(
                location=f"s3://{BUCKET}/{name}",
                size=len(payload),
                sha256=hashlib.sha256(payload).hexdigest(),
            ),
        )
    )


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process has no event for it
            await asyncio.sleep(0.01)


@contextmanager
def worker(transload: Transload, logs: Path) -> Iterator[Worker]:
    with workers(transload, logs) as pool:
        process = pool.start("run")
        try:
            yield process
        except BaseException as exc:
            exc.add_note(f"{logs.name} ends:\n{process.tail()}")
            raise


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with strict_sqs(lease=2) as sqs, slow_staging() as staging:
        yield World(sqs, staging, tmp_path)


@pytest.fixture
async def queue(world: World) -> AsyncIterator[SqsQueue]:
    options = SqsQueueOptions(queue_url=world.sqs.url(), endpoint_url=world.sqs.endpoint_url, **ACCESS)
    queue = await SqsQueue.connect(options)
    yield queue
    await queue.aclose()


@pytest.mark.parametrize("age", [600_000, 5 * DAY], ids=["ten minutes", "five days"])
async def test_case_20_a_late_duplicate_has_no_effect(world: World, age: int) -> None:
    config = world.config()
    names = ("one", "two")
    world.put(*names, count=2)
    async with world.running(config):
        await until(
            lambda: world.query("SELECT state FROM bundles") == [("published",)] and not world.waiting
        )
    for table, column in (
        ("messages", "recorded_at"),
        ("resources", "recorded_at"),
        ("bundles", "created_at"),
        ("bundles", "completed_at"),
        ("bundles", "published_at"),
        ("outbox", "completed_at"),
        ("outbox", "published_at"),
    ):
        world.query(f"UPDATE {table} SET {column} = {column} - {age}")  # noqa: S608 - all of it from this file
    async with open_housekeeping(world.settings(config)) as housekeeping:
        await housekeeping.sweep_once()
    everything = "SELECT * FROM messages UNION ALL SELECT bid, resource_id, url, recorded_at FROM resources"
    before, stored, reads = world.query(everything), world.objects(), list(world.staging.begun)
    world.put(*names, count=2)
    async with world.running(config) as service:
        await until(lambda: service.progress.acked == 2)
    assert (world.query(everything), world.objects(), world.staging.begun) == (before, stored, reads)
    assert await world.completions() == 1
    assert (world.waiting, world.sqs.queues["dead"]) == (0, [])


async def test_case_21_what_waits_for_its_turn_keeps_its_lease(world: World) -> None:
    """Payloads that stop half way fill the memory for more than a lease; the other messages wait, received."""
    names = [f"large-{number}" for number in range(20)]
    world.staging.held = set(names)
    world.put(*names, payload=b"x" * (1 << 20))
    async with world.running(world.config(transfer_memory=8 << 20)) as service:
        await until(lambda: len(service._in_work) == len(names))
        await until(lambda: len(world.sqs.outcomes) >= 4 * len(names))
        assert 0 < len(world.staging.begun) < len(names)
        # From here on a renewal may be under way as its message is acknowledged: that one is refused, to no harm.
        assert [outcome.code for outcome in world.sqs.outcomes if outcome.code] == []
        world.staging.released.set()
        await until(lambda: service.progress.acked == len(names))
    assert sorted(world.staging.begun) == sorted(names), "each was worked on once"
    assert len(world.objects()) == len(names)


async def test_case_21_renewals_share_requests(world: World, queue: SqsQueue) -> None:
    world.sqs.put(*(str(number).encode() for number in range(25)))
    keeper = LeaseKeeper(queue, Metrics())
    for _ in range(3):
        await keeper.hold(await queue.receive(10, 0))
    await keeper.renew()
    sizes = [len(asked["Entries"]) for asked in world.sqs.asked("ChangeMessageVisibilityBatch")]
    assert sorted(sizes) == [5, 10, 10]


async def test_case_22_past_the_longest_hold_a_message_is_handed_over_and_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payload never ends. Twelve hours are three seconds and a half here."""
    world.sqs.longest_hold = 3.5
    monkeypatch.setattr(SqsQueue, "longest_hold", property(lambda _: 3.5))
    world.staging.held = {"endless"}
    world.put("endless")
    async with world.running(world.config(max_attempts=2)) as service:
        await until(lambda: service.progress.dead == 1)
        assert service.progress.retried == 1
    assert world.staging.begun == ["endless"] * 2, "no loop"
    (letter,) = world.sqs.queues["dead"]
    assert letter.attributes["dead_letter_error"]["StringValue"] == "HeldTooLong"
    assert [outcome.code for outcome in world.sqs.outcomes if outcome.code] == [], "nothing was asked in vain"
    assert (world.objects(), world.query("SELECT count(*) FROM messages")) == ({}, [(0,)])


@pytest.mark.parametrize("kind", ["file", "s3"])
async def test_case_23_a_stopped_worker_is_fenced_when_it_wakes(
    world: World, tmp_path: Path, kind: str
) -> None:
    async with strict_s3("stopped", "other") as s3:

        def target(name: str) -> dict[str, Any] | None:
            s3_target = {
                "backend": "s3",
                "bucket": name,
                "endpoint_url": s3.url,
                "part_size": 5 << 20,
                **ACCESS,
            }
            return s3_target if kind == "s3" else None

        world.staging.held = {"page"}
        world.put("page", payload=os.urandom(11 << 20), count=1)
        first = world.transload(world.config("stopped", target("stopped")))
        with worker(first, tmp_path / "logs-1") as stopped:
            await until(lambda: writing(stopped, world, s3, "stopped"))
            stopped.stop()
            stale = {str(stored.handle) for stored in world.sqs.queues["main"]}
            loop = asyncio.get_running_loop()
            stopped_at = loop.time()
            second = world.transload(world.config("other", target("other")))
            with worker(second, tmp_path / "logs-2") as other:
                await until(lambda: writing(other, world, s3, "other"))
                await until(lambda: loop.time() > stopped_at + 2 * world.sqs.lease)
                stopped.cont()
                await until(lambda: stopped.says("given up"))
                await until(lambda: not writing(stopped, world, s3, "stopped"))
                assert writing(other, world, s3, "other"), "the new owner is not disturbed"
                world.staging.released.set()
                await until(lambda: not world.waiting)
                await until(lambda: world.query("SELECT state FROM bundles") == [("published",)])
                for process in (stopped, other):
                    process.terminate()
                    assert await process.ended() == 0, process.tail()
    stored = s3.buckets["stopped"] if kind == "s3" else world.objects("stopped")
    assert not [name for name in stored if "page" in name]
    assert s3.uploads == {}
    assert await world.completions() == 1
    assert stale.isdisjoint(settled(world.sqs))


def writing(worker: Worker, world: World, s3: StrictS3, name: str) -> bool:
    """Whether the worker's write is under way: an open upload with a part, or an open file, be it without a name."""
    root = str(world.folder / name)
    return any(upload.bucket == name and upload.parts for upload in s3.uploads.values()) or any(
        path.startswith(root) for path in _open_files(worker.pid)
    )


def _open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if stat.S_ISREG(entry.stat().st_mode):
                yield str(entry.readlink())


def settled(sqs: StrictSqs) -> set[str]:
    """The handles with which messages were deleted."""
    return {o.subject for o in sqs.outcomes if o.operation == "DeleteMessage" and o.code is None}


async def test_case_25_of_a_half_failed_renewal_only_the_failed_are_not_held(
    world: World, queue: SqsQueue
) -> None:
    world.sqs.put(*(str(number).encode() for number in range(10)))
    now = 1000.0
    keeper = LeaseKeeper(queue, Metrics(), lambda: now)
    deliveries = await keeper.hold(await queue.receive(10, 0))
    assert len(deliveries) == 10
    failed = deliveries[3]
    now += 1
    world.sqs.fail_entries[failed.message.handle] = {
        "SenderFault": False,
        "Code": "InternalError",
        "Message": "later",
    }
    await keeper.renew()
    now += 1.5
    assert [delivery for delivery in deliveries if not delivery.held] == [failed]
    now -= 1
    await keeper.renew()
    assert all(delivery.held for delivery in deliveries)
    now += 1.5
    assert all(delivery.held for delivery in deliveries), "the next beat made it good"


async def test_case_25_a_renewal_whose_request_fails_costs_only_its_own(
    world: World, queue: SqsQueue
) -> None:
    world.sqs.put(*(str(number).encode() for number in range(20)))
    now = 1000.0
    keeper = LeaseKeeper(queue, Metrics(), lambda: now)
    for _ in range(2):
        await keeper.hold(await queue.receive(10, 0))
    world.sqs.refuse("ChangeMessageVisibilityBatch", "AccessDeniedException")
    now += 1
    await keeper.renew()
    now += 1.5
    assert sum(delivery.held for delivery in keeper._held) == 10


async def test_case_26_one_bad_of_ten_and_nine_complete(world: World) -> None:
    names = [f"good-{number}" for number in range(9)]
    world.sqs.put(b"no json")
    world.put(*names, count=9)
    async with world.running(world.config()) as service:
        await until(lambda: service.progress.acked == 9 and service.progress.dead == 1)
        await until(lambda: world.query("SELECT state FROM bundles") == [("published",)])
    assert len(world.objects()) == 9
    (letter,) = world.sqs.queues["dead"]
    assert (letter.body, world.waiting) == ("no json", 0)


@pytest.mark.parametrize("lost", [1, 3], ids=["the SDK repeats", "the producer repeats"])
async def test_case_27_a_send_whose_reply_is_lost_has_one_effect(
    world: World, tmp_path: Path, lost: int
) -> None:
    config = world.config()
    text = yaml.safe_load(config.read_text(encoding="utf-8"))
    text["staging"] = {"main": {"backend": "file", "root": str(tmp_path / "staged")}}
    config.write_text(yaml.safe_dump(text), encoding="utf-8")

    async def publish() -> None:
        async with open_producer(world.settings(config)) as producer:
            bundle = await producer.start_bundle(BundleRef("https://example.com", bid=BID), "r")
            await bundle.add_resource("https://example.com/a", "text/html", 200, _stream(b"payload"))
            await bundle.complete({})

    world.sqs.lost_replies["SendMessageBatch"] = lost
    if lost == 3:
        with pytest.raises(QueueUnavailable):
            await publish()
    await publish()
    assert world.waiting >= 3
    async with world.running(config):
        await until(lambda: not world.waiting)
        await until(lambda: world.query("SELECT state FROM bundles") == [("published",)])
    assert list(world.objects().values()) == [b"payload"]
    assert await world.completions() == 1
    assert world.sqs.queues["dead"] == []


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_case_27_a_delete_whose_reply_is_lost_has_one_effect(world: World) -> None:
    world.sqs.lost_replies["DeleteMessageBatch"] = 1
    world.put("one", count=1)
    async with world.running(world.config()) as service:
        await until(lambda: not world.waiting and not service._in_work)
    assert len(world.objects()) == 1
    assert world.query("SELECT count(*) FROM messages") == [(1,)]


async def test_case_36_a_slow_payload_starves_nobody(world: World) -> None:
    world.staging.held = {"slow"}
    world.put("slow", payload=b"x" * (2 << 20))
    async with world.running(world.config(concurrency=4, transfer_memory=8 << 20)) as service:
        await until(lambda: "slow" in world.staging.halfway)
        world.put(*(f"small-{number}" for number in range(40)))
        await until(lambda: service.progress.acked == 40)
        # The slow one is in work, and held.
        await until(lambda: (len(service._in_work), world.waiting) == (1, 1))
        world.staging.released.set()
        await until(lambda: service.progress.acked == 41)
    assert world.staging.begun.count("slow") == 1


@pytest.mark.parametrize(
    ("refusal", "state"),
    [
        (Refusal("QueueDoesNotExist"), "QueueMissing"),
        (Refusal("AccessDeniedException"), "QueueDenied"),
        (Refusal("RequestThrottled", 403), "QueueUnavailable"),
    ],
    ids=["missing", "denied", "throttled"],
)
async def test_case_39_states_are_distinct_and_nobody_hammers(
    world: World, refusal: Refusal, state: str
) -> None:
    config = world.config()
    with capture_logs() as logs:
        async with world.running(config) as service:
            world.sqs.refusals["ReceiveMessage"] = refusal
            # A poll that began before ends with what it is woken for.
            world.put("one")
            await until(lambda: any(log["event"] == "cannot receive" for log in logs))
            (log,) = (log for log in logs if log["event"] == "cannot receive")
            asked = len(world.sqs.asked("ReceiveMessage"))
            # Time for thousands of requests.
            await asyncio.sleep(1)
            assert len(world.sqs.asked("ReceiveMessage")) - asked <= 3, (
                "one call, with the SDK's own three tries"
            )
            world.sqs.refusals.clear()
            world.put("two")
            await until(lambda: service.progress.acked == 2)
    assert log["kind"] == state
    assert not world.waiting


LEASE = 6
STALL = 5 * LEASE


@pytest.mark.slow
async def test_ten_messages_of_five_leases_with_a_stall_commit_once(world: World, tmp_path: Path) -> None:
    """The first worker takes all ten, works for a while, is stopped for five leases and wakes with everything it had."""
    world.sqs.lease = LEASE
    world.staging.seconds = STALL
    names = [f"payload-{number}" for number in range(10)]
    world.put(*names, payload=os.urandom(600_000), count=10)
    loop = asyncio.get_running_loop()
    first = world.transload(world.config("stalled"))
    second = world.transload(world.config("other"))
    with worker(first, tmp_path / "logs-1") as stalled:
        await until(lambda: len(world.staging.begun) == 10)
        await until(lambda: len(world.sqs.asked("ChangeMessageVisibilityBatch")) >= 1)
        stalled.stop()
        stopped_at = loop.time()
        taken = {stored.handle for stored in world.sqs.queues["main"]}
        assert len(taken) == 10
        with worker(second, tmp_path / "logs-2") as other:
            await until(lambda: len(world.staging.begun) == 20)
            await until(lambda: loop.time() > stopped_at + STALL)
            stalled.cont()
            await until(lambda: stalled.log.read_text(encoding="utf-8").count("given up") == 10)
            await until(lambda: not world.waiting)
            await until(lambda: world.query("SELECT state FROM bundles") == [("published",)])
            for process in (stalled, other):
                process.terminate()
                assert await process.ended() == 0, process.tail()
    assert world.objects("stalled") == {}, "no object and no part of one"
    assert sorted(world.objects("other").values()) == sorted(world.staging.payloads.values())
    assert world.query("SELECT count(*), count(DISTINCT id) FROM messages") == [(10, 10)]
    assert world.query("SELECT count(*) FROM resources") == [(10,)]
    assert await world.completions() == 1
    assert len(settled(world.sqs)) == 10
    assert taken.isdisjoint(settled(world.sqs)), "nothing was settled with a handle from before the stall"
    assert world.sqs.queues["dead"] == []
