"""What is the SFTP backend's own: log-in, host keys, names and links, the pool, the order of a commit."""

import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from pydantic import ValidationError

from backends.base import single
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
from backends.sftp import SFTPBackend
from backends.sftp_client import SFTPOptions
from backends.sftp_commit import Commit
from backends.testing.material import LARGE, NOTHING, each, put, some_bytes
from tests.support.openssh import OwnSshd
from tests.support.sftp_servers import PASSWORD, Forgetful, Polite, Replacing, Stingy, served

MINIMUM: Mapping[str, Any] = {
    "host": "files.example.org",
    "username": "transload",
    "root": "/upload",
    "password": "hidden",
    "host_key": "ssh-ed25519 AAAA",
}


@pytest.fixture
def sshd(openssh: Mapping[str, OwnSshd]) -> OwnSshd:
    return openssh["full"]


@asynccontextmanager
async def connected(options: SFTPOptions) -> AsyncIterator[SFTPBackend]:
    backend = await SFTPBackend.connect(options)
    try:
        yield backend
    finally:
        await backend.aclose()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def content(backend: SFTPBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"password": None}, "a way to log in"),
        ({"private_key": "x", "private_key_file": "/y"}, "not both"),
        ({"known_hosts": "/x"}, "not both"),
        ({"host_key": None}, "verify_host_key: false"),
        ({"root": "relative"}, "root"),
        ({"root": "/n\0l"}, "root"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SFTPOptions(**{**MINIMUM, **changes})


def test_the_location_names_user_host_and_root_and_no_secret() -> None:
    options = SFTPOptions(**MINIMUM)
    assert SFTPBackend.location_of(options) == "sftp://transload@files.example.org/upload/"
    assert "hidden" not in f"{options!r} {options.model_dump_json()}"
    other = SFTPOptions(**{**MINIMUM, "host": "::1", "port": 2222, "root": "/", "username": "a@b"})
    assert other.location == "sftp://a%40b@[::1]:2222/"
    assert not SFTPBackend.features_of(options).server_copy


async def test_case_104_another_host_key_is_refused(sshd: OwnSshd) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with pytest.raises(PermissionDenied, match="host key is not the trusted one"):
        await SFTPBackend.connect(sshd.options(host_key=stranger))


async def test_case_104_a_known_hosts_file_is_read(sshd: OwnSshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n", encoding="utf-8")
    async with connected(sshd.options(host_key=None, known_hosts=known)) as backend:
        await backend.health()
    for text in ("", f"[127.0.0.2]:{sshd.port} {sshd.host_key}\n", f"@revoked * {sshd.host_key}\n"):
        known.write_text(text, encoding="utf-8")
        with pytest.raises(PermissionDenied, match="host key"):
            await SFTPBackend.connect(sshd.options(host_key=None, known_hosts=known))


async def test_case_104_any_host_key_is_taken_only_where_the_options_say_so(sshd: OwnSshd) -> None:
    trusting = sshd.options(host_key=None, verify_host_key=False)
    async with connected(trusting):
        pass
    assert "verify_host_key: false" in (trusting.unverified() or "")
    assert sshd.options().unverified() is None


async def test_a_private_key_as_encrypted_text(sshd: OwnSshd) -> None:
    text = asyncssh.read_private_key(str(sshd.key)).export_private_key(passphrase="open", rounds=50).decode()
    given = {"private_key_file": None, "private_key": text}
    async with connected(sshd.options(**given, passphrase="open")) as backend:
        await backend.health()
    for wrong in ({"passphrase": "shut"}, {}):
        with pytest.raises(StorageError, match="a configured key cannot be used") as raised:
            await SFTPBackend.connect(sshd.options(**given, **wrong))
        assert not raised.value.retryable


async def test_files_that_are_not_there_are_named(sshd: OwnSshd, tmp_path: Path) -> None:
    for name in ("private_key_file", "known_hosts"):
        options = {"host_key": None, "known_hosts": os.devnull, name: tmp_path / "missing"}
        with pytest.raises(StorageError, match="missing"):
            await SFTPBackend.connect(sshd.options(**options))


async def test_a_stranger_s_key_is_refused(sshd: OwnSshd) -> None:
    text = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(PermissionDenied, match="refuses the log-in"):
        await SFTPBackend.connect(sshd.options(private_key_file=None, private_key=text))


@pytest.fixture
def agent_socket(tmp_path: Path) -> Iterator[Path]:
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    with agent.stdout:
        # It tells its address once it listens there.
        assert agent.stdout.readline()
        yield socket
        agent.kill()
        agent.wait()


async def test_keys_of_an_agent(sshd: OwnSshd, agent_socket: Path, tmp_path: Path) -> None:
    options = sshd.options(private_key_file=None, agent_socket=agent_socket)
    with pytest.raises(PermissionDenied):
        await SFTPBackend.connect(options)
    async with asyncssh.connect_agent(str(agent_socket)) as client:
        await client.add_keys([asyncssh.read_private_key(str(sshd.key))])
    async with connected(options) as backend:
        await backend.health()
    with pytest.raises(Unavailable):
        await SFTPBackend.connect(options.model_copy(update={"agent_socket": tmp_path / "nobody"}))


async def test_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(Polite, tmp_path, monkeypatch) as options:
        async with connected(options) as backend:
            await backend.health()
        with pytest.raises(PermissionDenied) as raised:
            await SFTPBackend.connect(SFTPOptions(**{**options.model_dump(), "password": "wr0ng"}))
    assert PASSWORD not in str(raised.value)
    assert "wr0ng" not in str(raised.value)


async def test_a_root_that_is_not_there(sshd: OwnSshd) -> None:
    root = sshd.directory()
    (root / "file").touch()
    for wrong in (root / "missing", root / "file"):
        with pytest.raises(NotFound, match="create it"):
            await SFTPBackend.connect(sshd.options(wrong))


async def test_nobody_listens(sshd: OwnSshd) -> None:
    with pytest.raises(Unavailable):
        await SFTPBackend.connect(sshd.options(port=1))


async def test_nothing_leads_out_of_the_root(sshd: OwnSshd) -> None:
    root, outside = sshd.directory(), sshd.directory()
    (outside / "secret").write_bytes(b"not yours")
    (root / "link").symlink_to(outside)
    (root / "leaf").symlink_to(outside / "secret")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    async with connected(sshd.options(root)) as backend:
        for key in ("link/secret", "leaf", "loop", "loop/x", "fifo"):
            with pytest.raises(InvalidKey):
                await content(backend, key)
            with pytest.raises(InvalidKey):
                await backend.stat(key)
            with pytest.raises(InvalidKey):
                await backend.delete(key)
            with pytest.raises(InvalidKey):
                await put(backend, key, b"overwritten")
        assert [found.key async for found in backend.list()] == []
        assert [found.key async for found in backend.list("link/")] == []
        assert await backend.sweep(0.0, "link/") == 0
    assert names(root) == ["fifo", "leaf", "link", "loop"]
    assert (outside / "secret").read_bytes() == b"not yours"


async def test_the_root_itself_may_be_a_link(sshd: OwnSshd) -> None:
    root = sshd.directory()
    link = root.with_name(f"{root.name}-link")
    link.symlink_to(root)
    async with connected(sshd.options(link)) as backend:
        await put(backend, "a/b", b"x")
    assert (root / "a" / "b").read_bytes() == b"x"


@pytest.mark.parametrize(
    "key", [".transload-x.part", "a/.transload-x.part", ".transload-x.part/a", "a/" + "é" * 128, "n" * 256]
)
async def test_names_of_temporary_files_and_long_ones_are_no_keys(sshd: OwnSshd, key: str) -> None:
    async with connected(sshd.options()) as backend:
        for call in (put(backend, key, b"x"), backend.stat(key), backend.delete(key), content(backend, key)):
            with pytest.raises(InvalidKey):
                await call


async def test_an_object_is_no_directory(sshd: OwnSshd) -> None:
    async with connected(sshd.options()) as backend:
        await put(backend, "a", b"x")
        await put(backend, "d/e", b"x")
        with pytest.raises(InvalidKey):
            await put(backend, "a/b", b"x")
        with pytest.raises(InvalidKey):
            await put(backend, "d", b"x")
        assert await backend.stat("a/b") is None
        with pytest.raises(NotFound):
            await content(backend, "d")
        assert await backend.sweep(0.0) == 0


async def test_files_whose_names_are_no_keys_are_passed_over(sshd: OwnSshd) -> None:
    root = sshd.directory()
    (root / "good").touch()
    (root / os.fsdecode(b"b\xffd")).touch()
    async with connected(sshd.options(root)) as backend:
        assert [found.key async for found in backend.list()] == ["good"]


async def test_the_age_of_a_leftover_is_that_of_its_file(sshd: OwnSshd) -> None:
    root = sshd.directory()
    (root / "d").mkdir()
    for path, age in (
        ("d/.transload-a.part", 100),
        ("d/.transload-b.part", 10),
        (".transload-probe-c.part", 100),
    ):
        (root / path).touch()
        os.utime(root / path, (time.time(), time.time() - age))
    async with connected(sshd.options(root)) as backend:
        assert await backend.sweep(50.0, "d/") == 2, "a probe's too, wherever the prefix points"
        assert names(root / "d") == [".transload-b.part"]


async def test_a_write_whose_temporary_file_was_swept_fails_and_may_be_tried_again(sshd: OwnSshd) -> None:
    async with connected(sshd.options()) as backend:

        async def sweeping() -> AsyncIterator[bytes]:
            yield b"half"
            assert await backend.sweep(0.0) == 1
            yield b"the rest"

        with pytest.raises(Unavailable):
            await backend.write("k", sweeping(), NOTHING)
        assert await backend.stat("k") is None
        assert (await put(backend, "k", b"whole")).created


async def test_sessions_are_bounded(sshd: OwnSshd) -> None:
    async with connected(sshd.options(max_connections=2, channels_per_connection=3)) as backend:
        await each([put(backend, f"k{number}", b"x" * 1000) for number in range(40)], at_once=40)
        connections = backend._pool._connections
        assert len(connections) == 2
        assert [len(connection.sessions) for connection in connections] == [3, 3]
        assert not any(session.users for connection in connections for session in connection.sessions)


@pytest.mark.parametrize("configuration", ["MaxSessions 1", "MaxSessions 2"])
async def test_a_server_that_allows_fewer_sessions_is_content_with_them(configuration: str) -> None:
    with OwnSshd.create(configuration=configuration) as sshd:
        async with connected(sshd.options(max_connections=2, channels_per_connection=4)) as backend:
            receipts = await each([put(backend, f"k{number}", b"x") for number in range(20)], at_once=20)
            assert all(receipt.created for receipt in receipts)
            most = int(configuration.split()[1])
            assert [len(each.sessions) for each in backend._pool._connections] == [most, most]


async def test_after_the_end_nothing_is_opened(sshd: OwnSshd) -> None:
    backend = await SFTPBackend.connect(sshd.options())
    await backend.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await put(backend, "k", b"x")


async def test_closing_ends_what_is_under_way(sshd: OwnSshd) -> None:
    backend = await SFTPBackend.connect(sshd.options())
    await put(backend, "k", some_bytes(LARGE))
    async with backend.open("k") as chunks:
        await anext(chunks)
        await backend.aclose()
        with pytest.raises(Unavailable):
            _ = [chunk async for chunk in chunks]


@pytest.mark.parametrize("server", ["full", "bare"])
async def test_a_write_is_synced_before_it_gets_its_name(server: str, strace: None, tmp_path: Path) -> None:  # noqa: ARG001 - it has to be there
    log = tmp_path / "calls"
    extra = "" if server == "full" else " -P hardlink,posix-rename,fsync"
    traced = f"exec strace -f -qq -e trace=openat,write,fsync,link,linkat,rename,unlink -o {log} {{program}}{extra}"
    with OwnSshd.create(traced) as sshd:
        root = sshd.directory()
        async with connected(sshd.options(root, max_connections=1, channels_per_connection=1)) as backend:
            # The probes are over, and the next call is the write's.
            done = len(log.read_text().splitlines())
            await put(backend, "k", b"payload")
    calls = "\n".join(
        line for line in log.read_text().splitlines()[done:] if str(root) in line or "fsync" in line
    )
    temporary = r'"[^"]*/\.transload-\w+-\d+\.part"'
    synced = r".*\n.*fsync\(\d+\) += 0" if server == "full" else ""
    order = rf'openat\(\S+ {temporary}, O_WRONLY\|O_CREAT\|O_EXCL.*{synced}.*\n.*link(at)?\(.*{temporary}.*/k".*= 0\n.*unlink\({temporary}\) = 0'
    assert re.search(order, calls), calls
    assert "rename" not in calls


async def test_case_69_a_server_whose_rename_replaces_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Replacing, tmp_path, monkeypatch) as options:
        with pytest.raises(Unsupported, match="could overwrite"):
            await SFTPBackend.connect(options)
    assert names(tmp_path) == []


async def test_case_69_a_server_that_is_not_openssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_bytes(LARGE)
    async with served(Polite, tmp_path, monkeypatch) as options, connected(options) as backend:
        assert backend._how is Commit.RENAME
        assert (await put(backend, "dir/k", data)).created
        assert not (await put(backend, "dir/k", data)).created
        with pytest.raises(Conflict):
            await backend.write("dir/k", single(b"other"), NOTHING)
        assert await content(backend, "dir/k") == data
        assert await backend.delete("dir/k")
        assert await backend.sweep(0.0) == 0


async def test_case_66_bytes_that_the_server_loses_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Forgetful, tmp_path, monkeypatch) as options, connected(options) as backend:
        with pytest.raises(IntegrityError):
            await put(backend, "k", b"payload")
    assert names(tmp_path) == []


async def test_answers_may_be_shorter_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_bytes(300_001)
    (tmp_path / "k").write_bytes(data)
    async with served(Stingy, tmp_path, monkeypatch) as options, connected(options) as backend:
        assert await content(backend, "k") == data
