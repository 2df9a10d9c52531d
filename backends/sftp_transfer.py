"""One write and one read of the SFTP backend, pipelined. Called by `backends.sftp` only.

A request costs a round trip, so `WINDOW` bytes are under way at any time, in requests of `BLOCK` bytes or of what the server
takes if that is less. `WINDOW` is also what OpenSSH lets through one channel before it has taken some of it; more would only
wait in memory here.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

import asyncssh

from backends.base import CHUNK_SIZE
from backends.errors import IntegrityError, NotFound, Unavailable
from backends.failpoints import failpoint
from backends.sftp_commit import Commit, give_name, remove
from backends.sftp_errors import translated
from backends.sftp_pool import Session, whole
from backends.sftp_tree import FILE, Tree

WINDOW = 2 << 20
BLOCK = 128 << 10


class Upload:
    """One write: `append` any number of times, `finish`, `commit`; `settle` and `discard` however that ended."""

    def __init__(self, tree: Tree, session: Session, key: str) -> None:
        """Nothing is created before the first `append`."""
        self.session = session
        self.key = key
        self.size = 0
        self._tree = tree
        self._doing = f"write {tree.location}{key}"
        self._path = tree.path(key)
        self._temporary = tree.temporary(key)
        self._left = False
        self._file: asyncssh.SFTPClientFile | None = None
        self._block = min(BLOCK, session.sftp.limits.max_write_len)
        self._tail = bytearray()
        self._sent = 0
        self._flying: deque[asyncio.Task[int]] = deque()
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def append(self, data: bytes) -> None:
        """Returns when at most a window is under way."""
        file = self._file or await self._begin()
        self._digest.update(data)
        self.size += len(data)
        view = memoryview(data)
        for start in range(0, len(view), self._block):
            self._tail += view[start : start + self._block]
            if len(self._tail) >= self._block:
                await self._send(file, bytes(self._tail[: self._block]))
                del self._tail[: self._block]

    async def finish(self) -> None:
        """All bytes are on the server's disk, if it offers to see to that, and of the right number."""
        file = self._file or await self._begin()
        if self._tail:
            await self._send(file, bytes(self._tail))
        while self._flying:
            await self._land()
        with translated(self._doing, missing=Unavailable):
            failpoint("sftp.sync.before")
            with suppress(asyncssh.SFTPOpUnsupported):
                await self.session.ask(file.fsync(), syncing=True)
            failpoint("sftp.sync.after")
            there = (await self.session.ask(file.stat())).size
            await whole(self._close())
        if there != self.size:
            raise IntegrityError(f"could not {self._doing}: {there} of {self.size} bytes arrived")

    async def commit(self, how: Commit) -> bool:
        """Give the file its final name. False when the server refuses because that is taken (or so it seems)."""
        created = False
        # A link whose answer is lost cannot happen any more once the temporary name is gone. OpenSSH's rename, between its own
        # link and unlink, would take that for a failure and remove the final name.
        self._left = how is Commit.LINK
        try:
            with translated(self._doing, missing=Unavailable):
                created = await give_name(self.session, how, self._temporary, self._path)
        finally:
            self._left |= not (created or self.session.gone)
        return created

    async def settle(self) -> None:
        """Let go of what is under way and of the handle. The server carries out what it has got already."""
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        self._flying.clear()
        if self._file and not self.session.gone:
            with translated(self._doing):
                await self._close()
        self._file = None

    async def discard(self, session: Session) -> None:
        """Remove the temporary file. `session` need not be the upload's own."""
        if self._left:
            await self._remove(session)

    @property
    def untidy(self) -> bool:
        """There is something to settle or to discard."""
        return self._left or self._file is not None

    async def _begin(self) -> asyncssh.SFTPClientFile:
        await self._tree.make_parents(self.session, self.key)
        return await whole(self._create())

    async def _create(self) -> asyncssh.SFTPClientFile:
        with translated(self._doing, missing=Unavailable):
            self._left = True
            failpoint("sftp.create.before")
            self._file = await self.session.ask(
                self.session.sftp.open(self._temporary, "xb", block_size=None)
            )
            failpoint("sftp.create.after")
            return self._file

    async def _send(self, file: asyncssh.SFTPClientFile, data: bytes) -> None:
        while len(self._flying) * self._block >= WINDOW:
            await self._land()
        failpoint("sftp.write.before")
        self._flying.append(asyncio.create_task(self._put(file, data, self._sent)))
        failpoint("sftp.write.after")
        self._sent += len(data)

    async def _put(self, file: asyncssh.SFTPClientFile, data: bytes, offset: int) -> int:
        return await self.session.ask(file.write(data, offset))

    async def _land(self) -> None:
        with translated(self._doing, missing=Unavailable):
            await self._flying[0]
        self._flying.popleft()

    async def _close(self) -> None:
        file, self._file = self._file, None
        if file:
            await self.session.ask(file.close())

    async def _remove(self, session: Session) -> None:
        with translated(self._doing):
            await remove(session, self._temporary)
        self._left = False


