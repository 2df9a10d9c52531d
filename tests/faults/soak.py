"""`make soak`: minutes or hours of real workers under a random load, killed, ended and held up at random; then the reckoning.

    python -m tests.faults.soak [--minutes M | --hours H | --short] [--seed N] [--queue …] [--ledger …]

Three workers share a queue and a ledger. Two are haunted (soak_chaos.py), the third is spared and must not grow. When the
time is over everything has to drain; then tests/support/history.py checks I1 to I8, and every message that could not be read
must be a dead letter with its reason, and nothing else. Exit status 1 on any violation.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.soak_chaos import Samples, end_all, haunt
from tests.faults.soak_load import Load
from tests.faults.worlds import LEDGERS, QUEUES, Combination, Place, Services, open_place, started
from tests.support import history
from tests.support.history import Report, World
from tests.support.services import NotAvailable
from tests.support.workers import Worker, Workers, workers
from worker import bootstrap, stores
from worker.ledger.base import Ledger, LedgerUnavailable
from worker.queues.base import REASON_ATTRIBUTE, Message, Queue, QueueUnavailable

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "soak"
SHORT = 1.0
"""Minutes; with start, drain and reckoning about 75 s."""
RATE = 4.0
"""Bundles a second."""
MOST = 5_000
"""Bundles in all: the reckoning reads everything back, so long runs get a lighter load."""
DRAIN_SECONDS = 120.0
_LOOKS = 0.25
_SAYS = 10.0


@dataclass(slots=True)
class Soak:
    """One run."""

    minutes: float
    seed: int
    combination: Combination
    violations: list[str] = field(default_factory=list)
    deeds: Counter[str] = field(default_factory=Counter)
    samples: Samples = field(default_factory=Samples)

    async def run(self, services: Services) -> bool:
        """Whether all went well."""
        changes: dict[str, dict[str, Any]] = {
            # A message that is in work when its worker is killed is not to blame, however often that happens.
            "worker": {"max_attempts": 1000, "drain_timeout": 5, "concurrency": 16},
            "housekeeping": {"enabled": True, "interval": 10},
            # Few threads a pool: all are there before anybody counts.
            "staging": {"main": {"backend": "file", "threads": 4, "delete_published": True}},
            "targets": {"main": {"backend": "file", "threads": 4}},
            "logs": {"level": "warning"},
        }
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(
                open_place(self.combination, services, ROOT, changes=changes)
            )
            ledger = await stack.enter_async_context(bootstrap.open_ledger(place.settings))
            queue = await stack.enter_async_context(bootstrap.open_queue(place.settings))
            staging = await stack.enter_async_context(stores.open_staging(place.settings))
            (source,) = stores.staging_sources(place.settings)
            load = Load(
                seed=self.seed, queue=queue, staging=staging[source.name], source=source, ledger=ledger
            )
            pool = stack.enter_context(workers(replace(place.transload, cold=True), ROOT / "logs"))
            await self._live(pool, load, ledger)
            await self._drain(pool, load, ledger, queue)
            report, dead = await self._reckon(place, load, queue, pool.started)
        self._tell(load, report, dead)
        return not self.violations

    async def _live(self, pool: Workers, load: Load, ledger: Ledger) -> None:
        stop = asyncio.Event()
        spared = pool.start("run")
        seconds = self.minutes * 60
        async with asyncio.TaskGroup() as group:
            for slot in (1, 2):
                group.create_task(haunt(pool, slot, self.seed, stop, self.deeds, self._violated))
            group.create_task(load.run(min(RATE, MOST / seconds), stop))
            group.create_task(self.samples.take(spared, stop))
            began = time.monotonic()
            while (left := began + seconds - time.monotonic()) > 0 and not self.violations:
                await asyncio.sleep(min(_SAYS, left))
                print(await self._progress(time.monotonic() - began, spared, load, ledger), flush=True)
            stop.set()
        if not spared.alive:
            self._violated(f"the spared worker ended with status {spared.wait()}:\n{spared.tail()}")

    async def _progress(self, passed: float, spared: Worker, load: Load, ledger: Ledger) -> str:
        try:
            published = (await ledger.summary()).bundles["published"]
        except LedgerUnavailable:
            published = -1
        rss = spared.usage().rss >> 20 if spared.alive else 0
        return (
            f"{passed:6.0f} s  {load.bundles} bundles told, {published} published; "
            f"{_shown(self.deeds)}; spared worker {rss} MiB"
        )

    async def _drain(self, pool: Workers, load: Load, ledger: Ledger, queue: Queue) -> None:
        """Everything told has to be published, and the queue empty. Then all leave."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while not await _idle(load, ledger, queue):
            if time.monotonic() > deadline:
                summary, depth = await ledger.summary(), await queue.depth()
                self._violated(f"not drained after {DRAIN_SECONDS:.0f} s: {summary}, {depth}")
                break
            await asyncio.sleep(_LOOKS)
        await end_all(pool.alive, self._violated)

    async def _reckon(
        self, place: Place, load: Load, queue: Queue, started: Sequence[Worker]
    ) -> tuple[Report, Sequence[Message]]:
        print("reading everything back …", flush=True)
        async with AsyncExitStack() as stack:
            dead_letters = await queue.open_dead_letters()
            stack.push_async_callback(dead_letters.aclose)
            targets = await stack.enter_async_context(stores.open_targets(place.settings))
            staging = await stack.enter_async_context(stores.open_staging(place.settings))
            dead = await history.contents(dead_letters)
            report = await history.check(
                World(
                    load.published(),
                    place.settings.ledger.url,
                    targets,
                    await place.received(),
                    queued=await history.contents(queue),
                    # A conflict bears the id of a message that is well.
                    dead=[message for message in dead if message.body not in load.refused],
                    staging=list(staging.values()),
                    logs=[worker.log for worker in started],
                    texts={f"dead letter {message.id}": repr(message) for message in dead},
                    canary=place.canary,
                )
            )
        self.violations += report.violations
        return report, dead

    def _tell(self, load: Load, report: Report, dead: Sequence[Message]) -> None:
        found = Counter(message.body for message in dead)
        for message in dead:
            reason = message.attributes.get(REASON_ATTRIBUTE)
            if reason != load.refused.get(message.body):
                self._violated(f"dead letter {message.body[:80]!r} has the reason {reason}")
        for body in sorted(load.refused.keys() - found.keys()):
            self._violated(f"{body[:80]!r} is no dead letter ({load.refused[body]})")
        twice = found.total() - len(found)
        if twice and self.combination.queue == "embedded":
            self._violated(f"{twice} dead letters are there twice, which one transaction cannot make")
        if report.lost:
            self._violated(f"lost: {', '.join(sorted(report.lost))}")
        counts = load.counts
        table = [
            ("bundles", str(load.bundles)),
            ("resources", f"{counts.resources} ({counts.size >> 20} MiB), {counts.late} of them late"),
            ("sent twice", str(counts.duplicates)),
            ("workers", _shown(self.deeds)),
            ("lost", str(len(report.lost))),
            ("duplicate notifications", f"{report.duplicates}, inconsistent {report.inconsistent}"),
            ("dead letters", f"{len(load.refused)} expected, {len(found)} seen, {twice} twice"),
            ("leftovers swept", str(report.swept)),
        ]
        for name, before, after, bound in self.samples.judge(self._violated):
            table.append((name, f"{before} in the second quarter, {after} in the last (bound {bound})"))
        width = max(len(name) for name, _ in table)
        print("\n".join(f"{name.ljust(width)}  {value}" for name, value in table))

    def _violated(self, what: str) -> None:
        self.violations.append(what)


