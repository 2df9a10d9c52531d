"""Group D of the failure catalogue on SFTP: what goes wrong on the server's disk, on the line, and with the server itself."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

import backends.sftp
import backends.sftp_commit
from backends.base import CHUNK_SIZE, Receipt, single
from backends.errors import Conflict, InvalidKey, PermissionDenied, StorageError, Unavailable
from backends.sftp import SFTPBackend
from backends.sftp_client import SFTPOptions
from backends.sftp_commit import Commit
from backends.testing.material import LARGE, NOTHING, fed, put, some_bytes
from tests.support.dropping import drop
from tests.support.openssh import OwnSshd
from tests.support.toxics import Direction, Proxy

DEADLINE = 20.0
"""Seconds after which a test has failed, whatever it waits for; all of them take a fraction."""


@pytest.fixture(params=["full", "bare"])
def sshd(request: pytest.FixtureRequest, openssh: Mapping[str, OwnSshd]) -> OwnSshd:
    return openssh[request.param]


@asynccontextmanager
async def connected(options: SFTPOptions) -> AsyncIterator[SFTPBackend]:
    async with asyncio.timeout(DEADLINE):
        backend = await SFTPBackend.connect(options)
        try:
            yield backend
        finally:
            await backend.aclose()


async def content(backend: SFTPBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def swallowed(proxy: Proxy) -> None:
    """Return when the black hole has got something: then `heal` resets the connection."""
    while not any(link.torn for link in proxy._links):  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.005)


async def settled(backend: SFTPBackend) -> None:
    """Whatever connection was broken, or on its way into the black hole, is done with."""
    with suppress(Unavailable):
        await backend.health()


async def pausing(
    first: bytes, half: asyncio.Event, go_on: asyncio.Event, rest: bytes
) -> AsyncIterator[bytes]:
    yield first
    half.set()
    await go_on.wait()
    yield rest


def injected(faults: str) -> str:
    """The command of an sftp-server whose system calls fail as strace is told."""
    traced = faults.partition(":")[0]
    return f"exec strace -f -qq -o /dev/null -e trace={traced} -e inject={faults} {{program}}"


async def failing_write(faults: str, expected: type[StorageError], data: bytes = b"payload") -> None:
    """One write meets the fault after the probes of `connect` have not; nothing is left, and the next one succeeds."""
    with OwnSshd.create(injected(faults)) as sshd:
        root = sshd.directory()
        async with connected(sshd.options(root, max_connections=1, channels_per_connection=1)) as backend:
            with pytest.raises(expected) as raised:
                await put(backend, "k", data)
            assert raised.value.__cause__ is not None or "room" in str(raised.value)
            assert names(root) == []
            assert (await put(backend, "k", data)).created
            assert (root / "k").read_bytes() == data


async def test_case_57_a_full_disk() -> None:
    """Each sftp-server has a small disk of its own, which is why they may be but one, and why it is not looked at from here."""
    alone = "unshare -m" if os.geteuid() == 0 else "unshare -rm"
    small = f"{alone} sh -c 'mount -t tmpfs -o size=2m none {{files}} && exec {{program}}'"
    with OwnSshd.create(small) as sshd:
        options = sshd.options(sshd.files, max_connections=1, channels_per_connection=1)
        async with connected(options) as backend:
            with pytest.raises(Unavailable):
                await backend.write("k", fed(some_bytes(LARGE)), NOTHING)
            assert await backend.stat("k") is None
            assert await backend.sweep(0.0) == 0
            assert (await put(backend, "k", some_bytes(CHUNK_SIZE))).created
            assert await content(backend, "k") == some_bytes(CHUNK_SIZE)


async def test_case_58_a_failed_fsync_is_a_failed_write(strace: None) -> None:  # noqa: ARG001 - as above
    await failing_write("fsync:error=EIO:when=1", Unavailable)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("EROFS", Unavailable),
        ("EACCES", PermissionDenied),
        ("EXDEV", Unavailable),
        ("ENAMETOOLONG", InvalidKey),
        ("EMFILE", Unavailable),
        ("EDQUOT", Unavailable),
    ],
)
async def test_case_59_errors_are_classed(strace: None, error: str, expected: type[StorageError]) -> None:  # noqa: ARG001 - as above
    # The probe links twice.
    await failing_write(f"link,linkat:error={error}:when=3", expected)


async def test_case_59_a_directory_that_may_not_be_written() -> None:
    command = (
        "setpriv --reuid 65534 --regid 65534 --clear-groups {program}" if os.geteuid() == 0 else "{program}"
    )
    with OwnSshd.create(command) as sshd:
        sshd.files.parent.chmod(0o755)
        root = sshd.directory()
        root.chmod(0o777)
        async with connected(sshd.options(root)) as backend:
            await put(backend, "d/k", b"x")
            (root / "d").chmod(0o555)
            with pytest.raises(PermissionDenied):
                await put(backend, "d/other", b"x")
            (root / "d").chmod(0o755)
        root.chmod(0o555)
        with pytest.raises(PermissionDenied):
            await SFTPBackend.connect(sshd.options(root))


def through(proxy: Proxy, sshd: OwnSshd, root: Path, **changes: object) -> SFTPOptions:
    return sshd.options(root, **{"port": proxy.port, "max_connections": 1, **changes})


async def write_and_lose(
    proxy: Proxy, backend: SFTPBackend, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> Receipt:
    """Write `payload` under `k`, and lose the request of the commit or the reply to it."""

    def swallow(name: str) -> None:
        if name == "sftp.commit.before":
            proxy.black_hole(direction)

    monkeypatch.setattr(backends.sftp_commit, "failpoint", swallow)
    writing = asyncio.create_task(put(backend, "k", b"payload"))
    await swallowed(proxy)
    monkeypatch.undo()
    proxy.heal()
    return await writing


@pytest.mark.parametrize("there", [None, b"payload", b"other!!"], ids=["free", "equal", "other"])
async def test_case_63_the_reply_to_the_commit_is_lost(
    sshd: OwnSshd, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    root = sshd.directory()
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root)) as backend,
    ):
        if there is not None:
            (root / "k").write_bytes(there)
        if there == b"other!!":
            with pytest.raises(Conflict):
                await write_and_lose(proxy, backend, "replies", monkeypatch)
        else:
            assert (await write_and_lose(proxy, backend, "replies", monkeypatch)).created
        assert (root / "k").read_bytes() == (there or b"payload")
        # Nobody may touch the file of a rename whose answer is lost; this one was refused, so it is still there.
        left = there is not None and backend._how is Commit.RENAME
        assert await backend.sweep(0.0) == left
        assert names(root) == ["k"]


async def test_case_63_a_commit_that_never_arrived(sshd: OwnSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sshd.directory()
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root)) as backend,
    ):
        with pytest.raises(Unavailable):
            await write_and_lose(proxy, backend, "requests", monkeypatch)
        assert not (root / "k").exists()
        assert (await put(backend, "k", b"payload")).created
        assert await backend.sweep(0.0) == (backend._how is Commit.RENAME)
        assert names(root) == ["k"]


async def test_case_64_a_half_open_peer_is_noticed_while_writing(
    sshd: OwnSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.sftp, "_TIDY", 0.2)
    root = sshd.directory()
    half, go_on = asyncio.Event(), asyncio.Event()
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root, keepalive_interval=0.1, connect_timeout=2.0)) as backend,
    ):
        source = pausing(some_bytes(LARGE), half, go_on, b"the rest")
        writing = asyncio.create_task(backend.write("k", source, NOTHING))
        await half.wait()
        proxy.black_hole()
        go_on.set()
        with pytest.raises(Unavailable):
            await writing
        proxy.heal()
        await settled(backend)
        assert (await put(backend, "k", b"again")).created
        assert await backend.sweep(0.0) == 1
        assert names(root) == ["k"]


async def test_case_64_a_half_open_peer_is_noticed_while_reading(sshd: OwnSshd) -> None:
    root = sshd.directory()
    (root / "k").write_bytes(some_bytes(LARGE))
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root, keepalive_interval=0.1)) as backend,
    ):
        async with backend.open("k") as chunks:
            await anext(chunks)
            proxy.black_hole()
            with pytest.raises(Unavailable):
                _ = [chunk async for chunk in chunks]
        proxy.heal()
        assert len(await content(backend, "k")) == LARGE


@pytest.mark.parametrize("direction", ["requests", "replies"])
async def test_case_64_one_byte_a_second(
    openssh: Mapping[str, OwnSshd], direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.sftp, "_TIDY", 0.2)
    sshd = openssh["full"]
    root = sshd.directory()
    (root / "there").write_bytes(b"x" * 100)
    async with Proxy.to("127.0.0.1", sshd.port) as proxy:
        reaching = partial(through, proxy, sshd, root)
        for call in (
            partial(put, key="k", data=b"payload"),
            partial(content, key="there"),
            SFTPBackend.health,
        ):
            proxy.heal()
            async with connected(reaching(timeout=0.5)) as backend:
                proxy.slow(direction, rate=1.0)
                with pytest.raises(Unavailable, match="no answer in time"):
                    await call(backend)
        with pytest.raises(Unavailable, match=r"no log-in within 0\.8 s"):
            await SFTPBackend.connect(reaching(connect_timeout=0.8))


async def test_case_64_a_server_that_answers_keepalives_only() -> None:
    with OwnSshd.create() as sshd:
        async with connected(sshd.options(timeout=0.5, keepalive_interval=0.1)) as backend:
            await put(backend, "k", b"payload")
            sshd.suspend_sftp()
            with pytest.raises(Unavailable, match="no answer in time"):
                await content(backend, "k")
            assert await content(backend, "k") == b"payload", "over a new connection"


async def test_case_64_callers_with_less_patience_than_the_session_find_a_silent_one_too() -> None:
    with OwnSshd.create() as sshd:
        options = sshd.options(max_connections=1, channels_per_connection=1, timeout=1.0)
        async with connected(options) as backend:
            await put(backend, "k", b"data")
            sshd.suspend_sftp()
            while True:
                with suppress(TimeoutError, Unavailable):
                    async with asyncio.timeout(0.3):
                        assert await backend.stat("k") is not None
                        break


async def test_case_64_a_cancelled_request_ends_no_session(openssh: Mapping[str, OwnSshd]) -> None:
    options = openssh["full"].options(max_connections=1, channels_per_connection=1, timeout=0.2)
    async with connected(options) as backend:
        await put(backend, "k", b"data")
        for turns in range(4):
            task = asyncio.create_task(backend.stat("k"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with backend._pool.session() as session:
            await asyncio.sleep(2 * options.timeout)
            assert not session.gone
        assert await backend.stat("k") is not None


async def test_case_64_a_slow_fsync_is_waited_for(strace: None) -> None:  # noqa: ARG001 - as above
    with OwnSshd.create(injected("fsync:delay_enter=1000000")) as sshd:
        async with connected(sshd.options(timeout=0.3)) as backend:
            assert (await put(backend, "k", b"payload")).created
        async with connected(sshd.options(timeout=0.3, sync_timeout=0.3)) as backend:
            with pytest.raises(Unavailable, match="no answer in time"):
                await put(backend, "k", b"payload")


async def test_a_cancelled_write_does_not_wait_for_a_peer_that_is_gone(
    sshd: OwnSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.sftp, "_TIDY", 0.2)
    root = sshd.directory()
    half, go_on = asyncio.Event(), asyncio.Event()
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root)) as backend,
    ):
        writing = asyncio.create_task(backend.write("k", pausing(b"half", half, go_on, b""), NOTHING))
        await half.wait()
        proxy.black_hole()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        proxy.heal()
        await settled(backend)
        assert await backend.sweep(0.0) == 1
        assert names(root) == []


async def test_a_cancelled_write_gives_everything_back(sshd: OwnSshd) -> None:
    half, go_on = asyncio.Event(), asyncio.Event()
    root = sshd.directory()
    async with connected(sshd.options(root)) as backend:
        for _ in range(5):
            source = pausing(some_bytes(LARGE), half, go_on, b"")
            writing = asyncio.create_task(backend.write("k", source, NOTHING))
            await half.wait()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            half.clear()
            assert names(root) == []
        sessions = [each for connection in backend._pool._connections for each in connection.sessions]
        assert not any(session.users or session._asking for session in sessions)
        assert len(sessions) == 1, "nobody was in the way of the next one"


class Flipping:
    """Relays one connection and flips a bit of what the client sends once `after` bytes have passed."""

    def __init__(self, port: int, after: int) -> None:
        self._port = port
        self.rest = after

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._relay(reader, server, spoil=True))
                both.create_task(self._relay(answers, writer, spoil=False))
        except* OSError:
            pass
        finally:
            drop(server)
            drop(writer)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, spoil: bool) -> None:
        while data := await source.read(1 << 16):
            if spoil and 0 <= self.rest < len(data):
                data = data[: self.rest] + bytes([data[self.rest] ^ 1]) + data[self.rest + 1 :]
            self.rest -= len(data) if spoil else 0
            sink.write(data)
            await sink.drain()
        sink.close()


async def test_case_66_a_flipped_bit_on_the_way_is_no_object(sshd: OwnSshd) -> None:
    root = sshd.directory()
    flipping = Flipping(sshd.port, after=3 << 20)
    async with await asyncio.start_server(flipping.serve, "127.0.0.1", 0) as relay:
        port = relay.sockets[0].getsockname()[1]
        async with connected(sshd.options(root, port=port)) as backend:
            with pytest.raises(Unavailable):
                await backend.write("k", fed(some_bytes(LARGE)), NOTHING)
            assert flipping.rest < 0
            assert names(root) == []
            assert (await backend.write("k", fed(some_bytes(LARGE)), NOTHING)).created
            assert (root / "k").read_bytes() == some_bytes(LARGE)


async def test_case_67_an_object_cut_short_while_it_is_read(sshd: OwnSshd) -> None:
    root = sshd.directory()
    (root / "k").write_bytes(some_bytes(LARGE))
    async with connected(sshd.options(root)) as backend, backend.open("k") as chunks:
        await anext(chunks)
        os.truncate(root / "k", CHUNK_SIZE)
        with pytest.raises(Unavailable):
            _ = [chunk async for chunk in chunks]


async def test_case_68_an_object_replaced_while_it_is_read_is_read_as_it_was(sshd: OwnSshd) -> None:
    root = sshd.directory()
    old = some_bytes(LARGE)
    (root / "k").write_bytes(old)
    (root / "new").write_bytes(some_bytes(LARGE, seed=2))
    async with connected(sshd.options(root)) as backend, backend.open("k") as chunks:
        begin = await anext(chunks)
        (root / "new").replace(root / "k")
        assert begin + b"".join([chunk async for chunk in chunks]) == old


@pytest.mark.parametrize("how", ["reset", "cut", "killed"])
async def test_case_69_the_connection_drops_in_the_middle_of_a_write(sshd: OwnSshd, how: str) -> None:
    root = sshd.directory()
    half, go_on = asyncio.Event(), asyncio.Event()
    async with (
        Proxy.to("127.0.0.1", sshd.port) as proxy,
        connected(through(proxy, sshd, root)) as backend,
    ):
        source = pausing(some_bytes(LARGE), half, go_on, some_bytes(LARGE))
        writing = asyncio.create_task(backend.write("dir/k", source, NOTHING))
        await half.wait()
        assert len(names(root / "dir")) == 1
        if how == "killed":
            assert sshd.end_sessions()
        else:
            getattr(proxy, how)()
        go_on.set()
        with pytest.raises(Unavailable):
            await writing
        assert names(root / "dir") == [], "removed over a new connection"
        assert (await backend.write("dir/k", single(b"redone"), NOTHING)).created


async def test_case_69_a_server_that_went_away_and_came_back() -> None:
    with OwnSshd.create() as sshd:
        async with connected(sshd.options(connect_timeout=2.0)) as backend:
            await put(backend, "k", b"payload")
            sshd.stop()
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await content(backend, "k")
            with pytest.raises(Unavailable):
                await backend.health()
            sshd.start()
            assert await content(backend, "k") == b"payload"


async def test_case_71_a_log_in_withdrawn_while_a_write_is_under_way() -> None:
    half, go_on = asyncio.Event(), asyncio.Event()
    with OwnSshd.create() as sshd:
        allowed = sshd.key.with_name("authorized_keys")
        text = allowed.read_text()
        async with connected(sshd.options(max_connections=1)) as backend:
            source = pausing(some_bytes(LARGE), half, go_on, b"the rest")
            writing = asyncio.create_task(backend.write("k", source, NOTHING))
            await half.wait()
            allowed.write_text("")
            go_on.set()
            assert (await writing).created, "who is in stays in"
            sshd.end_sessions()
            await backend._pool._connections[0].ssh.wait_closed()
            with pytest.raises(PermissionDenied):
                await backend.stat("k")
            allowed.write_text(text)
            assert await backend.stat("k")
