"""The ledger on SQLAlchemy Core: one code for SQLite (embedded) and PostgreSQL.

Constructed by worker/bootstrap.py. Differences between the two databases are confined to the
`insert` construct picked by dialect, to `now_ms` in schema.py, and to row locks, which SQLite does not need (its write
transactions begin IMMEDIATE) and its compiler leaves out.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Select, Table, bindparam, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from backends.failpoints import failpoint
from worker.attempts import Attempt
from worker.batcher import Batcher
from worker.ledger import retention, tries
from worker.ledger.base import (
    BundleRecord,
    BundleState,
    Entry,
    LedgerBusy,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
    OutboxEntry,
    OutboxRow,
    OutboxState,
    Recorded,
    Retired,
    StoredObject,
    StoredResource,
    Summary,
)
from worker.ledger.database import Database
from worker.ledger.rows import (
    bundle_record,
    bundle_row,
    fold,
    message_row,
    object_rows,
    outbox_entry,
    outbox_row,
    resource_key,
    resource_row,
)
from worker.ledger.schema import bundles, messages, now_ms, objects, outbox, probe, resources

_COMMIT_LIMIT = 200
"""Entries a transaction takes at most: enough to hide the fsync, few enough to keep it short."""

_CLOSE_SECONDS = 2.0
"""For what is still to be committed when the ledger is closed. Nobody waits for it any more."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAGE = 500
"""Resources read at a time."""


async def _apart(
    reason: LedgerError,
    groups: Sequence[Sequence[Item]],
    flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]],
) -> Sequence[Result | BaseException]:
    """Each group in a transaction of its own, because one of them made the common one fail; outcomes in their order.

    Raises `reason` when there is only one group.
    """
    if len(groups) == 1:
        raise reason
    outcomes = await asyncio.gather(*(flush(group) for group in groups), return_exceptions=True)
    return [
        each
        for group, outcome in zip(groups, outcomes, strict=True)
        for each in ([outcome] * len(group) if isinstance(outcome, BaseException) else outcome)
    ]


