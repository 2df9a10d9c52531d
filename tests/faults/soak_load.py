"""The load of the soak: bundles of random shape and size, in any order, some of it twice, late, or unfit to be read.

Everything is drawn from the seed and the bundle's number, so a run can be had again; only what looks at the ledger (late
resources, conflicts) depends on how far the workers are. Used by tests/faults/soak.py.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from backends.base import Attributes, StorageBackend
from handlers.messages import (
    Bundle,
    BundleClosed,
    ClosedBundle,
    Payload,
    Resource,
    ResourceFetched,
    encode,
)
from handlers.naming import resource_id, resource_name
from handlers.plan import StagingSource
from tests.support.history import Published
from worker.ledger.base import Ledger, LedgerUnavailable
from worker.queues.base import OutgoingMessage, Queue, QueueUnavailable

RECIPE = "soak"
_KIB, _MIB = 1 << 10, 1 << 20
_BATCH = 10
_PAUSE = 0.2
"""Seconds before a fetcher tries again what was not answered."""

SHAPES: Sequence[tuple[int, range, range]] = (
    (65, range(1, 7), range(40 * _KIB)),
    (20, range(7, 41), range(2 * _KIB)),
    (10, range(3), range(64)),
    (3, range(1, 4), range(200 * _KIB, 2 * _MIB)),
    (2, range(1, 2), range(9 * _MIB, 20 * _MIB)),
)
"""Weight, how many resources, and how large each: ordinary, many, next to nothing, a few chunks, large."""


class Payloads(Mapping[str, bytes]):
    """Bytes that are made anew whenever they are asked for: hours of them do not fit into memory."""

    def __init__(self, bid: str) -> None:
        self._bid = bid
        self.sizes: dict[str, int] = {}

    def __getitem__(self, url: str) -> bytes:
        return random.Random(f"{self._bid}/{url}").randbytes(self.sizes[url])

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(slots=True)
class Announced:
    """One bundle, as far as it has been announced."""

    bid: str
    payloads: Payloads
    closed: bool
    late: set[str] = field(default_factory=set)
    bodies: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """What was sent."""

    resources: int = 0
    size: int = 0
    duplicates: int = 0
    late: int = 0
    retries: int = 0


class Load:
    """A producer with a few bad habits. Takes connected parts."""

    def __init__(
        self, *, seed: int, queue: Queue, staging: StorageBackend, source: StagingSource, ledger: Ledger
    ) -> None:
        self._seed = seed
        self._queue = queue
        self._staging = staging
        self._source = source
        self._ledger = ledger
        self._bundles: list[Announced] = []
        self.counts = Counts()
        self.refused: dict[bytes, str] = {}
        """What has to become a dead letter, and why."""

    @property
    def bundles(self) -> int:
        return len(self._bundles)

    def published(self) -> list[Published]:
        """For the checker."""
        return [
            Published(each.bid, each.payloads, closed=each.closed, late=frozenset(each.late))
            for each in self._bundles
        ]

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Announce `rate` bundles a second on average until told to stop."""
        number = 0
        while not stop.is_set():
            draw = random.Random(f"{self._seed}/bundle/{number}")
            await self._bundle(draw)
            if self._bundles[:-20] and draw.random() < 0.3:
                await self._look_back(draw)
            number += 1
            try:
                await asyncio.wait_for(stop.wait(), draw.expovariate(rate))
            except TimeoutError:
                continue

    async def _bundle(self, draw: random.Random) -> None:
        """Stage everything, then tell of it in no particular order."""
        _, counts, sizes = draw.choices(SHAPES, [shape[0] for shape in SHAPES])[0]
        bid = f"test-{draw.getrandbits(64):016x}"
        payloads = Payloads(bid)
        for number in range(draw.choice(counts)):
            payloads.sizes[f"https://example.com/{bid}/{number}.bin"] = draw.choice(sizes)
        closed = not payloads or draw.random() < 0.5
        bundle = Announced(bid, payloads, closed)
        count = None if closed else len(payloads)
        for url in payloads:
            bundle.bodies.append(await self._stage(bundle, url, count))
        if closed:
            final = ClosedBundle(
                bid=bid, recipe_id=RECIPE, resources_count=len(payloads), metadata={"seed": self._seed}
            )
            bundle.bodies.append(encode(BundleClosed(id=f"{bid}/closed", bundle=final)))
        twice = [body for body in bundle.bodies if draw.random() < 0.08]
        told = [*bundle.bodies, *twice, *self._unreadable(draw)]
        draw.shuffle(told)
        # Known before it is sent: what was sent half is checked as well.
        self._bundles.append(bundle)
        self.counts.duplicates += len(twice)
        await self._send(told)

    async def _look_back(self, draw: random.Random) -> None:
        """Say something about an earlier bundle: the same again, something else under the same id, one resource more."""
        bundle = draw.choice(self._bundles[:-20])
        habit = draw.choice(["again", "conflict", "late"])
        if habit == "again":
            self.counts.duplicates += 1
            await self._send([draw.choice(bundle.bodies)])
        elif habit == "conflict" and (urls := sorted(bundle.payloads.keys() - bundle.late)):
            url = draw.choice(urls)
            if await self._recorded(f"{bundle.bid}/{resource_id(url)}"):
                body = self._fetched(bundle, url, None, f"{draw.getrandbits(256):064x}")
                await self._send([body], "conflict")
        elif habit == "late" and await self._complete(bundle.bid):
            url = f"https://example.com/{bundle.bid}/late-{len(bundle.late)}.bin"
            bundle.payloads.sizes[url] = draw.randrange(_KIB)
            bundle.late.add(url)
            self.counts.late += 1
            body = await self._stage(bundle, url, None)
            bundle.bodies.append(body)
            await self._send([body])

    def _unreadable(self, draw: random.Random) -> list[bytes]:
        if draw.random() >= 0.15:
            return []
        mark = f"{draw.getrandbits(64):016x}"
        location = self._source.location_of(f"{mark}/nothing.bin")
        habits: Sequence[tuple[str, Mapping[str, object]]] = (
            ("malformed", {"bundle": {"bid": f"../{mark}", "recipe_id": RECIPE}}),
            ("unknown_type", {"type": "resource.deleted"}),
            ("unknown_version", {"version": 2}),
            ("staging_not_allowed", {"payload": {"location": "file:///etc/passwd"}}),
        )
        reason, changes = draw.choice(habits)
        message: dict[str, object] = {
            "type": "resource.fetched",
            "version": 1,
            "id": mark,
            "bundle": {"bid": f"test-{mark}", "recipe_id": RECIPE},
            "resource": {"url": "https://example.com/"},
            "payload": {"location": location},
        }
        body = json.dumps({**message, **changes}).encode()
        self.refused[body] = reason
        return [body]

    async def _stage(self, bundle: Announced, url: str, count: int | None) -> bytes:
        data = bundle.payloads[url]
        await self._staging.write(_key(bundle.bid, url), _pieces(data), Attributes())
        self.counts.resources += 1
        self.counts.size += len(data)
        return self._fetched(bundle, url, count, sha256(data).hexdigest())

    def _fetched(self, bundle: Announced, url: str, count: int | None, digest: str) -> bytes:
        return encode(
            ResourceFetched(
                id=f"{bundle.bid}/{resource_id(url)}",
                bundle=Bundle(bid=bundle.bid, recipe_id=RECIPE, resources_count=count),
                resource=Resource(url=url, content_type="application/octet-stream", status_code=200),
                payload=Payload(
                    location=self._source.location_of(_key(bundle.bid, url)),
                    size=bundle.payloads.sizes[url],
                    sha256=digest,
                ),
            )
        )

    async def _send(self, bodies: Sequence[bytes], reason: str = "") -> None:
        """Until the queue has them: a stopped worker may hold the lock of an embedded one for a while."""
        if reason:
            self.refused.update(dict.fromkeys(bodies, reason))
        for start in range(0, len(bodies), _BATCH):
            batch = [OutgoingMessage(body) for body in bodies[start : start + _BATCH]]
            while True:
                try:
                    await self._queue.send(batch)
                    break
                except QueueUnavailable:
                    self.counts.retries += 1
                    await asyncio.sleep(_PAUSE)

    async def _recorded(self, message_id: str) -> bool:
        try:
            return await self._ledger.find(message_id) is not None
        except LedgerUnavailable:
            return False

    async def _complete(self, bid: str) -> bool:
        try:
            found = await self._ledger.bundle(bid)
        except LedgerUnavailable:
            return False
        return found is not None and found.state != "open"


def _key(bid: str, url: str) -> str:
    return f"{bid}/{resource_name(url)}"


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _MIB):
        yield data[start : start + _MIB]
