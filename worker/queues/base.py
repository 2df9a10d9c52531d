"""The port of every message queue, with SQS's semantics, because code and operators should meet one behaviour.

The contract all adapters keep, proven by tests/conformance/test_queues.py:

- At least once: a message received and not settled comes back after `lease` seconds, with `receive_count` one higher.
- `receive` hides what it returns from every other receiver for `lease` seconds from that moment; `extend` starts the
  lease anew. A handle whose lease has passed is stale: `extend` reports it lost, `settle` changes nothing and says so.
- `settle(Dead)` writes the dead letter (original body, attributes, reason) before it removes the message. If that
  fails the message stays.
- `send` returns when every message is durably accepted; otherwise it raises and any of them may have been accepted.
- All methods may be called concurrently. Whoever connects a queue calls `aclose`, once.
- Only `QueueError` and its children come out, besides `CancelledError`. A cancelled `receive` may still have taken
  messages: they come back when their lease passes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict

from worker.attempts import Attempt

REASON_ATTRIBUTE = "dead_letter_reason"
ERROR_ATTRIBUTE = "dead_letter_error"
DETAIL_ATTRIBUTE = "dead_letter_detail"
TIME_ATTRIBUTE = "dead_letter_time"
FIRST_TIME_ATTRIBUTE = "dead_letter_first_time"
SOURCE_ATTRIBUTE = "dead_letter_source"
RECEIVE_COUNT_ATTRIBUTE = "dead_letter_receive_count"
ATTEMPTS_ATTRIBUTE = "dead_letter_attempts"
OBITUARY = (
    REASON_ATTRIBUTE,
    ERROR_ATTRIBUTE,
    DETAIL_ATTRIBUTE,
    TIME_ATTRIBUTE,
    FIRST_TIME_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    RECEIVE_COUNT_ATTRIBUTE,
    ATTEMPTS_ATTRIBUTE,
)
"""What `settle(Dead)` adds to the original attributes of a message, the most important first: the reason's short name, the
class of the last error, one line for a person, when it died and when it was first tried (ISO 8601, UTC), the name of the
queue it came from, how often it had been received, and the log of its attempts (JSON: a list of objects with `at`, `error`
and `detail`, the latest last)."""

REDRIVES_ATTRIBUTE = "transload_redrives"
"""How often a message has come back from the dead letters. It stays with the message."""

ATTEMPTS_SHOWN = 10
"""Attempts a dead letter's log holds at most: the first one and the latest."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: remove the message."""


@dataclass(frozen=True, slots=True)
class Ignored(Ack):
    """There was nothing to do: remove the message. Counted apart."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Give it back; it becomes visible again after `delay` seconds (0: at once)."""

    delay: float = 0.0
    counted: bool = True
    """False where nobody worked on it: the receive then does not count, where a queue can take it back, and the delay is a wish."""


@dataclass(frozen=True, slots=True)
class Dead:
    """It will never succeed, or has failed too often: move it to the dead letters."""

    reason: str
    """A short, stable name: `malformed`, `staging_not_allowed`, …"""
    detail: str = ""
    """One line for the person who looks at it."""
    error: str = ""
    """The class of the last error."""
    attempts: Sequence[Attempt] = ()
    """What was tried, the first attempt first, the last one included."""


Disposition = Ack | Retry | Dead


@dataclass(frozen=True, slots=True)
class Message:
    """One received message. `handle` belongs to this receive and to the adapter that made it."""

    id: str
    body: bytes
    handle: str
    receive_count: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    sent_at: float | None = None
    """Seconds since the epoch, by the queue's clock."""
    returnable: bool = True
    """It may be given back without a try. False where the queue counts that as well, and by itself buries what came often."""


def obituary(message: Message, dead: Dead, source: str) -> Mapping[str, str]:
    """The attributes `settle(Dead)` adds to the message's own, the same on every adapter, in the order of `OBITUARY`.

    An empty one is left out: SQS has no empty values.
    """
    now = datetime.now(UTC).timestamp()
    first = dead.attempts[0].at if dead.attempts else now
    values = {
        REASON_ATTRIBUTE: dead.reason,
        ERROR_ATTRIBUTE: dead.error,
        DETAIL_ATTRIBUTE: dead.detail,
        TIME_ATTRIBUTE: _iso(now),
        FIRST_TIME_ATTRIBUTE: _iso(min(first, now)),
        SOURCE_ATTRIBUTE: source,
        RECEIVE_COUNT_ATTRIBUTE: str(message.receive_count),
        ATTEMPTS_ATTRIBUTE: _log(dead.attempts),
    }
    return {name: value for name, value in values.items() if value}


