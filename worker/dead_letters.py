"""Dead letters as an operator handles them: each looked at once, then sent back, deleted, or left.

Called by worker/cli_dead_letters.py. Everything goes through the queue's port, so it is the same on every queue: what is
looked at is received, kept from others meanwhile, and given back at the end. A process that is killed gives nothing back;
its letters return when their leases pass.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import structlog

from handlers.errors import Refused
from handlers.messages import Command, ResourceFetched, decode
from worker.delivery import Delivery, LeaseKeeper
from worker.metrics import Metrics
from worker.queues.base import (
    ATTEMPTS_ATTRIBUTE,
    DETAIL_ATTRIBUTE,
    ERROR_ATTRIBUTE,
    FIRST_TIME_ATTRIBUTE,
    OBITUARY,
    REASON_ATTRIBUTE,
    RECEIVE_COUNT_ATTRIBUTE,
    REDRIVES_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    TIME_ATTRIBUTE,
    OutgoingMessage,
    Queue,
    QueueError,
    Retry,
)

PAGE = 10
"""Letters received at once: as many as SQS gives, few enough to hold bodies of 1 MiB."""

_WAIT = 0.1
"""Seconds. An adapter may round it up (SQS: to 1): a long poll is what asks all of a service's servers."""

_BARREN = 3
"""Receives without anything older than the look itself, after which it ends although the queue claims to hold more."""

_GIVEN_BACK_AT_ONCE = 500

FIELDS = ("id", "reason", "error", "detail", "source", "bid", "recipe", "url")
"""What `Condition` compares."""

