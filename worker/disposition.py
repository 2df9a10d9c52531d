"""The only place that turns a failure into a fate: `Ack`, `Retry` or `Dead`.

Pure, but for the randomness it is given. Called by worker/service.py with what worker/pipeline.py raised.
"""

from collections.abc import Callable
from dataclasses import dataclass

from backends.errors import Conflict, IntegrityError, PermissionDenied, StorageError, Unavailable
from handlers.errors import HandlerError, PayloadMissing, Refused
from worker.ledger.base import LedgerError, LedgerRefused
from worker.queues.base import Dead, Disposition, Retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon. Seconds."""

    max_attempts: int = 5
    max_outage_attempts: int = 100
    """For a store that does not answer or refuses us: that says little about the message."""
    base: float = 1.0
    cap: float = 60.0

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Before the next attempt: exponential with equal jitter, so that a burst of failures comes back spread out.

        `attempt` counts from 1; `random` gives numbers in [0, 1). See
        https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
        """
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt - 1, 60))
        return ceiling * (0.5 + random() / 2)


def decide(error: Exception, attempt: int, policy: RetryPolicy, random: Callable[[], float]) -> Disposition:
    """What becomes of a delivery whose work raised `error` at its `attempt`-th receive.

    - what can never succeed is dead at once, with its reason
    - what may succeed later is retried, and dead after `policy.max_attempts`; after many more where a store is down
    - a ledger that does not answer says nothing about the message: that is retried without limit; one that answers and
      refuses this entry does
    - an error nobody foresaw is treated like one that may pass, because losing a message to a bug is worse
    """
    if isinstance(error, Refused):
        return Dead(error.reason, error.detail)
    if isinstance(error, LedgerError) and not isinstance(error, LedgerRefused):
        return Retry(policy.delay(attempt, random))
    if isinstance(error, (HandlerError, StorageError)) and not error.retryable:
        return Dead(reason_for(error), str(error))
    outage = isinstance(error, (Unavailable, PermissionDenied))
    limit = policy.max_outage_attempts if outage else policy.max_attempts
    if attempt >= limit:
        return Dead(reason_for(error), f"{error} (attempt {attempt} of {limit})")
    return Retry(policy.delay(attempt, random))


def reason_for(error: Exception) -> str:
    """The dead letter's short name for an error."""
    if isinstance(error, PayloadMissing):
        return "payload_missing"
    if isinstance(error, IntegrityError):
        return "integrity_mismatch"
    if isinstance(error, Conflict):
        return "conflict"
    if isinstance(error, StorageError):
        return "storage_failed"
    if isinstance(error, LedgerRefused):
        return "ledger_refused"
    return "internal_error"
