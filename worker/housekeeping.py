"""What is removed in the background: staged payloads, old rows of the ledger, what killed writers left.

worker/service.py runs it beside the intake, `transload sweep` once. Any number of workers may do it at the same time.

Nothing of a bundle whose completion is not out is touched. Payloads are deleted first and marked after that, so a crash
between the two means that they are deleted again, which changes nothing. What fails is logged and tried in the next round.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import structlog

from backends.base import StorageBackend
from backends.errors import StorageError
from backends.failpoints import failpoint
from handlers.errors import Refused
from handlers.plan import StagingSource, find_source
from worker.ledger.base import Ledger, LedgerError
from worker.metrics import Metrics

_DELETES_AT_ONCE = 32
_PUT_OFF = 100_000
"""Bundles of which something could not be deleted, and that wait for the others; more are not remembered."""


@dataclass(frozen=True, slots=True)
class HousekeepingSettings:
    """Times are seconds. `batch`: rows a transaction; `pause`: between two of them, in which the ledger is others'."""

    interval: float = 600.0
    batch: int = 200
    pause: float = 0.1
    delete_after: float = 0.0
    keep_published: float | None = None
    keep_attempts: float = 2_592_000.0
    keep_audit: float | None = None
    sweep_after: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where killed writers may have left something. What lies beside `prefix` may be another application's."""

    name: str
    backend: StorageBackend
    prefix: str = ""


@dataclass(slots=True)
class Swept:
    """What one round removed, and how many things it could not do."""

    staged: int = 0
    bundles: int = 0
    attempts: int = 0
    leftovers: int = 0
    audit: int = 0
    failures: int = 0


