"""Ways to reach failpoints: what is prepared, which command is armed, and what carries on after its death.

tests/faults/crash/ goes through them in this order; a failpoint is visited in the first one that passes it.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from handlers.naming import resource_id
from handlers.plan import BundleTarget
from tests.faults.worlds import (
    RECIPE,
    Combination,
    Load,
    Place,
    publish,
    publish_missing,
    stage_missing,
)
from tests.support.history import Published
from tests.support.workers import Worker, Workers
from worker import bootstrap
from worker.ledger.database import open_database
from worker.ledger.values import Entry, StoredResource

OLD = 86_400 * 30
"""Seconds: longer ago than anything is kept."""
RUN = ("run", "--until-idle")


@dataclass(slots=True)
class Stage:
    """What a scenario acts on."""

    place: Place
    pool: Workers
    seed: int
    load: Load = field(default_factory=Load)
    measured: bool = False
    """What it takes to recover counts, from nothing."""

    async def command(self, *arguments: str | Path, failpoints: str = "") -> int:
        """Run one command to its end, whatever that is."""
        return await self.pool.start(*arguments, failpoints=failpoints).ended()

    async def done(self, *arguments: str | Path) -> None:
        """Run one command, which has to end well."""
        worker = self.pool.start(*arguments)
        status = await worker.ended()
        assert status == 0, f"{arguments} ended with {status}:\n{worker.tail()}"

    async def sql(self, statement: str, **values: Any) -> None:
        """One statement on the ledger, behind its back."""
        database = open_database(self.place.settings.ledger.url)
        try:
            await database.write(lambda conn: conn.execute(text(statement), values))
        finally:
            await database.aclose()


@dataclass(frozen=True, slots=True)
class Scenario:
    """`arguments` is the command that is armed."""

    name: str
    prepare: Callable[[Stage], Awaitable[None]]
    arguments: tuple[str, ...] = RUN
    until: tuple[str, int] | None = None
    """Send SIGTERM once the log holds this text so many times."""
    besides: str = ""
    """Failpoints armed along with the one in question."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Over the settings."""
    migrated: bool = True
    """Whether a PostgreSQL ledger has its tables."""
    repeated: bool = False
    """Whether the command is given again after its death, before a worker runs until it is idle."""
    statuses: tuple[int, ...] = (0,)
    """What the repeated command may end with: one that finds everything done may say so."""
    announces_again: bool = False
    """A second copy of a notification is what was asked for."""

    def fits(self, combination: Combination) -> bool:
        """Whether it makes a difference there: a SQLite ledger is migrated by every worker that finds it."""
        return self.migrated or combination.ledger == "postgresql"

    async def armed(self, stage: Stage, failpoints: str) -> Worker:
        """The armed command, ended: by the failpoint, or because it never came by."""
        worker = stage.pool.start(*self._arguments(stage), failpoints=f"{self.besides};{failpoints}")
        if self.until is not None:
            await _terminated(worker, *self.until)
        await worker.ended()
        return worker

    async def recovered(self, stage: Stage) -> Worker:
        """What carries on, ended well."""
        if self.arguments[0] == "dlq":
            await _dead_letters_back(stage.place)
        if self.repeated:
            again = stage.pool.start(*self._arguments(stage))
            if self.until is not None:
                await _terminated(again, *self.until)
            status = await again.ended()
            assert status in self.statuses, f"{self.arguments} ended with {status}:\n{again.tail()}"
        worker = stage.pool.start(*RUN, cold=stage.measured)
        status = await worker.ended()
        assert status == 0, f"the next worker ended with {status}:\n{worker.tail()}"
        return worker

    def _arguments(self, stage: Stage) -> list[str | Path]:
        """`FILES` and `BID` stand for what the preparation made."""
        names: dict[str, str | Path] = {"FILES": _files(stage)}
        if stage.load.published:
            names["BID"] = stage.load.published[0].bid
        return [names.get(argument, argument) for argument in self.arguments]


async def _dead_letters_back(place: Place) -> None:
    """Return when no lease of a dead command hides a dead letter any more: whoever repeats it sooner finds nothing."""
    async with bootstrap.open_queue(place.settings) as queue:
        dead_letters = await queue.open_dead_letters()
        try:
            deadline = time.monotonic() + 60
            while (await dead_letters.depth()).in_flight:
                assert time.monotonic() < deadline, "a dead command still hides dead letters"
                await asyncio.sleep(0.05)
        finally:
            await dead_letters.aclose()


async def _terminated(worker: Worker, words: str, times: int) -> None:
    deadline = time.monotonic() + 60
    while worker.alive and worker.log.read_bytes().count(words.encode()) < times:
        assert time.monotonic() < deadline, f"never said {words!r}:\n{worker.tail()}"
        await asyncio.sleep(0.02)
    if worker.alive:
        worker.terminate()


async def _published(stage: Stage) -> None:
    stage.load = await publish(stage.place, stage.seed)


async def _finished(stage: Stage) -> None:
    await _published(stage)
    await stage.done(*RUN)


