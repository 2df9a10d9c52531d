"""What the dashboard shows, row by row. tests/dashboard/__main__.py makes Grafana's JSON of it, the tests ask a Prometheus.

In the expressions `$job` is the scrape's job and `$__rate_interval` what Grafana puts for a window of at least four scrapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WINDOW = "$__rate_interval"
MINE = 'job="$job"'


@dataclass(frozen=True, slots=True)
class Query:
    """One expression; `legend` names its series, with labels in `{{}}`."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` is Grafana's name of it; `width` in its 24 columns; `warn` colours a number from there on."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    kind: Literal["lines", "bars", "number"] = "lines"
    width: int = 8
    warn: float | None = None
    top: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below one title."""

    title: str
    panels: Sequence[Panel]


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """How fast counters grow, summed over workers."""
    return f"sum{_by(by)}(rate({metric}{{{_and(labels)}}}[{WINDOW}]))"


def added(metric: str, by: str = "", labels: str = "", window: str = WINDOW) -> str:
    """How much counters grew, summed over workers."""
    return f"sum{_by(by)}(increase({metric}{{{_and(labels)}}}[{window}]))"


def gauge(how: Literal["sum", "max", "count"], metric: str, by: str = "", labels: str = "") -> str:
    """Gauges, put together. Those of the ledger are the same on every pod: `max`."""
    return f"{how}{_by(by)}({metric}{{{_and(labels)}}})"


def quantiles(metric: str, *, by: str = "", legend: str = "") -> tuple[Query, ...]:
    """Half and nearly all of what a histogram has seen."""
    labels = f"le, {by}" if by else "le"
    prefix = f"{legend} " if legend else ""
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket{{{MINE}}}[{WINDOW}])))",
            f"{prefix}{name}",
        )
        for quantile, name in ((0.5, "p50"), (0.95, "p95"))
    )


def asked(query: Query, *, job: str = "transload", window: str) -> str:
    """What Grafana asks Prometheus for."""
    return query.expression.replace(WINDOW, window).replace("$job", job)


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _and(labels: str) -> str:
    return f"{MINE}, {labels}" if labels else MINE


GLANCE = Row(
    "At a glance",
    (
        Panel(
            "Workers alive",
            "By their own account (/livez).",
            "none",
            (Query(gauge("sum", "transload_live")),),
            "number",
            4,
        ),
        Panel(
            "Room in use",
            "Messages in work, of as many as all workers take at once.",
            "percentunit",
            (
                Query(
                    f"{gauge('sum', 'transload_messages_in_flight')} / {gauge('sum', 'transload_concurrency')}"
                ),
            ),
            "number",
            4,
        ),
        Panel(
            "Oldest open bundle",
            "Since its first resource.",
            "s",
            (Query(gauge("max", "transload_bundle_oldest_incomplete_age_seconds")),),
            "number",
            4,
            warn=86_400,
        ),
        Panel(
            "Oldest waiting completion",
            "Since its bundle was complete.",
            "s",
            (Query(gauge("max", "transload_outbox_oldest_pending_age_seconds")),),
            "number",
            4,
            warn=600,
        ),
        Panel(
            "Parked completions",
            "They wait for a person: transload outbox ls --state parked.",
            "none",
            (Query(gauge("max", "transload_outbox_parked")),),
            "number",
            4,
            warn=1,
        ),
        Panel(
            "Dead letters in a day",
            "transload dlq ls has the reasons.",
            "none",
            (Query(added("transload_messages_settled_total", labels='outcome="dead"', window="1d")),),
            "number",
            4,
            warn=1,
        ),
    ),
)

INTAKE = Row(
    "Intake",
    (
        Panel(
            "Messages",
            "Received from the queue, how they were settled, and put back into it because others came first.",
            "cps",
            (
                Query(rate("transload_messages_received_total"), "received"),
                Query(rate("transload_messages_settled_total", "outcome"), "{{outcome}}"),
                Query(rate("transload_messages_put_off_total"), "put off"),
            ),
        ),
        Panel(
            "In work",
            "Messages in work now, how many may be, and how many wait for their recipe's share.",
            "none",
            (
                Query(gauge("sum", "transload_messages_in_flight"), "in work"),
                Query(gauge("sum", "transload_concurrency"), "at most"),
                Query(gauge("sum", "transload_messages_waiting"), "waiting"),
            ),
        ),
        Panel(
            "Wait in the queue",
            "From when a message was first sent until a worker took it; one that is tried again has waited since then.",
            "s",
            quantiles("transload_message_queue_age_seconds"),
        ),
        Panel(
            "Work on one message",
            "From its turn until its fate is known.",
            "s",
            quantiles("transload_message_process_seconds", by="outcome", legend="{{outcome}}"),
        ),
        Panel(
            "Dead letters",
            "Given up, by the reason.",
            "none",
            (Query(added("transload_dead_letters_total", "reason"), "{{reason}}"),),
            "bars",
        ),
        Panel(
            "Leases",
            "Renewals of what is held: one that is lost goes to another worker.",
            "cps",
            (Query(rate("transload_visibility_extensions_total", "result"), "{{result}}"),),
        ),
    ),
)

TRANSFERS = Row(
    "Transfers",
    (
        Panel(
            "Bytes",
            "Payloads and manifests, in from staging and out to targets.",
            "Bps",
            (
                Query(
                    rate("transload_transfer_bytes_total", "backend, direction"), "{{backend}} {{direction}}"
                ),
            ),
            width=6,
        ),
        Panel(
            "One read or write",
            "From its beginning to its last byte.",
            "s",
            quantiles("transload_transfer_seconds", by="backend", legend="{{backend}}"),
            width=6,
        ),
        Panel(
            "Memory of transfers",
            "Held of worker.transfer_memory, by each worker.",
            "bytes",
            (Query(gauge("max", "transload_transfer_memory_bytes", "instance"), "{{instance}}"),),
            width=6,
        ),
        Panel(
            "Payloads that differ",
            "Their size or digest is not what their message promised.",
            "none",
            (Query(added("transload_integrity_failures_total"), "payloads"),),
            "bars",
            6,
        ),
    ),
)

BUNDLES = Row(
    "Bundles",
    (
        Panel(
            "Not announced yet",
            "Open bundles miss resources; complete ones are in the outbox.",
            "none",
            (Query(gauge("max", "transload_bundles", "state", 'state=~"open|complete"'), "{{state}}"),),
        ),
        Panel(
            "Oldest open bundle",
            "Since its first resource.",
            "s",
            (Query(gauge("max", "transload_bundle_oldest_incomplete_age_seconds"), "age"),),
        ),
        Panel(
            "From first resource to complete",
            "Of the bundles that became complete.",
            "s",
            quantiles("transload_bundle_completion_seconds"),
        ),
    ),
)

OUTBOX = Row(
    "Outbox",
    (
        Panel(
            "Completions waiting",
            "Pending ones are tried again by themselves, parked ones wait for a person.",
            "none",
            (
                Query(gauge("max", "transload_outbox_pending"), "pending"),
                Query(gauge("max", "transload_outbox_parked"), "parked"),
            ),
        ),
        Panel(
            "Completions tried",
            "By what came of it.",
            "cps",
            (Query(rate("transload_outbox_publish_total", "result"), "{{result}}"),),
        ),
        Panel(
            "From complete to announced",
            "Of the completions that went out.",
            "s",
            quantiles("transload_outbox_delivery_lag_seconds"),
        ),
    ),
)

BACKENDS = Row(
    "Backends",
    (
        Panel(
            "Calls",
            "Of staging sources (staging-…) and targets.",
            "cps",
            (Query(rate("transload_backend_requests_total", "backend, op"), "{{backend}} {{op}}"),),
        ),
        Panel(
            "Calls that did not end well",
            "NotFound and Conflict are answers; Unavailable, CircuitOpen and PermissionDenied are the store's failures.",
            "cps",
            (
                Query(
                    rate("transload_backend_requests_total", "backend, outcome", 'outcome!="ok"'),
                    "{{backend}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Circuit breakers",
            "0 closed, 1 half open, 2 open; shown once one has opened.",
            "none",
            (Query(gauge("max", "transload_circuit_state", "target"), "{{target}}"),),
            top=2,
        ),
    ),
)

PROCESS = Row(
    "Process",
    (
        Panel(
            "Workers",
            "Scraped, alive and ready by their own account.",
            "none",
            (
                Query(gauge("count", "transload_build_info", "version"), "{{version}}"),
                Query(gauge("sum", "transload_live"), "alive"),
                Query(gauge("sum", "transload_ready"), "ready"),
            ),
        ),
        Panel(
            "Lag of the event loop",
            "A lag of seconds: too little CPU, or a wedge.",
            "s",
            (Query(gauge("max", "transload_event_loop_lag_seconds", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Since something was settled",
            "By each worker that has settled anything.",
            "s",
            (
                Query(
                    f"time() - max by (instance) (transload_last_progress_timestamp_seconds{{{MINE}}} > 0)",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "CPU",
            "Cores in use.",
            "none",
            (Query(rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            (Query(gauge("max", "process_resident_memory_bytes", "instance"), "{{instance}}"),),
        ),
        Panel(
            "Open files",
            "Sockets among them.",
            "none",
            (Query(gauge("max", "process_open_fds", "instance"), "{{instance}}"),),
        ),
    ),
)

ROWS = (GLANCE, INTAKE, TRANSFERS, BUNDLES, OUTBOX, BACKENDS, PROCESS)
