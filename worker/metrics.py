"""What the process counts, in a registry of its own. The rooms of `worker` write it, `admin.AdminServer` shows it.

Names are part of the promise to operators: prefix `transload_`, base units, and only labels whose values are few and known
beforehand (never a bid, a URL, a host or a message's id). Follows https://prometheus.io/docs/practices/naming/.
"""

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import backends.errors
import handlers.errors
from backends.guards.breaker import CircuitState
from backends.measured import Observation
from worker.ledger.values import BundleState, Summary

WAITING_BUCKETS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0)
"""Seconds something waits: queues, bundles still open, completions not yet out."""
RUNNING_BUCKETS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    15.0,
    60.0,
    300.0,
    900.0,
    3600.0,
)
"""Seconds something runs: one message, one transfer."""

_OUTCOMES: Final = frozenset(
    {"ok", "CancelledError", "TimeoutError"}
    | {
        name
        for tree in (backends.errors, handlers.errors)
        for name, each in vars(tree).items()
        if isinstance(each, type) and issubclass(each, Exception)
    }
)
"""Of calls of a backend. Errors of other classes, which an adapter that somebody else wrote may make up, are counted as `other`."""

_DIRECTIONS: Final[Mapping[str, str]] = MappingProxyType({"open": "in", "write": "out"})


