"""The admin port: what it tells, and what it does not put up with."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Queue
from types import MappingProxyType
from urllib.error import HTTPError

import pytest
import structlog
from hypothesis import HealthCheck, given, settings

import worker.admin
from tests.fuzz import admin as fuzzing
from tests.support.processes import free_port
from tests.support.services import fetch
from worker.admin import LONGEST_HEAD, AdminError, AdminServer
from worker.bootstrap import open_service
from worker.health import Health
from worker.metrics import Metrics
from worker.settings import load_settings


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def admin(health: Health) -> Iterator[AdminServer]:
    server = AdminServer(Metrics(), health, host="127.0.0.1", port=0)
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[AdminServer]:
    with fuzzing.answering() as admin:
        yield admin


def ask(
    admin: AdminServer, path: str, method: str = "GET", headers: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=5)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_probes_answer_in_json_with_the_reasons(admin: AdminServer, health: Health) -> None:
    status, headers, body = ask(admin, "/readyz?verbose")
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body) == {
        "ok": False,
        "reasons": ["the ledger's schema is not current", "the queue does not answer"],
    }
    health.schema_current = health.queue_reachable = True
    assert ask(admin, "/readyz")[0] == 200
    status, _, body = ask(admin, "/livez")
    assert (status, json.loads(body)) == (200, {"ok": True, "reasons": []})


def test_metrics_are_served_in_text_format(admin: AdminServer) -> None:
    status, headers, body = ask(admin, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"transload_build_info" in body


def test_head_has_the_headers_and_no_body(admin: AdminServer) -> None:
    status, headers, body = ask(admin, "/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/../etc", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/livez", 405),
    ],
)
def test_case_103_anything_else_is_refused(admin: AdminServer, method: str, path: str, status: int) -> None:
    assert ask(admin, path, method)[0] == status


HERE = b"Host: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"\r\n", 200),
        (b"GET //livez?x HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"Content-Length: 0\r\n\r\n", 200),
        # No version, as HTTP/0.9 has it; and versions that are not ours.
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /livez HTTP/1.1.1\r\n\r\n", 400),
        # What only a proxy is asked, and what would have us repeat what was sent.
        (b"GET http://127.0.0.1/metrics HTTP/1.1\r\n" + HERE + b"\r\n", 400),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + HERE + b"\r\n", 405),
        (b"TRACE /metrics HTTP/1.1\r\n" + HERE + b"\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\n" + HERE + b"\r\n", 405),
        # Bodies, and the shapes in which one request is smuggled behind another.
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"Content-Length: 3\r\n\r\nabc", 413),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"Content-Length: 0\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"A: b\r\n c: d\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"no colon\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"A: \0\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\n" + HERE + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HERE + b"A: b\n\r\n", 400),
        # Cut short, or nothing of the kind.
        (b"GET /livez HTTP/1.1\r\n" + HERE, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\r\nGET /livez HTTP/1.0\r\n\r\n", 400),
        # Whose it is.
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HERE + HERE + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a@127.0.0.1\r\n\r\n", 400),
    ],
)
def test_case_103_what_is_no_plain_request_is_refused(
    shared: AdminServer, request_: bytes, status: int
) -> None:
    answer = fuzzing.ask(shared, request_)
    assert answer.startswith(b"HTTP/1.0 %d " % status)
    assert answer.count(b"HTTP/1.0") == 1


@pytest.mark.parametrize(
    ("size", "number", "status"),
    [(LONGEST_HEAD, 1, 200), (LONGEST_HEAD + 1, 1, 431), (1 << 20, 1, 431), (4096, 110, 431)],
)
def test_case_103_heads_have_a_limit(shared: AdminServer, size: int, number: int, status: int) -> None:
    line = b"GET /livez HTTP/1.0\r\n"
    headers = b"A:b\r\n" * (number - 1)
    fill = size - len(line) - len(headers) - len(b"X:\r\n\r\n")
    answer = fuzzing.ask(shared, line + headers + b"X:" + b"x" * fill + b"\r\n\r\n")
    # Of what was not read, nothing may come back: the connection is reset.
    assert answer.startswith(b"HTTP/1.0 %d " % status) or (size > 2 * LONGEST_HEAD and not answer)
    assert fuzzing.ask(shared, b"GET /" + b"x" * LONGEST_HEAD).startswith(b"HTTP/1.0 414 ")


@pytest.mark.parametrize("path", ["/metrics", "/livez"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9464", 200),
        ("10.1.2.3:9464", 200),
        ("[::1]:9464", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("attacker.example:9464", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("2130706433", 421),
        ("metadata", 421),
    ],
)
def test_case_103_a_name_that_dns_was_made_to_point_here_is_not_answered(
    shared: AdminServer, host: str, status: int, path: str
) -> None:
    """A page of that name would read the answer: to the browser it comes from the page's own server."""
    assert ask(shared, path, headers={"Host": host})[0] == status


