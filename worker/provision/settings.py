"""The section `provision`: how buckets and queues are to be. worker/settings_schema.py hangs it into the settings."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from backends.aws_options import AwsOptions
from worker.settings_section import Section

PRIVATE: Final = "private"
PUBLIC_READ: Final = "public-read"

DAY: Final = 86_400
LONGEST_RETENTION: Final = 14 * DAY
"""https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html"""
INFREQUENT: Final = frozenset({"STANDARD_IA", "ONEZONE_IA"})
"""Classes that take objects from their 30th day on:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-transition-general-considerations.html"""

_BUCKET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PRESET: Final = re.compile(r"(archive|expire)-after-([1-9][0-9]{0,4})-days?")


class Transition(Section):
    """When objects move to another storage class."""

    days: int = Field(ge=0, description="Days after an object was written.")
    storage_class: Literal[
        "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"
    ] = Field(description="The class they move to.")


class Expiration(Section):
    """When objects are deleted."""

    days: int = Field(ge=1, description="Days after an object was written.")


class LifecyclePolicy(Section):
    """What becomes of objects as they age."""

    transitions: tuple[Transition, ...] = Field(default=(), description="In the order of their days.")
    expiration: Expiration | None = Field(default=None, description="Default: they stay.")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.transitions and self.expiration is None:
            raise ValueError("says nothing; give transitions or expiration, or leave it out")
        days = [transition.days for transition in self.transitions]
        if days != sorted(set(days)):
            raise ValueError("transitions are not in the order of their days; sort them, one a day")
        if any(each.days < 30 for each in self.transitions if each.storage_class in INFREQUENT):
            raise ValueError("STANDARD_IA and ONEZONE_IA take objects from their 30th day on; raise days")
        if self.expiration is not None and days and self.expiration.days <= days[-1]:
            raise ValueError("objects expire before their last transition; raise expiration.days")
        return self


def _preset(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = _PRESET.fullmatch(value)
    if found is None:
        raise ValueError(
            f"{value!r} is no preset; write archive-after-30-days or expire-after-365-days, or transitions and expiration"
        )
    days = int(found[2])
    if found[1] == "archive":
        return {"transitions": [{"days": days, "storage_class": "GLACIER"}]}
    return {"expiration": {"days": days}}


class _Encrypted(Section):
    encryption: str | None = None
    kms_key_id: str | None = Field(
        default=None, min_length=1, description="Key for `aws:kms`; by default the account's own."
    )

    @model_validator(mode="after")
    def _key_for_kms_only(self) -> Self:
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id needs encryption: aws:kms")
        return self


class ProvisionedBucket(_Encrypted):
    """One bucket. What is not given stays as it is."""

    bucket: str | None = Field(
        default=None,
        description="Its name, in which `{environment}` and `{name}` are filled in; default: `bucket_name` where there is an "
        "`environment`, else the key of this section.",
    )
    create_bucket: bool = Field(default=True, description="Whether it is made where it is missing.")
    bucket_policy: str = Field(
        default=PRIVATE,
        min_length=1,
        description="`private`, `public-read` (everybody may read every object), or the path of a JSON policy document, in which "
        "`{bucket}` is filled in. Statements of others stay.",
    )
    allow_public: bool = Field(
        default=False,
        description="Whether a policy may let everybody in; otherwise public access is blocked.",
    )
    versioning: bool | None = Field(default=None, description="Whether old versions of objects are kept.")
    lifecycle_policy: Annotated[
        LifecyclePolicy | None,
        BeforeValidator(_preset, json_schema_input_type=str | LifecyclePolicy | None),
    ] = Field(
        default=None,
        description="`archive-after-N-days` (to GLACIER), `expire-after-N-days`, or a mapping of `transitions` (a list of `days` and "
        "`storage_class`) and `expiration` (`days`). Rules of others stay.",
    )
    abort_incomplete_after_days: int = Field(
        default=7,
        ge=1,
        le=3650,
        description="Days after which S3 aborts an upload that nobody finished; longer than `housekeeping.sweep_after`.",
    )
    encryption: Literal["AES256", "aws:kms"] | None = Field(
        default=None,
        description="Of objects whose writer asks for none; by default as the place asks that uses the bucket.",
    )
    tags: Mapping[str, str] = Field(
        default_factory=dict, description="Tags of the bucket; those of others stay."
    )

    @model_validator(mode="after")
    def _public_on_purpose(self) -> Self:
        if self.bucket_policy == PUBLIC_READ and not self.allow_public:
            raise ValueError(
                "public-read lets everybody read the bucket; if that is meant, set allow_public: true"
            )
        return self


class ProvisionedQueue(_Encrypted):
    """One SQS queue and its dead letters. What is not given stays as it is."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,75}(\.fifo)?$")] | None = Field(
        default=None, description="Its name; default: the key of this section, with `.fifo` where it is one."
    )
    fifo: bool = Field(
        default=False, description="Whether it is made as a FIFO queue; cannot be changed later."
    )
    visibility_timeout: int | None = Field(
        default=None, ge=1, le=43_200, description="Seconds a message is hidden once it was received."
    )
    retention: int | None = Field(
        default=None,
        ge=60,
        lt=LONGEST_RETENTION,
        description="Seconds a message is kept; shorter than `dead_letter_retention`.",
    )
    dead_letter_queue: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,75}(\.fifo)?$")] | None = (
        Field(
            default=None,
            description="Name of the queue of its dead letters; default for the worker's queue: the one it has, else its name and "
            "`-dead`. Other queues have none unless it is given.",
        )
    )
    dead_letter_retention: int = Field(
        default=LONGEST_RETENTION,
        ge=120,
        le=LONGEST_RETENTION,
        description="Seconds a dead letter is kept, counted from when the message was sent.",
    )
    max_receive_count: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Receives after which SQS itself makes a dead letter of a message, without a reason; 1000 where it is made.",
    )
    encryption: Literal["sqs", "aws:kms"] | None = Field(
        default=None, description="At rest, of both queues: by keys of SQS (as every new one) or of KMS."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.name is not None and self.name.endswith(".fifo") is not self.fifo:
            raise ValueError(
                "the name of a FIFO queue, and of no other, ends with .fifo; correct name or fifo"
            )
        if self.dead_letter_queue is not None and self.dead_letter_queue.endswith(".fifo") is not self.fifo:
            raise ValueError("the dead letters of a FIFO queue go to a FIFO queue; correct dead_letter_queue")
        if self.retention is not None and self.retention >= self.dead_letter_retention:
            raise ValueError(
                f"dead letters would expire unseen: dead_letter_retention ({self.dead_letter_retention}) has to be longer than "
                f"retention ({self.retention})"
            )
        return self


class AccessSettings(Section, AwsOptions):
    """Who provisions: somebody who may do more than the worker may."""

    endpoint_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s/]+", description="Another endpoint than AWS's."
    )


