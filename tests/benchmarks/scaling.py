"""`make simulate-scaling`: what scaling by a queue's length does to pods that are at work, with several settings.

Prints the tables of docs/scaling.md; tests/unit/test_scaling_simulation.py compares the two. The seconds that messages take are
those of a real worker (service_times.json), sixty times as long: the same worker with payloads sixty times the size. The same
seeds give the same tables.
"""

import json
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import yaml

from tests.benchmarks.scaling_costs import cost_table
from tests.benchmarks.scaling_loop import Cluster, Outcome, Policy, Scaler, Worker

ROOT = Path(__file__).resolve().parents[2]
STRETCH: Final = 60
RUNS: Final = 5
MESSAGES: Final = 400
REPLICAS: Final = 10
HOUR: Final = 3600
AT_ONCE: Final = Policy(pods=0, share=1.0, seconds=15)
"""Kubernetes' own scaling down: all of them, every 15 s."""
DOUBLE: Final = Policy(pods=4, share=1.0, seconds=15)
"""Kubernetes' own scaling up."""


@cache
def service_times() -> Sequence[float]:
    """Seconds."""
    measured = json.loads(Path(__file__).with_name("service_times.json").read_text(encoding="utf-8"))
    return [seconds * STRETCH for seconds in measured["seconds"]]


def chart_scaler(concurrency: int) -> Scaler:
    """What the chart's values come to, for workers of this concurrency."""
    values = yaml.safe_load((ROOT / "helm/transload/values.yaml").read_text(encoding="utf-8"))["autoscaling"]
    return Scaler(
        target=values["queueLength"] or concurrency,
        in_flight=True,
        window=values["stabilizationWindowSeconds"] or values["serviceTimeP99Seconds"],
        down=Policy(pods=1, share=0.0, seconds=60),
        up=Policy(pods=values["scaleUpPodsPerMinute"], share=0.0, seconds=60),
        minimum=values["minReplicas"],
        maximum=values["maxReplicas"],
        polling=values["pollingIntervalSeconds"],
    )


WORKER: Final = Worker(concurrency=4, drain_timeout=25)
CHART: Final = chart_scaler(WORKER.concurrency)
NAIVE: Final = replace(CHART, target=20, window=0, down=AT_ONCE, up=DOUBLE)

SETTINGS: Final[Mapping[str, tuple[Scaler, Worker]]] = MappingProxyType(
    {
        "`queueLength: 20`, no window": (NAIVE, WORKER),
        "`queueLength: 4`, no window": (replace(NAIVE, target=4), WORKER),
        "`queueLength: 4`, visible messages only, no window": (
            replace(NAIVE, target=4, in_flight=False),
            WORKER,
        ),
        "`queueLength: 20`, the chart's window": (replace(CHART, target=20), WORKER),
        "the chart's defaults": (CHART, WORKER),
        "the chart's defaults, `drain_timeout: 300`": (CHART, replace(WORKER, drain_timeout=300)),
    }
)


Arrivals = Sequence[tuple[int, float]]


def last(chance: random.Random) -> Arrivals:
    """As many as ten pods hold, and nothing more."""
    times = service_times()
    return [(0, chance.choice(times)) for _ in range(REPLICAS * WORKER.concurrency)]


def drained(chance: random.Random) -> Arrivals:
    """A full queue, and nothing more."""
    times = service_times()
    return [(0, chance.choice(times)) for _ in range(MESSAGES)]


def quiet(chance: random.Random) -> Arrivals:
    """A full queue, and then one message a minute."""
    return [*drained(chance), *_poisson(chance, 60.0)]


def steady(chance: random.Random) -> Arrivals:
    """As much as keeps six of ten pods busy."""
    times = service_times()
    return list(_poisson(chance, statistics.mean(times) / (6 * WORKER.concurrency)))


def _poisson(chance: random.Random, every: float) -> Iterator[tuple[int, float]]:
    times, at = service_times(), 0.0
    while (at := at + chance.expovariate(1 / every)) < HOUR:
        yield int(at), chance.choice(times)


SCENARIOS: Final[Mapping[str, Callable[[random.Random], Arrivals]]] = MappingProxyType(
    {
        "The last forty messages": last,
        "A queue of 400 drains": drained,
        "A rush, then a message a minute": quiet,
        "A steady load for six of ten pods": steady,
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """Five runs of one scenario with one setting."""

    setting: str
    outcomes: Sequence[Outcome]

    def cells(self) -> list[str]:
        """As the table shows them."""
        cut_off = [outcome.cut_off for outcome in self.outcomes]
        return [
            self.setting,
            _span([outcome.stopped_busy for outcome in self.outcomes]),
            _span(cut_off),
            f"{statistics.mean(outcome.given_back for outcome in self.outcomes):.1f}",
            f"{statistics.mean(outcome.thrown_away for outcome in self.outcomes) / 60:.0f} min",
            f"{statistics.mean(outcome.finished for outcome in self.outcomes) / 60:.0f} min",
            f"{statistics.mean(outcome.pod_seconds for outcome in self.outcomes) / HOUR:.1f}",
        ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def simulate(scenario: str, setting: str) -> Row:
    """All runs of one line."""
    scaler, worker = SETTINGS[setting]
    outcomes = []
    for seed in range(RUNS):
        chance = random.Random(seed)
        arrivals = SCENARIOS[scenario](chance)
        outcomes.append(Cluster(scaler, worker, REPLICAS, chance).run(arrivals, 2 * HOUR))
    return Row(setting, outcomes)


def row_table(rows: Iterable[Row]) -> str:
    """One scenario with every setting, in Markdown."""
    lines = [
        "| setting | busy pods stopped | of these cut off | messages given back | work thrown away | last one done after | pod hours |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Print every table."""
    for scenario in SCENARIOS:
        print(f"### {scenario}\n\n{row_table(simulate(scenario, setting) for setting in SETTINGS)}\n")
    print(f"### A million resources\n\n{cost_table()}")


if __name__ == "__main__":
    main()
