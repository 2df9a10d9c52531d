"""How properties are read that pamqp cannot decode. worker/rabbitmq/link.py installs it where it makes a connection.

pamqp raises for a text that is no UTF-8, a date past the year 9999, a table nested too deep for Python. aiormq then ends the
connection, the broker delivers everything again, and so one message of a careless publisher would stop its queue for good.
docs/adr/0009-rabbitmq.md says why the library's table of decoders is changed for that.

Every type has a length that can be told without reading it, so what comes behind is found exactly. The broker lets nothing
malformed through: it decodes the properties itself.
"""

from types import MappingProxyType
from typing import Final

from pamqp import decode
from pamqp.common import FieldTable, FieldValue

UNREADABLE: Final = b"unreadable"
"""This object, and no other bytes, stands for the value of a header that could not be read."""

_ERRORS = (ValueError, OverflowError, OSError, RecursionError)
_SIZES = MappingProxyType(
    dict.fromkeys(b"tbB", 1)
    | dict.fromkeys(b"su", 2)
    | dict.fromkeys(b"Iif", 4)
    | {ord("D"): 5}
    | dict.fromkeys(b"lLdT", 8)
    | dict.fromkeys(b"V\0", 0)
)
_MEASURED = b"SAFx"
"""The types that begin with their own length, in four bytes."""


def install() -> None:
    """Have pamqp decode so. Doing it twice is harmless."""
    decode.METHODS.update({"shortstr": _text, "timestamp": _time, "table": _table})


def _text(value: bytes) -> tuple[int, FieldValue]:
    try:
        return decode.short_str(value)
    except UnicodeDecodeError:
        end = 1 + value[0]
        # Never longer than it was: it goes into copies.
        return end, value[1:end].decode(errors="ignore")


def _time(value: bytes) -> tuple[int, FieldValue]:
    try:
        return decode.timestamp(value)
    except _ERRORS:
        return 8, None


def _table(value: bytes) -> tuple[int, FieldValue]:
    try:
        return decode.field_table(value)
    except _ERRORS:
        end = 4 + int.from_bytes(value[:4], "big")
        return end, _salvaged(value[4:end])


def _salvaged(entries: bytes) -> FieldTable:
    """Each entry read by itself."""
    found: FieldTable = {}
    at = 0
    while at < len(entries):
        start = at + 1 + entries[at]
        name = entries[at + 1 : start]
        at = start + 1 + _size(entries[start : start + 5])
        try:
            found[name.decode()] = decode.embedded_value(entries[start:at])[1]
        except _ERRORS:
            found[name.decode(errors="replace")] = UNREADABLE
    return found


def _size(value: bytes) -> int:
    """Bytes of a value behind its type, of which `value` is the beginning."""
    if value[0] in _MEASURED:
        return 4 + int.from_bytes(value[1:], "big")
    if value[0] not in _SIZES:
        raise ValueError(f"an AMQP table has a value of the unknown type {value[:1]!r}")
    return _SIZES[value[0]]