class Housekeeping:
    """`run` in a worker, or `sweep_once`."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sources: Sequence[StagingSource],
        deletable: Mapping[str, StorageBackend],
        places: Sequence[Place],
        settings: HousekeepingSettings,
        random: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """`deletable` holds those of the `sources`, by name, whose payloads are deleted once their bundle is published."""
        self._ledger = ledger
        self._sources = sources
        self._deletable = deletable
        self._places = places
        self._settings = settings
        self._random = random
        self._metrics = metrics
        self._put_off: set[str] = set()
        self._foreign_told = False
        self._leftovers_due = 0.0
        self._log = structlog.get_logger("housekeeping")

    async def run(self) -> None:
        """A round every `interval` seconds, until cancelled. Raises only what nobody foresaw."""
        pause = self._settings.interval * self._random()
        while True:
            await asyncio.sleep(pause)
            await self._round(leftovers=time.monotonic() >= self._leftovers_due)
            pause = self._settings.interval * (0.5 + self._random())

    async def sweep_once(self) -> Swept:
        """One round, now and whole."""
        return await self._round(leftovers=True)

    async def _round(self, *, leftovers: bool) -> Swept:
        swept = Swept()
        await self._tried("staged payloads", self._unstage(swept), swept)
        await self._tried("published bundles", self._retire(swept), swept)
        await self._tried("notes of tries", self._forget_attempts(swept), swept)
        await self._tried("rows of the audit trail", self._trim_audit(swept), swept)
        if leftovers:
            await self._clear_all(swept)
        self._log.info("housekeeping done", **asdict(swept))
        return swept

    async def _tried(self, what: str, work: Awaitable[bool], swept: Swept) -> bool:
        """Whether the work came to its end. A step that fails does not keep the next ones from being done."""
        try:
            return await work
        except (LedgerError, StorageError) as exc:
            swept.failures += 1
            self._log.warning("not removed; tried again in the next round", what=what, error=str(exc))
            return False

    async def _unstage(self, swept: Swept) -> bool:
        """Delete the staged payloads of published bundles, the oldest first.

        A bundle that fails is put off until all others had their turn, in this round or a later one. A whole batch that
        fails ends the round: more of the same would only keep a store busy that does not answer.
        """
        while self._deletable:
            limit = self._settings.batch + len(self._put_off)
            bids = await self._ledger.staged(self._settings.delete_after, limit)
            batch = [bid for bid in bids if bid not in self._put_off][: self._settings.batch]
            if not batch:
                self._put_off.clear()
                break
            counts, failed = await self._delete_payloads(batch, swept)
            # Where a store refuses them all, there are soon as many as the ledger has bundles.
            self._put_off = failed if len(self._put_off) > _PUT_OFF else self._put_off | failed
            if len(failed) == self._settings.batch:
                break
            done = {bid: counts[bid] for bid in batch if bid not in failed}
            if done:
                await self._ledger.mark_unstaged(done)
            await asyncio.sleep(self._settings.pause)
        return True

    async def _delete_payloads(self, bids: Sequence[str], swept: Swept) -> tuple[Mapping[str, int], set[str]]:
        """How many resources each bundle has, and the bundles of which something could not be deleted."""
        counts = dict.fromkeys(bids, 0)
        failed: set[str] = set()
        group: list[tuple[str, str]] = []
        async for bid, location in self._locations(bids, failed):
            counts[bid] += 1
            group.append((bid, location))
            if len(group) == _DELETES_AT_ONCE:
                await self._delete_all(group, failed, swept)
                group.clear()
        await self._delete_all(group, failed, swept)
        swept.failures += len(failed)
        return counts, failed

    async def _locations(self, bids: Sequence[str], failed: set[str]) -> AsyncIterator[tuple[str, str]]:
        for bid in bids:
            try:
                locations = [resource.location async for resource in self._ledger.resources(bid)]
                # Asked after the listing: a late resource among these may be what a best-effort target still waits for.
                needed = await self._ledger.missing(bid)
            except LedgerError as exc:
                failed.add(bid)
                self._log.warning("staged payloads not known", bid=bid, error=str(exc))
                continue
            if needed:
                failed.add(bid)
                continue
            for location in locations:
                yield bid, location

    async def _delete_all(self, group: Sequence[tuple[str, str]], failed: set[str], swept: Swept) -> None:
        outcomes = await asyncio.gather(
            *(self._delete(location) for _, location in group), return_exceptions=True
        )
        for (bid, location), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, StorageError):
                if bid not in failed:
                    self._log.warning(
                        "staged payload not deleted", bid=bid, location=location, error=str(outcome)
                    )
                failed.add(bid)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self._count(swept, "staged", int(outcome))

    async def _delete(self, location: str) -> bool:
        """Delete one payload where that is wanted. False when it is gone already, or none of ours to delete."""
        try:
            source, key = find_source(self._sources, location)
        except Refused as exc:
            if not self._foreign_told:
                self._foreign_told = True
                self._log.warning("a payload of no configured source stays, as all like it", reason=str(exc))
            return False
        backend = self._deletable.get(source.name)
        if backend is None:
            return False
        failpoint("housekeeping.unstage.before")
        deleted = await backend.delete(key)
        failpoint("housekeeping.unstage.after")
        return deleted

    async def _retire(self, swept: Swept) -> bool:
        keep = self._settings.keep_published
        while keep is not None:
            # A bundle that is forgotten takes the knowledge of its staged payloads with it.
            retired = await self._ledger.retire(
                keep, self._settings.batch, unstaged_only=bool(self._deletable)
            )
            self._count(swept, "bundles", retired.bundles)
            if retired.bundles < self._settings.batch:
                break
            await asyncio.sleep(self._settings.pause)
        return True

    async def _forget_attempts(self, swept: Swept) -> bool:
        while True:
            forgotten = await self._ledger.forget_attempts(self._settings.keep_attempts, self._settings.batch)
            self._count(swept, "attempts", forgotten)
            if forgotten < self._settings.batch:
                return True
            await asyncio.sleep(self._settings.pause)

    async def _trim_audit(self, swept: Swept) -> bool:
        keep = self._settings.keep_audit
        while keep is not None:
            trimmed = await self._ledger.trim_audit(keep, self._settings.batch)
            self._count(swept, "audit", trimmed)
            if trimmed < self._settings.batch:
                break
            await asyncio.sleep(self._settings.pause)
        return True

    async def _clear_all(self, swept: Swept) -> None:
        """Everywhere, also when one place fails. Not again for a while: it may mean looking at every object there is."""
        cleared = [
            await self._tried(f"leftovers in {place.name}", self._clear(place, swept), swept)
            for place in self._places
        ]
        if all(cleared):
            self._leftovers_due = time.monotonic() + self._settings.sweep_after

    async def _clear(self, place: Place, swept: Swept) -> bool:
        prefix = f"{place.prefix}/" if place.prefix else ""
        self._count(swept, "leftovers", await place.backend.sweep(self._settings.sweep_after, prefix))
        return True

    def _count(self, swept: Swept, what: str, number: int) -> None:
        setattr(swept, what, getattr(swept, what) + number)
        self._metrics.housekeeping_removed.labels(what=what).inc(number)
