"""Sends spans to a collector, by OpenTelemetry's SDK and OTLP over HTTP, on a thread of its own.

Opened by worker/bootstrap.py where tracing is on. Nothing here ever disturbs the worker: spans that cannot be sent are dropped,
which is logged once until it succeeds again, and of the process's end it takes little.

What the settings do not say, the SDK takes from its own variables, as `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and
`OTEL_EXPORTER_OTLP_CERTIFICATE` (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). It reads them
itself, as AWS's SDK reads its own; a key of the settings goes before.
"""

import asyncio
import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from worker.settings_process import TracingSettings

_LAST_WORDS: Final = 2.0
"""Seconds for what is still to be sent, while the process ends."""
_REQUEST: Final = 5.0
"""Seconds for one batch, its retries included."""
_WAITING: Final = 4096
"""Spans that wait to be sent; beyond that the oldest are dropped."""
_BATCH: Final = 512
_ROUND_MS: Final = 2000
_EXPORTERS: Final = "opentelemetry.exporter"
"""The logger of whatever sends. That of the SDK itself is left alone: it tells of dropped spans, at most three times a minute."""


class WatchedExporter(SpanExporter):
    """The exporter it is given; what becomes of the batches is logged where it changes."""

    def __init__(self, inner: SpanExporter, said: "Said") -> None:
        """`said` has heard why a batch failed."""
        self._inner = inner
        self._said = said
        self._failing = False
        self._closed = False
        self._log = structlog.get_logger("tracing")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called on the SDK's thread."""
        result = self._inner.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if self._closed:
            # Who broke it off has said so.
            return result
        if failing and not self._failing:
            self._log.warning("traces are not sent; spans are dropped meanwhile", error=self._said.last)
        elif self._failing and not failing:
            self._log.info("traces are sent again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """Breaks off what waits for another try. Calling it twice is harmless."""
        if not self._closed:
            self._closed = True
            self._inner.shutdown()


class Said(logging.Handler):
    """Remembers the last thing an exporter said of a failure, and says no more: it speaks of every try."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


@asynccontextmanager
async def exporting(settings: TracingSettings) -> AsyncIterator[TracerProvider]:
    """A provider whose spans are sent while the block runs, and what is left, within seconds, when it ends."""
    with _heard() as said:
        exporter = WatchedExporter(
            OTLPSpanExporter(
                settings.endpoint.rstrip("/") + "/v1/traces",
                headers={name: value.get_secret_value() for name, value in settings.headers.items()},
                timeout=_REQUEST,
                compression=Compression.Gzip,
            ),
            said,
        )
        provider = TracerProvider(
            ParentBasedTraceIdRatio(settings.sample_ratio),
            _resource(settings),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_WAITING,
                schedule_delay_millis=_ROUND_MS,
                max_export_batch_size=_BATCH,
                export_timeout_millis=_REQUEST * 1000,
            )
        )
        try:
            yield provider
        finally:
            await _end(provider, exporter)


def _resource(settings: TracingSettings) -> Resource:
    """Who sends these spans."""
    # Without a name the SDK would call it `unknown_service:python`.
    elsewhere = OTELResourceDetector().detect().attributes
    own = {
        SERVICE_NAME: settings.service_name or elsewhere.get(SERVICE_NAME) or "transload",
        SERVICE_VERSION: importlib.metadata.version("transload"),
    }
    return Resource.create(own)


async def _end(provider: TracerProvider, exporter: WatchedExporter) -> None:
    """The SDK's own end waits as long as a collector keeps it waiting; ours leaves the thread behind, which holds up nobody."""
    ending = threading.Thread(target=provider.shutdown, name="tracing ends", daemon=True)
    ending.start()
    try:
        await asyncio.to_thread(ending.join, _LAST_WORDS)
    finally:
        if ending.is_alive():
            structlog.get_logger("tracing").warning(
                "the last spans were not sent in time", seconds=_LAST_WORDS
            )
            exporter.shutdown()


@contextmanager
def _heard() -> Iterator[Said]:
    """What exporters log of their failures goes to us instead."""
    said, logger = Said(), logging.getLogger(_EXPORTERS)
    before = logger.propagate
    logger.addHandler(said)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(said)
        logger.propagate = before
