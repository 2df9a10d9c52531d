"""What is done with selected dead letters: sent back to their queue, or deleted.

Called by worker/cli_dead_letters.py with a `Look`. A letter is removed only after its message is durably back in the queue:
whatever happens between the two leaves both, and the ledger knows the message by its id when it comes twice.
"""

import asyncio
import enum
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from backends.failpoints import failpoint
from worker.dead_letters import PAGE, Letter, Look, Selection
from worker.queues.base import Ack, Queue, QueueDenied, QueueError, QueueMissing

MAX_REDRIVES: Final = 3
"""How often a message may come back unless told otherwise: what dies again is not mended."""


class Outcome(enum.Enum):
    """What became of one letter."""

    REDRIVEN = "redriven"
    PURGED = "purged"
    SELECTED = "selected"
    """It would have been done."""
    OVER_CAP = "over_cap"
    """It was redriven as often as allowed."""
    OTHER_QUEUE = "other_queue"
    """It came from another queue than the configured one."""
    DIED_MEANWHILE = "died_meanwhile"
    """It died after the run began: what a worker kills again is not for this run."""
    REFUSED = "refused"
    """The queue does not take the message."""
    LEASE_LOST = "lease_lost"
    """Another consumer may hold it."""
    KEPT = "kept"
    """Its message is back in the queue, but the letter could not be removed."""
    NOT_MATCHING = "not_matching"


DONE: Final = frozenset({Outcome.REDRIVEN, Outcome.PURGED, Outcome.SELECTED})
FAILED: Final = frozenset(
    {Outcome.OVER_CAP, Outcome.OTHER_QUEUE, Outcome.REFUSED, Outcome.LEASE_LOST, Outcome.KEPT}
)
"""Selected, and not done as asked."""


