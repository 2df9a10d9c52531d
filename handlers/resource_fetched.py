"""`resource.fetched`: copy one payload from staging into every target of its route."""

from collections.abc import Sequence
from dataclasses import dataclass

from backends.base import Attributes
from handlers.messages import ResourceFetched
from handlers.naming import resource_id, resource_name
from handlers.plan import Route, Source, StagingSource, StorePlan, Write, find_source


@dataclass(frozen=True, slots=True)
class ResourceFetchedHandler:
    """Decides; handlers/execute.py acts."""

    staging: Sequence[StagingSource]
    route: Route

    def plan(self, command: ResourceFetched) -> StorePlan:
        """Where the payload is read and where it goes.

        Raises `Refused("staging_not_allowed")`.
        """
        source, key = find_source(self.staging, command.payload.location)
        return StorePlan(
            command=command,
            route=self.route.name,
            resource_id=resource_id(command.resource.url),
            source=Source(source.name, key, command.payload.size, command.payload.sha256),
            writes=tuple(self._writes(command)),
            bundle_targets=self.route.bundle_targets(command.bundle.bid),
        )

    def _writes(self, command: ResourceFetched) -> list[Write]:
        name = resource_name(command.resource.url)
        attributes = _attributes(command)
        writes = []
        for target in self.route.targets:
            key = target.layout.resource_key(command.bundle.bid, name)
            writes.append(Write(target.name, key, target.layout.sidecar_key(key), attributes))
        return writes


def _attributes(command: ResourceFetched) -> Attributes:
    """The seed's user metadata: `url`, `content_type`, `status_code`, each where known."""
    resource = command.resource
    metadata = {"url": resource.url}
    if resource.content_type is not None:
        metadata["content_type"] = resource.content_type
    if resource.status_code is not None:
        metadata["status_code"] = str(resource.status_code)
    return Attributes(resource.content_type, metadata)
