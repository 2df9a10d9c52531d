"""The only place that constructs, with worker/stores.py for staging and targets: settings in, connected parts out.

Called by worker/cli.py, and piece by piece by worker/storage. Every part is opened inside an `AsyncExitStack`, so whatever was
opened is closed again, in the opposite order, also when the next one fails.
"""

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType

from backends.base import StorageBackend
from backends.errors import MissingExtra
from backends.guards.breaker import breaker_of
from backends.measured import MeasuredBackend, Observation
from backends.registry import BACKENDS
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.layouts import make_layout
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Match, Route, Routes, Target
from handlers.transforms.key_ring import KeyRing
from worker import audit, stores, unverified
from worker.admin import AdminServer
from worker.budget import Budget
from worker.circuits import Circuits
from worker.disposition import RetryPolicy
from worker.health import Health
from worker.housekeeping import Housekeeping, HousekeepingSettings, Place
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
from worker.service import Service, ServiceSettings
from worker.settings import Settings
from worker.settings_places import RouteSettings
from worker.steps import open_keys, steps_of
from worker.tracing import UNTRACED, Tracing
from worker.uploads import UploadLog


def make_handlers(settings: Settings, keys: KeyRing | None = None) -> Handlers:
    """The handlers with their routes and staging sources; `keys` are for plans that are carried out."""
    routes = Routes(
        tuple(_route(settings, route, keys) for route in settings.routes.values() if route.enabled),
        settings.queue.options.queue_name,
    )
    return Handlers(
        ResourceFetchedHandler(stores.staging_sources(settings), routes),
        BundleClosedHandler(routes),
        stores.object_created(settings),
    )


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
            settings=ServiceSettings(settings.worker.concurrency, settings.worker.drain_timeout),
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
        )


def _show(metrics: Metrics, health: Health, settings: Settings, queue: str) -> None:
    """What is asked for at the moment of each scrape is right also when the event loop turns no more."""
    metrics.expect(queue)
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
            provider, messages=messages, completions=completions, parent=settings.tracing.parent
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
    ledger = SqlLedger(database, actor=(actor or audit.operator()) if settings.audit.enabled else None)
    try:
        yield ledger
    finally:
        await ledger.aclose()


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    """The queue messages come from."""
    options = settings.queue.options
    if getattr(options, "prefetch", 1) is None:
        # A broker that pushes should send as much as is worked on at once, and no more.
        options = options.model_copy(update={"prefetch": settings.worker.concurrency})
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
    budget = Budget(settings.worker.transfer_memory)
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
    )


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


def _route(settings: Settings, route: RouteSettings, keys: KeyRing | None) -> Route:
    names = [*route.targets, *route.best_effort]
    asked = {
        "recipe_id": route.recipe_id,
        "queue": route.queue,
        "url": route.url,
        "content_type": route.content_type,
    }
    targets = tuple(_target(settings, route, name) for name in names)
    return Route(
        route.name,
        targets,
        Match(asked),
        steps_of(route, keys),
        route.limits,
        route.max_size,
        deduplicate=route.deduplicate,
    )


def _target(settings: Settings, route: RouteSettings, name: str) -> Target:
    chosen = settings.targets[name]
    features = BACKENDS.load(chosen.backend).features_of(chosen.options)
    layout = make_layout(route.layout or chosen.layout, chosen.prefix, keeps_attributes=features.attributes)
    return Target(
        name,
        layout,
        required=name in route.targets,
        server_copy=chosen.server_copy,
        rank=list(settings.targets).index(name),
        archive=chosen.archive or "",
    )
