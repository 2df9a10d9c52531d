"""`make crash`: SIGKILL at every failpoint, on every combination of queue, ledger and backend; prints what came of it.

    python -m tests.faults.crash [--short] [--queue Q] [--ledger L] [--backend B] [--only NAME] [--seed N] [--write FILE]

For every combination a run that is only watched tells which failpoints the scenarios of tests/faults/scenarios.py pass, and
how often. Then, at each one's first passage and at a later one that is drawn, the process is killed, another one carries on,
and tests/support/history.py checks I1 to I8. `--short` visits every failpoint once, and every combination a few times.

Exit status 1 when anything was lost, an invariant does not hold, or a failpoint could not be visited; the logs stay then.
"""

import argparse
import asyncio
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.faults import power_cut, strokes
from tests.faults.crash import table
from tests.faults.crash.plan import ELSEWHERE, Passed, Visit, covering, planned, unvisited
from tests.faults.crash.table import Outcome
from tests.faults.scenarios import SCENARIOS, Scenario, Stage
from tests.faults.worlds import (
    BACKENDS,
    LEDGERS,
    QUEUES,
    Combination,
    Services,
    announced_after,
    check,
    combinations,
    open_place,
    publish_small,
    started,
)
from tests.support import aws_models
from tests.support.services import NotAvailable
from tests.support.strace import Strace
from tests.support.workers import workers
from worker import logs

