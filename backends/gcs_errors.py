"""What Google Cloud Storage and the libraries under it say, as the port's errors. Used by backends/gcs*.py only."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from aiohttp import ClientError
from google.auth.exceptions import GoogleAuthError, TransportError

from backends.errors import (
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)

RESUME = 308
"""Not an error: "so much has arrived", the answer to a part of a resumable upload."""

_BY_STATUS: Mapping[int, type[StorageError]] = MappingProxyType(
    {
        400: StorageError,
        401: PermissionDenied,
        403: PermissionDenied,
        404: NotFound,
        410: NotFound,
        412: Conflict,
        413: Unsupported,
        414: InvalidKey,
        499: NotFound,
        501: Unsupported,
    }
)
"""https://cloud.google.com/storage/docs/json_api/v1/status-codes; 410 and 499 are sessions that are over. What is not named may pass."""
_THROTTLED = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
_WORD = re.compile(r"[A-Za-z]{1,64}")
_MISMATCH = re.compile(r"doesn't match calculated", re.IGNORECASE)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Run one call. `doing` says what and where: `write gs://bucket/key`."""
    try:
        yield
    except (ClientError, GoogleAuthError, OSError, ValueError) as exc:
        raise _translate(exc, doing) from exc


def check(status: int, body: bytes, doing: str) -> None:
    """Return if the answer is a success, or a part that has arrived; raise what it means otherwise."""
    if status < 300 or status == RESUME:
        return
    reason, message = _answer(body)
    kind = _BY_STATUS.get(status, Unavailable)
    if reason in _THROTTLED:
        kind = Unavailable
    if status == 400 and _MISMATCH.search(message):
        kind = IntegrityError
    # Anything else than a word is none of GCS's reasons, and may repeat what the request carried.
    raise kind(f"GCS could not {doing}: HTTP {status}" + (f" ({reason})" if _WORD.fullmatch(reason) else ""))


def _translate(exc: Exception, doing: str) -> StorageError:
    # What the exceptions say may hold the URL of an upload session, which is as good as a credential.
    said = f"GCS could not {doing}: {type(exc).__name__}"
    if isinstance(exc, TransportError):
        return Unavailable(said)
    if isinstance(exc, GoogleAuthError):
        return PermissionDenied(f"{said}; check the credentials")
    return (
        StorageError(said)
        if isinstance(exc, ValueError) and not isinstance(exc, OSError)
        else Unavailable(said)
    )


def _answer(body: bytes) -> tuple[str, str]:
    """Reason and message of GCS's error document; empty where there is none."""
    try:
        error = json.loads(body)["error"]
        message = str(error.get("message", ""))
        return next((str(each.get("reason", "")) for each in error.get("errors", ())), ""), message
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", body[:1000].decode(errors="replace")
