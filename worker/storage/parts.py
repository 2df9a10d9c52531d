"""The parts of a worker that a storage works with, opened together. Used by worker/storage/keeper.py.

They are those of `transload run`, made by the same functions; there is no queue and no service: whoever adds a resource hands its
message to the pipeline.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from backends.base import StorageBackend
from handlers.plan import StagingSource
from worker import audit, bootstrap, stores, telemetry, unverified
from worker.disposition import RetryPolicy
from worker.ledger.base import Ledger
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.publishers.base import Outlet
from worker.relay import Relay
from worker.settings_in_process import StorageOptionsError, Storing
from worker.settings_process import HousekeepingSettings
from worker.storage.workspace import workspace
from worker.tracing import UNTRACED


@dataclass(frozen=True, slots=True)
class Parts:
    """Connected, for one event loop."""

    ledger: Ledger
    staging: StorageBackend
    source: StagingSource
    """The view that messages have of `staging`."""
    pipeline: Pipeline
    retry: RetryPolicy
    """Of messages."""
    publisher: Outlet
    relay: Callable[[Outlet], Relay]
    """A relay that announces through that outlet. Nobody runs it: it is told what to announce."""
    claim_seconds: float


@asynccontextmanager
async def open_parts(storing: Storing) -> AsyncGenerator[Parts, None]:
    """Everything a storage needs. Raises `StorageOptionsError`, a `StorageError`, a `LedgerError` or a `PublishError`."""
    if storing.why_not:
        raise StorageOptionsError(storing.why_not)
    async with AsyncExitStack() as stack:
        # The folder first: what follows puts its files beside it.
        staged = await stack.enter_async_context(workspace(storing.home / "staging"))
        settings = storing.settings(staged)
        unverified.warn(settings)
        metrics = Metrics()
        if settings.cloudwatch.enabled:
            await stack.enter_async_context(telemetry.sending_metrics(settings, metrics))
        if storing.provision is not None:
            # Its SDK is of an extra.
            from worker.storage.provisioning import provision  # noqa: PLC0415

            await provision(settings)
        ledger = await stack.enter_async_context(bootstrap.open_ledger(settings, audit.worker()))
        await _forget(ledger, settings.housekeeping)
        publisher = await stack.enter_async_context(bootstrap.open_publisher(settings))
        staging = await stack.enter_async_context(stores.open_staging(settings))
        targets = await stack.enter_async_context(stores.open_targets(settings, metrics.circuit))
        measured = telemetry.with_metrics(targets, metrics, UNTRACED, uploads=telemetry.upload_logs(settings))
        measured_staging = telemetry.with_metrics(staging, metrics, UNTRACED, "staging-")
        budget = bootstrap.make_budget(settings, metrics)
        (source,) = stores.staging_sources(settings)
        yield Parts(
            ledger=ledger,
            staging=measured_staging[source.name],
            source=source,
            pipeline=await bootstrap.make_pipeline(
                settings, ledger, measured_staging, measured, metrics, budget, _nobody
            ),
            retry=RetryPolicy(
                settings.worker.max_attempts,
                settings.worker.max_outage_attempts,
                settings.worker.retry_base,
                settings.worker.retry_cap,
            ),
            publisher=publisher,
            relay=partial(bootstrap.make_relay, settings, ledger, measured, metrics, budget),
            claim_seconds=settings.relay.lease,
        )


async def _forget(ledger: Ledger, settings: HousekeepingSettings) -> None:
    """Drop what the ledger knows of bundles that were published long ago."""
    keep = settings.keep_published
    while keep is not None and (await ledger.retire(keep, settings.batch)).bundles == settings.batch:
        continue


def _nobody() -> None:
    """Is told of complete bundles. Whoever completes one announces it."""
