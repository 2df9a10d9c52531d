"""Completions in a SQLite file, for one machine without a message broker; `transload` reads them back from there.

An event id is there once. Publishing it again with the same bytes is a success and changes nothing; with other bytes it
is refused, because all copies of a notification carry the same ones.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, cast

from pydantic import Field

from backends.failpoints import failpoint
from worker.publishers.base import Notification, PublisherOptions, PublishError, PublishRefused
from worker.sqlite import (
    Database,
    DatabaseDamaged,
    DatabaseError,
    DatabaseMismatch,
    Schema,
)

SCHEMA = Schema(
    content="a Transload completion log",
    application_id=0x544C5042,
    versions=(
        (
            # AUTOINCREMENT: a reader that remembers a seq must never meet it again.
            """CREATE TABLE completions (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                event_id TEXT NOT NULL UNIQUE,
                recipe TEXT NOT NULL,
                body BLOB NOT NULL,
                attributes TEXT NOT NULL,
                published_at INTEGER NOT NULL
            ) STRICT""",
        ),
    ),
)

_INSERT = """
    INSERT INTO completions (event_id, recipe, body, attributes, published_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (event_id) DO NOTHING
"""
_READ = """
    SELECT seq, event_id, recipe, body, attributes, published_at FROM completions
    WHERE seq > ? ORDER BY seq LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class StoredNotification:
    """A published notification. `seq` only grows; `published_at` is in seconds since the epoch."""

    seq: int
    notification: Notification
    published_at: float


class EmbeddedPublisherOptions(PublisherOptions):
    """Where the file is."""

    path: Path = Field(description="The SQLite file; created, with its directories, when it is not there.")
    busy_timeout: float = Field(
        default=5.0,
        gt=0,
        description="Seconds to wait for another process's transaction before giving up.",
    )

    @property
    def destination_name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


class EmbeddedPublisher:
    """A table of completions. Several processes may write and read it at once."""

    Options: ClassVar[type[PublisherOptions]] = EmbeddedPublisherOptions

    def __init__(self, path: Path, database: Database) -> None:
        """`connect` constructs."""
        self._path = path
        self._database = database

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:
        """Open the file. Raises `PublishError` as the port says."""
        options = cast("EmbeddedPublisherOptions", options)
        try:
            database = await Database.open(options.path, SCHEMA, busy_timeout=options.busy_timeout)
        except DatabaseError as exc:
            raise _translate(exc) from exc
        return cls(options.path, database)

    @property
    def destination(self) -> str:
        """The file's path."""
        return str(self._path)

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        """As the port says; all in one transaction, so an error of the database is every notification's outcome."""

        def insert(connection: sqlite3.Connection) -> list[PublishError | None]:
            return [_insert(connection, notification) for notification in notifications]

        failpoint("embedded_publisher.commit.before")
        try:
            outcomes = await self._database.run(insert)
        except DatabaseError as exc:
            return [_translate(exc)] * len(notifications)
        failpoint("embedded_publisher.commit.after")
        return outcomes

    async def read(self, after: int = 0, limit: int = 1000) -> list[StoredNotification]:
        """Up to `limit` notifications whose seq is greater than `after`, in order. Raises `PublishError`."""

        def select(connection: sqlite3.Connection) -> list[StoredNotification]:
            return [
                StoredNotification(
                    seq, Notification(event_id, recipe, body, json.loads(attributes)), at / 1000
                )
                for seq, event_id, recipe, body, attributes, at in connection.execute(_READ, (after, limit))
            ]

        try:
            return await self._database.read(select)
        except DatabaseError as exc:
            raise _translate(exc) from exc

    async def count(self) -> int:
        """How many notifications there are. Raises `PublishError`."""

        def count(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM completions").fetchone()[0])

        try:
            return await self._database.read(count)
        except DatabaseError as exc:
            raise _translate(exc) from exc

    async def aclose(self) -> None:
        """As the port says."""
        await self._database.aclose()


def _insert(connection: sqlite3.Connection, notification: Notification) -> PublishError | None:
    event_id, body = notification.event_id, bytes(notification.body)
    attributes = json.dumps(dict(notification.attributes))
    row = (event_id, notification.group, body, attributes, time.time_ns() // 1_000_000)
    if connection.execute(_INSERT, row).rowcount:
        return None
    (stored,) = connection.execute("SELECT body FROM completions WHERE event_id = ?", (event_id,)).fetchone()
    if stored == body:
        return None
    return PublishRefused(f"event {event_id!r} was published before with other bytes; the first ones stay")


def _translate(exc: DatabaseError) -> PublishError:
    # A file system that was remounted read-only, or a file whose owner changed, is mended without a word to us: what
    # is refused now must not be given up for good.
    final = isinstance(exc, DatabaseDamaged | DatabaseMismatch)
    return PublishRefused(str(exc)) if final else PublishError(str(exc))