def _template(value: object) -> object:
    if isinstance(value, str) and (
        wrong := set(re.findall(r"\{[^}]*\}?", value)) - {"{environment}", "{name}"}
    ):
        raise ValueError(f"{min(wrong)!r} is not known; there are {{environment}} and {{name}}")
    return value


class ProvisionSettings(Section):
    """What `transload provision` makes, beyond the buckets and queues that the other sections name."""

    environment: str | None = Field(
        default=None, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", description="`staging`, `production`, …"
    )
    bucket_name: Annotated[str, BeforeValidator(_template)] = Field(
        default="oc-fetcher-{environment}",
        description="The name of a bucket that gives none, where there is an `environment`; `{name}` is the key of its section.",
    )
    access: AccessSettings | None = Field(
        default=None,
        description="Who provisions; by default whoever uses the bucket or queue, and for others the first of those.",
    )
    buckets: Mapping[str, ProvisionedBucket] = Field(
        default_factory=dict,
        description="Buckets by a name of yours. One that a place uses is described here by its `bucket`.",
    )
    queues: Mapping[str, ProvisionedQueue] = Field(
        default_factory=dict,
        description="Queues by a name of yours. One that is used is described here by its `name`.",
    )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for kind, names in (("bucket", self.named_buckets), ("queue", self.named_queues)):
            if len(names) < len(self.buckets if kind == "bucket" else self.queues):
                raise ValueError(
                    f"two {kind}s have the same name; give each its own, with {{name}} or {kind}s.<name>"
                )
        return self

    @property
    def named_buckets(self) -> dict[str, ProvisionedBucket]:
        """The buckets by what S3 knows them by. Raises `ValueError` for a name S3 does not take."""
        named = {}
        for key, each in self.buckets.items():
            template = each.bucket or (self.bucket_name if self.environment else "{name}")
            _template(template)
            if "{environment}" in template and self.environment is None:
                raise ValueError(
                    f"buckets.{key}: its name holds {{environment}}, which is not set; set environment"
                )
            name = template.replace("{environment}", self.environment or "").replace("{name}", key)
            if not _BUCKET_NAME.fullmatch(name):
                raise ValueError(
                    f"buckets.{key}: {name!r} is no name of a bucket: 3 to 63 of a-z, 0-9, '.' and '-', at the ends no sign"
                )
            named[name] = each
        return named

    @property
    def named_queues(self) -> dict[str, ProvisionedQueue]:
        """The queues by what SQS knows them by."""
        return {
            each.name or f"{key}{'.fifo' if each.fifo else ''}": each for key, each in self.queues.items()
        }

    def rooted(self, absolute: Callable[[Path], Path]) -> "ProvisionSettings":
        """The same with the paths of policy documents made absolute."""
        changed: dict[str, Any] = {
            key: each
            if each.bucket_policy in {PRIVATE, PUBLIC_READ}
            else each.model_copy(update={"bucket_policy": str(absolute(Path(each.bucket_policy)))})
            for key, each in self.buckets.items()
        }
        return self.model_copy(update={"buckets": changed})
