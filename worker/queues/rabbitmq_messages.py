"""How a message looks on RabbitMQ: which headers are its own attributes, which are ours, which the broker's.

Used by worker/queues/rabbitmq.py and the files beside it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiormq.abc import DeliveredMessage

from worker.queues.base import REASON_ATTRIBUTE, SOURCE_ATTRIBUTE, Message
from worker.rabbitmq.decoding import UNREADABLE
from worker.rabbitmq.limits import ROUTING_HEADERS, fits, objection

RECEIVES = "x-transload-receives"
"""How often a message had been received when this copy of it was published."""
SENT = "x-transload-sent-ms"
"""When the message was sent first, in milliseconds since the epoch: the property `timestamp` has whole seconds."""
ID = "x-transload-id"
"""The message's id, the same in every copy."""

_OURS = frozenset({ID, RECEIVES, SENT})
_NOT_THEIRS = _OURS | ROUTING_HEADERS
_OUR_ID = re.compile("[0-9a-f]{32}")
_BROKERS = ("x-death", "x-delivery-count", "x-acquired-count", "x-first-death-", "x-last-death-")
_DEEPEST = 16
"""Levels of nesting in a header that copies keep; pamqp can encode less than it can decode."""
_WORN = 10
"""Returns of one copy, after which another takes its place. RabbitMQ 4 removes what came back 20 times, unless told otherwise."""

_MOST = 253_402_300_799_999
"""The last millisecond of the year 9999, and more than anybody counts to. Whoever publishes may forge any number."""


def message_of(delivery: DeliveredMessage, handle: str) -> Message:
    """The delivery as the port has it."""
    return Message(
        id=id_of(delivery),
        body=delivery.body,
        handle=handle,
        receive_count=receives_of(delivery),
        attributes=_attributes(_headers(delivery)),
        sent_at=None if (sent := _sent_ms(delivery)) is None else sent / 1000,
    )


def id_of(delivery: DeliveredMessage) -> str:
    """The message's id: 32 hexadecimal digits.

    Publishers may give one `message_id` to many messages, or none to any, so it and the body name a message together.
    """
    ours = _headers(delivery).get(ID)
    if isinstance(ours, str) and _OUR_ID.fullmatch(ours):
        return ours
    theirs = delivery.header.properties.message_id or ""
    return hashlib.sha256(theirs.encode() + b"\0" + delivery.body).hexdigest()[:32]


def receives_of(delivery: DeliveredMessage) -> int:
    """How often the message has been received, this time included, by the broker's count of this copy and ours of the others."""
    headers = _headers(delivery)
    if headers.keys() & {"x-delivery-count", "x-acquired-count"}:
        again = _returns(delivery)
    else:
        again = int(bool(delivery.redelivered))
    return _number(headers.get(RECEIVES)) + again + 1


def worn(delivery: DeliveredMessage) -> bool:
    """It has come back so often that a limit of the broker's own may be near."""
    return _returns(delivery) >= _WORN


def kept_headers(delivery: DeliveredMessage) -> dict[str, Any]:
    """The headers of its publisher that a copy of the message takes along."""
    return {name: _sendable(value) for name, value in _theirs(_headers(delivery)).items()}


def own_headers(delivery: DeliveredMessage) -> dict[str, Any]:
    """The headers of ours that every copy of the message has."""
    sent = _sent_ms(delivery)
    return {ID: id_of(delivery)} | ({} if sent is None else {SENT: sent})


def whole(delivery: DeliveredMessage) -> bool:
    """Whether a copy can have all its headers."""
    readable = not any(value is UNREADABLE for value in _headers(delivery).values())
    return readable and fits(kept_headers(delivery) | own_headers(delivery) | {RECEIVES: 0})


def _headers(delivery: DeliveredMessage) -> Mapping[str, Any]:
    return delivery.header.properties.headers or {}


def _theirs(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Without ours, the broker's, what nobody can read, and what would send every copy to other queues as well."""
    return {
        name: value
        for name, value in headers.items()
        if not name.startswith(_BROKERS) and name not in _NOT_THEIRS and value is not UNREADABLE
    }


def _sent_ms(delivery: DeliveredMessage) -> int | None:
    if ours := _number(_headers(delivery).get(SENT)):
        return ours
    timestamp = delivery.header.properties.timestamp
    return round(timestamp.timestamp() * 1000) if isinstance(timestamp, datetime) else None


def _returns(delivery: DeliveredMessage) -> int:
    return _number(_headers(delivery).get("x-delivery-count"))


def _attributes(headers: Mapping[str, Any]) -> dict[str, str]:
    attributes = {name: _text(value) for name, value in _theirs(headers).items()}
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


def _sendable(value: Any, levels: int = _DEEPEST) -> Any:
    """A header's value as pamqp takes it: it decodes a string that is no text to `bytes`, and encodes only `bytearray`."""
    if isinstance(value, bytes):
        return bytearray(value)
    # It would make four bytes of a double's eight.
    if isinstance(value, float) or (isinstance(value, list | dict) and not levels):
        return _text(value)
    if isinstance(value, list):
        return [_sendable(each, levels - 1) for each in value]
    if isinstance(value, dict):
        return {name: _sendable(each, levels - 1) for name, each in value.items()}
    return value


def _number(value: Any) -> int:
    return min(max(0, value), _MOST) if isinstance(value, int) else 0


def refusal(attributes: Mapping[str, str]) -> str | None:
    """Why RabbitMQ cannot carry a message with these attributes, or None."""
    for name in attributes:
        if name in _OURS or name.startswith(_BROKERS):
            return f"the attribute {name!r} would be taken for the broker's own"
    return objection("", attributes)
