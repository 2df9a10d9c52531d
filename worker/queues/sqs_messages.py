"""How a message looks on SQS: the requests that send it, and what a receive returns. Used by worker/queues/sqs.py."""

import base64
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from worker.aws import fifo_token, typed
from worker.queues.base import SOURCE_ATTRIBUTE, Message, OutgoingMessage

LONGEST_DELAY = 900
"""Seconds; a longer delay is shortened to it."""
MOVED_FROM = "DeadLetterQueueSourceArn"
"""The system attribute of a message that SQS itself moved to the dead letters."""


def message_of(raw: Mapping[str, Any], to_spare: float = math.inf) -> Message:
    """One of the `Messages` of a receive, as the port has it; `to_spare`: receives that need not come to anything."""
    facts = raw.get("Attributes", {})
    attributes = {name: _text(value) for name, value in raw.get("MessageAttributes", {}).items()}
    if source := facts.get(MOVED_FROM):
        attributes.setdefault(SOURCE_ATTRIBUTE, source.rsplit(":", 1)[-1])
    receives = int(facts.get("ApproximateReceiveCount", 1))
    return Message(
        id=raw["MessageId"],
        body=raw["Body"].encode(errors="surrogatepass"),
        handle=raw["ReceiptHandle"],
        receive_count=receives,
        attributes=attributes,
        sent_at=int(facts["SentTimestamp"]) / 1000 if "SentTimestamp" in facts else None,
        returnable=receives <= to_spare,
    )


def request_for(message: OutgoingMessage, url: str) -> dict[str, Any]:
    """What SendMessage to the queue at `url` takes besides that URL; an entry of a batch has an `Id` as well."""
    request: dict[str, Any] = {
        # As it was received: a service that lets a lone surrogate in may refuse it, but this process does not stumble.
        "MessageBody": message.body.decode(errors="surrogatepass"),
        "MessageAttributes": typed(message.attributes),
    }
    if url.endswith(".fifo"):
        # FIFO queues take no delay per message, and want both ids.
        request["MessageGroupId"] = fifo_token(message.group or "transload")
        request["MessageDeduplicationId"] = fifo_token(
            message.deduplication_id or hashlib.sha256(message.body).hexdigest()
        )
    elif message.delay > 0:
        request["DelaySeconds"] = min(math.ceil(message.delay), LONGEST_DELAY)
    return request


def _text(value: Mapping[str, Any]) -> str:
    if "StringValue" in value:
        return str(value["StringValue"])
    return base64.b64encode(value.get("BinaryValue", b"")).decode()
