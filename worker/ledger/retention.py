"""What the ledger forgets, a few rows at a time: the transactions behind `staged`, `mark_unstaged` and `retire`.

Called by worker/ledger/sql.py only. Nothing here touches a bundle whose completion is not out.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select, update

from worker.ledger import contents
from worker.ledger.audit import Trail
from worker.ledger.schema import bundles, messages, now_ms, objects, outbox, resources, transfers
from worker.ledger.transfers import is_missing
from worker.ledger.values import AuditRecord, Retired


def staged(conn: Connection, age_ms: int, limit: int) -> Sequence[str]:
    """Published bundles whose payloads may lie in staging, and that no target waits for, the oldest first."""
    needed = exists().where(transfers.c.bid == bundles.c.bid, is_missing())
    statement = (
        select(bundles.c.bid)
        .where(*_published_before(age_ms), bundles.c.unstaged_at.is_(None), ~needed)
        .order_by(bundles.c.published_at)
        .limit(limit)
    )
    return conn.execute(statement).scalars().all()


def mark_unstaged(conn: Connection, seen: Mapping[str, int], trail: Trail) -> None:
    """The payloads of that many resources are deleted from staging."""
    bids = sorted(seen)
    # Counted under the lock: a late resource is either seen here, or comes after this and takes the mark away.
    conn.execute(
        select(bundles.c.bid).where(bundles.c.bid.in_(bids)).order_by(bundles.c.bid).with_for_update()
    )
    counted = conn.execute(
        select(resources.c.bid, func.count()).where(resources.c.bid.in_(bids)).group_by(resources.c.bid)
    )
    now = {row[0]: row[1] for row in counted}
    done = [bid for bid in bids if now.get(bid, 0) <= seen[bid]]
    marked = conn.execute(
        update(bundles)
        .where(bundles.c.bid.in_(done), bundles.c.unstaged_at.is_(None))
        .values(unstaged_at=now_ms())
        .returning(bundles.c.bid, bundles.c.recipe_id, bundles.c.primary_url)
    ).all()
    trail.append(
        conn,
        [
            AuditRecord("unstaged", bid, recipe_id, url, detail=f"the payloads of {seen[bid]} resources")
            for bid, recipe_id, url in sorted(tuple(row) for row in marked)
        ],
    )


def retire(conn: Connection, age_ms: int, limit: int, trail: Trail, *, unstaged_only: bool) -> Retired:
    """Delete published bundles whole, with everything that hangs on them."""
    clean = (bundles.c.unstaged_at.is_not(None),) if unstaged_only else ()
    unsent = exists().where(outbox.c.bid == bundles.c.bid, outbox.c.state != "published")
    # The lock keeps a late resource out until the bundle is gone; another worker's sweep passes over it.
    old = conn.execute(
        select(bundles.c.bid, bundles.c.recipe_id, bundles.c.primary_url)
        .where(*_published_before(age_ms), *clean, ~unsent)
        .order_by(bundles.c.published_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not old:
        return Retired()
    bids = [row.bid for row in old]
    conn.execute(delete(objects).where(objects.c.bid.in_(bids)))
    contents.forget(conn, bids)
    stored = conn.execute(delete(resources).where(resources.c.bid.in_(bids))).rowcount
    known = conn.execute(delete(messages).where(messages.c.bid.in_(bids))).rowcount
    conn.execute(delete(transfers).where(transfers.c.bid.in_(bids)))
    conn.execute(delete(outbox).where(outbox.c.bid.in_(bids)))
    conn.execute(delete(bundles).where(bundles.c.bid.in_(bids)))
    trail.append(conn, (AuditRecord("retired", *row) for row in old))
    return Retired(len(bids), stored, known)


def _published_before(age_ms: int) -> tuple[ColumnElement[bool], ...]:
    return bundles.c.state == "published", bundles.c.published_at <= now_ms() - age_ms
