"""The stream of one write on its way to an HTTP API, and what the API tells of it. Used by backends/http_api*.py."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

PIECE = 256 << 10
"""Bytes handed on at a time: as many as have to move within `idle_timeout`."""

_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_FIELD = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API said to a request, its body cut where it is longer than anybody asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """The body's document; None where it is none."""
        with suppress(ValueError, RecursionError):
            document: object = json.loads(self.body)
            return document
        return None


class Source:
    """A stream, counted and digested on the way: first `take`, then `rest`."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._ahead = memoryview(b"")
        self._digest = hashlib.sha256()
        self.size = 0
        self.ended = False
        """Nothing is left to pull, and nothing is in hand."""
        self.touched = False
        """`rest` was asked for more than `take` had seen."""

    async def take(self, length: int) -> bytes:
        """The first `length` bytes, fewer if there are no more. Raises what the stream raises."""
        pieces: list[memoryview] = []
        missing = length
        while (self._ahead or await self._pull()) and missing:
            piece, self._ahead = self._ahead[:missing], self._ahead[missing:]
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    async def rest(self) -> AsyncGenerator[memoryview, None]:
        """What follows, in pieces of at most `PIECE` bytes."""
        while not self.ended:
            for piece in pieces(self._ahead):
                yield piece
            self._ahead, self.touched = memoryview(b""), True
            await self._pull()

    async def finish(self) -> None:
        """Read on to the end, for size and digest."""
        while not self.ended:
            self._ahead, self.touched = memoryview(b""), True
            await self._pull()

    async def _pull(self) -> bool:
        """Look at the next chunk that is not empty. False, and `ended`, at the end."""
        while not self._ahead and not self.ended:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self.ended = True
            else:
                self._digest.update(chunk)
                self.size += len(chunk)
                self._ahead = memoryview(chunk)
        return not self.ended

    @property
    def sha256(self) -> str:
        """The digest of everything pulled so far, in hex."""
        return self._digest.hexdigest()


def pieces(data: memoryview) -> Iterator[memoryview]:
    """`data` cut into `PIECE`s."""
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


def idempotency_key(url: str, sha256: str | None) -> str:
    """The same for the same object, so that an API that keeps answers replays its first one.

    The digest is part of it where it is known before the body is sent. Where it is not, the URL stands for the content, which
    is what create-only means.
    """
    return hashlib.sha256(f"{url}\n{sha256 or ''}".encode()).hexdigest()


def digest_field(sha256: str) -> str:
    """For `Content-Digest`: https://www.rfc-editor.org/rfc/rfc9530.html#section-2"""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def told_digest(answer: Answer, header: str, field: str | None) -> str | None:
    """The SHA-256, in hex, that an answer states of the stored object; None where it states none."""
    stated = at(answer.json(), field) if field is not None else answer.headers.get(header)
    if not isinstance(stated, str):
        return None
    stated = stated.strip()
    if _HEX.fullmatch(stated):
        return stated.lower()
    found = _FIELD.search(stated)
    try:
        digest = base64.b64decode(found[1] if found else stated, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == 32 else None


def at(document: object, path: str) -> object:
    """The value that `path` (names joined by dots; empty is the document) leads to; None where it leads nowhere."""
    for name in path.split(".") if path else ():
        document = document.get(name) if isinstance(document, dict) else None
    return document
