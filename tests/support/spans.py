"""Spans kept in memory, and shown as a tree: what the tests of tracing look at."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.opentelemetry_tracing import Destination, OpenTelemetryTracing, destinations
from worker.redaction import redact
from worker.secret_values import hiding
from worker.settings import Settings

QUEUE = Destination("aws_sqs", "resources")
COMPLETIONS = Destination("rabbitmq", "completions")


class Spans:
    """A provider of its own, and every span that ended."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def tracing(
        self, settings: Settings | None = None, parent: Literal["link", "child"] = "link"
    ) -> OpenTelemetryTracing:
        """For these settings, or for `QUEUE` and `COMPLETIONS`."""
        messages, completions = (QUEUE, COMPLETIONS) if settings is None else destinations(settings)
        hide = redact if settings is None else hiding(settings)
        return OpenTelemetryTracing(
            self.provider, messages=messages, completions=completions, parent=parent, hide=hide
        )

    def consumed(self, attributes: Mapping[str, str]) -> None:
        """What whoever takes a completion makes of it: a span below the context it carries."""
        context = TraceContextTextMapPropagator().extract(attributes)
        tracer = self.provider.get_tracer("a consumer")
        tracer.start_span("use completion", context, SpanKind.CONSUMER).end()

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """In the order in which they began."""
        return tuple(sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def tree(self, names: Mapping[str, str] = MappingProxyType({})) -> str:
        """Each span below its parent: its kind, its name, what went wrong, and what it links to. `names` replaces random ones."""
        lines: list[str] = []
        found = self.all
        by_id = {id_of(span): span for span in found}

        def show(span: ReadableSpan, depth: int) -> None:
            error = f" !{attributes(span)['error.type']}" if "error.type" in attributes(span) else ""
            links = ", ".join(
                by_id[link.context.span_id].name if link.context.span_id in by_id else "?"
                for link in span.links
            )
            kind = "" if span.kind is SpanKind.INTERNAL else f"{span.kind.name} "
            lines.append(f"{'  ' * depth}{kind}{span.name}{error}{f' -> {links}' if links else ''}")
            for child in found:
                if child.parent is not None and child.parent.span_id == id_of(span):
                    show(child, depth + 1)

        for span in found:
            if span.parent is None or span.parent.span_id not in by_id:
                show(span, 0)
        text = "\n".join(lines)
        for random, name in names.items():
            text = text.replace(random, name)
        return text


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
