"""Fuzz target: whatever messages of one or several bundles say, in whatever order, what is complete is announced once, and right.

The real pipeline, ledger and relay, with stores in memory. `fuzz` takes what `BATCHES` gives. Called by
tests/unit/test_hostile_messages.py for a few examples.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog
from hypothesis import strategies as st

from backends.base import Attributes, StorageBackend, single
from backends.memory import MemoryBackend, MemoryOptions
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.layouts import make_layout
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Match, Route, Routes, Target
from tests.support.hostile_messages import CONTENTS, as_json
from worker.budget import Budget
from worker.disposition import RetryPolicy
from worker.ledger.base import Ledger
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.base import Notification, PublishError
from worker.relay import Relay, RelaySettings

PAYLOADS: Final = {"a": b"payload", "b": b"another payload"}
_REASONS: Final = frozenset({"malformed", "no_route", "conflict"})


@st.composite
def _arriving(draw: st.DrawFn) -> bytes:
    """A message about a payload that is there, of one of few resources in one of few bundles, so that they meet."""
    content: dict[str, Any] = {**draw(CONTENTS)}
    bundle: dict[str, Any] = {**content["bundle"], "bid": draw(st.sampled_from(["test-a", "test-b"]))}
    if draw(st.booleans()):
        bundle["resources_count"] = draw(st.integers(1, 3))
    content["bundle"] = bundle
    if draw(st.integers(0, 3)):
        content["id"] = str(draw(st.integers(0, 20)))
    if "payload" in content:
        content["payload"] = {"location": f"memory://staging/{draw(st.sampled_from('aaab'))}"}
        if draw(st.integers(0, 3)):
            facts = {"url": draw(st.sampled_from(_URLS)), "content_type": draw(st.sampled_from(_TYPES))}
            content["resource"] = {**content["resource"], **facts}
    return as_json(content).encode()


_URLS: Final = ("https://example.com/a", "https://example.com/A", "https://example.org/a/", "..")
_TYPES: Final = ("text/html", "text/plain; charset=utf-8", "image/png", None)
BATCHES: Final = st.lists(_arriving(), min_size=1, max_size=8)


@dataclass(slots=True)
class Sent:
    """A message that nobody else has."""

    body: bytes
    route: str = ""
    begun: bool = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        yield


class Outlet:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent: list[Notification] = []

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        self.sent += notifications
        return [None] * len(notifications)


def fuzz(bodies: Sequence[bytes]) -> None:
    """Raises `AssertionError` where a property does not hold, and whatever the worker lets out that it should not."""
    # Tasks of their own log as well, so it is the whole process that is silenced.
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        (Path(folder) / "ledger.db").write_bytes(_migrated())
        asyncio.run(_fuzz(bodies, Path(folder)))


@cache
def _migrated() -> bytes:
    """An empty ledger, which takes longer to make than a few messages to record."""

    async def made(file: Path) -> None:
        database = open_database(f"sqlite:///{file}")
        await migrate(database)
        await database.aclose()

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        asyncio.run(made(file))
        return file.read_bytes()


async def _fuzz(bodies: Sequence[bytes], folder: Path) -> None:
    targets: dict[str, StorageBackend] = {}
    for name in ("first", "second", "bus"):
        targets[name] = await MemoryBackend.connect(MemoryOptions(name=name))
    staging = await MemoryBackend.connect(MemoryOptions(name="staging"))
    for key, payload in PAYLOADS.items():
        await staging.write(key, single(payload), Attributes())
    ledger = SqlLedger(open_database(f"sqlite:///{folder}/ledger.db"))
    try:
        outlet, budget = Outlet(), Budget(1 << 30)
        pipeline = Pipeline(
            ledger=ledger,
            handlers=_handlers(),
            staging={"staging": staging},
            targets=targets,
            max_message_bytes=1 << 20,
            budget=budget,
            spool=folder,
            on_complete=lambda: None,
        )
        relay = Relay(
            ledger=ledger,
            publisher=outlet,
            targets=targets,
            settings=RelaySettings(),
            retry=RetryPolicy(),
            random=lambda: 0.5,
            metrics=Metrics(),
            budget=budget,
        )
        # Now and then a bundle is complete before its last messages come.
        for some in (bodies[:3], bodies[3:]):
            await asyncio.gather(*(_process(pipeline, body) for body in some))
            while await relay.announce_due():
                pass
        await _check(ledger, targets, outlet.sent)
    finally:
        await ledger.aclose()


def _handlers() -> Handlers:
    """Three stores; in the second, resources of one bundle lie in different folders."""
    kept = {name: make_layout(name, "p", keeps_attributes=True) for name in ("oc", "oc-v1")}
    pages, files = (
        make_layout(template, "", keeps_attributes=False)
        for template in ("pages/{recipe_id}/{bid}/{name}", "files/{host}/{bid}.{name}")
    )
    first, bus = Target("first", kept["oc"], archive="zip"), Target("bus", kept["oc-v1"], rank=2)
    routes = Routes(
        (
            Route("pages", (first, Target("second", pages, rank=1), bus), Match({"content_type": ["text/*"]})),
            Route("files", (first, Target("second", files, rank=1)), Match({"recipe_id": ["[!#]*"]})),
        )
    )  # fmt: skip
    source = StagingSource("staging", "memory://staging/")
    return Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes))


async def _process(pipeline: Pipeline, body: bytes) -> None:
    reason = None
    try:
        await pipeline.process(Sent(body))
    except Refused as exc:
        reason = exc.reason
    assert reason is None or reason in _REASONS, reason


async def _check(ledger: Ledger, targets: dict[str, StorageBackend], sent: Sequence[Notification]) -> None:
    assert not await ledger.outbox("parked", 100)
    assert await ledger.pending() == 0
    told = {each.attributes["bundle_id"]: json.loads(each.body) for each in sent}
    assert len(told) == len(sent), "a bundle was announced twice"
    bundles = await ledger.bundles(None, 1000)
    assert {each.bid for each in bundles if each.state == "published"} == set(told)
    assert not [each.bid for each in bundles if each.state == "complete"]
    for bundle in bundles:
        resources = [each async for each in ledger.resources(bundle.bid)]
        listed = {place.target: set[str]() for place in bundle.targets}
        for resource in resources:
            assert len({stored.target for stored in resource.objects}) == len(resource.objects)
            for stored in resource.objects:
                assert sha256(await _read(targets[stored.target], stored.key)).hexdigest() == stored.sha256
                if not resource.late:
                    listed[stored.target].add(stored.key)
        if bundle.bid not in told:
            continue
        assert told[bundle.bid]["resources_count"] == sum(not each.late for each in resources)
        for place in bundle.targets:
            manifest = await _read(targets[place.target], place.manifest_key)
            if place.target == "bus":
                assert {json.loads(line)["name"] for line in manifest.splitlines()} <= {
                    key.rpartition("/")[2] for key in listed["bus"]
                }
            else:
                assert {each["key"] for each in json.loads(manifest)["resources"]} == listed[place.target]


async def _read(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])