def test_case_103_where_there_is_a_token_any_name_will_do() -> None:
    """A scraper may have found us under any; a page has no token."""
    server = AdminServer(Metrics(), Health(), host="127.0.0.1", port=0, token="t" * 16)
    try:
        headers = {"Host": "worker.svc:9464", "Authorization": "Bearer " + "t" * 16}
        assert ask(server, "/metrics", headers=headers)[0] == 200
        assert ask(server, "/metrics", headers={"Host": "worker.svc:9464"})[0] == 401
    finally:
        server.close()


def test_case_103_a_start_without_token_says_that_it_serves_health_only() -> None:
    for host, token, said in (
        ("0.0.0.0", None, ["serves health only: /metrics is refused on this address without admin.token"]),  # noqa: S104 - asked by nobody
        ("0.0.0.0", "t" * 16, []),  # noqa: S104 - asked by nobody
        ("127.0.0.2", None, []),
        ("localhost", None, []),
    ):
        with structlog.testing.capture_logs() as logs:
            AdminServer(Metrics(), Health(), host=host, port=0, token=token).close()
        assert [line["event"] for line in logs] == said


def test_case_103_answers_are_kept_by_nobody_and_are_what_they_say(shared: AdminServer) -> None:
    for path in ("/metrics", "/livez", "/nothing"):
        headers = ask(shared, path)[1]
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert headers["Connection"] == "close"
        assert headers["Access-Control-Allow-Origin"] is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fuzzing.REQUESTS)
def test_case_103_fuzz_any_bytes(shared: AdminServer, request: bytes) -> None:
    fuzzing.promise(shared, request)


def test_case_103_a_flood_of_idle_connections_does_not_keep_probes_out(admin: AdminServer) -> None:
    """More than there may be, none of which ever says a word: a probe needs no turn behind them."""
    idle = [socket.create_connection(("127.0.0.1", admin.port), timeout=5) for _ in range(80)]
    try:
        for _ in range(3):
            assert ask(admin, "/livez")[0] == 200
    finally:
        for client in idle:
            client.close()


def test_case_103_a_client_that_takes_no_bytes_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.admin, "_CLIENT_TIMEOUT", 0.3)
    answering: Queue[threading.Thread] = Queue()

    class Large(Metrics):
        def render(self) -> bytes:
            answering.put(threading.current_thread())
            return b"x" * (64 << 20)

    server = AdminServer(Large(), Health(), host="127.0.0.1", port=0)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            thread = answering.get(timeout=20)
            thread.join(20)
            assert not thread.is_alive()
    finally:
        server.close()


def test_case_103_slow_clients_give_way_to_probes(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.admin, "_CLIENTS", 2)
    slow = [socket.create_connection(("127.0.0.1", admin.port), timeout=2) for _ in range(2)]
    for client in slow:
        client.sendall(b"G")
    assert ask(admin, "/livez")[0] == 200
    assert slow[0].recv(1) == b""
    for client in slow:
        client.close()


def test_case_103_a_client_that_trickles_is_hung_up_on(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.admin, "_CLIENT_TIMEOUT", 0.2)
    with socket.create_connection(("127.0.0.1", admin.port), timeout=0.05) as client:
        for _ in range(100):
            try:
                client.send(b"G")
                assert client.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            break
        else:
            pytest.fail("it may go on")


@pytest.fixture
def with_token(request: pytest.FixtureRequest) -> Iterator[AdminServer]:
    server = AdminServer(Metrics(), Health(), host=request.param, port=0, token="t" * 16)
    yield server
    server.close()