ROOT = Path(__file__).resolve().parents[3] / ".bench" / "crash"
AT_ONCE = 4
"""Kills side by side. Two processors are kept busy by four: most of the time each waits for a lease."""


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
            print(
                f"FAILED without any fault: {combination}: {scenario.name}",
                *outcome.problems,
                sep="\n  ",
                flush=True,
            )
        else:
            shutil.rmtree(folder)
        return passed, outcome

    def below(self) -> list[Coroutine[Any, Any, list[Outcome]]]:
        """What goes on below the failpoints: at system calls, and on the disk."""
        return [*(self.strike(stroke) for stroke in strokes.STROKES), self.cut_power()]

    async def kill(self, visit: Visit) -> list[Outcome]:
        """Carry out one visit. A passage that is not reached this time is tried again nearer the start, or elsewhere."""
        while True:
            outcome = await self._carried_out(visit, visit.armed, self._folder())
            nearer = visit.nearer()
            if outcome.reached or outcome.problems or nearer is None:
                break
            shutil.rmtree(outcome.folder)
            visit = nearer
        if not outcome.problems:
            shutil.rmtree(outcome.folder)
        self.ended += 1
        said = "FAILED" if outcome.problems else "ok" if outcome.reached else "not reached"
        print(f"{self.ended:5d} of {self.total}  {said}  {visit}", flush=True)
        return [outcome]

    async def strike(self, stroke: strokes.Stroke) -> list[Outcome]:
        """Case 16: one system call after the other, until the worker comes through."""
        outcomes = []
        what, folder = f"{Combination()}, system calls", self._folder()
        calls = f"{stroke.name}: {', '.join(stroke.calls)}"
        for number in itertools.count(1, stroke.step):
            outcome = Outcome(what, "strace", calls, number, self.seed, folder / str(number))
            async with self.gate:
                try:
                    struck = await strokes.strike(stroke, number, outcome.folder, self.seed, measured=True)
                except Exception as exc:  # noqa: BLE001 - as below
                    outcome.problems.append(f"{type(exc).__name__}: {exc}")
                else:
                    outcome.reached, outcome.recovery = struck.killed, struck.recovery
                    outcome.found(struck.report)
            outcomes.append(self._told(outcome))
            if not outcome.reached:
                return outcomes
        raise AssertionError("there is always a last call")

    async def cut_power(self) -> list[Outcome]:
        """Case 17: a worker on what a power cut leaves, for every sync during which the power may go off."""
        outcomes = []
        what, folder = f"{Combination()}, power cuts", self._folder()
        async with self.gate, open_place(Combination(), Services(), folder) as place:
            load = await publish_small(place, self.seed)
            for number, cut in enumerate(await power_cut.recorded(place, folder), start=1):
                outcome = Outcome(
                    what, "power cut", "during every sync", number, self.seed, folder, reached=True
                )
                try:
                    outcome.found(await power_cut.survived(place, load, cut))
                except Exception as exc:  # noqa: BLE001 - as below
                    outcome.problems.append(f"{cut.during}: {type(exc).__name__}: {exc}")
                outcomes.append(self._told(outcome))
        return outcomes

    def _told(self, outcome: Outcome) -> Outcome:
        print(f"{'FAILED' if outcome.problems else 'ok':>21}  {outcome.where}", flush=True)
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
            with workers(place.transload, outcome.folder / "logs") as pool:
                stage = Stage(place, pool, seed, measured=True)
                await scenario.prepare(stage)
                dead = await scenario.armed(stage, failpoints)
                died = time.time()
                outcome.reached = visit.action != "kill" or dead.wait() == -signal.SIGKILL
                if not outcome.reached:
                    return
                recovery = announced_after(await scenario.recovered(stage), died)
                # What an error does not kill goes on announcing by itself.
                outcome.recovery = recovery if visit.action == "kill" else None
                report = await check(place, stage.load, [worker.log for worker in pool.started])
        outcome.found(report)
        if scenario.announces_again:
            outcome.duplicates = 0

    def _folder(self) -> Path:
        self.begun += 1
        return ROOT / f"{self.seed}" / f"{self.begun:04d}"


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
            found[combination].setdefault(name, []).append((scenario, times))
    return found, [outcome for _, outcome in results if outcome.problems]


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
    below = [] if options.short or options.only != "*" or Combination() not in wanted else matrix.below()
    results = await asyncio.gather(*(matrix.kill(visit) for visit in visits), *below)
    outcomes = sorted(
        itertools.chain.from_iterable(results),
        key=lambda outcome: (outcome.combination, outcome.failpoint, outcome.passage),
    )
    if missed := [outcome for outcome in outcomes if not outcome.reached]:
        print(f"{len(missed)} places that were passed by chance before were not passed again")
    # With all services there, a place that nothing passes is a hole in the matrix.
    holes = (
        unvisited(outcomes)
        if options.only == "*" and wanted == combinations(QUEUES, LEDGERS, BACKENDS)
        else []
    )
    print(*table.terminal(outcomes), sep="\n")
    for outcome in [*failed, *outcomes]:
        for problem in outcome.problems:
            print(f"{outcome.where}: {problem}\n  logs: {outcome.folder}")
    for name in holes:
        print(f"{name}: nothing was killed there; give it a scenario, or a reason in ELSEWHERE")
    minutes = (time.monotonic() - started_at) / 60
    sample = "a seeded sample" if options.short else "all there are"
    places = len({each.failpoint for each in outcomes})
    facts = [
        f"{len(outcomes)} processes killed or failed at {places} failpoints, {sample}; seed {options.seed}",
        f"{minutes:.0f} minutes on {os.cpu_count()} processors, {AT_ONCE} at a time",
    ]
    print(*facts, sep="\n")
    if options.write:
        options.write.write_text(table.page(outcomes, facts, ELSEWHERE), encoding="utf-8")
    if holes or failed or any(outcome.problems or outcome.lost for outcome in outcomes):
        return 1
    shutil.rmtree(ROOT / str(options.seed), ignore_errors=True)
    return 0


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
    # Compiled anew by every worker that starts from nothing, the code would be most of what it takes one to recover.
    os.environ |= {"PYTHONPYCACHEPREFIX": str(ROOT / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    logs.configure("error", "json", sys.stderr)
    aws_models.remember()
    wanted = combinations(options.queue or QUEUES, options.ledger or LEDGERS, options.backend or BACKENDS)
    shutil.rmtree(ROOT / str(options.seed), ignore_errors=True)
    try:
        if not options.short:
            Strace().start()
        with started(wanted) as services:
            return asyncio.run(run(options, services, wanted))
    except NotAvailable as exc:
        print(f"{exc}\nget it with: {exc.command}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
