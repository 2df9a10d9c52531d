"""The durable queue that needs no server: SQS's semantics on one SQLite file, for one machine.

Several processes may use the file at once. Times are wall-clock, because leases must outlive the process that took
them. What arrives from this instance wakes a waiting `receive` at once; what another process sends is seen within
`poll_interval`. Nothing expires. FIFO fields are ignored.

All calls that come in while one transaction runs share the next one, so the cost of a commit is divided among them.
"""

import asyncio
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self, TypeVar, cast

from pydantic import Field, model_validator

from backends.failpoints import failpoint
from worker.batcher import Batcher
from worker.queues.base import (
    Dead,
    Depth,
    Disposition,
    Message,
    OutgoingMessage,
    Queue,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueOptions,
    QueueUnavailable,
    Retry,
    obituary,
)
from worker.queues.embedded_sql import SCHEMA, Extend, Receive, Rows, Send, Settle, Work, key_of
from worker.sqlite import (
    Database,
    DatabaseBusy,
    DatabaseDenied,
    DatabaseError,
    DatabaseFailing,
    DatabaseFull,
)

Result = TypeVar("Result")


class EmbeddedOptions(QueueOptions):
    """Where the file is, and how long a message stays with whoever took it."""

    path: Path = Field(description="The SQLite file; created, with its directories, when it is not there.")
    queue: str = Field(default="resources", min_length=1, description="The queue's name within the file.")
    lease: float = Field(default=15.0, gt=0, description="Seconds a received message stays hidden.")
    dead_letter_queue: str | None = Field(
        default=None,
        min_length=1,
        description="Where dead letters go in the same file; default: `<queue>-dead`.",
    )
    poll_interval: float = Field(
        default=0.1, gt=0, description="Seconds between looks for what other processes have sent."
    )
    busy_timeout: float = Field(
        default=5.0,
        gt=0,
        description="Seconds to wait for another process's transaction before giving up.",
    )

    @model_validator(mode="after")
    def _two_queues(self) -> Self:
        if self.dead_letter_queue == self.queue:
            raise ValueError("dead_letter_queue must differ from queue")
        return self

    @property
    def queue_name(self) -> str:
        """As configured."""
        return self.queue


