"""The ledger's rows: made of entries, read into records, brought up to date. Pure; called by worker/ledger/sql.py only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from sqlalchemy import Row

from handlers.payload import Before
from handlers.plan import BundleTarget
from worker import notification
from worker.ledger.values import BundleRecord, Entry, OutboxEntry, StoredObject, StoredResource


def message_row(entry: Entry, now: int) -> dict[str, Any]:
    """The row of `messages`."""
    return {"id": entry.message_id, "fingerprint": entry.fingerprint, "bid": entry.bid, "recorded_at": now}


def bundle_row(entry: Entry, now: int) -> dict[str, Any]:
    """The row of a bundle that begins with this entry."""
    return {
        "bid": entry.bid,
        "recipe_id": entry.recipe_id,
        "primary_url": entry.primary_url,
        "state": "open",
        "resources_count": entry.resources_count,
        "stored_count": 0,
        "closed": False,
        "meta": dict(entry.meta),
        "metadata": {},
        "targets": [],
        "created_at": now,
    }


def resource_row(entry: Entry, bundle: Mapping[str, Any], now: int) -> dict[str, Any]:
    """The row of the entry's resource; `bundle` is the locked row of its bundle."""
    resource = cast("StoredResource", entry.resource)
    return {
        "bid": entry.bid,
        "resource_id": resource.resource_id,
        "url": resource.url,
        "content_type": resource.content_type,
        "status_code": resource.status_code,
        "meta": dict(resource.meta),
        "location": resource.location,
        "late": bundle["state"] != "open",
        "recorded_at": now,
        "before": None if resource.before is None else asdict(resource.before),
    }


def resource_key(entry: Entry) -> tuple[str, str] | None:
    """The primary key of the entry's resource, None when it has none."""
    return None if entry.resource is None else (entry.bid, entry.resource.resource_id)


def object_rows(entry: Entry) -> Iterable[dict[str, Any]]:
    """The rows of what the targets hold of the entry's resource."""
    if entry.resource is None:
        return
    for stored in entry.resource.objects:
        yield {
            "bid": entry.bid,
            "resource_id": entry.resource.resource_id,
            "target": stored.target,
            "key": stored.key,
            "size": stored.size,
            "sha256": stored.sha256,
            "etag": stored.etag,
            "version": stored.version,
            "member": stored.member,
        }


def stored_object(row: Row[Any]) -> StoredObject:
    """What a row of `objects` says."""
    return StoredObject(row.target, row.key, row.size, row.sha256, row.etag, row.version, row.member)


def before(row: Row[Any]) -> Before | None:
    """What a row of `resources` says of the payload before it was transformed."""
    if row.before is None:
        return None
    facts = row.before
    return Before(facts["size"], facts["sha256"], tuple(facts["steps"]), tuple(facts["notes"]))


def payload_digests(before: Before | None, objects: Iterable[StoredObject]) -> set[str]:
    """What the SHA-256 of a resource's payload may be, as it was staged: one, unless targets hold it in several forms."""
    return {each.sha256 for each in objects} if before is None else {before.sha256}


def outbox_row(
    row: Mapping[str, Any], missing: Mapping[str, int], trace: Mapping[str, str]
) -> dict[str, Any]:
    """The row that announces a bundle which was just completed, with the final bytes of its notification.

    `missing`: how many payloads a best-effort target is still without, by target. `trace`: that of the entry that completed it.
    """
    return {
        "event_id": notification.event_id(row["bid"]),
        "bid": row["bid"],
        "recipe_id": row["recipe_id"],
        "body": notification.body(
            bid=row["bid"],
            recipe_id=row["recipe_id"],
            primary_url=row["primary_url"],
            resources_count=row["stored_count"],
            completed_at=row["completed_at"],
            metadata=row["metadata"],
            # Where all targets are best effort, one that has everything is announced.
            targets=sorted(bundle_targets(row["targets"]), key=lambda place: place.target in missing),
            missing=missing,
            trace=trace,
        ),
        "state": "pending",
        "due_at": row["completed_at"],
        "attempts": 0,
        "generation": 0,
        "error": None,
        "completed_at": row["completed_at"],
    }


