"""What is known of earlier tries at a message, and what follows from it. Used by worker/service.py around each try.

A message is counted against only for what it did itself: failures are noted in the ledger, and so is the beginning of every
try at a message that came back, so that one which killed its process is known by the tries that never ended. What was given
back for no fault of its own - a drain, a lost lease, a ledger that did not answer - leaves no note.

A message whose tries have crashed twice is a suspect, and suspects are tried one at a time: the one that kills the process is
then alone in the count, and its neighbours of the moment are cleared.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

import structlog

from worker.attempts import CRASHED, Attempt
from worker.disposition import CrashedTooOften, Failure
from worker.ledger.base import Ledger, LedgerError
from worker.queues.base import Message

_SUSPECT = 2
"""Crashes that make a message a suspect: one may be anybody's."""


class AttemptLog:
    """The tries at the messages of one queue."""

    def __init__(self, ledger: Ledger, queue: str, max_crashes: int) -> None:
        """`max_crashes`: tries that may take the process along before a message is given up."""
        self._ledger = ledger
        self._queue = queue
        self._max_crashes = max_crashes
        self._alone = asyncio.Lock()
        self._owed: set[str] = set()
        self._log = structlog.get_logger("attempts")

    async def earlier(self, message: Message) -> Sequence[Attempt]:
        """The tries before this one. A first receive needs no look-up.

        Raises `LedgerError`.
        """
        if message.receive_count <= 1:
            return ()
        return await self._ledger.attempts(self._queue, message.id)

    @asynccontextmanager
    async def trying(self, message: Message, earlier: Sequence[Attempt]) -> AsyncIterator[None]:
        """One try at a message. What leaves it by `CancelledError` is taken back.

        Raises `CrashedTooOften` instead of beginning another try, and `LedgerError`.
        """
        crashes = sum(attempt.error == CRASHED for attempt in earlier)
        if crashes >= self._max_crashes:
            raise CrashedTooOften(f"the process died in {crashes} tries at this message")
        if message.receive_count <= 1:
            yield
            return
        async with self._alone if crashes >= _SUSPECT else nullcontext():
            await self._ledger.begin(self._queue, message.id)
            try:
                yield
            except asyncio.CancelledError:
                await self.withdraw(message)
                raise

    async def failed(self, message: Message, failure: Failure) -> None:
        """Note a failure, before the message is given back. A ledger that does not answer makes it go unnoted."""
        attempt = failure.attempt
        try:
            await self._ledger.failed(
                self._queue, message.id, attempt.error, attempt.detail, outage=attempt.outage
            )
        except LedgerError as exc:
            self._log.warning("failure not noted", error=str(exc))

    async def withdraw(self, message: Message) -> None:
        """The try does not count. What a silent ledger could not be told, `pay_owed` tells it."""
        if message.receive_count <= 1:
            return
        try:
            await self._ledger.withdraw(self._queue, message.id)
        except LedgerError as exc:
            self._owed.add(message.id)
            self._log.warning("try not taken back yet", error=str(exc))

    async def pay_owed(self) -> None:
        """Take back the tries that ended while the ledger did not answer: an outage is no crash.

        Raises `LedgerError`.
        """
        for message_id in tuple(self._owed):
            await self._ledger.withdraw(self._queue, message_id)
            self._owed.discard(message_id)
