"""The backend for a PostgreSQL database: rows of bytes, and a row of facts for each object. Called through the port only.

An object of one chunk is one statement: its row, its chunk, nothing if the key is taken. A larger one is a row that is no
object yet, its chunks, and a last statement that makes the row an object; that statement is the commit point, and a unique
index over the keys of objects makes it create-only. To whoever looks, both are one transaction. They are not one on the
server, because a stream of 6 GiB may take hours: its transaction would keep the whole database from being vacuumed, hold
one connection per write even while the source is silent, and begin again after any hiccup of the server's. Here every
statement is a transaction of its own, no session keeps anything, and a pooler in transaction mode does.

How this adapter differs:

- Every chunk is stored with its SHA-256, which the server checks (a CHECK constraint) and every read checks again.
- A killed writer leaves its row and chunks, invisible; `sweep` removes them. A cancelled one removes them itself; what it
  cannot reach within some seconds is left to `sweep`.
- A cancellation that arrives while the commit is under way may find the object stored, and leaves it.
- `open` reads a chunk at a time and holds neither transaction nor connection in between; an object that is deleted
  meanwhile ends the read with `Unavailable`.
- A NUL in attributes, which JSONB cannot hold, becomes U+FFFD.
"""

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Self
from uuid import UUID, uuid4

from backends import postgres_sql as sql
from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
)
from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.postgres_client import Database, PostgresOptions
from backends.postgres_metadata import cleaned, columns_for
from backends.postgres_tables import check, create
from backends.postgres_upload import Upload, cut, discard, fill, to_its_end
from backends.wrapper import bare

_PAGE = 1000
_FEATURES = Features(attributes=True, server_copy=True)


