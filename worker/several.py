"""What becomes of a message that says several things. Called by worker/pipeline.py for every message; most say one.

Each is recorded by itself, under an id of its own, so whatever of it was done before is found again and skipped.
"""

from collections.abc import Awaitable, Callable, Sequence

from backends.errors import CircuitOpen, PermissionDenied, StorageError, Unavailable
from handlers.dispatch import Said
from handlers.errors import HandlerError
from worker.ledger.base import LedgerRefused
from worker.manifest_errors import ManifestError
from worker.queues.base import Ack, Disposition, Ignored


async def one_by_one(
    said: Sequence[Said], carry_out: Callable[[Said], Awaitable[Disposition]]
) -> Disposition:
    """Carry out one after the other; what fails does not keep the rest from being done.

    In the end raises, of several errors, the one that leaves most hope: the message comes back until nothing but what is refused
    is left. What says nothing about the one thing (a lost lease, a ledger that does not answer) ends it at once.
    """
    errors: list[Exception] = []
    ignored = True
    for one in said:
        try:
            ignored &= isinstance(await carry_out(one), Ignored)
        except (HandlerError, StorageError, ManifestError, LedgerRefused) as exc:
            errors.append(exc)
    if errors:
        raise min(errors, key=finality)
    return Ignored() if ignored else Ack()


def finality(error: Exception) -> int:
    """How little hope an error leaves; the least of several decides, so that everything gets its tries."""
    if isinstance(error, CircuitOpen):
        return -1
    if isinstance(error, (Unavailable, PermissionDenied)):
        return 0
    final = isinstance(error, (HandlerError, StorageError, ManifestError)) and not error.retryable
    return 2 if final else 1
