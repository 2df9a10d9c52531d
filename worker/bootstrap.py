"""The only place that constructs: settings in, connected parts out. Staging and targets are opened by worker/stores.py, routes made
by worker/routing.py, metrics and traces connected by worker/telemetry.py.

Called by worker/cli.py, and piece by piece by worker/storage. Every part is opened inside an `AsyncExitStack`, so whatever was
opened is closed again, in the opposite order, also when the next one fails.
"""

import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from backends.base import StorageBackend
from backends.guards.breaker import breaker_of
from backends.registry import BACKENDS
from worker import audit, stores, unverified
from worker.admin import AdminServer
from worker.budget import Budget
from worker.circuits import Circuits
from worker.disposition import RetryPolicy
from worker.health import Health
from worker.housekeeping import Housekeeping, HousekeepingSettings, Place
from worker.intake import LOOK
from worker.ledger.base import Ledger
from worker.ledger.database import Database, check_schema, migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.producer import Producer
from worker.publishers.base import Outlet, Publisher
from worker.publishers.registry import PUBLISHERS
from worker.queues.base import Queue
from worker.queues.registry import QUEUES
from worker.relay import Relay, RelaySettings
from worker.routing import make_handlers
from worker.secret_values import hiding
from worker.service import Service, ServiceSettings
from worker.settings import Settings
from worker.settings_shares import concurrency_limits, memory_limits
from worker.shares import Shares
from worker.steps import open_keys
from worker.telemetry import open_tracing, sending_metrics, upload_logs, with_metrics
from worker.tracing import UNTRACED, Tracing


@asynccontextmanager
async def open_service(
    settings: Settings, *, admin: bool = True, tracing: Tracing | None = None
) -> AsyncIterator[Service]:
    """A worker, ready to `run`; with `admin` its metrics and probes are served, unless the settings say no.

    `tracing` is the caller's own; without, it is what the settings say.
    """
    unverified.warn(settings)
    async with AsyncExitStack() as stack:
        metrics, health = Metrics(), Health()
        if settings.cloudwatch.enabled:
            # First, so that it ends last: its last round has everything.
            await stack.enter_async_context(sending_metrics(settings, metrics))
        if tracing is None:
            tracing = await stack.enter_async_context(open_tracing(settings))
        ledger = await stack.enter_async_context(open_ledger(settings, audit.worker()))
        queue = await stack.enter_async_context(open_queue(settings))
        _show(metrics, health, settings, queue.name)
        publisher = await stack.enter_async_context(open_publisher(settings))
        staging = await stack.enter_async_context(stores.open_staging(settings))
        targets = await stack.enter_async_context(stores.open_targets(settings, metrics.circuit))
        health.schema_current = health.queue_reachable = True
        measured = with_metrics(targets, metrics, tracing, uploads=upload_logs(settings))
        measured_staging = with_metrics(staging, metrics, tracing, "staging-")
        budget = make_budget(settings, metrics)
        relay = make_relay(settings, ledger, measured, metrics, budget, publisher, tracing)
        pipeline = await make_pipeline(
            settings, ledger, measured_staging, measured, metrics, budget, relay.wake, tracing
        )
        if admin and settings.admin.enabled:
            chosen = settings.admin
            token = None if chosen.token is None else chosen.token.get_secret_value()
            server = AdminServer(metrics, health, host=chosen.host, port=chosen.port, token=token)
            stack.callback(server.close)
        yield Service(
            queue=queue,
            pipeline=pipeline,
            relay=relay,
            housekeeping=_housekeeping(settings, ledger, measured_staging, measured, metrics)
            if settings.housekeeping.enabled
            else None,
            ledger=ledger,
            settings=ServiceSettings(
                concurrency=settings.worker.concurrency,
                drain_timeout=settings.worker.drain_timeout,
                look_ahead=settings.worker.ahead,
                max_message_bytes=settings.worker.max_message_bytes,
                fair=settings.worker.fair,
                limits=concurrency_limits(settings.routes),
            ),
            retry=RetryPolicy(
                settings.worker.max_attempts,
                settings.worker.max_outage_attempts,
                settings.worker.retry_base,
                settings.worker.retry_cap,
            ),
            random=random.random,
            metrics=metrics,
            health=health,
            circuits=_circuits(settings, targets),
            tracing=tracing,
            hide=hiding(settings),
        )


