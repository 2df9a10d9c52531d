"""The only place that turns a failure into a fate: `Ack`, `Retry` or `Dead`.

Pure, but for the randomness it is given. Called by worker/settling.py with what worker/pipeline.py raised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from backends.errors import CircuitOpen, Conflict, IntegrityError, PermissionDenied, StorageError, Unavailable
from handlers.errors import REASONS, HandlerError, PayloadMissing, Refused
from worker.attempts import Attempt
from worker.ledger.base import LedgerError, LedgerRefused
from worker.manifest_errors import CannotArchive, ManifestError, TargetGone
from worker.queues.base import Dead, Disposition, HeldTooLong, Retry, WaitedTooLong

_UNFORESEEN: Final = "internal_error"


class CrashedTooOften(Exception):
    """The process died in every one of the last tries."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon. Seconds."""

    max_attempts: int = 5
    max_outage_attempts: int = 100
    """For a store that does not answer, refuses us, or is not configured at the moment: that says little about the message."""
    base: float = 1.0
    cap: float = 60.0

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Before the next attempt: exponential with equal jitter, so that a burst of failures comes back spread out.

        `attempt` counts from 1; `random` gives numbers in [0, 1). See
        https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
        """
        ceiling = min(self.cap, self.base * 2.0 ** min(max(attempt, 1) - 1, 60))
        return ceiling * (0.5 + random() / 2)


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that came to nothing."""

    error: Exception
    attempt: Attempt
    """It, as the ledger and a dead letter tell it."""
    counts: bool
    """It is held against the message."""

    @classmethod
    def of(cls, error: Exception, now: float) -> "Failure":
        """`now`: seconds since the epoch."""
        outage = isinstance(error, (Unavailable, PermissionDenied, TargetGone))
        attempt = Attempt(now, type(error).__name__, str(error), outage)
        silent = isinstance(error, LedgerError) and not isinstance(error, LedgerRefused)
        return cls(error, attempt, counts=not silent and not isinstance(error, (WaitedTooLong, CircuitOpen)))


def decide(
    failure: Failure,
    earlier: Sequence[Attempt],
    receives: int,
    policy: RetryPolicy,
    random: Callable[[], float],
) -> Disposition:
    """What becomes of a message whose work failed, after the `earlier` tries that were held against it.

    - what can never succeed is dead at once, with its reason
    - what may succeed later is retried, and dead after `policy.max_attempts`; after many more where a store is down.
      Outages and failures are counted apart
    - a ledger that does not answer says nothing about the message, nor does a turn that never came or a circuit breaker: that
      is retried without limit; a ledger that answers and refuses this entry does
    - what outlasts the longest time a queue lets it be held is handed over at once, and given up like any failure
    - an error nobody foresaw is treated like one that may pass, because losing a message to a bug is worse

    `receives` is how often it was received in all: the pauses grow with it.
    """
    error, log = failure.error, (*earlier, failure.attempt)
    if isinstance(error, Refused):
        return Dead(error.reason, error.detail, failure.attempt.error, log)
    if not failure.counts:
        # Before that a circuit breaker lets nothing through.
        least = error.retry_after if isinstance(error, CircuitOpen) else 0.0
        return Retry(max(least, policy.delay(receives, random)))
    final = isinstance(error, (HandlerError, StorageError, ManifestError)) and not error.retryable
    if final or isinstance(error, CrashedTooOften):
        return Dead(reason_for(error), str(error), failure.attempt.error, log)
    outage = failure.attempt.outage
    limit = policy.max_outage_attempts if outage else policy.max_attempts
    tries = sum(attempt.outage == outage for attempt in log)
    if tries >= limit:
        detail = f"{error} (attempt {tries} of {limit})"
        return Dead(reason_for(error), detail, failure.attempt.error, log)
    return Retry(0 if isinstance(error, HeldTooLong) else policy.delay(receives, random))


def reason_for(error: Exception) -> str:
    """The dead letter's short name for an error."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), _UNFORESEEN)


def counted_as(reason: str) -> str:
    """What a metric calls it: a transform that somebody else wrote may have reasons of its own, and may put anything into them."""
    return reason if reason in _KNOWN else "other"


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (PayloadMissing, "payload_missing"),
    (IntegrityError, "integrity_mismatch"),
    (Conflict, "conflict"),
    (StorageError, "storage_failed"),
    (TargetGone, "storage_failed"),
    (CannotArchive, "cannot_archive"),
    (LedgerRefused, "ledger_refused"),
    (CrashedTooOften, "crashed"),
    (HeldTooLong, "held_too_long"),
)
"""The first that fits."""

_KNOWN: Final = frozenset((*REASONS, *(reason for _, reason in _REASONS), _UNFORESEEN))
