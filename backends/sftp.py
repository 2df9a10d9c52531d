"""Objects as files below a directory of an SSH server (SFTP 3, `draft-ietf-secsh-filexfer-02`). Loaded by name through
backends/registry.py.

A write is a temporary file beside the final name, `fsync@openssh.com` if the server offers it, and a create-only commit
(backends/sftp_commit.py), after which the file is looked at again. How this adapter differs from the port:

- Directory entries cannot be made durable: SFTP has no fsync of a directory. After a crash of the *server's machine* an
  object of the last seconds may be gone with its name; of this machine's crashes it knows nothing. Without
  `fsync@openssh.com` the same holds for its bytes.
- On a server without hard links, create-only is the server's rename refusing a taken name: see `Commit.RENAME`. One whose
  rename replaces is refused by `connect`.
- No symbolic link below the root is followed, as far as a look before each request can tell: `InvalidKey`. (The root itself
  may be one.) Only regular files are objects. Where `a` is an object, writing `a/b` is `InvalidKey`, and so is writing `a`
  where `a/b` is one; reading such a key is `NotFound`.
- Keys with a segment of more than 255 bytes, or one that looks like a temporary file of ours (`.transload-….part`), are
  `InvalidKey`.
- A cancellation that arrives while the commit is under way leaves the object if the server has made it.
- A write that fails or is cancelled removes its temporary file, over a new connection where the old one is lost. What
  cannot be removed within ten seconds is left to `sweep`, and so is the file of a rename whose answer was lost.
- `delete` leaves empty directories, because a concurrent write may be about to use them.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import ClassVar, Self

from backends.base import (
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
)
from backends.errors import Conflict, NotFound, StorageError, Unavailable, Unsupported
from backends.sftp_client import Door, SFTPOptions
from backends.sftp_commit import Commit, choose, remove, server_time, works
from backends.sftp_errors import translated
from backends.sftp_pool import Pool, Session, whole
from backends.sftp_transfer import WINDOW, Download, Upload
from backends.sftp_tree import Tree, is_temporary

_TIDY = 10.0
"""Seconds a failed write may spend on removing its temporary file."""


class SFTPBackend:
    """See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = SFTPOptions

    def __init__(self, options: SFTPOptions, pool: Pool) -> None:
        """Use `connect`, which finds out how to commit."""
        self._location = options.location
        self._pool = pool
        self._tree = Tree(options.root, options.location)
        self._how = Commit.LINK

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Log in and prove with files of its own that a write is create-only here.

        Raises `PermissionDenied` (host key, log-in, directory), `NotFound` (no such root), `Unsupported`, `Unavailable`.
        """
        if not isinstance(options, SFTPOptions):
            raise TypeError(f"SFTPBackend takes SFTPOptions, not {type(options).__name__}")
        backend = cls(options, Pool(await Door.load(options), options))
        try:
            async with backend._pool.session() as session:
                backend._how = await whole(choose(session, backend._tree))
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`sftp://user@host/srv/`, with the port where it is not 22."""
        if not isinstance(options, SFTPOptions):
            raise TypeError(f"SFTPBackend takes SFTPOptions, not {type(options).__name__}")
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
        """`sftp://user@host/srv/`, with the port where it is not 22."""
        return self._location

    @property
    def write_buffer(self) -> int:
        """The window as requests and as packets, and what the source has just given (measured: 6 MiB at most)."""
        return 3 * WINDOW

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """As the port says; up to a window ahead of the reader."""
        self._tree.check(key)
        async with self._pool.session() as session:
            download = Download(self._tree, session, key)
            try:
                await download.open()
                async with aclosing(download.chunks()) as chunks:
                    yield chunks
            finally:
                await whole(download.close())

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - a directory keeps no attributes
        """As the port says."""
        self._tree.check(key)
        async with self._pool.session() as session:
            upload = Upload(self._tree, session, key)
            try:
                async for chunk in chunks:
                    await upload.append(chunk)
                await upload.finish()
                created = await self._commit(upload)
            finally:
                if upload.untidy:
                    await whole(self._tidy(upload))
        async with self._pool.session() as session:
            if created:
                await self._prove(session, upload)
            elif not await self._holds(session, upload):
                raise Unavailable(
                    f"{self._location}{key}: the server refuses the name, yet nothing lies there; is there room?"
                )
        return Receipt(key, upload.size, upload.sha256, created=created)

    async def _commit(self, upload: Upload) -> bool:
        """Whether the name was free. When the answer gets lost, what lies there decides."""
        try:
            return await whole(upload.commit(self._how))
        except StorageError:
            if not upload.session.gone:
                raise
            async with self._pool.session() as session:
                await upload.discard(session)
                if not await self._holds(session, upload):
                    raise
            return True

    async def _tidy(self, upload: Upload) -> None:
        with suppress(StorageError, TimeoutError):
            async with asyncio.timeout(_TIDY):
                await upload.settle()
                if not upload.session.gone:
                    await upload.discard(upload.session)
                else:
                    async with self._pool.session() as session:
                        await upload.discard(session)

    async def _prove(self, session: Session, upload: Upload) -> None:
        facts = await self._tree.look(session, upload.key)
        if facts is None or facts.size != upload.size:
            raise Unavailable(
                f"{self._location}{upload.key} is not there, or not whole, right after it was written"
            )

    async def _holds(self, session: Session, upload: Upload) -> bool:
        """Whether an object equal to what was written lies under the key. Raises `Conflict` when it is another one."""
        facts = await self._tree.look(session, upload.key, wanted=True)
        if facts is None:
            return False
        digest = hashlib.sha256()
        if facts.size == upload.size:
            download = Download(self._tree, session, upload.key)
            try:
                await download.open()
                async with aclosing(download.chunks()) as chunks:
                    async for chunk in chunks:
                        digest.update(chunk)
                await download.sync()
            except NotFound:
                return False
            finally:
                await whole(download.close())
        if facts.size != upload.size or digest.hexdigest() != upload.sha256:
            raise Conflict(
                f"{self._location}{upload.key} holds other content ({facts.size} bytes); it was left as it is"
            )
        return True

    async def stat(self, key: str) -> ObjectStat | None:
        """Size only."""
        self._tree.check(key)
        async with self._pool.session() as session:
            facts = await self._tree.look(session, key)
        return None if facts is None else ObjectStat(key, facts.size or 0)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """As the port says; a request for about a hundred names."""
        async with self._pool.session() as session, aclosing(self._tree.files(session, prefix)) as files:
            async for key, facts in files:
                if not is_temporary(key.rpartition("/")[2]):
                    yield ObjectStat(key, facts.size or 0)

    async def delete(self, key: str) -> bool:
        """As the port says, but the server may remember the name for some seconds if its machine crashes."""
        self._tree.check(key)
        async with self._pool.session() as session:
            if await self._tree.look(session, key) is None:
                return False
            return await whole(self._remove(session, key))

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - refused whatever they are
        promise: Promise,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Never: `features.server_copy` is off. OpenSSH's `copy-data` tells no checksum."""
        raise Unsupported(f"{self._location} cannot copy {source.location}{source_key} to {key!r} by itself")

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """The temporary files last written at least `older_than` seconds ago, by the server's clock. Looks at every file."""
        removed = 0
        async with self._pool.session() as session:
            limit = await whole(server_time(session, self._tree)) - older_than
            async with aclosing(self._tree.files(session, prefix)) as files:
                async for key, facts in files:
                    if is_temporary(key.rpartition("/")[2]) and (facts.mtime or 0) <= limit:
                        removed += await whole(self._remove(session, key))
            for key, facts in await self._tree.probes(session):
                if (facts.mtime or 0) <= limit:
                    removed += await whole(self._remove(session, key))
        return removed

    async def health(self) -> None:
        """Log in if need be, and commit a file in the root as a write does."""
        async with self._pool.session() as session:
            if not await whole(works(session, self._tree, self._how)):
                raise Unavailable(f"{self._location}: {self._how.value} does not work any more")

    async def aclose(self) -> None:
        """End the connections and what runs over them."""
        await self._pool.aclose()

    async def _remove(self, session: Session, key: str) -> bool:
        with translated(f"delete {self._location}{key}"):
            return await remove(session, self._tree.path(key))
