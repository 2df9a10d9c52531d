"""Traces by OpenTelemetry's API, after its conventions for messaging. Opened by worker/bootstrap.py where tracing is on.

Each message's work is a trace of its own that links to the message's sender, or, where that is wanted, a part of the sender's
trace. The span that records the message is the origin of the bundle's completion: its context lies in the outbox row and goes
out with every copy of the notification.

Names and attributes: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ (in development: what is used here
has been stable since 1.27). Attributes of our own begin with `transload.`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    format_span_id,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.contextvars import bound_contextvars

from backends.measured import Observation
from handlers.messages import Bundle, Command, ResourceFetched
from worker import notification
from worker.ledger.base import Ledger
from worker.ledger.values import Entry, OutboxRow, Recorded
from worker.publishers.base import Notification, PublishError
from worker.queues.base import Message, OutgoingMessage, Queue
from worker.redaction import one_line, redact
from worker.secret_values import Hide
from worker.settings_schema import Settings
from worker.tracing import Answered, TraceContext

LONGEST_TEXT: Final = 1024
"""Characters of an attribute; what is over it is cut."""

_OPERATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"open": "read", "write": "write", "copy_from": "copy", "stat": "stat", "delete": "delete"}
)
"""Calls of a backend that are spans, and what they are called."""
_SYSTEMS: Final[Mapping[str, str]] = MappingProxyType({"sqs": "aws_sqs"})
"""Where the conventions call a kind of queue something else."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages come from or go to, as the conventions name it: `aws_sqs`, `rabbitmq`, …, and the queue's name."""

    system: str
    name: str


def destinations(settings: Settings) -> tuple[Destination, Destination]:
    """Where messages come from and where completions go."""
    queue, publisher = settings.queue, settings.publisher
    return (
        Destination(_SYSTEMS.get(queue.type, queue.type), queue.options.queue_name or queue.type),
        Destination(
            _SYSTEMS.get(publisher.type, publisher.type), publisher.options.destination_name or publisher.type
        ),
    )


