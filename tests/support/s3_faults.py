"""The failures an S3 of the tests plays on demand, and the record of what it was asked.

Used by both of them: tests/support/s3_front.py stands before LocalStack, tests/support/strict_s3.py is a store of its own.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Fault = Literal[
    "conflict",
    "corrupt",
    "cut",
    "denied",
    "error in 200",
    "expired",
    "hold",
    "internal error",
    "invalid part",
    "lost reply",
    "rot",
    "slow down",
    "taken",
]
"""`corrupt`: a bit of the body flips on the way in, `rot` (of the strict S3): once it was verified. `cut`: the answer's body ends half way. `hold`: the request waits until
`released` is set. `lost reply`: it is carried out, the connection breaks. The others are answers of S3 to a request that it
does not carry out: see `REFUSALS`."""

REFUSALS: Mapping[Fault, tuple[int, str]] = MappingProxyType(
    {
        "conflict": (409, "ConditionalRequestConflict"),
        "denied": (403, "AccessDenied"),
        "error in 200": (200, "InternalError"),
        "expired": (400, "ExpiredToken"),
        "internal error": (500, "InternalError"),
        "invalid part": (400, "InvalidPart"),
        "slow down": (503, "SlowDown"),
        "taken": (412, "PreconditionFailed"),
    }
)
"""Status and code: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html."""


def error_document(code: str) -> str:
    """The body of an error."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>as asked</Message></Error>'


def flipped(body: bytes) -> bytes:
    """The same bytes but for one bit."""
    return bytes([body[0] ^ 1]) + body[1:] if body else body


@dataclass(slots=True)
class Faults:
    """What the tests set and see. `url` is where the store listens."""

    url: str = ""
    requests: list[str] = field(default_factory=list)
    """The first line of every request, in order."""
    heads: list[str] = field(default_factory=list)
    """The first line and the headers of every request, in order."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request arrived that waits for `released`."""
    _waiting: list[tuple[re.Pattern[str], Fault]] = field(default_factory=list)

    def fail_next(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests whose first line matches `pattern` fail that way."""
        self._waiting += [(re.compile(pattern), fault)] * times

    def forgive(self) -> None:
        """Drop the faults that nothing has met yet."""
        self._waiting.clear()

    async def met(self, head: str) -> Fault | None:
        """Note the request; the fault it meets, used up by asking. Waits where that is the fault."""
        line = head.partition("\r\n")[0]
        self.requests.append(line)
        self.heads.append(head)
        found = next(
            (number for number, (pattern, _) in enumerate(self._waiting) if pattern.search(line)), -1
        )
        if found < 0:
            return None
        _, fault = self._waiting.pop(found)
        if fault == "hold":
            self.held.set()
            await self.released.wait()
        return fault
