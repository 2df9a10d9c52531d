"""What only an HTTP API promises and breaks, beyond the suite every backend passes (tests/conformance/test_http_backend.py)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr, ValidationError

from backends.base import Attributes, Receipt, single
from backends.errors import (
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.http_api import HttpBackend
from backends.http_api_body import Answer, told_digest
from backends.http_api_client import _Body, retry_after
from backends.http_api_errors import refusal
from backends.http_api_options import HttpOptions
from backends.testing.material import LARGE, SourceBroke, fed, put, some_bytes
from tests.support.http_api import TOKEN, Fault, HttpApi, http_api, options_for
from tests.support.processes import free_port
from tests.support.programs import begin
from tests.support.toxics import Direction, Proxy

NOTHING = Attributes()
BIG = some_bytes(LARGE)
SIZES = pytest.mark.parametrize("data", [b"small", BIG], ids=["small", "streamed"])
NO_READS = {"reads": False, "deletes": False, "list_path": None}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[HttpApi]:
    async with http_api(tmp_path / "objects") as api:
        yield api


@asynccontextmanager
async def connected(api: HttpApi, **changes: Any) -> AsyncIterator[HttpBackend]:
    backend = await HttpBackend.connect(options_for(api, **changes))
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture
async def backend(api: HttpApi) -> AsyncIterator[HttpBackend]:
    async with connected(api) as backend:
        yield backend


async def write(backend: HttpBackend, data: bytes, key: str = "k") -> Receipt:
    return await backend.write(key, fed(data), NOTHING)


async def read(backend: HttpBackend, key: str = "k") -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def in_use(backend: HttpBackend) -> int:
    """Connections that are neither closed nor back in the pool."""
    connector: Any = backend._client._session.connector
    return len(connector._acquired)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is a library's, which has no event for it
            await asyncio.sleep(0.01)


# Errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (202, Unavailable),
        (302, StorageError),
        (400, StorageError),
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, NotFound),
        (405, Unsupported),
        (408, Unavailable),
        (409, Conflict),
        (410, NotFound),
        (411, Unsupported),
        (412, Conflict),
        (413, Unsupported),
        (414, InvalidKey),
        (422, Conflict),
        (429, Unavailable),
        (500, Unavailable),
        (501, Unsupported),
        (503, Unavailable),
        (507, Unavailable),
    ],
)
def test_case_59_statuses_are_classed(status: int, kind: type[StorageError]) -> None:
    assert type(refusal(status, "write it")) is kind


async def test_case_59_nobody_there_is_worth_another_try() -> None:
    with pytest.raises(Unavailable) as raised:
        await HttpBackend.connect(HttpOptions(base_url=f"http://127.0.0.1:{free_port()}"))
    assert raised.value.__cause__ is not None


async def test_no_error_repeats_what_the_answer_says(api: HttpApi) -> None:
    with pytest.raises(PermissionDenied) as raised:
        async with connected(api, token=SecretStr("canary")):
            pass
    assert "canary" not in repr(raised.value)
    assert "token" in str(raised.value)


# The outcome of a write


@SIZES
async def test_case_63_a_lost_reply_is_decided_by_what_lies_there(
    api: HttpApi, backend: HttpBackend, data: bytes
) -> None:
    # Twice: the HTTP library asks once more by itself where it has the whole body in hand.
    api.fail_next("PUT", "drop after", times=2)
    receipt = await write(backend, data)
    assert (receipt.size, api.content("k")) == (len(data), data)


@SIZES
async def test_case_63_a_lost_reply_where_other_content_lies_is_a_conflict(
    api: HttpApi, backend: HttpBackend, data: bytes
) -> None:
    api.put("k", b"other")
    api.fail_next("PUT", "drop after", times=2)
    with pytest.raises(Conflict):
        await write(backend, data)
    assert api.content("k") == b"other"


@SIZES
async def test_case_63_a_request_that_never_arrived_is_worth_another_try(
    api: HttpApi, backend: HttpBackend, data: bytes
) -> None:
    api.fail_next("PUT", "drop before", times=2)
    with pytest.raises(Unavailable):
        await write(backend, data)
    assert api.objects == {}
    api.forgive()
    assert (await write(backend, data)).created


@SIZES
async def test_case_70_an_error_after_applying_is_a_success_where_it_can_be_read(
    api: HttpApi, backend: HttpBackend, data: bytes
) -> None:
    api.fail_next("PUT", "error after")
    receipt = await write(backend, data)
    assert (receipt.size, api.content("k")) == (len(data), data)
    assert len(api.asked("PUT")) == 1


@SIZES
async def test_case_70_where_it_cannot_be_read_the_next_try_has_the_same_idempotency_key(
    api: HttpApi, data: bytes
) -> None:
    async with connected(api, **NO_READS) as backend:
        api.fail_next("PUT", "error after")
        with pytest.raises(Unavailable):
            await write(backend, data)
        receipt = await write(backend, data)
    assert (receipt.created, api.content("k")) == (False, data)
    first, second = (headers["Idempotency-Key"] for headers in api.asked("PUT"))
    assert first == second


async def test_other_objects_have_other_idempotency_keys(api: HttpApi, backend: HttpBackend) -> None:
    for key in ("a", "b"):
        for data in (b"one", BIG):
            await write(backend, data, f"{key}{len(data)}")
    assert len({headers["Idempotency-Key"] for headers in api.asked("PUT")}) == 4


@pytest.mark.parametrize("fault", ["accepted", "busy", "error before"])
async def test_what_stored_nothing_is_worth_another_try(
    api: HttpApi, backend: HttpBackend, fault: Fault
) -> None:
    api.fail_next("PUT", fault)
    with pytest.raises(Unavailable):
        await write(backend, b"x")
    assert (await write(backend, b"x")).created


async def test_i5_a_stream_is_not_sent_twice() -> None:
    """What is left of it would end like the whole: the library repeats a PUT whose connection breaks."""
    handed: asyncio.Queue[memoryview | None] = asyncio.Queue()
    for piece in (memoryview(b"first"), memoryview(b"second"), None):
        handed.put_nowait(piece)
    body = _Body(handed)
    assert bytes(await anext(aiter(body))) == b"first"
    with pytest.raises(ConnectionResetError):
        await anext(aiter(body))


async def test_an_answer_before_the_end_of_the_body_is_no_commit(api: HttpApi) -> None:
    async with connected(api, **NO_READS, verify="none") as backend:
        api.fail_next("PUT", "early")
        with pytest.raises(Unavailable):
            await write(backend, BIG)
    assert api.objects == {}


async def test_a_replayed_answer_to_what_was_deleted_is_no_commit(api: HttpApi, backend: HttpBackend) -> None:
    api.fail_next("PUT", "stale replay")
    with pytest.raises(Unavailable):
        await write(backend, b"x")


async def test_a_replayed_answer_to_other_content_is_a_conflict(api: HttpApi, backend: HttpBackend) -> None:
    api.put("k", b"other")
    api.fail_next("PUT", "stale replay")
    with pytest.raises(Conflict):
        await write(backend, b"x")


async def test_case_66_a_damaged_small_body_is_refused_by_the_api(api: HttpApi, backend: HttpBackend) -> None:
    api.fail_next("PUT", "corrupt")
    with pytest.raises(IntegrityError):
        await write(backend, b"small")
    assert api.objects == {}


@pytest.mark.parametrize("changes", [{}, NO_READS, {**NO_READS, "digest_field": "stored.sha256"}], ids=str)
async def test_case_66_a_damaged_stream_is_not_reported_as_written(
    api: HttpApi, changes: dict[str, Any]
) -> None:
    async with connected(api, **changes) as backend:
        api.fail_next("PUT", "corrupt")
        with pytest.raises(IntegrityError):
            await write(backend, BIG)


async def test_an_answer_without_a_digest_proves_nothing(api: HttpApi) -> None:
    async with connected(api, **NO_READS) as backend:
        api.tells_digest = False
        with pytest.raises(StorageError, match="digest_header"):
            await write(backend, b"x")
        api.put("taken", b"x")
        with pytest.raises(Conflict, match="cannot be compared"):
            await write(backend, b"x", "taken")


@SIZES
async def test_nothing_is_read_back_where_the_2xx_is_believed(api: HttpApi, data: bytes) -> None:
    async with connected(api, verify="none") as backend:
        await write(backend, data)
    assert api.asked("GET") == []


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("ab" * 32, "ab" * 32),
        ("AB" * 32, "ab" * 32),
        ("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=", "ab" * 32),
        ("md5=:xx:, sha-256=:q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=:", "ab" * 32),
        ("sha-256=:AAAA:", None),
        ("sha-512=:q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=:", None),
        ("", None),
        ("!", None),
    ],
)
def test_digests_are_understood_in_the_forms_apis_have(stated: str, found: str | None) -> None:
    assert told_digest(Answer(200, {"Repr-Digest": stated}, b""), "Repr-Digest", None) == found
    in_body = Answer(200, {}, f'{{"a": {{"b": "{stated}"}}}}'.encode())
    assert told_digest(in_body, "Repr-Digest", "a.b") == found


# Retry-After


@SIZES
async def test_case_70_a_retry_after_is_waited_for_once(api: HttpApi, data: bytes) -> None:
    # The stream is longer than the buffer: only an API that is asked first leaves it in hand.
    async with connected(api, expect_continue=True) as backend:
        api.retry_after = "1"
        api.fail_next("PUT", "throttle")
        begun = asyncio.get_running_loop().time()
        assert (await write(backend, data)).created
        assert asyncio.get_running_loop().time() - begun >= 1.0
        api.retry_after = "0"
        api.fail_next("PUT", "throttle", times=2)
        with pytest.raises(Unavailable):
            await write(backend, data, "again")
    assert api.received == len(data)


async def test_case_70_a_stream_that_is_under_way_is_not_sent_again(
    api: HttpApi, backend: HttpBackend
) -> None:
    api.fail_next("PUT", "throttle")
    with pytest.raises(Unavailable):
        await write(backend, BIG)
    assert len(api.asked("PUT")) == 1


async def test_case_70_a_long_retry_after_is_left_to_the_caller(api: HttpApi) -> None:
    async with connected(api, max_retry_after=5.0) as backend:
        api.retry_after = "6"
        api.fail_next("PUT", "throttle")
        with pytest.raises(Unavailable, match="429"):
            await write(backend, b"x")
    assert len(api.asked("PUT")) == 1


@pytest.mark.parametrize("call", ["stat", "open", "delete", "list"])
async def test_case_70_a_retry_after_is_waited_for_by_every_call(
    api: HttpApi, backend: HttpBackend, call: str
) -> None:
    await write(backend, b"x")
    api.fail_next({"stat": "HEAD", "open": "GET", "delete": "DELETE", "list": "GET /list"}[call], "throttle")
    calls: dict[str, Callable[[], Any]] = {
        "stat": lambda: backend.stat("k"),
        "open": lambda: read(backend),
        "delete": lambda: backend.delete("k"),
        "list": lambda: anext(aiter(backend.list())),
    }
    assert await calls[call]()


def test_a_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after("7") == 7.0
    assert 50 < (retry_after(soon) or 0) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [retry_after(value) for value in ("", "soon", "-1", "1.5")] == [None] * 4
    assert retry_after(f"Wed, 21 Oct 2015 07:28:00 +{'9' * 30}") is None


# Deadlines, broken streams, cancellation


@pytest.mark.parametrize("direction", ["requests", "replies"])
@pytest.mark.parametrize("how", ["half-open", "1 byte/s"])
@SIZES
async def test_case_64_a_silent_or_crawling_api_hits_a_deadline(
    api: HttpApi, direction: Direction, how: str, data: bytes
) -> None:
    port = int(api.url.rpartition(":")[2])
    async with (
        Proxy.to("127.0.0.1", port) as proxy,
        connected(api, base_url=f"http://127.0.0.1:{proxy.port}", idle_timeout=0.3) as backend,
    ):
        api.put("there", data)
        if how == "half-open":
            proxy.black_hole(direction)
        else:
            proxy.slow(direction, rate=1.0)
        with pytest.raises(Unavailable):
            await write(backend, data)
        with pytest.raises(Unavailable):
            await read(backend, "there")
        with pytest.raises(Unavailable):
            await backend.stat("there")
        await until(lambda: in_use(backend) == 0)


async def test_case_64_a_read_that_stalls_half_way_hits_a_deadline(api: HttpApi) -> None:
    port = int(api.url.rpartition(":")[2])
    async with (
        Proxy.to("127.0.0.1", port) as proxy,
        connected(api, base_url=f"http://127.0.0.1:{proxy.port}", idle_timeout=0.3) as backend,
    ):
        api.put("k", some_bytes(30 << 20))
        async with backend.open("k") as chunks:
            await anext(chunks)
            proxy.black_hole("replies")
            with pytest.raises(Unavailable):
                async for _ in chunks:
                    pass
        await until(lambda: in_use(backend) == 0)


async def test_case_64_the_whole_request_may_have_a_deadline(api: HttpApi) -> None:
    async with connected(api, total_timeout=0.3) as backend:
        api.fail_next("PUT", "hold")
        with pytest.raises(Unavailable):
            await write(backend, b"x")
        api.released.set()


async def test_a_slow_source_is_no_stall_of_the_api(api: HttpApi) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield some_bytes(2 << 20)
        await asyncio.sleep(0.5)
        yield b"more"

    async with connected(api, idle_timeout=0.2) as backend:
        assert (await backend.write("k", slow(), NOTHING)).size == (2 << 20) + 4


async def test_case_67_an_answer_that_ends_early_is_no_short_object(
    api: HttpApi, backend: HttpBackend
) -> None:
    await write(backend, BIG)
    api.fail_next("GET", "truncated")
    with pytest.raises(Unavailable):
        await read(backend)
    api.fail_next("GET", "open end")
    with pytest.raises(StorageError, match="where it ends"):
        await read(backend)
    api.fail_next("GET", "packed")
    with pytest.raises(StorageError, match="packed"):
        await read(backend)
    assert await read(backend) == BIG


async def test_a_source_that_breaks_off_ends_the_connection(api: HttpApi, backend: HttpBackend) -> None:
    broke = SourceBroke()

    async def breaking() -> AsyncIterator[bytes]:
        yield BIG
        raise broke

    with pytest.raises(SourceBroke) as raised:
        await backend.write("k", breaking(), NOTHING)
    assert raised.value is broke
    await asyncio.wait_for(api.torn.wait(), 10)
    assert api.objects == {}
    await until(lambda: in_use(backend) == 0)


@SIZES
async def test_a_cancelled_write_lets_go_of_its_connection_and_its_source(
    api: HttpApi, backend: HttpBackend, data: bytes
) -> None:
    api.fail_next("PUT", "hold")
    source = fed(data)
    task = asyncio.create_task(backend.write("k", source, NOTHING))
    await asyncio.wait_for(api.held.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # It would say that it is already running if somebody still pulled.
    await source.aclose()  # type: ignore[attr-defined] # the port knows it as an iterator
    await until(lambda: in_use(backend) == 0)
    api.released.set()


async def test_an_early_refusal_leaves_the_source_to_be_compared(api: HttpApi) -> None:
    async with connected(api, expect_continue=True) as backend:
        api.put("k", BIG)
        api.fail_next("PUT", "busy")
        assert (await write(backend, BIG)).created is False
    assert api.received == 0


WRITER = """
import asyncio, sys
from backends.base import Attributes
from backends.http_api import HttpBackend
from backends.http_api_options import HttpOptions

