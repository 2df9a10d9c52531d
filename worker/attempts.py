"""One try at a message, as the ledger notes it and a dead letter tells it. Ports of queues and of the ledger use it."""

from dataclasses import dataclass

CRASHED = "Crashed"
"""The `error` of a try that began and never ended: its process died, or was cut off from the ledger."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a message that came to nothing."""

    at: float
    """Seconds since the epoch, by the ledger's clock."""
    error: str
    """The class of the error, or `CRASHED`."""
    detail: str
    outage: bool = False
    """A store did not answer or refused us, which says little about the message."""
