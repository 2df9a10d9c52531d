"""The metrics that operators were promised, written down once more, by name, label and kind: whoever renames one changes this list."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram, Info

from tests.conformance.ledgers import closing, entry
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.metrics import RUNNING_BUCKETS, WAITING_BUCKETS, Metrics

_LIST = """
transload_messages_received_total{queue}
transload_messages_settled_total{queue,outcome}
transload_message_queue_age_seconds waiting
transload_messages_in_flight
transload_message_process_seconds{route,outcome} running
transload_visibility_extensions_total{result}
transload_transfer_bytes_total{backend,direction}
transload_transfer_seconds{backend} running
transload_backend_requests_total{backend,op,outcome}
transload_integrity_failures_total
transload_bundles{state} ledger
transload_bundle_oldest_incomplete_age_seconds ledger
transload_bundle_completion_seconds waiting
transload_outbox_pending ledger
transload_outbox_oldest_pending_age_seconds ledger
transload_outbox_publish_total{result}
transload_outbox_delivery_lag_seconds waiting
transload_circuit_state{target}
transload_event_loop_lag_seconds
transload_last_progress_timestamp_seconds
transload_build_info{version}
"""
PROMISED = _LIST.strip().splitlines()
"""Its name, its labels in order; then what its buckets are for, or that it is read from the ledger."""


class Promise:
    def __init__(self, line: str) -> None:
        shown, _, self.about = line.partition(" ")
        self.name, _, labels = shown.rstrip("}").partition("{")
        self.labels = labels.split(",") if labels else []

    @property
    def kind(self) -> type:
        if self.name.endswith("_total"):
            return Counter
        if self.name.endswith("_info"):
            return Info
        return Histogram if self.about in {"waiting", "running"} else Gauge


@pytest.mark.parametrize("line", PROMISED)
def test_a_promised_metric_is_there_with_its_labels_and_of_its_kind(line: str) -> None:
    promise = Promise(line)
    metrics = Metrics()
    name = promise.name.removesuffix("_total").removesuffix("_info")
    (found,) = {each for each, names in metrics.registry._collector_to_names.items() if name in names}
    assert isinstance(found, promise.kind)
    if isinstance(found, Info):
        ((sample,),) = [metric.samples for metric in found.collect()]
        assert list(sample.labels) == promise.labels
    else:
        assert isinstance(found, Counter | Gauge | Histogram)
        assert list(found._labelnames) == promise.labels


@pytest.mark.parametrize("line", PROMISED)
def test_what_waits_and_what_runs_have_buckets_of_their_own(line: str) -> None:
    promise = Promise(line)
    if promise.kind is not Histogram:
        assert promise.about in {"", "ledger"}
        return
    metrics = Metrics()
    (found,) = {each for each, names in metrics.registry._collector_to_names.items() if promise.name in names}
    assert isinstance(found, Histogram)
    if promise.labels:
        found = found.labels(*("x" for _ in promise.labels))
    expected = WAITING_BUCKETS if promise.about == "waiting" else RUNNING_BUCKETS
    assert tuple(found._upper_bounds) == (*expected, float("inf"))


def test_the_two_kinds_of_buckets_are_for_what_they_are_for() -> None:
    # Work takes milliseconds to an hour; what waits may wait for as long as a message is held at most.
    assert (RUNNING_BUCKETS[0], RUNNING_BUCKETS[-1]) == (0.005, 3600)
    assert (WAITING_BUCKETS[0], WAITING_BUCKETS[-1]) == (0.1, 12 * 3600)


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[tuple[SqlLedger, SqlLedger]]:
    """Two processes' ledgers over one database."""
    await migrate(first := open_database(f"sqlite:///{tmp_path}/ledger.db"))
    ledgers = SqlLedger(first), SqlLedger(open_database(f"sqlite:///{tmp_path}/ledger.db"))
    yield ledgers
    for ledger in ledgers:
        await ledger.aclose()


async def test_gauges_of_the_ledger_are_the_same_on_every_pod(
    pods: tuple[SqlLedger, SqlLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on one that has done nothing itself, and whose clock is a day ahead."""
    busy, idle = pods
    await busy.record(entry("open", 0))
    await busy.record(entry("done", 0))
    await busy.record(closing("done", 1))
    one, other = Metrics(), Metrics()
    one.refresh(await busy.summary())
    day_ahead = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: day_ahead)
    other.refresh(await idle.summary())
    shown = [
        {
            (sample.name, *sample.labels.values()): sample.value
            for metric in each.registry.collect()
            for sample in metric.samples
        }
        for each in (one, other)
    ]
    names = {Promise(line).name for line in PROMISED if line.endswith(" ledger")}
    for key, value in shown[0].items():
        if key[0] in names:
            assert shown[1][key] == pytest.approx(value, abs=60), key
    assert shown[0]["transload_bundles", "open"] == 1
    assert shown[0]["transload_outbox_pending",] == 1
