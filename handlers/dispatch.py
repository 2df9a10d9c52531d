"""Which handler a command belongs to. Called by worker/pipeline.py and `transload explain`."""

from dataclasses import dataclass

from handlers.bundle_closed import BundleClosedHandler
from handlers.messages import BundleClosed, Command
from handlers.plan import Plan
from handlers.resource_fetched import ResourceFetchedHandler


@dataclass(frozen=True, slots=True)
class Handlers:
    """One handler for each kind of command. Made from settings alone: nothing is connected."""

    resource_fetched: ResourceFetchedHandler
    bundle_closed: BundleClosedHandler

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
