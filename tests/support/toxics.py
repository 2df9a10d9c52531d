"""A TCP proxy with toxics, for tests of HTTP, AMQP and PostgreSQL clients, in this process or in a child.

    async with Proxy.to("127.0.0.1", 5432) as proxy:
        client = connect(proxy.port)
        proxy.reset()

It runs on the test's event loop, so a test that waits for a child process does so with `asyncio.to_thread`. Everything
applies at once, to connections that are open as well as to later ones.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Self

from tests.support.dropping import drop

Direction = Literal["requests", "replies"]
"""`requests` flow from the client to the server, `replies` back."""
BOTH: tuple[Direction, Direction] = ("requests", "replies")

_CHUNK = 64 * 1024
_TICKS = 20
"""Pieces a second a limited stream is cut into."""
_RECENT = 64 * 1024
"""Bytes of what one side said last that a predicate gets to see."""
_TO_BE_CONTINUED = b"HTTP/1.1 100 "
"""A server asking for the body is not yet its reply (https://www.rfc-editor.org/rfc/rfc9110.html#section-15.2.1)."""


def anything(_: bytes) -> bool:
    """The predicate that is content with whatever comes."""
    return True


@dataclass(slots=True)
class _Toxic:
    """What happens to one direction."""

    latency: float = 0.0
    rate: float | None = None
    swallow: bool = False

    def delay(self, size: int) -> float:
        """Seconds that `size` bytes take; of none, what every chunk waits before."""
        if not size:
            return self.latency
        return size / self.rate if self.rate else 0.0


@dataclass(slots=True, eq=False)
class _Loss:
    """A reply that is to be lost."""

    request: Callable[[bytes], bool]
    reply: Callable[[bytes], bool]
    happened: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Link:
    """One connection of a client and the one to the server that belongs to it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    said: bytes = b""
    """What the client said since the server's last word."""
    answered: bytes = b""
    """What the server said since a reply is to be lost."""
    losing: _Loss | None = None
    torn: bool = False
    """Bytes were swallowed: what would come now is no continuation."""
    severed: bool = False

    def reset(self) -> None:
        """RST to both: a close with nothing to linger for (socket(7), SO_LINGER)."""
        for writer in (self.client, self.server):
            peer: socket.socket | None = writer.get_extra_info("socket")
            with suppress(OSError):
                if peer is not None:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            drop(writer)

    def cut(self) -> None:
        """FIN to both. What they still send is read and dropped, because a close on unread bytes would be a RST."""
        self.severed = True
        for writer in (self.client, self.server):
            with suppress(OSError):
                writer.write_eof()


class Proxy:
    """One server's stand-in. `Proxy.to` opens it."""

    def __init__(self, host: str, port: int) -> None:
        """`to` constructs."""
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._toxics: dict[Direction, _Toxic] = {"requests": _Toxic(), "replies": _Toxic()}
        self._changed = asyncio.Event()
        self._losses: list[_Loss] = []
        self.port = 0
        self.accepted = 0
        """Connections taken so far."""

    @classmethod
    @asynccontextmanager
    async def to(cls, host: str, port: int) -> AsyncIterator[Self]:
        """A proxy on a free port of loopback before `host`:`port`, which need not listen yet."""
        proxy = cls(host, port)
        await proxy.up()
        try:
            yield proxy
        finally:
            await proxy.down()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    def slow(self, *directions: Direction, latency: float = 0.0, rate: float | None = None) -> None:
        """Delay every chunk by `latency` seconds and let `rate` bytes a second through; None: as many as there are."""
        for direction in directions or BOTH:
            self._toxics[direction].latency = latency
            self._toxics[direction].rate = rate
        self._stir()

    def black_hole(self, *directions: Direction) -> None:
        """Keep and accept connections, read what is sent, and let none of it arrive: a half-open peer."""
        for direction in directions or BOTH:
            self._toxics[direction].swallow = True
        self._stir()

    def heal(self) -> None:
        """No delay, no limit, no black hole. Connections that lost bytes are reset: their streams have holes."""
        self._toxics = {"requests": _Toxic(), "replies": _Toxic()}
        self._stir()
        for link in [link for link in self._links if link.torn]:
            link.reset()

    def reset(self) -> None:
        """RST every connection."""
        for link in list(self._links):
            link.reset()

    def cut(self) -> None:
        """FIN every connection."""
        for link in list(self._links):
            link.cut()

    def drop_reply(
        self, when: Callable[[bytes], bool], reply: Callable[[bytes], bool] = anything
    ) -> asyncio.Event:
        """Let the next request that `when` knows reach the server, swallow its reply, and reset. Once.

        `when` sees what the client said since the server's last word, `reply` what the server has said since; the reset
        comes when `reply` is true, by default at the first byte. The event is set then.
        """
        loss = _Loss(when, reply)
        self._losses.append(loss)
        return loss.happened

    async def down(self) -> None:
        """Refuse new connections and reset the open ones. The port stays reserved for `up` as far as a port can be."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def up(self) -> None:
        """Listen, on the same port as before."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _stir(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also where the task is cancelled before its first step.
        task.add_done_callback(lambda _: drop(writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self._target)
        except OSError:
            drop(writer)
            return
        except asyncio.CancelledError:
            drop(writer)
            raise
        link = _Link(writer, server)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, "requests", reader, server))
                pumps.create_task(self._pump(link, "replies", answers, writer))
        finally:
            self._links.discard(link)
            writer.close()
            server.close()
            for each in (writer, server):
                with suppress(OSError):
                    await each.wait_closed()

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if link.severed or self._lost(link, direction, data):
                    continue
                async for piece in self._pieces(direction, data):
                    if self._toxics[direction].swallow:
                        link.torn = True
                    elif not link.severed:
                        writer.write(piece)
                        await writer.drain()
            if not self._toxics[direction].swallow and writer.can_write_eof():
                writer.write_eof()
            return
        # One side is gone, so the other has nobody to talk to.
        link.reset()

    def _lost(self, link: _Link, direction: Direction, data: bytes) -> bool:
        """Whether this is (part of) a reply that is to be lost; keeps the books for that."""
        if direction == "requests":
            link.said = (link.said + data)[-_RECENT:]
            wanted = (loss for loss in self._losses if loss.request(link.said))
            if link.losing is None and (loss := next(wanted, None)) is not None:
                self._losses.remove(loss)
                link.losing, link.answered = loss, b""
            return False
        if data.startswith(_TO_BE_CONTINUED):
            return False
        if link.losing is None:
            link.said = b""
            return False
        link.answered = (link.answered + data)[-_RECENT:]
        if link.losing.reply(link.answered):
            link.losing.happened.set()
            link.reset()
        return True

    async def _pieces(self, direction: Direction, data: bytes) -> AsyncIterator[bytes]:
        """The data, when and in what amounts it may go on; a change of the toxic ends a pause at once."""
        await self._pause(direction, 0)
        while data:
            rate = self._toxics[direction].rate
            size = len(data) if rate is None else max(1, int(rate / _TICKS))
            piece, data = data[:size], data[size:]
            await self._pause(direction, len(piece))
            yield piece

    async def _pause(self, direction: Direction, size: int) -> None:
        """Wait as long as the toxic of the moment says."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (rest := begun + self._toxics[direction].delay(size) - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._changed.wait()
