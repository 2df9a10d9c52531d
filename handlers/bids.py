"""Bundle ids: which are accepted, how new ones are made, what time they tell.

Called by handlers/messages.py (to accept), worker/producer.py and the CLI (to make).

Accepted forms, all safe as one path segment:
- 8-4-4-4-12 hex digits: real UUIDs (RFC 9562) and the older v0 form, whose first twelve digits are decimal and count
  10 ms ticks since the epoch, followed by 80 random bits
- `bid:v1:{registry}:{YYYYMMDDHHMMSS}:{hex8}`
- `test-…` and `custom-…`, for people who name bundles by hand
"""

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256

_HEX = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_V1 = re.compile(r"bid:v1:[A-Za-z0-9_-]{1,40}:([0-9]{14}):[0-9a-f]{8}")
_NAMED = re.compile(r"(?:test|custom)-[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
_V7_HORIZON_MS = 10_413_792_000_000
"""The year 2300. Read as UUIDv7, a v0 id of our time tells a date centuries past it; that tells the two forms apart."""


def is_bid(text: str) -> bool:
    """Whether `text` is a bundle id in one of the accepted forms."""
    return any(form.fullmatch(text) for form in (_HEX, _V1, _NAMED))


def timestamp_ms(bid: str) -> int | None:
    """Milliseconds since the epoch that `bid` carries, or None when its form carries none."""
    if match := _V1.fullmatch(bid):
        try:
            return int(datetime.strptime(match[1], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp() * 1000)
        except ValueError:
            return None
    if not _HEX.fullmatch(bid):
        return None
    ticks = bid[:8] + bid[9:13]
    if bid[14] == "7" and int(ticks, 16) < _V7_HORIZON_MS:
        return int(ticks, 16)
    return int(ticks) * 10 if ticks.isdecimal() else None


def _uuid7(milliseconds: int, random_bits: int) -> str:
    """RFC 9562, section 5.7: 48 bits of time, then 74 of the random bits around version 7 and variant 10."""
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | 0b10 << 62
    value |= (random_bits >> 62 & (1 << 12) - 1) << 64 | random_bits & (1 << 62) - 1
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def derived_bid(milliseconds: int, content: bytes) -> str:
    """The UUIDv7-shaped id of a bundle known by its content: the same time and content always give the same id."""
    return _uuid7(milliseconds, int.from_bytes(sha256(content).digest()[:10], "big"))


class BidFactory:
    """Makes monotonic UUIDv7 bids: each greater than the one before, also within one millisecond or when the clock steps back."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """`clock` gives seconds since the epoch."""
        self._clock = clock
        self._random_bits = random_bits
        self._last = (0, 0)

    def __call__(self) -> str:
        """A new bid."""
        now = int(self._clock() * 1000)
        milliseconds, bits = self._last
        if now > milliseconds:
            # The top bit stays free, so that a burst can count up for long without overflowing.
            self._last = (now, self._random_bits(73))
        else:
            self._last = (milliseconds, bits + 1 + self._random_bits(32))
        return _uuid7(*self._last)
