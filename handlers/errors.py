"""What can go wrong with a message, apart from the bytes it points at (those are `backends.errors`).

HandlerError
├── Refused          the message can never be carried out; `reason` is the dead letter's short name
└── PayloadMissing   staging has no such payload (yet)
"""

from typing import Final

REASONS: Final = frozenset(
    {
        "malformed",
        "unknown_type",
        "unknown_version",
        "staging_not_allowed",
        "no_route",
        "conflict",
        "payload_corrupt",
        "payload_limit",
        "payload_unsafe",
        "payload_unsupported",
    }
)
"""Every reason a message is refused with; the last four are of payloads, by transforms."""


class HandlerError(Exception):
    """The root. Messages are one line, for the person who reads the dead letter."""

    retryable = False


class Refused(HandlerError):
    """Nothing will make this message right; a person has to look at it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class PayloadMissing(HandlerError):
    """The payload is not in staging. Retryable: the message may have overtaken the object."""

    retryable = True