async def forever():
    while True:
        yield bytes(1 << 20)
        await asyncio.sleep(0.01)

async def main():
    backend = await HttpBackend.connect(HttpOptions(base_url=sys.argv[1], token=sys.argv[2], path="objects/{key}"))
    await backend.write("k", forever(), Attributes())

asyncio.run(main())
"""


async def test_i5_a_killed_writer_leaves_nothing(api: HttpApi, backend: HttpBackend) -> None:
    writer = await begin("-c", WRITER, api.url, TOKEN)
    try:
        await until(lambda: api.received > 0)
    finally:
        writer.kill()
        await writer.wait()
    await asyncio.wait_for(api.torn.wait(), 10)
    assert api.objects == {}
    assert await backend.sweep(0.0) == 0


# Credentials, redirects, certificates


async def test_case_71_a_token_that_expires_is_read_anew(api: HttpApi, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n", encoding="ascii")
    async with connected(api, token=None, token_file=token) as backend:
        api.token = "renewed"
        with pytest.raises(PermissionDenied) as raised:
            await write(backend, BIG)
        assert raised.value.retryable
        token.write_text("renewed\n", encoding="ascii")
        assert (await write(backend, BIG)).created
        token.unlink()
        with pytest.raises(PermissionDenied, match="token"):
            await write(backend, BIG)


async def test_credentials_stay_with_their_origin(api: HttpApi, backend: HttpBackend, tmp_path: Path) -> None:
    async with http_api(tmp_path / "elsewhere") as other:
        api.elsewhere = other.url
        api.put("k", b"x")
        calls: list[Callable[[], Any]] = [
            lambda: read(backend),
            lambda: backend.stat("k"),
            lambda: write(backend, b"y", "new"),
            lambda: write(backend, BIG, "new"),
        ]
        for call in calls:
            api.fail_next("", "elsewhere")
            with pytest.raises(StorageError, match="307"):
                await call()
        assert other.requests == []


async def test_a_redirect_within_the_origin_is_followed_for_reads_only(
    api: HttpApi, backend: HttpBackend
) -> None:
    api.put("k", b"x")
    api.fail_next("GET", "moved here", times=5)
    assert await read(backend) == b"x"
    api.fail_next("GET", "moved here", times=6)
    with pytest.raises(StorageError, match="redirects"):
        await read(backend)
    api.fail_next("PUT", "moved here")
    with pytest.raises(StorageError, match="307"):
        await write(backend, b"y", "new")


async def test_case_104_only_trusted_certificates_are_taken(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    made = await asyncio.create_subprocess_exec(
        "openssl", *words.split(), "-keyout", key, "-out", certificate, stderr=asyncio.subprocess.DEVNULL
    )
    assert await made.wait() == 0
    async with http_api(tmp_path / "objects", certificate=certificate, key=key) as api:
        async with connected(api, ca_file=certificate) as backend:
            assert (await write(backend, BIG)).created
        with pytest.raises(Unavailable, match="ca_file"):
            async with connected(api):
                pass
    with pytest.raises(StorageError, match="cannot be read"):
        await HttpBackend.connect(HttpOptions(base_url="https://127.0.0.1", ca_file=tmp_path / "missing"))


# Requests as configured


async def test_what_a_write_asks_for(api: HttpApi, backend: HttpBackend) -> None:
    await backend.write("a b/ü", single(b"x"), Attributes("text/plain", {"url": "ü"}))
    method, path, headers = next(request for request in api.requests if request[0] == "PUT")
    assert (method, path) == ("PUT", "/objects/a%20b/%C3%BC")
    assert headers["If-None-Match"] == "*"
    assert headers["Content-Length"] == "1"
    assert headers["Content-Type"] == "text/plain"
    assert headers["Content-Digest"] == "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"


async def test_an_api_with_paths_of_its_own(api: HttpApi) -> None:
    paths = {"path": "objects/tenant/{key}", "write_path": "/objects/tenant/{key}", "health_path": "/health"}
    async with connected(api, **paths, stat_method="GET", headers={"X-Api-Key": SecretStr("k")}) as backend:
        await put(backend, "k", BIG)
        found = await backend.stat("k")
        assert found is not None
        assert found.size == LARGE
        assert await backend.stat("missing") is None
        assert await backend.delete("k")
    assert all(headers["X-Api-Key"] == "k" for _, _, headers in api.requests)
    assert api.requests[0][1] == "/health"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("[]", "without a list"),
        ("not json", "without a list"),
        ('{"items": [{"key": "b", "size": 1}, {"key": "a", "size": 1}]}', "out of order"),
        ('{"items": [{"key": "a", "size": 1}, {"key": "a", "size": 1}]}', "out of order"),
        ('{"items": [{"key": "a"}]}', "without key or size"),
        ('{"items": [], "next": "same"}', "does not move on"),
    ],
)
async def test_a_listing_that_makes_no_sense_is_an_error(page: str, said: str) -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=page)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    backend = await HttpBackend.connect(HttpOptions(base_url=url, list_path="?p={prefix}&c={cursor}"))
    try:
        with pytest.raises(StorageError, match=said):
            [found async for found in backend.list()]
    finally:
        await backend.aclose()
        await runner.cleanup()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://host"},
        {"base_url": "http://user:secret@host"},
        {"base_url": "http://host/?q=1"},
        {"base_url": "http://host:99999"},
        {"base_url": "http://[::1"},
        {"path": "fixed"},
        {"path": "{key}{other}"},
        {"list_path": "all"},
        {"token": "a\nb"},
        {"token": "a", "token_file": "b"},
        {"headers": {"A b": "x"}},
        {"headers": {"A": "x\r\ny"}},
        {"verify": "read_back", "reads": False},
        {"unknown": 1},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpOptions(**{"base_url": "http://host", **wrong})


def test_what_the_options_say_of_the_features() -> None:
    def features(**options: Any) -> tuple[bool, ...]:
        told = HttpBackend.features_of(HttpOptions(base_url="https://host/api", **options))
        return told.reads, told.lists, told.deletes, told.create_only, told.attributes

    assert features() == (True, False, True, True, False)
    assert features(reads=False, deletes=False) == (False, False, False, True, False)
    assert features(reads=False, verify="none") == (False, False, True, False, False)
    assert features(if_none_match=False, list_path="?{prefix}", metadata_prefix="X-") == (
        True,
        True,
        True,
        False,
        True,
    )
    assert HttpBackend.location_of(HttpOptions(base_url="https://host/api")) == "https://host/api/"
