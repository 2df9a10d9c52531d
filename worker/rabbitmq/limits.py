"""What one message can carry over AMQP. Asked by worker/queues/rabbitmq*.py and worker/publishers/rabbitmq.py before they send."""

from collections.abc import Mapping
from typing import Any

from pamqp import encode

_HEADERS_LIMIT = 120_000
"""Bytes of a message's headers as they are sent. They travel in one frame, of 128 KiB where nobody changed `frame_max`."""
_ID_LIMIT = 255
_NAME_LIMIT = 128
"""Bytes of a header's name. pamqp cuts what is longer: https://www.rabbitmq.com/amqp-0-9-1-reference#domain.peer-properties."""
ROUTING_HEADERS = frozenset({"CC", "BCC"})


def objection(id_: str, headers: Mapping[str, str]) -> str | None:
    """Why RabbitMQ cannot carry a message with this id and these headers, or None."""
    try:
        if len(id_.encode()) > _ID_LIMIT:
            return f"RabbitMQ carries ids of {_ID_LIMIT} bytes at most"
        if any(len(name.encode()) > _NAME_LIMIT for name in headers):
            return f"RabbitMQ carries attribute names of {_NAME_LIMIT} bytes at most"
        total = len(encode.field_table(dict(headers)))
    except UnicodeEncodeError:
        return "RabbitMQ carries UTF-8, and an attribute or the id has a lone surrogate"
    if total > _HEADERS_LIMIT:
        return f"RabbitMQ carries attributes of {_HEADERS_LIMIT} bytes in all, and this message has {total}"
    if found := ROUTING_HEADERS & headers.keys():
        return f"RabbitMQ would route the message by its attribute {min(found)}"
    return None


def fits(headers: Mapping[str, Any]) -> bool:
    """Whether a message can be sent with these headers."""
    try:
        return len(encode.field_table(dict(headers))) <= _HEADERS_LIMIT
    except (TypeError, ValueError):
        return False
