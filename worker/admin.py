"""The admin port: an HTTP server that tells of the worker's health and metrics, and changes nothing.

Made by worker/bootstrap.py. It answers on threads of its own, because a wedged event loop could not say that it is wedged. One
connection is one request, of few bytes and in a few seconds (docs/adr/0024-admin-port.md).
"""

import hmac
import ipaddress
import json
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socketserver import TCPServer
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any, Final

import structlog

from worker.health import Health, Verdict
from worker.metrics import Metrics
from worker.uncaught import traceback_of

LONGEST_HEAD: Final = 8192
"""Bytes of a request line with all its headers. Probes and scrapers send a few hundred."""

_CLIENT_TIMEOUT: Final = 5.0
"""Seconds for a whole connection."""
_CLIENTS: Final = 32
"""Connections at once; each takes a thread."""
_PLAIN_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.[0-9]\r\n")
"""https://www.rfc-editor.org/rfc/rfc9112#section-3, without its leniency."""
_HEADER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")
"""One line, and never the continuation of another: https://www.rfc-editor.org/rfc/rfc9112#section-5"""
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/?#@\[\]]*))(?::[0-9]*)?")
"""https://www.rfc-editor.org/rfc/rfc9110#section-7.2"""


class AdminError(Exception):
    """The admin server cannot listen; the message says where and what to do."""


