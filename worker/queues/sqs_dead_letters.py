"""Where the dead letters of an SQS queue go, and what such a letter carries.

Called by worker/queues/sqs.py; worker/doctor_aws.py asks it where they go.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import structlog

from worker.aws import (
    ATTRIBUTES,
    SDK_ERRORS,
    SMALLEST_LIMIT,
    Trouble,
    classify,
    denial_of,
    queue_facts,
    readable,
    size,
)
from worker.queues.base import (
    ATTEMPTS_ATTRIBUTE,
    DETAIL_ATTRIBUTE,
    OBITUARY,
    REASON_ATTRIBUTE,
    REDRIVES_ATTRIBUTE,
    Message,
    QueueDenied,
    QueueMissing,
)

DETAIL_LIMIT = 1000
"""Characters of the detail, so that a long explanation leaves room for what comes after it."""
ENOUGH_RECEIVES = 100
"""A RedrivePolicy that acts before so many receives may bury what the worker has not given up."""

_STAYS = ("traceparent", REDRIVES_ATTRIBUTE)


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A queue's URL, and how many bytes it takes in one message."""

    url: str
    limit: int


async def locate(
    client: Any, queue_url: str, configured_url: str | None, facts: Mapping[str, str]
) -> DeadLetters:
    """Find the dead-letter queue, see that it is there, and warn of settings that lose letters or their reasons.

    `facts` are the attributes of the queue itself. Raises `QueueMissing`, `QueueDenied`, or one of `SDK_ERRORS`.
    """
    policy = json.loads(facts.get("RedrivePolicy", "{}"))
    try:
        url = configured_url or await _target(client, policy)
        if url is None:
            raise QueueMissing(
                f"{queue_url} has no dead-letter queue; give it a RedrivePolicy, or set dead_letter_queue_url"
            )
        there = await _look(client, url, needed=url == configured_url)
    except SDK_ERRORS as exc:
        if classify(exc) is Trouble.MISSING:
            raise QueueMissing(
                f"the dead-letter queue of {queue_url} does not exist: {exc}; create it"
            ) from exc
        if classify(exc) is Trouble.DENIED:
            named = configured_url or policy.get("deadLetterTargetArn", queue_url)
            raise QueueDenied(
                f"the dead-letter queue of {queue_url}: access is denied ({exc}); {denial_of(exc, named)}"
            ) from exc
        raise
    _warn(queue_url, url, facts, there, policy)
    return DeadLetters(url, int((there or facts).get("MaximumMessageSize", SMALLEST_LIMIT)))


def to_spare(facts: Mapping[str, str]) -> float:
    """Receives of a message that need not come to anything: its queue's RedrivePolicy leaves `ENOUGH_RECEIVES` for others."""
    policy = json.loads(facts.get("RedrivePolicy", "{}"))
    return int(policy["maxReceiveCount"]) - ENOUGH_RECEIVES if "maxReceiveCount" in policy else math.inf


async def _target(client: Any, policy: Mapping[str, Any]) -> str | None:
    if "deadLetterTargetArn" not in policy:
        return None
    *_, account, name = policy["deadLetterTargetArn"].split(":")
    reply = await client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
    return cast("str", reply["QueueUrl"])


async def _look(client: Any, url: str, *, needed: bool) -> Mapping[str, str]:
    """The queue's attributes; none where a policy names it that lets us write letters and look at nothing."""
    try:
        return await queue_facts(client, url)
    except SDK_ERRORS as exc:
        if needed or classify(exc) is not Trouble.DENIED:
            raise
        structlog.get_logger("sqs").warning(
            "the dead letters cannot be counted, nor whether they are kept for long enough",
            dead_letter_queue=url,
            error=denial_of(exc, url),
        )
        return {}


def _warn(
    queue_url: str, url: str, facts: Mapping[str, str], there: Mapping[str, str], policy: Mapping[str, Any]
) -> None:
    log = structlog.get_logger("sqs")
    kept, letters = (int(each.get("MessageRetentionPeriod", 0)) for each in (facts, there))
    # A message that SQS itself moves keeps its age:
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    if 0 < letters <= kept:
        log.warning(
            "dead letters may expire before anyone has looked at them; give them a longer MessageRetentionPeriod than "
            "the queue has",
            queue=queue_url,
            seconds=kept,
            dead_letter_queue=url,
            dead_letter_seconds=letters,
        )
    carried, taken = (int(each.get("MaximumMessageSize", 0)) for each in (facts, there))
    if 0 < taken < carried:
        log.warning(
            "the largest messages cannot be buried, and would come back until they expire; give the dead-letter queue the "
            "queue's MaximumMessageSize",
            queue=queue_url,
            bytes=carried,
            dead_letter_queue=url,
            dead_letter_bytes=taken,
        )
    if 0 < int(policy.get("maxReceiveCount", 0)) < ENOUGH_RECEIVES:
        log.warning(
            "SQS would bury messages without a reason; raise maxReceiveCount in the queue's RedrivePolicy",
            queue=queue_url,
            max_receive_count=int(policy["maxReceiveCount"]),
            at_least=ENOUGH_RECEIVES,
        )


def letter_attributes(
    body: bytes, original: Mapping[str, str], story: Mapping[str, str], limit: int
) -> Mapping[str, str]:
    """What a letter of at most `limit` bytes and ten attributes carries of the message's own attributes and of its story.

    The reason comes first, then the message's own ones, because a redrive sends them again, then the rest of `OBITUARY`.
    Of ten own ones the last by name gives way, but neither `traceparent` nor the count of redrives. A body that fills the
    letter alone leaves room for nothing, and is buried all the same.
    """
    own = sorted(
        (name not in _STAYS, name) for name, value in original.items() if name not in OBITUARY and value
    )
    first, *others = ((name, readable(story[name])) for name in OBITUARY if name in story)
    wanted = [first, *((name, original[name]) for _, name in own), *others]
    kept: dict[str, str] = {}
    room = limit - len(body)
    for name, value in wanted:
        if len(kept) == ATTRIBUTES:
            break
        fitting = _shortened(name, value, room - size(b"", {name: ""}))
        if fitting:
            kept[name] = fitting
            room -= size(b"", {name: fitting})
    return kept


def tell_reason(
    queue: str, message: Message, story: Mapping[str, str], kept: Mapping[str, str], letter: str
) -> None:
    """Log why the letter of that id was written, where its body left no room to say so in it."""
    if REASON_ATTRIBUTE not in kept:
        structlog.get_logger("sqs").warning(
            "a dead letter is without its reason, for its body fills it",
            queue=queue,
            message=message.id,
            letter=letter,
            reason=story[REASON_ATTRIBUTE],
        )


def _shortened(name: str, value: str, room: int) -> str:
    """`value` in at most `room` bytes; empty when it cannot be shortened so far."""
    if name == DETAIL_ATTRIBUTE:
        return value[:DETAIL_LIMIT].encode()[: max(room, 0)].decode(errors="ignore")
    if name == ATTEMPTS_ATTRIBUTE and len(value.encode()) > room:
        log = json.loads(value)
        # The first try and the latest tell most.
        while len(log) > 1 and len(value.encode()) > room:
            del log[1 if len(log) > 2 else 0]
            value = json.dumps(log, ensure_ascii=False)
    return value if len(value.encode()) <= room else ""