def _show(metrics: Metrics, health: Health, settings: Settings, queue: str) -> None:
    """What is asked for at the moment of each scrape is right also when the event loop turns no more."""
    # What has no route has one name, too.
    metrics.expect(queue, [*(route.name for route in settings.routes.values() if route.enabled), "none"])
    metrics.concurrency.set(settings.worker.concurrency)
    metrics.event_loop_lag_seconds.set_function(lambda: health.lag)
    metrics.live.set_function(lambda: health.live().ok)
    metrics.ready.set_function(lambda: health.ready().ok)


@asynccontextmanager
async def open_housekeeping(settings: Settings) -> AsyncIterator[Housekeeping]:
    """For one round of it, without a worker and whether or not a worker would do it."""
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(settings))
        staging = await stack.enter_async_context(stores.open_staging(settings))
        targets = await stack.enter_async_context(stores.open_targets(settings))
        yield _housekeeping(settings, ledger, staging, targets, Metrics())


@asynccontextmanager
async def open_producer(settings: Settings, *, tracing: Tracing | None = None) -> AsyncIterator[Producer]:
    """The fetcher's side: stages into the first staging source, announces on the queue. `tracing` as for `open_service`."""
    unverified.warn(settings)
    async with AsyncExitStack() as stack:
        if tracing is None:
            tracing = await stack.enter_async_context(open_tracing(settings))
        source = stores.staging_sources(settings)[0]
        chosen = settings.staging[source.name]
        staging = await BACKENDS.load(chosen.backend).connect(chosen.options)
        stack.push_async_callback(staging.aclose)
        queue = await stack.enter_async_context(open_queue(settings))
        yield Producer(
            queue=queue,
            staging=staging,
            source=source,
            max_message_bytes=settings.worker.max_message_bytes,
            tracing=tracing,
        )


def open_ledger_database(settings: Settings) -> Database:
    """The ledger's database, before its schema is looked at. Raises `LedgerError`."""
    chosen = settings.ledger
    return open_database(chosen.url, pooler=chosen.pooler, listen=chosen.listen)


@asynccontextmanager
async def open_ledger(settings: Settings, actor: str | None = None) -> AsyncIterator[Ledger]:
    """The ledger. The embedded SQLite file is made and migrated here; a server's schema is only checked.

    `actor`: whom the audit trail names; by default whoever called the command.

    Raises `SchemaMismatch`, `LedgerUnavailable` or `LedgerCorrupt`.
    """
    database = open_ledger_database(settings)
    try:
        if database.dialect == "sqlite":
            await migrate(database)
        await check_schema(database)
    except BaseException:
        await database.aclose()
        raise
    kept_by = (actor or audit.operator()) if settings.audit.enabled else None
    ledger = SqlLedger(database, actor=kept_by, hide=hiding(settings))
    try:
        yield ledger
    finally:
        await ledger.aclose()


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    """The queue messages come from."""
    options = settings.queue.options
    if getattr(options, "prefetch", 1) is None:
        # A broker that pushes should send what is worked on at once and one look beyond it: what it sends, others do not get.
        worker = settings.worker
        prefetch = worker.concurrency + min(worker.ahead, max(LOOK, worker.concurrency))
        options = options.model_copy(update={"prefetch": prefetch})
    queue = await QUEUES.load(settings.queue.type).connect(options)
    try:
        yield queue
    finally:
        await queue.aclose()


