"""What `transload doctor` looks at in buckets and queues of AWS, or of what speaks like it. Called by worker/doctor.py only."""

import json
import time
from collections.abc import Awaitable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from backends.base import StorageBackend
from backends.errors import NotFound, PermissionDenied, StorageError, Unsupported
from backends.s3 import S3Backend
from backends.s3_errors import translated
from worker.aws import SDK_ERRORS, classify, open_client, queue_facts
from worker.queues.base import QueueOptions
from worker.queues.sqs import SqsQueueOptions
from worker.queues.sqs_dead_letters import ENOUGH_RECEIVES, locate

if TYPE_CHECKING:  # it calls this module
    from worker.doctor import Look

_DAY = 86_400


async def look_at_bucket(backend: StorageBackend, look: "Look") -> None:
    """Clock, versioning, encryption, and the rule that ends unfinished uploads. All but the clock is for the reader to judge."""
    if not isinstance(backend, S3Backend):
        raise TypeError(f"a target of S3 is an S3Backend, not {type(backend).__name__}")
    client, bucket = backend._client, backend.bucket  # noqa: SLF001 - the requests of a doctor are none of the port's
    look.check = "clock"
    head = await _asked(client.head_bucket(Bucket=bucket), bucket)
    if date := head["ResponseMetadata"]["HTTPHeaders"].get("date"):
        look.clock(parsedate_to_datetime(date).timestamp(), time.time())
    look.check = "versioning"
    answer = await _allowed(client.get_bucket_versioning(Bucket=bucket), bucket, look, "GetBucketVersioning")
    if answer is not None:
        status = answer.get("Status", "off").lower()
        look.ok(f"versioning is {'on' if status == 'enabled' else status}")
    look.check = "encryption"
    answer = await _allowed(
        client.get_bucket_encryption(Bucket=bucket), bucket, look, "GetEncryptionConfiguration"
    )
    if answer is not None:
        look.ok(_encryption(answer))
    look.check = "unfinished uploads"
    answer = await _allowed(
        client.get_bucket_lifecycle_configuration(Bucket=bucket), bucket, look, "GetLifecycleConfiguration"
    )
    if answer is not None:
        _uploads(answer.get("Rules", ()), look)


async def look_at_queue(options: QueueOptions, look: "Look") -> None:
    """Whether dead letters outlive the messages they were, and whether SQS itself buries messages."""
    options = cast("SqsQueueOptions", options)
    look.check = "retention"
    async with open_client(options) as client:
        try:
            facts = await queue_facts(client, options.queue_url)
            dead = await locate(client, options.queue_url, options.dead_letter_queue_url, facts)
            letters = await queue_facts(client, dead.url)
        except SDK_ERRORS as exc:
            look.note(
                f"not known: {classify(exc).value}", "the credentials need sqs:GetQueueAttributes on both"
            )
            return
    kept, there = (int(each.get("MessageRetentionPeriod", 0)) for each in (facts, letters))
    if 0 < there <= kept:
        look.problem(
            f"dead letters are kept for {_days(there)}, messages for {_days(kept)}: they may expire unseen",
            "raise the MessageRetentionPeriod of the dead-letter queue, or lower the queue's",
        )
    else:
        look.ok(f"dead letters are kept for {_days(there)}, messages for {_days(kept)}")
    look.check = "redrive policy"
    receives = _receives(facts)
    if 0 < receives < ENOUGH_RECEIVES:
        look.note(
            f"after {receives} receives SQS buries a message itself, without a reason",
            f"raise maxReceiveCount to {ENOUGH_RECEIVES} or more",
        )


async def _asked(call: Awaitable[Mapping[str, Any]], bucket: str) -> Mapping[str, Any]:
    with translated(f"look at bucket {bucket}"):
        return await call


async def _allowed(
    call: Awaitable[Mapping[str, Any]], bucket: str, look: "Look", permission: str
) -> Mapping[str, Any] | None:
    """The answer, empty where nothing of the kind is configured; None when it cannot be known, which is noted."""
    try:
        return await _asked(call, bucket)
    except NotFound:
        return {}
    except PermissionDenied:
        look.note("not known", f"to see it, the credentials need s3:{permission}")
    except Unsupported:
        look.note("the store knows nothing of the kind")
    except StorageError as exc:
        look.note(f"not known: {exc}")
    return None


def _encryption(answer: Mapping[str, Any]) -> str:
    rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", ())
    for rule in rules:
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        if default:
            key = default.get("KMSMasterKeyID")
            return f"encrypted by default: {default['SSEAlgorithm']}" + (f" with key {key}" if key else "")
    return "not encrypted by default"


def _uploads(rules: Sequence[Mapping[str, Any]], look: "Look") -> None:
    days = [
        rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"]
        for rule in rules
        if rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule
    ]
    if days:
        look.ok(f"a lifecycle rule ends them after {min(days)} days")
    else:
        look.note(
            "no lifecycle rule ends them; only housekeeping does, and `transload sweep`",
            "transload provision gives the bucket one",
        )


def _receives(facts: Mapping[str, str]) -> int:
    return int(json.loads(facts.get("RedrivePolicy", "{}")).get("maxReceiveCount", 0))


def _days(seconds: int) -> str:
    return f"{seconds / _DAY:g} days" if seconds >= _DAY else f"{seconds} s"
