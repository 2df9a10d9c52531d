"""Whether the process is alive and ready, and the HTTP server that says so.

The event loop writes `Health`; `AdminServer` reads it on threads of its own, because a wedged loop could not answer that it
is wedged. `bootstrap` makes both.
"""

import hmac
import ipaddress
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock, Thread
from typing import Any, Final

import structlog

from worker.metrics import Metrics
from worker.uncaught import traceback_of

_CLIENT_TIMEOUT: Final = 5.0
"""Seconds for a whole connection."""
_CLIENTS: Final = 32
"""Connections at once; each takes a thread."""
TICK: Final = 0.5
"""Seconds between two calls of `Health.tick`."""
_PLAIN_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


class AdminError(Exception):
    """The admin server cannot listen; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` says why it is not `ok`; it is empty when it is."""

    ok: bool
    reasons: tuple[str, ...]


class Health:
    """Facts about the process. Written by the event loop's thread only; each read is of one value, so no lock is needed."""

    def __init__(
        self,
        *,
        loop_stall: float = 10.0,
        receive_stall: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not live after `loop_stall` seconds without `tick`, or `receive_stall` without `received` and no reason for it."""
        self._loop_stall = loop_stall
        self._receive_stall = receive_stall
        self._clock = clock
        self._ticked = self._received = clock()
        self._late = 0.0
        self._busy = False
        self._paused = False
        self.draining = False
        """Told to stop: takes nothing more."""
        self.schema_current = False
        """The ledger's schema is the one this version knows."""
        self.queue_reachable = False
        """The queue answered the last time it was asked."""
        self.ledger_reachable = True
        """The ledger takes writes, as far as we know."""

    def tick(self, late: float = 0.0) -> None:
        """The event loop turns, `late` seconds after it should have. Called every `TICK` seconds."""
        self._late = late
        self._ticked = self._clock()

    @property
    def lag(self) -> float:
        """Seconds by which the event loop was late the last time, or is late by now if that is more."""
        return max(self._late, self._clock() - self._ticked - TICK)

    def received(self) -> None:
        """A receive call came back: with messages, without, or with an error. An outage is no reason to restart."""
        self._received = self._clock()

    @property
    def busy(self) -> bool:
        """Everything that may run at once is running, so nothing is received."""
        return self._busy

    @busy.setter
    def busy(self, value: bool) -> None:
        if self._busy and not value:
            self.received()  # the time without receiving begins now
        self._busy = value

    @property
    def paused(self) -> bool:
        """Receiving is held back on purpose."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        if self._paused and not value:
            self.received()
        self._paused = value

    def live(self) -> Verdict:
        """Whether the process makes progress or has a reason not to; if not, a restart may help. Asks nothing outside."""
        # The reasons to wait are read before the clock: one that ends in between has just renewed the receive time.
        waiting = self._busy or self._paused or self.draining
        now = self._clock()
        reasons = []
        if (age := now - self._ticked) >= self._loop_stall:
            reasons.append(f"the event loop has not turned for {age:.1f} s")
        if not waiting and (age := now - self._received) >= self._receive_stall:
            reasons.append(f"nothing was asked of the queue for {age:.1f} s")
        return Verdict(not reasons, tuple(reasons))

    def ready(self) -> Verdict:
        """Whether work may be expected of it. Never a matter of load: a busy worker that is not ready is killed first."""
        facts = (
            (self.schema_current, "the ledger's schema is not current"),
            (self.queue_reachable, "the queue does not answer"),
            (self.ledger_reachable, "the ledger takes no writes"),
            (not self.draining, "draining"),
        )
        reasons = tuple(reason for holds, reason in facts if not holds)
        return Verdict(not reasons, reasons)


class AdminServer:
    """Serves `/metrics`, `/livez` and `/readyz` from the moment it is made until `close`."""

    def __init__(
        self, metrics: Metrics, health: Health, *, host: str, port: int, token: str | None = None
    ) -> None:
        """Listen on `host` (an address or `localhost`) and `port`; 0 takes any free one. Raises `AdminError`.

        `/metrics` wants the `token`. Without one it is served on loopback addresses only; the probes answer everybody.
        """
        try:
            self._server = _Server(host, port, metrics, health, token)
        except OSError as exc:
            raise AdminError(
                f"cannot listen on {host}:{port} ({exc.strerror}); "
                "set admin.port to a free port (0: any), or admin.enabled to false"
            ) from exc
        self.port: int = self._server.server_address[1]
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

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health, token: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.metrics = metrics
        self.health = health
        self.credentials = None if token is None else f"bearer {token}".encode()
        self.within_reach = host != "localhost" and not ipaddress.ip_address(host).is_loopback
        self._clients: dict[Any, float] = {}
        self._hanging_up = Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for its own name here, which can take as long as DNS likes.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Where there are too many clients, the one that has been there longest gives way: a probe is quick."""
        with self._hanging_up:
            self._clients[request] = time.monotonic()
            self._hang_up(list(self._clients)[:-_CLIENTS])
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Between two requests. A client that sends a byte now and then never runs into the timeout of its socket."""
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
    server: _Server
    timeout = _CLIENT_TIMEOUT
    server_version = "transload"
    sys_version = ""

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

    def _reply(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Probes come every few seconds; they are not logged."""