class PostgresBackend:
    """Objects in the tables of one schema. See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = PostgresOptions

    def __init__(self, database: Database, chunk_size: int) -> None:
        """`database` is closed by `aclose`. Use `connect`, which looks at it first."""
        self.database = database
        self._chunk_size = chunk_size

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """See that the tables are there, or make them when `create_tables` is set."""
        options = _checked(options)
        backend = cls(await Database.open(options), options.chunk_size)
        try:
            if options.create_tables:
                await create(backend.database)
            await backend.health()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`postgresql://host:port/database/schema/`."""
        return _checked(options).location

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """Attributes, and copies within one database."""
        return _FEATURES

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return _FEATURES

    @property
    def location(self) -> str:
        """`postgresql://host:port/database/schema/`."""
        return self.database.location

    @property
    def write_buffer(self) -> int:
        """The block that is gathered, the first two, the one on its way, and the driver's copies of that."""
        return 6 * self._chunk_size

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """A statement per stored chunk."""
        rows = await self.database.read(sql.OPEN, check_key(key))
        if not rows:
            raise NotFound(f"{self.location}: no object {key!r}")
        async with aclosing(self._chunks(key, rows[0]["uuid"], rows[0]["size"], rows[0])) as chunks:
            yield chunks

    async def _chunks(
        self, key: str, uuid: UUID, size: int, row: Mapping[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """`row` holds the first chunk."""
        received = number = 0
        while received < size:
            data = row["data"]
            if data is None or hashlib.sha256(data).digest() != row["sha256"]:
                raise IntegrityError(f"{self.location}: chunk {number} of {key!r} is not what was stored")
            received += len(data)
            number += 1
            for start in range(0, len(data), CHUNK_SIZE):
                yield data[start : start + CHUNK_SIZE]
            if received < size:
                rows = await self.database.read(sql.CHUNK, uuid, number)
                if not rows:
                    raise Unavailable(f"{self.location}: {key!r} ended after {received} of {size} bytes")
                row = rows[0]

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """One statement for up to `chunk_size` bytes; beyond, as the module's docstring says."""
        check_key(key)
        async with aclosing(cut(chunks, self._chunk_size)) as blocks:
            first = await anext(blocks, b"")
            second = await anext(blocks, None)
            if second is None:
                return await self._put(key, first, attributes)
            return await self._store(key, attributes, partial(fill, first, second, blocks))

    async def _put(self, key: str, data: bytes, attributes: Attributes) -> Receipt:
        uuid, digest = uuid4(), hashlib.sha256(data).digest()
        facts = (uuid, key, len(data), digest, *columns_for(attributes))
        try:
            with self.database.translating("put"):
                failpoint("postgres.put.before")
                made = await self.database.run(sql.PUT, *facts, data)
                failpoint("postgres.put.after")
        except Unavailable:
            # The answer may be all that was lost: what lies there now decides.
            with suppress(Unavailable):
                return await self._compare(key, len(data), digest, uuid)
            raise
        if made:
            return Receipt(key, len(data), digest.hex(), etag=digest.hex(), version=str(uuid))
        return await self._compare(key, len(data), digest)

    async def _store(
        self,
        key: str,
        attributes: Attributes,
        fill: "Callable[[Upload | None], Awaitable[tuple[int, bytes]]]",
    ) -> Receipt:
        """`fill` adds all chunks, or only looks at them when there is no use for them, and tells size and SHA-256."""
        upload = Upload(self.database, key)
        size, digest = 0, b""
        try:
            begun = await upload.begin(*columns_for(attributes))
            size, digest = await fill(upload if begun else None)
            stored = begun and await upload.commit(size, digest)
        except BaseException as exc:
            # If only the answer to the commit was lost, the object is there and stays.
            stored = await to_its_end(upload.abandon())
            if not stored or not isinstance(exc, StorageError):
                raise
        if stored:
            return Receipt(key, size, digest.hex(), etag=digest.hex(), version=str(upload.uuid))
        if begun:
            await to_its_end(upload.abandon())
        return await self._compare(key, size, digest)

    async def _compare(self, key: str, size: int, digest: bytes, own: UUID | None = None) -> Receipt:
        """The receipt of what lies under the key if it is just that. `own`: the row that would be this write's.

        Raises `Conflict` when it is something else, `Unavailable` when nothing lies there (any more).
        """
        there = await self.find(key)
        if there is None:
            raise Unavailable(f"{self.location}: {key!r} was there and is not; try again")
        if (there["size"], there["sha256"]) != (size, digest):
            raise Conflict(f"{self.location}: another object lies under {key!r}; it was left as it is")
        uuid = there["uuid"]
        return Receipt(key, size, digest.hex(), etag=digest.hex(), version=str(uuid), created=uuid == own)

    async def find(self, key: str) -> Mapping[str, Any] | None:
        """The row of an object: `uuid, size, sha256, content_type, metadata`."""
        rows = await self.database.read(sql.FIND, check_key(key))
        return rows[0] if rows else None

    async def stat(self, key: str) -> ObjectStat | None:
        """As the port says; the etag is the SHA-256 in hex."""
        found = await self.find(key)
        if found is None:
            return None
        metadata = json.loads(found["metadata"])
        return ObjectStat(key, found["size"], found["sha256"].hex(), found["content_type"], metadata)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A statement per 1,000 objects; neither content type nor metadata."""
        if cleaned(prefix) != prefix:
            return
        start, more = prefix, True
        while more:
            rows = await self.database.read(sql.LIST, start, _PAGE)
            for row in rows:
                if not row["key"].startswith(prefix):
                    return
                yield ObjectStat(row["key"], row["size"], row["sha256"].hex())
            more = len(rows) == _PAGE
            # The smallest text after the last one, because none holds a NUL.
            start = f"{rows[-1]['key']}\x01" if rows else ""

    async def delete(self, key: str) -> bool:
        """Gone with the first statement; its chunks are removed after that, by a sweep if this process is killed."""
        check_key(key)
        with self.database.translating("delete"):
            failpoint("postgres.delete.before")
            rows = await self.database.run(sql.DELETE, key)
            failpoint("postgres.delete.after")
        for row in rows:
            with suppress(StorageError):
                await to_its_end(discard(self.database, row["uuid"]))
        return bool(rows)

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """Between schemas of one database, as one user. The server checks the digest of every chunk it has copied."""
        check_key(key)
        store, store_key = bare(source, source_key)
        check_key(store_key)
        if not isinstance(store, PostgresBackend) or store.database.place != self.database.place:
            raise Unsupported(f"{self.location} cannot copy {source.location}{source_key} by itself")
        found = await store.find(store_key)
        if found is None:
            raise NotFound(f"{store.location}: no object {store_key!r}")
        facts = Promise(found["size"], found["sha256"].hex())
        if promise.size not in {None, facts.size} or promise.sha256 not in {None, facts.sha256}:
            raise IntegrityError(f"{store.location}: {store_key!r} is not what was promised")

        async def copy(upload: Upload | None) -> tuple[int, bytes]:
            if upload is not None:
                await upload.copy(store.database, found["uuid"], found["size"])
            return found["size"], found["sha256"]

        return await self._store(key, attributes, copy)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Writes whose last chunk came at least `older_than` seconds ago, by the server's clock."""
        if cleaned(prefix) != prefix:
            return 0
        with self.database.translating("sweep"):
            failpoint("postgres.sweep.before")
            doomed = await self.database.run(sql.DOOM_OLD, older_than, prefix)
            failpoint("postgres.sweep.after")
        return sum([await discard(self.database, row["uuid"]) for row in doomed])

    async def health(self) -> None:
        """The tables are there, this user may change them, and the server keeps what it has acknowledged."""
        await check(self.database)

    async def aclose(self) -> None:
        """Close the pool."""
        await self.database.aclose()


def _checked(options: BackendOptions) -> PostgresOptions:
    if not isinstance(options, PostgresOptions):
        raise TypeError(f"PostgresBackend takes PostgresOptions, not {type(options).__name__}")
    return options
