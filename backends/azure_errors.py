"""Azure's refusals as this room's errors, and the deadline of every call. Used by the backends/azure*.py modules only.

Messages are built from the status and the service's error code, because the SDK's texts may repeat what a request carried.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from types import MappingProxyType

from azure.core.exceptions import AzureError, ClientAuthenticationError

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

SDK_ERRORS = (AzureError, OSError)
"""Everything the SDK raises for a request; a passed deadline is a `TimeoutError`, an `OSError`."""

_CODE = re.compile(r"[A-Za-z0-9_]{1,100}")
_BY_CODE: Mapping[str, type[StorageError]] = MappingProxyType(
    {
        "BlobAlreadyExists": Conflict,
        "ConditionNotMet": Conflict,
        "InvalidBlobType": Conflict,
        "UnauthorizedBlobOverwrite": Conflict,
        # Another writer's commit, or a sweep, has dropped the blocks of this one.
        "InvalidBlobOrBlock": Unavailable,
        "InvalidBlockList": Unavailable,
        "SourceConditionNotMet": Unavailable,
        # A 404, yet nothing is told about the blob.
        "ContainerNotFound": Unavailable,
        "ContainerBeingDeleted": Unavailable,
        "InvalidMd5": IntegrityError,
        "Md5Mismatch": IntegrityError,
        "InvalidResourceName": InvalidKey,
        "InvalidUri": InvalidKey,
        "OutOfRangeInput": InvalidKey,
        "BlobImmutableDueToPolicy": PermissionDenied,
        "BlockCountExceedsLimit": Unsupported,
        "EmptyMetadataKey": Unsupported,
        "InvalidMetadata": Unsupported,
        "MetadataTooLarge": Unsupported,
        "RequestBodyTooLarge": Unsupported,
    }
)
"""https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes"""

_BY_STATUS: Mapping[int, type[StorageError]] = MappingProxyType(
    {401: PermissionDenied, 403: PermissionDenied, 404: NotFound, 412: Conflict}
)


@asynccontextmanager
async def translated(doing: str, seconds: float) -> AsyncIterator[None]:
    """Run one SDK call within `seconds`. `doing` says what and where: `write azure://account/container/key`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except SDK_ERRORS as exc:
        raise _translate(exc, doing, seconds) from exc


def error_code(exc: BaseException | None) -> str:
    """The service's own word for what went wrong; empty where it said nothing, or something that is no such word."""
    code = getattr(exc, "error_code", None)
    said = str(code.value if isinstance(code, Enum) else code or "")
    return said if _CODE.fullmatch(said) else ""


def _translate(exc: Exception, doing: str, seconds: float) -> StorageError:
    if type(exc) is TimeoutError:
        return Unavailable(f"Azure could not {doing} within {seconds:g} s")
    status, code = int(getattr(exc, "status_code", None) or 0), error_code(exc)
    said = f"Azure could not {doing}: {code or type(exc).__name__}" + (f" (HTTP {status})" if status else "")
    if code == "CannotVerifyCopySource":
        # The source is not ours to read from the side of the target.
        return NotFound(said) if status == 404 else Unsupported(said)
    by_type = PermissionDenied if isinstance(exc, ClientAuthenticationError) else Unavailable
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, by_type)
    return kind(said)
