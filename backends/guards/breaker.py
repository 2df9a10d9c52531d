"""A circuit breaker: a store that keeps failing is left alone for a while. Put around a backend by backends/guards/stack.py.

closed, until `threshold` calls in a row found the store unavailable; then open: calls raise `CircuitOpen` before any I/O.
After `cooldown` seconds half-open: one call, the probe, is let through, and its outcome closes or opens the circuit.

What counts is what a call says about the store. `Unavailable` is a failure. A result is a success, and so is a refusal
that only a living store can give (`NotFound`, `Conflict`, `PermissionDenied`, `IntegrityError`). Everything else says
nothing: what the source of a write raised, what the user of a read raised, a cancellation, a key that cannot be used.

Why not a library: docs/adr/0013-guards.md.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend
from backends.errors import (
    CircuitOpen,
    Conflict,
    IntegrityError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from backends.guards.sources import WatchedSource
from backends.wrapper import Wrapper

CircuitState = Literal["closed", "open", "half_open"]

_ANSWERS = (NotFound, Conflict, PermissionDenied, IntegrityError)
_WHILE_PROBING = 1.0
"""Seconds to come back after when a probe is under way: nobody knows how long it takes."""


class BreakerOptions(BaseModel):
    """When a store is given up, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: int = Field(default=5, ge=1, description="Failures in a row that open the circuit.")
    cooldown: float = Field(
        default=30.0,
        gt=0,
        description="Seconds an open circuit stays so before one call may probe the store.",
    )


