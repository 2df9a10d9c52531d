"""The durable queue that needs no server: SQS's semantics on one SQLite file, for one machine.

Several processes may use the file at once. Times are wall-clock, because leases must outlive the process that took
them. What arrives from this instance wakes a waiting `receive` at once; what another process sends is seen within
`poll_interval`. Nothing expires. FIFO fields are ignored.

All calls that come in while one transaction runs share the next one, so the cost of a commit is divided among them.
"""

import asyncio
import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self, TypeVar, cast

from pydantic import Field, model_validator

from worker.batcher import Batcher
from worker.queues.base import (
    Ack,
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
from worker.sqlite import (
    Database,
    DatabaseBusy,
    DatabaseDenied,
    DatabaseError,
    DatabaseFailing,
    DatabaseFull,
    Schema,
)

Result = TypeVar("Result")

SCHEMA = Schema(
    content="a Transload queue",
    application_id=0x544C5155,
    versions=(
        (
            # `nonce` is set while a receive holds the message, and differs for every receive.
            """CREATE TABLE messages (
                seq INTEGER PRIMARY KEY,
                queue TEXT NOT NULL,
                id TEXT NOT NULL,
                body BLOB NOT NULL,
                attributes TEXT NOT NULL,
                sent_at INTEGER NOT NULL,
                visible_at INTEGER NOT NULL,
                receive_count INTEGER NOT NULL DEFAULT 0,
                nonce INTEGER
            ) STRICT""",
            "CREATE INDEX due ON messages (queue, visible_at)",
        ),
    ),
)

# One statement for a whole batch: each step of a statement hands the GIL over, and under load takes long to get it back.
_HELD = """
    SELECT json_group_array(k.key) FROM json_each(?) AS k
    CROSS JOIN messages AS m ON m.seq = json_extract(k.value, '$[0]')
    WHERE m.nonce = json_extract(k.value, '$[1]') AND m.queue = ? AND m.visible_at > ?
"""
_LISTED = "seq IN (SELECT value FROM json_each(?))"
_EXTEND = f"UPDATE messages SET visible_at = ? WHERE {_LISTED}"  # noqa: S608 - a constant, no value is spliced in
_ACK = f"DELETE FROM messages WHERE {_LISTED}"  # noqa: S608 - as above
_RETRY = "UPDATE messages SET visible_at = ?, nonce = NULL WHERE seq = ?"
_BURY = """
    UPDATE messages SET queue = ?, attributes = ?, visible_at = ?, receive_count = 0, nonce = NULL WHERE seq = ?
"""
_SEND = "INSERT INTO messages (queue, id, body, attributes, sent_at, visible_at) VALUES (?, ?, ?, ?, ?, ?)"
_DUE = """
    SELECT seq, id, body, attributes, sent_at, receive_count + 1 FROM messages
    WHERE queue = ? AND visible_at <= ? ORDER BY visible_at, seq LIMIT ?
"""
_HIDE = f"""
    UPDATE messages SET visible_at = ?, nonce = ?, receive_count = receive_count + 1 WHERE {_LISTED}
"""  # noqa: S608 - as above
_GIVE_BACK = """
    UPDATE messages SET visible_at = ?, receive_count = receive_count - 1, nonce = NULL WHERE seq = ? AND nonce = ?
"""
_DEPTH = """
    SELECT (SELECT count(*) FROM messages WHERE queue = :queue AND visible_at <= :now),
           (SELECT count(nonce) FROM messages WHERE queue = :queue AND visible_at > :now),
           (SELECT count(*) FROM messages WHERE queue = :queue AND visible_at > :now),
           (SELECT count(*) FROM messages WHERE queue = :dead)
"""

Key = tuple[int, int]
"""A handle taken apart: the row, and the nonce of the receive it belongs to."""


@dataclass(slots=True)
class _Send:
    rows: Sequence[tuple[str, bytes, str, float]]


@dataclass(slots=True)
class _Settle:
    key: Key
    disposition: Disposition
    attributes: str = ""
    done: bool = False


@dataclass(slots=True)
class _Extend:
    keys: Sequence[Key]
    kept: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class _Receive:
    limit: int
    messages: list[Message] = field(default_factory=list)
    next_due: float | None = None
    abandoned: bool = False


_Work = _Send | _Settle | _Extend | _Receive


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


class EmbeddedQueue:
    """A queue in a SQLite file. A message that is moved to the dead letters keeps its id and its time of sending."""

    Options: ClassVar[type[QueueOptions]] = EmbeddedOptions

    def __init__(self, options: EmbeddedOptions, database: Database, *, name: str, dead: str | None) -> None:
        """`connect` and `open_dead_letters` construct; `dead` is None for the dead letters themselves."""
        self._options = options
        self._database = database
        self._name = name
        self._dead = dead
        self._closed = False
        self._arrived = asyncio.Event()
        self._returning: set[asyncio.Task[None]] = set()
        self._work: Batcher[_Work, None] = Batcher(self._flush, limit=1000, name=f"queue {name}")

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
            look = _Receive(limit)
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
        extend = _Extend([_key(message) for message in messages])
        await self._submit(extend)
        return [message for message, kept in zip(messages, extend.kept, strict=True) if not kept]

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """As the port says; a dead letter appears and the message goes in one transaction."""
        settle = _Settle(_key(message), disposition)
        if isinstance(disposition, Dead):
            if self._dead is None:
                raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
            settle.attributes = _encode(message.attributes, obituary(message, disposition, self._name))
        await self._submit(settle)
        return settle.done

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says; all of them in one transaction, so here it is all or none."""
        rows = [(uuid.uuid4().hex, bytes(m.body), _encode(m.attributes), max(m.delay, 0.0)) for m in messages]
        await self._submit(_Send(rows))

    async def depth(self) -> Depth:
        """Exact, at one moment."""

        def count(connection: sqlite3.Connection) -> tuple[int, int, int, int]:
            names = {"queue": self._name, "dead": self._dead, "now": _now()}
            return cast("tuple[int, int, int, int]", connection.execute(_DEPTH, names).fetchone())

        visible, in_flight, hidden, dead = await self._run(count)
        return Depth(
            visible=visible,
            in_flight=in_flight,
            delayed=hidden - in_flight,
            dead=None if self._dead is None else dead,
        )

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

    async def _submit(self, work: _Work) -> None:
        if self._closed:
            raise QueueUnavailable(f"queue {self._name!r} is closed")
        await self._work.submit(work)

    async def _run(self, work: Callable[[sqlite3.Connection], Result], *, durable: bool = False) -> Result:
        try:
            return await self._database.run(work, durable=durable)
        except DatabaseError as exc:
            raise _translate(exc, self._name) from exc

    async def _flush(self, batch: Sequence[_Work]) -> Sequence[None]:
        # A power failure that undoes a receive, an extension, an ack or a retry leads to a redelivery, no more;
        # one that undid a send would lose it, and a dead letter should be where its reason was reported.
        durable = any(
            isinstance(w, _Send) or (isinstance(w, _Settle) and isinstance(w.disposition, Dead))
            for w in batch
        )
        await self._run(lambda connection: self._carry_out(connection, batch), durable=durable)
        for work in batch:
            if isinstance(work, _Receive) and work.abandoned and work.messages:
                await self._give_back(work.messages)
        if any(
            isinstance(w, _Send) or (isinstance(w, _Settle) and isinstance(w.disposition, Retry))
            for w in batch
        ):
            self._wake()
        return [None] * len(batch)

    def _carry_out(self, connection: sqlite3.Connection, batch: Sequence[_Work]) -> None:
        now = _now()
        self._answer([w for w in batch if isinstance(w, _Settle | _Extend)], connection, now)
        rows = [
            (self._name, id_, body, attributes, now, now + int(delay * 1000))
            for work in batch
            if isinstance(work, _Send)
            for id_, body, attributes, delay in work.rows
        ]
        if rows:
            connection.executemany(_SEND, rows)
        if takers := [w for w in batch if isinstance(w, _Receive) and not w.abandoned]:
            self._hand_out(takers, connection, now)

    def _answer(self, batch: Sequence[_Settle | _Extend], connection: sqlite3.Connection, now: int) -> None:
        """Settle and extend what is still held, in the order of the calls: what one settles the next has lost."""
        if not batch:
            return
        keys = [key for w in batch for key in (w.keys if isinstance(w, _Extend) else (w.key,))]
        (held,) = connection.execute(_HELD, (json.dumps(keys), self._name, now)).fetchone()
        valid = {keys[index] for index in json.loads(held)}
        kept: list[int] = []
        acked: list[int] = []
        retried: list[tuple[int, int]] = []
        buried: list[tuple[str | None, str, int, int]] = []
        for work in batch:
            if isinstance(work, _Extend):
                work.kept = [key in valid for key in work.keys]
                kept += [key[0] for key in work.keys if key in valid]
                continue
            work.done = work.key in valid
            if not work.done:
                continue
            valid.discard(work.key)
            if isinstance(work.disposition, Ack):
                acked.append(work.key[0])
            elif isinstance(work.disposition, Retry):
                retried.append((now + int(max(work.disposition.delay, 0.0) * 1000), work.key[0]))
            else:
                buried.append((self._dead, work.attributes, now, work.key[0]))
        if kept:
            connection.execute(_EXTEND, (now + self._lease, json.dumps(kept)))
        if acked:
            connection.execute(_ACK, (json.dumps(acked),))
        connection.executemany(_RETRY, retried)
        connection.executemany(_BURY, buried)

    def _hand_out(self, takers: Sequence[_Receive], connection: sqlite3.Connection, now: int) -> None:
        wanted = sum(taker.limit for taker in takers)
        rows = connection.execute(_DUE, (self._name, now, wanted)).fetchall()
        nonce = secrets.randbits(62)
        if rows:
            connection.execute(_HIDE, (now + self._lease, nonce, json.dumps([row[0] for row in rows])))
        messages = [
            Message(
                id=id_,
                body=body,
                handle=f"{seq}.{nonce}",
                receive_count=receive_count,
                attributes=json.loads(attributes),
                sent_at=sent_at / 1000,
            )
            for seq, id_, body, attributes, sent_at, receive_count in rows
        ]
        given = 0
        for taker in takers:
            taker.messages = messages[given : given + taker.limit]
            given += len(taker.messages)
        if given < wanted:
            (due,) = connection.execute(
                "SELECT min(visible_at) FROM messages WHERE queue = ?", (self._name,)
            ).fetchone()
            for taker in takers:
                taker.next_due = None if due is None else due / 1000

    def _return_later(self, messages: Sequence[Message]) -> None:
        task = asyncio.create_task(self._give_back(messages), name=f"queue {self._name} gives back")
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _give_back(self, messages: Sequence[Message]) -> None:
        keys = [_key(message) for message in messages]
        # When this fails the messages come back with the end of their lease.
        with suppress(QueueError):
            await self._run(lambda c: c.executemany(_GIVE_BACK, [(_now(), *key) for key in keys]).rowcount)
        self._wake()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    @property
    def _lease(self) -> int:
        return int(self._options.lease * 1000)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _key(message: Message) -> Key:
    seq, _, nonce = message.handle.partition(".")
    return int(seq), int(nonce)


def _encode(*attributes: Mapping[str, str]) -> str:
    return json.dumps({name: value for mapping in attributes for name, value in mapping.items()})


def _translate(exc: DatabaseError, name: str) -> QueueError:
    if isinstance(exc, DatabaseBusy | DatabaseFull | DatabaseFailing):
        return QueueUnavailable(f"queue {name!r}: {exc}")
    if isinstance(exc, DatabaseDenied):
        return QueueDenied(f"queue {name!r}: {exc}")
    return QueueError(f"queue {name!r}: {exc}")
