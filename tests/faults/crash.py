"""`make crash`: SIGKILL at every failpoint, on every combination of queue, ledger and backend; prints what came of it.

    python -m tests.faults.crash [--short] [--queue Q] [--ledger L] [--backend B] [--only NAME] [--seed N] [--write FILE]

For every combination a run that is only watched tells which failpoints the scenarios of tests/faults/scenarios.py pass, and
how often. Then, at each one's first passage and at a later one that is drawn, the process is killed, another one carries on,
and tests/support/history.py checks I1 to I8. `--short` visits every failpoint once, and every combination a few times.

Exit status 1 when anything was lost, an invariant does not hold, or a failpoint could not be visited; the logs stay then.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from tests.faults import crash_table
from tests.faults.crash_table import Outcome
from tests.faults.scenarios import SCENARIOS, Scenario, Stage
from tests.faults.worlds import (
    BACKENDS,
    LEDGERS,
    QUEUES,
    Combination,
    Services,
    check,
    combinations,
    open_place,
    started,
)
from tests.support.failpoints import known
from tests.support.services import NotAvailable
from tests.support.workers import Worker, workers
from worker import logs

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "crash"
AT_ONCE = 3
"""Kills side by side. Two processors are kept busy by three, because each waits a second for a lease."""
VISITS_OF_SHORT = 4
"""Kills each combination gets at least."""
RAISED = {
    "file.sync.before": "raise:OSError:5",
    "file.link.before": "raise:OSError:28",
    "file.sync_directory.before": "raise:OSError:5",
    "sqlite.commit.before": "raise:OSError:28",
    "ledger.record.before": "raise:RuntimeError",
    "relay.publish.before": "raise:RuntimeError",
    "s3.complete.before": "raise:ConnectionResetError:104",
    "s3.put.after": "raise:ConnectionResetError:104",
}
"""Errors at commits, in the full run: the process goes on or ends, and either way nothing may be lost."""

ELSEWHERE = {
    "file.create.*": "only where the file system has no files without a name; tests/unit/test_file_backend.py",
    "file.discard.*": "as file.create",
    "file.link_named.*": "as file.create",
    "file.unlink_temporary.*": "as file.create",
    "s3.abort.*": "takes a failing upload; tests/unit/test_s3_backend.py",
    "s3.sweep.*": "takes an upload older than an hour; tests/conformance/backends.py",
    "ledger.probe.*": "takes an outage of the ledger; tests/faults/test_outages.py",
}
"""What no scenario passes, and where it is tried instead."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One process to be killed."""

    combination: Combination
    scenario: Scenario
    failpoint: str
    passage: int
    action: str = "kill"

    @property
    def armed(self) -> str:
        return f"{self.failpoint}={self.action}@{self.passage}"

    def __str__(self) -> str:
        return f"{self.combination}: {self.scenario.name}: {self.armed}"


