"""Fuzz target: whatever bytes come to the admin port, the answer is one of ours, repeats nothing of them, and the next one is served.

`fuzz` takes what `SERIES` gives. tests/unit/test_admin.py calls `promise` for a hundred examples of `REQUESTS`.
"""

import http.client
import io
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from hypothesis import strategies as st

from worker.admin import AdminServer
from worker.health import Health
from worker.metrics import Metrics

MARK = "Zq7Vx"
"""Stands in every input that has words, and in no answer."""

_STATUS = re.compile(rb"HTTP/1\.0 (200|400|401|403|404|405|413|414|421|431|503|505) [\w '-]+\r\n")

_METHODS = st.sampled_from(["GET", "HEAD", "POST", "TRACE", "CONNECT", "OPTIONS", "PRI", "get", MARK, ""])
_TARGETS = st.sampled_from(
    f"/livez /readyz /metrics //livez / * /%00 /é {MARK} /{MARK} /livez?{MARK} /<{MARK}> {MARK}:443 http://{MARK}/livez".split()
) | st.just("/" + "x" * 8192)
_VERSIONS = st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.10", f"{MARK}/1.1", ""])
_NAMES = st.sampled_from(
    [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Authorization",
        "Connection",
        "Expect",
        f"X-{MARK}",
        "Host ",
        "",
        " ",
        "=?utf-8?q?a?=",
    ]
)
_VALUES = st.sampled_from(
    [
        "127.0.0.1",
        "[::1]:1",
        "localhost:80",
        f"{MARK}.example",
        "a b",
        "",
        "0",
        "+0",
        "5",
        "5, 0",
        "chunked",
        f"\tx{MARK}",
        "100-continue",
        "keep-alive",
        f"Basic {MARK}",
        "Bearer x",
        "ÿ",
        f"{MARK}\x00",
        "\r",
        "a" * 8000,
    ]
)
_HEADERS = st.lists(
    st.just("Host: 127.0.0.1") | st.builds("{}: {}".format, _NAMES, _VALUES) | st.text(max_size=20),
    max_size=5,
)
_ENDS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r", "", "\r\n\r\n", " \r\n"])
_AFTER = st.sampled_from(
    ["", "", f"{MARK}", f"5\r\n{MARK}\r\n0\r\n\r\n", f"GET /{MARK} HTTP/1.1\r\nHost: {MARK}\r\n\r\n"]
)


def _request(method: str, target: str, version: str, headers: list[str], end: str, after: str) -> bytes:
    lines = [" ".join(part for part in (method, target, version) if part), *headers, ""]
    return (end.join(lines) + end + after).encode("utf-8", "surrogatepass")


REQUESTS = st.builds(_request, _METHODS, _TARGETS, _VERSIONS, _HEADERS, _ENDS, _AFTER) | st.binary(
    max_size=200
)


SERIES = st.lists(REQUESTS, min_size=1, max_size=60)
"""For one server: it takes longer to stop than to answer."""


@contextmanager
def answering() -> Iterator[AdminServer]:
    """A server on a loopback address."""
    admin = AdminServer(Metrics(), Health(), host="127.0.0.1", port=0)
    try:
        yield admin
    finally:
        admin.close()


def ask(admin: AdminServer, request: bytes) -> bytes:
    """Everything that comes back for these bytes, after which there are no others."""
    answer = io.BytesIO()
    with socket.create_connection(("127.0.0.1", admin.port), timeout=20) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while chunk := client.recv(65_536):
                answer.write(chunk)
        except OSError:
            # It hung up on what it had not read.
            pass
    return answer.getvalue()


def fuzz(requests: list[bytes]) -> None:
    """Raises `AssertionError` where a property does not hold."""
    with answering() as admin, structlog.testing.capture_logs() as logs:
        for request in requests:
            promise(admin, request)
        assert not logs, logs


def promise(admin: AdminServer, request: bytes) -> None:
    """The same, of a server that is there."""
    answer = ask(admin, request)
    assert not answer or _STATUS.match(answer), answer
    assert answer.count(b"HTTP/1.") == (1 if answer else 0), "one request, one answer"
    assert MARK.encode() not in answer, answer
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        facts = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n"))
        assert body == b"" or len(body) == int(facts["Content-Length"])
        assert (facts["Cache-Control"], facts["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert ask(admin, b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")
