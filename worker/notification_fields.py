"""The fields of the completion notification, and what each means. worker/notification.py fills them in, message_reference.py tells.

Fields are only ever added within a version.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class CompletionTarget(TypedDict):
    """How the bundle lies in one of its targets."""

    target: Annotated[str, Field(description="The target's configured name.")]
    status: Annotated[
        Literal["stored", "incomplete"],
        Field(description="incomplete: best effort, and still without payloads."),
    ]
    storage_key: Annotated[str, Field(description="The folder of the bundle's resources.")]
    manifest_key: Annotated[str, Field(description="The bundle's manifest.")]
    missing: NotRequired[
        Annotated[int, Field(ge=1, description="How many payloads it is without; there when incomplete.")]
    ]


class Completion(TypedDict):
    """`bundle complete` v1: all of a bundle's resources are durable."""

    bundle_id: Annotated[str, Field(description="The bundle's id.")]
    recipe_id: Annotated[str, Field(description="As the bundle's first message said.")]
    primary_url: Annotated[str, Field(description="As the bundle's first message said.")]
    resources_count: Annotated[int, Field(ge=0, description="How many distinct resources are stored.")]
    storage_key: Annotated[str, Field(description="The folder of the resources in the first target.")]
    completion_timestamp: Annotated[
        str,
        Field(
            pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
            description="When the bundle became complete, by the ledger's clock, UTC.",
        ),
    ]
    metadata: Annotated[dict[str, Any], Field(description="That of bundle.closed, with resources_count set.")]
    event_id: Annotated[
        str,
        Field(json_schema_extra={"format": "uuid"}, description="The same in every copy: know a copy by it."),
    ]
    schema_version: Annotated[Literal[1], Field(description="Fields are only ever added within a version.")]
    status: Annotated[Literal["complete"], Field(description="The only one there is.")]
    targets: Annotated[
        list[CompletionTarget], Field(min_length=1, description="Every target, required ones first.")
    ]
    manifest_key: Annotated[str, Field(description="The manifest in the first target.")]
    traceparent: NotRequired[
        Annotated[
            str,
            Field(
                description="The trace that completed the bundle (W3C Trace Context), where it was traced."
            ),
        ]
    ]
    tracestate: NotRequired[Annotated[str, Field(description="What tracing systems added to it.")]]


class CompletionAttributes(TypedDict):
    """What goes beside the body: String attributes on SQS, headers on RabbitMQ."""

    bundle_id: str
    recipe_id: str
    completion_timestamp: str
    traceparent: NotRequired[str]
    tracestate: NotRequired[str]
