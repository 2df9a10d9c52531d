"""Opens what settings name as staging and targets, each with its guards. The part of worker/bootstrap.py about stores."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from backends.base import StorageBackend
from backends.deferred import DeferredBackend
from backends.errors import Unavailable
from backends.guards.breaker import CircuitState
from backends.guards.stack import GuardOptions, guarded
from backends.registry import BACKENDS
from handlers.object_created import ObjectCreatedHandler
from handlers.plan import StagingSource
from worker.settings import Settings
from worker.settings_places import StagingSettings, TargetSettings

Heard = Callable[[str, CircuitState], None]
Place = StagingSettings | TargetSettings


def _unheard(_: str, __: CircuitState) -> None:
    """For those who do not listen."""


def staging_sources(settings: Settings) -> tuple[StagingSource, ...]:
    """Where payloads may be read from."""
    return tuple(
        StagingSource(name, BACKENDS.load(staging.backend).location_of(staging.options), staging.prefix)
        for name, staging in settings.staging.items()
    )


def object_created(settings: Settings) -> ObjectCreatedHandler:
    """For notifications about what appears there."""
    recipes = {
        name: staging.notifications.recipe_id
        for name, staging in settings.staging.items()
        if staging.notifications is not None
    }
    return ObjectCreatedHandler(staging_sources(settings), recipes)


@asynccontextmanager
async def open_staging(settings: Settings) -> AsyncIterator[Mapping[str, StorageBackend]]:
    """Every staging source with its guards, by name. Raises a `StorageError` when one cannot be opened."""
    async with AsyncExitStack() as stack:
        opened: dict[str, StorageBackend] = {}
        for name, place in settings.staging.items():
            opened[name] = await _guarded(stack, name, place, await _connected(stack, place), _unheard)
        yield opened


@asynccontextmanager
async def open_targets(
    settings: Settings, on_circuit: Heard = _unheard
) -> AsyncIterator[Mapping[str, StorageBackend]]:
    """Every target with its guards, by name; `on_circuit` hears of its circuit breaker.

    A target that is unavailable does not keep the others from being served: it is connected when it can be. Raises a
    `StorageError` when none is available, or when waiting would mend nothing.
    """
    async with AsyncExitStack() as stack:
        connected: dict[str, StorageBackend] = {}
        unavailable: dict[str, Unavailable] = {}
        for name, place in settings.targets.items():
            try:
                connected[name] = await _connected(stack, place)
            except Unavailable as exc:
                unavailable[name] = exc
        if unavailable and not connected:
            raise next(iter(unavailable.values()))
        for name, reason in unavailable.items():
            structlog.get_logger("stores").warning(
                "a target is unavailable; it is tried again", target=name, error=str(reason)
            )
            place = settings.targets[name]
            connected[name] = DeferredBackend(BACKENDS.load(place.backend), place.options, reason)
            stack.push_async_callback(connected[name].aclose)
        yield {
            name: await _guarded(stack, name, place, connected[name], on_circuit)
            for name, place in settings.targets.items()
        }


async def _connected(stack: AsyncExitStack, place: Place) -> StorageBackend:
    backend = await BACKENDS.load(place.backend).connect(place.options)
    stack.push_async_callback(backend.aclose)
    return backend


async def _guarded(
    stack: AsyncExitStack, name: str, place: Place, backend: StorageBackend, on_circuit: Heard
) -> StorageBackend:
    guards = GuardOptions(
        timeouts=place.timeouts,
        rate_limit=place.rate_limit,
        breaker=place.breaker,
        retry=place.retry,
        cache=place.cache,
    )
    made = await guarded(backend, guards, partial(on_circuit, name))
    stack.push_async_callback(made.aclose)
    return made
