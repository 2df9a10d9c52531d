"""A reverse proxy before LocalStack's S3 that adds what it lacks: atomic conditional Completes, and failures on demand.

LocalStack looks whether the key is free and stores the object in two steps, so several `CompleteMultipartUpload` with
`If-None-Match: *` can succeed at once; on AWS exactly one does. The front lets one Complete through at a time. It also
plays failures that LocalStack never shows (tests/support/s3_faults.py). Used by tests/support/s3.py.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.dropping import drop
from tests.support.s3_faults import REFUSALS, Faults, error_document, flipped

_PIECE = 1 << 20
_COMPLETE = re.compile(r"POST \S+[?&]uploadId=")


@dataclass(slots=True)
class Front(Faults):
    """What the tests set and see."""

    carried: int = 0
    """Bytes of all bodies so far, of requests and of answers."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def turn(self, line: str) -> contextlib.AbstractAsyncContextManager[object]:
        """What a request holds while the store works on it."""
        return self._one_at_a_time if _COMPLETE.match(line) else contextlib.nullcontext()


@asynccontextmanager
async def front_of(upstream: str) -> AsyncIterator[Front]:
    """Run a front before the S3 endpoint `upstream` on a free port of loopback."""
    address = urlsplit(upstream)
    front = Front()
    connections: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        writers.append(writer)
        inner_reader, inner_writer = await asyncio.open_connection(address.hostname, address.port)
        writers.append(inner_writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await _exchange(front, reader, writer, inner_reader, inner_writer):
                    pass
        finally:
            writer.close()
            inner_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    front.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield front
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        for writer in writers:
            drop(writer)


async def _exchange(
    front: Front,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
) -> bool:
    """One request and its answer. False when the connection is to be closed."""
    head = await reader.readuntil(b"\r\n\r\n")
    line = head.partition(b"\r\n")[0].decode()
    fault = await front.met(head.decode())
    if b"\r\nexpect: 100-continue" in head.lower():
        head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(_length(head))
    if fault is not None and fault in REFUSALS:
        status, code = REFUSALS[fault]
        text = error_document(code)
        writer.write(
            f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        await writer.drain()
        return True
    async with front.turn(line):
        inner_writer.write(head)
        inner_writer.write(flipped(body) if fault == "corrupt" else body)
        await inner_writer.drain()
        answer = await inner_reader.readuntil(b"\r\n\r\n")
        if fault is None and not line.startswith("HEAD ") and _length(answer) > _PIECE:
            front.carried += len(body) + _length(answer)
            await _hand_on(answer, inner_reader, writer)
            return True
        payload = await _payload(line, answer, inner_reader)
    front.carried += len(body) + len(payload)
    if fault == "lost reply":
        return False
    writer.write(answer)
    writer.write(payload[: len(payload) // 2] if fault == "cut" else payload)
    await writer.drain()
    return fault != "cut"


async def _hand_on(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The answer and its body, a piece at a time."""
    missing = _length(answer)
    writer.write(answer)
    while missing:
        piece = await reader.readexactly(min(missing, _PIECE))
        missing -= len(piece)
        writer.write(piece)
        await writer.drain()


async def _payload(line: str, answer: bytes, reader: asyncio.StreamReader) -> bytes:
    status = answer.split(b" ", 2)[1]
    if line.startswith("HEAD ") or status in {b"204", b"304"}:
        return b""
    if b"\r\ntransfer-encoding: chunked" not in answer.lower():
        return await reader.readexactly(_length(answer))
    whole = bytearray()
    while True:
        size_line = await reader.readuntil(b"\r\n")
        size = int(size_line, 16)
        whole += size_line + await reader.readexactly(size + 2)
        if size == 0:
            return bytes(whole)


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0