@dataclass(slots=True)
class Matrix:
    """One run of the whole."""

    services: Services
    seed: int
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    begun: int = 0
    ended: int = 0
    total: int = 0

    async def probe(self, combination: Combination, scenario: Scenario) -> tuple[Counter[str], Outcome]:
        """Which failpoints the scenario passes there, and how often. It also has to come out well unharmed."""
        folder = self._folder()
        notes = folder / "passages"
        outcome = await self._carried_out(
            Visit(combination, scenario, "*", 1, "note"), f"*=note:{notes}", folder
        )
        passed = Counter(notes.read_text(encoding="utf-8").split()) if notes.exists() else Counter[str]()
        if outcome.problems:
            print(f"FAILED without any fault: {combination}: {scenario.name}", flush=True)
        else:
            shutil.rmtree(folder)
        return passed, outcome

    async def kill(self, visit: Visit) -> Outcome:
        """Carry out one visit. A passage that is not reached this time is tried again nearer the start."""
        while True:
            outcome = await self._carried_out(visit, visit.armed, self._folder())
            if outcome.reached or visit.passage == 1:
                break
            shutil.rmtree(outcome.folder)
            visit = replace(visit, passage=visit.passage // 2)
        if not outcome.problems:
            shutil.rmtree(outcome.folder)
        self.ended += 1
        print(
            f"{self.ended:5d} of {self.total}  {'ok' if not outcome.problems else 'FAILED'}  {visit}",
            flush=True,
        )
        return outcome

    async def _carried_out(self, visit: Visit, failpoints: str, folder: Path) -> Outcome:
        seed = random.Random(f"{self.seed} {visit}").getrandbits(40)
        outcome = Outcome(
            str(visit.combination),
            visit.scenario.name,
            visit.failpoint,
            visit.passage,
            seed,
            folder,
            visit.action,
        )
        async with self.gate:
            try:
                await self._played(visit, failpoints, seed, outcome)
            except Exception as exc:  # noqa: BLE001 - one visit that fails is a line of the report, not the end
                outcome.problems.append(f"{type(exc).__name__}: {exc}")
        return outcome

    async def _played(self, visit: Visit, failpoints: str, seed: int, outcome: Outcome) -> None:
        scenario = visit.scenario
        async with open_place(
            visit.combination,
            self.services,
            outcome.folder,
            migrated=scenario.migrated,
            changes=scenario.changes,
        ) as place:
            place.transload.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / "pycache")
            place.transload.environ["PYTHONDONTWRITEBYTECODE"] = ""
            with workers(place.transload, outcome.folder / "logs") as pool:
                stage = Stage(place, pool, seed)
                await scenario.prepare(stage)
                dead = await scenario.armed(stage, failpoints)
                died = time.time()
                outcome.reached = visit.action != "kill" or dead.wait() == -signal.SIGKILL
                if not outcome.reached:
                    outcome.problems.append(f"passage {visit.passage} was not reached")
                    return
                outcome.recovery = announced(await scenario.recovered(stage), died)
                report = await check(place, stage.load, [worker.log for worker in pool.started])
        outcome.problems += report.violations
        outcome.lost = len(report.lost)
        outcome.duplicates = 0 if scenario.announces_again else report.duplicates
        outcome.inconsistent = report.inconsistent
        outcome.swept = report.swept

    def _folder(self) -> Path:
        self.begun += 1
        return ROOT / f"{self.seed}" / f"{self.begun:04d}"


def announced(worker: Worker, since: float) -> float | None:
    """Seconds from then to the last notification this worker sent; None when all were out before."""
    times = [
        datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
        for line in worker.log.read_text(encoding="utf-8").splitlines()
        if '"bundle published"' in line
    ]
    return max(times) - since if times else None


Passed = dict[Combination, dict[str, tuple[Scenario, int]]]
"""By combination: the failpoints that are reached there, in which scenario first, and how often it passes them."""


async def watched(
    matrix: Matrix, wanted: Sequence[Combination], *, short: bool
) -> tuple[Passed, list[Outcome]]:
    """What can be visited, and what failed without being disturbed.

    `short` looks at everything in one combination for each queue, ledger and backend, and at plain runs in the others.
    """
    whole = covering(wanted) if short else wanted
    runs = [
        (combination, scenario)
        for combination in wanted
        for scenario in (SCENARIOS if combination in whole else SCENARIOS[:1])
        if scenario.fits(combination)
    ]
    print(f"watching {len(runs)} runs to see which failpoints they pass", flush=True)
    results = await asyncio.gather(*(matrix.probe(*run) for run in runs))
    found: Passed = defaultdict(dict)
    for (combination, scenario), (names, _) in zip(runs, results, strict=True):
        for name, times in names.items():
            found[combination].setdefault(name, (scenario, times))
    return found, [outcome for _, outcome in results if outcome.problems]


def covering(wanted: Sequence[Combination]) -> list[Combination]:
    """A few of them in which every queue, every ledger and every backend is there."""
    chosen: list[Combination] = []
    seen: set[str] = set()
    while missing := {part for each in wanted for part in _parts(each)} - seen:
        best = max(wanted, key=lambda each: len(missing & _parts(each)))
        chosen.append(best)
        seen |= _parts(best)
    return chosen


def _parts(combination: Combination) -> set[str]:
    return {combination.queue, combination.ledger, combination.backend}


def planned(found: Passed, draw: random.Random, *, short: bool) -> list[Visit]:
    """The visits, in an order that mixes the combinations."""
    visits = _sample(found, draw) if short else list(_all(found, draw))
    draw.shuffle(visits)
    return visits


def _all(found: Passed, draw: random.Random) -> Iterator[Visit]:
    for combination, names in found.items():
        for name, (scenario, times) in names.items():
            yield Visit(combination, scenario, name, 1)
            if times > 1:
                yield Visit(combination, scenario, name, _later(times, draw))
        for name, action in RAISED.items():
            if name in names:
                yield Visit(combination, names[name][0], name, 1, action)


