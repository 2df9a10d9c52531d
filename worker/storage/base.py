"""What storages are to their users: the port, and the reference to a bundle. Implemented in worker/storage/own.py."""

from dataclasses import dataclass
from typing import Any, Protocol

from handlers.bids import BidFactory
from worker import producer
from worker.producer import Recipe


@dataclass(frozen=True, slots=True)
class BundleRef(producer.BundleRef):
    """As a producer's, with a bid from the beginning."""

    def __post_init__(self) -> None:
        if self.bid is None:
            object.__setattr__(self, "bid", BidFactory()())


class BundleContext(Protocol):
    """One bundle that is being fetched."""

    async def add_resource(self, url: str, content_type: str | None, status_code: int, stream: Any) -> None:
        """Store what the stream yields."""
        ...

    async def complete(self, metadata: dict[str, Any]) -> None:
        """Nothing more will come: announce the bundle."""
        ...


class Storage(Protocol):
    """What a fetcher needs of a storage."""

    async def start_bundle(self, bundle_ref: BundleRef, recipe: Recipe) -> BundleContext:
        """Begin a bundle."""
        ...
