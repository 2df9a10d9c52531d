"""One write of the PostgreSQL backend that takes more than one statement, and its undoing. Called by backends/postgres.py only."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar
from uuid import UUID, uuid4

from backends import postgres_sql as sql
from backends.errors import Conflict, NotFound, StorageError, Unavailable
from backends.failpoints import failpoint
from backends.postgres_client import CLEANUP_SECONDS, Database, settled

T = TypeVar("T")

_BATCH = 32
"""Chunks copied or removed by one statement, so that none takes long however large the object is."""


class Upload:
    """A row that is no object yet, and its chunks. Whoever began it ends it with `commit` or `abandon`."""

    def __init__(self, database: Database, key: str) -> None:
        self._database = database
        self._key = key
        self._number = 0
        self.uuid = uuid4()

    async def begin(self, content_type: str | None, metadata: str) -> bool:
        """False when an object lies under the key, and nothing was begun."""
        with self._database.translating("begin"):
            failpoint("postgres.begin.before")
            made = await self._database.run(sql.BEGIN, self.uuid, self._key, content_type, metadata)
            failpoint("postgres.begin.after")
        return bool(made)

    async def add(self, block: bytes) -> None:
        """Store the next chunk. Raises `IntegrityError` when the server got something else."""
        with self._database.translating("add"):
            failpoint("postgres.add.before")
            await self._database.run(sql.ADD, self.uuid, self._number, block, hashlib.sha256(block).digest())
            failpoint("postgres.add.after")
        self._number += 1

    async def copy(self, source: Database, uuid: UUID, size: int) -> None:
        """Store the chunks of another object, `size` bytes, without seeing them."""
        copied, more = 0, True
        while more:
            with self._database.translating("copy"):
                failpoint("postgres.copy.before")
                bounds = (self._number, self._number + _BATCH)
                (row,) = await self._database.run(sql.COPY, self.uuid, uuid, *bounds, source=source.schema)
                failpoint("postgres.copy.after")
            copied += row["size"]
            self._number += _BATCH
            more = row["chunks"] == _BATCH
        if copied != size:
            raise NotFound(f"{source.location}: the object was deleted while it was copied to {self._key!r}")

    async def commit(self, size: int, digest: bytes) -> bool:
        """Make it an object. False when one lies there already."""
        try:
            with self._database.translating("commit"):
                failpoint("postgres.commit.before")
                made = await self._database.run(sql.COMMIT, self.uuid, size, digest)
                failpoint("postgres.commit.after")
        except Conflict:
            return False
        if not made:
            raise Unavailable(f"{self._database.location}: the write of {self._key!r} was swept meanwhile")
        return True

    async def abandon(self) -> bool:
        """Take it back, unless it is an object by now: True then. What cannot be reached is left to a sweep."""
        try:
            with self._database.translating("doom"):
                failpoint("postgres.doom.before")
                doomed = await self._database.run(sql.DOOM, self.uuid, seconds=CLEANUP_SECONDS)
                failpoint("postgres.doom.after")
            if not doomed:
                return bool(await self._database.read(sql.IS_STORED, self.uuid, seconds=CLEANUP_SECONDS))
            await discard(self._database, self.uuid)
        except StorageError:
            return False
        return False


async def discard(database: Database, uuid: UUID) -> bool:
    """Remove a doomed row and its chunks. False when somebody else has."""
    more = True
    while more:
        with database.translating("clear"):
            failpoint("postgres.clear.before")
            cleared = await database.run(sql.CLEAR, uuid, _BATCH, seconds=CLEANUP_SECONDS)
            failpoint("postgres.clear.after")
        more = len(cleared) == _BATCH
    with database.translating("remove"):
        failpoint("postgres.remove.before")
        # A chunk that was still on its way to the server has arrived by now or never will: the row takes it along.
        removed = await database.run(sql.REMOVE, uuid, seconds=CLEANUP_SECONDS)
        failpoint("postgres.remove.after")
    return bool(removed)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. A cancelled caller waits for it, and is cancelled then."""
    task = asyncio.create_task(work)
    await settled(task)
    return task.result()


async def cut(chunks: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks of `size`, the last one shorter; no block is empty."""
    block = bytearray()
    async for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            missing = size - len(block)
            block += rest[:missing]
            rest = rest[missing:]
            if len(block) == size:
                yield bytes(block)
                block.clear()
    if block:
        yield bytes(block)


async def fill(
    first: bytes, second: bytes, blocks: AsyncIterator[bytes], upload: Upload | None
) -> tuple[int, bytes]:
    """Add the blocks to the upload, or only look at them where there is none; size and SHA-256 of them all."""
    size, digest = 0, hashlib.sha256()

    async def take(block: bytes) -> None:
        nonlocal size
        size += len(block)
        digest.update(block)
        if upload is not None:
            await upload.add(block)

    await take(first)
    await take(second)
    async for block in blocks:
        await take(block)
    return size, digest.digest()
