"""Traces: the port, and what stands in it while tracing is off.

The parts of the worker and the producer tell it what they do; where a message, a record or a notification is concerned, it
does that itself, inside a span. A trace context is a mapping with `traceparent` and perhaps `tracestate`, as W3C has them
(https://www.w3.org/TR/trace-context/); an empty one is none.

worker/opentelemetry_tracing.py is it switched on, and worker/bootstrap.py chooses. Off, nothing of OpenTelemetry is imported.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Final, Protocol

from backends.measured import Observation
from handlers.messages import Bundle, Command
from worker.ledger.base import Ledger
from worker.ledger.values import Entry, OutboxRow, Recorded
from worker.publishers.base import Notification, PublishError
from worker.queues.base import Message, OutgoingMessage, Queue

TraceContext = Mapping[str, str]
Answered = Callable[[Sequence[PublishError | None]], None]
NO_CONTEXT: Final[TraceContext] = MappingProxyType({})


class Tracing(Protocol):
    """What is told, in the order of a bundle's way. Nothing here changes a result or an error, waits, or raises one of its own."""

    def begin_bundle(self, bundle: Bundle) -> TraceContext:
        """A producer begins a bundle; the context its messages belong to."""
        ...

    async def send(
        self, queue: Queue, message: OutgoingMessage, command: Command, within: TraceContext
    ) -> None:
        """Send the message, which says `command`, with its context among its attributes; `within` is the bundle's."""
        ...

    async def receive(self, queue: Queue, limit: int, wait: float) -> Sequence[Message]:
        """As the queue's own."""
        ...

    def processing(self, message: Message) -> AbstractContextManager[None]:
        """What happens in here belongs to that message."""
        ...

    def about(self, command: Command) -> None:
        """The message in work says this."""
        ...

    def note(self, **facts: str) -> None:
        """Facts about what is under way."""
        ...

    def failed(self, error: BaseException) -> None:
        """What is under way has come to nothing."""
        ...

    def observed(self, backend: str, seen: Observation) -> None:
        """A call of the backend configured under that name has ended, just now."""
        ...

    async def record(self, ledger: Ledger, entry: Entry) -> Recorded:
        """As the ledger's own. The entry carries the context to the completion, should it complete its bundle."""
        ...

    def finalizing(self, row: OutboxRow) -> AbstractContextManager[None]:
        """What happens in here belongs to that completion."""
        ...

    def publishing(self, notifications: Sequence[Notification]) -> AbstractContextManager[Answered]:
        """In here these are published; what comes of it is told to what the block is given."""
        ...


class Untraced:
    """Tracing is off."""

    def begin_bundle(self, bundle: Bundle) -> TraceContext:  # noqa: ARG002 - the port's
        return NO_CONTEXT

    async def send(
        self,
        queue: Queue,
        message: OutgoingMessage,
        command: Command,  # noqa: ARG002 - the port's
        within: TraceContext,  # noqa: ARG002 - the port's
    ) -> None:
        await queue.send([message])

    async def receive(self, queue: Queue, limit: int, wait: float) -> Sequence[Message]:
        return await queue.receive(limit, wait)

    def processing(self, message: Message) -> AbstractContextManager[None]:  # noqa: ARG002 - the port's
        return nullcontext()

    def about(self, command: Command) -> None:
        pass

    def note(self, **facts: str) -> None:
        pass

    def failed(self, error: BaseException) -> None:
        pass

    def observed(self, backend: str, seen: Observation) -> None:
        pass

    async def record(self, ledger: Ledger, entry: Entry) -> Recorded:
        return await ledger.record(entry)

    def finalizing(self, row: OutboxRow) -> AbstractContextManager[None]:  # noqa: ARG002 - the port's
        return nullcontext()

    def publishing(self, notifications: Sequence[Notification]) -> AbstractContextManager[Answered]:  # noqa: ARG002 - the port's
        return nullcontext(_unheard)


def _unheard(_: Sequence[PublishError | None]) -> None:
    """For those who do not listen."""


UNTRACED: Final[Tracing] = Untraced()
