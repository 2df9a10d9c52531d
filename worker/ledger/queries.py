"""What the ledger tells: its read transactions.

Called by worker/ledger/sql.py, group_commit.py and recording.py only.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

from sqlalchemy import Connection, Row, Select, func, select

from worker.ledger.rows import before, bundle_record, outbox_entry, payload_digests, stored_object
from worker.ledger.schema import bundles, messages, now_ms, objects, outbox, resources
from worker.ledger.values import (
    BundleRecord,
    BundleState,
    OutboxEntry,
    OutboxState,
    StoredObject,
    StoredResource,
    Summary,
)

PAGE = 500
"""Resources read at a time."""
PAGE_OBJECTS = 5_000
"""Objects read at a time, unless one resource alone has more."""


def fingerprints(conn: Connection, ids: Sequence[str]) -> Sequence[str | None]:
    """What each message id stands for, None where it was never recorded."""
    statement = select(messages.c.id, messages.c.fingerprint).where(messages.c.id.in_(ids))
    found = {row[0]: cast("str", row[1]) for row in conn.execute(statement)}
    return [found.get(message_id) for message_id in ids]


def bundle(conn: Connection, bid: str) -> BundleRecord | None:
    """One bundle."""
    row = conn.execute(select(bundles).where(bundles.c.bid == bid)).one_or_none()
    return None if row is None else bundle_record(row)


def newest_bundles(conn: Connection, state: BundleState | None, limit: int) -> Sequence[BundleRecord]:
    """Newest first."""
    statement = select(bundles).order_by(bundles.c.created_at.desc(), bundles.c.bid.desc()).limit(limit)
    if state is not None:
        statement = statement.where(bundles.c.state == state)
    return [bundle_record(row) for row in conn.execute(statement)]


def completions(
    conn: Connection, state: OutboxState | None, limit: int, recipe_id: str | None, bid: str | None
) -> Sequence[OutboxEntry]:
    """Oldest first; of those that are asked for."""
    asked = {outbox.c.state: state, outbox.c.recipe_id: recipe_id, outbox.c.bid: bid}
    statement = (
        select(outbox)
        .where(*(column == value for column, value in asked.items() if value is not None))
        .order_by(outbox.c.completed_at, outbox.c.event_id)
        .limit(limit)
    )
    return [outbox_entry(row) for row in conn.execute(statement)]


def pending(conn: Connection) -> int:
    """Completions still to be announced, parked ones not counted."""
    statement = select(func.count()).select_from(outbox).where(outbox.c.state == "pending")
    return conn.execute(statement).scalar_one()


def resource_page(conn: Connection, bid: str, after: str) -> tuple[Sequence[StoredResource], bool]:
    """The bundle's next resources beyond the id `after`, and whether there may be more."""
    page = conn.execute(
        select(resources)
        .where(resources.c.bid == bid, resources.c.resource_id > after)
        .order_by(resources.c.resource_id)
        .limit(PAGE)
    ).all()
    if not page:
        return [], False
    more = len(page) == PAGE
    first = page[0].resource_id
    lying = _objects(conn, bid, first, page[-1].resource_id, PAGE_OBJECTS + 1)
    if len(lying) > PAGE_OBJECTS:
        # An archive may have become many objects. The last resource may not be whole: it begins the next page.
        cut = lying[-1].resource_id
        page = [row for row in page if row.resource_id < cut] or page[:1]
        more = True
        lying = _objects(conn, bid, first, page[-1].resource_id, None)
    of_resource: dict[str, tuple[StoredObject, ...]] = defaultdict(tuple)
    for resource_id, rows in groupby(lying, key=lambda row: cast("str", row.resource_id)):
        of_resource[resource_id] = tuple(map(stored_object, rows))
    return [
        StoredResource(
            resource_id=row.resource_id,
            url=row.url,
            content_type=row.content_type,
            status_code=row.status_code,
            meta=row.meta,
            location=row.location,
            objects=of_resource[row.resource_id],
            late=row.late,
            before=before(row),
        )
        for row in page
    ], more


def recorded_payload(conn: Connection, bid: str, resource_id: str) -> set[str]:
    """What the SHA-256 of a recorded resource's payload may be; empty where nothing is known of it."""
    of_resource = select(resources).where(resources.c.bid == bid, resources.c.resource_id == resource_id)
    row = conn.execute(of_resource).one_or_none()
    if row is None:
        return set()
    if (was := before(row)) is not None:
        return payload_digests(was, ())
    return payload_digests(None, map(stored_object, _objects(conn, bid, resource_id, resource_id, None)))


def _objects(conn: Connection, bid: str, first: str, last: str, limit: int | None) -> Sequence[Row[Any]]:
    return conn.execute(
        select(objects)
        .where(objects.c.bid == bid, objects.c.resource_id.between(first, last))
        .order_by(objects.c.resource_id, objects.c.target, objects.c.key)
        .limit(limit)
    ).all()


def summary(conn: Connection) -> Summary:
    """The ledger at a glance."""

    def one(statement: Select[Any]) -> Any:
        return conn.execute(statement).scalar_one()

    def age(statement: Select[Any]) -> float | None:
        oldest = one(statement)
        return None if oldest is None else max(0.0, (now - oldest) / 1000)

    now = one(select(now_ms()))
    counted = {
        row[0]: row[1]
        for row in conn.execute(select(bundles.c.state, func.count()).group_by(bundles.c.state))
    }
    waiting = {
        row[0]: row[1] for row in conn.execute(select(outbox.c.state, func.count()).group_by(outbox.c.state))
    }
    states: tuple[BundleState, ...] = ("open", "complete", "published")
    return Summary(
        bundles={state: counted.get(state, 0) for state in states},
        resources=one(select(func.coalesce(func.sum(bundles.c.stored_count), 0))),
        outbox_pending=waiting.get("pending", 0),
        outbox_parked=waiting.get("parked", 0),
        oldest_incomplete_age=age(select(func.min(bundles.c.created_at)).where(bundles.c.state == "open")),
        oldest_pending_age=age(select(func.min(outbox.c.completed_at)).where(outbox.c.state == "pending")),
    )
