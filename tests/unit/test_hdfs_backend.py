"""What only HDFS promises, beyond the suite every backend passes (tests/conformance)."""

import asyncio
import hashlib
import random
import signal
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from yarl import URL

from backends.base import Attributes, check_key, single
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
from backends.hdfs import HdfsBackend
from backends.hdfs_names import PARTS, key_of, key_of_temporary, path_of, temporary_of
from backends.hdfs_options import HdfsOptions
from tests.support.hdfs import HdfsCluster, space_quota
from tests.support.hdfs_front import HdfsFront, hdfs_front
from tests.support.processes import free_port
from tests.support.programs import begin
from tests.support.toxics import Proxy

MIB = 1 << 20
NOTHING = Attributes()
HUGE = bytes(32 * MIB)
"""More than the sockets on the way hold."""
LARGE = random.Random(7).randbytes(5 * MIB + 17)
SHA256 = hashlib.sha256(LARGE).hexdigest()

RENAME = r"^PUT .*op=RENAME"
SEND = r"^datanode PUT .*op=CREATE"
OPEN = r"^datanode GET .*op=OPEN"

Fronted = tuple[HdfsBackend, HdfsFront]


@pytest.fixture
async def backend(hdfs: HdfsCluster) -> AsyncIterator[HdfsBackend]:
    async with hdfs.backend() as backend:
        yield backend


@asynccontextmanager
async def fronted_backend(hdfs: HdfsCluster, **changes: Any) -> AsyncIterator[Fronted]:
    async with hdfs_front(hdfs.url) as front, hdfs.backend(url=front.url, **changes) as backend:
        front.requests.clear()
        yield backend, front


@pytest.fixture
async def fronted(hdfs: HdfsCluster) -> AsyncIterator[Fronted]:
    async with fronted_backend(hdfs) as pair:
        yield pair


@asynccontextmanager
async def slowed_datanode(hdfs: HdfsCluster) -> AsyncIterator[tuple[HdfsBackend, Proxy]]:
    """Bytes pass through a proxy with toxics, everything else goes to the NameNode as it is."""
    async with (
        fronted_backend(hdfs) as (backend, front),
        Proxy.to("127.0.0.1", urllib.parse.urlsplit(front.url).port or 0) as proxy,
    ):
        front.datanode_url = f"http://127.0.0.1:{proxy.port}"
        yield backend, proxy


def hurry(backend: HdfsBackend) -> None:
    """Short deadlines from now on. Those of the sockets stay long, so that it is ours that are met."""
    short = {"connect_timeout": 0.2, "read_timeout": 0.2}
    backend._client.options = backend._client.options.model_copy(update=short)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def read(backend: HdfsBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def assert_no_trace(backend: HdfsBackend, key: str = "k") -> None:
    assert await backend.stat(key) is None
    assert await backend.sweep(0.0) == 0


async def until_left(backend: HdfsBackend, count: int) -> None:
    """Poll until so many temporary files are there, closed by their DataNode."""
    async with asyncio.timeout(20):
        while True:
            found = [status async for page in backend._client.pages(PARTS) for status in page]
            if len([status for status in found if status.length]) == count:
                return
            await asyncio.sleep(0.02)


keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)


@given(st.lists(keys.filter(lambda segment: segment not in {".", ".."}), min_size=1, max_size=4))
def test_a_path_leads_back_to_its_key(segments: list[str]) -> None:
    key = check_key("/".join(segments))
    path = path_of(key)
    assert key_of(path) == key
    assert ":" not in path
    assert path.isprintable() or not key.isprintable()
    name = temporary_of(key).removeprefix(f"{PARTS}/")
    assert "/" not in name
    assert key_of_temporary(name) == key


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("dt=2026-01-01/a b+c%3A;x\\y#?.csv", "dt=2026-01-01/a b+c%3A;x\\y#?.csv"),
        ("12:30", "12~3A30"),
        ("~3A", "~7E3A"),
        ("a\nb", "a~0Ab"),
        ("x/.snapshot/y", "x/~2Esnapshot/y"),
        (f"{PARTS}/k", "~2Etransload-parts/k"),
        (".snapshots", ".snapshots"),
    ],
)
def test_paths_are_the_keys_where_hdfs_lets_them(key: str, path: str) -> None:
    assert path_of(key) == path