async def _half_stored(stage: Stage) -> None:
    """A worker died before: an object lies there that is not recorded."""
    await _published(stage)
    status = await stage.command("run", failpoints="file.link.after=kill;s3.put.after=kill")
    assert status == -signal.SIGKILL, status


async def _interrupted(stage: Stage) -> None:
    """As before, with a payload that is missing: the next worker says so when all of them have come back."""
    missing = await publish_missing(stage.place, stage.seed)
    await _half_stored(stage)
    stage.load.refused |= missing.refused


async def _missing(stage: Stage) -> None:
    stage.load = await publish_missing(stage.place, stage.seed)


async def _dead(stage: Stage) -> None:
    """A dead letter whose fault was mended."""
    await _missing(stage)
    await stage.done(*RUN)
    stage.load = await stage_missing(stage.place, stage.seed)


async def _discarded(stage: Stage) -> None:
    """A dead letter that nobody wants."""
    await _missing(stage)
    await stage.done(*RUN)
    stage.load = Load()


async def _parked(stage: Stage) -> None:
    """A completion that waits for a person."""
    await _finished(stage)
    bid = stage.load.published[0].bid
    await stage.sql("UPDATE outbox SET state = 'parked', published_at = NULL WHERE bid = :bid", bid=bid)
    await stage.sql("UPDATE bundles SET state = 'complete', published_at = NULL WHERE bid = :bid", bid=bid)


async def _aged(stage: Stage) -> None:
    """Staged payloads of published bundles, a bundle too old to be kept, and what a killed writer left."""
    await _finished(stage)
    settings, bid = stage.place.settings, f"test-old-{stage.seed:x}"
    url = "https://example.com/old.bin"
    resource = StoredResource(resource_id(url), url, None, 200, {}, "file:///nowhere", ())
    (target,) = settings.targets
    entry = Entry(
        f"{bid}/1", "f", bid, RECIPE, "", 1, {}, (BundleTarget(target, "old", "old.json"),), resource=resource
    )
    async with bootstrap.open_ledger(settings) as ledger:
        await ledger.record(entry)
        assert await ledger.mark_published(await ledger.claim(10, 60)) == 1
    await stage.sql(
        "UPDATE bundles SET published_at = published_at - :age WHERE bid = :bid",
        age=OLD * 1000,
        bid=bid,
    )
    await stage.sql("UPDATE attempts SET began_at = began_at - :age", age=OLD * 1000)
    root = stage.place.settings.home / "storage"
    if root.exists():
        left = root / ".transload-0123456789abcdef-0.part"
        left.write_bytes(b"half of something")
        os.utime(left, (time.time() - OLD, time.time() - OLD))


def _files(stage: Stage) -> Path:
    return stage.pool.logs.parent / "files"


async def _fetched_files(stage: Stage) -> None:
    """Files to be published. Nothing is announced yet; what `publish` derives from them is."""
    folder = _files(stage)
    folder.mkdir(parents=True)
    payloads = {}
    for name, data in (("one.bin", b"1" * 1000), ("two.bin", b"")):
        (folder / name).write_bytes(data)
        payloads[(folder / name).as_uri()] = data
    stage.load.published.append(Published(f"test-files-{stage.seed:x}", payloads))


_PUBLISHED = ("bundle published", 2)
_BEGUN = ("message failed", 1)
"""A message that cannot succeed came in, and with it all others."""
_SWEPT = ("housekeeping done", 1)

SCENARIOS = (
    Scenario("run", _published),
    Scenario("redo", _half_stored),
    Scenario("slow", _published, besides="file.write.before=sleep:0.4@1+;ledger.record.before=sleep:0.8"),
    Scenario("archive", _published, changes={"targets": {"main": {"archive": "tar.gz"}}}),
    Scenario("retry", _missing),
    Scenario("drain", _published, ("run",), until=_PUBLISHED),
    Scenario(
        "release",
        _interrupted,
        ("run",),
        until=_BEGUN,
        besides="file.write.before=sleep:0.4@1+",
        changes={"worker": {"drain_timeout": 0}},
    ),
    Scenario(
        "publish",
        _fetched_files,
        ("publish", "FILES", "--recipe", RECIPE, "--bid", "BID"),
        repeated=True,
    ),
    Scenario("migrate", _published, ("migrate",), migrated=False, repeated=True),
    Scenario(
        "housekeeping",
        _aged,
        ("run",),
        until=_SWEPT,
        changes={"housekeeping": {"enabled": True, "interval": 1, "sweep_after": 3600}},
        repeated=True,
    ),
    Scenario("redrive", _dead, ("dlq", "redrive", "--all"), repeated=True, statuses=(0, 1)),
    Scenario("purge", _discarded, ("dlq", "purge", "--all", "--yes"), repeated=True, statuses=(0, 1)),
    Scenario("replay", _finished, ("replay", "BID"), repeated=True, announces_again=True),
    Scenario(
        "unpark",
        _parked,
        ("outbox", "retry", "--all"),
        repeated=True,
        statuses=(0, 1),
        announces_again=True,
    ),
)
"""In the order of their visits: what several of them pass is visited in the first."""
