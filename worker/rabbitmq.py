"""What the RabbitMQ queue and the RabbitMQ publisher share: options, connections, confirmed publishing, what a failure means.

It stands on aiormq, the protocol half of aio-pika: docs/adr/0009-rabbitmq.md says why. Whatever goes wrong comes out of
here as `BrokerError`.

Publishing has a connection of its own. A broker under a memory or disk alarm stops reading from every connection that
publishes, and acknowledgements on the same one would wait with it (https://www.rabbitmq.com/docs/alarms).
"""

import asyncio
import enum
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from pamqp import encode
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pydantic import BaseModel, Field, SecretStr, field_validator

from backends.failpoints import failpoint
from worker import rabbitmq_decoding

SDK_ERRORS = (AMQPError, OSError, RuntimeError, ValueError, EOFError, PAMQPException, StopAsyncIteration)
"""Everything a call may raise, besides cancellations that are not ours."""

QUORUM = MappingProxyType({"x-queue-type": "quorum"})
PERSISTENT = 2
HEADERS_LIMIT = 120_000
"""Bytes of a message's headers as they are sent. They travel in one frame, of 128 KiB where nobody changed `frame_max`."""
_ID_LIMIT = 255
_NAME_LIMIT = 128
"""Bytes of a header's name. pamqp cuts what is longer: https://www.rabbitmq.com/amqp-0-9-1-reference#domain.peer-properties."""
ROUTING_HEADERS = frozenset({"CC", "BCC"})

T = TypeVar("T")


