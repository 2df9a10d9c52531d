"""Keeps the intake closed while the ledger takes no writes: what cannot be recorded should not be taken.

Made and run by worker/service.py. Closed by whoever meets a ledger that does not answer; opened by a probe that commits.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from worker.health import Health
from worker.ledger.base import Ledger, LedgerError

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
"""Seconds between probes: an outage is over for us at most so long after it is over."""


class IntakeGate:
    """Open until `close`; open again when the ledger has committed a probe."""

    def __init__(
        self,
        ledger: Ledger,
        health: Health,
        random: Callable[[], float],
        before_opening: Callable[[], Awaitable[None]],
    ) -> None:
        """`random` gives numbers in [0, 1). `before_opening` is done once the ledger answers; its `LedgerError` is a no."""
        self._ledger = ledger
        self._before_opening = before_opening
        self._health = health
        self._random = random
        self._open = asyncio.Event()
        self._open.set()
        self._closed = asyncio.Event()
        self._log = structlog.get_logger("intake")

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def close(self, why: str) -> None:
        """The ledger did not take a write."""
        if self._open.is_set():
            self._open.clear()
            self._closed.set()
            self._health.paused = True
            self._health.ledger_reachable = False
            self._log.warning("intake paused: the ledger takes no writes", error=why)

    async def passed(self) -> None:
        """Wait until it is open."""
        await self._open.wait()

    async def run(self) -> None:
        """Whenever it was closed, probe until the ledger answers. Runs until cancelled."""
        while True:
            await self._closed.wait()
            await self._probe()
            self._closed.clear()
            self._health.ledger_reachable = True
            self._health.paused = False
            self._open.set()
            self._log.info("intake resumed")

    async def _probe(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            # Spread out, so that a ledger which comes back is not met by all workers at once.
            await asyncio.sleep(pause * (0.5 + self._random() / 2))
            try:
                await self._ledger.probe()
                await self._before_opening()
            except LedgerError:
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                return