NOTHING = "-"
"""How a field that a letter does not have is shown, and asked for."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter, taken apart. What the queue itself moved there has no obituary: those fields are None."""

    delivery: Delivery
    reason: str | None
    error: str | None
    detail: str | None
    died_at: str | None
    first_tried_at: str | None
    source: str | None
    receive_count: int | None
    """How often the message had been received when it died."""
    redrives: int
    """How often it has come back from the dead letters before."""
    bid: str | None
    recipe: str | None
    url: str | None

    @classmethod
    def of(cls, delivery: Delivery) -> "Letter":
        """Read what a received letter says. Never fails: anybody may write attributes and bodies."""
        found = delivery.message.attributes
        command = _command(delivery.message.body)
        return cls(
            delivery,
            reason=found.get(REASON_ATTRIBUTE),
            error=found.get(ERROR_ATTRIBUTE),
            detail=found.get(DETAIL_ATTRIBUTE),
            died_at=found.get(TIME_ATTRIBUTE),
            first_tried_at=found.get(FIRST_TIME_ATTRIBUTE),
            source=found.get(SOURCE_ATTRIBUTE),
            receive_count=_number(found.get(RECEIVE_COUNT_ATTRIBUTE)),
            redrives=_number(found.get(REDRIVES_ATTRIBUTE)) or 0,
            bid=None if command is None else command.bundle.bid,
            recipe=None if command is None else command.bundle.recipe_id,
            url=command.resource.url if isinstance(command, ResourceFetched) else None,
        )

    @property
    def id(self) -> str:
        """The letter's id in its queue."""
        return self.delivery.message.id

    @property
    def identity(self) -> tuple[str, bytes, str | None]:
        """What tells it from other letters: an id may be the publisher's, which gave it to many messages."""
        return self.id, hashlib.sha256(self.body).digest(), self.died_at

    @property
    def body(self) -> bytes:
        """The original body."""
        return self.delivery.message.body

    @property
    def attributes(self) -> Mapping[str, str]:
        """The original attributes: those of the death and of earlier redrives left out."""
        ours = {*OBITUARY, REDRIVES_ATTRIBUTE}
        return {name: value for name, value in self.delivery.message.attributes.items() if name not in ours}

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """The log of attempts, the latest last: objects with `at`, `error` and `detail`. One that cannot be read is one detail."""
        text = self.delivery.message.attributes.get(ATTEMPTS_ATTRIBUTE, "")
        with suppress(ValueError, RecursionError):
            log = json.loads(text)
            if isinstance(log, list) and all(isinstance(each, dict) for each in log):
                return log
        return [{"at": None, "error": None, "detail": text}] if text else []

    def died_after(self, moment: float) -> bool:
        """Whether it is known to have died after `moment`, in seconds since the epoch."""
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromisoformat(self.died_at or "").timestamp() > moment
        return False

    def returning(self) -> OutgoingMessage:
        """The message as it goes back to its queue: as it was, and counted.

        A FIFO queue drops what carries a deduplication id it saw in the last five minutes
        (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html):
        the id is another one than the original's and than that of every other redrive, and the same when this redrive is
        repeated after a crash. The group is the producer's.
        """
        number = self.redrives + 1
        return OutgoingMessage(
            self.body,
            {**self.attributes, REDRIVES_ATTRIBUTE: str(number)},
            group=self.bid or self.id,
            deduplication_id=f"{self.id}.redrive-{number}",
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """`FIELD=GLOB`, case-sensitive. `-` asks for letters without that field."""

    field: str
    glob: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Raises `ValueError` that says what is wrong."""
        field, equals, glob = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not FIELD=GLOB, for example reason=malformed")
        if field not in FIELDS:
            raise ValueError(f"{field!r} is no field of a dead letter; use {', '.join(FIELDS)}")
        return cls(field, glob)

    def holds(self, letter: Letter) -> bool:
        """Whether the letter is one of those."""
        value = getattr(letter, self.field)
        return self.glob == NOTHING if value is None else fnmatchcase(value, self.glob)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: those with one of `ids` (where there are any) for which every condition holds."""

    ids: frozenset[str] = frozenset()
    where: tuple[Condition, ...] = ()

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is selected."""
        return (not self.ids or letter.id in self.ids) and all(each.holds(letter) for each in self.where)

    @property
    def names_source(self) -> bool:
        """Whether the person said which queue the letters come from."""
        return any(condition.field == "source" for condition in self.where)


class Look:
    """One look at the dead letters of a queue. What was shown stays hidden from others until the end of the look."""

    def __init__(self, letters: Queue, keeper: LeaseKeeper) -> None:
        """`look_at` makes it, and runs the keeper."""
        self._letters = letters
        self._keeper = keeper
        self._seen: dict[tuple[str, bytes, str | None], str] = {}
        """The handle under which each was seen last, by identity."""
        self._held: dict[str, Delivery] = {}
        """By handle: messages of other publishers may share an id."""
        self._shown: Sequence[Delivery] = ()
        self._barren = 0
        self.began_at = time.time()
        self._waiting = 0
        """Letters the queue said it has, when it gave none any more."""
        self.alike: list[Letter] = []
        """Not shown, because nothing tells them from one that was."""

    @property
    def unseen(self) -> int:
        """About how many letters there are that were not shown, in a look that has come to its end."""
        return self._waiting + len(self.alike)

    async def more(self) -> Sequence[Letter]:
        """The next letters, each one once in a look; none when the queue has been seen once.

        It has been when it holds nothing visible. What dies meanwhile may be seen too, but does not prolong the look, and
        neither does a queue that keeps saying it has more and gives nothing, nor one that gives the same again.
        """
        # What was settled since the last page: its body need not stay in memory.
        for settled in (each for each in self._shown if each.settling):
            self._held.pop(settled.message.handle, None)
        while self._barren < _BARREN:
            messages = await self._letters.receive(PAGE, _WAIT)
            self._shown = await self._keeper.hold(messages)
            fresh = self._sorted_out([Letter.of(each) for each in self._shown])
            self._held.update((each.message.handle, each) for each in self._shown)
            older = any(not letter.died_after(self.began_at) for letter in fresh)
            self._barren = 0 if older else self._barren + 1
            if fresh:
                return fresh
            self._waiting = 0 if messages else await self.waiting()
            if not messages and not self._waiting:
                self._barren = _BARREN
        return ()

    def _sorted_out(self, page: Sequence[Letter]) -> Sequence[Letter]:
        """Those to show. Two on one page are two; later ones may be letters whose lease was lost, and which come again."""
        named = [(letter.identity, letter) for letter in page]
        fresh = [(identity, letter) for identity, letter in named if identity not in self._seen]
        for identity, letter in named:
            if (handle := self._seen.get(identity)) is None:
                continue
            before = self._held.get(handle)
            if before is None or before.held:
                # It cannot be the one that is held, or settled and gone.
                self.alike.append(letter)
            else:
                self._seen[identity] = letter.delivery.message.handle
        self._seen.update((identity, letter.delivery.message.handle) for identity, letter in fresh)
        return [letter for _, letter in fresh]

    async def waiting(self) -> int:
        """How many letters there are to look at, by the queue's own approximation."""
        return (await self._letters.depth()).visible

    async def give_back(self) -> None:
        """Make everything visible again that was not settled. What cannot be returns when its lease passes."""
        held = [each for each in self._held.values() if each.held and not each.settling]
        failed: list[QueueError] = []
        for start in range(0, len(held), _GIVEN_BACK_AT_ONCE):
            some = held[start : start + _GIVEN_BACK_AT_ONCE]
            answers = await asyncio.gather(
                *(delivery.settle(Retry(0)) for delivery in some), return_exceptions=True
            )
            failed += [answer for answer in answers if isinstance(answer, QueueError)]
        if failed:
            structlog.get_logger("dead_letters").warning(
                "not given back; they return when their lease passes",
                letters=len(failed),
                error=str(failed[0]),
            )


@asynccontextmanager
async def look_at(queue: Queue) -> AsyncIterator[Look]:
    """Look at the dead letters of `queue`, and give back at the end what was not settled, however the block ends.

    Raises `QueueMissing` where the queue has none, else `QueueError`.
    """
    letters = await queue.open_dead_letters()
    try:
        keeper = LeaseKeeper(letters, Metrics())
        look = Look(letters, keeper)
        keeping = asyncio.create_task(keeper.run(), name="leases of dead letters")
        try:
            yield look
        finally:
            try:
                await look.give_back()
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
    finally:
        await letters.aclose()


def _command(body: bytes) -> Command | None:
    with suppress(Refused):
        return decode(body, len(body))
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 10 and text.isascii() and text.isdigit() else None
