"""OpenSSH's sshd with sftp-server: one a run with a directory a test, and servers of their own for tests that stop or break them.

Used by tests/conftest.py (fixture `openssh`), and directly by tests of faults (`OwnSshd`).
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncssh
import psutil

from backends.sftp_client import SFTPOptions
from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without

COMMAND = "apt-get install --no-install-recommends openssh-server"
START_SECONDS = 20.0
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
)
BARE = ("hardlink", "posix-rename", "fsync", "limits", "statvfs", "fstatvfs", "lsetstat", "copy-data")
"""Requests that a server of the plain draft does not know; it does not offer them either when they are denied with -P."""
PASSWORD = secrets.token_hex(8)


class OwnSshd:
    """A server of the test's own, on which the user of this process may log in with `key`."""

    def __init__(self, base: Path, sftp_server: str = "exec {program}", configuration: str = "") -> None:
        """`base` is an empty directory. `sftp_server` is a shell command with `{program}` for the real one and `{files}`."""
        self._sshd, self._program = _programs()
        self._base = base
        self._server: Server | None = None
        self.port = free_port()
        self.username = pwd.getpwuid(os.geteuid()).pw_name
        self.files = base / "files"
        # A script, because sshd takes the quotes out of what its configuration says.
        script = base / "sftp"
        script.write_text(
            f"#!/bin/sh\n{sftp_server.format(program=self._program, files=self.files)}\n", encoding="utf-8"
        )
        script.chmod(0o755)
        self.files.mkdir()
        self.key = base / "client_key"
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        client_key = asyncssh.generate_private_key("ssh-ed25519")
        for path, key in ((base / "host_key", host_key), (self.key, client_key)):
            key.write_private_key(str(path))
            path.chmod(0o600)
        client_key.write_public_key(str(base / "authorized_keys"))
        self.host_key = host_key.export_public_key().decode().strip()
        (base / "sshd_config").write_text(
            f"""ListenAddress 127.0.0.1:{self.port}
HostKey {base / "host_key"}
AuthorizedKeysFile {base / "authorized_keys"}
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding no
MaxStartups 200
Subsystem sftp {script}
{configuration}
""",
            encoding="utf-8",
        )

    @classmethod
    @contextlib.contextmanager
    def create(cls, sftp_server: str = "exec {program}", configuration: str = "") -> Iterator["OwnSshd"]:
        """A new server that runs; afterwards nothing of it is left. Raises `NotAvailable`."""
        with tempfile.TemporaryDirectory(prefix="transload-sshd-", ignore_cleanup_errors=True) as directory:
            sshd = cls(Path(directory), sftp_server, configuration)
            try:
                sshd.start()
                yield sshd
            finally:
                sshd.stop()

    def start(self) -> str:
        """Start it and wait until it answers (a twentieth of a second); returns what it says it is."""
        if os.geteuid() == 0:
            # Where its unprivileged part is locked in; it refuses to start without.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._server = Server.start(
            [self._sshd, "-D", "-e", "-f", str(self._base / "sshd_config")],
            log=self._base / "server.log",
            environment=environment_without("SSH_", "TRANSLOAD_"),
            # Sessions are no business of its orderly end: they would stay.
            stop_signal=signal.SIGKILL,
        )
        deadline = time.monotonic() + START_SECONDS
        while self._server.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as talk:
                return talk.recv(100).decode().strip()
            time.sleep(0.01)
        raise NotAvailable(f"it did not start; its log ends:\n{self._server.last_lines()}\n", COMMAND)

    def stop(self) -> None:
        """End it and every session. Calling it twice is harmless."""
        if self._server is not None:
            self.end_sessions()
            self._server.stop()

    def end_sessions(self) -> int:
        """Kill what serves the clients; new ones may come. Returns how many processes that were."""
        sessions = self._sessions()
        for process in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(sessions)

    def suspend_sftp(self) -> None:
        """What works on files stops; sshd itself goes on answering, keepalives among it. `end_sessions` ends that."""
        for process in self._sessions():
            if process.name() == "sftp-server":
                process.suspend()

    def _sessions(self) -> list[psutil.Process]:
        """sshd gives each session a group of its own, so killing the server's group does not reach them."""
        if self._server is None or not self._server.alive:
            return []
        (listener,) = psutil.Process(self._server.keeper.pid).children()
        return listener.children(recursive=True)

    def directory(self) -> Path:
        """A new directory, on the server's disk as on ours."""
        path = self.files / secrets.token_hex(6)
        path.mkdir()
        return path

    def options(self, root: Path | None = None, /, **changes: Any) -> SFTPOptions:
        """Options that reach `root`, by default a new directory."""
        wanted: Mapping[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "username": self.username,
            "root": str(root or self.directory()),
            "private_key_file": self.key,
            "host_key": self.host_key,
        }
        return SFTPOptions(**{**wanted, **changes})


class OpenSsh:
    """The OpenSSH of one test run: a complete server and one of the plain draft."""

    name = "openssh"

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._servers: dict[str, OwnSshd] = {}

    def start(self) -> Running:
        """From PATH or Debian's package."""
        self._servers["full"] = self._closing.enter_context(OwnSshd.create())
        self._servers["bare"] = self._closing.enter_context(
            OwnSshd.create(f"exec {{program}} -P {','.join(BARE)}")
        )
        server = self._servers["full"]
        with socket.create_connection(("127.0.0.1", server.port), 5) as talk:
            banner = talk.recv(100).decode()
        return Running(
            f"sftp://127.0.0.1:{server.port}", banner.partition("OpenSSH_")[2].split()[0], "started here"
        )

    def stop(self) -> None:
        self._closing.close()

    @property
    def servers(self) -> Mapping[str, OwnSshd]:
        """`full`, and `bare`, which offers no extension."""
        return MappingProxyType(self._servers)


def _programs() -> tuple[str, str]:
    """sshd, by its absolute path as it insists, and sftp-server. Raises `NotAvailable`."""
    if found := _found():
        return found
    if apt.can_install():
        try:
            apt.install("openssh-server")
        except OSError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
        if found := _found():
            return found
    raise NotAvailable("the programs are not here", COMMAND)


def _found() -> tuple[str, str] | None:
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    sftp = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
    return (sshd, sftp) if sshd and sftp else None
