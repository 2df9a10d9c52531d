"""What an HTTP API refuses, and what goes wrong on the way to it, as this room's errors. Used by backends/http_api*.py.

Messages are built from the status and the kind of failure only: the text of an answer may repeat what the request carried.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType

import aiohttp

from backends.addresses import AddressRefused
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

_TAKEN = frozenset({409, 412, 422})
"""Something lies there already, or the idempotency key was used for other content (422:
https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header)."""

_BY_STATUS: Mapping[int, type[StorageError]] = MappingProxyType(
    {
        **dict.fromkeys((401, 403, 407), PermissionDenied),
        **dict.fromkeys((404, 410), NotFound),
        **dict.fromkeys(_TAKEN, Conflict),
        **dict.fromkeys((405, 411, 413, 415, 417, 501, 505), Unsupported),
        **dict.fromkeys((202, 408, 425, 429), Unavailable),
        414: InvalidKey,
    }
)
_HINTS: Mapping[int, str] = MappingProxyType(
    {
        202: "; it has not said that the object is stored",
        301: "; it has moved: configure the new base_url",
        302: "; redirects of writes, and to hosts that are not in redirect_hosts, are not followed: configure base_url",
        307: "; redirects of writes, and to hosts that are not in redirect_hosts, are not followed: configure base_url",
        308: "; it has moved: configure the new base_url",
        401: "; configure token, token_file or headers",
        405: "; configure method or stat_method",
        411: "; it takes no stream of unknown length: configure a larger buffer",
        413: "; the object is too large for it",
        417: "; configure expect_continue: false",
    }
)
_DIGEST_PROBLEM = "#digest-mismatch"
"""Part of the type's URI: https://datatracker.ietf.org/doc/draft-ietf-httpapi-digest-fields-problem-types/"""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Run one exchange. `doing` says what and where: `write https://host/key`."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as exc:
        raise _translate(exc, doing) from exc


def _translate(exc: Exception, doing: str) -> StorageError:
    """Whatever aiohttp raises leaves open what the API has done. `TimeoutError` is an `OSError`."""
    if isinstance(exc, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return Unavailable(f"could not {doing}: the certificate is not trusted; configure ca_file")
    if isinstance(exc, aiohttp.ClientConnectorError) and isinstance(exc.os_error, AddressRefused):
        return PermissionDenied(f"could not {doing}: {exc.os_error}")
    return Unavailable(f"could not {doing}: {type(exc).__name__}")


def refusal(status: int, doing: str, content_type: str = "", body: bytes = b"") -> StorageError:
    """The error for an answer that is not the one hoped for."""
    said = f"could not {doing}: HTTP {status}{_HINTS.get(status, '')}"
    if status in {400, 422} and "problem+json" in content_type and _is_digest_problem(body):
        return IntegrityError(f"{said}; the content was damaged on the way")
    if status >= 500:
        return _BY_STATUS.get(status, Unavailable)(said)
    return _BY_STATUS.get(status, StorageError)(said)


def _is_digest_problem(body: bytes) -> bool:
    problem: object = None
    with suppress(ValueError):
        problem = json.loads(body)
    return isinstance(problem, dict) and _DIGEST_PROBLEM in str(problem.get("type"))
