"""Payloads that not all of their targets have yet: the transactions behind `transfers`, `note_transfers` and `settle`.

Called by worker/ledger/sql.py, group_commit.py and recording.py only. A row per message and target, `stored` with the receipt
or `missing` with the last error. A message all of whose targets have its payload has no rows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select

from worker.ledger.schema import messages, now_ms, objects, resources, transfers
from worker.ledger.tries import storable
from worker.ledger.values import BundleTransfer, Entry, StoredObject, Transfer

Insert = Callable[..., Any]
"""The `insert` of a dialect, which knows `on_conflict_do_update`."""


def of_messages(conn: Connection, ids: Sequence[str]) -> Sequence[Sequence[Transfer]]:
    """What is known of each message's targets."""
    rows = conn.execute(select(transfers).where(transfers.c.message_id.in_(ids)).order_by(transfers.c.target))
    found: dict[str, list[Transfer]] = defaultdict(list)
    for row in rows:
        found[row.message_id].append(_transfer(row))
    return [found[message_id] for message_id in ids]


def of_bundle(conn: Connection, bid: str) -> Sequence[BundleTransfer]:
    """All of a bundle, by resource and target."""
    rows = conn.execute(
        select(transfers).where(transfers.c.bid == bid).order_by(transfers.c.resource_id, transfers.c.target)
    )
    return [BundleTransfer(row.message_id, row.resource_id, row.updated_at, _transfer(row)) for row in rows]


def missing(conn: Connection, bids: Iterable[str]) -> Mapping[str, Mapping[str, int]]:
    """How many payloads each target of those bundles is still without: by bid, then by target; nothing where none is."""
    return _counted(conn, bids, is_missing())


def owed(conn: Connection, bids: Iterable[str]) -> Mapping[str, Mapping[str, int]]:
    """As `missing`, of the resources those bundles consist of: neither late ones nor those that are not recorded."""
    return _counted(conn, bids, and_(_lacking(), _recorded(resources.c.late.is_(False))))


def is_missing() -> ColumnElement[bool]:
    """Of a row of `transfers`: its target has not got the payload by another message either, nor by a try that ran beside it.

    Once the resource is recorded only an object says that its target has it: a note that came beside the record does not.
    """
    return and_(_lacking(), or_(transfers.c.state == "missing", _recorded()))


def _lacking() -> ColumnElement[bool]:
    return ~exists().where(
        objects.c.bid == transfers.c.bid,
        objects.c.resource_id == transfers.c.resource_id,
        objects.c.target == transfers.c.target,
    )


def _recorded(*such: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(
        resources.c.bid == transfers.c.bid, resources.c.resource_id == transfers.c.resource_id, *such
    )


def _counted(
    conn: Connection, bids: Iterable[str], which: ColumnElement[bool]
) -> Mapping[str, Mapping[str, int]]:
    # Several messages may stand for one resource.
    statement = (
        select(transfers.c.bid, transfers.c.target, func.count(transfers.c.resource_id.distinct()))
        .where(transfers.c.bid.in_(list(bids)), which)
        .group_by(transfers.c.bid, transfers.c.target)
    )
    counted: dict[str, dict[str, int]] = defaultdict(dict)
    for bid, target, count in conn.execute(statement):
        counted[bid][target] = count
    return counted


def unsettled(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Which of these messages have rows."""
    noted = select(transfers.c.message_id).where(transfers.c.message_id.in_(ids)).distinct()
    return set(conn.execute(noted).scalars())


def note(conn: Connection, insert: Insert, notes: Iterable[tuple[Entry, Transfer]]) -> None:
    """Write down what became of the messages' payloads. What a target has, it has, whatever a later try says."""
    latest: dict[tuple[str, str], tuple[Entry, Transfer]] = {}
    for entry, transfer in notes:
        key = entry.message_id, transfer.target
        if key not in latest or latest[key][1].stored is None:
            latest[key] = entry, transfer
    if not latest:
        return
    now = conn.execute(select(now_ms())).scalar_one()
    # In one order everywhere: two tries at one message cannot deadlock.
    values = [_row(*latest[key], now) for key in sorted(latest)]
    statement = insert(transfers)
    statement = statement.on_conflict_do_update(
        index_elements=[transfers.c.message_id, transfers.c.target],
        set_={
            name: statement.excluded[name]
            for name in ("bid", "resource_id", "state", "stored", "error", "updated_at")
        },
        where=transfers.c.state != "stored",
    )
    conn.execute(statement, values)


def forget(conn: Connection, ids: Sequence[str]) -> None:
    """Every target of these messages has what it is to have."""
    conn.execute(delete(transfers).where(transfers.c.message_id.in_(ids)))


def forget_unrecorded(conn: Connection, age_ms: int, limit: int) -> int:
    """Delete notes older than that of messages that were never recorded: doing those again finds the objects anyway."""
    old = (
        select(transfers.c.message_id, transfers.c.target)
        .where(
            transfers.c.updated_at < now_ms() - age_ms,
            ~exists().where(messages.c.id == transfers.c.message_id),
        )
        .limit(limit)
    )
    keys = [tuple(row) for row in conn.execute(old)]
    for message_id, target in keys:
        conn.execute(
            delete(transfers).where(transfers.c.message_id == message_id, transfers.c.target == target)
        )
    return len(keys)


def _row(entry: Entry, transfer: Transfer, now: int) -> dict[str, Any]:
    return {
        "message_id": entry.message_id,
        "target": transfer.target,
        "bid": entry.bid,
        "resource_id": entry.resource.resource_id if entry.resource else "",
        "state": "missing" if transfer.stored is None else "stored",
        "stored": None if transfer.stored is None else _facts(transfer.stored),
        "error": None if transfer.error is None else storable(transfer.error),
        "updated_at": now,
    }


def _facts(stored: StoredObject) -> dict[str, Any]:
    # The release before knows no `member`, and would stumble over it.
    return {name: fact for name, fact in asdict(stored).items() if name != "member" or fact is not None}


def _transfer(row: Any) -> Transfer:
    stored = None if row.stored is None else StoredObject(**row.stored)
    return Transfer(row.target, stored, row.error)
