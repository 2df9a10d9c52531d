"""A ledger, a staging directory and a target in one folder, with bundles in every state, and the housekeeping of them.

Run as a program (`python -m tests.support.housekeeping HOME FAILPOINTS`) it announces what is due and sweeps once, in a
process that a failpoint may kill.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.base import Attributes, single
from backends.file import FileBackend, FileOptions
from handlers.plan import StagingSource
from tests.conformance.ledgers import HOUR, entry, past_publication
from worker import failpoints
from worker.housekeeping import Housekeeping, HousekeepingSettings, Place
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Recorded
from worker.metrics import Metrics

AT_ONCE = HousekeepingSettings(
    interval=0.001, batch=2, pause=0.0, keep_published=0.0, keep_attempts=0.0, sweep_after=0.0
)
"""Nothing is too young, and two rows make a batch."""


@dataclass(slots=True)
class World:
    """Everything open; `housekeeping` makes one on it."""

    home: Path
    ledger: SqlLedger
    staging: FileBackend
    target: FileBackend
    metrics: Metrics

    @property
    def source(self) -> StagingSource:
        return StagingSource("main", self.staging.location)

    def housekeeping(self, **changes: Any) -> Housekeeping:
        """With `AT_ONCE`, the staging source deletable; `changes` replace parts of the settings or arguments."""
        names = HousekeepingSettings.__slots__
        settings = replace(AT_ONCE, **{name: changes.pop(name) for name in [*changes] if name in names})
        arguments = {
            "ledger": self.ledger,
            "sources": [self.source],
            "deletable": {"main": self.staging},
            "places": [Place("staging-main", self.staging), Place("main", self.target)],
            "settings": settings,
            "random": lambda: 0.5,
            "metrics": self.metrics,
        }
        return Housekeeping(**{**arguments, **changes})

    async def stage(self, bid: str, number: int, location: str | None = None, **changes: Any) -> Recorded:
        """Stage one payload and record it as stored; without `count` the bundle stays open."""
        if location is None:
            await self.staging.write(f"{bid}/{number}", single(b"payload"), Attributes())
            location = self.source.location_of(f"{bid}/{number}")
        made = entry(bid, number, **changes)
        assert made.resource is not None
        return await self.ledger.record(replace(made, resource=replace(made.resource, location=location)))

    async def complete(self, *bids: str, resources: int = 2) -> None:
        """Bundles whose completion is due."""
        for bid in bids:
            for number in range(resources):
                await self.stage(bid, number, count=resources)

    async def announce(self) -> None:
        """Mark what is due as published."""
        await self.ledger.mark_published(await self.ledger.claim(1000, HOUR))

    async def publish(self, *bids: str, resources: int = 2) -> None:
        """Bundles whose completion is out, published in this order."""
        for bid in bids:
            await self.complete(bid, resources=resources)
            await self.announce()
            await past_publication(self.ledger, bid)

    async def staged(self) -> list[str]:
        """The bundles of which something lies in staging."""
        return sorted({found.key.partition("/")[0] async for found in self.staging.list()})

    async def known(self) -> Sequence[str]:
        """The bundles in the ledger."""
        return sorted(bundle.bid for bundle in await self.ledger.bundles())


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[World]:
    """The world that lies in `home`, made if it is not there."""
    async with AsyncExitStack() as stack:
        database = open_database(f"sqlite:///{home / 'ledger.db'}")
        ledger = SqlLedger(database)
        stack.push_async_callback(ledger.aclose)
        await migrate(database)
        backends = []
        for name in ("staging", "storage"):
            backends.append(await FileBackend.connect(FileOptions(root=home / name)))
            stack.push_async_callback(backends[-1].aclose)
        staging, target = backends
        yield World(home, ledger, staging, target, Metrics())


async def _child(home: Path, armed: str) -> None:
    async with opened(home) as world:
        failpoints.arm(failpoints.parse(armed))
        await world.announce()
        await world.housekeeping().sweep_once()


if __name__ == "__main__":
    asyncio.run(_child(Path(sys.argv[1]), sys.argv[2]))