class Metrics:
    """One process's metrics. Counters and histograms are thread-safe and cost about a microsecond."""

    def __init__(self) -> None:
        """Makes every series that can be known beforehand, so that a rate exists before the first event."""
        self.registry = CollectorRegistry()
        self.messages_received = self._counter("messages_received", "Messages received.", "queue")
        self.messages_settled = self._counter(
            "messages_settled", "Messages settled; outcome: ack, ignored, retry or dead.", "queue", "outcome"
        )
        self.messages_redriven = self._counter(
            "messages_redriven", "Messages received that had been dead letters before.", "queue"
        )
        self.dead_letters = self._counter(
            "dead_letters", "Dead letters written, by reason.", "queue", "reason"
        )
        self.message_queue_age_seconds = self._histogram(
            "message_queue_age_seconds", "Seconds from send to receive.", WAITING_BUCKETS
        )
        self.messages_in_flight = self._gauge("messages_in_flight", "Messages in work now.")
        self.messages_waiting = self._gauge(
            "messages_waiting", "Messages received that wait for their recipe's share.", "route"
        )
        self.messages_put_off = self._counter(
            "messages_put_off", "Messages put back into the queue, because others came first.", "route"
        )
        self.concurrency = self._gauge("concurrency", "Messages worked on at once, at most.")
        self.message_process_seconds = self._histogram(
            "message_process_seconds", "Seconds of work on one message.", RUNNING_BUCKETS, "route", "outcome"
        )
        self.visibility_extensions = self._counter(
            "visibility_extensions", "Leases renewed; result: ok, lost or error.", "result"
        )
        self.transfer_bytes = self._counter(
            "transfer_bytes", "Payload bytes; direction: in (read) or out (written).", "backend", "direction"
        )
        self.deduplicated_bytes = self._counter(
            "deduplicated_bytes", "Payload bytes that were not written: the target had them.", "target"
        )
        self.transfer_seconds = self._histogram(
            "transfer_seconds",
            "Seconds of one read or one durable write, from its beginning to its last byte.",
            RUNNING_BUCKETS,
            "backend",
        )
        self.backend_requests = self._counter(
            "backend_requests",
            "Calls of a storage backend; outcome: ok, the error's class, or other.",
            "backend",
            "op",
            "outcome",
        )
        self.integrity_failures = self._counter(
            "integrity_failures", "Payloads whose size or digest was not the promised one."
        )
        self.transfer_memory_bytes = self._gauge(
            "transfer_memory_bytes", "Bytes of worker.transfer_memory held by transfers now."
        )
        self.housekeeping_removed = self._counter(
            "housekeeping_removed",
            "Removed in the background; what: bundles, attempts or audit (rows in the ledger), staged (payloads) or leftovers (of "
            "killed writers).",
            "what",
        )
        self.circuit_state = self._gauge(
            "circuit_state",
            "Circuit breaker of a target: 0 closed, 1 half open, 2 open.",
            "target",
        )
        self.bundles = self._gauge(
            "bundles", "Bundles in the ledger; the same on every pod: aggregate with max.", "state"
        )
        self.bundle_oldest_incomplete_age_seconds = self._gauge(
            "bundle_oldest_incomplete_age_seconds",
            "Age of the oldest bundle still open; 0 when there is none; aggregate with max.",
        )
        self.bundle_completion_seconds = self._histogram(
            "bundle_completion_seconds",
            "Seconds from a bundle's first resource to its completion.",
            WAITING_BUCKETS,
        )
        self.outbox_pending = self._gauge(
            "outbox_pending", "Completions not yet published; aggregate with max."
        )
        self.outbox_oldest_pending_age_seconds = self._gauge(
            "outbox_oldest_pending_age_seconds",
            "Age of the oldest completion not yet published; 0 when there is none; aggregate with max.",
        )
        self.outbox_parked = self._gauge(
            "outbox_parked", "Completions that wait for a person; aggregate with max."
        )
        self.outbox_publish = self._counter(
            "outbox_publish",
            "Completions tried; result: ok, error (tried again) or parked (waits for a person).",
            "result",
        )
        self.outbox_delivery_lag_seconds = self._histogram(
            "outbox_delivery_lag_seconds",
            "Seconds from a bundle's completion to its notification.",
            WAITING_BUCKETS,
        )
        self.event_loop_lag_seconds = self._gauge(
            "event_loop_lag_seconds", "How late the event loop woke last, or is by now."
        )
        self.live = self._gauge("live", "What /livez says: 1 alive, 0 a restart may help.")
        self.ready = self._gauge("ready", "What /readyz says: 1 ready, 0 not.")
        self.last_progress_timestamp = self._gauge(
            "last_progress_timestamp_seconds", "When a message was last settled, in seconds since the epoch."
        )
        Info("build", "The running version.", namespace="transload", registry=self.registry).info(
            {"version": importlib.metadata.version("transload")}
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        for result in ("ok", "lost", "error"):
            self.visibility_extensions.labels(result=result)
        for result in ("ok", "error", "parked"):
            self.outbox_publish.labels(result=result)
        for what in ("bundles", "attempts", "audit", "staged", "leftovers"):
            self.housekeeping_removed.labels(what=what)
        for state in get_args(BundleState):
            self.bundles.labels(state=state)

    def expect(self, queue: str, routes: Iterable[str] = ()) -> None:
        """Make the series of the queue that is worked on and of its routes, so that they count from nought."""
        for route in routes:
            self.messages_waiting.labels(route=route)
            self.messages_put_off.labels(route=route)
        self.messages_received.labels(queue=queue)
        for outcome in ("ack", "ignored", "retry", "dead"):
            self.messages_settled.labels(queue=queue, outcome=outcome)

    def refresh(self, summary: Summary) -> None:
        """Set the gauges that mirror the ledger."""
        for state in get_args(BundleState):
            self.bundles.labels(state=state).set(summary.bundles.get(state, 0))
        self.bundle_oldest_incomplete_age_seconds.set(summary.oldest_incomplete_age or 0.0)
        self.outbox_pending.set(summary.outbox_pending)
        self.outbox_oldest_pending_age_seconds.set(summary.oldest_pending_age or 0.0)
        self.outbox_parked.set(summary.outbox_parked)

    def observe_backend(self, backend: str, seen: Observation) -> None:
        """Count one call of the backend configured under that name."""
        outcome = seen.outcome if seen.outcome in _OUTCOMES else "other"
        self.backend_requests.labels(backend=backend, op=seen.op, outcome=outcome).inc()
        if seen.op in _DIRECTIONS:
            self.transfer_bytes.labels(backend=backend, direction=_DIRECTIONS[seen.op]).inc(seen.size)
            self.transfer_seconds.labels(backend=backend).observe(seen.seconds)

    def referred(self, target: str, size: int) -> None:
        """The target had a payload of that many bytes already."""
        self.deduplicated_bytes.labels(target=target).inc(size)

    def circuit(self, target: str, state: CircuitState) -> None:
        """The circuit breaker before that target has changed."""
        self.circuit_state.labels(target=target).set(_CIRCUITS[state])

    def render(self) -> bytes:
        """Everything in Prometheus's text format 0.0.4."""
        return generate_latest(_WithoutCreated(self.registry))

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, namespace="transload", registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, namespace="transload", registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, about, labels, namespace="transload", buckets=buckets, registry=self.registry)


_CIRCUITS: Mapping[CircuitState, int] = MappingProxyType({"closed": 0, "half_open": 1, "open": 2})


class _WithoutCreated(Collector):
    """Leaves out the `_created` series: the library's own switch for them is global to the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
