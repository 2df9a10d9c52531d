"""`resource.fetched`: copy one payload from staging into every target of its route."""

from collections.abc import Sequence
from dataclasses import dataclass

from backends.base import Attributes
from handlers.layouts import BundleFacts, ResourceFacts
from handlers.messages import ResourceFetched
from handlers.naming import resource_id, resource_name
from handlers.plan import Source, StagingSource, StorePlan, Write, find_source
from handlers.routes import Route, Routes
from handlers.stored_metadata import planned


@dataclass(frozen=True, slots=True)
class ResourceFetchedHandler:
    """Decides; handlers/execute.py acts."""

    staging: Sequence[StagingSource]
    routes: Routes

    def plan(self, command: ResourceFetched) -> StorePlan:
        """Where the payload is read and where it goes.

        Raises `Refused` with `staging_not_allowed` or `no_route`.
        """
        payload = command.payload
        source, key = find_source(self.staging, payload.location)
        route = self.routes.of_resource(command.bundle, command.resource)
        return StorePlan(
            command=command,
            route=route.name,
            resource_id=resource_id(command.resource.url),
            source=Source(source.name, key, payload.size, payload.sha256, payload.promised, payload.etag),
            writes=tuple(_writes(command, route)),
            bundle_targets=route.bundle_targets(_facts(command)),
            transforms=route.transforms_of(command.payload.size),
            limits=route.limits,
            max_size=route.max_size,
            deduplicate=route.deduplicate,
        )


def _writes(command: ResourceFetched, route: Route) -> list[Write]:
    resource = command.resource
    facts = ResourceFacts(resource_name(resource.url), resource.url, resource.content_type, resource.meta)
    attributes = _attributes(command)
    writes = []
    for target in route.targets:
        key = target.layout.resource_key(_facts(command), facts)
        sidecar_key = target.layout.sidecar_key(key)
        writes.append(
            Write(
                target.name,
                key,
                sidecar_key,
                attributes,
                required=target.required,
                server_copy=target.server_copy,
            )
        )
    return writes


def _facts(command: ResourceFetched) -> BundleFacts:
    return BundleFacts(command.bundle.bid, command.bundle.recipe_id)


def _attributes(command: ResourceFetched) -> Attributes:
    """The seed's user metadata: `url`, `content_type`, `status_code`, each where known; and the stored metadata."""
    resource = command.resource
    metadata = {"url": resource.url, **planned(command)}
    if resource.content_type is not None:
        metadata["content_type"] = resource.content_type
    if resource.status_code is not None:
        metadata["status_code"] = str(resource.status_code)
    return Attributes(resource.content_type, metadata)
