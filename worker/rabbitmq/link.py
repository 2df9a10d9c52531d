"""One connection to the broker, for whoever asks. The queue consumes through one; `Outlet` publishes through others."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import InvalidFrameError

from worker.rabbitmq import decoding
from worker.rabbitmq.calls import BrokerError, Once, Trouble, call, hang_up
from worker.rabbitmq.options import RabbitOptions

T = TypeVar("T")


class Link:
    """One connection, opened when it is first needed and anew when it was lost.

    No task stands behind it: who asks next reopens it, or is told why that fails. So nothing is retried in secret.
    """

    def __init__(self, options: RabbitOptions, *, heartbeat: float, name: str) -> None:
        """`heartbeat`: seconds of silence, rounded up, after which the broker gives us up, and up to half as many more."""
        parts = urlsplit(options.url.get_secret_value())
        # A client sends heartbeats in whole seconds, at half the interval: under two it would always be late.
        query = dict(parse_qsl(parts.query)) | {"heartbeat": str(max(2, math.ceil(heartbeat))), "name": name}
        self._url = urlunsplit(parts._replace(query=urlencode(query)))
        self._connection: AbstractConnection | None = None
        self._connect = Once(self._open)
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False
        self.timeout = options.timeout

    async def connection(self) -> AbstractConnection:
        """The connection. Raises `BrokerError`."""
        if self._closed:
            raise BrokerError(Trouble.UNAVAILABLE, "closed")
        if self._connection is not None and self._connection.is_opened:
            return self._connection
        return await self._connect()

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """A new channel. Raises `BrokerError`."""
        connection = await self.connection()
        return await self.ask(connection, connection.channel(publisher_confirms=confirms), cancel=True)

    async def ask(self, connection: AbstractConnection, work: Awaitable[T], *, cancel: bool = False) -> T:
        """As `call`; a connection on which nothing is answered is dropped."""
        try:
            return await call(work, self.timeout, cancel=cancel)
        except BrokerError as exc:
            if exc.silence:
                self.drop(connection)
            raise

    def drop(self, connection: AbstractConnection) -> None:
        """Give up a connection that does not answer; the next caller gets another one."""
        if connection is self._connection:
            self._connection = None
            task = asyncio.create_task(hang_up(connection, self.timeout))
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)

    async def aclose(self) -> None:
        """Close the connection; what it holds unacknowledged goes back to the queue. Calling it twice is harmless."""
        self._closed = True
        if self._connection is not None:
            self.drop(self._connection)
        if self._endings:
            await asyncio.wait(self._endings)

    async def _open(self) -> AbstractConnection:
        connection = await call(_connected(self._url), self.timeout, cancel=True)
        if self._closed:
            await hang_up(connection, self.timeout)
            raise BrokerError(Trouble.UNAVAILABLE, "closed")
        self._connection = connection
        return connection


async def _connected(url: str) -> AbstractConnection:
    decoding.install()
    try:
        return await aiormq.connect(url)
    except InvalidFrameError as exc:
        if "Connection.Close" not in str(exc):
            raise
        # The answer to Connection.Open, of which aiormq keeps no more than its type.
        raise BrokerError(
            Trouble.DENIED, "this user may not open this virtual host, or there is none"
        ) from exc
