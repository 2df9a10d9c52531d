"""The ledger's notes of tries at messages: the transactions behind `attempts`, `begin`, `failed` and `withdraw`.

Called by worker/ledger/sql.py only. A message's tries are numbered; the one under way is the last and has no end.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from worker.attempts import CRASHED, Attempt
from worker.ledger.schema import attempts, now_ms

_DETAIL_LIMIT = 2000
"""Characters kept of what went wrong."""


def listed(conn: Connection, queue: str, message_id: str) -> Sequence[Attempt]:
    """The message's tries, the first one first."""
    rows = conn.execute(select(attempts).where(*_of(queue, message_id)).order_by(attempts.c.number))
    return [
        Attempt(row.began_at / 1000, CRASHED, "it began and never ended: its process died")
        if row.ended_at is None
        else Attempt(row.ended_at / 1000, row.error, row.detail, row.outage)
        for row in rows
    ]


def begin(conn: Connection, keys: Sequence[tuple[str, str]]) -> None:
    """A try begins at each of these messages."""
    for queue, message_id in dict.fromkeys(keys):
        _add(conn, queue, message_id)


def fail(conn: Connection, queue: str, message_id: str, *, error: str, detail: str, outage: bool) -> None:
    """The try that began has failed; one that was not noted is noted now, as begun and ended."""
    values = {"ended_at": now_ms(), "error": error, "detail": detail[:_DETAIL_LIMIT], "outage": outage}
    under_way = (*_of(queue, message_id), attempts.c.number == _last(queue, message_id).scalar_subquery())
    changed = conn.execute(update(attempts).where(*under_way, attempts.c.ended_at.is_(None)).values(values))
    if not changed.rowcount:
        _add(conn, queue, message_id, **values)


def withdraw(conn: Connection, queue: str, message_id: str) -> None:
    """The try that began does not count."""
    last = _last(queue, message_id).scalar_subquery()
    conn.execute(
        delete(attempts).where(
            *_of(queue, message_id), attempts.c.number == last, attempts.c.ended_at.is_(None)
        )
    )


def forget(conn: Connection, age_ms: int, limit: int) -> int:
    """Delete the oldest notes; how many."""
    old = (
        select(attempts.c.queue, attempts.c.message_id, attempts.c.number)
        .where(attempts.c.began_at <= now_ms() - age_ms)
        .order_by(attempts.c.began_at)
        .limit(limit)
        .subquery()
    )
    return conn.execute(
        delete(attempts).where(
            select(old.c.number)
            .where(
                old.c.queue == attempts.c.queue,
                old.c.message_id == attempts.c.message_id,
                old.c.number == attempts.c.number,
            )
            .exists()
        )
    ).rowcount


def _add(conn: Connection, queue: str, message_id: str, **values: Any) -> None:
    (number,) = conn.execute(_last(queue, message_id)).one()
    row = {"queue": queue, "message_id": message_id, "number": (number or 0) + 1, "began_at": now_ms()}
    conn.execute(insert(attempts).values({**row, "outage": False, **values}))


def _of(queue: str, message_id: str) -> tuple[Any, ...]:
    return attempts.c.queue == queue, attempts.c.message_id == message_id


def _last(queue: str, message_id: str) -> Select[Any]:
    return select(func.max(attempts.c.number)).where(*_of(queue, message_id))