class AdminServer:
    """Serves `/metrics`, `/livez` and `/readyz` from the moment it is made until `close`."""

    def __init__(
        self, metrics: Metrics, health: Health, *, host: str, port: int, token: str | None = None
    ) -> None:
        """Listen on `host` (an address or `localhost`) and `port`; 0 takes any free one. Raises `AdminError`.

        `/metrics` wants the `token`. Without one it is served on loopback addresses only, to whoever asks for this machine by an
        address or as `localhost`; the probes answer everybody on any other address.
        """
        try:
            self._server = _Server(host, port, metrics, health, token)
        except OSError as exc:
            raise AdminError(
                f"cannot listen on {host}:{port} ({exc.strerror}); "
                "set admin.port to a free port (0: any), or admin.enabled to false"
            ) from exc
        self.port: int = self._server.server_address[1]
        if self._server.within_reach and token is None:
            structlog.get_logger("admin").info(
                "serves health only: /metrics is refused on this address without admin.token",
                host=host,
                port=self.port,
            )
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; takes up to a tenth of a second. Calling it twice is harmless."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health, token: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.metrics = metrics
        self.health = health
        self.credentials = None if token is None else f"bearer {token}".encode()
        self._clients: dict[Any, float] = {}
        self._hanging_up = Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for its own name here, which can take as long as DNS likes.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def within_reach(self) -> bool:
        """Of other machines."""
        return not ipaddress.ip_address(self.server_name).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Where there are too many clients, the one that has been there longest gives way: a probe is quick."""
        with self._hanging_up:
            self._clients[request] = time.monotonic()
            self._hang_up(list(self._clients)[:-_CLIENTS])
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Between two requests. A client that sends or takes a byte now and then never runs into the timeout of its socket."""
        late = time.monotonic() - _CLIENT_TIMEOUT
        with self._hanging_up:
            self._hang_up([client for client, since in self._clients.items() if since < late])

    def shutdown_request(self, request: Any) -> None:
        """Its thread is done with it."""
        with self._hanging_up:
            # What is closed from here on may be another's number a moment later.
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def _hang_up(self, clients: Iterable[Any]) -> None:
        for client in clients:
            del self._clients[client]
            with suppress(OSError):  # it has gone by itself
                client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class calls it so
        """A client that goes away is no event; anything else is one log line."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            structlog.get_logger("admin").warning("request failed", exception=traceback_of(error))


class _Handler(BaseHTTPRequestHandler):
    """The standard library reads what the grammar here has let through, and forms the answer."""

    server: _Server
    timeout = _CLIENT_TIMEOUT
    server_version = "transload"
    sys_version = ""
    # It has answers without a status line for versions before that.
    default_request_version = "HTTP/1.0"

    def handle(self) -> None:
        """One request. What is no request is refused as soon as that can be told."""
        # What an answer says is no echo of what was asked, not even of its version.
        self.requestline, self.request_version, self.command = "", self.default_request_version, ""
        self.close_connection = True
        line = self.rfile.readline(LONGEST_HEAD + 1)
        if not line:
            return
        if (refused := _refused_line(line)) is not None:
            self.send_error(refused)
            return
        head = [line]
        left = LONGEST_HEAD - len(line)
        while left >= 0 and head[-1] != b"\r\n":
            head.append(self.rfile.readline(left + 1))
            left -= len(head[-1])
            if left >= 0 and head[-1] != b"\r\n" and not _HEADER.fullmatch(head[-1]):
                self.send_error(400)
                return
        if left < 0:
            self.send_error(431)
            return
        connection, self.rfile = self.rfile, BytesIO(b"".join(head))
        connection.close()
        self.handle_one_request()

    def parse_request(self) -> bool:
        """False when it has been refused."""
        if not super().parse_request():
            return False
        refused = self._refused_headers()
        if refused is not None:
            self.send_error(refused)
        return refused is None

    def _refused_headers(self) -> int | None:
        hosts = [str(host).strip() for host in self.headers.get_all("Host", ())]
        if len(hosts) > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            return 400
        if "Transfer-Encoding" in self.headers or self.headers.get_all("Content-Length", ["0"]) != ["0"]:
            # Nothing here has a use for a body.
            return 413
        named = _HOST.fullmatch(hosts[0] if hosts else "")
        if named is None:
            return 400
        if self.server.credentials is None and not self.server.within_reach and not _is_here(named):
            return 421
        return None

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/livez":
            self._verdict(self.server.health.live())
        elif path == "/readyz":
            self._verdict(self.server.health.ready())
        else:
            self._reply(404, "text/plain", b"there are /metrics, /livez and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def _metrics(self) -> None:
        wanted = self.server.credentials
        if wanted is None and self.server.within_reach:
            self._reply(403, "text/plain", b"not without a token: set admin.token, or listen on 127.0.0.1\n")
        elif wanted is not None and not hmac.compare_digest(self._given(), wanted):
            self._reply(401, "text/plain", b"wants the bearer token of admin.token\n")
        else:
            self._reply(200, _PLAIN_TEXT, self.server.metrics.render())

    def _given(self) -> bytes:
        scheme, space, token = str(self.headers.get("Authorization", "")).partition(" ")
        # Case does not matter in a scheme's name: https://www.rfc-editor.org/rfc/rfc9110#section-11.1
        return f"{scheme.lower()}{space}{token}".encode("utf-8", "replace")

    def _verdict(self, verdict: Verdict) -> None:
        body = json.dumps({"ok": verdict.ok, "reasons": verdict.reasons}).encode() + b"\n"
        self._reply(200 if verdict.ok else 503, "application/json", body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - the base class calls it so
        """Refuse, in words of our own: the base class's repeat what was sent."""
        self._reply(code, "text/plain", _REFUSALS.get(code, b"this is no request that is answered here\n"))

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Probes come every few seconds; they are not logged."""


_REFUSALS: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        405: b"only GET and HEAD are answered here\n",
        413: b"a request here has no body\n",
        414: b"too long\n",
        421: b"ask for 127.0.0.1, [::1] or localhost; other names are answered where admin.token is set\n",
        431: b"too many headers, or too long\n",
        505: b"only versions 1.0 and 1.1 of HTTP are answered here\n",
    }
)


def _refused_line(line: bytes) -> int | None:
    if len(line) > LONGEST_HEAD:
        return 414
    found = _LINE.fullmatch(line)
    if found is None:
        return 400
    method, target, major = found.groups()
    if major != b"1":
        return 505
    if method not in {b"GET", b"HEAD"}:
        return 405
    # No proxy is asked here: https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    return None if target.startswith(b"/") else 400


def _is_here(named: re.Match[str]) -> bool:
    """Whether that is a name of this machine, and not one that somebody made DNS give our address for.

    A browser that was sent to an address instead has a page of that address, and of nobody else's, at the other end.
    """
    name = named["six"] or named["name"]
    if name.lower() in {"", "localhost"}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
