"""What goes into the ledger and what comes out of it: plain data, beside the port in base.py.

Used by everything that speaks to a ledger, and by the ledger itself. Times of day are the database's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from handlers.payload import Before
from handlers.plan import BundleTarget

BundleState = Literal["open", "complete", "published"]
"""open: resources are missing. complete: all are durable, the completion is in the outbox. published: it was announced."""

OutboxState = Literal["pending", "parked", "published"]
"""pending: due, now or later. parked: waits for a person. published: it is out."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object in one target, as its receipt proved it."""

    target: str
    key: str
    size: int
    sha256: str
    etag: str | None = None
    version: str | None = None
    member: str | None = None
    """What the archive that the payload was calls it."""


@dataclass(frozen=True, slots=True)
class StoredResource:
    """One resource of a bundle and where it lies."""

    resource_id: str
    url: str
    content_type: str | None
    status_code: int | None
    meta: Mapping[str, Any]
    location: str
    """Where its payload was staged."""
    objects: tuple[StoredObject, ...]
    late: bool = False
    """It came after the bundle had been completed: stored, but in no manifest and no notification."""
    before: Before | None = None
    """What its payload was where a transform changed it, or has something to tell."""


@dataclass(frozen=True, slots=True)
class Close:
    """What `bundle.closed` settles."""

    resources_count: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of a message's payload in one target: it lies there, or the last try failed."""

    target: str
    stored: StoredObject | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """On a route that stores identical payloads once: which of a resource's objects others may refer to, and which it shares."""

    route: str
    stored: frozenset[str] = frozenset()
    """Targets whose object is noted as content of that route."""
    referred: frozenset[str] = frozenset()
    """Targets that had an identical object: it is the resource's, and lies under another resource's key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one message changes: its bundle, and either a resource or the closing of the bundle."""

    message_id: str
    fingerprint: str
    bid: str
    recipe_id: str
    primary_url: str
    resources_count: int | None
    meta: Mapping[str, Any]
    targets: tuple[BundleTarget, ...]
    resource: StoredResource | None = None
    close: Close | None = None
    missing: tuple[Transfer, ...] = ()
    """Best-effort targets that are still without the resource's payload."""
    shared: Shared | None = None
    """None unless the route stores identical payloads once."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The trace context (`traceparent`, `tracestate`) for the bundle's completion, should this entry complete it."""


@dataclass(frozen=True, slots=True)
class BundleTransfer:
    """A transfer as one of a bundle. `updated_at` is milliseconds since the epoch, by the database's clock."""

    message_id: str
    resource_id: str
    updated_at: int
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` did."""

    completed: bool = False
    """This is the one entry that completed its bundle."""
    late: bool = False
    """Its bundle had been completed before."""
    conflict: bool = False
    """Its message id stands for something else already; nothing was changed."""
    differs: bool = False
    """Its resource was recorded before, by another message and of another payload; nothing was changed."""
    unsettled: bool = False
    """It had been recorded before, nothing was changed, and there are `transfers` of it to see to."""


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """A bundle as the ledger knows it. Times are milliseconds since the epoch, by the database's clock."""

    bid: str
    recipe_id: str
    primary_url: str
    state: BundleState
    resources_count: int | None
    stored_count: int
    closed: bool
    meta: Mapping[str, Any]
    metadata: Mapping[str, Any]
    targets: tuple[BundleTarget, ...]
    created_at: int
    completed_at: int | None
    published_at: int | None


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for among the stored resources; None asks for nothing. All that is given has to hold.

    Patterns are those of routes: `*`, `?`, `[a-z]`, of the whole text, case-sensitive, the same on every database.
    """

    bid: str | None = None
    """A pattern."""
    recipe_id: str | None = None
    """A pattern."""
    url: str | None = None
    """A pattern."""
    content_type: str | None = None
    """A pattern of the media type, in lower case and without parameters; of an unknown one it is empty."""
    status_code: int | None = None
    target: str | None = None
    """A pattern of where an object of it lies."""
    key: str | None = None
    """The very key of an object of it."""
    sha256: str | None = None
    """Of an object of it, in lower-case hex."""
    since: int | None = None
    """Recorded then or later: milliseconds since the epoch, by the database's clock."""
    until: int | None = None
    """Recorded before then."""


@dataclass(frozen=True, slots=True)
class Found:
    """A stored resource that a search found; of its objects those that were asked for. `recorded_at` is milliseconds."""

    bid: str
    recipe_id: str
    recorded_at: int
    resource: StoredResource


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """What somebody did, for the audit trail. What does not apply is None."""

    action: str
    """stored, completed, published, replayed, retried, unstaged, retired; of operators also redriven, purged, removed, kept."""
    bid: str | None = None
    recipe_id: str | None = None
    url: str | None = None
    """Of the resource; of a bundle its primary URL."""
    target: str | None = None
    key: str | None = None
    size: int | None = None
    """Bytes of the object; of a completion those of its notification."""
    sha256: str | None = None
    """Of those bytes, in lower-case hex."""
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit trail. Ids only grow; `at` is milliseconds since the epoch, by the database's clock."""

    id: int
    at: int
    actor: str
    """`worker@host`, or `cli:user@host` for what a command did."""
    record: AuditRecord


@dataclass(frozen=True, slots=True)
class AuditSpan:
    """What there is of the audit trail: the rows with ids above `trimmed`, up to `last`. None will ever be added to them."""

    trimmed: int
    """Retention has deleted the rows up to this id."""
    last: int


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which rows of the audit trail are asked for. All that is given has to hold."""

    after: int = 0
    """Ids above this one."""
    through: int = 2**63 - 1
    """Ids up to this one."""
    since: int | None = None
    """Written then or later: milliseconds since the epoch, by the database's clock."""
    until: int | None = None
    """Written before then."""
    bid: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A claimed pending completion. `generation` is the claim's fence."""

    event_id: str
    bid: str
    recipe_id: str
    body: bytes
    completed_at: int
    attempts: int
    generation: int


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A completion as a person looks at it. Times are milliseconds since the epoch, by the database's clock."""

    event_id: str
    bid: str
    recipe_id: str
    state: OutboxState
    due_at: int
    attempts: int
    replays: int
    """How often it was announced anew on request."""
    error: str | None
    completed_at: int
    published_at: int | None


@dataclass(frozen=True, slots=True)
class Retired:
    """How many rows a retention sweep deleted."""

    bundles: int = 0
    resources: int = 0
    messages: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The ledger at a glance. Ages are seconds, None when there is nothing to be old."""

    bundles: Mapping[BundleState, int]
    resources: int
    outbox_pending: int
    outbox_parked: int
    oldest_incomplete_age: float | None
    oldest_pending_age: float | None
