"""The outbox: the transactions that claim, mark and re-open pending completions.

Called by worker/ledger/sql.py only. A claim carries a generation, by which every later change is fenced.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, tuple_, update

from worker.ledger.audit import Trail
from worker.ledger.schema import bundles, now_ms, outbox
from worker.ledger.values import AuditRecord, OutboxRow, OutboxState


def claim(conn: Connection, limit: int, lease_ms: int, bid: str | None) -> Sequence[OutboxRow]:
    """Up to `limit` due rows, the oldest completion first; with `bid` only that bundle's."""
    asked = [] if bid is None else [outbox.c.bid == bid]
    due = (
        select(outbox.c.event_id)
        .where(outbox.c.state == "pending", outbox.c.due_at <= now_ms(), *asked)
        .order_by(outbox.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        # Evaluated once, whatever the plan: PostgreSQL may run a plain subquery anew and then lock more than the limit.
        .cte("due")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    statement = (
        update(outbox)
        .where(outbox.c.event_id.in_(select(due.c.event_id)))
        .values(
            due_at=now_ms() + lease_ms,
            attempts=outbox.c.attempts + 1,
            generation=outbox.c.generation + 1,
        )
        .returning(
            outbox.c.event_id,
            outbox.c.bid,
            outbox.c.recipe_id,
            outbox.c.body,
            outbox.c.completed_at,
            outbox.c.attempts,
            outbox.c.generation,
        )
    )
    rows = conn.execute(statement).all()
    return sorted((OutboxRow(*row) for row in rows), key=lambda row: (row.completed_at, row.event_id))


def change_claimed(conn: Connection, rows: Sequence[OutboxRow], values: Mapping[str, Any]) -> Sequence[str]:
    """Change the rows whose claim still holds; their bids."""
    claims = [(row.event_id, row.generation) for row in rows]
    statement = (
        update(outbox)
        .where(outbox.c.state == "pending", tuple_(outbox.c.event_id, outbox.c.generation).in_(claims))
        .values(values)
        .returning(outbox.c.bid)
    )
    return conn.execute(statement).scalars().all()


def mark_published(conn: Connection, rows: Sequence[OutboxRow], trail: Trail) -> int:
    """Rows and bundles become `published`; how many were still ours."""
    published = {"state": "published", "published_at": now_ms()}
    marked = change_claimed(conn, rows, {**published, "error": None})
    conn.execute(update(bundles).where(bundles.c.bid.in_(marked)).values(published))
    if trail.kept:
        trail.append(conn, (_published(row) for row in rows if row.bid in marked))
    return len(marked)


def retry_parked(
    conn: Connection, event_ids: Sequence[str] | None, notify: Callable[[Connection], None], trail: Trail
) -> int:
    """Parked rows are due now; how many were."""
    statement = update(outbox).where(outbox.c.state == "parked").values(_due_now())
    if event_ids is not None:
        statement = statement.where(outbox.c.event_id.in_(event_ids))
    notify(conn)
    retried = conn.execute(statement.returning(outbox.c.bid, outbox.c.recipe_id)).all()
    trail.append(conn, (AuditRecord("retried", row.bid, row.recipe_id) for row in retried))
    return len(retried)


def replay(
    conn: Connection, bid: str, notify: Callable[[Connection], None], trail: Trail
) -> OutboxState | None:
    """A published row is due again; what it was before."""
    # First the bundle, as everybody does: it may be retired at this moment.
    conn.execute(select(bundles.c.bid).where(bundles.c.bid == bid).with_for_update())
    found = select(outbox.c.state).where(outbox.c.bid == bid).with_for_update()
    before: OutboxState | None = conn.execute(found).scalar_one_or_none()
    if before == "published":
        anew = {**_due_now(), "replays": outbox.c.replays + 1}
        changed = update(outbox).where(outbox.c.bid == bid).values(anew).returning(outbox.c.recipe_id)
        recipe_id = conn.execute(changed).scalar_one()
        notify(conn)
        trail.append(conn, [AuditRecord("replayed", bid, recipe_id)])
    return before


def _published(row: OutboxRow) -> AuditRecord:
    digest = hashlib.sha256(row.body).hexdigest()
    return AuditRecord(
        "published",
        row.bid,
        row.recipe_id,
        size=len(row.body),
        sha256=digest,
        detail=f"event {row.event_id}",
    )


def _due_now() -> dict[str, Any]:
    """For a row that is announced on request. The generation grows, so that no earlier claim can change it."""
    return {
        "state": "pending",
        "due_at": now_ms(),
        "attempts": 0,
        "generation": outbox.c.generation + 1,
        "error": None,
    }
