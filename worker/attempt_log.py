"""What is known of earlier tries at a message, and what follows from it. Used by worker/settling.py around each try.

A message is counted against only for what it did itself: failures are noted in the ledger, and so is the beginning of every
try at a message that came back, so that one which killed its process is known by the tries that never ended. What succeeded,
or was given back for no fault of its own - a drain, a lost lease, a ledger that did not answer - leaves no note.

A message whose tries have crashed twice is a suspect, and suspects are tried one at a time: the one that kills the process is
then alone in the count, and its neighbours of the moment are cleared.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from worker.attempts import CRASHED, Attempt
from worker.delivery import Delivery, LeaseLost
from worker.disposition import CrashedTooOften, Failure
from worker.ledger.base import Ledger, LedgerError, LedgerRefused
from worker.queues.base import Message

_SUSPECT = 2
"""Crashes that make a message a suspect: one may be anybody's."""


class AttemptLog:
    """The tries at the messages of one queue."""

    def __init__(
        self, ledger: Ledger, queue: str, max_crashes: int, on_silence: Callable[[str], None]
    ) -> None:
        """`max_crashes`: tries that may take the process along before a message is given up.

        `on_silence` is told why when the ledger could not be told how a try ended.
        """
        self._ledger = ledger
        self._queue = queue
        self._max_crashes = max_crashes
        self._on_silence = on_silence
        self._alone = asyncio.Lock()
        self._owed: set[tuple[str, int]] = set()
        self._log = structlog.get_logger("attempts")

    async def earlier(self, message: Message) -> Sequence[Attempt]:
        """The tries before this one. A first receive needs no look-up.

        Raises `LedgerError`.
        """
        if message.receive_count <= 1:
            return ()
        return await self._ledger.attempts(self._queue, message.id)

    def is_given_up(self, earlier: Sequence[Attempt]) -> bool:
        """Whether the process has died in so many tries that there is to be no other."""
        return _crashes(earlier) >= self._max_crashes

    @asynccontextmanager
    async def trying(self, delivery: Delivery, earlier: Sequence[Attempt]) -> AsyncIterator[None]:
        """One try at a message. How it is left is noted, when it counts, before the next suspect has its turn.

        Raises `CrashedTooOften` instead of beginning another try, `LedgerError`, and what waiting for a turn ends with.
        """
        crashes = _crashes(earlier)
        if self.is_given_up(earlier):
            raise CrashedTooOften(f"the process died in {crashes} tries at this message")
        async with self._turn(delivery, crashes):
            number = await self._begin(delivery.message)
            try:
                yield
            except (asyncio.CancelledError, LeaseLost):
                await self._withdraw(delivery.message, number)
                raise
            except Exception as exc:
                failure = Failure.of(exc, time.time())
                note = self._failed if failure.counts else self._withdraw
                await note(delivery.message, number, failure.attempt)
                raise
            await self._withdraw(delivery.message, number)

    async def pay_owed(self) -> None:
        """Take back the tries whose end a silent ledger could not be told: an outage is no crash.

        Raises `LedgerError`.
        """
        for message_id, number in tuple(self._owed):
            with suppress(LedgerRefused):
                await self._ledger.withdraw(self._queue, message_id, number)
            self._owed.discard((message_id, number))

    @asynccontextmanager
    async def _turn(self, delivery: Delivery, crashes: int) -> AsyncIterator[None]:
        if crashes < _SUSPECT:
            yield
            return
        acquired = False
        try:
            # Waiting ends with the lease.
            async with delivery.kept_alive():
                acquired = await self._alone.acquire()
            yield
        finally:
            if acquired:
                self._alone.release()

    async def _begin(self, message: Message) -> int | None:
        if message.receive_count <= 1:
            return None
        beginning = asyncio.ensure_future(self._ledger.begin(self._queue, message.id))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            with suppress(LedgerError):
                await self._withdraw(message, await beginning)
            raise

    async def _failed(self, message: Message, number: int | None, attempt: Attempt) -> None:
        try:
            await self._ledger.failed(self._queue, message.id, number, attempt)
        except LedgerError as exc:
            self._owe(message, number, exc)

    async def _withdraw(self, message: Message, number: int | None, _: Attempt | None = None) -> None:
        if number is None:
            return
        try:
            await self._ledger.withdraw(self._queue, message.id, number)
        except LedgerError as exc:
            self._owe(message, number, exc)

    def _owe(self, message: Message, number: int | None, error: LedgerError) -> None:
        self._log.warning("the end of a try is not noted yet", message=message.id, error=str(error))
        if isinstance(error, LedgerRefused):
            # It answered: this note it will never take, and others are no concern of it.
            return
        if number is not None:
            self._owed.add((message.id, number))
        self._on_silence(str(error))


def _crashes(earlier: Sequence[Attempt]) -> int:
    return sum(attempt.error == CRASHED for attempt in earlier)
