"""What the settings want provisioned: which buckets and queues, and whose credentials look after each.

Called by worker/provision/run.py. Reads policy documents; asks no service.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.aws_options import AwsOptions
from backends.s3_client import S3Options
from worker.aws import SqsOptions
from worker.provision.buckets import Bucket
from worker.provision.plan import ProvisionRefused
from worker.provision.policies import Statement, is_public, statements_of
from worker.provision.queues import QueueWanted
from worker.provision.settings import (
    DAY,
    PRIVATE,
    PUBLIC_READ,
    AccessSettings,
    ProvisionedBucket,
    ProvisionedQueue,
)
from worker.queues.sqs import SqsQueueOptions
from worker.settings_schema import Settings

_NO_QUEUE: Final = "-"


@dataclass(frozen=True, slots=True)
class WantedBucket:
    """A bucket, and how to reach it."""

    options: S3Options
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class WantedQueue:
    """A queue, and how to reach it."""

    options: SqsOptions
    queue: QueueWanted


def wanted_buckets(settings: Settings) -> list[WantedBucket]:
    """The bucket of every s3 target and staging source, and those of the section `provision`.

    Raises `ProvisionRefused` for what would let everybody in, for a policy that is none, and for a lifecycle that would end
    uploads which the worker still counts as running.
    """
    described, access = settings.provision.named_buckets, settings.provision.access
    found: dict[str, S3Options] = {}
    places = [place.options for place in settings.targets.values()]
    for options in (*places, *(place.options for place in settings.staging.values())):
        if isinstance(options, S3Options):
            found.setdefault(options.bucket, options)
    nearest = next(iter(found.values()), None)
    for name in described:
        if name not in found:
            found[name] = _elsewhere(nearest, name)
    wanted = []
    for name, options in found.items():
        bucket = _described(described.get(name, ProvisionedBucket()), options)
        _check_abort(name, bucket, settings.housekeeping.sweep_after)
        reached = S3Options(**_reached(options, access)) if access else options
        wanted.append(WantedBucket(reached, Bucket(name, bucket, _statements(name, bucket))))
    return wanted


def wanted_queues(settings: Settings) -> list[WantedQueue]:
    """The worker's SQS queue, the publisher's, and those of the section `provision`."""
    access = settings.provision.access
    described = dict(settings.provision.named_queues)
    nearest: AwsOptions | None = None
    wanted: dict[str, WantedQueue] = {}
    for options in (settings.queue.options, settings.publisher.options):
        if not isinstance(options, SqsOptions):
            continue
        nearest = nearest or options
        name = _name(options.queue_url)
        if name in wanted:
            continue
        entry = described.pop(name, None)
        queue = _queue(name, entry, options, buries=isinstance(options, SqsQueueOptions))
        wanted[name] = WantedQueue(_sqs(options, access), queue)
    others = _sqs(nearest or AwsOptions(), access)
    for name, entry in described.items():
        wanted[name] = WantedQueue(others, QueueWanted(name, entry, dead_name=entry.dead_letter_queue))
    return list(wanted.values())


def _elsewhere(nearest: S3Options | None, name: str) -> S3Options:
    """How to reach a bucket that no place uses: as the first one that is used."""
    if nearest is None:
        return S3Options(bucket=name)
    return nearest.model_copy(update={"bucket": name, "encryption": None, "kms_key_id": None})


def _described(bucket: ProvisionedBucket, options: S3Options) -> ProvisionedBucket:
    """The bucket's own encryption, unless it has one, is what its writers ask for."""
    if bucket.encryption is not None or options.encryption is None:
        return bucket
    return bucket.model_copy(update={"encryption": options.encryption, "kms_key_id": options.kms_key_id})


def _check_abort(name: str, bucket: ProvisionedBucket, sweep_after: float) -> None:
    if bucket.abort_incomplete_after_days * DAY <= sweep_after:
        raise ProvisionRefused(
            f"bucket {name}: abort_incomplete_after_days ({bucket.abort_incomplete_after_days}) has to be longer than "
            f"housekeeping.sweep_after ({sweep_after:.0f} s), within which an upload may still be running; raise it"
        )


def _statements(name: str, bucket: ProvisionedBucket) -> tuple[Statement, ...]:
    if bucket.bucket_policy in {PRIVATE, PUBLIC_READ}:
        return ()
    file = Path(bucket.bucket_policy)
    try:
        statements = statements_of(file.read_text(encoding="utf-8").replace("{bucket}", name))
    except (OSError, ValueError) as exc:
        raise ProvisionRefused(f"bucket {name}: bucket_policy {file} cannot be used: {exc}") from exc
    if not bucket.allow_public and any(map(is_public, statements)):
        raise ProvisionRefused(
            f"bucket {name}: bucket_policy {file} lets everybody in; if that is meant, set allow_public: true"
        )
    return statements


def _queue(name: str, entry: ProvisionedQueue | None, options: SqsOptions, *, buries: bool) -> QueueWanted:
    if entry is None:
        entry = ProvisionedQueue(fifo=name.endswith(".fifo"))
    configured = options.dead_letter_queue_url if isinstance(options, SqsQueueOptions) else None
    dead = entry.dead_letter_queue or (_name(configured) if configured else None)
    return QueueWanted(name, entry, options.queue_url, dead, buries)


def _sqs(options: AwsOptions, access: AccessSettings | None) -> SqsOptions:
    """How to reach any queue: one client serves all that are reached alike."""
    return SqsOptions(
        **{**_fields(SqsOptions, options), **_fields(SqsOptions, access), "queue_url": _NO_QUEUE}
    )


def _reached(options: S3Options, access: AccessSettings) -> dict[str, Any]:
    return {**_fields(S3Options, options), **_fields(S3Options, access)}


def _fields(model: type[AwsOptions], given: AwsOptions | None) -> Mapping[str, Any]:
    """What `given` says that `model` knows, by their fields' names. Who asks is one thing, where another."""
    return {
        name: value
        for name, value in given or ()
        if name in model.model_fields and (value is not None or name not in {"region", "endpoint_url"})
    }


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