class Pace:
    """At most `rate` letters a second; None: as fast as the queue takes them."""

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` and `sleep` count in seconds."""
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next = clock()
        self.batch = PAGE if rate is None else max(1, min(PAGE, int(rate)))
        """How many letters may go at once: no more than a second's worth."""

    async def turn(self, letters: int) -> None:
        """Wait until so many may go."""
        if self._rate is None:
            return
        if (pause := self._next - self._clock()) > 0:
            await self._sleep(pause)
        self._next = max(self._next, self._clock()) + letters / self._rate


class Run(ABC):
    """One pass over the dead letters. `outcomes` counts, also when the pass ends with an error."""

    def __init__(
        self,
        selection: Selection,
        *,
        queue: Queue,
        limit: int | None = None,
        dry_run: bool = False,
        told: Callable[[Letter, Outcome], None],
        before: Callable[[Sequence[Letter]], Awaitable[None]] | None = None,
    ) -> None:
        """`queue`: where the letters died. `limit`: letters done at most. `told` hears the outcome of every letter seen.

        `before` is called with letters before anything is done with them; what it raises leaves them alone.
        """
        self._selection = selection
        self._queue = queue
        self._limit = limit
        self._dry_run = dry_run
        self._told = told
        self._before = before
        self.outcomes: Counter[Outcome] = Counter()
        self.missing = set(selection.ids)
        """Ids that were named and not seen."""
        self._left_alike = False

    @property
    def complete(self) -> bool:
        """Everything selected was done, as far as the queue showed it."""
        failed = any(self.outcomes[outcome] for outcome in FAILED)
        return not (self.missing or failed or self._left_alike)

    async def over(self, look: Look) -> None:
        """Do it. Raises `QueueError`; what was done until then is in `outcomes`."""
        while self._room() and (letters := await look.more()):
            chosen: list[Letter] = []
            for letter in letters:
                self.missing.discard(letter.id)
                objection = self._objection(letter, look.began_at)
                if objection is None:
                    chosen.append(letter)
                else:
                    self._tell(letter, objection)
            await self._do(chosen)
            if self._selection.ids and not self.missing:
                return
        if self._room():
            objections = {self._objection(letter, look.began_at) for letter in look.alike}
            self._left_alike = not objections <= {Outcome.NOT_MATCHING, Outcome.DIED_MEANWHILE}

    @abstractmethod
    def _batch(self) -> int:
        """Letters `_carry_out` takes at once."""

    @abstractmethod
    async def _carry_out(self, letters: Sequence[Letter]) -> None:
        """Do it with these, whose leases hold, and tell of each."""

    def _objection(self, letter: Letter, began_at: float) -> Outcome | None:
        if not self._selection.matches(letter):
            return Outcome.NOT_MATCHING
        if not self._selection.ids and letter.died_after(began_at):
            return Outcome.DIED_MEANWHILE
        # Several queues may share one place for their dead letters.
        if letter.source not in {None, self._queue.name} and not self._selection.names_source:
            return Outcome.OTHER_QUEUE
        return None

    async def _do(self, chosen: Sequence[Letter]) -> None:
        rest = list(chosen)
        while rest and (size := int(min(self._room(), self._batch()))):
            batch, rest = rest[:size], rest[size:]
            if self._dry_run:
                self._tell_all(batch, Outcome.SELECTED)
                continue
            if self._before is not None:
                await self._before(batch)
            await self._carry_out(batch)

    def _still_held(self, letters: Sequence[Letter]) -> list[Letter]:
        self._tell_all([each for each in letters if not each.delivery.held], Outcome.LEASE_LOST)
        return [each for each in letters if each.delivery.held]

    async def _remove(self, letters: Sequence[Letter], gone: Outcome, stays: Outcome) -> None:
        answers = await asyncio.gather(
            *(letter.delivery.settle(Ack()) for letter in letters), return_exceptions=True
        )
        for letter, answer in zip(letters, answers, strict=True):
            self._tell(letter, gone if answer is True else stays)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _room(self) -> float:
        """How many more may be done."""
        done = sum(self.outcomes[outcome] for outcome in DONE)
        return math.inf if self._limit is None else max(0, self._limit - done)

    def _tell(self, letter: Letter, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        self._told(letter, outcome)

    def _tell_all(self, letters: Sequence[Letter], outcome: Outcome) -> None:
        for letter in letters:
            self._tell(letter, outcome)


class Redrive(Run):
    """Sends letters back to the queue they died in."""

    def __init__(
        self,
        selection: Selection,
        *,
        queue: Queue,
        limit: int | None = None,
        max_redrives: int = MAX_REDRIVES,
        pace: Pace,
        dry_run: bool = False,
        told: Callable[[Letter, Outcome], None],
        before: Callable[[Sequence[Letter]], Awaitable[None]] | None = None,
    ) -> None:
        """`max_redrives`: letters that came back so often already are left."""
        super().__init__(selection, queue=queue, limit=limit, dry_run=dry_run, told=told, before=before)
        self._max_redrives = max_redrives
        self._pace = pace
        self._log = structlog.get_logger("redrive")

    def _batch(self) -> int:
        return self._pace.batch

    def _objection(self, letter: Letter, began_at: float) -> Outcome | None:
        if objection := super()._objection(letter, began_at):
            return objection
        return Outcome.OVER_CAP if letter.redrives >= self._max_redrives else None

    async def _carry_out(self, letters: Sequence[Letter]) -> None:
        await self._pace.turn(len(letters))
        sent = await self._send_back(self._still_held(letters))
        failpoint("redrive.ack.before")
        await self._remove(sent, Outcome.REDRIVEN, Outcome.KEPT)
        failpoint("redrive.ack.after")

    async def _send_back(self, letters: Sequence[Letter]) -> Sequence[Letter]:
        """Those that are durably back in the queue; what the queue refuses concerns that letter only."""
        if not letters:
            return []
        failpoint("redrive.send.before")
        try:
            await self._queue.send([letter.returning() for letter in letters])
        except QueueError as exc:
            if exc.retryable or isinstance(exc, (QueueMissing, QueueDenied)):
                raise
            if len(letters) > 1:
                return [letter for each in letters for letter in await self._send_back([each])]
            self._log.warning(
                "the queue refuses a message; its letter stays", id=letters[0].id, error=str(exc)
            )
            self._tell(letters[0], Outcome.REFUSED)
            return []
        failpoint("redrive.send.after")
        return letters


class Purge(Run):
    """Deletes letters for good."""

    def _batch(self) -> int:
        return PAGE

    async def _carry_out(self, letters: Sequence[Letter]) -> None:
        failpoint("purge.ack.before")
        await self._remove(self._still_held(letters), Outcome.PURGED, Outcome.LEASE_LOST)
        failpoint("purge.ack.after")
