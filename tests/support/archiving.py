"""A pipeline and a relay over targets that have their bundles archived, for the tests of worker/bundle_archive.py.

async with open_world(folder, {"main": await MemoryBackend.connect(MemoryOptions())}, "zip") as world:
    await world.store({"https://example.com/a.txt": b"a"})
    await world.relay().announce_due()
    files = world.unpacked(await world.archive())
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

from backends.base import Attributes, Features, Receipt, StorageBackend, single
from backends.memory import MemoryBackend, MemoryOptions
from backends.wrapper import Wrapper
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.layouts import Layout, ObjectLayout
from handlers.messages import Bundle, BundleClosed, ClosedBundle, Payload, Resource, ResourceFetched, encode
from handlers.naming import resource_name
from handlers.plan import BundleTarget, StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from handlers.transforms.base import Transform
from tests.fuzz.bundling import read_back
from worker.budget import Budget
from worker.delivery import LeaseKeeper
from worker.disposition import RetryPolicy
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import BundleRecord
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.base import Notification, PublisherOptions, PublishError
from worker.queues.base import Disposition, OutgoingMessage
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue
from worker.relay import Relay, RelaySettings

BID = "test-a"


class Killed(BaseException):
    """Stands for the end of the process."""


class Watched(Wrapper):
    """Remembers what was opened and written, in order; fails where it is told to."""

    def __init__(self, inner: StorageBackend) -> None:
        super().__init__(inner)
        self.opened: list[str] = []
        self.written: list[Receipt] = []
        self.faults: dict[str, BaseException] = {}
        """By the end of a key: what a write of it raises."""
        self.dies_after = ""
        """The end of a key after whose write the process is no more."""
        self.slow = asyncio.Event()
        """Writes of archives wait for it."""
        self.slow.set()

    @property
    def features(self) -> Features:
        return replace(self.inner.features, server_copy=False)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append(key)
        async with self.inner.open(key) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        for end, error in self.faults.items():
            if key.endswith(end):
                raise error
        if key.rpartition("/")[2].startswith("resources."):
            await self.slow.wait()
        receipt = await self.inner.write(key, chunks, attributes)
        self.written.append(receipt)
        if self.dies_after and key.endswith(self.dies_after):
            raise Killed
        return receipt


class Outbound:
    """A publisher that keeps what it is given."""

    Options: ClassVar[type[PublisherOptions]] = PublisherOptions
    destination = "here"

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.news = asyncio.Event()

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        self.sent += [notification.attributes["bundle_id"] for notification in notifications]
        self.news.set()
        return [None] * len(notifications)

    async def aclose(self) -> None: ...

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:  # noqa: ARG003 - there are none
        return cls()


class World:
    """`targets` by name; those called `spare…` are best effort."""

    def __init__(
        self,
        ledger: SqlLedger,
        queue: MemoryQueue,
        staging: MemoryBackend,
        targets: Mapping[str, StorageBackend],
        archive: str,
        transforms: tuple[Transform, ...],
        layout: Layout,
        spool: Path,
    ) -> None:
        """Use `open_world`."""
        self.ledger, self.queue, self.staging = ledger, queue, staging
        self.targets = dict(targets)
        route = Route(
            "default",
            tuple(
                Target(name, layout, required=not name.startswith("spare"), rank=rank, archive=archive)
                for rank, name in enumerate(targets)
            ),
            transforms=transforms,
        )
        routes = Routes((route,))
        self.outbound = Outbound()
        self.keeper = LeaseKeeper(queue, Metrics())
        source = StagingSource("staging", staging.location)
        self.pipeline = Pipeline(
            ledger=ledger,
            handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
            staging={"staging": staging},
            targets=self.targets,
            max_message_bytes=100_000,
            budget=Budget(256 << 20),
            spool=spool,
            on_complete=lambda: None,
        )

    def relay(self, lease: float = 30.0, poll: float = 0.02, budget: Budget | None = None) -> Relay:
        return Relay(
            ledger=self.ledger,
            publisher=self.outbound,
            targets=self.targets,
            settings=RelaySettings(batch=10, lease=lease, poll_interval=poll),
            retry=RetryPolicy(base=0.0),
            random=lambda: 0.0,
            metrics=Metrics(),
            budget=budget or Budget(256 << 20),
        )

    async def store(
        self, payloads: Mapping[str, bytes], bid: str = BID, count: int | None = None
    ) -> list[Disposition]:
        """Process the messages of these resources, by URL; with the last one the bundle is complete."""
        found = []
        for url, data in payloads.items():
            key = f"{bid}/{resource_name(url)}"
            await self.staging.write(key, single(data), Attributes())
            of = Bundle(bid=bid, recipe_id="fr", resources_count=len(payloads) if count is None else count)
            command = ResourceFetched(
                id=f"{bid}/{url}",
                bundle=of,
                resource=Resource(url=url),
                payload=Payload(location=f"{self.staging.location}{key}"),
            )
            found.append(await self.process(encode(command)))
        return found

    async def close(self, bid: str = BID) -> None:
        """The bundle is complete, and of nothing."""
        command = BundleClosed(
            id=f"{bid}/close", bundle=ClosedBundle(bid=bid, recipe_id="fr", resources_count=0)
        )
        await self.process(encode(command))

    async def process(self, body: bytes) -> Disposition:
        await self.queue.send([OutgoingMessage(body)])
        (delivery,) = await self.keeper.hold(await self.queue.receive(1, 1))
        # The ledger batches what comes from one task otherwise.
        return await asyncio.create_task(self.pipeline.process(delivery))

    async def bundle(self, bid: str = BID) -> BundleRecord:
        found = await self.ledger.bundle(bid)
        assert found is not None
        return found

    async def place(self, target: str = "main", bid: str = BID) -> BundleTarget:
        return next(place for place in (await self.bundle(bid)).targets if place.target == target)

    async def archive(self, target: str = "main", bid: str = BID) -> bytes:
        return await self.read((await self.place(target, bid)).archive_key, target)

    async def manifest(self, target: str = "main", bid: str = BID) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            await self.read((await self.place(target, bid)).manifest_key, target)
        )
        return found

    async def read(self, key: str, target: str = "main") -> bytes:
        async with self.targets[target].open(key) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def keys(self, target: str = "main") -> list[str]:
        async with aclosing(self.targets[target].list()) as found:  # type: ignore[type-var] # every adapter's is a generator
            return [each.key async for each in found]

    async def parked(self) -> str:
        """Why the one parked completion is."""
        (row,) = await self.ledger.outbox("parked")
        return str(row.error)

    async def postponed(self) -> str:
        """Why the one completion waits."""
        (row,) = await self.ledger.outbox("pending")
        return str(row.error)


@asynccontextmanager
async def open_world(
    folder: Path,
    targets: Mapping[str, StorageBackend],
    archive: str = "zip",
    transforms: tuple[Transform, ...] = (),
    layout: Layout | None = None,
) -> AsyncIterator[World]:
    """Whoever made the targets closes them. The folder is there."""
    database = open_database(f"sqlite:///{folder}/ledger.db")
    await migrate(database)
    ledger = SqlLedger(database)
    queue = await MemoryQueue.connect(QueueOptions())
    staging = await MemoryBackend.connect(MemoryOptions())
    try:
        yield World(ledger, queue, staging, targets, archive, transforms, layout or ObjectLayout("p"), folder)
    finally:
        await queue.aclose()
        await ledger.aclose()


def unpacked(format_: str, data: bytes) -> dict[str, bytes]:
    """The files, by the standard library."""
    return dict(read_back(format_, data))


def listed(world_archive: bytes, key: str, format_: str) -> dict[str, object]:
    """What a manifest has to say of that archive."""
    digest = sha256(world_archive).hexdigest()
    return {"key": key, "size": len(world_archive), "sha256": digest, "format": format_}