class Circuit:
    """The state machine, without I/O. For one event loop; nothing here awaits, so each call of a method is atomic."""

    def __init__(
        self,
        options: BreakerOptions,
        name: str,
        on_change: Callable[[CircuitState], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is what `CircuitOpen` tells; `on_change` is called with each new state; `clock` gives seconds."""
        self._options = options
        self._name = name
        self._on_change = on_change
        self._clock = clock
        self._told: CircuitState = "closed"
        self._failures = 0
        self._opened_at: float | None = None
        self._probe: Permit | None = None
        self.era = 0
        """Counts openings and closings: what was begun in an earlier era says nothing about this one."""

    @property
    def state(self) -> CircuitState:
        """`half_open` from the end of the cooldown on, though `on_change` hears of it with the first probe."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._probe is None and self.retry_after > 0 else "half_open"

    @property
    def retry_after(self) -> float:
        """Seconds until a call may be let through; 0 when one may now."""
        if self._opened_at is None:
            return 0.0
        if self._probe is not None:
            return _WHILE_PROBING
        return max(0.0, self._opened_at + self._options.cooldown - self._clock())

    def admit(self) -> "Permit":
        """Leave to call the store, to be settled by the caller. Raises `CircuitOpen`."""
        permit = Permit(self)
        if self._opened_at is not None:
            if wait := self.retry_after:
                raise CircuitOpen(
                    f"{self._name} is left alone after {self._options.threshold} failures in a row; "
                    f"next try in {wait:.1f} s",
                    wait,
                )
            self._probe = permit
            self._tell("half_open")
        return permit

    def is_probe(self, permit: "Permit") -> bool:
        """Whether the circuit waits for this one's outcome."""
        return permit is self._probe

    def succeeded(self, permit: "Permit") -> None:
        """The store has answered."""
        if permit.era != self.era:
            return
        self._failures = 0
        if self.is_probe(permit):
            self._opened_at = self._probe = None
            self.era += 1
            self._tell("closed")

    def failed(self, permit: "Permit") -> None:
        """The store was unavailable."""
        if permit.era != self.era:
            return
        self._failures += 1
        if self.is_probe(permit) or self._failures >= self._options.threshold:
            self._opened_at = self._clock()
            self._probe = None
            self.era += 1
            self._tell("open")

    def released(self, permit: "Permit") -> None:
        """Nothing was learned. If this was the probe, the next call is."""
        if self.is_probe(permit):
            self._probe = None

    def _tell(self, state: CircuitState) -> None:
        if state != self._told:
            self._told = state
            self._on_change(state)


class Permit:
    """One call that was let through. The first of its outcomes counts."""

    def __init__(self, circuit: Circuit) -> None:
        """Made by `Circuit.admit`."""
        self._circuit = circuit
        self._settled = False
        self.era = circuit.era

    def answered(self) -> "Permit":
        """The store has begun to answer, so a probe has ended well; the permit for the rest of the call."""
        if not self._circuit.is_probe(self):
            return self
        self.succeeded()
        return self._circuit.admit()

    def succeeded(self) -> None:
        if not self._settled:
            self._settled = True
            self._circuit.succeeded(self)

    @contextmanager
    def judged(self, source: WatchedSource | None = None) -> Iterator[None]:
        """Settle with what is raised inside; leave it open when nothing is."""
        try:
            yield
        except BaseException as exc:
            if not self._settled:
                self._settled = True
                self._outcome(exc, source)(self)
            raise

    def _outcome(self, exc: BaseException, source: WatchedSource | None) -> "Callable[[Permit], None]":
        if source is not None and exc is source.raised:
            return self._circuit.released
        if isinstance(exc, Unavailable):
            return self._circuit.failed
        return self._circuit.succeeded if isinstance(exc, _ANSWERS) else self._circuit.released


def _unheard(_: CircuitState) -> None:
    """For those who do not listen."""


class BreakerGuard(Wrapper):
    """See the module's docstring. One circuit for all calls; `health` too, which may so be the probe."""

    def __init__(
        self,
        inner: StorageBackend,
        options: BreakerOptions,
        on_change: Callable[[CircuitState], None] = _unheard,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` hears each new state, on the event loop: what the metric `circuit_state` is made of."""
        super().__init__(inner)
        self.circuit = Circuit(options, inner.location, on_change, clock)

    @property
    def state(self) -> CircuitState:
        """`closed`, `open` or `half_open`."""
        return self.circuit.state

    @property
    def retry_after(self) -> float:
        """Seconds until a call may be let through; 0 when one may now."""
        return self.circuit.retry_after

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """As a probe, a read has ended well once the store has begun to answer; it may break off later nevertheless."""
        permit = self.circuit.admit()
        async with AsyncExitStack() as stack:
            with permit.judged():
                chunks = await stack.enter_async_context(self.inner.open(key))
            permit = permit.answered()
            stack.callback(permit.succeeded)
            yield await stack.enter_async_context(aclosing(_judged(chunks, permit)))

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """As a probe, a write lasts until it has returned; `timeouts` bound that."""
        source = WatchedSource(chunks)
        with self._call(source):
            return await self.inner.write(key, source, attributes)

    async def stat(self, key: str) -> ObjectStat | None:
        with self._call():
            return await self.inner.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        permit = self.circuit.admit()
        found = aiter(self.inner.list(prefix))
        try:
            while True:
                with permit.judged():
                    item = await anext(found, None)
                permit = permit.answered()
                if item is None:
                    return
                yield item
        finally:
            permit.succeeded()

    async def delete(self, key: str) -> bool:
        with self._call():
            return await self.inner.delete(key)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        with self._call():
            return await self.inner.copy_from(source, source_key, key, attributes, promise)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        with self._call():
            return await self.inner.sweep(older_than, prefix)

    async def health(self) -> None:
        with self._call():
            await self.inner.health()

    @contextmanager
    def _call(self, source: WatchedSource | None = None) -> Iterator[None]:
        permit = self.circuit.admit()
        with permit.judged(source):
            yield
        permit.succeeded()


def breaker_of(backend: StorageBackend) -> BreakerGuard | None:
    """The circuit breaker among a backend's wrappers, if it has one."""
    while isinstance(backend, Wrapper):
        if isinstance(backend, BreakerGuard):
            return backend
        backend = backend.inner
    return None


async def _judged(chunks: AsyncIterator[bytes], permit: Permit) -> AsyncGenerator[bytes, None]:
    reading = aiter(chunks)
    while True:
        with permit.judged():
            chunk = await anext(reading, None)
        if chunk is None:
            return
        yield chunk
