"""Notifications of stores: what S3, MinIO and EventBridge say happened to an object.

Called by handlers/messages.py, to tell them from messages, and by handlers/dispatch.py, to read them. What one means for a bundle
is said in handlers/object_created.py. Structures: S3's own, with `s3:TestEvent`
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html), MinIO's, which puts `minio:s3` there,
`s3:` before event names, and encodes `/` in keys, and EventBridge's
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html), where keys are not encoded.

Where a store says it is, who asked and from where, is not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import unquote_plus

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from handlers.errors import Refused

MOST_RECORDS: Final = 100
"""In one message. S3 and MinIO send one."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2300, 1, 1, tzinfo=UTC)
"""From then on a bundle's id could not tell the time (handlers/bids.py)."""

_NOTHING_NEW: Final = frozenset({"PutRetention", "PutLegalHold", "PutTagging", "DeleteTagging"})
"""What MinIO counts among `ObjectCreated` that leaves the bytes as they were."""


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object was put: all that identifies this put, and what is known of the bytes."""

    bucket: str
    key: str
    """As the store has it."""
    etag: str
    size: int | None
    milliseconds: int
    """When the store had it, since the epoch."""
    version: str | None = None
    sequencer: str | None = None
    content_type: str | None = None
    """As MinIO tells it; S3 does not."""


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event of which nothing follows."""

    what: str
    """For a log line."""


StorageEvent = ObjectCreated | OtherEvent


def is_storage_notification(content: Mapping[str, Any]) -> bool:
    """Whether S3, or a store that does as S3, sent this."""
    if content.get("Event") == "s3:TestEvent" or content.get("source") == "aws.s3":
        return True
    records = content.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    return isinstance(first, dict) and str(first.get("eventSource")).endswith(":s3")


def events_in(content: Mapping[str, Any]) -> tuple[StorageEvent, ...]:
    """What a notification tells, in its order. Raises `Refused("malformed")`."""
    if content.get("Event") == "s3:TestEvent":
        return (OtherEvent("s3:TestEvent"),)
    if content.get("source") == "aws.s3":
        return (_of_event_bridge(content),)
    records: Sequence[object] = content["Records"]
    if len(records) > MOST_RECORDS:
        raise Refused("malformed", f"Records: {len(records)} of them; at most {MOST_RECORDS} are read")
    return tuple(_of_record(record, f"Records.{place}") for place, record in enumerate(records))


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("not a time as ISO 8601 has it") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if not _EPOCH <= moment < _LAST:
        raise ValueError("a time between 1970 and 2300 is expected")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _decoded(key: str) -> str:
    """Of `application/x-www-form-urlencoded`: `+` is a space, and so is `%20`; a `/` may be itself or `%2F`."""
    try:
        return unquote_plus(key, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 once its encoding is undone") from None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


_Time = Annotated[str, Field(max_length=64), AfterValidator(_milliseconds)]
_Tag = Annotated[str, Field(min_length=1, max_length=256)]
_Note = Annotated[str, Field(max_length=1024)]


class _Bucket(_Model):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,255}$")]


class _Object(_Model):
    key: Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_decoded)]
    etag: _Tag = Field(alias="eTag")
    size: Annotated[int, Field(ge=0)] | None = None
    version: _Note | None = Field(default=None, alias="versionId")
    sequencer: _Note | None = None
    content_type: _Note | None = Field(default=None, alias="contentType")


class _S3(_Model):
    bucket: _Bucket
    object: _Object


class _Record(_Model):
    time: _Time = Field(alias="eventTime")
    s3: _S3


class _BridgedObject(_Model):
    key: Annotated[str, Field(min_length=1, max_length=10_000)]
    etag: _Tag
    size: Annotated[int, Field(ge=0)] | None = None
    version: _Note | None = Field(default=None, alias="version-id")
    sequencer: _Note | None = None


class _Detail(_Model):
    bucket: _Bucket
    object: _BridgedObject


class _Bridged(_Model):
    time: _Time
    detail: _Detail


def _of_record(record: object, where: str) -> StorageEvent:
    if not isinstance(record, dict) or not str(record.get("eventSource")).endswith(":s3"):
        raise Refused("malformed", f"{where}: not an event of S3, as the first one is")
    name = record.get("eventName")
    if not isinstance(name, str):
        raise Refused("malformed", f"{where}.eventName: a text is expected")
    kind, _, how = name.removeprefix("s3:").partition(":")
    if kind != "ObjectCreated" or how in _NOTHING_NEW:
        return OtherEvent(name[:100])
    try:
        read = _Record.model_validate(record)
    except ValidationError as exc:
        raise _malformed(exc, f"{where}.") from exc
    found = read.s3.object
    return _created(read.s3.bucket, found, read.time, found.content_type)


def _of_event_bridge(event: Mapping[str, Any]) -> StorageEvent:
    kind = event.get("detail-type")
    if kind != "Object Created":
        return OtherEvent(str(kind)[:100])
    try:
        read = _Bridged.model_validate(dict(event))
    except ValidationError as exc:
        raise _malformed(exc) from exc
    return _created(read.detail.bucket, read.detail.object, read.time)


def _created(
    bucket: _Bucket, found: _Object | _BridgedObject, time: Any, content_type: str | None = None
) -> StorageEvent:
    if found.key.endswith("/") and not found.size:
        # As consoles make "folders". MinIO leaves a size of 0 out.
        return OtherEvent(f"the mark of a folder: {found.key[:100]!a}")
    return ObjectCreated(
        bucket=bucket.name,
        key=found.key,
        etag=found.etag.strip('"'),
        size=found.size,
        milliseconds=time,
        version=found.version or None,
        sequencer=found.sequencer or None,
        content_type=content_type or None,
    )


def _malformed(error: ValidationError, before: str = "") -> Refused:
    """The first problem, located; never the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return Refused("malformed", f"{before}{where}: {first['msg'].removeprefix('Value error, ')}")
