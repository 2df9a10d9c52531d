"""The dashboard is what its code makes, and it and the alerts name only metrics that there are, by labels that they have."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.alerts.rules import alerts
from tests.dashboard.board import FILE, UID, rendered
from tests.dashboard.panels import ROWS
from worker.metrics import Metrics

ELSEWHERE = {
    "up": {"job", "instance"},
    "keda_scaler_metrics_value": {"scaledObject", "scaler", "type"},
    "keda_scaler_detail_errors_total": {"scaledObject", "scaler"},
    "kube_deployment_spec_replicas": {"namespace", "deployment"},
    "kube_horizontalpodautoscaler_spec_max_replicas": {"namespace", "horizontalpodautoscaler"},
    "kube_horizontalpodautoscaler_spec_min_replicas": {"namespace", "horizontalpodautoscaler"},
    "kube_horizontalpodautoscaler_status_current_replicas": {"namespace", "horizontalpodautoscaler"},
}
"""Of Prometheus, KEDA (pkg/metricscollector/prommetrics.go of 2.17) and kube-state-metrics."""
FROM_THE_LEDGER = (
    "transload_bundles",
    "transload_bundle_oldest_incomplete_age_seconds",
    "transload_outbox_pending",
    "transload_outbox_parked",
    "transload_outbox_oldest_pending_age_seconds",
)
PANELS = [panel for row in ROWS for panel in row.panels]
EXPRESSIONS = {f"alert {name}": rule["expr"] for name, rule in alerts().items()} | {
    f"panel {row.title}: {panel.title} {number}": query.expression
    for row in ROWS
    for panel in row.panels
    for number, query in enumerate(panel.queries)
}


def shown() -> dict[str, set[str]]:
    """Every series of a worker that has done everything once, and its labels as Prometheus has them."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        if names := getattr(metric, "_labelnames", ()):
            metric.labels(**dict.fromkeys(names, "x"))
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.name: {*sample.labels, "job", "instance"} for sample in samples}


def named(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that choose among its series."""
    for name, chosen in re.findall(r"([a-z_]\w*)\{([^}]*)\}", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen))


def grouped(expression: str) -> set[str]:
    """The labels by which an expression puts series together or beside each other."""
    return {
        label.strip()
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        for label in labels.split(",")
        if label.strip()
    }


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_only_metrics_that_there_are_are_named_by_labels_that_they_have(where: str) -> None:
    expression, known = EXPRESSIONS[where], shown() | ELSEWHERE
    metrics = list(named(expression))
    assert metrics
    assert set(re.findall(r"\btransload_\w+", expression)) <= {name for name, _ in metrics}
    assert {name for name, _ in metrics} <= set(known)
    for name, labels in metrics:
        assert labels <= known[name], name
    assert grouped(expression) <= set.union(*(known[name] for name, _ in metrics))


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_every_pod_says_of_the_ledger_is_never_summed(where: str) -> None:
    expression = EXPRESSIONS[where]
    for name in FROM_THE_LEDGER:
        for found in re.finditer(rf"\b{name}\{{", expression):
            assert re.search(
                r"max(?: by \(\w+\))? ?\((?:last_over_time\(|timestamp\()?$", expression[: found.start()]
            )


def test_the_file_is_what_its_code_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == rendered(), "run: make dashboard"


def test_everything_of_it_is_there_and_fits() -> None:
    board: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    assert board["uid"] == UID
    assert {rule["annotations"]["dashboard_url"] for rule in alerts().values()} == {f"/d/{UID}"}
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in places
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels lie on each other"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    titles = [panel["title"] for panel in board["panels"] if panel["type"] != "row"]
    assert titles == [panel.title for panel in PANELS]


def test_rows_are_those_of_the_plan() -> None:
    assert [row.title for row in ROWS][1:] == [
        "Intake",
        "Transfers",
        "Bundles",
        "Outbox",
        "Backends",
        "Process",
    ]


def test_every_metric_of_ours_is_in_the_dashboard_or_said_not_to_be() -> None:
    seen = {name for panel in PANELS for query in panel.queries for name, _ in named(query.expression)}
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in shown()
        if name.startswith("transload_") and not name.endswith("_created")
    }
    left_out = {
        "transload_deduplicated_bytes_total",
        "transload_housekeeping_removed_total",
        "transload_messages_redriven_total",
    }
    assert ours - {re.sub(r"_bucket$", "", name) for name in seen} == left_out
