"""Which payloads lie in a target already: the transactions behind `contents`.

Called by worker/ledger/sql.py, recording.py and retention.py only. A row per route, payload and target, and only for routes that
store identical payloads once. It goes with the bundle that stored the object.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select

from worker.ledger.schema import contents
from worker.ledger.values import Entry, StoredObject

Insert = Callable[..., Any]
"""The `insert` of a dialect, which knows `on_conflict_do_update`."""

_KEY = tuple(column.name for column in contents.primary_key.columns)


def known(conn: Connection, route: str, sha256: str) -> Mapping[str, StoredObject]:
    """Where that payload lies, by target, as far as that route has stored it."""
    rows = conn.execute(select(contents).where(contents.c.route == route, contents.c.sha256 == sha256))
    return {
        row.target: StoredObject(row.target, row.key, row.size, row.sha256, row.etag, row.version)
        for row in rows
    }


def note(
    conn: Connection, insert: Insert, entries: Iterable[Entry], laid: Collection[tuple[Any, ...]]
) -> None:
    """What the entries' resources have stored, if their objects' primary keys are among `laid`.

    Whoever stores what is known already has found the object gone, or stored it at the same time: the later one counts.
    """
    rows = {tuple(row[name] for name in _KEY): row for entry in entries for row in _rows(entry, laid)}
    if not rows:
        return
    statement = insert(contents)
    statement = statement.on_conflict_do_update(
        index_elements=contents.primary_key.columns,
        set_={name: statement.excluded[name] for name in ("key", "size", "etag", "version", "bid")},
    )
    # In one order everywhere: two transactions with the same payloads cannot deadlock.
    conn.execute(statement, [rows[key] for key in sorted(rows)])


def forget(conn: Connection, bids: Sequence[str]) -> None:
    """Nobody refers any more to what these bundles have stored."""
    mine = contents.c.bid.in_(bids)
    # In the order in which they are written.
    conn.execute(select(contents.c.bid).where(mine).order_by(*contents.primary_key.columns).with_for_update())
    conn.execute(delete(contents).where(mine))


def _rows(entry: Entry, laid: Collection[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    if entry.shared is None or entry.resource is None:
        return
    for each in entry.resource.objects:
        if each.target not in entry.shared.stored:
            continue
        if (entry.bid, entry.resource.resource_id, each.target, each.key) in laid:
            yield {
                "route": entry.shared.route,
                "sha256": each.sha256,
                "target": each.target,
                "key": each.key,
                "size": each.size,
                "etag": each.etag,
                "version": each.version,
                "bid": entry.bid,
            }
