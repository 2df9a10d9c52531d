"""What every stored object carries besides the facts of its resource: `uuid`, `created_at`, `stored_at`, `storage_version`.

As attributes where the store keeps those, in the sidecar elsewhere. handlers/resource_fetched.py plans all but `stored_at`, which
is known when handlers/execute.py writes; handlers/sidecar.py writes the same four. Pure: the time comes from the caller.
"""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid5

from backends.base import Attributes
from handlers.bids import timestamp_ms
from handlers.messages import ResourceFetched
from handlers.naming import resource_id

STORAGE_VERSION = "1.0"
"""Of the form of these four. A field that is added raises the number behind the dot, any other change the one before it."""

_NAMESPACE = UUID("40d2dd76-730e-41ed-9197-c6050f7a2be7")


def planned(command: ResourceFetched) -> dict[str, str]:
    """All that is known beforehand, the same on every redo. Without `created_at` where the bid tells no time."""
    began = timestamp_ms(command.bundle.bid)
    return {
        "uuid": str(uuid5(_NAMESPACE, f"{command.bundle.bid}/{resource_id(command.resource.url)}")),
        **({} if began is None else {"created_at": moment(began / 1000)}),
        "storage_version": STORAGE_VERSION,
    }


def of_entry(payload: str, member: str) -> str:
    """The uuid of one entry of an archive, from that of its payload."""
    return str(uuid5(UUID(payload), member))


def stamped(attributes: Attributes, now: float) -> Attributes:
    """With `stored_at`: `now`, seconds since the epoch."""
    return replace(attributes, metadata={**attributes.metadata, "stored_at": moment(now)})


def moment(seconds: float) -> str:
    """`2024-01-15T10:30:00.000Z` (RFC 3339)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
