"""`bundle.closed`: the final count and metadata of a bundle."""

from dataclasses import dataclass

from handlers.layouts import BundleFacts
from handlers.messages import BundleClosed
from handlers.plan import ClosePlan
from handlers.routes import Routes


@dataclass(frozen=True, slots=True)
class BundleClosedHandler:
    """Nothing moves; the ledger records what the bundle is to have."""

    routes: Routes

    def plan(self, command: BundleClosed) -> ClosePlan:
        """What to record. Raises `Refused("no_route")`."""
        route = self.routes.of_bundle(command.bundle)
        facts = BundleFacts(command.bundle.bid, command.bundle.recipe_id)
        return ClosePlan(command, route.name, route.bundle_targets(facts))
