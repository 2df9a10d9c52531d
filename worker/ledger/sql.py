"""The ledger on SQLAlchemy Core: one code for SQLite (embedded) and PostgreSQL.

Constructed by worker/bootstrap.py. Differences between the two databases are confined to the
`insert` construct picked by dialect, to `now_ms` in schema.py, and to row locks, which SQLite does not need (its write
transactions begin IMMEDIATE) and its compiler leaves out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from backends.failpoints import failpoint
from worker.attempts import Attempt
from worker.ledger import audit as auditing
from worker.ledger import completions, queries, retention, tries
from worker.ledger import contents as of_contents
from worker.ledger import search as searching
from worker.ledger import transfers as of_transfers
from worker.ledger.base import LedgerBusy, LedgerUnavailable
from worker.ledger.database import Database
from worker.ledger.group_commit import GroupCommit
from worker.ledger.recording import Recorder
from worker.ledger.schema import bundles, now_ms, outbox, probe
from worker.ledger.telling import told, told_entry
from worker.ledger.values import (
    AuditQuery,
    AuditRecord,
    AuditRow,
    AuditSpan,
    BundleRecord,
    BundleState,
    BundleTransfer,
    Entry,
    Found,
    OutboxEntry,
    OutboxRow,
    OutboxState,
    Recorded,
    Retired,
    Search,
    StoredObject,
    StoredResource,
    Summary,
    Transfer,
)
from worker.redaction import redact
from worker.secret_values import Hide

_CLOSE_SECONDS = 2.0
"""For what is still to be committed when the ledger is closed. Nobody waits for it any more."""

_SETTLE_SECONDS = 60.0
"""Longer than a transaction lasts."""
_SETTLE_PAUSE = 0.02


class SqlLedger:
    """See worker/ledger/base.py for the contract."""

    def __init__(self, database: Database, *, actor: str | None = None, hide: Hide = redact) -> None:
        """Takes over the database: `aclose` closes it. `actor` is whom the audit trail names; without, none is kept.

        `hide` takes secrets out of the texts of errors.
        """
        self._database = database
        self._hide = hide
        self._trail = auditing.Trail(actor)
        dialect = sqlite if database.dialect == "sqlite" else postgresql
        self._insert_into = cast("Callable[..., sqlite.Insert]", dialect.insert)
        self._recorder = Recorder(self._insert_into, database.notify, self._trail)
        self._grouped = GroupCommit(database, self._insert_into, self._recorder)

    async def find(self, message_id: str) -> str | None:
        return await self._grouped.finds.submit(message_id)

    async def record(self, entry: Entry) -> Recorded:
        return await self._grouped.records.submit(told_entry(entry, self._hide))

    async def contents(self, route: str, sha256: str) -> Mapping[str, StoredObject]:
        return await self._database.read(lambda conn: of_contents.known(conn, route, sha256))

    async def transfers(self, message_id: str) -> Sequence[Transfer]:
        return await self._grouped.transfers.submit(message_id)

    async def note_transfers(self, entry: Entry, transfers: Sequence[Transfer]) -> None:
        await self._grouped.notes.submit((entry, told(transfers, self._hide)))

    async def settle(self, entry: Entry, transfers: Sequence[Transfer]) -> None:
        clean, known = told_entry(entry, self._hide), told(transfers, self._hide)
        failpoint("ledger.settle.before")
        await self._database.write(lambda conn: self._settle(conn, clean, known))
        failpoint("ledger.settle.after")

    async def forget_transfers(self, message_id: str) -> None:
        failpoint("ledger.forget_transfers.before")
        await self._database.write(lambda conn: of_transfers.forget(conn, [message_id]))
        failpoint("ledger.forget_transfers.after")

    async def bundle_transfers(self, bid: str) -> Sequence[BundleTransfer]:
        return await self._database.read(lambda conn: of_transfers.of_bundle(conn, bid))

    async def missing(self, bid: str) -> Mapping[str, int]:
        counted = await self._database.read(lambda conn: of_transfers.missing(conn, [bid]))
        return counted.get(bid, {})

    async def owed(self, bid: str) -> Mapping[str, int]:
        counted = await self._database.read(lambda conn: of_transfers.owed(conn, [bid]))
        return counted.get(bid, {})

    async def attempts(self, queue: str, message_id: str) -> Sequence[Attempt]:
        return await self._database.read(lambda conn: tries.listed(conn, queue, message_id))

    async def begin(self, queue: str, message_id: str) -> int:
        return await self._grouped.begins.submit((queue, message_id))

    async def failed(self, queue: str, message_id: str, number: int | None, attempt: Attempt) -> None:
        attempt = replace(attempt, detail=self._hide(attempt.detail))
        failpoint("ledger.failed.before")
        await self._database.write(
            lambda conn: tries.fail(conn, self._insert_into, queue, message_id, number, attempt)
        )
        failpoint("ledger.failed.after")

    async def withdraw(self, queue: str, message_id: str, number: int) -> None:
        await self._grouped.withdrawals.submit((queue, message_id, number))

    async def claim(self, limit: int, lease: float, bid: str | None = None) -> Sequence[OutboxRow]:
        failpoint("ledger.claim.before")
        rows = await self._database.write(lambda conn: completions.claim(conn, limit, _ms(lease), bid))
        failpoint("ledger.claim.after")
        return rows

    async def renew(self, rows: Sequence[OutboxRow], lease: float) -> int:
        return len(await self._change(rows, due_at=now_ms() + _ms(lease)))

    async def mark_published(self, rows: Sequence[OutboxRow]) -> int:
        if not rows:
            return 0
        failpoint("ledger.mark.before")
        marked = await self._database.write(lambda conn: completions.mark_published(conn, rows, self._trail))
        failpoint("ledger.mark.after")
        return marked

    async def postpone(self, row: OutboxRow, delay: float, error: str) -> bool:
        # The claim ends with it, so that a renewal of the batch it came with does not move it.
        values = {"due_at": now_ms() + _ms(delay), "generation": outbox.c.generation + 1}
        return bool(await self._change([row], **values, error=tries.storable(self._hide(error))))

    async def park(self, row: OutboxRow, error: str) -> bool:
        return bool(await self._change([row], state="parked", error=tries.storable(self._hide(error))))

    async def pending(self) -> int:
        return await self._database.read(queries.pending)

    async def bundle(self, bid: str) -> BundleRecord | None:
        return await self._database.read(lambda conn: queries.bundle(conn, bid))

    async def bundle_at(self, target: str, key: str) -> BundleRecord | None:
        return await self._database.read(lambda conn: searching.bundle_at(conn, target, key))

    async def bundles(self, state: BundleState | None = None, limit: int = 100) -> Sequence[BundleRecord]:
        return await self._database.read(lambda conn: queries.newest_bundles(conn, state, limit))

    async def resources(self, bid: str) -> AsyncIterator[StoredResource]:
        after = ""
        while True:
            page, more = await self._database.read(partial(queries.resource_page, bid=bid, after=after))
            for resource in page:
                yield resource
            if not more:
                return
            after = page[-1].resource_id

    async def search(self, search: Search) -> AsyncIterator[Found]:
        after: searching.After | None = None
        while True:
            found, after = await self._database.read(partial(searching.page, search=search, after=after))
            for each in found:
                yield each
            if after is None:
                return

    async def outbox(
        self,
        state: OutboxState | None = None,
        limit: int = 100,
        *,
        recipe_id: str | None = None,
        bid: str | None = None,
    ) -> Sequence[OutboxEntry]:
        return await self._database.read(lambda conn: queries.completions(conn, state, limit, recipe_id, bid))

    async def retry_parked(self, event_ids: Sequence[str] | None = None) -> int:
        failpoint("ledger.retry_parked.before")
        changed = await self._database.write(
            lambda conn: completions.retry_parked(conn, event_ids, self._database.notify, self._trail)
        )
        failpoint("ledger.retry_parked.after")
        return changed

    async def replay(self, bid: str) -> OutboxState | None:
        failpoint("ledger.replay.before")
        before = await self._database.write(
            lambda conn: completions.replay(conn, bid, self._database.notify, self._trail)
        )
        failpoint("ledger.replay.after")
        return before

    async def staged(self, age: float, limit: int) -> Sequence[str]:
        return await self._database.read(lambda conn: retention.staged(conn, _ms(age), limit))

    async def mark_unstaged(self, seen: Mapping[str, int]) -> None:
        failpoint("ledger.mark_unstaged.before")
        await self._database.write(lambda conn: retention.mark_unstaged(conn, seen, self._trail))
        failpoint("ledger.mark_unstaged.after")

    async def retire(self, age: float, limit: int, *, unstaged_only: bool = False) -> Retired:
        failpoint("ledger.retire.before")
        retired = await self._database.write(
            lambda conn: retention.retire(conn, _ms(age), limit, self._trail, unstaged_only=unstaged_only)
        )
        failpoint("ledger.retire.after")
        return retired

    async def forget_attempts(self, age: float, limit: int) -> int:
        failpoint("ledger.forget_attempts.before")
        forgotten = await self._database.write(
            lambda conn: (
                tries.forget(conn, _ms(age), limit) + of_transfers.forget_unrecorded(conn, _ms(age), limit)
            )
        )
        failpoint("ledger.forget_attempts.after")
        return forgotten

    async def audit(self, records: Sequence[AuditRecord]) -> None:
        if not self._trail.kept:
            return
        failpoint("ledger.audit.before")
        clean = [
            auditing.storable_record(replace(each, detail=each.detail and self._hide(each.detail)))
            for each in records
        ]
        await self._database.write(lambda conn: self._trail.append(conn, clean))
        failpoint("ledger.audit.after")

    async def audit_span(self) -> AuditSpan:
        span, writing = await self._database.read(auditing.span)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while writing:
            if time.monotonic() > deadline:
                raise LedgerBusy(
                    f"a transaction has been writing to the audit trail for {_SETTLE_SECONDS:g} seconds; "
                    "try again when it has ended"
                )
            await asyncio.sleep(_SETTLE_PAUSE)
            # A later transaction adds rows with higher ids only.
            writing &= await self._database.read(auditing.writers)
        return span

    async def audit_trail(self, query: AuditQuery) -> AsyncIterator[AuditRow]:
        after: int | None = query.after
        while after is not None:
            rows, after = await self._database.read(partial(auditing.page, query=query, after=after))
            for row in rows:
                yield row

    async def trim_audit(self, age: float, limit: int) -> int:
        failpoint("ledger.trim_audit.before")
        trimmed = await self._database.write(lambda conn: auditing.trim(conn, _ms(age), limit))
        failpoint("ledger.trim_audit.after")
        return trimmed

    async def probe(self) -> None:
        statement = update(probe).where(probe.c.id == 1).values(at=now_ms())
        failpoint("ledger.probe.before")
        await self._database.write(lambda conn: conn.execute(statement))
        failpoint("ledger.probe.after")

    async def watch(self, wake: Callable[[], None]) -> None:
        await self._database.watch(wake)

    async def summary(self) -> Summary:
        return await self._database.read(queries.summary)

    async def aclose(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._grouped.aclose()
        # It ends what a silent server keeps waiting.
        await self._database.aclose()

    def _settle(self, conn: Connection, entry: Entry, transfers: Sequence[Transfer]) -> None:
        held = select(bundles.c.bid).where(bundles.c.bid == entry.bid).with_for_update()
        if conn.execute(held).one_or_none() is None:
            raise LedgerUnavailable("the bundle was retired at this moment; its message begins it anew")
        self._recorder.lay(conn, entry)
        of_transfers.note(conn, self._insert_into, [(entry, transfer) for transfer in transfers])

    async def _change(self, rows: Sequence[OutboxRow], **values: Any) -> Sequence[str]:
        if not rows:
            return []
        failpoint("ledger.change.before")
        changed = await self._database.write(lambda conn: completions.change_claimed(conn, rows, values))
        failpoint("ledger.change.after")
        return changed


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
