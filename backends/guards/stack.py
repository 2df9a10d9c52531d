"""All guards of one target, in the order that makes each of them true. Called by worker/bootstrap.py."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from backends.base import StorageBackend
from backends.guards.breaker import BreakerGuard, BreakerOptions, CircuitState
from backends.guards.prefixed import Prefix, Prefixed
from backends.guards.rate_limit import RateLimitGuard, RateLimitOptions
from backends.guards.read_cache import CacheOptions, ReadCache
from backends.guards.retry import RetryGuard, RetryOptions
from backends.guards.timeouts import TimeoutGuard, TimeoutOptions


class GuardOptions(BaseModel):
    """What stands around a target. Everything is off unless it is named; an empty section takes its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: Prefix = ""
    timeouts: TimeoutOptions | None = Field(
        default=None, description="Deadlines for the store's own time: connect, idle, total."
    )
    rate_limit: RateLimitOptions | None = Field(default=None, description="Requests and bytes a second.")
    breaker: BreakerOptions | None = Field(
        default=None, description="Leave a store alone that keeps being unavailable."
    )
    retry: RetryOptions | None = Field(
        default=None, description="Try calls again that can be replayed; never a write."
    )
    cache: CacheOptions | None = Field(default=None, description="Keep what was read on a local disk.")


def _unheard(_: CircuitState) -> None:
    """For those who do not listen."""


async def guarded(
    backend: StorageBackend,
    options: GuardOptions,
    on_circuit: Callable[[CircuitState], None] = _unheard,
) -> StorageBackend:
    """`backend` with the guards that `options` name. Closing the result closes it; when this raises, it is still open.

    `on_circuit` hears each new state of the circuit breaker; `breaker_of` (backends/guards/breaker.py) finds it.
    Raises a `StorageError` when the cache's directory cannot be used. From the store outwards:

    - `prefix` is part of what the store is called, and none of the others' business.
    - `timeouts` sit next to it: waiting for a turn, for a pause between tries, or for the disk is not the store's time.
    - `rate_limit` outside of these, and inside of `retry`, so that every try takes its turn.
    - `breaker` outside of the limit, so that a refused call takes no turn, and inside of `retry`, so that it sees each failure
      and ends the tries when it opens.
    - `retry` around all that can fail.
    - `cache` last: a hit costs one `stat`, and what fills it has all the guards.
    """
    if options.prefix:
        backend = Prefixed(backend, options.prefix)
    if options.timeouts:
        backend = TimeoutGuard(backend, options.timeouts)
    if options.rate_limit:
        backend = RateLimitGuard(backend, options.rate_limit)
    if options.breaker:
        backend = BreakerGuard(backend, options.breaker, on_circuit)
    if options.retry:
        backend = RetryGuard(backend, options.retry)
    if options.cache:
        backend = await ReadCache.connect(backend, options.cache)
    return backend
