import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.error import HTTPError

import pytest

import worker.health
from tests.support.processes import free_port
from tests.support.services import fetch
from worker.bootstrap import open_service
from worker.health import AdminError, AdminServer, Health
from worker.metrics import Metrics
from worker.settings import load_settings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_health(clock: Clock) -> Health:
    return Health(loop_stall=10, receive_stall=60, clock=clock)


def pass_time(health: Health, clock: Clock, seconds: float) -> None:
    """The loop keeps turning meanwhile."""
    clock.now += seconds
    health.tick()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def admin(health: Health) -> Iterator[AdminServer]:
    server = AdminServer(Metrics(), health, host="127.0.0.1", port=0)
    yield server
    server.close()


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


def test_live_while_the_loop_turns_and_the_queue_is_asked() -> None:
    clock = Clock()
    health = make_health(clock)
    assert health.live().ok
    pass_time(health, clock, 59)
    assert health.live().ok
    health.received()
    pass_time(health, clock, 59)
    assert health.live().ok


def test_a_loop_that_stops_is_not_live_whatever_else_holds() -> None:
    clock = Clock()
    health = make_health(clock)
    health.busy = True
    clock.now += 10
    verdict = health.live()
    assert not verdict.ok
    assert verdict.reasons == ("the event loop has not turned for 10.0 s",)
    health.tick()
    assert health.live().ok


def test_the_lag_is_that_of_the_last_turn_and_grows_while_the_loop_does_not_turn() -> None:
    clock = Clock()
    health = make_health(clock)
    assert health.lag == 0.0
    clock.now += 0.5
    health.tick(0.2)
    assert health.lag == 0.2
    clock.now += 0.6
    assert health.lag == 0.2
    clock.now += 9.4
    assert health.lag == 9.5
    health.tick()
    assert health.lag == 0.0


def test_not_receiving_is_not_live_without_a_reason() -> None:
    clock = Clock()
    health = make_health(clock)
    pass_time(health, clock, 60)
    assert health.live().reasons == ("nothing was asked of the queue for 60.0 s",)


@pytest.mark.parametrize("reason", ["busy", "paused", "draining"])
def test_not_receiving_is_fine_with_a_reason(reason: str) -> None:
    clock = Clock()
    health = make_health(clock)
    setattr(health, reason, True)
    pass_time(health, clock, 3600)
    assert health.live().ok


@pytest.mark.parametrize("reason", ["busy", "paused"])
def test_when_the_reason_ends_the_wait_begins_anew(reason: str) -> None:
    clock = Clock()
    health = make_health(clock)
    setattr(health, reason, True)
    pass_time(health, clock, 3600)
    setattr(health, reason, False)
    assert health.live().ok
    pass_time(health, clock, 60)
    assert not health.live().ok


def test_ready_is_schema_queue_and_not_draining_and_never_busy() -> None:
    health = Health()
    assert health.ready().reasons == ("the ledger's schema is not current", "the queue does not answer")
    health.schema_current = health.queue_reachable = True
    assert health.ready().ok
    health.busy = health.paused = True
    assert health.ready().ok
    health.draining = True
    assert health.ready().reasons == ("draining",)


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
        ("POST", "/metrics", 501),
        ("DELETE", "/livez", 501),
    ],
)
def test_case_103_anything_else_is_refused(admin: AdminServer, method: str, path: str, status: int) -> None:
    assert ask(admin, path, method)[0] == status


def test_case_103_slow_clients_give_way_to_probes(
    admin: AdminServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.health, "_CLIENTS", 2)
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
    monkeypatch.setattr(worker.health, "_CLIENT_TIMEOUT", 0.2)
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
    settings = load_settings(file=None, home=tmp_path, environ=environ)
    url = f"http://127.0.0.1:{settings.admin.port}/metrics"
    async with open_service(settings):
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
    first = AdminServer(Metrics(), Health(), host="127.0.0.1", port=0)
    first.close()
    first.close()
    second = AdminServer(Metrics(), Health(), host="127.0.0.1", port=first.port)
    second.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "admin"]


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