@pytest.mark.parametrize("path", [".snapshot", "a~3a", "~41", "12:30", PARTS])
def test_what_no_key_is_stored_as_is_no_object(path: str) -> None:
    assert key_of(path) is None


def test_case_59_a_name_that_is_too_long_is_refused_before_any_byte() -> None:
    with pytest.raises(InvalidKey, match="256 bytes"):
        path_of("é" * 128)
    with pytest.raises(InvalidKey, match="258 bytes"):
        path_of("n" * 255 + ":")


def test_of_a_long_key_the_temporary_name_keeps_the_beginning() -> None:
    key = "k:/" * 300
    name = temporary_of(key).removeprefix(f"{PARTS}/")
    assert len(name.encode()) <= 255
    assert key.startswith(key_of_temporary(name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://u:p@host:9870"},
        {"url": "hdfs://host:8020"},
        {"root": "relative"},
        {"root": "/a/"},
        {"root": "/a:b"},
        {"root": "/a/../b"},
        {"user": "me", "delegation_token": "t"},
        {"hots": "x"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HdfsOptions(**{"url": "http://namenode:9870", "root": "/a", **wrong})


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("http://namenode:9870", "webhdfs://namenode:9870/data/of%20us/"),
        ("https://namenode:9871/", "swebhdfs://namenode:9871/data/of%20us/"),
    ],
)
def test_locations_have_hadoops_schemes(url: str, location: str) -> None:
    assert HdfsBackend.location_of(HdfsOptions(url=url, root="/data/of us")) == location


async def test_what_an_operator_sees_in_hdfs(hdfs: HdfsCluster, backend: HdfsBackend) -> None:
    await backend.write("dt=2026-01-01/12:30.csv", single(b"x"), NOTHING)
    status = hdfs.call("GET", f"{backend._client._root}/dt=2026-01-01/12~3A30.csv", op="GETFILESTATUS")
    assert (status["FileStatus"]["length"], status["FileStatus"]["owner"]) == (1, "tester")


async def test_block_size_and_replication_are_passed_on(hdfs: HdfsCluster) -> None:
    async with hdfs.backend(block_size=MIB, replication=2, sync=False) as backend:
        receipt = await backend.write("k", pieces(LARGE), NOTHING)
        status = hdfs.call("GET", f"{backend._client._root}/k", op="GETFILESTATUS")["FileStatus"]
        assert (status["blockSize"], status["replication"]) == (MIB, 2)
        assert receipt.sha256 == SHA256
        assert await read(backend, "k") == LARGE


async def test_case_60_a_key_below_an_object_and_an_object_above_keys(backend: HdfsBackend) -> None:
    await backend.write("a", single(b"old"), NOTHING)
    await backend.write("b/c/d", single(b"old"), NOTHING)
    for key in ("a/b", "a/b/c", "b", "b/c"):
        with pytest.raises(InvalidKey):
            await backend.write(key, single(b"new"), NOTHING)
    assert [found.key async for found in backend.list()] == ["a", "b/c/d"]
    assert await backend.stat("a/b") is None
    assert [found.key async for found in backend.list("a/")] == []
    assert await backend.delete("b/c") is False
    assert await backend.sweep(0.0) == 0


@pytest.mark.parametrize("fault", ["lost reply", "error after"])
@pytest.mark.parametrize("times", [1, 4], ids=["once", "every attempt"])
async def test_case_63_a_rename_whose_reply_is_lost_has_happened(
    fronted: Fronted, fault: Any, times: int
) -> None:
    backend, front = fronted
    await backend._make("dir")
    front.fail_next(RENAME, fault, times)
    receipt = await backend.write("dir/k", pieces(LARGE), NOTHING)
    assert (receipt.size, receipt.sha256, receipt.created) == (len(LARGE), SHA256, True)
    assert sum("datanode" in line for line in front.requests) == 1, "the file's number tells, no byte is read"
    assert await read(backend, "dir/k") == LARGE
    assert await backend.sweep(0.0) == 0


async def test_case_70_an_answer_of_500_before_the_commit_is_unavailable_and_leaves_nothing(
    fronted: Fronted,
) -> None:
    backend, front = fronted
    front.fail_next(SEND, "error after")
    with pytest.raises(Unavailable, match="HTTP 500"):
        await backend.write("k", pieces(LARGE), NOTHING)
    await assert_no_trace(backend)
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created


async def test_case_70_other_content_won_while_the_reply_was_lost(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", single(b"theirs"), NOTHING)
    front.fail_next(RENAME, "lost reply", 4)
    with pytest.raises(Conflict, match="other content"):
        await backend.write("k", single(b"ours!!"), NOTHING)
    assert await read(backend, "k") == b"theirs"
    assert await backend.sweep(0.0) == 0


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (403, "SafeModeException", Unavailable),
        (403, "StandbyException", Unavailable),
        (403, "IOException", Unavailable),
        (403, "DSQuotaExceededException", Unavailable),
        (403, "AccessControlException", PermissionDenied),
        (401, "AuthenticationException", PermissionDenied),
        (403, "ParentNotDirectoryException", InvalidKey),
        (403, "PathComponentTooLongException", InvalidKey),
        (404, "FileNotFoundException", Unavailable),
    ],
)
async def test_case_59_refusals_at_the_commit_have_their_class_and_leave_nothing(
    fronted: Fronted, status: int, name: str, kind: type[StorageError]
) -> None:
    backend, front = fronted
    front.fail_next(RENAME, (status, name), times=2)
    with pytest.raises(kind, match=name):
        await backend.write("k", single(b"x"), NOTHING)
    front.requests.clear()
    await assert_no_trace(backend)


