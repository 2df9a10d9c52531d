"""What a message says, and which handler it belongs to. Called by worker/pipeline.py and `transload explain`."""

from dataclasses import dataclass, field

from handlers.bundle_closed import BundleClosedHandler
from handlers.messages import DEFAULT_LIMIT, BundleClosed, Command, command_in, content_of
from handlers.object_created import ObjectCreatedHandler
from handlers.plan import Plan
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.storage_notifications import (
    ObjectCreated,
    OtherEvent,
    StorageEvent,
    events_in,
    is_storage_notification,
)

Said = Command | StorageEvent
"""One thing that a message says. A command is one; a notification of a store may tell of several events."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """One handler for each kind of command. Made from settings alone: nothing is connected."""

    resource_fetched: ResourceFetchedHandler
    bundle_closed: BundleClosedHandler
    object_created: ObjectCreatedHandler = field(default_factory=ObjectCreatedHandler)

    def read(self, body: bytes, limit: int = DEFAULT_LIMIT) -> tuple[Said, ...]:
        """All that a message says, at least one thing.

        Raises `Refused` as `handlers.messages.decode` does; also for notifications, while no staging source takes any.
        """
        content = content_of(body, limit)
        if self.object_created.recipes and "type" not in content and is_storage_notification(content):
            return events_in(content)
        return (command_in(content),)

    def command(self, said: Said) -> Command | OtherEvent:
        """What is to be carried out of it, if anything. Raises `Refused`."""
        return self.object_created.command(said) if isinstance(said, ObjectCreated) else said

    def planned(self, said: Said) -> Plan | OtherEvent:
        """The plan for one thing a message says, if it leads to one. Raises `Refused`."""
        command = self.command(said)
        return command if isinstance(command, OtherEvent) else self.plan(command)

    def plan(self, command: Command) -> Plan:
        """What is to be done, without doing it. Raises `Refused`."""
        if isinstance(command, BundleClosed):
            return self.bundle_closed.plan(command)
        return self.resource_fetched.plan(command)

    def route(self, command: Command) -> str:
        """The name of the route it takes. Raises `Refused("no_route")`."""
        if isinstance(command, BundleClosed):
            return self.bundle_closed.routes.of_bundle(command.bundle).name
        return self.resource_fetched.routes.of_resource(command.bundle, command.resource).name
