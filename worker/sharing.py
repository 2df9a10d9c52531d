"""Identical payloads that are stored once: what the ledger knows of them, and what it is to note. Called by worker/pipeline.py."""

from collections.abc import Iterable, Iterator, Mapping

from backends.base import Receipt
from handlers.dedup import MINIMUM, Known
from handlers.execute import Placement
from handlers.plan import Plan, StorePlan
from worker.ledger.base import Ledger
from worker.ledger.values import Shared


def known_to(ledger: Ledger, plan: StorePlan) -> Known | None:
    """What targets have of a payload that the plan's route has stored; None where every payload is to be stored."""
    if not plan.deduplicate or plan.transforms:
        return None

    async def known(sha256: str) -> Mapping[str, Receipt]:
        found = await ledger.contents(plan.route, sha256)
        return {
            target: Receipt(each.key, each.size, each.sha256, each.etag, each.version, created=False)
            for target, each in found.items()
        }

    return known


def referring(plan: StorePlan, placements: Iterable[Placement]) -> Iterator[Placement]:
    """Those that are objects of other resources: what is stored for this one lies under the key the plan gives it."""
    own = {write.target: write.key for write in plan.writes}
    for placement in placements:
        if own.get(placement.target, placement.receipt.key) != placement.receipt.key:
            yield placement


def shared(plan: Plan, placements: Iterable[Placement]) -> Shared | None:
    """What the ledger is to note beside the objects."""
    if not isinstance(plan, StorePlan) or not plan.deduplicate or plan.transforms:
        return None
    own = {(write.target, write.key) for write in plan.writes}
    placements = tuple(placements)
    return Shared(
        plan.route,
        frozenset(
            each.target
            for each in placements
            if (each.target, each.receipt.key) in own and each.receipt.size >= MINIMUM
        ),
        frozenset(each.target for each in referring(plan, placements)),
    )