async def test_case_71_a_token_that_expires_before_the_commit(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(RENAME, (403, "InvalidToken"))
    with pytest.raises(PermissionDenied, match="InvalidToken") as raised:
        await backend.write("k", pieces(LARGE), NOTHING)
    assert raised.value.retryable
    await assert_no_trace(backend)


async def test_case_71_where_the_clean_up_is_refused_too_the_error_says_so(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(RENAME, (403, "InvalidToken"))
    front.fail_next("^DELETE", (403, "InvalidToken"))
    with pytest.raises(PermissionDenied) as raised:
        await backend.write("k", single(b"x"), NOTHING)
    assert any("sweep" in note for note in raised.value.__notes__)
    assert await backend.sweep(0.0) == 1


async def test_case_57_a_full_quota_is_unavailable_and_leaves_nothing(
    hdfs: HdfsCluster, backend: HdfsBackend
) -> None:
    with space_quota(hdfs, backend._client._root, 2 * MIB):
        with pytest.raises(Unavailable) as raised:
            await backend.write("k", pieces(LARGE), NOTHING)
        assert raised.value.retryable
        await assert_no_trace(backend)
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created


async def test_case_59_a_stranger_is_denied(hdfs: HdfsCluster, backend: HdfsBackend) -> None:
    with pytest.raises(PermissionDenied, match="AccessControlException"):
        await HdfsBackend.connect(hdfs.options(backend._client._root, user="stranger"))


async def test_case_66_damage_on_the_way_is_found_by_reading_back(hdfs: HdfsCluster) -> None:
    async with fronted_backend(hdfs, verify="read_back") as (backend, front):
        front.fail_next(SEND, "corrupt")
        with pytest.raises(IntegrityError, match="reads back"):
            await backend.write("k", pieces(LARGE), NOTHING)
        await assert_no_trace(backend)
        assert (await backend.write("k", pieces(LARGE), NOTHING)).sha256 == SHA256
        assert await read(backend, "k") == LARGE


async def test_case_66_a_short_file_is_found_by_its_size(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(SEND, "shorten")
    with pytest.raises(IntegrityError, match=f"{len(LARGE) - 1} bytes"):
        await backend.write("k", pieces(LARGE), NOTHING)
    await assert_no_trace(backend)


async def test_case_67_a_read_that_is_cut_fails_and_never_ends_short(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", pieces(LARGE), NOTHING)
    front.fail_next(OPEN, "cut")
    with pytest.raises(Unavailable):
        await read(backend, "k")
    assert await read(backend, "k") == LARGE


async def test_case_68_an_object_that_was_replaced_has_another_etag(backend: HdfsBackend) -> None:
    first = await backend.write("k", single(b"first"), NOTHING)
    stat = await backend.stat("k")
    assert stat is not None
    assert stat.etag == first.etag
    assert [found.etag async for found in backend.list()] == [first.etag]
    await backend.delete("k")
    second = await backend.write("k", single(b"again"), NOTHING)
    assert second.etag != first.etag


async def test_case_69_a_connection_that_breaks_leaves_nothing(hdfs: HdfsCluster) -> None:
    async with slowed_datanode(hdfs) as (backend, proxy):

        async def breaking() -> AsyncIterator[bytes]:
            yield LARGE
            proxy.reset()
            for _ in range(50):
                yield LARGE

        with pytest.raises(Unavailable):
            await backend.write("k", breaking(), NOTHING)
        assert await backend.stat("k") is None


@pytest.mark.parametrize("rate", [None, 1.0], ids=["half-open", "1 byte a second"])
@pytest.mark.parametrize("direction", ["requests", "replies"])
async def test_case_64_a_datanode_that_stalls_meets_a_deadline(
    hdfs: HdfsCluster, direction: Any, rate: float | None
) -> None:
    async with slowed_datanode(hdfs) as (backend, proxy):
        await backend.write("k", single(LARGE), NOTHING)
        hurry(backend)
        proxy.slow(direction, rate=rate) if rate else proxy.black_hole(direction)
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable):
                await backend.write("other", pieces(HUGE), NOTHING)
            with pytest.raises(Unavailable):
                await read(backend, "k")
        proxy.heal()
        assert await backend.stat("other") is None


@pytest.mark.parametrize("rate", [None, 1.0], ids=["half-open", "1 byte a second"])
async def test_case_64_a_read_that_stalls_in_the_middle_meets_a_deadline(
    hdfs: HdfsCluster, rate: float | None
) -> None:
    async with hdfs.backend() as backend:
        await backend.write("k", single(HUGE), NOTHING)
        datanode = await backend._client.datanode("GET", "OPEN", "k")
        async with (
            Proxy.to(datanode.host or "", datanode.port or 0) as proxy,
            hdfs_front(hdfs.url) as front,
        ):
            front.datanode_url = f"http://127.0.0.1:{proxy.port}"
            through = await HdfsBackend.connect(hdfs.options(backend._client._root, url=front.url))
            try:
                async with asyncio.timeout(20), through.open("k") as chunks:
                    await anext(chunks)
                    hurry(through)
                    proxy.slow("replies", rate=rate) if rate else proxy.black_hole("replies")
                    with pytest.raises(Unavailable, match="OPEN"):
                        async for _ in chunks:
                            pass
            finally:
                await through.aclose()


@pytest.mark.parametrize("rate", [None, 1.0], ids=["half-open", "1 byte a second"])
async def test_case_64_a_namenode_that_stalls_meets_a_deadline(hdfs: HdfsCluster, rate: float | None) -> None:
    address = urllib.parse.urlsplit(hdfs.url)
    async with Proxy.to(address.hostname or "", address.port or 0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        async with hdfs.backend(url=url) as backend:
            hurry(backend)
            proxy.slow("replies", rate=rate) if rate else proxy.black_hole("replies")
            async with asyncio.timeout(20):
                for call in (backend.stat("k"), backend.write("k", single(b"x"), NOTHING), backend.health()):
                    with pytest.raises(Unavailable):
                        await call


@pytest.mark.parametrize("moment", [SEND, RENAME, "op=CREATE"], ids=["send", "rename", "create"])
async def test_i6_nothing_is_left_when_cancelled_while_a_request_is_under_way(
    fronted: Fronted, moment: str
) -> None:
    backend, front = fronted
    front.fail_next(moment, "hold")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await front.held.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    front.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    if await backend.stat("k") is not None:
        assert await read(backend, "k") == LARGE
    assert await backend.sweep(0.0) == 0


async def test_i6_a_writer_killed_in_the_middle_leaves_what_a_sweep_finds(
    hdfs: HdfsCluster, backend: HdfsBackend
) -> None:
    script = (
        "import asyncio, sys\n"
        "from backends.base import Attributes\n"
        "from backends.hdfs import HdfsBackend, HdfsOptions\n"
        "async def chunks():\n"
        "    for _ in range(8): yield bytes(1 << 20)\n"
        "    print('half', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "async def main():\n"
        "    backend = await HdfsBackend.connect(HdfsOptions(url=sys.argv[1], root=sys.argv[2], user='tester'))\n"
        "    await backend.write('dir/k', chunks(), Attributes())\n"
        "asyncio.run(main())\n"
    )
    child = await begin("-c", script, hdfs.url, backend._client._root)
    assert await child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await until_left(backend, 1)
    assert [found.key async for found in backend.list()] == []
    assert await backend.sweep(3600.0) == 0
    assert await backend.sweep(0.0, "other/") == 0
    assert await backend.sweep(0.0, "dir/") == 1
    await assert_no_trace(backend, "dir/k")


async def test_a_write_that_is_swept_under_way_may_be_tried_again(backend: HdfsBackend) -> None:
    async def swept() -> AsyncIterator[bytes]:
        yield LARGE
        async with asyncio.timeout(10):
            while not await backend.sweep(0.0):  # noqa: ASYNC110 - the DataNode's beginning has no event
                await asyncio.sleep(0.01)
        yield LARGE

    with pytest.raises(StorageError) as raised:
        await backend.write("k", swept(), NOTHING)
    assert raised.value.retryable
    await assert_no_trace(backend)


async def test_a_server_without_batches_lists_in_one_answer(fronted: Fronted) -> None:
    backend, front = fronted
    for key in ("d/a", "d/b/c", "d/b-c", "e"):
        await backend.write(key, single(b"x"), NOTHING)
    front.fail_next("op=LISTSTATUS_BATCH", "unknown operation")
    assert [found.key async for found in backend.list("d")] == ["d/a", "d/b-c", "d/b/c"]
    assert [found.key async for found in backend.list("d/b")] == ["d/b-c", "d/b/c"]
    assert sum("LISTSTATUS_BATCH" in line for line in front.requests) == 1


async def test_files_that_no_key_would_have_are_not_told(hdfs: HdfsCluster, backend: HdfsBackend) -> None:
    root = backend._client._root
    hdfs.call("PUT", f"{root}/a~zz/b", op="MKDIRS")
    await backend.write("k", single(b"x"), NOTHING)
    hdfs.call("PUT", f"{root}/k", op="RENAME", destination=f"{root}/k~k")
    await backend.write("l", single(b"x"), NOTHING)
    assert [found.key async for found in backend.list()] == ["l"]


async def test_a_server_without_rename_options_is_refused_with_advice(fronted: Fronted) -> None:
    backend, _ = fronted
    real = backend._client.ask

    async def plain(method: str, op: str, path: str, **parameters: str) -> Any:
        parameters.pop("renameoptions", None)
        return await real(method, op, path, **parameters)

    backend._client.ask = plain  # type: ignore[method-assign] # as HttpFS, which drops what it does not know
    with pytest.raises(Unsupported, match="HttpFS"):
        await backend.health()


async def test_a_namenode_that_mistakes_names_is_refused(fronted: Fronted) -> None:
    backend, front = fronted
    front.decodes_twice = True
    with pytest.raises(Unsupported, match="mistakes names"):
        await backend.health()
    front.decodes_twice = False
    assert await backend.sweep(0.0) == 1, "the probe's file, under a name that could not be told"


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"datanodes": ("*.cluster.example",)}, "not in datanodes"), ({"datanodes": ("127.0.0.?",)}, None)],
    ids=["elsewhere", "listed"],
)
async def test_bytes_go_to_listed_hosts_only(
    hdfs: HdfsCluster, changes: dict[str, Any], match: str | None
) -> None:
    if match is None:
        async with hdfs.backend(**changes) as backend:
            assert (await backend.write("k", single(b"x"), NOTHING)).created
        return
    with pytest.raises(PermissionDenied, match=match):
        async with hdfs.backend(**changes):
            pytest.fail("health sends bytes")


