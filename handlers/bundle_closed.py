"""`bundle.closed`: the final count and metadata of a bundle."""

from dataclasses import dataclass

from handlers.messages import BundleClosed
from handlers.plan import ClosePlan, Route


@dataclass(frozen=True, slots=True)
class BundleClosedHandler:
    """Nothing moves; the ledger records what the bundle is to have."""

    route: Route

    def plan(self, command: BundleClosed) -> ClosePlan:
        """What to record."""
        return ClosePlan(command, self.route.name, self.route.bundle_targets(command.bundle.bid))
