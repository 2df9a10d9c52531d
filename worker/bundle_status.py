"""How far a bundle is in each of its targets. Behind `transload status BID`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from worker.ledger.base import Ledger
from worker.ledger.values import BundleState, BundleTransfer

TargetState = Literal["waiting", "stored", "incomplete"]
"""waiting: the bundle is open. stored: all its payloads lie there. incomplete: a payload was tried and is missing."""


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One target of a bundle. `missing` counts payloads that were tried and do not lie there."""

    target: str
    required: bool | None
    """The bundle waits for it; None while no resource is recorded."""
    state: TargetState
    missing: int
    error: str | None
    """Of the last try that failed; None where nothing is missing."""


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """A bundle, and its targets in the order in which they are announced."""

    bid: str
    state: BundleState
    stored_count: int
    resources_count: int | None
    targets: tuple[TargetStatus, ...]


async def bundle_status(ledger: Ledger, bid: str) -> BundleStatus | None:
    """None when nothing is known of the bundle. Raises `LedgerError`."""
    record = await ledger.bundle(bid)
    transfers = await ledger.bundle_transfers(bid)
    missing = await ledger.missing(bid)
    if record is None and not transfers:
        return None
    required: dict[str, bool | None] = {
        place.target: place.required for place in (record.targets if record else ())
    }
    for each in transfers:
        required.setdefault(each.transfer.target, None)
    done = record is not None and record.state != "open"
    return BundleStatus(
        bid,
        record.state if record else "open",
        record.stored_count if record else 0,
        record.resources_count if record else None,
        tuple(
            TargetStatus(
                name,
                waits,
                "incomplete" if (lacking := missing.get(name, 0)) else "stored" if done else "waiting",
                lacking,
                _last_error(transfers, name) if lacking else None,
            )
            for name, waits in required.items()
        ),
    )


def _last_error(transfers: Sequence[BundleTransfer], target: str) -> str | None:
    failed = [each for each in transfers if each.transfer.target == target and each.transfer.stored is None]
    return max(failed, key=lambda each: each.updated_at).transfer.error if failed else None
