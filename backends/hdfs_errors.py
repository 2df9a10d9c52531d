"""What WebHDFS refuses, and what goes wrong on the way to it, as this room's errors. Used by backends/hdfs_client.py only."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import aiohttp

from backends.addresses import AddressRefused
from backends.errors import (
    Conflict,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)

_NAME = re.compile(r"[A-Za-z0-9$_]{1,100}")
"""Of a class of Java; anything else may repeat what the request carried."""
_BY_EXCEPTION: Mapping[str, type[StorageError]] = MappingProxyType(
    {
        "AccessControlException": PermissionDenied,
        "AuthenticationException": PermissionDenied,
        "AuthorizationException": PermissionDenied,
        "FileAlreadyExistsException": Conflict,
        "FileNotFoundException": NotFound,
        "HadoopIllegalArgumentException": InvalidKey,
        "IllegalArgumentException": Unsupported,
        "InvalidPathException": InvalidKey,
        "InvalidToken": PermissionDenied,
        "ParentNotDirectoryException": InvalidKey,
        "PathComponentTooLongException": InvalidKey,
        "SecurityException": PermissionDenied,
        "UnsupportedOperationException": Unsupported,
    }
)
"""By the name in the answer. The status tells less: every IOException is a 403."""


async def check(response: aiohttp.ClientResponse, expected: int, doing: str) -> None:
    """Raises what the answer means, unless it is the one hoped for."""
    if response.status != expected:
        raise _refusal(response.status, await response.read(), doing)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Run one exchange. `doing` says what and where."""
    try:
        yield
    except (aiohttp.ClientError, OSError, EOFError, TimeoutError, RuntimeError) as exc:
        # Its own text may hold the URL and so the token; what caused it does not.
        raise _translate(exc, doing) from exc.__cause__


@contextmanager
def understood(doing: str) -> Iterator[None]:
    """For answers that are no WebHDFS: another server, or another version of it."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as exc:
        raise Unavailable(f"HDFS was to {doing}, and its answer is not WebHDFS's") from exc


def _translate(exc: Exception, doing: str) -> StorageError:
    if isinstance(exc, aiohttp.ClientSSLError):
        return PermissionDenied(f"HDFS could not {doing}: {type(exc).__name__}; see ca_file")
    if isinstance(exc, aiohttp.ClientConnectorError) and isinstance(exc.os_error, AddressRefused):
        return PermissionDenied(f"HDFS could not {doing}: {exc.os_error}")
    return Unavailable(f"HDFS could not {doing}: {type(exc).__name__}")


def _refusal(status: int, body: bytes, doing: str) -> StorageError:
    """What an answer means. Told by status and Java's name only: its text may repeat what the request carried."""
    try:
        remote = json.loads(body)["RemoteException"]
        name, text = str(remote["exception"]), str(remote.get("message"))
    except (LookupError, TypeError, ValueError, AttributeError):
        name = text = ""
    if name == "AccessControlException" and text.endswith("(is not a directory)"):
        # What everybody but the superuser is told where an object lies on the way.
        name = "ParentNotDirectoryException"
    if not _NAME.fullmatch(name):
        name = ""
    said = f"HDFS could not {doing}: {name or 'refused'} (HTTP {status})"
    if name:
        kind = _BY_EXCEPTION.get(name, Unavailable)
    else:
        kind = {401: PermissionDenied, 403: PermissionDenied, 404: NotFound}.get(status, Unavailable)
    return kind(said)
