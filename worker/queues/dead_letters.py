"""What a dead letter says about its death; every queue adapter adds the same attributes, so it is computed once."""

from collections.abc import Mapping
from datetime import UTC, datetime

from worker.queues.base import (
    DETAIL_ATTRIBUTE,
    REASON_ATTRIBUTE,
    RECEIVE_COUNT_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    TIME_ATTRIBUTE,
    Dead,
    Message,
)


def obituary(message: Message, dead: Dead, source: str) -> Mapping[str, str]:
    """The attributes `settle(Dead)` adds to the message's own. An empty detail is left out: SQS has no empty values."""
    detail = {DETAIL_ATTRIBUTE: dead.detail} if dead.detail else {}
    return {
        REASON_ATTRIBUTE: dead.reason,
        **detail,
        SOURCE_ATTRIBUTE: source,
        RECEIVE_COUNT_ATTRIBUTE: str(message.receive_count),
        TIME_ATTRIBUTE: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
