"""Whether the process is alive and ready. The event loop writes it, worker/admin.py reads it on threads of its own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TICK: Final = 0.5
"""Seconds between two calls of `Health.tick`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` says why it is not `ok`; it is empty when it is."""

    ok: bool
    reasons: tuple[str, ...]


class Health:
    """Facts about the process. Written by the event loop's thread only; each read is of one value, so no lock is needed."""

    def __init__(
        self,
        *,
        loop_stall: float = 10.0,
        receive_stall: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not live after `loop_stall` seconds without `tick`, or `receive_stall` without `received` and no reason for it."""
        self._loop_stall = loop_stall
        self._receive_stall = receive_stall
        self._clock = clock
        self._ticked = self._received = clock()
        self._late = 0.0
        self._busy = False
        self._paused = False
        self.draining = False
        """Told to stop: takes nothing more."""
        self.schema_current = False
        """The ledger's schema is the one this version knows."""
        self.queue_reachable = False
        """The queue answered the last time it was asked."""
        self.ledger_reachable = True
        """The ledger takes writes, as far as we know."""

    def tick(self, late: float = 0.0) -> None:
        """The event loop turns, `late` seconds after it should have. Called every `TICK` seconds."""
        self._late = late
        self._ticked = self._clock()

    @property
    def lag(self) -> float:
        """Seconds by which the event loop was late the last time, or is late by now if that is more."""
        return max(self._late, self._clock() - self._ticked - TICK)

    def received(self) -> None:
        """A receive call came back: with messages, without, or with an error. An outage is no reason to restart."""
        self._received = self._clock()

    @property
    def busy(self) -> bool:
        """Everything that may run at once is running, so nothing is received."""
        return self._busy

    @busy.setter
    def busy(self, value: bool) -> None:
        if self._busy and not value:
            self.received()  # the time without receiving begins now
        self._busy = value

    @property
    def paused(self) -> bool:
        """Receiving is held back on purpose."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        if self._paused and not value:
            self.received()
        self._paused = value

    def live(self) -> Verdict:
        """Whether the process makes progress or has a reason not to; if not, a restart may help. Asks nothing outside."""
        # The reasons to wait are read before the clock: one that ends in between has just renewed the receive time.
        waiting = self._busy or self._paused or self.draining
        now = self._clock()
        reasons = []
        if (age := now - self._ticked) >= self._loop_stall:
            reasons.append(f"the event loop has not turned for {age:.1f} s")
        if not waiting and (age := now - self._received) >= self._receive_stall:
            reasons.append(f"nothing was asked of the queue for {age:.1f} s")
        return Verdict(not reasons, tuple(reasons))

    def ready(self) -> Verdict:
        """Whether work may be expected of it. Never a matter of load: a busy worker that is not ready is killed first."""
        facts = (
            (self.schema_current, "the ledger's schema is not current"),
            (self.queue_reachable, "the queue does not answer"),
            (self.ledger_reachable, "the ledger takes no writes"),
            (not self.draining, "draining"),
        )
        reasons = tuple(reason for holds, reason in facts if not holds)
        return Verdict(not reasons, reasons)
