"""Settings of what Transload is connected to: the queue, staging, targets, the routes to them, the publisher.

worker/settings_schema.py hangs them into the settings. An adapter's own keys are not here: they are its `Options`, and lie in
`options` of the section that names the adapter.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.config import JsonDict

from backends.base import BackendOptions
from backends.guards.breaker import BreakerOptions
from backends.guards.rate_limit import RateLimitOptions
from backends.guards.read_cache import CacheOptions
from backends.guards.retry import RetryOptions
from backends.guards.timeouts import TimeoutOptions
from handlers.layouts import check_layout
from handlers.object_created import check_recipe
from handlers.transforms.base import Limits
from handlers.transforms.max_size import MaxSize
from handlers.transforms.registry import TRANSFORMS
from worker.publishers.base import PublisherOptions
from worker.queues.base import QueueOptions
from worker.settings_section import Section

PREFIX_LIMIT = 512
"""Longest prefix, in UTF-8 bytes: half of what a key may have."""

HOME_DEFAULTS: Final[Mapping[tuple[str, str], tuple[str, str]]] = MappingProxyType(
    {
        ("queue", "embedded"): ("path", "queue.db"),
        ("publisher", "embedded"): ("path", "completions.db"),
        ("staging", "file"): ("root", "staging"),
        ("targets", "file"): ("root", "storage"),
    }
)
"""Section and adapter -> the option that has a default below `home`, and that default."""


def _prefix(value: str) -> str:
    segments = [segment for segment in value.split("/") if segment]
    if any(segment in {".", ".."} for segment in segments):
        raise ValueError("a prefix has no '.' or '..' segments; name the place directly")
    if not value.isprintable():
        raise ValueError("a prefix has no control characters; remove them")
    prefix = "/".join(segments)
    if len(prefix.encode()) > PREFIX_LIMIT:
        raise ValueError(f"a prefix has at most {PREFIX_LIMIT} bytes; shorten it")
    return prefix


def _patterns(value: object) -> object:
    """One pattern may stand alone."""
    return (value,) if isinstance(value, str) else value


def _bytes_alone(value: object) -> object:
    """A number may stand for a mapping with only that."""
    return value if value is None or isinstance(value, dict | MaxSize) else {"bytes": value}


Prefix = Annotated[str, AfterValidator(_prefix)]
LayoutSpec = Annotated[str, AfterValidator(check_layout)]
RecipeTemplate = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(check_recipe)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]


class QueueSettings(Section):
    """Where messages come from."""

    type: str = Field(default="embedded", description="The queue adapter.")
    options: SerializeAsAny[QueueOptions]


class PublisherSettings(Section):
    """Where completions go."""

    type: str = Field(default="embedded", description="The publisher adapter.")
    options: SerializeAsAny[PublisherOptions]


class _Guarded(Section):
    """What stands around a place (backends/guards)."""

    timeouts: TimeoutOptions | None = Field(
        default=None, description="Deadlines for the store's own time; off unless given."
    )
    rate_limit: RateLimitOptions | None = Field(
        default=None, description="Requests and bytes a second; off unless given."
    )
    breaker: BreakerOptions | None = Field(
        default=None,
        description="Leave a store alone that keeps being unavailable, and take no messages for it; off unless given.",
    )
    retry: RetryOptions | None = Field(
        default=None,
        description="Try calls again that can be replayed, never a write; off unless given: most SDKs do it.",
    )
    cache: CacheOptions | None = Field(
        default=None, description="Keep what was read on a local disk; off unless given."
    )


class NotificationSettings(Section):
    """What becomes of an object of which only its store tells."""

    bundle: Literal["object"] = Field(
        default="object", description="What a bundle is: each object that is put, alone."
    )
    recipe_id: RecipeTemplate = Field(
        default="{staging}",
        description="The recipe of these bundles, in which `{staging}` (the name of this source) and `{folder}` (the first folder of "
        "the key below the prefix) are filled in.",
    )


class StagingSettings(_Guarded):
    """A place payloads are read from."""

    name: Name
    backend: str = Field(default="file", description="The storage adapter.")
    prefix: Prefix = Field(default="", description="Only what lies under it counts as staged.")
    delete_published: bool = Field(
        default=False,
        description="Whether payloads are deleted once their bundle is published. Not for payloads that several bundles name.",
    )
    delete_after: float = Field(
        default=0.0,
        ge=0,
        le=1_209_600,
        description="Seconds they stay after that; where several sources delete, the longest of them counts for all.",
    )
    notifications: NotificationSettings | None = Field(
        default=None,
        description="Whether objects are stored of which only a notification of S3 or MinIO tells, and how; off unless given. Not with "
        "`delete_published`.",
    )
    options: SerializeAsAny[BackendOptions]


class TargetSettings(_Guarded):
    """A place objects are written to."""

    name: Name
    backend: str = Field(default="file", description="The storage adapter.")
    layout: LayoutSpec = Field(
        default="oc",
        description="How keys are built below the prefix: `oc`, `oc-v1`, `hive`, `dated`, or a template as `{recipe_id}/{bid}/{name}`.",
    )
    prefix: Prefix = Field(default="", description="Put before every key.")
    archive: Literal["zip", "tar.zst", "tar.gz"] | None = Field(
        default=None,
        description="Write all resources of a complete bundle there as one file besides, of this format, before it is announced.",
    )
    server_copy: bool = Field(
        default=True,
        description="Whether a payload that is staged in the same store is copied there, not read and written here.",
    )
    options: SerializeAsAny[BackendOptions]


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]


class StepSettings(Section):
    """One transform of a route: in the file its name, or a mapping of its name to its options."""

    name: str
    options: SerializeAsAny[BaseModel]


def _or_a_number(schema: JsonDict) -> None:
    """As `_bytes_alone` has it."""
    cast("list[JsonDict]", schema["anyOf"]).append({"type": "integer", "minimum": 1})


Steps = Annotated[
    tuple[StepSettings, ...],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"enum": TRANSFORMS.names()},
                    {
                        "type": "object",
                        "propertyNames": {"enum": TRANSFORMS.names()},
                        "minProperties": 1,
                        "maxProperties": 1,
                    },
                ]
            },
        }
    ),
]


class RouteSettings(Section):
    """Which messages go to which targets. Of several routes the first that matches counts, in the order of the file.

    What is not given matches everything; of several patterns one has to fit. Patterns are those of a shell: `*`, `?`, `[a-z]`.
    """

    name: Name
    enabled: bool = Field(
        default=True, description="Whether it is looked at; its messages go on to the next."
    )
    recipe_id: Patterns = Field(default=(), description="Patterns of the bundle's recipe.")
    queue: Patterns = Field(
        default=(), description="Patterns of the queue's name, for a file that several deployments share."
    )
    url: Patterns = Field(default=(), description="Patterns of the resource's whole URL.")
    content_type: Patterns = Field(
        default=(), description="Patterns of the resource's media type, in lower case and without parameters."
    )
    targets: tuple[Name, ...] = Field(
        default=(),
        description="Names out of `targets` that a bundle is not complete without; default: all that `best_effort` does not name.",
    )
    best_effort: tuple[Name, ...] = Field(
        default=(),
        description="Names out of `targets` that a bundle does not wait for. What fails there is tried again alone, and becomes a "
        "dead letter in the end.",
    )
    transforms: Steps = Field(
        default=(),
        description="What is done to each payload on its way, in order: names, or `{name: {option: value}}`.",
    )
    limits: Limits = Field(default=Limits(), description="What `transforms` may make of one payload.")
    max_size: Annotated[MaxSize | None, BeforeValidator(_bytes_alone)] = Field(
        default=None,
        description="How large an object may be that is stored, after all transforms; a number alone is its `bytes`.",
        json_schema_extra=_or_a_number,
    )
    deduplicate: bool = Field(
        default=False,
        description="Whether an identical payload of this route is stored once in each target, and referred to from then on. Not "
        "with `transforms`.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Messages of the route in work at once; default: no limit of its own.",
    )
    transfer_memory: int | None = Field(
        default=None,
        ge=8_388_608,
        description="Bytes its transfers may hold in memory together, out of `worker.transfer_memory`; default: no limit of its own. "
        "What alone needs more goes alone.",
    )
    layout: LayoutSpec | None = Field(
        default=None, description="How keys are built, in place of each target's own `layout`."
    )