@pytest.mark.parametrize("with_token", ["127.0.0.1", "0.0.0.0"], indirect=True)  # noqa: S104 - asked on loopback
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer " + "t" * 15}, 401),
        ({"Authorization": "Basic " + "t" * 16}, 401),
        ({"Authorization": "Bearer \xfc"}, 401),
        ({"Authorization": "Bearer " + "t" * 16}, 200),
        ({"Authorization": "bearer " + "t" * 16}, 200),
        ({"Authorization": "Bearer " + "T" * 16}, 401),
    ],
)
def test_case_103_metrics_want_the_token(with_token: AdminServer, given: dict[str, str], status: int) -> None:
    found, headers, body = ask(with_token, "/metrics", headers=given)
    assert found == status
    assert (b"transload_build_info" in body) == (status == 200)
    assert headers["WWW-Authenticate"] == ("Bearer" if status == 401 else None)
    assert ask(with_token, "/livez")[0] == 200


def test_case_103_no_metrics_beyond_loopback_without_a_token() -> None:
    server = AdminServer(Metrics(), Health(), host="0.0.0.0", port=0)  # noqa: S104 - asked on loopback
    try:
        status, _, body = ask(server, "/metrics", headers={"Authorization": "Bearer x"})
        assert status == 403
        assert body == b"not without a token: set admin.token, or listen on 127.0.0.1\n"
        assert ask(server, "/livez")[0] == 200
        assert ask(server, "/readyz")[0] == 503
    finally:
        server.close()


async def test_case_103_a_worker_serves_its_metrics_with_the_token_of_the_settings(tmp_path: Path) -> None:
    environ = {"TRANSLOAD_ADMIN__PORT": str(free_port()), "TRANSLOAD_ADMIN__TOKEN": "t" * 16}
    chosen = load_settings(file=None, home=tmp_path, environ=environ)
    url = f"http://127.0.0.1:{chosen.admin.port}/metrics"
    async with open_service(chosen):
        with pytest.raises(HTTPError, match="401") as refused:
            await asyncio.to_thread(fetch, url)
        refused.value.close()


def test_nothing_is_written_to_stderr(admin: AdminServer, capfd: pytest.CaptureFixture[str]) -> None:
    ask(admin, "/livez")
    ask(admin, "/nowhere")
    ask(admin, "/livez", "POST")
    with socket.create_connection(("127.0.0.1", admin.port)) as gone:
        gone.sendall(b"GET /metrics HTTP/1.0\r\nX-Half: ")
    ask(admin, "/livez")
    assert capfd.readouterr() == ("", "")


def test_case_103_a_client_that_says_nothing_holds_up_nobody(admin: AdminServer) -> None:
    with socket.create_connection(("127.0.0.1", admin.port)):
        assert ask(admin, "/livez")[0] == 200


def test_a_busy_port_is_named_with_the_remedy(admin: AdminServer) -> None:
    with pytest.raises(AdminError, match=rf"127\.0\.0\.1:{admin.port} .*set admin\.port to a free port"):
        AdminServer(Metrics(), Health(), host="127.0.0.1", port=admin.port)


def test_close_frees_the_port_and_may_be_repeated() -> None:
    before = set(threading.enumerate())
    first = AdminServer(Metrics(), Health(), host="127.0.0.1", port=0)
    first.close()
    first.close()
    second = AdminServer(Metrics(), Health(), host="127.0.0.1", port=first.port)
    second.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "admin" and thread not in before]


async def test_a_wedged_event_loop_is_seen_from_outside_and_recovers() -> None:
    health = Health(loop_stall=0.2, receive_stall=3600)
    admin = AdminServer(Metrics(), health, host="127.0.0.1", port=0)
    seen: list[int] = []

    def watch() -> None:
        while not seen or (seen[-1] != 503 and len(seen) < 1000):
            seen.append(ask(admin, "/livez")[0])

    async def tick() -> None:
        while True:
            health.tick()
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    try:
        await asyncio.sleep(0)
        assert (await asyncio.to_thread(ask, admin, "/livez"))[0] == 200
        watcher = threading.Thread(target=watch)
        watcher.start()
        while watcher.is_alive():
            time.sleep(0.01)  # noqa: ASYNC251 - wedging the loop is the test
        assert seen[-1] == 503
        await asyncio.sleep(0.02)
        assert (await asyncio.to_thread(ask, admin, "/livez"))[0] == 200
    finally:
        ticking.cancel()
        admin.close()
