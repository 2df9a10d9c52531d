"""What of the process is told elsewhere: calls of backends into metrics, metrics to CloudWatch, traces to a collector.

Called by worker/bootstrap.py, and piece by piece by worker/storage.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import MappingProxyType

from backends.base import StorageBackend
from backends.errors import MissingExtra
from backends.measured import MeasuredBackend, Observation
from worker.metrics import Metrics
from worker.secret_values import hiding
from worker.settings import Settings
from worker.tracing import UNTRACED, Tracing
from worker.uploads import UploadLog


@asynccontextmanager
async def open_tracing(settings: Settings) -> AsyncIterator[Tracing]:
    """Raises `MissingExtra`."""
    if not settings.tracing.enabled:
        yield UNTRACED
        return
    try:
        # Its SDK is of an extra.
        from worker.opentelemetry_export import exporting  # noqa: PLC0415
        from worker.opentelemetry_tracing import OpenTelemetryTracing, destinations  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise MissingExtra(
            f"tracing needs the package {exc.name!r}; install it with: pip install 'transload[tracing]'"
        ) from exc
    messages, completions = destinations(settings)
    async with exporting(settings.tracing) as provider:
        yield OpenTelemetryTracing(
            provider,
            messages=messages,
            completions=completions,
            parent=settings.tracing.parent,
            hide=hiding(settings),
        )


def sending_metrics(settings: Settings, metrics: Metrics) -> AbstractAsyncContextManager[None]:
    """Raises `MissingExtra`."""
    try:
        # Its SDK is of an extra.
        from worker.cloudwatch import sending  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise MissingExtra(
            f"cloudwatch needs the package {exc.name!r}; install it with: pip install 'transload[cloudwatch]'"
        ) from exc
    return sending(settings.cloudwatch, metrics.registry)


def upload_logs(settings: Settings) -> Mapping[str, UploadLog]:
    """For the targets on S3."""
    return {
        name: UploadLog(target.options.model_dump()["bucket"])
        for name, target in settings.targets.items()
        if target.backend == "s3"
    }


def with_metrics(
    backends: Mapping[str, StorageBackend],
    metrics: Metrics,
    tracing: Tracing,
    kind: str = "",
    uploads: Mapping[str, UploadLog] = MappingProxyType({}),
) -> Mapping[str, StorageBackend]:
    """The same backends, every call counted under its name with `kind` before it."""

    def observer(name: str) -> Callable[[Observation], None]:
        count, log = partial(metrics.observe_backend, kind + name), uploads.get(name)

        def observe(seen: Observation) -> None:
            count(seen)
            tracing.observed(kind + name, seen)
            if log is not None:
                log(seen)

        return observe

    return {name: MeasuredBackend(backend, observer(name)) for name, backend in backends.items()}
