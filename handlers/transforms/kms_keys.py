"""Keys that AWS KMS wrapped, unwrapped. Loaded by key_ring.py where a key says `kms_wrapped_file`, nowhere else."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from backends.aws_session import open_session
from backends.errors import PermissionDenied, Unavailable
from handlers.transforms.key_ring import KeyOptions, KeyUnusable, KmsOptions

_HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "InvalidCiphertextException": "the file is not what KMS made, or kms_context is another than at wrapping",
        "IncorrectKeyException": "another key of KMS than kms_key_id wrapped it",
        "NotFoundException": "KMS has no such key here; look at kms_key_id, region and account",
        "DisabledException": "KMS's key is disabled",
        "KMSInvalidStateException": "KMS's key is pending deletion, or its store is not connected",
        "InvalidKeyUsageException": "KMS's key is not for encryption",
        "ValidationException": "KMS takes no such blob, kms_key_id or kms_context",
    }
)
_DENIED: Final = (CredentialRetrievalError, NoCredentialsError, PartialCredentialsError, ProfileNotFound)
_WRONG: Final = (NoRegionError, ParamValidationError)


async def unwrap(key_id: str, source: KeyOptions, options: KmsOptions, blob: bytes) -> bytes:
    """The plaintext of `blob`: https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html.

    Raises `KeyUnusable`, `PermissionDenied`, `Unavailable`.
    """
    wanted: dict[str, Any] = {"CiphertextBlob": blob}
    if source.kms_key_id is not None:
        wanted["KeyId"] = source.kms_key_id
    if source.kms_context:
        wanted["EncryptionContext"] = dict(source.kms_context)
    config = AioConfig(
        connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
    )
    try:
        async with open_session(options).create_client(
            "kms", region_name=options.region, endpoint_url=options.endpoint_url, config=config
        ) as kms:
            plain: bytes = (await kms.decrypt(**wanted))["Plaintext"]
    except (ClientError, BotoCoreError, OSError) as exc:
        raise _translate(exc, key_id) from exc
    return plain


def _translate(exc: Exception, key_id: str) -> Exception:
    """As this room's errors. The text of an answer is left out: it may repeat what the request carried."""
    said = f"key {key_id!a} could not be unwrapped by KMS: "
    if isinstance(exc, ClientError):
        code = str(exc.response.get("Error", {}).get("Code", ""))
        status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _HINTS:
            return KeyUnusable(f"{said}{code}; {_HINTS[code]}")
        if status >= 500 or status == 429 or "Throttl" in code or "Limit" in code:
            return Unavailable(f"{said}{code} (HTTP {status})")
        return PermissionDenied(f"{said}{code} (HTTP {status}); the caller needs kms:Decrypt on its key")
    if isinstance(exc, _DENIED):
        return PermissionDenied(
            f"{said}{type(exc).__name__}; KMS needs credentials as `kms` or the SDK's chain has them"
        )
    if isinstance(exc, _WRONG):
        return KeyUnusable(f"{said}{type(exc).__name__}; correct `kms`")
    return Unavailable(f"{said}{type(exc).__name__}")
