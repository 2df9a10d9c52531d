"""A process that can die between any two durable effects, inside this one: ledger, relay, targets and publisher on a fuse.

Used by test_ledger_machine.py. Every part is the real one, seen through a subclass or wrapper at its port that burns the fuse
before and after each effect. Once the fuse is burnt, nothing of the process does anything any more; what it had committed
stays, as after a SIGKILL.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection

from backends.base import Attributes, Receipt
from backends.errors import Unavailable
from backends.memory import MemoryBackend
from worker.budget import Budget
from worker.disposition import RetryPolicy
from worker.ledger.database import Database, open_database
from worker.ledger.sql import SqlLedger
from worker.metrics import Metrics
from worker.publishers.base import Notification, PublishError, PublishRefused
from worker.publishers.embedded import EmbeddedPublisher
from worker.relay import Relay, RelaySettings
from worker.sqlite import Database as SqliteFile

Result = TypeVar("Result")

HOUR = 3_600.0
"""Longer than any test: claims and pauses end only when the test says so."""


class Killed(Exception):
    """The process is dead."""


@dataclass(slots=True)
class Fuse:
    """Burns down with every effect. `length` None: it does not burn."""

    length: int | None = None
    commits: int = 0
    """Transactions of the ledger since it was lit."""

    def light(self, length: int | None) -> None:
        self.length, self.commits = length, 0

    def check(self) -> None:
        """Raises `Killed` when it is burnt."""
        if self.length == 0:
            raise Killed

    def burn(self) -> None:
        """One moment more. Raises `Killed` at its end, and ever after."""
        self.check()
        if self.length is not None:
            self.length -= 1


class DoomedDatabase:
    """See worker/ledger/database.py. Dies before a commit, which undoes the transaction, or after it."""

    def __init__(self, database: Database, fuse: Fuse) -> None:
        self._database = database
        self._fuse = fuse

    @property
    def url(self) -> URL:
        return self._database.url

    @property
    def dialect(self) -> str:
        return self._database.dialect

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        self._fuse.check()
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], Result], rows: int = 0) -> Result:
        def doomed(conn: Connection) -> Result:
            result = work(conn)
            self._fuse.burn()
            return result

        result = await self._database.write(doomed, rows)
        self._fuse.commits += 1
        self._fuse.burn()
        return result

    async def exclusively(self, work: Callable[[Connection], Result]) -> Result:
        return await self._database.exclusively(work)

    async def prepare(self) -> None:
        await self._database.prepare()

    async def check(self) -> None:
        await self._database.check()

    def notify(self, conn: Connection) -> None:
        self._database.notify(conn)

    async def watch(self, wake: Callable[[], None]) -> None:
        await self._database.watch(wake)

    async def aclose(self) -> None:
        await self._database.aclose()


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong without anybody dying, by bid."""

    unreachable: frozenset[str] = frozenset()
    """The publisher does not answer."""
    refused: frozenset[str] = frozenset()
    """The publisher will never take it."""
    unwritable: frozenset[str] = frozenset()
    """One of the targets takes no manifest."""


class DoomedTarget(MemoryBackend):
    """One process's view of a store that several share."""

    def __init__(self, store: MemoryBackend, fuse: Fuse) -> None:
        super().__init__(store.location)
        self._objects = store._objects
        self._fuse = fuse
        self.unwritable: frozenset[str] = frozenset()

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        self._fuse.burn()
        if any(f"/{bid}/" in key for bid in self.unwritable):
            raise Unavailable(f"{key}: not now")
        receipt = await super().write(key, chunks, attributes)
        self._fuse.burn()
        return receipt


class DoomedPublisher(EmbeddedPublisher):
    """One process's view of the completions' file. `copies` is every notification that anybody sent, in order."""

    def __init__(self, path: Path, database: SqliteFile, fuse: Fuse, copies: list[Notification]) -> None:
        super().__init__(path, database)
        self._fuse = fuse
        self._copies = copies
        self.faults = Faults()

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        self._fuse.burn()
        errors = {n.event_id: error for n in notifications if (error := self._error(n)) is not None}
        good = [n for n in notifications if n.event_id not in errors]
        self._copies += good
        outcomes = dict(zip((n.event_id for n in good), await super().publish(good), strict=True))
        self._fuse.burn()
        return [errors.get(n.event_id) or outcomes[n.event_id] for n in notifications]

    def _error(self, notification: Notification) -> PublishError | None:
        bid = notification.attributes["bundle_id"]
        if bid in self.faults.refused:
            return PublishRefused("never")
        return PublishError("no answer") if bid in self.faults.unreachable else None


@dataclass(slots=True)
class Process:
    """Ledger and relay of one process."""

    fuse: Fuse
    ledger: SqlLedger
    relay: Relay
    publisher: DoomedPublisher
    weak: DoomedTarget

    def suffer(self, faults: Faults) -> None:
        """From now on."""
        self.publisher.faults = faults
        self.weak.unwritable = faults.unwritable


@dataclass(slots=True)
class Shared:
    """What outlives processes: the database, the stores, the completions, and what was sent."""

    url: str
    completions: Path
    log: SqliteFile
    stores: Mapping[str, MemoryBackend]
    metrics: Metrics = field(default_factory=Metrics)
    copies: list[Notification] = field(default_factory=list)

    def start(self) -> Process:
        """A new process. The second of the stores is its weak one."""
        fuse = Fuse()
        ledger = SqlLedger(DoomedDatabase(open_database(self.url), fuse))
        publisher = DoomedPublisher(self.completions, self.log, fuse, self.copies)
        targets = {name: DoomedTarget(store, fuse) for name, store in self.stores.items()}
        relay = Relay(
            ledger=ledger,
            publisher=publisher,
            targets=targets,
            settings=RelaySettings(lease=HOUR),
            retry=RetryPolicy(base=HOUR, cap=HOUR),
            random=lambda: 0.0,
            metrics=self.metrics,
            budget=Budget(64 << 20),
        )
        return Process(fuse, ledger, relay, publisher, list(targets.values())[-1])
