"""The port of the ledger: what is stored, which bundles are complete, which completions are still to be announced.

One method is one transaction; no caller ever sees one begin. The contract, proven by tests/conformance/test_ledgers.py:

- `record` is idempotent: the same entry again changes nothing. When it returns, the entry survives a crash. A cancelled
  `record` may have taken effect; `find` on redelivery tells.
- The transaction that makes a bundle complete also writes its one outbox row, body and all. There is never a second one.
- Claims use the database's clock. A claim carries a generation; a stale owner's `mark_published`, `postpone`, `park` and
  `renew` change no row.
- Concurrent `record` and `find` calls share transactions (group commit).
- Where an audit trail is kept, what a method changes of bundles and completions and the rows about it are one transaction.
- Only `LedgerError` and its children come out, besides `CancelledError`.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Protocol

from worker.attempts import Attempt
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


class LedgerError(Exception):
    """The root. The message says what to do; database URLs in it carry no password.

    LedgerError
    ├── LedgerUnavailable   not reachable, busy, or out of room: later may be better
    │   └── LedgerBusy      somebody holds a row that is needed
    ├── LedgerRefused       the database answered and will not have this entry
    ├── SchemaMismatch      migrate first, or this release is too old for the database
    └── LedgerCorrupt       the database file is damaged
    """

    retryable = False


class LedgerUnavailable(LedgerError):
    """Not reachable, busy, or out of room: later may be better."""

    retryable = True


class LedgerBusy(LedgerUnavailable):
    """Somebody holds a row that is needed for longer than we wait; what needs other rows may go on."""


class LedgerRefused(LedgerError):
    """The database answered and will not have this entry; its neighbours are not concerned."""


class SchemaMismatch(LedgerError):
    """The database has another schema version than this release works with."""


class LedgerCorrupt(LedgerError):
    """The database file is damaged, or is no database."""


class Ledger(Protocol):
    """See the module's docstring for what holds everywhere."""

    async def find(self, message_id: str) -> str | None:
        """The fingerprint of the recorded message with that id, or None when it was never recorded."""
        ...

    async def record(self, entry: Entry) -> Recorded:
        """Commit what a message changed. The last resource or the closing also commits the bundle's outbox row."""
        ...

    async def contents(self, route: str, sha256: str) -> Mapping[str, StoredObject]:
        """Where a payload of that SHA-256 lies, by target: objects that entries of that route noted as `shared.stored`.

        Of several in one target the one recorded last; none whose bundle is retired. Whether it still lies there is not known.
        """
        ...

    async def transfers(self, message_id: str) -> Sequence[Transfer]:
        """Which targets have the message's payload and which do not; empty when it was never tried, or when all have it."""
        ...

    async def note_transfers(self, entry: Entry, transfers: Sequence[Transfer]) -> None:
        """Note what became of the payload in some targets. What one has, it has: a later failure does not change that."""
        ...

    async def settle(self, entry: Entry, transfers: Sequence[Transfer]) -> None:
        """For a message recorded before: targets that were without its payload have it now, or failed again."""
        ...

    async def forget_transfers(self, message_id: str) -> None:
        """All targets have the payload, and all that had to follow from it is done."""
        ...

    async def bundle_transfers(self, bid: str) -> Sequence[BundleTransfer]:
        """The transfers of a bundle whose payloads not all of their targets have yet."""
        ...

    async def missing(self, bid: str) -> Mapping[str, int]:
        """How many payloads of the bundle each target is still without, tried at least once; empty when none is."""
        ...

    async def owed(self, bid: str) -> Mapping[str, int]:
        """As `missing`, but only of recorded resources that are not late: what keeps a target's manifest from being whole."""
        ...

    async def attempts(self, queue: str, message_id: str) -> Sequence[Attempt]:
        """What is known of earlier tries at a queue's message, the first one first; one that never ended is `Crashed`."""
        ...

    async def begin(self, queue: str, message_id: str) -> int:
        """Note that a try at the message begins; its number. Until `failed` or `withdraw` it counts as one that crashed."""
        ...

    async def failed(self, queue: str, message_id: str, number: int | None, attempt: Attempt) -> None:
        """Note how the try of that number ended; with None, one that was not noted when it began. `attempt.at` is not used."""
        ...

    async def withdraw(self, queue: str, message_id: str, number: int) -> None:
        """Forget the try of that number: it succeeded, or the message was given back for no fault of its own."""
        ...

    async def claim(self, limit: int, lease: float, bid: str | None = None) -> Sequence[OutboxRow]:
        """Take up to `limit` due outbox rows for `lease` seconds, oldest first; with `bid` only that bundle's."""
        ...

    async def renew(self, rows: Sequence[OutboxRow], lease: float) -> int:
        """Hold claimed rows for `lease` more seconds; how many are still ours."""
        ...

    async def mark_published(self, rows: Sequence[OutboxRow]) -> int:
        """The notification is out: rows and bundles become `published`. How many were still ours."""
        ...

    async def postpone(self, row: OutboxRow, delay: float, error: str) -> bool:
        """Make the row due again in `delay` seconds. False when it is no longer ours."""
        ...

    async def park(self, row: OutboxRow, error: str) -> bool:
        """Set the row aside for a person; other rows flow on. False when it is no longer ours."""
        ...

    async def pending(self) -> int:
        """How many completions are still to be announced, parked ones not counted."""
        ...

    async def bundle(self, bid: str) -> BundleRecord | None:
        """One bundle."""
        ...

    async def bundle_at(self, target: str, key: str) -> BundleRecord | None:
        """The bundle whose manifest or archive has that very key in that target."""
        ...

    async def bundles(self, state: BundleState | None = None, limit: int = 100) -> Sequence[BundleRecord]:
        """The newest bundles, newest first."""
        ...

    def resources(self, bid: str) -> AsyncIterator[StoredResource]:
        """The bundle's resources in a stable order, read in pages."""
        ...

    def search(self, search: Search) -> AsyncIterator[Found]:
        """The resources that are looked for, the newest first, read in pages as far as they are asked for.

        What is recorded while it goes on may be missed, and nothing comes twice.
        """
        ...

    async def outbox(
        self,
        state: OutboxState | None = None,
        limit: int = 100,
        *,
        recipe_id: str | None = None,
        bid: str | None = None,
    ) -> Sequence[OutboxEntry]:
        """Completions, the oldest first; of one recipe, or of one bundle, where that is given."""
        ...

    async def retry_parked(self, event_ids: Sequence[str] | None = None) -> int:
        """Make parked completions due now, all of them with None. How many were parked."""
        ...

    async def replay(self, bid: str) -> OutboxState | None:
        """Announce a published bundle once more: same id, same bytes. What its completion was before; None: there is none.

        One that is pending or parked is left as it is.
        """
        ...

    async def staged(self, age: float, limit: int) -> Sequence[str]:
        """Bundles published at least `age` seconds ago whose staged payloads are not known to be deleted, nor needed.

        A payload that a target is still without is needed.
        """
        ...

    async def mark_unstaged(self, seen: Mapping[str, int]) -> None:
        """The staged payloads of that many resources are deleted, by bundle. One with more resources by now stays `staged`.

        A late resource makes a bundle `staged` again.
        """
        ...

    async def retire(self, age: float, limit: int, *, unstaged_only: bool = False) -> Retired:
        """Forget up to `limit` bundles published at least `age` seconds ago, whole. Nothing unpublished is ever deleted.

        With `unstaged_only` those stay whose staged payloads are not known to be deleted.
        """
        ...

    async def forget_attempts(self, age: float, limit: int) -> int:
        """Delete up to `limit` notes of tries and of unrecorded transfers older than `age` seconds; how many."""
        ...

    async def audit(self, records: Sequence[AuditRecord]) -> None:
        """Append to the audit trail, where one is kept. What the other methods do is in it without that."""
        ...

    async def audit_span(self) -> AuditSpan:
        """What there is of the audit trail. Waits for transactions that are writing to it; raises `LedgerBusy` after a while."""
        ...

    def audit_trail(self, query: AuditQuery) -> AsyncIterator[AuditRow]:
        """The rows that are asked for, by id, read in pages. Beyond `AuditSpan.last` some may still be missing."""
        ...

    async def trim_audit(self, age: float, limit: int) -> int:
        """Delete up to `limit` rows of the audit trail from its beginning that are at least `age` seconds old; how many.

        There is no other way to delete any, and none to change one.
        """
        ...

    async def probe(self) -> None:
        """Commit something of no meaning. Raises `LedgerUnavailable` while the database takes no writes."""
        ...

    async def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another process may have made a completion due, as far as the database tells. Runs until cancelled."""
        ...

    async def summary(self) -> Summary:
        """The ledger at a glance."""
        ...

    async def aclose(self) -> None:
        """Finish what is under way, release connections. Calling it twice is harmless."""
        ...