async def _idle(load: Load, ledger: Ledger, queue: Queue) -> bool:
    try:
        summary = await ledger.summary()
        published = summary.bundles["published"] == load.bundles and summary.outbox_pending == 0
        return published and (await queue.depth()).idle
    except (LedgerUnavailable, QueueUnavailable):
        return False


def _shown(deeds: Counter[str]) -> str:
    return f"{deeds['kill']} killed, {deeds['term']} ended, {deeds['stall']} held up"


def main() -> int:
    """Exit status 1 on any violation; the logs and all data then stay in .bench/soak."""
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=4.0, help="how long the load goes on (4)")
    length.add_argument("--hours", type=float, help="the same in hours")
    length.add_argument("--short", action="store_true", help="about 75 seconds in all, for CI")
    parser.add_argument("--seed", type=int, help="of an earlier run")
    parser.add_argument("--queue", choices=QUEUES, default="embedded")
    parser.add_argument("--ledger", choices=LEDGERS, default="sqlite")
    options = parser.parse_args()
    minutes = SHORT if options.short else 60 * options.hours if options.hours else options.minutes
    seed = secrets.randbits(32) if options.seed is None else options.seed
    soak = Soak(minutes, seed, Combination(options.queue, options.ledger, "file"))
    print(f"soak of {minutes:g} minutes, {soak.combination}, seed {seed}", flush=True)
    shutil.rmtree(ROOT, ignore_errors=True)
    try:
        with started([soak.combination]) as services:
            passed = asyncio.run(soak.run(services))
    except NotAvailable as exc:
        print(f"not available: {exc}; get it with: {exc.command}", file=sys.stderr)
        return 1
    if passed:
        shutil.rmtree(ROOT)
        return 0
    print(f"\n{len(soak.violations)} violations; seed {seed}, everything is in {ROOT}", file=sys.stderr)
    print("\n".join(soak.violations[:50]), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
