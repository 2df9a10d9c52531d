"""A queue in the memory of the instance: for tests, and the plainest reading of the port.

Leases run on the event loop's clock. Nothing survives the instance, except that the dead letters opened from it are
the same ones whoever opens them.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Self, cast

from pydantic import Field

from worker.queues.base import (
    Dead,
    Depth,
    Disposition,
    Message,
    OutgoingMessage,
    Queue,
    QueueMissing,
    QueueOptions,
    QueueUnavailable,
    Retry,
    obituary,
)


@dataclass(slots=True)
class _Row:
    message: OutgoingMessage
    sent_at: float
    visible_at: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    receive_count: int = 0
    handle: str | None = None


@dataclass(slots=True)
class _Shelf:
    """The messages of one name, shared by every queue opened on it."""

    rows: dict[str, _Row] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, row: _Row) -> None:
        self.rows[row.id] = row
        self.wake()

    def wake(self) -> None:
        arrived, self.arrived = self.arrived, asyncio.Event()
        arrived.set()


class MemoryOptions(QueueOptions):
    """What the queue is called, and how long a message stays with whoever took it."""

    name: str = Field(default="memory", min_length=1, description="The queue's name.")
    lease: float = Field(default=60.0, gt=0, description="Seconds a received message stays hidden.")

    @property
    def queue_name(self) -> str:
        """As configured."""
        return self.name


class MemoryQueue:
    """A queue that lives as long as its instance."""

    Options: ClassVar[type[QueueOptions]] = MemoryOptions

    def __init__(self, options: MemoryOptions, shelf: _Shelf, dead: _Shelf | None) -> None:
        """`connect` and `open_dead_letters` construct; `dead` is None for the dead letters themselves."""
        self._options = options
        self._shelf = shelf
        self._dead = dead
        self._closed = False

    @classmethod
    async def connect(cls, options: QueueOptions) -> Self:
        """A new, empty queue."""
        return cls(cast("MemoryOptions", options), _Shelf(), _Shelf())

    @property
    def name(self) -> str:
        """As configured."""
        return self._options.name

    @property
    def lease(self) -> float:
        """As configured."""
        return self._options.lease

    @property
    def longest_hold(self) -> float | None:
        """No limit."""
        return None

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As the port says; what is due longest comes first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            self._ensure_open()
            now = loop.time()
            waiting = sorted(self._shelf.rows.values(), key=lambda row: row.visible_at)
            due = [row for row in waiting if row.visible_at <= now][:limit]
            if due or now >= deadline:
                return [self._take(row, now) for row in due]
            until = min([deadline, *(row.visible_at for row in waiting[:1])])
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._shelf.arrived.wait()

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As the port says."""
        self._ensure_open()
        lost: list[Message] = []
        for message in messages:
            row = self._held(message)
            if row is None:
                lost.append(message)
            else:
                row.visible_at = asyncio.get_running_loop().time() + self.lease
        return lost

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """As the port says."""
        self._ensure_open()
        if isinstance(disposition, Dead) and self._dead is None:
            raise QueueMissing(f"queue {self.name!r} holds dead letters; it has none of its own")
        row = self._held(message)
        if row is None:
            return False
        if isinstance(disposition, Retry):
            row.handle = None
            row.receive_count -= not disposition.counted
            row.visible_at = asyncio.get_running_loop().time() + max(disposition.delay, 0.0)
            self._shelf.wake()
            return True
        if isinstance(disposition, Dead) and self._dead is not None:
            attributes = {**message.attributes, **obituary(message, disposition, self.name)}
            letter = OutgoingMessage(message.body, attributes)
            self._dead.put(_Row(letter, row.sent_at, asyncio.get_running_loop().time(), id=row.id))
        del self._shelf.rows[row.id]
        return True

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says."""
        self._ensure_open()
        now = asyncio.get_running_loop().time()
        for message in messages:
            self._shelf.put(_Row(message, time.time(), now + max(message.delay, 0.0)))

    async def depth(self) -> Depth:
        """Exact."""
        self._ensure_open()
        now = asyncio.get_running_loop().time()
        hidden = [row for row in self._shelf.rows.values() if row.visible_at > now]
        in_flight = sum(row.handle is not None for row in hidden)
        return Depth(
            visible=len(self._shelf.rows) - len(hidden),
            in_flight=in_flight,
            delayed=len(hidden) - in_flight,
            dead=None if self._dead is None else len(self._dead.rows),
        )

    async def open_dead_letters(self) -> Queue:
        """The dead letters of this instance."""
        if self._dead is None:
            raise QueueMissing(f"queue {self.name!r} holds dead letters; it has none of its own")
        options = self._options.model_copy(update={"name": f"{self.name}-dead"})
        return MemoryQueue(options, self._dead, None)

    async def aclose(self) -> None:
        """As the port says; a parked `receive` ends with `QueueUnavailable`."""
        self._closed = True
        self._shelf.wake()

    def _ensure_open(self) -> None:
        if self._closed:
            raise QueueUnavailable(f"queue {self.name!r} is closed")

    def _take(self, row: _Row, now: float) -> Message:
        row.visible_at = now + self.lease
        row.receive_count += 1
        row.handle = uuid.uuid4().hex
        return Message(
            id=row.id,
            body=row.message.body,
            handle=f"{row.id}.{row.handle}",
            receive_count=row.receive_count,
            attributes=dict(row.message.attributes),
            sent_at=row.sent_at,
        )

    def _held(self, message: Message) -> _Row | None:
        id_, _, handle = message.handle.partition(".")
        row = self._shelf.rows.get(id_)
        if row is None or row.handle != handle or row.visible_at <= asyncio.get_running_loop().time():
            return None
        return row