class EmbeddedQueue:
    """A queue in a SQLite file. A message that is moved to the dead letters keeps its id and its time of sending."""

    Options: ClassVar[type[QueueOptions]] = EmbeddedOptions

    def __init__(self, options: EmbeddedOptions, database: Database, *, name: str, dead: str | None) -> None:
        """`connect` and `open_dead_letters` construct; `dead` is None for the dead letters themselves."""
        self._options = options
        self._database = database
        self._name = name
        self._dead = dead
        self._rows = Rows(name, dead, int(options.lease * 1000))
        self._closed = False
        self._arrived = asyncio.Event()
        self._returning: set[asyncio.Task[None]] = set()
        self._work: Batcher[Work, None] = Batcher(self._flush, limit=1000, name=f"queue {name}")

    @classmethod
    async def connect(cls, options: QueueOptions) -> Self:
        """Open the file. Raises `QueueError` when it is damaged or not a queue, else as the port says."""
        options = cast("EmbeddedOptions", options)
        return await cls._open(options, options.queue, options.dead_letter_queue or f"{options.queue}-dead")

    @classmethod
    async def _open(cls, options: EmbeddedOptions, name: str, dead: str | None) -> Self:
        try:
            database = await Database.open(options.path, SCHEMA, busy_timeout=options.busy_timeout)
        except DatabaseError as exc:
            raise _translate(exc, name) from exc
        return cls(options, database, name=name, dead=dead)

    @property
    def name(self) -> str:
        """The queue's name within the file."""
        return self._name

    @property
    def lease(self) -> float:
        """As configured."""
        return self._options.lease

    @property
    def longest_hold(self) -> float | None:
        """No limit."""
        return None

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As the port says; when cancelled, what was already taken is given back and does not count as received."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            # Taken before the look, so that what arrives during it wakes us.
            arrived = self._arrived
            look = Receive(limit)
            try:
                await self._submit(look)
            except asyncio.CancelledError:
                look.abandoned = True
                if look.messages:
                    self._return_later(look.messages)
                raise
            rest = deadline - loop.time()
            if look.messages or rest <= 0:
                return look.messages
            nap = min(rest, self._options.poll_interval)
            if look.next_due is not None:
                nap = min(nap, max(look.next_due - time.time(), 0.001))
            with suppress(TimeoutError):
                async with asyncio.timeout(nap):
                    await arrived.wait()

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As the port says; all in one transaction."""
        extend = Extend([key_of(message) for message in messages])
        failpoint("embedded_queue.extend.before")
        await self._submit(extend)
        failpoint("embedded_queue.extend.after")
        return [message for message, kept in zip(messages, extend.kept, strict=True) if not kept]

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """As the port says; a dead letter appears and the message goes in one transaction."""
        settle = Settle(key_of(message), disposition)
        if isinstance(disposition, Dead):
            if self._dead is None:
                raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
            settle.attributes = _encode(message.attributes, obituary(message, disposition, self._name))
        failpoint("embedded_queue.settle.before")
        await self._submit(settle)
        failpoint("embedded_queue.settle.after")
        return settle.done

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says; all of them in one transaction, so here it is all or none."""
        rows = [(uuid.uuid4().hex, bytes(m.body), _encode(m.attributes), max(m.delay, 0.0)) for m in messages]
        failpoint("embedded_queue.send.before")
        await self._submit(Send(rows))
        failpoint("embedded_queue.send.after")

    async def depth(self) -> Depth:
        """Exact, at one moment, and no writer waits for it."""
        try:
            return await self._database.read(self._rows.depth)
        except DatabaseError as exc:
            raise _translate(exc, self._name) from exc

    async def open_dead_letters(self) -> Queue:
        """The dead letters, over a connection of their own."""
        if self._dead is None:
            raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
        return await self._open(self._options, self._dead, None)

    async def aclose(self) -> None:
        """As the port says; a parked `receive` ends with `QueueUnavailable`."""
        self._closed = True
        self._wake()
        await self._work.aclose()
        if self._returning:
            await asyncio.wait(set(self._returning))
        await self._database.aclose()

    async def _submit(self, work: Work) -> None:
        if self._closed:
            raise QueueUnavailable(f"queue {self._name!r} is closed")
        await self._work.submit(work)

    async def _run(self, work: Callable[[sqlite3.Connection], Result], *, durable: bool = False) -> Result:
        try:
            return await self._database.run(work, durable=durable)
        except DatabaseError as exc:
            raise _translate(exc, self._name) from exc

    async def _flush(self, batch: Sequence[Work]) -> Sequence[None]:
        # A power failure that undoes a receive, an extension, an ack or a retry leads to a redelivery, no more;
        # one that undid a send would lose it, and a dead letter should be where its reason was reported.
        durable = any(
            isinstance(w, Send) or (isinstance(w, Settle) and isinstance(w.disposition, Dead)) for w in batch
        )
        failpoint("embedded_queue.commit.before")
        await self._run(lambda connection: self._rows.carry_out(connection, batch), durable=durable)
        failpoint("embedded_queue.commit.after")
        for work in batch:
            if isinstance(work, Receive) and work.abandoned and work.messages:
                await self._give_back(work.messages)
        if any(
            isinstance(w, Send) or (isinstance(w, Settle) and isinstance(w.disposition, Retry)) for w in batch
        ):
            self._wake()
        return [None] * len(batch)

    def _return_later(self, messages: Sequence[Message]) -> None:
        task = asyncio.create_task(self._give_back(messages), name=f"queue {self._name} gives back")
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _give_back(self, messages: Sequence[Message]) -> None:
        # When this fails the messages come back with the end of their lease.
        with suppress(QueueError):
            failpoint("embedded_queue.give_back.before")
            await self._run(lambda connection: self._rows.give_back(connection, messages))
            failpoint("embedded_queue.give_back.after")
        self._wake()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()


def _encode(*attributes: Mapping[str, str]) -> str:
    return json.dumps({name: value for mapping in attributes for name, value in mapping.items()})


def _translate(exc: DatabaseError, name: str) -> QueueError:
    if isinstance(exc, DatabaseBusy | DatabaseFull | DatabaseFailing):
        return QueueUnavailable(f"queue {name!r}: {exc}")
    if isinstance(exc, DatabaseDenied):
        return QueueDenied(f"queue {name!r}: {exc}")
    return QueueError(f"queue {name!r}: {exc}")
