"""How a message looks on RabbitMQ: which headers are its own attributes, which are ours, which the broker's.

Used by worker/queues/rabbitmq.py.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiormq.abc import DeliveredMessage

from worker.queues.base import REASON_ATTRIBUTE, SOURCE_ATTRIBUTE, Message
from worker.rabbitmq import objection

RECEIVES = "x-transload-receives"
"""How often a message had been received when this copy of it was published."""
SENT = "x-transload-sent-ms"
"""When the message was sent first, in milliseconds since the epoch: the property `timestamp` has whole seconds."""

_OURS = frozenset({RECEIVES, SENT})
_BROKERS = ("x-death", "x-delivery-count", "x-acquired-count", "x-first-death-", "x-last-death-")


def message_of(delivery: DeliveredMessage, handle: str) -> Message:
    """The delivery as the port has it."""
    headers, timestamp = _headers(delivery), delivery.header.properties.timestamp
    sent = _number(headers.get(SENT)) / 1000 or (
        timestamp.timestamp() if isinstance(timestamp, datetime) else None
    )
    return Message(
        id=id_of(delivery),
        body=delivery.body,
        handle=handle,
        receive_count=receives_of(delivery),
        attributes=_attributes(headers),
        sent_at=sent,
    )


def _headers(delivery: DeliveredMessage) -> Mapping[str, Any]:
    return delivery.header.properties.headers or {}


def id_of(delivery: DeliveredMessage) -> str:
    """The message's id. One from a publisher that sets none is named by its content, so that every receive names it alike."""
    return delivery.header.properties.message_id or hashlib.sha256(delivery.body).hexdigest()[:32]


def receives_of(delivery: DeliveredMessage) -> int:
    """How often the message has been received, this time included, by the broker's count of this copy and ours of the others."""
    headers = _headers(delivery)
    if headers.keys() & {"x-delivery-count", "x-acquired-count"}:
        again = _number(headers.get("x-delivery-count"))
    else:
        again = int(bool(delivery.redelivered))
    return _number(headers.get(RECEIVES)) + again + 1


def kept_headers(delivery: DeliveredMessage) -> dict[str, Any]:
    """The headers a copy of the message takes along."""
    return {
        name: _sendable(value)
        for name, value in _headers(delivery).items()
        if not name.startswith(_BROKERS) and name != RECEIVES
    }


def _attributes(headers: Mapping[str, Any]) -> dict[str, str]:
    attributes = {
        name: _text(value)
        for name, value in headers.items()
        if not name.startswith(_BROKERS) and name not in _OURS
    }
    deaths = headers.get("x-death")
    if REASON_ATTRIBUTE not in attributes and isinstance(deaths, list) and deaths:
        latest = deaths[0] if isinstance(deaths[0], dict) else {}
        if (reason := latest.get("reason", "expired")) != "expired":
            # The broker buried it, by a limit that a policy set: it tells no more than this.
            attributes |= {REASON_ATTRIBUTE: _text(reason), SOURCE_ATTRIBUTE: _text(latest.get("queue", ""))}
    return attributes


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    return json.dumps(value, default=str)


def _sendable(value: Any) -> Any:
    """A header's value as pamqp takes it: it decodes a string that is no text to `bytes`, and encodes only `bytearray`."""
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, list):
        return [_sendable(each) for each in value]
    if isinstance(value, dict):
        return {name: _sendable(each) for name, each in value.items()}
    return value


def _number(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def refusal(attributes: Mapping[str, str]) -> str | None:
    """Why RabbitMQ cannot carry a message with these attributes, or None."""
    for name in attributes:
        if name in _OURS or name.startswith(_BROKERS):
            return f"the attribute {name!r} would be taken for the broker's own"
    return objection("", attributes)