def outbox_entry(row: Row[Any]) -> OutboxEntry:
    """A row of `outbox` as a person looks at it."""
    return OutboxEntry(
        event_id=row.event_id,
        bid=row.bid,
        recipe_id=row.recipe_id,
        state=row.state,
        due_at=row.due_at,
        attempts=row.attempts,
        replays=row.replays,
        error=row.error,
        completed_at=row.completed_at,
        published_at=row.published_at,
    )


def bundle_targets(stored: Sequence[Sequence[Any]]) -> tuple[BundleTarget, ...]:
    """Where a bundle lies, the target that is announced first."""
    places = [BundleTarget(*place) for place in stored]
    return tuple(sorted(places, key=lambda place: (not place.required, place.rank)))


def _merged(stored: Sequence[Sequence[Any]], places: Sequence[BundleTarget]) -> list[list[Any]]:
    """With those added that are new: resources of one bundle may take different routes, and a route may change.

    A target that is best effort for one of them is so for the bundle: something may be missing there when it is announced.
    """
    merged: dict[tuple[str, str], BundleTarget] = {}
    for place in (*(BundleTarget(*facts) for facts in stored), *places):
        # One manifest lists all that the bundle has in its target. Where two templates, or two recipes, put resources into two
        # folders, it is the same key for both: told of two folders it would be two manifests, and the second never written.
        merged.setdefault((place.target, place.manifest_key), place)
    lax = {place.target for place in (*merged.values(), *places) if not place.required}
    return [_facts(replace(place, required=place.target not in lax)) for place in merged.values()]


def _facts(place: BundleTarget) -> list[Any]:
    # An older release reads three facts, for it knows one target only; a later one five, for it makes no archives. Each
    # gets as many as it has to know: one that cannot make the archive must not announce the bundle without.
    more: list[Any] = [] if place.required and not place.rank else [place.required, place.rank]
    if place.archive:
        more = [place.required, place.rank, place.archive, place.archive_key]
    return [place.target, place.storage_key, place.manifest_key, *more]


def fold(row: dict[str, Any], entries: Sequence[Entry], stored: int, now: int) -> None:
    """Bring a locked bundle row up to date with the entries that concern it; `stored` of them are new resources.

    The count that `bundle.closed` gives is the last word; before it, the first count a message named holds. A bundle that
    has been completed changes no more: what comes later is late.
    """
    if row["state"] != "open":
        if stored:
            # What it left in staging is to be deleted as well.
            row["changed"], row["unstaged_at"] = True, None
        return
    row["changed"] = True
    row["stored_count"] += stored
    for entry in entries:
        if entry.resource is not None:
            row["targets"] = _merged(row["targets"], entry.targets)
        if entry.close is not None and not row["closed"]:
            row["closed"] = True
            row["resources_count"] = entry.close.resources_count
            row["metadata"] = dict(entry.close.metadata)
        elif row["resources_count"] is None:
            row["resources_count"] = entry.resources_count
    if row["resources_count"] is not None and row["stored_count"] >= row["resources_count"]:
        row["state"], row["completes"], row["completed_at"] = "complete", True, now
        if not row["targets"]:
            # A bundle of nothing: its empty manifest lies where its resources would.
            row["targets"] = _merged([], next(entry.targets for entry in entries if entry.close is not None))


def bundle_record(row: Row[Any]) -> BundleRecord:
    """A row of `bundles` as the port shows it."""
    return BundleRecord(
        bid=row.bid,
        recipe_id=row.recipe_id,
        primary_url=row.primary_url,
        state=row.state,
        resources_count=row.resources_count,
        stored_count=row.stored_count,
        closed=row.closed,
        meta=row.meta,
        metadata=row.metadata,
        targets=bundle_targets(row.targets),
        created_at=row.created_at,
        completed_at=row.completed_at,
        published_at=row.published_at,
    )
