"""The port of every place completion notifications go.

The contract all adapters keep, proven by tests/conformance/test_publishers.py:

- A notification reported as published is durably accepted. One whose reply was lost is reported as failed and will be
  published again: at least once, with the same id and the same bytes.
- One bad notification never fails its neighbours: the outcome is per notification.
- The body goes out byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Notification:
    """One completion, frozen when its outbox row was committed."""

    event_id: str
    """The same for every copy; FIFO queues deduplicate by it."""
    group: str
    """The recipe's id; FIFO queues order by it."""
    body: bytes
    attributes: Mapping[str, str]


class PublishError(Exception):
    """The notification was not (or not certainly) accepted. The message says what to do, and names no credential."""

    retryable = True


class PublishRefused(PublishError):
    """It never will be: too large, malformed, or forbidden by configuration."""

    retryable = False


class PublisherOptions(BaseModel):
    """What an adapter is configured with; each adapter's `Options` extends it. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def destination_name(self) -> str:
        """What traces call the destination."""
        return ""


class Outlet(Protocol):
    """What whoever has notifications needs."""

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        """Publish all; one outcome per notification, in order: None when durably accepted."""
        ...


class Publisher(Outlet, Protocol):
    """See the module's docstring for what holds everywhere; adapters document only how they differ."""

    Options: ClassVar[type[PublisherOptions]]

    @property
    def destination(self) -> str:
        """Where notifications go, for logs and `transload status`: a queue's URL, a file's path."""
        ...

    async def aclose(self) -> None:
        """Release connections. Calling it twice is harmless."""
        ...

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:
        """Open the destination. Raises `PublishError` with what to do about it when it is not there or refuses."""
        ...