class OpenTelemetryTracing:
    """See worker/tracing.py for the port."""

    def __init__(
        self,
        provider: TracerProvider,
        *,
        messages: Destination,
        completions: Destination,
        parent: Literal["link", "child"] = "link",
        hide: Hide = redact,
    ) -> None:
        """`provider` is the caller's to shut down. `parent`: how a message's work hangs on the context it came with.

        `hide` takes secrets out of the texts of errors.
        """
        self._hide = hide
        self._tracer = provider.get_tracer("transload")
        self._messages = messages
        self._completions = completions
        self._child = parent == "child"
        self._wire = TraceContextTextMapPropagator()

    def begin_bundle(self, bundle: Bundle) -> TraceContext:
        with self._span("start bundle", attributes=_of_bundle(bundle)):
            return self._here()

    async def send(
        self, queue: Queue, message: OutgoingMessage, command: Command, within: TraceContext
    ) -> None:
        # A fetcher that traces knows better what its message belongs to.
        context = None if get_current_span().get_span_context().is_valid else self._context(within)
        attributes = {**_messaging(self._messages, "send"), **_of_command(command)}
        with self._span(f"send {self._messages.name}", SpanKind.PRODUCER, context, attributes=attributes):
            await queue.send([replace(message, attributes={**message.attributes, **self._here()})])

    async def receive(self, queue: Queue, limit: int, wait: float) -> Sequence[Message]:
        began = time.time_ns()
        messages = await queue.receive(limit, wait)
        # One that brought nothing is no event. A failed one is in the log, and comes again every other second.
        if messages:
            self._tracer.start_span(
                f"receive {self._messages.name}",
                Context(),
                SpanKind.CLIENT,
                {
                    **_messaging(self._messages, "receive"),
                    "messaging.batch.message_count": len(messages),
                },
                [
                    link
                    for message in messages
                    for link in self._links(message.attributes, {"messaging.message.id": _text(message.id)})
                ],
                began,
            ).end()
        return messages

    def processing(self, message: Message) -> AbstractContextManager[None]:
        links = self._links(message.attributes, {})
        attributes = {
            **_messaging(self._messages, "process"),
            "messaging.message.id": _text(message.id),
            "transload.receive_count": message.receive_count,
        }
        return self._within(
            f"process {self._messages.name}",
            SpanKind.CONSUMER,
            self._context(message.attributes) if self._child else Context(),
            [] if self._child else links,
            attributes,
        )

    def about(self, command: Command) -> None:
        get_current_span().set_attributes(_of_command(command))

    def note(self, **facts: str) -> None:
        get_current_span().set_attributes(
            {f"transload.{name}": _text(value) for name, value in facts.items()}
        )

    def failed(self, error: BaseException) -> None:
        self._fail(get_current_span(), error)

    def observed(self, backend: str, seen: Observation) -> None:
        name = _OPERATIONS.get(seen.op)
        # Housekeeping and probes belong to nothing, and would be traces of one span each.
        if name is None or not get_current_span().is_recording():
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"{name} {backend}",
            kind=SpanKind.CLIENT,
            attributes={
                "transload.backend": backend,
                "transload.key": _text(seen.key),
                "transload.size": seen.size,
            },
            start_time=ended - int(seen.seconds * 1e9),
        )
        if seen.outcome != "ok":
            span.set_attribute("error.type", seen.outcome)
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)

    async def record(self, ledger: Ledger, entry: Entry) -> Recorded:
        with self._span("record") as span:
            recorded = await ledger.record(replace(entry, trace=self._here()))
            if recorded.completed:
                span.set_attribute("transload.completed", value=True)
            return recorded

    def finalizing(self, row: OutboxRow) -> AbstractContextManager[None]:
        attributes = {"transload.bid": _text(row.bid), "transload.recipe_id": _text(row.recipe_id)}
        origin = self._context(notification.trace(row.body))
        return self._within("finalize", SpanKind.INTERNAL, origin, [], attributes)

    @contextmanager
    def publishing(self, notifications: Sequence[Notification]) -> Iterator[Answered]:
        spans = [self._publication(each) for each in notifications]

        def answered(outcomes: Sequence[PublishError | None]) -> None:
            for span, outcome in zip(spans, outcomes, strict=True):
                if outcome is not None:
                    self._fail(span, outcome)

        try:
            yield answered
        except BaseException as exc:
            for span in spans:
                self._fail(span, exc)
            raise
        finally:
            for span in spans:
                span.end()

    def _publication(self, one: Notification) -> Span:
        attributes = {
            **_messaging(self._completions, "send", "publish"),
            "messaging.message.id": one.event_id,
            "transload.bid": _text(one.attributes.get("bundle_id", "")),
            "transload.recipe_id": _text(one.group),
        }
        name, origin = f"publish {self._completions.name}", self._context(one.attributes)
        return self._tracer.start_span(name, origin, SpanKind.PRODUCER, attributes)

    @contextmanager
    def _within(
        self,
        name: str,
        kind: SpanKind,
        context: Context,
        links: Sequence[Link],
        attributes: Mapping[str, str | int],
    ) -> Iterator[None]:
        with self._span(name, kind, context, links, attributes):
            yield

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        context: Context | None = None,
        links: Sequence[Link] = (),
        attributes: Mapping[str, str | int] | None = None,
    ) -> Iterator[Span]:
        """The current span while it lasts, also of the log's lines. Without `context` it is a part of the current one."""
        with self._tracer.start_as_current_span(
            name,
            context,
            kind,
            attributes,
            links,
            # Both would show the error as it is, with whatever secrets are in it.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            ids = span.get_span_context()
            with bound_contextvars(
                trace_id=format_trace_id(ids.trace_id), span_id=format_span_id(ids.span_id)
            ):
                try:
                    yield span
                except BaseException as exc:
                    self._fail(span, exc)
                    raise

    def _fail(self, span: Span, error: BaseException) -> None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, _text(self._hide(str(error)))))

    def _here(self) -> TraceContext:
        """The current context, as it goes with a message."""
        carrier: dict[str, str] = {}
        self._wire.inject(carrier)
        return carrier

    def _context(self, carrier: TraceContext) -> Context:
        """The context that came with a message; an empty one where there is none, or none that W3C would accept."""
        return self._wire.extract(carrier, Context())

    def _links(self, carrier: TraceContext, attributes: Mapping[str, str]) -> list[Link]:
        found = get_current_span(self._context(carrier)).get_span_context()
        return [Link(found, attributes)] if found.is_valid else []


def _messaging(place: Destination, type_: str, name: str = "") -> dict[str, str | int]:
    return {
        "messaging.system": place.system,
        "messaging.destination.name": place.name,
        "messaging.operation.type": type_,
        "messaging.operation.name": name or type_,
    }


def _of_bundle(bundle: Bundle) -> dict[str, str | int]:
    return {"transload.bid": _text(bundle.bid), "transload.recipe_id": _text(bundle.recipe_id)}


def _of_command(command: Command) -> dict[str, str | int]:
    facts = {**_of_bundle(command.bundle), "transload.message_id": _text(command.id)}
    if isinstance(command, ResourceFetched):
        facts["transload.url"] = _text(command.resource.url)
    return facts


def _text(text: str) -> str:
    # Hidden before it is cut: half a secret would no longer be recognised.
    return one_line(redact(text))[:LONGEST_TEXT]