class Download:
    """One read: `open`, then `chunks`, and `close` however that ended."""

    def __init__(self, tree: Tree, session: Session, key: str) -> None:
        """Nothing is opened yet."""
        self._tree = tree
        self._session = session
        self._key = key
        self._doing = f"read {tree.location}{key}"
        self._block = min(BLOCK, session.sftp.limits.max_read_len)
        self._file: asyncssh.SFTPClientFile | None = None
        self.size = 0

    async def open(self) -> None:
        """Learn the size. Raises `NotFound`."""
        if await self._tree.look(self._session, self._key) is None:
            raise NotFound(f"no object {self._tree.location}{self._key}")
        with translated(self._doing):
            await whole(self._open())
            facts = await self._session.ask(self._opened.stat())
        if facts.type != FILE:
            raise NotFound(f"{self._tree.location}{self._key} was replaced while it was opened")
        self.size = facts.size or 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The object in chunks of at most `CHUNK_SIZE`, the next ones being asked for meanwhile."""
        flying: deque[asyncio.Task[bytes]] = deque()
        asked = 0
        parts: list[bytes] = []
        gathered = 0
        try:
            while asked < self.size or flying:
                while asked < self.size and len(flying) * self._block < WINDOW:
                    length = min(self._block, self.size - asked)
                    flying.append(asyncio.create_task(self._read(asked, length)))
                    asked += length
                with translated(self._doing):
                    part = await flying[0]
                flying.popleft()
                if gathered + len(part) > CHUNK_SIZE:
                    yield b"".join(parts)
                    parts, gathered = [], 0
                parts.append(part)
                gathered += len(part)
            if parts:
                yield b"".join(parts)
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def sync(self) -> None:
        """Make what was read durable, if the server offers to: whoever wrote it may not have come that far."""
        with translated(self._doing), suppress(asyncssh.SFTPOpUnsupported):
            failpoint("sftp.sync_found.before")
            await self._session.ask(self._opened.fsync(), syncing=True)
            failpoint("sftp.sync_found.after")

    async def close(self) -> None:
        """Give the handle back. A server that does not take it has lost it anyway."""
        file, self._file = self._file, None
        if file and not self._session.gone:
            with suppress(asyncssh.Error, OSError):
                await self._session.ask(file.close())

    @property
    def _opened(self) -> asyncssh.SFTPClientFile:
        if self._file is None:
            raise Unavailable(f"could not {self._doing}: it is closed")
        return self._file

    async def _open(self) -> None:
        self._file = await self._session.ask(
            self._session.sftp.open(self._tree.path(self._key), "rb", block_size=None)
        )

    async def _read(self, offset: int, size: int) -> bytes:
        """A server may send less than it is asked for."""
        data: bytes = await self._session.ask(self._opened.read(size, offset))
        while data and len(data) < size:
            more: bytes = await self._session.ask(self._opened.read(size - len(data), offset + len(data)))
            if not more:
                break
            data += more
        if len(data) < size:
            raise Unavailable(
                f"could not {self._doing}: it ended after {offset + len(data)} of {self.size} bytes"
            )
        return data
