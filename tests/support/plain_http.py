"""A small HTTP/1.1 server on asyncio streams, for strict fakes that share no code with the client they are to judge.

Bodies come with a Content-Length, connections are kept, answers may stream. Used by tests/support/strict_gcs.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import parse_qs, unquote

from tests.support.dropping import drop

_LONGEST_HEAD = 1 << 20
_REASONS = MappingProxyType({308: "Resume Incomplete", 499: "Client Closed Request"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole. Names of headers are in lower case."""

    method: str
    path: str
    """As it was sent, without the query."""
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes

    @property
    def segments(self) -> list[str]:
        """The path between its slashes, each segment decoded by itself."""
        return [unquote(segment, errors="strict") for segment in self.path.removeprefix("/").split("/")]

    def asked(self, name: str) -> str | None:
        """The first value of a parameter of the query."""
        return self.query.get(name, [None])[0]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. `pieces` stand for `body` where that is too large to hold; `length` is then their sum."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: Iterator[bytes] | None = None
    length: int = 0
    cut: bool = False
    """End the connection half way through the body."""
    lost: bool = False
    """End the connection instead of answering."""


@asynccontextmanager
async def serving(handle: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[str]:
    """The server's URL, for as long as the block runs."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve(reader, writer, handle))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        # Also where the task is cancelled before its first step.
        task.add_done_callback(lambda _: drop(writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LONGEST_HEAD)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handle: Callable[[Request], Awaitable[Response]],
) -> None:
    try:
        # The peer may leave at any time, and some tests make it.
        with suppress(OSError, asyncio.IncompleteReadError):
            while await _answer(writer, await handle(await _request(reader))):
                pass
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.strip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    pairs = (each.partition(":") for each in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if "transfer-encoding" in headers:
        raise OSError("this server takes bodies of a stated length only")
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    path, _, query = target.partition("?")
    return Request(method, path, parse_qs(query, keep_blank_values=True), headers, body)


async def _answer(writer: asyncio.StreamWriter, response: Response) -> bool:
    """Send it. False when the connection is over."""
    if response.lost:
        return False
    pieces = iter([response.body]) if response.pieces is None else response.pieces
    length = len(response.body) if response.pieces is None else response.length
    reason = _REASONS.get(response.status) or HTTPStatus(response.status).phrase
    head = {**response.headers, "Content-Length": str(length)}
    lines = [f"HTTP/1.1 {response.status} {reason}", *(f"{name}: {value}" for name, value in head.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    room = length // 2 if response.cut else length
    for piece in pieces:
        writer.write(piece[:room])
        await writer.drain()
        room -= len(piece)
        if room <= 0:
            break
    return not response.cut
