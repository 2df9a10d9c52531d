import importlib.metadata
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker.ledger.values import Summary
from worker.metrics import RUNNING_BUCKETS, WAITING_BUCKETS, Metrics

PROMISED: dict[str, tuple[str, set[str]]] = {
    "messages_received_total": ("messages_received", {"queue"}),
    "messages_settled_total": ("messages_settled", {"queue", "outcome"}),
    "message_queue_age_seconds_count": ("message_queue_age_seconds", set()),
    "messages_redriven_total": ("messages_redriven", {"queue"}),
    "dead_letters_total": ("dead_letters", {"queue", "reason"}),
    "messages_in_flight": ("messages_in_flight", set()),
    "messages_waiting": ("messages_waiting", {"route"}),
    "messages_put_off_total": ("messages_put_off", {"route"}),
    "concurrency": ("concurrency", set()),
    "message_process_seconds_count": ("message_process_seconds", {"route", "outcome"}),
    "visibility_extensions_total": ("visibility_extensions", {"result"}),
    "transfer_bytes_total": ("transfer_bytes", {"backend", "direction"}),
    "transfer_seconds_count": ("transfer_seconds", {"backend"}),
    "backend_requests_total": ("backend_requests", {"backend", "op", "outcome"}),
    "integrity_failures_total": ("integrity_failures", set()),
    "transfer_memory_bytes": ("transfer_memory_bytes", set()),
    "housekeeping_removed_total": ("housekeeping_removed", {"what"}),
    "bundles": ("bundles", {"state"}),
    "bundle_oldest_incomplete_age_seconds": ("bundle_oldest_incomplete_age_seconds", set()),
    "bundle_completion_seconds_count": ("bundle_completion_seconds", set()),
    "outbox_pending": ("outbox_pending", set()),
    "outbox_oldest_pending_age_seconds": ("outbox_oldest_pending_age_seconds", set()),
    "outbox_publish_total": ("outbox_publish", {"result"}),
    "outbox_delivery_lag_seconds_count": ("outbox_delivery_lag_seconds", set()),
    "outbox_parked": ("outbox_parked", set()),
    "circuit_state": ("circuit_state", {"target"}),
    "live": ("live", set()),
    "ready": ("ready", set()),
    "event_loop_lag_seconds": ("event_loop_lag_seconds", set()),
    "last_progress_timestamp_seconds": ("last_progress_timestamp", set()),
}
"""Name shown, without the prefix -> attribute of `Metrics`, labels."""


LISTED = re.compile(r"`(transload_\w+)`")


def shown(metrics: Metrics) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def summary(**changes: Any) -> Summary:
    facts: dict[str, Any] = {
        "bundles": {"open": 3, "complete": 2},
        "resources": 9,
        "outbox_pending": 2,
        "outbox_parked": 4,
        "oldest_incomplete_age": 12.5,
        "oldest_pending_age": 1.5,
    }
    return Summary(**(facts | changes))


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_metric_is_shown_under_its_name_with_its_labels(name: str) -> None:
    attribute, labels = PROMISED[name]
    metrics = Metrics()
    if labels:
        getattr(metrics, attribute).labels(**dict.fromkeys(labels, "x"))
    samples = [sample for family in shown(metrics).values() for sample in family.samples]
    assert [s for s in samples if s.name == f"transload_{name}" and s.labels == dict.fromkeys(labels, "x")]


def test_the_page_for_operators_lists_what_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = {name for line in page.splitlines() if line.startswith("| `") for name in LISTED.findall(line)}
    families = Metrics().registry.collect()
    kinds = {"counter": "_total", "info": "_info"}
    ours = {f.name + kinds.get(f.type, "") for f in families if f.name.startswith("transload_")}
    assert table == ours


def test_case_101_no_metric_has_a_label_of_unbounded_values() -> None:
    metrics = Metrics()
    for attribute, labels in PROMISED.values():
        if labels:
            getattr(metrics, attribute).labels(**dict.fromkeys(labels, "x"))
    used = {
        label for family in shown(metrics).values() for sample in family.samples for label in sample.labels
    }
    assert not used & {"bid", "url", "host", "id", "key", "recipe", "recipe_id", "message"}


def test_counters_end_in_total_and_created_series_are_left_out() -> None:
    metrics = Metrics()
    metrics.messages_received.labels(queue="q").inc(3)
    text = metrics.render().decode()
    assert 'transload_messages_received_total{queue="q"} 3.0' in text
    assert "_created" not in text


def test_waiting_and_running_have_their_own_buckets() -> None:
    metrics = Metrics()
    metrics.message_queue_age_seconds.observe(1)
    metrics.message_process_seconds.labels(route="default", outcome="ack").observe(1)
    families = shown(metrics)

    def buckets(name: str) -> list[float]:
        return [float(s.labels["le"]) for s in families[name].samples if s.name.endswith("_bucket")]

    assert buckets("transload_message_queue_age_seconds") == [*WAITING_BUCKETS, float("inf")]
    assert buckets("transload_message_process_seconds") == [*RUNNING_BUCKETS, float("inf")]


def test_refresh_mirrors_the_ledger_and_states_that_vanish_go_to_zero() -> None:
    metrics = Metrics()
    metrics.refresh(summary())
    text = metrics.render().decode()
    assert 'transload_bundles{state="open"} 3.0' in text
    assert 'transload_bundles{state="published"} 0.0' in text
    assert "transload_bundle_oldest_incomplete_age_seconds 12.5" in text
    assert "transload_outbox_pending 2.0" in text
    assert "transload_outbox_oldest_pending_age_seconds 1.5" in text
    assert "transload_outbox_parked 4.0" in text
    metrics.refresh(
        summary(
            bundles={}, oldest_incomplete_age=None, oldest_pending_age=None, outbox_pending=0, outbox_parked=0
        )
    )
    text = metrics.render().decode()
    assert 'transload_bundles{state="open"} 0.0' in text
    assert "transload_bundle_oldest_incomplete_age_seconds 0.0" in text
    assert "transload_outbox_oldest_pending_age_seconds 0.0" in text
    assert "transload_outbox_parked 0.0" in text


def test_results_known_beforehand_exist_before_the_first_event() -> None:
    text = Metrics().render().decode()
    assert 'transload_visibility_extensions_total{result="lost"} 0.0' in text
    assert 'transload_outbox_publish_total{result="parked"} 0.0' in text


def test_what_a_queue_will_count_exists_before_its_first_message() -> None:
    metrics = Metrics()
    metrics.expect("q")
    text = metrics.render().decode()
    assert 'transload_messages_received_total{queue="q"} 0.0' in text
    for outcome in ("ack", "retry", "dead"):
        assert f'transload_messages_settled_total{{outcome="{outcome}",queue="q"}} 0.0' in text


def test_build_info_is_the_installed_version() -> None:
    version = importlib.metadata.version("transload")
    assert f'transload_build_info{{version="{version}"}} 1.0' in Metrics().render().decode()


def test_two_in_one_process_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.integrity_failures.inc()
    assert "transload_integrity_failures_total 1.0" in first.render().decode()
    assert "transload_integrity_failures_total 0.0" in second.render().decode()


def test_rendering_while_others_count_loses_nothing() -> None:
    metrics = Metrics()

    def count() -> None:
        for _ in range(500):
            metrics.messages_received.labels(queue="q").inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.render()
    assert 'transload_messages_received_total{queue="q"} 2000.0' in metrics.render().decode()
