"""The ledger's notes of tries at messages: the transactions behind `attempts`, `begin`, `failed` and `withdraw`.

Called by worker/ledger/sql.py and group_commit.py only. A message's tries are numbered; one that is under way has no end.
Whoever ends one names its number, so that nobody ends another's.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, literal, select, update

from worker.attempts import CRASHED, Attempt
from worker.ledger.schema import attempts, now_ms

Insert = Callable[..., Any]
"""The `insert` of a dialect, which knows `on_conflict_do_nothing`."""

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


def begin(conn: Connection, insert: Insert, keys: Sequence[tuple[str, str]]) -> Sequence[int]:
    """A try begins at each of these messages; their numbers, in order. `insert` is the dialect's."""
    numbers = [0] * len(keys)
    # In one order everywhere: who inserts the same number waits for the other.
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        numbers[index] = _add(conn, insert, *keys[index], outage=False)
    return numbers


def fail(
    conn: Connection, insert: Insert, queue: str, message_id: str, number: int | None, attempt: Attempt
) -> None:
    """The try of that number has failed; one that was not noted is noted now, as begun and ended."""
    values = {
        "ended_at": now_ms(),
        "error": storable(attempt.error),
        "detail": storable(attempt.detail),
        "outage": attempt.outage,
    }
    if number is None:
        _add(conn, insert, queue, message_id, **values)
    else:
        conn.execute(update(attempts).where(*_under_way(queue, message_id, number)).values(values))


def withdraw(conn: Connection, keys: Sequence[tuple[str, str, int]]) -> None:
    """These tries do not count."""
    for key in sorted(keys):
        conn.execute(delete(attempts).where(*_under_way(*key)))


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


def _add(conn: Connection, insert: Insert, queue: str, message_id: str, **values: Any) -> int:
    row = {"queue": queue, "message_id": message_id, "began_at": now_ms(), **values}
    after = select(
        func.coalesce(func.max(attempts.c.number), 0) + 1,
        *(value if isinstance(value, now_ms) else literal(value) for value in row.values()),
    ).where(*_of(queue, message_id))
    statement = (
        insert(attempts)
        .from_select(["number", *row], after)
        .on_conflict_do_nothing()
        .returning(attempts.c.number)
    )
    # Another worker may take the number meanwhile; each statement looks anew.
    while (number := conn.execute(statement).scalar_one_or_none()) is None:
        pass
    return int(number)


def _of(queue: str, message_id: str) -> tuple[Any, ...]:
    return attempts.c.queue == queue, attempts.c.message_id == message_id


def _under_way(queue: str, message_id: str, number: int) -> tuple[Any, ...]:
    return (*_of(queue, message_id), attempts.c.number == number, attempts.c.ended_at.is_(None))


def storable(text: str) -> str:
    """PostgreSQL's text holds neither NUL nor half a surrogate pair."""
    return text[:_DETAIL_LIMIT].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
