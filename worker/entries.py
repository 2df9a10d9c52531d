"""What the ledger is told of a plan and of what came of it. Used by worker/pipeline.py. Pure."""

from backends.base import Receipt
from handlers.execute import Executed, Miss, Placement
from handlers.payload import Before
from handlers.plan import ClosePlan, Plan, StorePlan
from worker.ledger.values import Close, Entry, StoredObject, StoredResource, Transfer
from worker.sharing import shared


def landed(placement: Placement) -> Transfer:
    """A target that has the payload."""
    return Transfer(placement.target, _object(placement))


def missed(miss: Miss) -> Transfer:
    """A target that has not."""
    return Transfer(miss.write.target, error=f"{type(miss.error).__name__}: {miss.error}")


def notes(plan: Plan, executed: Executed) -> list[Transfer]:
    """What became of the payload, once for each target.

    Of transformed ones only what failed: what landed may be many objects, is found again, and is no sign of what a route
    without its transforms would have stored.
    """
    transformed = isinstance(plan, StorePlan) and plan.transforms
    kept = () if transformed else map(landed, executed.placements)
    return [*kept, *map(missed, executed.misses)]


def placed(stored: StoredObject) -> Placement:
    """What an earlier try has left."""
    receipt = Receipt(stored.key, stored.size, stored.sha256, stored.etag, stored.version, created=False)
    return Placement(stored.target, receipt, stored.member or "")


def _object(placement: Placement) -> StoredObject:
    receipt = placement.receipt
    return StoredObject(
        placement.target,
        receipt.key,
        receipt.size,
        receipt.sha256,
        receipt.etag,
        receipt.version,
        placement.member or None,
    )


def entry_of(
    plan: Plan,
    placements: tuple[Placement, ...] = (),
    missing: tuple[Transfer, ...] = (),
    before: Before | None = None,
) -> Entry:
    """The record of a message: with the objects in `placements`, and the targets that are `missing` theirs."""
    bundle = plan.command.bundle
    return Entry(
        message_id=plan.command.id,
        fingerprint=plan.command.fingerprint,
        bid=bundle.bid,
        recipe_id=bundle.recipe_id,
        primary_url=bundle.primary_url,
        resources_count=bundle.resources_count,
        meta=bundle.meta,
        targets=plan.bundle_targets,
        resource=_stored(plan, placements, before) if isinstance(plan, StorePlan) else None,
        close=_close(plan) if isinstance(plan, ClosePlan) else None,
        missing=missing,
        shared=shared(plan, placements),
    )


def _close(plan: ClosePlan) -> Close:
    return Close(plan.command.bundle.resources_count, plan.command.bundle.metadata)


def _stored(plan: StorePlan, placements: tuple[Placement, ...], before: Before | None) -> StoredResource:
    resource = plan.command.resource
    return StoredResource(
        resource_id=plan.resource_id,
        url=resource.url,
        content_type=resource.content_type,
        status_code=resource.status_code,
        meta=resource.meta,
        location=plan.command.payload.location,
        objects=tuple(_object(placement) for placement in placements),
        # Where nothing was done and there is nothing to tell, the object says it all.
        before=before if before is not None and (before.steps or before.notes) else None,
    )
