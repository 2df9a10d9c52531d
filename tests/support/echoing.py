"""Servers that tell whoever asks everything they were told, in every place of an answer: what a careless proxy or gateway does.

Each runs on threads of its own, so that it also answers commands that have the event loop to themselves. Used by
tests/faults/canaries and by the tests of the secrets.
"""

import asyncio
import http.client
import json
import socket
import socketserver
import struct
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from typing import Final
from urllib.parse import unquote_plus

import asyncssh
from pamqp import commands, frame

_TIMEOUT: Final = 5.0
LINE: Final = 3000
"""Characters of what is repeated in a header."""


@dataclass(slots=True)
class Echo:
    """Where it listens, and what it heard."""

    port: int
    heard: list[bytes] = field(default_factory=list)
    """What every connection sent, as far as it was read."""

    @property
    def url(self) -> str:
        """For clients of HTTP."""
        return f"http://127.0.0.1:{self.port}"


Talk = Callable[[socket.socket, list[bytes]], None]
"""What a server says on one connection; it appends what it hears."""


@contextmanager
def listening(talk: Talk) -> Iterator[Echo]:
    """A server that talks so, for as long as the block runs."""
    heard: list[bytes] = []
    open_: set[socket.socket] = set()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            open_.add(self.request)
            self.request.settimeout(_TIMEOUT)
            with suppress(OSError, EOFError, ValueError, struct.error):
                talk(self.request, heard)

        def finish(self) -> None:
            open_.discard(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        allow_reuse_address = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is no event."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield Echo(server.server_address[1], heard)
        finally:
            for each in tuple(open_):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            server.shutdown()
            thread.join()


def http_answer(kind: str) -> Talk:
    """An HTTP server. `kind`: a status, `redirect`, `malformed` (200 with a body nobody expects), `silent`, `drop`, `garbage`."""

    def talk(connection: socket.socket, heard: list[bytes]) -> None:
        while request := _request(connection):
            heard.append(request)
            if kind == "drop":
                return
            if kind == "silent":
                with suppress(OSError):
                    connection.recv(1)
                return
            connection.sendall(request if kind == "garbage" else _answer(kind, request))

    return talk


def _request(connection: socket.socket) -> bytes:
    """One request with its body, as it came; empty at the end."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            return b""
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if headers.get(b"expect", b"").lower() == b"100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(headers.get(b"content-length", b"0"))
    chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    while len(body) < length or (chunked and not body.endswith(b"0\r\n\r\n")):
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return head + b"\r\n\r\n" + body


def _answer(kind: str, request: bytes) -> bytes:
    text = request.decode("latin-1")
    head = text.partition("\r\n\r\n")[0]
    first, *lines = head.split("\r\n")
    target = first.split(" ")[1]
    wants_nothing = first.startswith("HEAD ")
    line = _printable(f"{target} {unquote_plus(target)} {' '.join(lines)}")[:LINE]
    status = 307 if kind == "redirect" else 200 if kind == "malformed" else int(kind)
    body = _document(text, lines, target).encode()
    credentials = next(
        (each.partition(":")[2].strip() for each in lines if each.lower().startswith("authorization")), ""
    )
    headers = [
        f"HTTP/1.1 {status} {http.client.responses.get(status, 'Odd')} {line}",
        f"Content-Type: {'application/json' if 'json' in text.lower() else 'application/xml'}",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {line}",
        f"x-amz-request-id: {line}",
        f"x-ms-error-code: {line}",
        f"x-amzn-ErrorType: {line}",
        f'WWW-Authenticate: Bearer realm="{_printable(credentials)}", authorization_uri="{line}"',
        f'ETag: "{line[:200]}"',
        "Connection: keep-alive",
    ]
    if kind == "redirect":
        headers.append(
            f"Location: http://127.0.0.1:9/{_printable(credentials).replace(' ', '%20')}?{target.partition('?')[2]}"
        )
    return "\r\n".join(headers).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if wants_nothing else body)


def _document(text: str, lines: list[str], target: str) -> str:
    """JSON to those who speak it, XML to the others; every text in it repeats the request."""
    decoded = " ".join(_decoded(line) for line in lines)
    said = f"{text} {unquote_plus(target)} {decoded}"
    if "json" in text.lower() or "op=" in text or "Bearer" in text:
        error = {"code": said, "message": said, "errors": [{"reason": said, "message": said}]}
        return json.dumps(
            {
                "error": error,
                "message": said,
                "__type": f"com.amazon#{said}",
                "RemoteException": {"exception": said, "message": said, "javaClassName": said},
                "Error": error,
            }
        )
    shown = escape(said).replace("\r", "").replace("\x00", "")
    return (
        f'<?xml version="1.0"?><ErrorResponse><Error><Code>{shown}</Code><Message>{shown}</Message>'
        f"<AuthenticationErrorDetail>{shown}</AuthenticationErrorDetail></Error><Code>{shown}</Code>"
        f"<Message>{shown}</Message></ErrorResponse>"
    )


def _decoded(line: str) -> str:
    """What Basic credentials hold."""
    with suppress(ValueError):
        scheme, _, value = line.partition(":")[2].strip().partition(" ")
        if scheme.lower() == "basic":
            return b64decode(value).decode()
    return ""


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() and ord(each) < 256 else " " for each in text)


def postgresql_answer(connection: socket.socket, heard: list[bytes]) -> None:
    """Asks for the password in clear, and refuses with it and a connection string of it in every field.

    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """
    startup = _sized(connection)
    if startup == struct.pack("!I", 80877103):  # SSLRequest
        connection.sendall(b"N")
        startup = _sized(connection)
    heard.append(startup)
    connection.sendall(b"R" + struct.pack("!II", 8, 3))
    kind = _exactly(connection, 1)
    password = _sized(connection).rstrip(b"\x00")
    heard.append(password)
    assert kind == b"p"
    said = b"refused: %s; host=db user=u password='%s' postgresql://u:%s@db/x" % ((password,) * 3)
    fields = b"".join(
        code + value + b"\x00"
        for code, value in (
            (b"S", b"FATAL"),
            (b"V", b"FATAL"),
            (b"C", b"28P01"),
            (b"M", said),
            (b"D", said),
            (b"H", said),
        )
    )
    connection.sendall(b"E" + struct.pack("!I", len(fields) + 5) + fields + b"\x00")


def amqp_answer(connection: socket.socket, heard: list[bytes]) -> None:
    """Refuses the login with what it was sent in the reason. https://www.rabbitmq.com/amqp-0-9-1-reference"""
    _exactly(connection, 8)
    start = commands.Connection.Start(0, 9, {"product": "echo"}, "PLAIN", "en_US")
    connection.sendall(frame.marshal(start, 0))
    raw = connection.recv(65536)
    _, _, answer = frame.unmarshal(raw)
    said = getattr(answer, "response", "").replace("\0", " ")
    heard.append(said.encode())
    reason = f"ACCESS_REFUSED - {said} {b64encode(said.encode()).decode()}"[:250]
    connection.sendall(frame.marshal(commands.Connection.Close(403, reason, 0, 0), 0))
    with suppress(OSError):
        connection.recv(4096)


def raw_answer(kind: str) -> Talk:
    """A server that does not speak the protocol. `garbage` sends back whatever comes, `drop` hangs up, `silent` waits."""

    def talk(connection: socket.socket, heard: list[bytes]) -> None:
        while piece := connection.recv(65536):
            heard.append(piece)
            if kind == "drop":
                return
            if kind == "garbage":
                connection.sendall(piece)

    return talk


def _sized(connection: socket.socket) -> bytes:
    return _exactly(connection, struct.unpack("!I", _exactly(connection, 4))[0] - 4)


def _exactly(connection: socket.socket, count: int) -> bytes:
    raw = b""
    while len(raw) < count:
        piece = connection.recv(count - len(raw))
        if not piece:
            raise EOFError
        raw += piece
    return raw


@contextmanager
def refusing_ssh() -> Iterator[Echo]:
    """An SSH server that takes no password, and says which one it was: in its banner, and as it hangs up."""
    heard: list[bytes] = []
    loop = asyncio.new_event_loop()

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection = conn

        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            heard.append(password.encode())
            self._connection.send_auth_banner(f"no: {username}:{password}\r\n")
            raise asyncssh.PermissionDenied(f"{username} may not enter with {password} ({password!r})")

    listener = loop.run_until_complete(
        asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            server_factory=Server,
            config=None,
        )
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield Echo(listener.get_port(), heard)
    finally:
        asyncio.run_coroutine_threadsafe(_closed(listener), loop).result(_TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _closed(listener: asyncssh.SSHAcceptor) -> None:
    listener.close()
    await listener.wait_closed()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
