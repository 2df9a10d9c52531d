"""What SQS answered, as the port has it: errors, and the outcome of each entry of a batch. Used by worker/queues/sqs.py."""

from collections.abc import Mapping
from typing import Any

from worker.aws import Trouble, classify, denial_of, short_code
from worker.queues.base import QueueDenied, QueueError, QueueMissing, QueueUnavailable

_STALE = frozenset({"InvalidParameterValue", "ReceiptHandleIsInvalid", "MessageNotInflight"})


def translate(exc: BaseException, url: str) -> QueueError:
    """What one of `SDK_ERRORS` means."""
    trouble = classify(exc)
    message = f"{url}: {trouble.value} ({exc})"
    if trouble is Trouble.MISSING:
        return QueueMissing(f"{message}; create it, or correct queue_url and region")
    if trouble is Trouble.DENIED:
        return QueueDenied(f"{message}; {denial_of(exc, url)}")
    if trouble is Trouble.UNAVAILABLE:
        return QueueUnavailable(message)
    return QueueError(message)


def no_queue(url: str) -> QueueUnavailable:
    """Whoever answered knows nothing of queues."""
    return QueueUnavailable(f"{url}: the answer is not that of a queue; correct endpoint_url")


def successful(reply: Mapping[str, Any]) -> set[str | None]:
    """The ids of the entries that the reply calls successful."""
    return {entry.get("Id") for entry in reply.get("Successful", ())}


def outcomes(reply: Mapping[str, Any], count: int, queue: str) -> list[bool | BaseException]:
    """What became of entries `0` to `count - 1`: done, stale handle (False), or why not."""
    done = successful(reply)
    failures = {failure.get("Id"): failure for failure in reply.get("Failed", ())}
    found: list[bool | BaseException] = []
    for id_ in map(str, range(count)):
        if one := failures.get(id_):
            found.append(False if short_code(one) in _STALE else failed(one, queue))
        else:
            found.append(True if id_ in done else unmentioned(1, queue))
    return found


def failed(failure: Mapping[str, Any], queue: str) -> QueueError:
    """What one of a reply's `Failed` means."""
    kind = QueueError if failure.get("SenderFault") else QueueUnavailable
    return kind(f"queue {queue!r}: {failure.get('Code')}: {failure.get('Message', '')}")


def unmentioned(count: int, queue: str) -> QueueUnavailable:
    """A reply that leaves out what was asked: a proxy, or a wrong endpoint, may answer 200 to anything."""
    return QueueUnavailable(
        f"queue {queue!r}: the reply does not mention {count} of what was asked; look at endpoint_url"
    )
