"""S3's refusals as this room's errors. Used by backends/s3.py and the modules that carry its requests, nobody else.

Two SDKs speak here: botocore (through aiobotocore) and obstore. Messages are built from the status and S3's error code
only, because the text of an answer may repeat what the request carried (a session token, for one).
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from backends.aws_refusals import said_missing
from backends.aws_session import RoleNotAssumed
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

SDK_ERRORS = (ClientError, BotoCoreError, BaseError, OSError)
"""Everything the two SDKs raise; obstore's missing object is a `FileNotFoundError`, an `OSError`."""

_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_BY_CODE: Mapping[str, type[StorageError]] = MappingProxyType(
    {
        "AccessDenied": PermissionDenied,
        "ExpiredToken": PermissionDenied,
        "InvalidToken": PermissionDenied,
        "BadDigest": IntegrityError,
        "InvalidDigest": IntegrityError,
        "XAmzContentSHA256Mismatch": IntegrityError,
        "KeyTooLongError": InvalidKey,
        "EntityTooLarge": Unsupported,
        "InvalidObjectState": Unsupported,
        "InvalidRequest": Unsupported,
        "InvalidStorageClass": Unsupported,
        "MetadataTooLarge": Unsupported,
        "NotImplemented": Unsupported,
    }
)
_BY_PERMISSION = frozenset({"", "AccessDenied"})
"""Codes that tell of a missing permission, with HTTP 403: others tell of the credentials themselves. A HEAD is answered without."""
_BY_TYPE: tuple[tuple[type[Exception], type[StorageError]], ...] = (
    (NoCredentialsError, PermissionDenied),
    (PartialCredentialsError, PermissionDenied),
    (CredentialRetrievalError, PermissionDenied),
    (ProfileNotFound, PermissionDenied),
    (PermissionDeniedError, PermissionDenied),
    (UnauthenticatedError, PermissionDenied),
    (AlreadyExistsError, Conflict),
    (PreconditionError, Conflict),
    (InvalidPathError, InvalidKey),
    (FileNotFoundError, NotFound),
)
_BY_STATUS: Mapping[int, type[StorageError]] = MappingProxyType(
    {401: PermissionDenied, 403: PermissionDenied, 404: NotFound, 412: Conflict}
)


@asynccontextmanager
async def request(doing: str, seconds: float, needs: str = "") -> AsyncIterator[None]:
    """As `translated`, for an SDK call that may take `seconds` in all, whatever drips in meanwhile."""
    with translated(doing, needs):
        async with asyncio.timeout(seconds):
            yield


@contextmanager
def translated(doing: str, needs: str = "") -> Iterator[None]:
    """Run one SDK call. `doing` says what and where: `write s3://bucket/key`; `needs` is the permission for it."""
    try:
        yield
    except SDK_ERRORS as exc:
        raise _translate(exc, doing, needs) from exc


def _translate(exc: Exception, doing: str, needs: str) -> StorageError:
    status, code = _answer(exc)
    said = f"S3 could not {doing}: {code or type(exc).__name__}" + (f" (HTTP {status})" if status else "")
    if isinstance(exc, RoleNotAssumed):
        # Its words are our own.
        said = f"{said}: {exc}"
    by_type = next((kind for sdk, kind in _BY_TYPE if isinstance(exc, sdk)), None)
    # Every trouble with a key is mended where keys and policies are kept, some of it comes as HTTP 400:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#KMSErrorCodeList
    by_key = PermissionDenied if code.startswith("KMS.") else None
    kind = _BY_CODE.get(code) or by_key or by_type or _BY_STATUS.get(status, Unavailable)
    if status == 403 and code in _BY_PERMISSION and (missing := said_missing(str(exc)) or needs):
        return kind(f"{said}; the credentials need {missing}")
    return kind(said)


def _answer(exc: Exception) -> tuple[int, str]:
    """Status and error code of S3's answer; 0 and an empty code where there was none."""
    if isinstance(exc, ClientError):
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(exc.response.get("Error", {}).get("Code", ""))
        return status, "" if code.isdigit() else code
    text = str(exc)
    status_found, code_found = _STATUS.search(text), _CODE.search(text)
    return int(status_found[1]) if status_found else 0, code_found[1] if code_found else ""
