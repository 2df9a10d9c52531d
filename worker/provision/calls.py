"""One request to S3 or SQS, and what its failure means to who provisions. Called by the planners beside it."""

import asyncio
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from worker.provision.plan import Lacking, ProvisionError

SDK_ERRORS: Final = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    OSError,
    asyncio.TimeoutError,
    ValueError,
)
"""The SDK reports a malformed region, URL or endpoint as ValueError."""

PERMISSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "head_bucket": "s3:ListBucket",
        "create_bucket": "s3:CreateBucket",
        "get_public_access_block": "s3:GetBucketPublicAccessBlock",
        "put_public_access_block": "s3:PutBucketPublicAccessBlock",
        "get_bucket_policy": "s3:GetBucketPolicy",
        "put_bucket_policy": "s3:PutBucketPolicy",
        "delete_bucket_policy": "s3:DeleteBucketPolicy",
        "get_bucket_encryption": "s3:GetEncryptionConfiguration",
        "put_bucket_encryption": "s3:PutEncryptionConfiguration",
        "get_bucket_versioning": "s3:GetBucketVersioning",
        "put_bucket_versioning": "s3:PutBucketVersioning",
        "get_bucket_lifecycle_configuration": "s3:GetLifecycleConfiguration",
        "put_bucket_lifecycle_configuration": "s3:PutLifecycleConfiguration",
        "get_bucket_tagging": "s3:GetBucketTagging",
        "put_bucket_tagging": "s3:PutBucketTagging",
        "get_queue_url": "sqs:GetQueueUrl",
        "get_queue_attributes": "sqs:GetQueueAttributes",
        "create_queue": "sqs:CreateQueue",
        "set_queue_attributes": "sqs:SetQueueAttributes",
        "list_dead_letter_source_queues": "sqs:ListDeadLetterSourceQueues",
    }
)
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html and
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html"""

_LACKING: Final = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented"})
_DENIED: Final = ("AccessDenied", "Forbidden", "AuthorizationError", "UnauthorizedOperation")


async def ask(
    client: Any, resource: str, operation: str, absent: Collection[str] = (), **request: Any
) -> Mapping[str, Any] | None:
    """The answer; None where it is an error whose code is in `absent`.

    Raises `Lacking` where the store has no such operation, and `ProvisionError` for everything else.
    """
    try:
        return cast("Mapping[str, Any]", await getattr(client, operation)(**request))
    except SDK_ERRORS as exc:
        code, status = _answer(exc)
        if code in absent:
            return None
        raise _translate(exc, code, status, resource, operation) from exc


def _answer(exc: BaseException) -> tuple[str, int]:
    if not isinstance(exc, ClientError):
        return "", 0
    code = str(exc.response.get("Error", {}).get("Code", "")).rsplit(".", 1)[-1]
    return code, int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate(exc: BaseException, code: str, status: int, resource: str, operation: str) -> ProvisionError:
    what = f"{resource}: {operation.replace('_', ' ')}"
    if code in _LACKING or status in {405, 501}:
        return Lacking(f"{what}: this store does not have it ({code or status})")
    if status in {401, 403} or any(word in code for word in _DENIED):
        return ProvisionError(
            f"{what} is denied ({code or status}); who provisions needs {PERMISSIONS[operation]} on it"
        )
    # An answer's text may repeat what a request carried; what the SDK says by itself does not.
    said = f"{code or 'no code'} (HTTP {status})" if isinstance(exc, ClientError) else str(exc)
    return ProvisionError(f"{what} failed: {said}")