class SqlLedger:
    """See worker/ledger/base.py for the contract."""

    def __init__(self, database: Database) -> None:
        """Takes over the database: `aclose` closes it."""
        self._database = database
        dialect = sqlite if database.dialect == "sqlite" else postgresql
        self._insert_into = cast("Callable[..., sqlite.Insert]", dialect.insert)
        self._insert_new = {
            table: self._insert_into(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
            for table in (messages, bundles, resources, objects, outbox)
        }
        self._records: Batcher[Entry, Recorded] = Batcher(
            self._record_all, limit=_COMMIT_LIMIT, name="ledger-record"
        )
        self._begins: Batcher[tuple[str, str], int] = Batcher(
            self._begin_all, limit=_COMMIT_LIMIT, name="ledger-begin"
        )
        self._withdrawals: Batcher[tuple[str, str, int], None] = Batcher(
            self._withdraw_all, limit=_COMMIT_LIMIT, name="ledger-withdraw"
        )
        self._finds: Batcher[str, str | None] = Batcher(
            self._find_all, limit=_COMMIT_LIMIT, name="ledger-find"
        )

    async def find(self, message_id: str) -> str | None:
        return await self._finds.submit(message_id)

    async def record(self, entry: Entry) -> Recorded:
        return await self._records.submit(entry)

    async def attempts(self, queue: str, message_id: str) -> Sequence[Attempt]:
        return await self._database.read(lambda conn: tries.listed(conn, queue, message_id))

    async def begin(self, queue: str, message_id: str) -> int:
        return await self._begins.submit((queue, message_id))

    async def failed(self, queue: str, message_id: str, number: int | None, attempt: Attempt) -> None:
        failpoint("ledger.failed.before")
        await self._database.write(
            lambda conn: tries.fail(conn, self._insert_into, queue, message_id, number, attempt)
        )
        failpoint("ledger.failed.after")

    async def withdraw(self, queue: str, message_id: str, number: int) -> None:
        await self._withdrawals.submit((queue, message_id, number))

    async def claim(self, limit: int, lease: float) -> Sequence[OutboxRow]:
        due = (
            select(outbox.c.event_id)
            .where(outbox.c.state == "pending", outbox.c.due_at <= now_ms())
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
                due_at=now_ms() + _ms(lease),
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
        failpoint("ledger.claim.before")
        rows = await self._database.write(lambda conn: conn.execute(statement).all())
        failpoint("ledger.claim.after")
        return sorted((OutboxRow(*row) for row in rows), key=lambda row: (row.completed_at, row.event_id))

    async def renew(self, rows: Sequence[OutboxRow], lease: float) -> int:
        return len(await self._change(rows, due_at=now_ms() + _ms(lease)))

    async def mark_published(self, rows: Sequence[OutboxRow]) -> int:
        def work(conn: Connection) -> int:
            marked = _change_claimed(conn, rows, state="published", published_at=now_ms(), error=None)
            conn.execute(
                update(bundles)
                .where(bundles.c.bid.in_(marked))
                .values(state="published", published_at=now_ms())
            )
            return len(marked)

        if not rows:
            return 0
        failpoint("ledger.mark.before")
        marked = await self._database.write(work)
        failpoint("ledger.mark.after")
        return marked

    async def postpone(self, row: OutboxRow, delay: float, error: str) -> bool:
        # The claim ends with it, so that a renewal of the batch it came with does not move it.
        values = {"due_at": now_ms() + _ms(delay), "generation": outbox.c.generation + 1}
        return bool(await self._change([row], **values, error=tries.storable(error)))

    async def park(self, row: OutboxRow, error: str) -> bool:
        return bool(await self._change([row], state="parked", error=tries.storable(error)))

    async def pending(self) -> int:
        statement = select(func.count()).select_from(outbox).where(outbox.c.state == "pending")
        return await self._database.read(lambda conn: conn.execute(statement).scalar_one())

    async def bundle(self, bid: str) -> BundleRecord | None:
        statement = select(bundles).where(bundles.c.bid == bid)
        row = await self._database.read(lambda conn: conn.execute(statement).one_or_none())
        return None if row is None else bundle_record(row)

    async def bundles(self, state: BundleState | None = None, limit: int = 100) -> Sequence[BundleRecord]:
        statement = select(bundles).order_by(bundles.c.created_at.desc(), bundles.c.bid.desc()).limit(limit)
        if state is not None:
            statement = statement.where(bundles.c.state == state)
        rows = await self._database.read(lambda conn: conn.execute(statement).all())
        return [bundle_record(row) for row in rows]

    async def resources(self, bid: str) -> AsyncIterator[StoredResource]:
        after = ""
        while True:
            page = await self._database.read(lambda conn, after=after: _resource_page(conn, bid, after))  # type: ignore[misc] # mypy: no type for a lambda's default
            for resource in page:
                yield resource
            if len(page) < _PAGE:
                return
            after = page[-1].resource_id

    async def outbox(self, state: OutboxState | None = None, limit: int = 100) -> Sequence[OutboxEntry]:
        statement = select(outbox).order_by(outbox.c.completed_at, outbox.c.event_id).limit(limit)
        if state is not None:
            statement = statement.where(outbox.c.state == state)
        rows = await self._database.read(lambda conn: conn.execute(statement).all())
        return [outbox_entry(row) for row in rows]

    async def retry_parked(self, event_ids: Sequence[str] | None = None) -> int:
        statement = update(outbox).where(outbox.c.state == "parked").values(**_due_now())
        if event_ids is not None:
            statement = statement.where(outbox.c.event_id.in_(event_ids))

        def work(conn: Connection) -> int:
            self._database.notify(conn)
            return conn.execute(statement).rowcount

        failpoint("ledger.retry_parked.before")
        changed = await self._database.write(work)
        failpoint("ledger.retry_parked.after")
        return changed

    async def replay(self, bid: str) -> OutboxState | None:
        def work(conn: Connection) -> OutboxState | None:
            # First the bundle, as everybody does: it may be retired at this moment.
            conn.execute(select(bundles.c.bid).where(bundles.c.bid == bid).with_for_update())
            found = select(outbox.c.state).where(outbox.c.bid == bid).with_for_update()
            before: OutboxState | None = conn.execute(found).scalar_one_or_none()
            if before == "published":
                anew = {**_due_now(), "replays": outbox.c.replays + 1}
                conn.execute(update(outbox).where(outbox.c.bid == bid).values(anew))
                self._database.notify(conn)
            return before

        failpoint("ledger.replay.before")
        before = await self._database.write(work)
        failpoint("ledger.replay.after")
        return before

    async def staged(self, age: float, limit: int) -> Sequence[str]:
        return await self._database.read(lambda conn: retention.staged(conn, _ms(age), limit))

    async def mark_unstaged(self, seen: Mapping[str, int]) -> None:
        failpoint("ledger.mark_unstaged.before")
        await self._database.write(lambda conn: retention.mark_unstaged(conn, seen))
        failpoint("ledger.mark_unstaged.after")

    async def retire(self, age: float, limit: int, *, unstaged_only: bool = False) -> Retired:
        failpoint("ledger.retire.before")
        retired = await self._database.write(
            lambda conn: retention.retire(conn, _ms(age), limit, unstaged_only=unstaged_only)
        )
        failpoint("ledger.retire.after")
        return retired

    async def forget_attempts(self, age: float, limit: int) -> int:
        failpoint("ledger.forget_attempts.before")
        forgotten = await self._database.write(lambda conn: tries.forget(conn, _ms(age), limit))
        failpoint("ledger.forget_attempts.after")
        return forgotten

    async def probe(self) -> None:
        statement = update(probe).where(probe.c.id == 1).values(at=now_ms())
        failpoint("ledger.probe.before")
        await self._database.write(lambda conn: conn.execute(statement))
        failpoint("ledger.probe.after")

    async def watch(self, wake: Callable[[], None]) -> None:
        await self._database.watch(wake)

    async def summary(self) -> Summary:
        return await self._database.read(_summary)

    async def aclose(self) -> None:
        batchers = (self._records, self._begins, self._withdrawals, self._finds)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.gather(*(batcher.aclose() for batcher in batchers))
        # It ends what a silent server keeps waiting.
        await self._database.aclose()

    async def _find_all(self, ids: Sequence[str]) -> Sequence[str | None]:
        statement = select(messages.c.id, messages.c.fingerprint).where(messages.c.id.in_(ids))
        found = dict(
            await self._database.read(lambda conn: [(row[0], row[1]) for row in conn.execute(statement)])
        )
        return [found.get(message_id) for message_id in ids]

    async def _begin_all(self, keys: Sequence[tuple[str, str]]) -> Sequence[int | BaseException]:
        try:
            failpoint("ledger.begin.before")
            numbers = await self._database.write(lambda conn: tries.begin(conn, self._insert_into, keys))
            failpoint("ledger.begin.after")
            return numbers  # noqa: TRY300 - an else would part it from its failpoints
        except LedgerRefused as exc:
            return await _apart(exc, [[key] for key in keys], self._begin_all)

    async def _withdraw_all(self, keys: Sequence[tuple[str, str, int]]) -> Sequence[BaseException | None]:
        try:
            failpoint("ledger.withdraw.before")
            await self._database.write(lambda conn: tries.withdraw(conn, keys))
            failpoint("ledger.withdraw.after")
            return [None] * len(keys)
        except LedgerRefused as exc:
            return await _apart(exc, [[key] for key in keys], self._withdraw_all)

    async def _record_all(self, entries: Sequence[Entry]) -> Sequence[Recorded | BaseException]:
        try:
            failpoint("ledger.record.before")
            recorded = await self._database.write(lambda conn: self._commit(conn, entries))
            failpoint("ledger.record.after")
            return recorded  # noqa: TRY300 - an else would part it from its failpoints
        except LedgerRefused as exc:
            return await _apart(exc, [[entry] for entry in entries], self._record_all)
        except LedgerBusy as exc:
            # Somebody holds the row of one bundle: the others need not wait for it, nor fail with it.
            by_bid: dict[str, list[Entry]] = defaultdict(list)
            for entry in entries:
                by_bid[entry.bid].append(entry)
            outcomes = await _apart(exc, list(by_bid.values()), self._record_all)
            apart = [entry for group in by_bid.values() for entry in group]
            answered = {id(entry): outcome for entry, outcome in zip(apart, outcomes, strict=True)}
            return [answered[id(entry)] for entry in entries]

    def _commit(self, conn: Connection, entries: Sequence[Entry]) -> Sequence[Recorded]:
        """The transaction behind `record`. Locks are taken in the order of ids, then of bids: two workers cannot deadlock."""
        now = conn.execute(select(now_ms())).scalar_one()
        meaning = self._claim_ids(conn, entries, now)
        accepted = [entry for entry in entries if meaning[entry.message_id] == entry.fingerprint]
        known = self._lock_bundles(conn, accepted, now)
        inserted = self._insert(
            conn, resources, (resource_row(e, known[e.bid], now) for e in accepted if e.resource is not None)
        )
        self._insert(
            conn, objects, (row for e in accepted if resource_key(e) in inserted for row in object_rows(e))
        )
        for bid, row in known.items():
            mine = [entry for entry in accepted if entry.bid == bid]
            fold(row, mine, sum(1 for key in inserted if key[0] == bid), now)
        self._save_bundles(conn, [row for row in known.values() if row["changed"]])
        finished = {bid: row for bid, row in known.items() if row["completes"]}
        self._insert(conn, outbox, (outbox_row(row) for row in finished.values()))
        if finished:
            self._database.notify(conn)
        last = {entry.bid: entry for entry in accepted}
        return [
            Recorded(
                completed=entry.bid in finished and entry is last[entry.bid],
                late=known[entry.bid]["was"] != "open" and resource_key(entry) in inserted,
            )
            if meaning[entry.message_id] == entry.fingerprint
            else Recorded(conflict=True)
            for entry in entries
        ]

    def _claim_ids(self, conn: Connection, entries: Sequence[Entry], now: int) -> Mapping[str, str]:
        """What each message id stands for, from now on or since before: two deliveries may race with one id."""
        ordered = sorted(entries, key=lambda entry: entry.message_id)
        fresh = self._insert(conn, messages, (message_row(entry, now) for entry in ordered))
        first = {entry.message_id: entry.fingerprint for entry in reversed(ordered)}
        before = [message_id for message_id in first if (message_id,) not in fresh]
        if before:
            statement = select(messages.c.id, messages.c.fingerprint).where(messages.c.id.in_(before))
            first.update((row[0], row[1]) for row in conn.execute(statement))
        return first

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

    def _insert(
        self, conn: Connection, table: Table, rows: Iterable[Mapping[str, Any]]
    ) -> set[tuple[Any, ...]]:
        """Insert the rows whose key is not there yet; the keys of those that were inserted."""
        values = list(rows)
        return {tuple(row) for row in conn.execute(self._insert_new[table], values)} if values else set()

    def _save_bundles(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = (
            "state",
            "resources_count",
            "stored_count",
            "closed",
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

    async def _change(self, rows: Sequence[OutboxRow], **values: Any) -> Sequence[str]:
        if not rows:
            return []
        failpoint("ledger.change.before")
        changed = await self._database.write(lambda conn: _change_claimed(conn, rows, **values))
        failpoint("ledger.change.after")
        return changed


def _due_now() -> dict[str, Any]:
    """For a row that is announced on request. The generation grows, so that no earlier claim can change it."""
    return {
        "state": "pending",
        "due_at": now_ms(),
        "attempts": 0,
        "generation": outbox.c.generation + 1,
        "error": None,
    }


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _change_claimed(conn: Connection, rows: Sequence[OutboxRow], **values: Any) -> Sequence[str]:
    """Change the rows whose claim still holds; their bids."""
    claims = [(row.event_id, row.generation) for row in rows]
    statement = (
        update(outbox)
        .where(outbox.c.state == "pending", tuple_(outbox.c.event_id, outbox.c.generation).in_(claims))
        .values(**values)
        .returning(outbox.c.bid)
    )
    return conn.execute(statement).scalars().all()


def _resource_page(conn: Connection, bid: str, after: str) -> Sequence[StoredResource]:
    page = conn.execute(
        select(resources)
        .where(resources.c.bid == bid, resources.c.resource_id > after)
        .order_by(resources.c.resource_id)
        .limit(_PAGE)
    ).all()
    if not page:
        return []
    lying = conn.execute(
        select(objects)
        .where(objects.c.bid == bid, objects.c.resource_id.between(page[0].resource_id, page[-1].resource_id))
        .order_by(objects.c.resource_id, objects.c.target, objects.c.key)
    ).all()
    of_resource: dict[str, tuple[StoredObject, ...]] = defaultdict(tuple)
    for resource_id, rows in groupby(lying, key=lambda row: cast("str", row.resource_id)):
        of_resource[resource_id] = tuple(
            StoredObject(row.target, row.key, row.size, row.sha256, row.etag, row.version) for row in rows
        )
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
        )
        for row in page
    ]


def _summary(conn: Connection) -> Summary:
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
