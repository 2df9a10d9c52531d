"""Objects as files below a directory of HDFS, over WebHDFS. Loaded by name through backends/registry.py.

A write goes to a temporary file in `.transload-parts` below the root, is closed by its DataNode, proven, and renamed.
Without the option OVERWRITE the NameNode's rename replaces nothing and moves nothing into a directory, which is what makes a
write create-only (WebHDFS' plain rename would move the file into a directory of that name and call it success).

How this adapter differs:

- Where `a` is an object, writing `a/b` is `InvalidKey`, and so is writing `a` where `a/b` is one or was one: `delete` leaves
  directories, because a concurrent write may be about to use them.
- A segment of more than 255 bytes is `InvalidKey`. What HDFS refuses in a name is escaped (backends/hdfs_names.py).
- With `verify: size` a write is proven by the length that the NameNode knows. Nothing checks the bytes between this process
  and the DataNode but TCP (and TLS); behind it HDFS checks them against CRCs. `read_back` reads the file before it gets its
  name, and compares SHA-256.
- The age of what a sweep finds counts from the beginning of the write, by the NameNode's clock. Of a very long key only the
  beginning is known of an unfinished write: a sweep of a longer prefix than that leaves it.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar, Self

from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    single,
)
from backends.cancellation import to_the_end
from backends.errors import (
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.failpoints import failpoint
from backends.hdfs_client import PIECE, FileStatus, WebHdfs
from backends.hdfs_names import PARTS, key_of, key_of_temporary, path_of, temporary_of
from backends.hdfs_options import HdfsOptions
from backends.hdfs_upload import Upload


class HdfsBackend:
    """See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = HdfsOptions

    def __init__(self, client: WebHdfs) -> None:
        """`client` is closed by `aclose`. Use `connect`, which makes the root."""
        self._client = client

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Make the root if it is missing, and prove that files can be made and renamed below it."""
        if not isinstance(options, HdfsOptions):
            raise TypeError(f"HdfsBackend takes HdfsOptions, not {type(options).__name__}")
        backend = cls(WebHdfs(options))
        try:
            await backend._make(PARTS)
            await backend.health()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`webhdfs://namenode:9870/srv/`, or `swebhdfs`."""
        if not isinstance(options, HdfsOptions):
            raise TypeError(f"HdfsBackend takes HdfsOptions, not {type(options).__name__}")
        return options.location

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """The minimum."""
        return Features(attributes=False)

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return Features(attributes=False)

    @property
    def location(self) -> str:
        """`webhdfs://namenode:9870/srv/`, or `swebhdfs`."""
        return self._client.options.location

    @property
    def write_buffer(self) -> int:
        """The chunk at hand, the pieces of it that wait, and what aiohttp and the socket hold."""
        return CHUNK_SIZE + 4 * PIECE

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Two requests to the NameNode, one to a DataNode."""
        path = path_of(key)
        status = await self._client.status(path)
        if status is None or not status.is_file:
            raise NotFound(f"{self.location}: no object {key!r}")
        async with aclosing(self._client.read(path, status.length)) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - files keep no attributes here
        """Three requests to the NameNode and one to a DataNode; two more where the directory above the key is new."""
        path = path_of(key)
        upload = Upload(self._client, temporary_of(key))
        try:
            await upload.run(chunks)
            temporary = await self._proven(upload)
            receipt, renamed = await self._commit(key, path, upload, temporary)
        except BaseException as exc:
            await to_the_end(upload.discard(exc))
            raise
        if not renamed:
            await to_the_end(upload.discard(None))
        return receipt

    async def _proven(self, upload: Upload) -> FileStatus:
        """What the NameNode knows of the closed temporary file, which is what was sent."""
        where = self._client.where(upload.path)
        status = await self._client.status(upload.path)
        if status is None:
            raise Unavailable(f"{where} has been swept")
        if status.length != upload.size:
            raise IntegrityError(f"{where} has {status.length} bytes; {upload.size} were sent")
        if self._client.options.verify == "read_back":
            digest = await self._digest(upload.path, status.length)
            if digest != upload.sha256:
                raise IntegrityError(f"{where} reads back with SHA-256 {digest}; {upload.sha256} was sent")
        return status

    async def _commit(
        self, key: str, path: str, upload: Upload, temporary: FileStatus
    ) -> tuple[Receipt, bool]:
        """The receipt, and whether it was our file that got the name."""
        receipt = Receipt(key, upload.size, upload.sha256, temporary.etag)
        try:
            await self._rename(upload.path, path)
        except StorageError as exc:
            # Taken already, or an answer that got lost: what lies there now decides.
            there = await self._client.status(path)
            if there is None:
                raise _retryable(exc) from exc.__cause__
            if there.file_id == temporary.file_id:
                return receipt, True
            await self._compare(key, path, there, upload)
            return Receipt(key, upload.size, upload.sha256, there.etag, created=False), False
        return receipt, True

    async def _rename(self, temporary: str, path: str) -> None:
        try:
            await self._move(temporary, path)
        except NotFound:
            # Most often the directory above is there; where it is not, a rename makes none.
            await self._make(path.rpartition("/")[0])
            await self._move(temporary, path)

    async def _move(self, source: str, path: str) -> None:
        failpoint("hdfs.rename.before")
        answer = await self._client.ask(
            "PUT", "RENAME", source, destination=self._client.destination(path), renameoptions="NONE"
        )
        failpoint("hdfs.rename.after")
        if answer is not None:
            # The plain rename answers with a boolean.
            raise Unsupported(
                f"{self.location} is no NameNode that knows renameoptions (HttpFS?); give url the NameNode's address"
            )

    async def _make(self, path: str) -> None:
        failpoint("hdfs.mkdirs.before")
        await self._client.ask("PUT", "MKDIRS", path)
        failpoint("hdfs.mkdirs.after")

    async def _compare(self, key: str, path: str, there: FileStatus, upload: Upload) -> None:
        """Raises `Conflict` unless what lies there equals what was sent."""
        if not there.is_file:
            raise InvalidKey(f"{self.location}: {key!r} is a directory, of the keys that begin with it")
        same = there.length == upload.size
        if same:
            try:
                same = await self._digest(path, there.length) == upload.sha256
            except NotFound as exc:
                raise _retryable(exc) from exc.__cause__
        if not same:
            raise Conflict(
                f"{self.location}{key} holds other content ({there.length} bytes); it was left as it is"
            )

    async def _digest(self, path: str, size: int) -> str:
        digest = hashlib.sha256()
        async with aclosing(self._client.read(path, size)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
        return digest.hexdigest()

    async def stat(self, key: str) -> ObjectStat | None:
        """One request. The etag names the file and changes with its content."""
        status = await self._client.status(path_of(key))
        return ObjectStat(key, status.length, status.etag) if status and status.is_file else None

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request for each directory (for each thousand of its entries); holds one directory's entries a level.

        Files whose names no key would have are not told.
        """
        *segments, leaf = prefix.split("/")
        if not {"", ".", ".."}.isdisjoint(segments) or "\0" in prefix:
            return
        pending = await _entries(self._client, "".join(f"{segment}/" for segment in segments), leaf)
        while pending:
            key, status = pending.pop()
            if status is None:
                pending += await _entries(self._client, key, "")
            else:
                yield ObjectStat(key, status.length, status.etag)

    async def delete(self, key: str) -> bool:
        """Looks first: HDFS would delete an empty directory of that name as well."""
        path = path_of(key)
        status = await self._client.status(path)
        return status is not None and status.is_file and await self._delete(path)

    async def _delete(self, path: str) -> bool:
        failpoint("hdfs.delete.before")
        answer = await self._client.ask("DELETE", "DELETE", path, recursive="false")
        failpoint("hdfs.delete.after")
        return bool(answer == {"boolean": True})

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - refused whatever they are
        promise: Promise,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Never: HDFS has no copy of its own."""
        raise Unsupported(f"{self.location} cannot copy {source.location}{source_key} to {key!r} by itself")

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Remove temporary files begun at least `older_than` seconds ago; their writer fails at its rename."""
        limit = (await self._client.clock() - older_than) * 1000
        count = 0
        async for page in self._client.pages(PARTS):
            for status in page:
                if status.modified <= limit and key_of_temporary(status.name).startswith(prefix):
                    count += await self._delete(f"{PARTS}/{status.name}")
        return count

    async def health(self) -> None:
        """A file can be made, renamed and removed, and the server finds names with `%`, `+` and the like.

        Some releases decode a path twice (https://issues.apache.org/jira/browse/HDFS-14423).
        """
        probe = Upload(self._client, temporary_of("health"))
        renamed = f"{PARTS}/{secrets.token_hex(12)}-%41+ ;=\\é"
        try:
            await probe.run(single(b""))
            await self._move(probe.path, renamed)
            if not await self._delete(renamed):
                raise Unsupported(f"{self.location}: this NameNode mistakes names with % or +; upgrade it")
        except BaseException as exc:
            await to_the_end(probe.discard(exc))
            raise

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _retryable(exc: StorageError) -> StorageError:
    """A key said to be taken where nothing lies, or a temporary that is gone: a new attempt will tell."""
    return Unavailable(f"{exc}, yet nothing lies there now") if isinstance(exc, (Conflict, NotFound)) else exc


async def _entries(client: WebHdfs, base: str, leaf: str) -> list[tuple[str, FileStatus | None]]:
    """Directories (as `key/`, None) and files of `base`, last key first: `a-b`, `a/…` and `a.b` sort as keys do."""
    found: list[tuple[str, FileStatus | None]] = []
    try:
        directory = path_of(base[:-1]) if base else ""
    except InvalidKey:
        return found
    async for page in client.pages(directory):
        for status in page:
            name = key_of(status.name)
            if name is None or not name.startswith(leaf):
                continue
            if status.is_directory:
                found.append((f"{base}{name}/", None))
            elif status.is_file:
                found.append((f"{base}{name}", status))
    found.sort(key=lambda entry: entry[0], reverse=True)
    return found
