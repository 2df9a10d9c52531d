"""Announces complete bundles: claim -> finalize -> publish -> mark.

Run by worker/service.py beside the intake. Recovery needs nothing of its own: whatever a dead relay left is due again when
its claim runs out. A crash between publish and mark publishes again, with the same id and the same bytes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from backends.base import StorageBackend
from backends.errors import StorageError
from backends.failpoints import failpoint
from handlers.plan import BundleTarget
from worker import notification
from worker.budget import Budget
from worker.disposition import RetryPolicy
from worker.ledger.base import Ledger, LedgerError
from worker.ledger.values import BundleRecord, OutboxRow
from worker.manifest import Manifests
from worker.manifest_errors import ManifestError
from worker.metrics import Metrics
from worker.publishers.base import Notification, Outlet
from worker.tracing import UNTRACED, Tracing
from worker.uncaught import traceback_of

_GATHERING = 0.25
"""Seconds in which finished manifests are gathered for one publication."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Times are seconds."""

    batch: int = 50
    lease: float = 15.0
    poll_interval: float = 1.0


class Relay:
    """The outbox's only reader. Any number of relays may run; claims keep them apart."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Outlet,
        targets: Mapping[str, StorageBackend],
        settings: RelaySettings,
        retry: RetryPolicy,
        random: Callable[[], float],
        metrics: Metrics,
        budget: Budget,
        tracing: Tracing = UNTRACED,
    ) -> None:
        """`retry.max_attempts` does not apply: a completion is never given up, only parked when it is refused.

        `budget` is the memory that archives share with all transfers of the process.
        """
        self._ledger = ledger
        self._publisher = publisher
        self._manifests = Manifests(ledger, targets, budget)
        self._settings = settings
        self._retry = retry
        self._random = random
        self._metrics = metrics
        self._tracing = tracing
        self._due = asyncio.Event()
        self._stopping = False
        self._in_hand = 0
        self._log = structlog.get_logger("relay")

    @property
    def in_hand(self) -> int:
        """Completions that this relay has claimed and neither announced nor put back."""
        return self._in_hand

    def wake(self) -> None:
        """A bundle was completed in this process: do not wait for the next poll."""
        self._due.set()

    def stop(self) -> None:
        """End `run` after the rounds under way."""
        self._stopping = True
        self._due.set()

    async def run(self) -> None:
        """Announce until told to stop. A ledger that does not answer is asked again after a pause.

        A round may wait long for an archive; meanwhile others are begun, as long as no more than a batch is in hand.
        """
        rounds: set[asyncio.Task[None]] = set()
        try:
            while not self._stopping:
                self._due.clear()
                rows = await self._claimed()
                if rows:
                    newest = asyncio.create_task(self._round(rows), name="relay-round")
                    rounds.add(newest)
                    # What becomes due meanwhile is announced together.
                    await asyncio.wait([newest], timeout=self._settings.poll_interval)
                elif not self._stopping:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._settings.poll_interval):
                            await self._due.wait()
                rounds = self._going_on(rounds)
            while rounds:
                await asyncio.wait(rounds, return_when=asyncio.FIRST_COMPLETED)
                rounds = self._going_on(rounds)
        finally:
            for each in rounds:
                each.cancel()
            if rounds:
                await asyncio.wait(rounds)

    async def announce_due(self, bid: str | None = None) -> int:
        """One round: claim what is due and announce it, with `bid` only that bundle. How many rows were claimed."""
        rows = await self._ledger.claim(self._settings.batch, self._settings.lease, bid)
        if rows:
            await self._round(rows)
        return len(rows)

    async def _claimed(self) -> Sequence[OutboxRow]:
        room = self._settings.batch - self._in_hand
        if room <= 0:
            return ()
        try:
            return await self._ledger.claim(room, self._settings.lease)
        except LedgerError as exc:
            self._log.warning("outbox not readable", error=str(exc))
            return ()

    def _going_on(self, rounds: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Those that are not over. Raises what nobody foresaw in the others."""
        over = {each for each in rounds if each.done()}
        for each in over:
            try:
                each.result()
            except LedgerError as exc:
                self._log.warning("outbox not readable", error=str(exc))
        return rounds - over

    async def _round(self, rows: Sequence[OutboxRow]) -> None:
        async with self._held(rows):
            await self._announce(rows)

    async def _announce(self, rows: Sequence[OutboxRow]) -> None:
        finalizing = {asyncio.create_task(self._finalized(row)): row for row in rows}
        waiting = set(finalizing)
        left = len(rows)
        self._in_hand += left
        try:
            while waiting:
                # Together where they are quick; nobody waits long for a neighbour's long manifest.
                done, waiting = await asyncio.wait(waiting, timeout=_GATHERING)
                # In the order they were completed.
                finished = [(row, task.result()) for task, row in finalizing.items() if task in done]
                await self._publish([(row, sendable) for row, sendable in finished if sendable is not None])
                left -= len(done)
                self._in_hand -= len(done)
        finally:
            self._in_hand -= left
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)

    async def _publish(self, ready: Sequence[tuple[OutboxRow, Notification]]) -> None:
        if not ready:
            return
        notifications = [sendable for _, sendable in ready]
        with self._tracing.publishing(notifications) as answered_with:
            failpoint("relay.publish.before")
            outcomes = await self._publisher.publish(notifications)
            failpoint("relay.publish.after")
            answered_with(outcomes)
        answered = [(row, error) for (row, _), error in zip(ready, outcomes, strict=True)]
        # First what is out: a row that is not marked is sent again.
        await self._mark([row for row, error in answered if error is None])
        for row, error in answered:
            if error is not None:
                await (self._later(row, error) if error.retryable else self._park(row, error))

    async def _mark(self, rows: Sequence[OutboxRow]) -> None:
        marked = await self._ledger.mark_published(rows)
        self._metrics.outbox_publish.labels(result="ok").inc(marked)
        for row in rows:
            self._metrics.outbox_delivery_lag_seconds.observe(max(0.0, time.time() - row.completed_at / 1000))
            self._log.info(
                "bundle published",
                bid=row.bid,
                recipe_id=row.recipe_id,
                event_id=row.event_id,
                **notification.trace_ids(row.body),
            )

    async def _finalized(self, row: OutboxRow) -> Notification | None:
        """Write archive and manifest to every target; None when that has to wait. Whatever is wrong concerns this row only."""
        try:
            sendable = _notification(row)
        except (ValueError, OverflowError) as exc:
            await self._park(row, exc)
            return None
        with self._tracing.finalizing(row):
            return sendable if await self._has_manifests(row) else None

    async def _has_manifests(self, row: OutboxRow) -> bool:
        try:
            await self._finalize(row)
        except (StorageError, LedgerError, ManifestError) as exc:
            await (self._later(row, exc) if exc.retryable else self._park(row, exc))
        except Exception as exc:  # noqa: BLE001 - a fault nobody foresaw must not take the neighbours along
            self._log.error("manifest failed", bid=row.bid, exception=traceback_of(exc))
            await self._later(row, exc)
        else:
            return True
        return False

    async def _finalize(self, row: OutboxRow) -> None:
        bundle = await self._ledger.bundle(row.bid)
        if bundle is None:
            raise LedgerError(f"bundle {row.bid} is in the outbox but not in the ledger")
        if row.attempts == 1:
            self._metrics.bundle_completion_seconds.observe((row.completed_at - bundle.created_at) / 1000)
        owed = await self._owed(bundle)
        for place in bundle.targets:
            if place.required:
                await self._manifests.write(bundle, place)
            elif place.target not in owed:
                await self._write_best_effort(bundle, place)

    async def _owed(self, bundle: BundleRecord) -> Mapping[str, int]:
        """The targets whose manifest has to wait for payloads they are still without."""
        if all(place.required for place in bundle.targets):
            return {}
        return await self._ledger.owed(bundle.bid)

    async def _write_best_effort(self, bundle: BundleRecord, place: BundleTarget) -> None:
        try:
            await self._manifests.write(bundle, place)
        except LedgerError:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with it, nobody waits for a best-effort target
            self._log.warning(
                "no manifest in a best-effort target; `transload replay` writes it",
                bid=bundle.bid,
                target=place.target,
                error=str(exc),
            )

    async def _later(self, row: OutboxRow, error: Exception) -> None:
        delay = self._retry.delay(row.attempts, self._random)
        self._metrics.outbox_publish.labels(result="error").inc()
        self._tracing.failed(error)
        self._log.warning("completion postponed", bid=row.bid, seconds=round(delay, 1), error=str(error))
        await self._noted(self._ledger.postpone(row, delay, str(error)))

    async def _park(self, row: OutboxRow, error: Exception) -> None:
        self._metrics.outbox_publish.labels(result="parked").inc()
        self._tracing.failed(error)
        self._log.error("completion parked: it waits for you", bid=row.bid, error=str(error))
        await self._noted(self._ledger.park(row, str(error)))

    async def _noted(self, change: Awaitable[bool]) -> None:
        """A change that fails leaves the row to the end of its claim."""
        try:
            await change
        except LedgerError as exc:
            self._log.warning("outbox not changed; the row comes back when its claim ends", error=str(exc))

    @asynccontextmanager
    async def _held(self, rows: Sequence[OutboxRow]) -> AsyncIterator[None]:
        """Renew the claim while a long manifest is written."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._settings.lease / 3)
                try:
                    await self._ledger.renew(rows, self._settings.lease)
                except LedgerError as exc:
                    # The claim may run out: then another relay announces too, with the same bytes.
                    self._log.warning("outbox claim not renewed", error=str(exc))

        renewal = asyncio.create_task(renew(), name="relay-renew")
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])


def _notification(row: OutboxRow) -> Notification:
    return Notification(
        event_id=row.event_id,
        group=row.recipe_id,
        body=row.body,
        attributes={
            **notification.attributes(bid=row.bid, recipe_id=row.recipe_id, completed_at=row.completed_at),
            **notification.trace(row.body),
        },
    )