async def test_a_redirect_to_another_scheme_is_not_followed(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, front = fronted
    front.datanode_url = "ftp://127.0.0.1:1"
    with pytest.raises(PermissionDenied, match="ftp URL"):
        await backend.write("k", single(b"x"), NOTHING)
    front.datanode_url = ""
    # A NameNode with TLS that sends us to a DataNode without: the front stands in for both, asked in the clear.
    monkeypatch.setattr(backend._client, "_base", URL(front.url).with_scheme("https"))
    asked = backend._client._asked
    monkeypatch.setattr(
        backend._client,
        "_asked",
        lambda method, url, *rest, **named: asked(method, url.with_scheme("http"), *rest, **named),
    )
    with pytest.raises(PermissionDenied, match="http URL"):
        await backend.write("k", single(b"x"), NOTHING)
    assert not any(line.startswith("datanode") for line in front.requests)


async def test_case_99_a_token_goes_to_the_namenode_alone_and_into_no_error(hdfs: HdfsCluster) -> None:
    canary = "canary-3f1c"
    async with hdfs_front(hdfs.url) as front:
        options = hdfs.options("/tmp/t-token", url=front.url, user=None, delegation_token=SecretStr(canary))  # noqa: S108 - a directory of HDFS
        assert canary not in repr(options)
        backend = await HdfsBackend.connect(options)
        try:
            to_namenode = [line for line in front.requests if not line.startswith("datanode")]
            to_datanode = [line for line in front.requests if line.startswith("datanode")]
            assert all(canary in line for line in to_namenode)
            assert to_datanode
            assert not any(canary in line for line in to_datanode)
            front.fail_next("", "lost reply", times=4)
            with pytest.raises(Unavailable) as raised:
                await backend.stat("k")
            assert canary not in repr(raised.value) + repr(raised.value.__cause__)
        finally:
            await backend.aclose()
            with suppress(OSError):
                hdfs.call("DELETE", "/tmp/t-token", user="dr.who", op="DELETE", recursive="true")  # noqa: S108 - as above
    options = options.model_copy(update={"url": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(Unavailable) as raised:
        await HdfsBackend.connect(options)
    assert canary not in repr(raised.value) + repr(raised.value.__cause__)


async def test_another_server_is_told_apart(hdfs: HdfsCluster) -> None:
    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()
        await writer.wait_closed()
        answered.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable, match="not WebHDFS"):
            await HdfsBackend.connect(hdfs.options("/tmp/t-none", url=url))  # noqa: S108 - a directory of HDFS
        await answered.wait()


async def test_a_missing_object_is_not_found_and_a_closed_backend_unavailable(hdfs: HdfsCluster) -> None:
    async with hdfs.backend() as backend:
        with pytest.raises(NotFound):
            await read(backend, "k")
        await backend.aclose()
        with pytest.raises(Unavailable):
            await backend.stat("k")
