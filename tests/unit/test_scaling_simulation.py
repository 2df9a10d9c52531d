"""Scaling by a queue's length, simulated: docs/scaling.md shows what the simulation prints, and the loop does what Kubernetes says."""

import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.benchmarks.scaling import (
    AT_ONCE,
    CHART,
    NAIVE,
    REPLICAS,
    RUNS,
    SCENARIOS,
    SETTINGS,
    WORKER,
    Row,
    last,
    row_table,
    service_times,
    simulate,
)
from tests.benchmarks.scaling_costs import cost_table
from tests.benchmarks.scaling_loop import Cluster, Outcome, Policy

PAGE = (Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")


@cache
def rows(scenario: str) -> list[Row]:
    return [simulate(scenario, setting) for setting in SETTINGS]


def looked_at(seconds: int, setting: str = "`queueLength: 20`, no window") -> Outcome:
    """The last forty messages on ten pods, for so long."""
    scaler, worker = SETTINGS[setting]
    chance = random.Random(0)
    return Cluster(scaler, worker, REPLICAS, chance).run(last(chance), seconds)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_page_shows_what_the_simulation_prints(scenario: str) -> None:
    (shown,) = re.findall(rf"### {re.escape(scenario)}\n\n(?:[^|#][^\n]*\n+)*((?:\|[^\n]*\n)+)", PAGE)
    assert shown.strip() == row_table(rows(scenario)), "run: make simulate-scaling"


def test_the_page_shows_the_costs() -> None:
    assert cost_table() in PAGE, "run: make simulate-scaling"


def test_the_naive_setting_kills_eight_of_ten_at_the_first_look() -> None:
    assert looked_at(1).stopped_busy == 8
    assert looked_at(WORKER.drain_timeout + 1).cut_off == 8


@pytest.mark.parametrize("scenario", ["The last forty messages", "A queue of 400 drains"])
def test_the_charts_defaults_stop_no_busy_pod_while_a_queue_drains(scenario: str) -> None:
    for row in rows(scenario):
        stopped = [outcome.stopped_busy for outcome in row.outcomes]
        assert len(stopped) == RUNS
        if row.setting.startswith("the chart's defaults"):
            assert stopped == [0] * RUNS
        else:
            assert min(stopped) > 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_who_drains_as_long_as_work_takes_throws_none_away(scenario: str) -> None:
    (row,) = [row for row in rows(scenario) if "drain_timeout" in row.setting]
    assert [outcome.given_back for outcome in row.outcomes] == [0] * RUNS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_message_is_done_whatever_was_killed(scenario: str) -> None:
    for row in rows(scenario):
        for seed, outcome in enumerate(row.outcomes):
            assert outcome.done == len(SCENARIOS[scenario](random.Random(seed)))


def test_the_charts_window_outlasts_the_work() -> None:
    assert max(service_times()) <= CHART.window
    assert CHART.target == WORKER.concurrency


def metric(pods: int, messages: int, target: int) -> int:
    """How many of `pods` are left after one look."""
    scaler = replace(NAIVE, target=target, minimum=1, down=AT_ONCE)
    cluster = Cluster(scaler, replace(WORKER, concurrency=1000), pods, random.Random(0))
    cluster.run([(0, 1e6)] * messages, 1)
    return sum(pod.stopped is None for pod in cluster._pods)


@pytest.mark.parametrize(
    ("pods", "messages", "target", "left"),
    [
        (10, 40, 20, 2),
        (10, 41, 20, 3),  # rounded up
        (10, 180, 20, 10),  # within the tolerance of a tenth
        (10, 179, 20, 9),
        (8, 175, 20, 8),
        (8, 177, 20, 9),
        (4, 0, 20, 1),  # not below the minimum
        (4, 9000, 20, 8),  # doubled at most
        (9, 9000, 20, 10),  # not above the maximum
    ],
)
def test_the_wish_of_the_hpa(pods: int, messages: int, target: int, left: int) -> None:
    assert metric(pods, messages, target) == left


def test_one_pod_a_minute_goes_after_the_window() -> None:
    scaler = replace(CHART, window=300, down=Policy(pods=1, share=0.0, seconds=60))
    counts = []
    for seconds in (300, 316, 375, 376, 436):
        cluster = Cluster(scaler, WORKER, 10, random.Random(0))
        # Something that asks for ten pods once: forty messages that are done in a moment.
        cluster.run([(0, 1.0)] * 40, seconds)
        counts.append(sum(pod.stopped is None for pod in cluster._pods))
    assert counts == [10, 9, 9, 8, 7]
