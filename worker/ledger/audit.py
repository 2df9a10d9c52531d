"""The audit trail: rows that others' transactions append, and the reading and trimming of it.

Called by worker/ledger/sql.py and the modules of transactions beside it. A row is written by the transaction that does what it
tells, so there is none without the other. Triggers (migration 0005) refuse to change or delete rows; the one way to delete is
`trim`, which leaves in `audit_retention` how far it went.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from worker.ledger.rows import resource_key
from worker.ledger.schema import audit, audit_retention, now_ms
from worker.ledger.tries import storable
from worker.ledger.values import AuditQuery, AuditRecord, AuditRow, AuditSpan, Entry

PAGE: Final = 2000
"""Rows looked at in one transaction."""
ROWS: Final = 1000
"""Rows inserted at a time. An archive has many more, and between statements the event loop has its turn."""

_REFERRED: Final = "refers to an identical payload that was there"

_FACTS: Final = ("action", "bid", "recipe_id", "url", "target", "key", "size", "sha256", "detail")
_APPEND: Final = insert(audit).values(at=now_ms())

# Whoever inserts holds this lock from before its rows have ids until after its commit is seen by others. Object ids are those
# of one database; a copy of it has the same.
_WRITERS: Final = text(
    "SELECT virtualtransaction FROM pg_locks "
    "WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted "
    "AND relation = CAST('audit' AS regclass) "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class Trail:
    """Appends to the audit trail, inside a transaction of somebody else, in the name of one actor."""

    def __init__(self, actor: str | None) -> None:
        """Without an actor there is no trail: nothing is appended."""
        self._actor = actor

    @property
    def kept(self) -> bool:
        """Whether it is worth telling it anything."""
        return self._actor is not None

    def append(self, conn: Connection, records: Iterable[AuditRecord]) -> None:
        """Append the records in their order."""
        if self._actor is None:
            return
        left = iter(records)
        while batch := list(islice(left, ROWS)):
            conn.execute(
                _APPEND,
                [{"actor": self._actor, **{name: getattr(each, name) for name in _FACTS}} for each in batch],
            )


def stored(
    entries: Iterable[Entry], laid: Collection[tuple[Any, ...]], detail: str | None = None
) -> Iterator[AuditRecord]:
    """A record for each object of the entries' resources whose primary key is among `laid`, once."""
    told: set[tuple[Any, ...]] = set()
    for entry in entries:
        for each in entry.resource.objects if entry.resource else ():
            key = (*(resource_key(entry) or ()), each.target, each.key)
            if key in laid and key not in told:
                told.add(key)
                referred = entry.shared is not None and each.target in entry.shared.referred
                details = [*([_REFERRED] if referred else []), *([detail] if detail else [])]
                yield AuditRecord(
                    "stored",
                    entry.bid,
                    entry.recipe_id,
                    entry.resource.url if entry.resource else None,
                    each.target,
                    each.key,
                    each.size,
                    each.sha256,
                    "; ".join(details) or None,
                )


def storable_record(record: AuditRecord) -> AuditRecord:
    """With text that every database takes: what commands tell comes from anywhere."""
    facts: dict[str, Any] = {name: getattr(record, name) for name in _FACTS}
    facts.update((name, storable(fact)) for name, fact in facts.items() if isinstance(fact, str))
    return AuditRecord(**facts)


def span(conn: Connection) -> tuple[AuditSpan, set[str]]:
    """What is there now, and the transactions that may still add to it: none on SQLite, where only one writes at a time."""
    # In this order: whoever got an id below the last one had its lock before that.
    last = conn.execute(select(func.coalesce(func.max(audit.c.id), 0))).scalar_one()
    trimmed = conn.execute(select(audit_retention.c.through)).scalar_one()
    return AuditSpan(trimmed, max(last, trimmed)), writers(conn)


def writers(conn: Connection) -> set[str]:
    """The transactions that may be writing to the trail at this moment."""
    return set() if conn.dialect.name == "sqlite" else set(conn.execute(_WRITERS).scalars())


def page(conn: Connection, query: AuditQuery, after: int) -> tuple[Sequence[AuditRow], int | None]:
    """What is asked for among the next rows beyond `after`, and the last id looked at; None at the end of all."""
    within = audit.c.id > after, audit.c.id <= query.through
    window = select(audit.c.id).where(*within).order_by(audit.c.id).limit(PAGE).subquery()
    last = conn.execute(select(func.max(window.c.id))).scalar_one()
    if last is None:
        return [], None
    statement = select(audit).where(audit.c.id > after, audit.c.id <= last).order_by(audit.c.id)
    if query.since is not None:
        statement = statement.where(audit.c.at >= query.since)
    if query.until is not None:
        statement = statement.where(audit.c.at < query.until)
    if query.bid is not None:
        statement = statement.where(audit.c.bid == query.bid)
    return [_row(row) for row in conn.execute(statement)], last


def trim(conn: Connection, age_ms: int, limit: int) -> int:
    """Delete old rows from the beginning, so that no hole ever appears; how many."""
    # One at a time: another worker's trimming waits here and then finds less.
    conn.execute(select(audit_retention.c.through).with_for_update())
    before = conn.execute(select(now_ms())).scalar_one() - age_ms
    first = conn.execute(select(audit.c.id, audit.c.at).order_by(audit.c.id).limit(limit))
    old = list(takewhile(lambda row: row.at <= before, first))
    if old:
        conn.execute(update(audit_retention).values(through=old[-1].id))
        conn.execute(delete(audit).where(audit.c.id <= old[-1].id))
    return len(old)


def _row(row: Row[Any]) -> AuditRow:
    return AuditRow(row.id, row.at, row.actor, AuditRecord(*(getattr(row, name) for name in _FACTS)))