class RabbitOptions(BaseModel):
    """Which broker, and how patient to be with it."""

    url: SecretStr = Field(
        description="amqp://user:password@host:5672/vhost, or amqps://…; TLS files go into the query: "
        "cafile, certfile, keyfile."
    )
    timeout: float = Field(
        default=10.0, gt=0, description="Seconds the broker has to answer, and to confirm a message."
    )

    @field_validator("url")
    @classmethod
    def _is_amqp(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            sound = parts.scheme in {"amqp", "amqps"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            # What is wrong with it may lie in the password, so the URL is not repeated.
            raise ValueError("is no amqp:// or amqps:// URL with a host; percent-encode the password")
        return url

    @property
    def place(self) -> str:
        """The broker without the credentials: `amqp://host:5672/vhost`."""
        parts = urlsplit(self.url.get_secret_value())
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


class Trouble(enum.Enum):
    """What a failed call comes down to."""

    MISSING = "there is no such queue or exchange"
    DENIED = "access is denied"
    UNAVAILABLE = "no answer"
    REFUSED = "the request is refused"


class BrokerError(Exception):
    """A call to the broker failed. The message names no credential."""

    def __init__(self, trouble: Trouble, detail: str, *, silence: bool = False) -> None:
        """`detail` is one line for a person; `silence`: nothing was answered at all."""
        super().__init__(f"{trouble.value} ({detail})")
        self.trouble = trouble
        self.silence = silence


async def call(work: Awaitable[T], seconds: float, *, cancel: bool = False) -> T:
    """What `work` returns, which runs in a task of its own. Raises `BrokerError`.

    aiormq closes the channel of a request that is cancelled, and cancels its callers when a connection ends: the task
    keeps either from reaching the other side. With `cancel` the work ends with our waiting for it, else it goes on.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(_seen)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if cancel and not task.done():
            task.cancel()
    if not task.done():
        raise BrokerError(Trouble.UNAVAILABLE, f"nothing for {seconds:g} seconds", silence=True)
    try:
        return task.result()
    except asyncio.CancelledError as exc:
        raise BrokerError(Trouble.UNAVAILABLE, "the connection was closed") from exc
    except SDK_ERRORS as exc:
        raise translate(exc) from exc


def translate(exc: BaseException) -> BrokerError:
    """What one of `SDK_ERRORS` means."""
    trouble = Trouble.UNAVAILABLE
    if isinstance(exc, (ChannelNotFoundEntity, PublishError)):
        trouble = Trouble.MISSING
    elif isinstance(
        exc, (ChannelAccessRefused, ProbableAuthenticationError, AuthenticationError, ConnectionNotAllowed)
    ):
        trouble = Trouble.DENIED
    elif isinstance(exc, (ChannelPreconditionFailed, ChannelLockedResource)):
        trouble = Trouble.REFUSED
    return BrokerError(trouble, str(exc) or type(exc).__name__)


class Once(Generic[T]):
    """One attempt at a time; everybody who asks while it runs shares its outcome, a failure too."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """`make` starts an attempt."""
        self._make = make
        self._attempt: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the attempt under way comes to."""
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._make())
            self._attempt.add_done_callback(_seen)
        return await asyncio.shield(self._attempt)


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


class Outlet:
    """Publishes with confirms, one channel for everybody."""

    def __init__(self, options: RabbitOptions, *, heartbeat: float, name: str) -> None:
        """As `Link`, of which it has one of its own."""
        self.link = Link(options, heartbeat=heartbeat, name=name)
        self._apart = Link(options, heartbeat=heartbeat, name=f"{name} apart")
        self._one_apart = asyncio.Lock()
        self._channel: AbstractChannel | None = None
        self._connect = Once(self._open)
        self._flying: dict[str, asyncio.Event] = {}

    async def publish(
        self, body: bytes, properties: Basic.Properties, *, to: str, exchange: str = ""
    ) -> None:
        """Return when the broker has the message durably. `to` is a queue, or the routing key where `exchange` is given.

        Raises `BrokerError`: then it may be there or not; `MISSING` when no queue takes it.
        """
        patience = 3 * self.link.timeout
        try:
            async with asyncio.timeout(patience):
                await self._publish_once(body, properties, exchange, to)
        except TimeoutError as exc:
            raise BrokerError(Trouble.UNAVAILABLE, f"not published within {patience:g} seconds") from exc

    async def aclose(self) -> None:
        """Close the connection. Calling it twice is harmless."""
        await asyncio.gather(self.link.aclose(), self._apart.aclose())

    async def _publish_once(self, body: bytes, properties: Basic.Properties, exchange: str, to: str) -> None:
        id_ = properties.message_id or ""
        # aiormq tells which message came back as unroutable by its id alone. Of two with the same id in flight it would
        # report the first as accepted.
        while (other := self._flying.get(id_)) is not None:
            await other.wait()
        landed = self._flying[id_] = asyncio.Event()
        try:
            channel = self._channel
            if channel is None or channel.is_closed or not channel.connection.is_opened:
                channel = await self._connect()
            try:
                await self._publish(channel, body, properties, exchange, to)
            except BrokerError:
                if not _spoiled(channel):
                    raise
                await self._publish_apart(body, properties, exchange, to)
        finally:
            del self._flying[id_]
            landed.set()

    async def _publish_apart(self, body: bytes, properties: Basic.Properties, exchange: str, to: str) -> None:
        """The broker answers a message that is too large by closing the channel, and often the connection goes too, with
        all that was on its way. One by one, and where nobody else is, each message gets its own answer.
        """
        async with self._one_apart:
            channel = await self._apart.channel(confirms=True)
            try:
                await self._publish(channel, body, properties, exchange, to)
            finally:
                await hang_up(channel, self.link.timeout)

    async def _publish(
        self, channel: AbstractChannel, body: bytes, properties: Basic.Properties, exchange: str, to: str
    ) -> None:
        async def confirmed() -> None:
            failpoint("rabbitmq.publish.before")
            await channel.basic_publish(
                bytes(body), exchange=exchange, routing_key=to, properties=properties, mandatory=True
            )
            failpoint("rabbitmq.publish.after")

        await self._unblocked(channel, self.link.timeout)
        try:
            await call(confirmed(), self.link.timeout, cancel=True)
        except BrokerError as exc:
            if exc.silence:
                await self._unblocked(channel, 0)
                # No alarm and no answer: such a connection is of no use.
                if self._channel is channel:
                    self._channel = None
                for link in (self.link, self._apart):
                    link.drop(channel.connection)
            raise

    @staticmethod
    async def _unblocked(channel: AbstractChannel, seconds: float) -> None:
        """Wait while an alarm lasts. A connection that an alarm blocks is kept: the next one would fare no better."""
        try:
            await call(channel.connection.ready(), seconds, cancel=True)
        except BrokerError as exc:
            if exc.silence and channel.connection.is_opened:
                raise BrokerError(
                    Trouble.UNAVAILABLE, "a memory or disk alarm of the broker blocks publishing"
                ) from exc
            raise

    async def _open(self) -> AbstractChannel:
        self._channel = await self.link.channel(confirms=True)
        return self._channel


async def declare(channel: AbstractChannel, name: str, arguments: Mapping[str, Any], seconds: float) -> None:
    """Make a durable queue, or see that the one there is the same. Raises `BrokerError`; then the channel is gone."""
    await call(channel.queue_declare(name, durable=True, arguments=dict(arguments)), seconds)


async def counts(link: Link, names: Sequence[str]) -> Mapping[str, int | None]:
    """How many messages wait in each queue; None for one that is not there. Raises `BrokerError`."""
    connection = await link.connection()
    return await link.ask(connection, _counts(connection, names))


def objection(id_: str, headers: Mapping[str, str]) -> str | None:
    """Why RabbitMQ cannot carry a message with this id and these headers, or None."""
    try:
        if len(id_.encode()) > _ID_LIMIT:
            return f"RabbitMQ carries ids of {_ID_LIMIT} bytes at most"
        if any(len(name.encode()) > _NAME_LIMIT for name in headers):
            return f"RabbitMQ carries attribute names of {_NAME_LIMIT} bytes at most"
        total = len(encode.field_table(dict(headers)))
    except UnicodeEncodeError:
        return "RabbitMQ carries UTF-8, and an attribute or the id has a lone surrogate"
    if total > HEADERS_LIMIT:
        return f"RabbitMQ carries attributes of {HEADERS_LIMIT} bytes in all, and this message has {total}"
    if found := ROUTING_HEADERS & headers.keys():
        return f"RabbitMQ would route the message by its attribute {min(found)}"
    return None


def fits(headers: Mapping[str, Any]) -> bool:
    """Whether a message can be sent with these headers."""
    try:
        return len(encode.field_table(dict(headers))) <= HEADERS_LIMIT
    except (TypeError, ValueError):
        return False


async def _connected(url: str) -> AbstractConnection:
    rabbitmq_decoding.install()
    try:
        return await aiormq.connect(url)
    except InvalidFrameError as exc:
        if "Connection.Close" not in str(exc):
            raise
        # The answer to Connection.Open, of which aiormq keeps no more than its type.
        raise BrokerError(
            Trouble.DENIED, "this user may not open this virtual host, or there is none"
        ) from exc


async def _counts(connection: AbstractConnection, names: Sequence[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    channel: AbstractChannel | None = None
    for name in names:
        channel = channel or await connection.channel(publisher_confirms=False)
        try:
            found[name] = (await channel.queue_declare(name, passive=True)).message_count
        except ChannelNotFoundEntity:
            # The broker closes the channel with this answer.
            found[name], channel = None, None
    if channel is not None:
        await channel.close()
    return found


async def hang_up(what: AbstractChannel | AbstractConnection, seconds: float) -> None:
    """Close a channel or a connection, whether it is still there or not."""
    with suppress(BrokerError):
        await call(what.close(), seconds, cancel=True)


def _spoiled(channel: AbstractChannel) -> bool:
    """The broker closed the channel because of something that was sent on it."""
    closing = channel.closing
    if not closing.done() or closing.cancelled():
        return False
    return isinstance(closing.exception(), ChannelPreconditionFailed)


def _seen(task: "asyncio.Future[Any]") -> None:
    """An outcome that nobody waits for any more is no fault of the program."""
    if not task.cancelled():
        task.exception()