def _sample(found: Passed, draw: random.Random) -> list[Visit]:
    """Every failpoint once, somewhere; then every combination a few times."""
    where = defaultdict(list)
    for combination, names in found.items():
        for name in names:
            where[name].append(combination)
    visits = [_drawn(found, draw.choice(places), name, draw) for name, places in sorted(where.items())]
    for combination, names in found.items():
        had = [visit.failpoint for visit in visits if visit.combination == combination]
        others = sorted(names.keys() - had)
        more = draw.sample(others, min(len(others), max(0, VISITS_OF_SHORT - len(had))))
        visits += [_drawn(found, combination, name, draw) for name in more]
    return visits


def _drawn(found: Passed, combination: Combination, name: str, draw: random.Random) -> Visit:
    scenario, times = found[combination][name]
    passage = 1 if times == 1 or draw.random() < 0.5 else _later(times, draw)
    return Visit(combination, scenario, name, passage)


def _later(times: int, draw: random.Random) -> int:
    """Not among the last ones: the next run may come by less often."""
    return draw.randint(2, max(2, times * 2 // 3))


def unvisited(found: Passed) -> list[str]:
    """Failpoints that nothing passes and that have no reason not to be passed."""
    reached = {name for names in found.values() for name in names}
    return [
        name
        for name in known()
        if name not in reached and not any(fnmatchcase(name, pattern) for pattern in ELSEWHERE)
    ]


async def run(options: argparse.Namespace, services: Services, wanted: Sequence[Combination]) -> int:
    """All of it; the exit status."""
    started_at, matrix = time.monotonic(), Matrix(services, options.seed)
    found, failed = await watched(matrix, wanted, short=options.short)
    visits = [
        visit
        for visit in planned(found, random.Random(options.seed), short=options.short)
        if fnmatchcase(visit.failpoint, options.only)
    ]
    matrix.total = len(visits)
    print(f"{matrix.total} visits, {AT_ONCE} at a time", flush=True)
    outcomes = sorted(
        await asyncio.gather(*(matrix.kill(visit) for visit in visits)),
        key=lambda outcome: (outcome.combination, outcome.failpoint, outcome.passage),
    )
    # With all services there, a place that nothing passes is a hole in the matrix.
    holes = unvisited(found) if wanted == combinations(QUEUES, LEDGERS, BACKENDS) else []
    print(*crash_table.terminal(outcomes), sep="\n")
    for outcome in [*failed, *outcomes]:
        for problem in outcome.problems:
            print(f"{outcome.where}: {problem}\n  logs: {outcome.folder}")
    for name in holes:
        print(f"{name}: nothing passes it; give it a scenario, or a reason in ELSEWHERE")
    minutes = (time.monotonic() - started_at) / 60
    sample = "a seeded sample" if options.short else "all there are"
    places = len({each.failpoint for each in outcomes})
    facts = [
        f"{len(outcomes)} processes killed or failed at {places} failpoints, {sample}; seed {options.seed}",
        f"{minutes:.0f} minutes on {os.cpu_count()} processors, {AT_ONCE} at a time",
    ]
    print(*facts, sep="\n")
    if options.write:
        options.write.write_text(crash_table.page(outcomes, facts, ELSEWHERE), encoding="utf-8")
    return 1 if holes or failed or any(outcome.problems or outcome.lost for outcome in outcomes) else 0


def main() -> int:
    """Start the services, run, print; exit status 1 when something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a sample: every failpoint once")
    parser.add_argument("--queue", choices=QUEUES, action="append", help="only this one; may be repeated")
    parser.add_argument("--ledger", choices=LEDGERS, action="append", help="only this one")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this one")
    parser.add_argument("--only", default="*", metavar="NAME", help="only these failpoints; a pattern")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; default: a new one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables as a page")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 20)
    print(f"seed {options.seed}", flush=True)
    logs.configure("error", "json", sys.stderr)
    wanted = combinations(options.queue or QUEUES, options.ledger or LEDGERS, options.backend or BACKENDS)
    shutil.rmtree(ROOT / str(options.seed), ignore_errors=True)
    try:
        with started(wanted) as services:
            return asyncio.run(run(options, services, wanted))
    except NotAvailable as exc:
        print(f"{exc}\nget it with: {exc.command}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
