"""Times as people write them on the command line."""

import re
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final

HELP: Final = "2h, 3d, 2w ago; or 2026-11-21, 2026-11-21T05:00, in UTC unless an offset is given."

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS: Final = MappingProxyType({"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"})
_AGO: Final = re.compile(r"(\d{1,9})([smhdw])")


def milliseconds(text: str, now: datetime) -> int:
    """Milliseconds since the epoch. Raises `ValueError` when it is no time."""
    try:
        if ago := _AGO.fullmatch(text):
            then = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            then = datetime.fromisoformat(text)
            then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return (then - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text!r} is no time; use {HELP}") from exc
