"""The transaction behind `record`: what messages changed, committed together.

Made by worker/ledger/sql.py, called by group_commit.py as well.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, select, update
from sqlalchemy.dialects import sqlite

from worker.ledger import contents, transfers
from worker.ledger.audit import ROWS, Trail, stored
from worker.ledger.base import LedgerUnavailable
from worker.ledger.queries import recorded_payload
from worker.ledger.rows import (
    bundle_row,
    bundle_targets,
    fold,
    message_row,
    object_rows,
    outbox_row,
    payload_digests,
    resource_key,
    resource_row,
)
from worker.ledger.schema import bundles, messages, now_ms, objects, outbox, resources
from worker.ledger.values import AuditRecord, Entry, Recorded


class Recorder:
    """For one database. Its statements are built once."""

    def __init__(
        self, insert: Callable[..., sqlite.Insert], notify: Callable[[Connection], None], trail: Trail
    ) -> None:
        """`insert` is the dialect's; `notify` tells other processes that a completion is due, when the transaction commits."""
        self._insert_into = insert
        self._notify = notify
        self._trail = trail
        self._insert_new = {
            table: insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
            for table in (messages, bundles, resources, objects, outbox)
        }

    def commit(self, conn: Connection, entries: Sequence[Entry]) -> Sequence[Recorded]:
        """Locks are taken in the order of ids, then of bids: two workers cannot deadlock."""
        now = conn.execute(select(now_ms())).scalar_one()
        meaning, accepted = self._claim_ids(conn, entries, now)
        known = self._lock_bundles(conn, accepted, now)
        inserted = self._insert(
            conn, resources, (resource_row(e, known[e.bid], now) for e in accepted if e.resource is not None)
        )
        differing = self._differing(conn, accepted, inserted)
        accepted = [entry for entry in accepted if entry.message_id not in differing]
        # Two messages of one resource may have found its payload under different keys: the row that was inserted is the first's.
        first = {key: entry for entry in reversed(accepted) if (key := resource_key(entry)) in inserted}
        laid = self._insert(conn, objects, (row for entry in first.values() for row in object_rows(entry)))
        contents.note(conn, self._insert_into, accepted, laid)
        for bid, row in known.items():
            mine = [entry for entry in accepted if entry.bid == bid]
            fold(row, mine, sum(1 for key in inserted if key[0] == bid), now)
        self._save_bundles(conn, [row for row in known.values() if row["changed"]])
        self._note_transfers(conn, accepted, inserted)
        finished = {bid: row for bid, row in known.items() if row["completes"]}
        missing = transfers.owed(conn, _with_best_effort(finished)) if finished else {}
        last = {entry.bid: entry for entry in accepted}
        announced = [
            outbox_row(row, missing.get(bid, {}), last[bid].trace if bid in last else {})
            for bid, row in finished.items()
        ]
        self._insert(conn, outbox, announced)
        if finished:
            self._notify(conn)
        if self._trail.kept:
            self._trail.append(conn, chain(stored(accepted, laid), _completed(announced, known)))
        done = {
            id(entry): Recorded(late=known[entry.bid]["was"] != "open" and resource_key(entry) in inserted)
            for entry in accepted
        }
        for entry in last.values():
            if entry.bid in finished:
                done[id(entry)] = Recorded(completed=True)
        before = {entry.message_id for entry in entries if id(entry) not in done}
        unsettled = transfers.unsettled(conn, sorted(before)) if before else set()
        return [
            Recorded(conflict=True)
            if meaning[entry.message_id] != entry.fingerprint
            else Recorded(differs=True)
            if entry.message_id in differing
            else done.get(id(entry)) or Recorded(unsettled=entry.message_id in unsettled)
            for entry in entries
        ]

    def _claim_ids(
        self, conn: Connection, entries: Sequence[Entry], now: int
    ) -> tuple[Mapping[str, str], list[Entry]]:
        """What each message id stands for, from now on or since before, and the entries that made it so.

        Two deliveries may race with one id: what the second one would record was recorded by the first.
        """
        ordered = sorted(entries, key=lambda entry: entry.message_id)
        fresh = self._insert(conn, messages, (message_row(entry, now) for entry in ordered))
        first = {entry.message_id: entry.fingerprint for entry in reversed(ordered)}
        before = [message_id for message_id in first if (message_id,) not in fresh]
        if before:
            statement = select(messages.c.id, messages.c.fingerprint).where(messages.c.id.in_(before))
            first.update((row[0], row[1]) for row in conn.execute(statement))
        accepted = {entry.message_id: entry for entry in reversed(entries) if (entry.message_id,) in fresh}
        return first, [entry for entry in entries if accepted.get(entry.message_id) is entry]

    def _differing(
        self, conn: Connection, entries: Sequence[Entry], inserted: set[tuple[Any, ...]]
    ) -> set[str]:
        """Ids of messages whose resource another message recorded with another payload; they stand for nothing any more.

        Their objects may lie beside those of that message: what became of two payloads need not meet in a key.
        """
        payloads: dict[tuple[str, str], set[str]] = {}
        differing: set[str] = set()
        for entry in entries:
            if entry.resource is None:
                continue
            key = entry.bid, entry.resource.resource_id
            payload = payload_digests(entry.resource.before, entry.resource.objects)
            if key not in payloads:
                payloads[key] = payload if key in inserted else recorded_payload(conn, *key)
            if payload and payloads[key] and payload.isdisjoint(payloads[key]):
                differing.add(entry.message_id)
        if differing:
            conn.execute(delete(messages).where(messages.c.id.in_(differing)))
        return differing

    def _lock_bundles(
        self, conn: Connection, entries: Sequence[Entry], now: int
    ) -> dict[str, dict[str, Any]]:
        """The rows of all bundles concerned, made where they are new, held until commit."""
        first = {entry.bid: entry for entry in reversed(entries)}
        bids = sorted(first)
        self._insert(conn, bundles, (bundle_row(first[bid], now) for bid in bids))
        statement = select(bundles).where(bundles.c.bid.in_(bids)).order_by(bundles.c.bid).with_for_update()
        known = {
            row.bid: {**row._asdict(), "was": row.state, "changed": False, "completes": False}
            for row in conn.execute(statement)
        }
        if len(known) < len(bids):
            raise LedgerUnavailable("a bundle was retired at this moment; its late resource begins it anew")
        return known

    def _note_transfers(
        self, conn: Connection, entries: Sequence[Entry], inserted: set[tuple[Any, ...]]
    ) -> None:
        """What was noted of transfers before ends here; what a target is still without begins.

        Also where there is one target: earlier tries may have had more.
        """
        entries = [entry for entry in entries if entry.resource is not None]
        if not entries:
            return
        transfers.forget(conn, [entry.message_id for entry in entries])
        owing = (entry for entry in entries if resource_key(entry) in inserted)
        transfers.note(
            conn, self._insert_into, [(entry, transfer) for entry in owing for transfer in entry.missing]
        )

    def lay(self, conn: Connection, entry: Entry) -> None:
        """Add the objects of a resource that was recorded before, in targets that have none of it.

        Another key would change a manifest that is out.
        """
        key = resource_key(entry) or ("", "")
        there = select(objects.c.target).where(objects.c.bid == key[0], objects.c.resource_id == key[1])
        holding = set(conn.execute(there).scalars())
        rows = (row for row in object_rows(entry) if row["target"] not in holding)
        laid = self._insert(conn, objects, rows)
        contents.note(conn, self._insert_into, [entry], laid)
        self._trail.append(conn, stored([entry], laid, "later than the bundle's other copies"))

    def _insert(
        self, conn: Connection, table: Table, rows: Iterable[Mapping[str, Any]]
    ) -> set[tuple[Any, ...]]:
        """Insert the rows whose key is not there yet; the keys of those that were inserted."""
        inserted: set[tuple[Any, ...]] = set()
        left = iter(rows)
        while batch := list(islice(left, ROWS)):
            inserted.update(tuple(row) for row in conn.execute(self._insert_new[table], batch))
        return inserted

    def _save_bundles(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = (
            "state",
            "resources_count",
            "stored_count",
            "closed",
            "targets",
            "metadata",
            "completed_at",
            "unstaged_at",
        )
        if rows:
            conn.execute(
                update(bundles)
                .where(bundles.c.bid == bindparam("the_bid"))
                .values({name: bindparam(f"new_{name}") for name in columns}),
                [{"the_bid": row["bid"], **{f"new_{name}": row[name] for name in columns}} for row in rows],
            )


def _with_best_effort(finished: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Only there a bundle may be complete with payloads missing."""
    return [
        bid
        for bid, row in finished.items()
        if not all(place.required for place in bundle_targets(row["targets"]))
    ]


def _completed(
    announced: Iterable[Mapping[str, Any]], bundles: Mapping[str, Mapping[str, Any]]
) -> Iterator[AuditRecord]:
    """Records of completions, with size and digest of what will be announced."""
    for row in announced:
        bundle, body = bundles[row["bid"]], row["body"]
        yield AuditRecord(
            "completed",
            row["bid"],
            row["recipe_id"],
            bundle["primary_url"],
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            detail=f"{bundle['stored_count']} resources, event {row['event_id']}",
        )
