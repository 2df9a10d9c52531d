"""One delivery, from its try to its one answer. worker/service.py has each handled in a task of its own.

worker/pipeline.py is the try; what it raises, worker/disposition.py turns into a fate. Here that is carried out and counted.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from backends.errors import IntegrityError, StorageError
from handlers.errors import HandlerError
from worker.attempt_log import AttemptLog
from worker.attempts import Attempt
from worker.delivery import Delivery, LeaseLost
from worker.disposition import Failure, RetryPolicy, counted_as, decide
from worker.ledger.base import LedgerError
from worker.manifest_errors import ManifestError
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.queues.base import Ack, Dead, Disposition, Message, QueueError, Retry
from worker.redaction import redact
from worker.secret_values import Hide
from worker.tracing import UNTRACED, Tracing
from worker.turns import PutOff, Turns
from worker.uncaught import traceback_of


@dataclass(slots=True)
class Progress:
    """What this process has done so far, for a progress display."""

    acked: int = 0
    retried: int = 0
    dead: int = 0
    settled_at: float = 0.0
    """When the last message was settled, by the monotonic clock."""


class Settler:
    """Works on the deliveries of one queue and settles them."""

    def __init__(
        self,
        *,
        queue: str,
        pipeline: Pipeline,
        attempts: AttemptLog,
        turns: Turns,
        retry: RetryPolicy,
        random: Callable[[], float],
        metrics: Metrics,
        on_silence: Callable[[str], None],
        tracing: Tracing = UNTRACED,
        hide: Hide = redact,
    ) -> None:
        """`queue` is its name. `on_silence` is told why when the ledger did not answer; `hide` cleans what dead letters tell."""
        self._queue = queue
        self._pipeline = pipeline
        self._attempts = attempts
        self._turns = turns
        self._retry = retry
        self._random = random
        self._metrics = metrics
        self._on_silence = on_silence
        self._tracing = tracing
        self._hide = hide
        # Whoever looks after a worker finds its messages under one name.
        self._log = structlog.get_logger("service")
        self.progress = Progress()

    async def handle(self, delivery: Delivery) -> None:
        """Work on one delivery and settle it. Its log lines carry the message's id, and the bid once it is known."""
        structlog.contextvars.bind_contextvars(message=delivery.message.id)
        with self._tracing.processing(delivery.message):
            try:
                async with self._turns.turn(delivery):
                    await self._work_on(delivery)
            except PutOff as exc:
                await self._put_off(delivery, exc.delay)
            except LeaseLost as exc:
                self._tracing.failed(exc)
                self._log.warning("given up", error=str(exc))
            except asyncio.CancelledError:
                if not delivery.settling:
                    with suppress(QueueError):
                        await delivery.settle(Retry(0))
                raise
            finally:
                # Whatever happened: a message nobody works on must not keep its lease.
                delivery.abandon()

    async def _work_on(self, delivery: Delivery) -> None:
        started = time.monotonic()
        disposition = await self._disposition(delivery)
        outcome = type(disposition).__name__.lower()
        self._tracing.note(route=delivery.route, outcome=outcome)
        self._metrics.message_process_seconds.labels(route=delivery.route, outcome=outcome).observe(
            time.monotonic() - started
        )
        try:
            settled = await _settled(delivery, _shown_to_all(disposition, self._hide))
        except QueueError as exc:
            self._log.warning("not settled; the message comes back", outcome=outcome, error=str(exc))
            return
        if settled:
            self._count(disposition, outcome)
        else:
            self._log.warning("the lease had passed; the message comes back", outcome=outcome)

    async def _put_off(self, delivery: Delivery, delay: float) -> None:
        self._tracing.note(route=delivery.route, outcome="put off")
        self._metrics.messages_put_off.labels(route=delivery.route).inc()
        try:
            await _settled(delivery, Retry(delay, counted=False))
        except QueueError as exc:
            self._log.warning("not given back; the message comes back", error=str(exc))

    async def _disposition(self, delivery: Delivery) -> Disposition:
        message = delivery.message
        earlier: Sequence[Attempt] = ()
        try:
            earlier = await self._attempts.earlier(message)
            # It may have been the answer that never came to be given.
            if self._attempts.is_given_up(earlier) and (known := await self._pipeline.known(delivery.body)):
                return known
            async with self._attempts.trying(delivery, earlier):
                return await self._pipeline.process(delivery)
        except LeaseLost:
            raise
        except Exception as exc:  # noqa: BLE001 - decide() is where every failure ends
            return self._fate(message, Failure.of(exc, time.time()), earlier)

    def _fate(self, message: Message, failure: Failure, earlier: Sequence[Attempt]) -> Disposition:
        error = failure.error
        self._tracing.failed(error)
        if isinstance(error, IntegrityError):
            self._metrics.integrity_failures.inc()
        if isinstance(error, LedgerError) and not failure.counts:
            self._on_silence(str(error))
        disposition = decide(failure, earlier, message.receive_count, self._retry, self._random)
        self._log.warning(
            "message failed",
            attempt=len(earlier) + 1,
            error=str(error),
            fate=_shown(disposition),
            **({"exception": traceback_of(error)} if _unforeseen(error) else {}),
        )
        return disposition

    def _count(self, disposition: Disposition, outcome: str) -> None:
        self._metrics.messages_settled.labels(queue=self._queue, outcome=outcome).inc()
        self._metrics.last_progress_timestamp.set_to_current_time()
        self.progress.settled_at = time.monotonic()
        if isinstance(disposition, Ack):
            self.progress.acked += 1
        elif isinstance(disposition, Dead):
            reason = counted_as(disposition.reason)
            self._metrics.dead_letters.labels(queue=self._queue, reason=reason).inc()
            self.progress.dead += 1
        else:
            self.progress.retried += 1


async def _settled(delivery: Delivery, disposition: Disposition) -> bool:
    """Settle, and do not let a drain break it off: half a settlement and a second one are two answers."""
    settling = asyncio.ensure_future(delivery.settle(disposition))
    try:
        return await asyncio.shield(settling)
    except asyncio.CancelledError:
        await asyncio.wait({settling})
        raise
    finally:
        settling.cancel()


def _shown_to_all(disposition: Disposition, hide: Hide) -> Disposition:
    """A dead letter leaves the house, and no secret goes with it."""
    if not isinstance(disposition, Dead):
        return disposition
    log = tuple(replace(attempt, detail=hide(attempt.detail)) for attempt in disposition.attempts)
    return replace(disposition, detail=hide(disposition.detail), attempts=log)


def _shown(disposition: Disposition) -> str:
    """For a log line, which needs no attempt log."""
    return f"dead: {disposition.reason}" if isinstance(disposition, Dead) else str(disposition)


def _unforeseen(error: Exception) -> bool:
    """Whether the error needs a traceback: it is none of the kinds the rooms promise to raise."""
    return not isinstance(error, (HandlerError, StorageError, ManifestError, LedgerError, QueueError))