def _log(attempts: Sequence[Attempt]) -> str:
    shown = attempts if len(attempts) <= ATTEMPTS_SHOWN else (attempts[0], *attempts[1 - ATTEMPTS_SHOWN :])
    lines = [{"at": _iso(each.at), "error": each.error, "detail": each.detail[:300]} for each in shown]
    return json.dumps(lines, ensure_ascii=False) if lines else ""


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """What `send` takes. FIFO queues use `group` and `deduplication_id`; others ignore them."""

    body: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    group: str | None = None
    deduplication_id: str | None = None


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages lie where; the queue's own approximation. `dead` is None where it cannot be told."""

    visible: int
    in_flight: int
    delayed: int
    dead: int | None = None

    @property
    def idle(self) -> bool:
        """Nothing is waiting, in work, or coming back."""
        return not (self.visible or self.in_flight or self.delayed)


class QueueError(Exception):
    """The root. The message names the queue and what to do, never a credential.

    QueueError
    ├── QueueMissing       there is no such queue
    ├── QueueDenied        these credentials may not do that
    ├── QueueUnavailable   no answer, or throttled: try later
    ├── HeldTooLong        work on a message outlasts the longest time the queue lets it be held
    └── WaitedTooLong      that time passed before work on the message began
    """

    retryable = False


class QueueMissing(QueueError):
    """There is no such queue."""


class QueueDenied(QueueError):
    """The queue refuses these credentials that operation."""


class QueueUnavailable(QueueError):
    """No answer, throttled, or the storage under it is full or locked."""

    retryable = True


class HeldTooLong(QueueError):
    """Work on a message outlasts the longest time the queue lets it be held."""

    retryable = True


class WaitedTooLong(QueueError):
    """The longest time a queue lets a message be held passed before work on it began; that says nothing about it."""

    retryable = True


class QueueOptions(BaseModel):
    """What an adapter is configured with; each adapter's `Options` extends it. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def queue_name(self) -> str:
        """What routes know the queue by."""
        return ""


class Queue(Protocol):
    """See the module's docstring for what holds everywhere; adapters document only how they differ."""

    Options: ClassVar[type[QueueOptions]]

    @property
    def name(self) -> str:
        """A short label for logs, metrics and dead letters."""
        ...

    @property
    def lease(self) -> float:
        """Seconds a received message stays hidden, as the queue itself has it (not as we wish)."""
        ...

    @property
    def longest_hold(self) -> float | None:
        """Seconds a message may be held in all, however often its lease is extended; None: as long as one likes."""
        ...

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """Take up to `limit` messages, waiting at most `wait` seconds for the first; empty when none came.

        An adapter may return fewer than `limit` although more are there, and caps `limit` and `wait` at its own.
        """
        ...

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Start the lease of each anew. Returns those whose lease is lost; the rest are held for `lease` more seconds.

        When it raises, some may have been renewed and nobody knows which. Who needs to know extends them one by one, and
        concurrently: adapters make batches of what is asked at the same time.
        """
        ...

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """Carry out the disposition. False when the handle was stale and nothing changed."""
        ...

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """Enqueue all of them, in batches as the queue likes them."""
        ...

    async def depth(self) -> Depth:
        """How many messages lie where, now."""
        ...

    async def open_dead_letters(self) -> "Queue":
        """The dead letters as a queue of the same kind; the caller closes it.

        Raises `QueueMissing` where none is configured.
        """
        ...

    async def aclose(self) -> None:
        """Flush what is batched, release connections. Calling it twice is harmless."""
        ...

    @classmethod
    async def connect(cls, options: QueueOptions) -> Self:
        """Open the queue. Raises `QueueMissing`, `QueueDenied` or `QueueUnavailable` with what to do about it."""
        ...