@asynccontextmanager
async def open_publisher(settings: Settings) -> AsyncIterator[Publisher]:
    """Where completions go."""
    publisher = await PUBLISHERS.load(settings.publisher.type).connect(settings.publisher.options)
    try:
        yield publisher
    finally:
        await publisher.aclose()


def make_budget(settings: Settings, metrics: Metrics) -> Budget:
    """The memory of all transfers."""
    limits = memory_limits(settings.routes)
    budget = Budget(settings.worker.transfer_memory, limits, fair=settings.worker.fair)
    metrics.transfer_memory_bytes.set_function(lambda: budget.held)
    return budget


def make_relay(
    settings: Settings,
    ledger: Ledger,
    targets: Mapping[str, StorageBackend],
    metrics: Metrics,
    budget: Budget,
    publisher: Outlet,
    tracing: Tracing = UNTRACED,
) -> Relay:
    """A relay that announces through that publisher."""
    return Relay(
        ledger=ledger,
        publisher=publisher,
        targets=targets,
        settings=RelaySettings(
            batch=settings.relay.batch,
            lease=settings.relay.lease,
            poll_interval=settings.relay.poll_interval,
        ),
        retry=RetryPolicy(base=settings.relay.retry_base, cap=settings.relay.retry_cap),
        random=random.random,
        metrics=metrics,
        budget=budget,
        tracing=tracing,
    )


async def make_pipeline(
    settings: Settings,
    ledger: Ledger,
    staging: Mapping[str, StorageBackend],
    targets: Mapping[str, StorageBackend],
    metrics: Metrics,
    budget: Budget,
    on_complete: Callable[[], None],
    tracing: Tracing = UNTRACED,
) -> Pipeline:
    """The path of messages from `staging` to `targets`. Raises `KeyUnusable`, or a `StorageError`, as `open_keys` does."""
    spool = settings.home / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    return Pipeline(
        ledger=ledger,
        handlers=make_handlers(settings, await open_keys(settings)),
        staging=staging,
        targets=targets,
        max_message_bytes=settings.worker.max_message_bytes,
        budget=budget,
        spool=spool,
        on_complete=on_complete,
        on_referred=metrics.referred,
        tracing=tracing,
        threads=Shares(_threads(), fair=settings.worker.fair),
    )


def _threads() -> int:
    """As many as asyncio.to_thread has: https://docs.python.org/3/library/concurrent.futures.html#threadpoolexecutor."""
    processors: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return min(32, (processors() or 1) + 4)


def _housekeeping(
    settings: Settings,
    ledger: Ledger,
    staging: Mapping[str, StorageBackend],
    targets: Mapping[str, StorageBackend],
    metrics: Metrics,
) -> Housekeeping:
    chosen = settings.housekeeping
    deleting = {name: source for name, source in settings.staging.items() if source.delete_published}
    return Housekeeping(
        ledger=ledger,
        sources=stores.staging_sources(settings),
        deletable={name: staging[name] for name in deleting},
        places=[
            *(
                Place(f"staging-{name}", staging[name], place.prefix)
                for name, place in settings.staging.items()
            ),
            *(Place(name, targets[name], place.prefix) for name, place in settings.targets.items()),
        ],
        settings=HousekeepingSettings(
            interval=chosen.interval,
            batch=chosen.batch,
            delete_after=max((source.delete_after for source in deleting.values()), default=0.0),
            keep_published=chosen.keep_published,
            keep_attempts=chosen.keep_attempts,
            keep_audit=settings.audit.keep,
            sweep_after=chosen.sweep_after,
        ),
        random=random.random,
        metrics=metrics,
    )


def _circuits(settings: Settings, targets: Mapping[str, StorageBackend]) -> Circuits:
    before = {name: breaker_of(target) for name, target in targets.items()}
    return Circuits(
        [
            [guard for name in route.targets if (guard := before[name]) is not None]
            for route in settings.routes.values()
            if route.enabled
        ]
    )
