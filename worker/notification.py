"""The completion notification: the seed's body, field for field, plus fields that only ever add.

Pure. Called by worker/ledger/sql.py when it writes an outbox row, so that the bytes are frozen with the row, and by
worker/relay.py for the message attributes.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID, uuid5

from handlers.plan import BundleTarget
from worker.notification_fields import Completion, CompletionTarget

SCHEMA_VERSION: Final = 1
TRACE: Final[tuple[Literal["traceparent", "tracestate"], ...]] = ("traceparent", "tracestate")
"""Where a notification carries a trace context: in its body, which is frozen, and as attributes that are read from there."""
_NAMESPACE = UUID("628c544c-4212-4806-89f4-c74a6748356d")


def event_id(bid: str) -> str:
    """The one id of a bundle's completion (UUIDv5 of the bid): the same from every worker and in every copy."""
    return str(uuid5(_NAMESPACE, bid))


def timestamp(milliseconds: int) -> str:
    """`2024-01-15T10:30:00Z`."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def body(
    *,
    bid: str,
    recipe_id: str,
    primary_url: str,
    resources_count: int,
    completed_at: int,
    metadata: Mapping[str, Any],
    targets: Sequence[BundleTarget],
    missing: Mapping[str, int] | None = None,
    trace: Mapping[str, str] | None = None,
) -> bytes:
    """The notification's bytes: ASCII JSON, the same for the same facts.

    `completed_at` is milliseconds since the epoch. The first of `targets` is the one announced; `missing` counts the payloads
    that a best-effort target is still without. `trace` is the trace context of the message that completed the bundle.
    """
    announced = targets[0]
    content: Completion = {
        "bundle_id": bid,
        "recipe_id": recipe_id,
        "primary_url": primary_url,
        "resources_count": resources_count,
        "storage_key": announced.storage_key,
        "completion_timestamp": timestamp(completed_at),
        "metadata": {**metadata, "resources_count": resources_count},
        "event_id": event_id(bid),
        "schema_version": SCHEMA_VERSION,
        "status": "complete",
        "targets": [_outcome(target, (missing or {}).get(target.target, 0)) for target in targets],
        "manifest_key": announced.manifest_key,
    }
    for name in TRACE:
        if trace and trace.get(name):
            content[name] = trace[name]
    return json.dumps(content).encode()


def _outcome(target: BundleTarget, missing: int) -> CompletionTarget:
    outcome: CompletionTarget = {
        "target": target.target,
        "status": "incomplete" if missing else "stored",
        "storage_key": target.storage_key,
        "manifest_key": target.manifest_key,
    }
    if missing:
        outcome["missing"] = missing
    return outcome


def attributes(*, bid: str, recipe_id: str, completed_at: int) -> dict[str, str]:
    """The three String attributes the seed's consumers filter by."""
    return {"bundle_id": bid, "recipe_id": recipe_id, "completion_timestamp": timestamp(completed_at)}


def trace(body: bytes) -> dict[str, str]:
    """The trace context that lies in a notification's body; empty where there is none, also in a body that is not ours."""
    if b'"traceparent"' not in body:
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    found = content if isinstance(content, dict) else {}
    return {name: found[name] for name in TRACE if isinstance(found.get(name), str)}


def trace_ids(body: bytes) -> dict[str, str]:
    """The same as a log line shows it: `trace_id` and `span_id`."""
    parts = trace(body).get("traceparent", "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}
