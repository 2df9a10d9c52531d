"""What the SQS queue and the SQS publisher share: options, the client, the limits, and what a failure means.

Limits: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

import asyncio
import enum
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from pydantic import Field

from backends.aws_options import AwsOptions
from backends.aws_refusals import said_missing
from backends.aws_session import open_session

SDK_ERRORS = (ClientError, BotoCoreError, ResponseParserError, OSError, asyncio.TimeoutError)
"""Everything a call may raise; `classify` tells them apart."""

BATCH = 10
"""Most entries of one batch request."""
ATTRIBUTES = 10
"""Most attributes of one message."""
SMALLEST_LIMIT = 256 << 10
"""Bytes every service implementation takes in one batch request; a queue that takes larger messages takes more."""

_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    NoAuthTokenError,
    SSOError,
    TokenRetrievalError,
    MetadataRetrievalError,
)
_DENIED_WORDS = ("Denied", "Token", "Signature", "Authoriz", "AccessKey", "UnrecognizedClient")
_UNSENDABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FIFO_TOKEN = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")


class SqsOptions(AwsOptions):
    """Which queue, and who asks."""

    queue_url: str = Field(min_length=1, description="The queue's URL.")
    endpoint_url: str | None = Field(
        default=None, description="Another endpoint than AWS's, for example LocalStack's."
    )


_ABOUT_THE_REQUEST = frozenset(
    {
        "BatchRequestTooLong",
        "EmptyBatchRequest",
        "InvalidAttributeName",
        "InvalidAttributeValue",
        "InvalidBatchEntryId",
        "InvalidMessageContents",
        "InvalidParameterCombination",
        "InvalidParameterValue",
        "MessageTooLong",
        "MissingParameter",
        "TooManyEntriesInBatchRequest",
        "UnsupportedOperation",
        "ValidationError",
    }
)
"""What no later attempt changes. Every other answer may pass: an expired login, a disabled key, a skewed clock."""


class Trouble(enum.Enum):
    """What a failed call comes down to."""

    MISSING = "there is no such queue"
    DENIED = "access is denied"
    UNAVAILABLE = "no answer, or throttled"
    REFUSED = "the request is refused"


@asynccontextmanager
async def open_client(options: SqsOptions) -> AsyncIterator[Any]:
    """A client with botocore's standard retries (3 attempts) and room for many long polls at once.

    Raises one of `SDK_ERRORS`.
    """
    config = AioConfig(
        connect_timeout=5,
        # A long poll answers after 20 seconds at the latest.
        read_timeout=30,
        max_pool_connections=64,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    async with open_session(options).create_client(
        "sqs",
        region_name=options.region,
        endpoint_url=options.endpoint_url,
        config=config,
    ) as client:
        yield client


async def queue_facts(client: Any, url: str) -> Mapping[str, str]:
    """All attributes of the queue itself. Raises one of `SDK_ERRORS`."""
    reply = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    return cast("Mapping[str, str]", reply["Attributes"])


def classify(exc: BaseException) -> Trouble:
    """Tell what one of `SDK_ERRORS` means, by code first and by HTTP status where the code says nothing."""
    if isinstance(exc, ClientError):
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return classify_code(short_code(exc.response.get("Error", {})), status)
    if isinstance(exc, _NO_CREDENTIALS):
        return Trouble.DENIED
    if isinstance(exc, ParamValidationError):
        return Trouble.REFUSED
    return Trouble.UNAVAILABLE


def denial_of(exc: BaseException, where: str) -> str:
    """What somebody has to do about a call to SQS that is denied. `where`: the queue it was about."""
    missing = said_missing(str(exc))
    if missing is None and isinstance(exc, ClientError):
        # A batch has no permission of its own:
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html
        missing = f"sqs:{exc.operation_name.removesuffix('Batch')} on {where}"
    if missing is None:
        return "look at the credentials"
    return f"the credentials need {missing}; look at them, and at the policies of role and queue"


def classify_code(code: str, status: int) -> Trouble:
    """Tell what an error code means; `status` decides where the code is unknown."""
    if code in {"NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"}:
        return Trouble.MISSING
    if code in {"RequestLimitExceeded", "TooManyRequestsException", "OverLimit"} or "Throttl" in code:
        return Trouble.UNAVAILABLE
    if status >= 500 or status == 429:
        return Trouble.UNAVAILABLE
    if status in {401, 403} or any(word in code for word in _DENIED_WORDS):
        return Trouble.DENIED
    return Trouble.REFUSED if code in _ABOUT_THE_REQUEST else Trouble.UNAVAILABLE


def short_code(error: Mapping[str, Any]) -> str:
    """`AWS.SimpleQueueService.NonExistentQueue` and `QueueDoesNotExist` without their prefixes."""
    return str(error.get("Code", "")).rsplit(".", 1)[-1]


def objection(body: bytes, attributes: Mapping[str, str], limit: int) -> str | None:
    """Why a queue that takes `limit` bytes cannot carry this message, or None.

    SQS takes the characters of XML 1.0 and no empty text.
    """
    if (weight := size(body, attributes)) > limit:
        return f"the queue carries {limit} bytes at most, and this message has {weight}"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "SQS carries text only, and this body is not UTF-8"
    if not text:
        return "SQS carries no empty body"
    if found := _UNSENDABLE.search(text):
        return f"SQS carries the characters of XML only, and this body has {found.group()!a}"
    if len(attributes) > ATTRIBUTES:
        return f"SQS carries {ATTRIBUTES} attributes at most, and this message has {len(attributes)}"
    return None


def readable(text: str) -> str:
    """`text` with what SQS refuses replaced by U+FFFD."""
    return _UNSENDABLE.sub("\ufffd", text)


def typed(attributes: Mapping[str, str]) -> dict[str, Any]:
    """Attributes as a request has them."""
    return {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}


def fifo_token(value: str) -> str:
    """`value` if SQS takes it as a group or deduplication id (1 to 128 printable ASCII), else its SHA-256."""
    return (
        value
        if _FIFO_TOKEN.fullmatch(value)
        else hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
    )


def size(body: bytes, attributes: Mapping[str, str]) -> int:
    """Bytes the message counts for: names, types and values of attributes belong to it."""
    weight = sum(len(n.encode()) + len("String") + len(v.encode()) for n, v in attributes.items())
    return len(body) + weight


def packed(sizes: Sequence[int], limit: int) -> list[range]:
    """Cut consecutive messages into batch requests of at most ten and at most `limit` bytes.

    One that is too large alone gets a request of its own, so that only it is refused.
    """
    batches: list[range] = []
    start, total = 0, 0
    for index, one in enumerate(sizes):
        if index > start and (index - start == BATCH or total + one > limit):
            batches.append(range(start, index))
            start, total = index, 0
        total += one
    if start < len(sizes):
        batches.append(range(start, len(sizes)))
    return batches
