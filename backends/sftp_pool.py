"""A few SSH connections with several SFTP sessions each, shared by everything that the SFTP backend does at once.

A session answers its requests one after the other, so one that flushes a large file holds up the others on it: hence several.
Nobody owns a session. Whoever comes takes the least busy one, and a new one is opened while all are busy and the bounds
allow it; nobody waits for a turn, so a reader and a writer that need each other cannot block each other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import asyncssh

from backends.errors import StorageError, Unavailable
from backends.sftp_client import Door, SFTPOptions
from backends.sftp_errors import LOST, translated

T = TypeVar("T")

_GOODBYE = 2.0
"""Seconds a connection has to end in order."""


class Session:
    """One SFTP channel, and the clock that ends its connection when answers stay out."""

    def __init__(
        self, ssh: asyncssh.SSHClientConnection, sftp: asyncssh.SFTPClient, options: SFTPOptions
    ) -> None:
        """`sftp` runs over `ssh`."""
        self.sftp = sftp
        self.users = 0
        self._ssh = ssh
        self._limits = (options.timeout, options.sync_timeout)
        self._gone = False
        self._late = False
        self._asking = 0
        self._syncing = 0
        self._heard = 0.0
        self._clock: asyncio.TimerHandle | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        return self._gone or self._ssh.is_closed()

    async def ask(self, request: Awaitable[T], *, syncing: bool = False) -> T:
        """The answer to one request. Any answer to anybody's counts as a sign of life.

        A peer that is away is found by the connection's keepalive; this finds one that answers those only, or whose line lets
        hardly a byte through.
        """
        loop = asyncio.get_running_loop()
        if not self._asking:
            self._heard = loop.time()
        self._asking += 1
        self._syncing += syncing
        if self._clock is None:
            self._clock = loop.call_later(self._limits[syncing], self._tick)
        answered = True
        try:
            return await request
        except asyncio.CancelledError:
            answered = False
            self._listen(syncing=syncing)
            raise
        except LOST as exc:
            self._gone = True
            if self._late:
                raise TimeoutError("no answer in time") from exc
            raise
        except asyncssh.SFTPError:
            raise
        except (asyncssh.Error, OSError):
            self._gone = True
            raise
        finally:
            self._asking -= 1
            self._syncing -= syncing
            if answered:
                self._heard = loop.time()

    def _listen(self, *, syncing: bool) -> None:
        """Ask for a sign of life in place of a caller who is gone: callers with less patience than the clock would stop it for
        ever, and the next ones be given a session that is silent.
        """
        if self._listening is None and not self.gone:
            self._listening = asyncio.create_task(self._listened(syncing=syncing))

    async def _listened(self, *, syncing: bool) -> None:
        try:
            with suppress(asyncssh.Error, OSError):
                await self.ask(self.sftp.realpath(b"."), syncing=syncing)
        finally:
            self._listening = None

    def _tick(self) -> None:
        self._clock = None
        if not self._asking or self.gone:
            return
        loop = asyncio.get_running_loop()
        rest = self._heard + self._limits[self._syncing > 0] - loop.time()
        if rest > 0:
            self._clock = loop.call_later(rest, self._tick)
        else:
            self._late = self._gone = True
            self._ssh.abort()


async def whole(step: Awaitable[T]) -> T:
    """Run a step to its end even when the caller is cancelled meanwhile; then be cancelled.

    A request that is under way is carried out by the server whether anybody waits or not, and its answer may hold what has to
    be given back. `Session.ask` bounds the wait.
    """
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


@dataclass(slots=True, eq=False)
class _Connection:
    ssh: asyncssh.SSHClientConnection
    most: int
    """Sessions it may have: fewer than configured where the server has said no."""
    sessions: list[Session] = field(default_factory=list)


class Pool:
    """The sessions of one backend."""

    def __init__(self, door: Door, options: SFTPOptions) -> None:
        """Nothing is opened before the first `session`."""
        self._door = door
        self._options = options
        self._connections: list[_Connection] = []
        self._most = options.max_connections
        self._growing: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session that works as far as one can know. Raises `StorageError` when there is none to be had."""
        session = await self._pick()
        session.users += 1
        try:
            yield session
        finally:
            session.users -= 1

    async def aclose(self) -> None:
        """End every connection, and whatever still runs over them. Calling it twice is harmless."""
        self._closed = True
        if self._growing is not None:
            self._growing.cancel()
            await asyncio.wait([self._growing])
        connections, self._connections = self._connections, []
        await asyncio.gather(*(_end(connection.ssh) for connection in connections))

    async def _pick(self) -> Session:
        failure: StorageError | None = None
        while True:
            if self._closed:
                raise Unavailable(f"{self._options.location} is closed")
            sessions = [session for connection in self._alive() for session in connection.sessions]
            best = min(sessions, key=lambda session: session.users, default=None)
            if best is not None and (failure or not best.users or not self._may_grow()):
                return best
            if failure:
                raise failure
            failure = await self._grown()

    def _alive(self) -> list[_Connection]:
        for connection in self._connections:
            connection.sessions = [session for session in connection.sessions if not session.gone]
        alive = [connection for connection in self._connections if not connection.ssh.is_closed()]
        if len(alive) < len(self._connections):
            self._most = self._options.max_connections
        self._connections = alive
        return alive

    def _may_grow(self) -> bool:
        return len(self._connections) < self._most or any(
            len(connection.sessions) < connection.most for connection in self._connections
        )

    async def _grown(self) -> StorageError | None:
        """Wait for one more session, which all who need one wait for together. What went wrong, if it did."""
        if self._growing is None:
            self._growing = asyncio.create_task(self._grow())
        growing = self._growing
        # Not awaited itself: one who is cancelled here must not cancel it for the others.
        await asyncio.wait([growing])
        if self._growing is growing:
            self._growing = None
        if growing.cancelled():
            return None
        exc = growing.exception()
        if exc is not None and not isinstance(exc, StorageError):
            raise exc
        return exc

    async def _grow(self) -> None:
        for connection in self._connections:
            if len(connection.sessions) < connection.most:
                await self._add_session(connection)
                return
        try:
            ssh = await self._door.open()
        except StorageError:
            # The server may allow fewer than configured. It is asked again when it has dropped one.
            self._most = max(len(self._connections), 1)
            raise
        connection = _Connection(ssh, self._options.channels_per_connection)
        await self._add_session(connection)
        self._connections.append(connection)

    async def _add_session(self, connection: _Connection) -> None:
        try:
            with translated(f"open a session at {self._options.location}"):
                async with asyncio.timeout(self._options.connect_timeout):
                    sftp = await connection.ssh.start_sftp_client()
        except BaseException:
            # The server may allow fewer than configured. A connection without any is of no use.
            connection.most = len(connection.sessions)
            if not connection.sessions:
                connection.ssh.abort()
            raise
        connection.sessions.append(Session(connection.ssh, sftp, self._options))


async def _end(ssh: asyncssh.SSHClientConnection) -> None:
    ssh.close()
    try:
        async with asyncio.timeout(_GOODBYE):
            await ssh.wait_closed()
    except TimeoutError:
        ssh.abort()
