"""Calls of the ledger that come together share a transaction, and a bad one among them does not spoil it for its neighbours.

Called by worker/ledger/sql.py only. What a transaction does is in recording.py, tries.py, transfers.py and queries.py.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy.dialects import sqlite

from backends.failpoints import failpoint
from worker.batcher import Batcher
from worker.ledger import queries, tries
from worker.ledger import transfers as of_transfers
from worker.ledger.base import LedgerBusy, LedgerError, LedgerRefused
from worker.ledger.database import Database
from worker.ledger.recording import Recorder
from worker.ledger.values import Entry, Recorded, Transfer

Item = TypeVar("Item")
Result = TypeVar("Result")

_COMMIT_LIMIT = 200
"""Entries a transaction takes at most: enough to hide the fsync, few enough to keep it short."""


class GroupCommit:
    """A queue of calls for each kind of transaction. `submit` to one of them waits for the commit."""

    def __init__(self, database: Database, insert: Callable[..., sqlite.Insert], recorder: Recorder) -> None:
        """`insert` is the dialect's. The database stays the caller's to close."""
        self._database = database
        self._insert_into = insert
        self._recorder = recorder
        self.records: Batcher[Entry, Recorded] = _batcher(self._record, "record")
        self.begins: Batcher[tuple[str, str], int] = _batcher(self._begin, "begin")
        """By queue and message id."""
        self.withdrawals: Batcher[tuple[str, str, int], None] = _batcher(self._withdraw, "withdraw")
        """By queue, message id and the number of the try."""
        self.notes: Batcher[tuple[Entry, tuple[Transfer, ...]], None] = _batcher(self._note, "note")
        self.transfers: Batcher[str, Sequence[Transfer]] = _batcher(self._transfers, "transfers")
        self.finds: Batcher[str, str | None] = _batcher(self._find, "find")

    async def aclose(self) -> None:
        """Refuse new calls and wait until those already submitted are committed."""
        await asyncio.gather(
            self.records.aclose(),
            self.begins.aclose(),
            self.withdrawals.aclose(),
            self.notes.aclose(),
            self.transfers.aclose(),
            self.finds.aclose(),
        )

    async def _find(self, ids: Sequence[str]) -> Sequence[str | None]:
        return await self._database.read(lambda conn: queries.fingerprints(conn, ids))

    async def _transfers(self, ids: Sequence[str]) -> Sequence[Sequence[Transfer]]:
        return await self._database.read(lambda conn: of_transfers.of_messages(conn, ids))

    async def _note(
        self, notes: Sequence[tuple[Entry, tuple[Transfer, ...]]]
    ) -> Sequence[BaseException | None]:
        each = [(entry, transfer) for entry, transfers in notes for transfer in transfers]
        try:
            failpoint("ledger.note_transfers.before")
            await self._database.write(lambda conn: of_transfers.note(conn, self._insert_into, each))
            failpoint("ledger.note_transfers.after")
            return [None] * len(notes)
        except LedgerRefused as exc:
            return await _apart(exc, [[one] for one in notes], self._note)

    async def _begin(self, keys: Sequence[tuple[str, str]]) -> Sequence[int | BaseException]:
        try:
            failpoint("ledger.begin.before")
            numbers = await self._database.write(lambda conn: tries.begin(conn, self._insert_into, keys))
            failpoint("ledger.begin.after")
            return numbers  # noqa: TRY300 - an else would part it from its failpoints
        except LedgerRefused as exc:
            return await _apart(exc, [[key] for key in keys], self._begin)

    async def _withdraw(self, keys: Sequence[tuple[str, str, int]]) -> Sequence[BaseException | None]:
        try:
            failpoint("ledger.withdraw.before")
            await self._database.write(lambda conn: tries.withdraw(conn, keys))
            failpoint("ledger.withdraw.after")
            return [None] * len(keys)
        except LedgerRefused as exc:
            return await _apart(exc, [[key] for key in keys], self._withdraw)

    async def _record(self, entries: Sequence[Entry]) -> Sequence[Recorded | BaseException]:
        try:
            failpoint("ledger.record.before")
            rows = sum(len(entry.resource.objects) for entry in entries if entry.resource is not None)
            recorded = await self._database.write(lambda conn: self._recorder.commit(conn, entries), rows)
            failpoint("ledger.record.after")
            return recorded  # noqa: TRY300 - an else would part it from its failpoints
        except LedgerRefused as exc:
            return await _apart(exc, [[entry] for entry in entries], self._record)
        except LedgerBusy as exc:
            # Somebody holds the row of one bundle: the others need not wait for it, nor fail with it.
            by_bid: dict[str, list[Entry]] = defaultdict(list)
            for entry in entries:
                by_bid[entry.bid].append(entry)
            outcomes = await _apart(exc, list(by_bid.values()), self._record)
            apart = [entry for group in by_bid.values() for entry in group]
            answered = {id(entry): outcome for entry, outcome in zip(apart, outcomes, strict=True)}
            return [answered[id(entry)] for entry in entries]


def _batcher(
    flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]], name: str
) -> Batcher[Item, Result]:
    return Batcher(flush, limit=_COMMIT_LIMIT, name=f"ledger-{name}")


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
