"""The embedded queue's file: its schema, its statements, and what one transaction does for a batch of calls.

Called by worker/queues/embedded.py on the thread that owns the connection. Times are milliseconds since the epoch.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from worker.queues.base import Ack, Depth, Disposition, Message, Retry
from worker.sqlite import Schema

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
_RETRY = "UPDATE messages SET visible_at = ?, receive_count = receive_count - ?, nonce = NULL WHERE seq = ?"
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
class Send:
    """Messages to add: id, body, attributes as JSON, seconds until they are visible."""

    rows: Sequence[tuple[str, bytes, str, float]]


@dataclass(slots=True)
class Settle:
    """One disposition. `attributes` are those of a dead letter, as JSON; `done` tells whether it was still held."""

    key: Key
    disposition: Disposition
    attributes: str = ""
    done: bool = False


@dataclass(slots=True)
class Extend:
    """Leases to start anew; `kept` tells for each whether it was still held."""

    keys: Sequence[Key]
    kept: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class Receive:
    """A look for messages. `next_due`: when the next one becomes visible, in seconds since the epoch, where none was left."""

    limit: int
    messages: list[Message] = field(default_factory=list)
    next_due: float | None = None
    abandoned: bool = False
    """Nobody waits for it any more."""


Work = Send | Settle | Extend | Receive


class Rows:
    """The messages of one queue in the file, and those of its dead letters."""

    def __init__(self, name: str, dead: str | None, lease: int) -> None:
        """`dead` is None for the dead letters themselves; `lease` in milliseconds."""
        self._name = name
        self._dead = dead
        self._lease = lease

    def carry_out(self, connection: sqlite3.Connection, batch: Sequence[Work]) -> None:
        """Do what all of them want, and note the outcomes in them. Settling comes before sending and receiving."""
        now = milliseconds()
        self._answer([w for w in batch if isinstance(w, Settle | Extend)], connection, now)
        rows = [
            (self._name, id_, body, attributes, now, now + int(delay * 1000))
            for work in batch
            if isinstance(work, Send)
            for id_, body, attributes, delay in work.rows
        ]
        if rows:
            connection.executemany(_SEND, rows)
        if takers := [w for w in batch if isinstance(w, Receive) and not w.abandoned]:
            self._hand_out(takers, connection, now)

    def _answer(self, batch: Sequence[Settle | Extend], connection: sqlite3.Connection, now: int) -> None:
        """Settle and extend what is still held, in the order of the calls: what one settles the next has lost."""
        if not batch:
            return
        keys = [key for w in batch for key in (w.keys if isinstance(w, Extend) else (w.key,))]
        (held,) = connection.execute(_HELD, (json.dumps(keys), self._name, now)).fetchone()
        valid = {keys[index] for index in json.loads(held)}
        kept: list[int] = []
        acked: list[int] = []
        retried: list[tuple[int, bool, int]] = []
        buried: list[tuple[str | None, str, int, int]] = []
        for work in batch:
            if isinstance(work, Extend):
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
                visible_at = now + int(max(work.disposition.delay, 0.0) * 1000)
                retried.append((visible_at, not work.disposition.counted, work.key[0]))
            else:
                buried.append((self._dead, work.attributes, now, work.key[0]))
        if kept:
            connection.execute(_EXTEND, (now + self._lease, json.dumps(kept)))
        if acked:
            connection.execute(_ACK, (json.dumps(acked),))
        connection.executemany(_RETRY, retried)
        connection.executemany(_BURY, buried)

    def _hand_out(self, takers: Sequence[Receive], connection: sqlite3.Connection, now: int) -> None:
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

    def give_back(self, connection: sqlite3.Connection, messages: Sequence[Message]) -> None:
        """Undo the receive of those that are still held by it, so that it does not count."""
        connection.executemany(_GIVE_BACK, [(milliseconds(), *key_of(message)) for message in messages])

    def depth(self, connection: sqlite3.Connection) -> Depth:
        """Exact, at one moment."""
        names = {"queue": self._name, "dead": self._dead, "now": milliseconds()}
        counts = cast("tuple[int, int, int, int]", connection.execute(_DEPTH, names).fetchone())
        visible, in_flight, hidden, dead = counts
        return Depth(visible, in_flight, hidden - in_flight, None if self._dead is None else dead)


def milliseconds() -> int:
    """Now."""
    return time.time_ns() // 1_000_000


def key_of(message: Message) -> Key:
    """The handle of a received message, taken apart."""
    seq, _, nonce = message.handle.partition(".")
    return int(seq), int(nonce)
