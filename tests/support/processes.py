"""A server process that cannot outlive the test run that started it.

`Server.start` runs the command under a keeper: this same file as a script, which holds the read end of a pipe whose
write end only the test run has. The pipe closes however the run ends - normally, by Ctrl-C, by SIGKILL - and then the
keeper stops the server's process group, with TERM first (or the signal the server wants) and KILL after a grace. Used by
the services beside it.

Standard library only: the keeper runs without the project's packages.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

GRACE = 10.0
"""Seconds between TERM and KILL."""
_RESERVED = 300.0
"""Seconds for which a port is given to nobody else."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its keeper, and where its output goes."""

    keeper: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        hold: Sequence[IO[str]] = (),
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> Self:
        """Start `command` in a process group of its own. `hold` are lock files that stay locked until it has ended.

        `stop_signal` is what ends the server in order: PostgreSQL waits for its clients after TERM, not after INT.
        """
        with log.open("wb") as output:
            keeper = subprocess.Popen(
                [sys.executable, "-I", __file__, str(stop_signal.value), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=[file.fileno() for file in hold],
            )
        return cls(keeper, log)

    @property
    def alive(self) -> bool:
        return self.keeper.poll() is None

    def stop(self) -> None:
        """Close the pipe and wait until the whole group is gone. Calling it twice is harmless."""
        if self.keeper.stdin is not None:
            self.keeper.stdin.close()
        self.keeper.wait(GRACE * 2)

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, for the message that says why the server did not start."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, and that no other test process is given meanwhile.

    Some servers take a quarter of a minute until they listen.
    """
    told = Path(tempfile.gettempdir()) / f"transload-test-ports-{os.getuid()}"
    with told.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        now = time.time()
        given = [line.split() for line in file]
        recent = {port: at for port, at in given if now - float(at) < _RESERVED}
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if str(port) not in recent:
                break
        recent[str(port)] = f"{now:.0f}"
        file.truncate(0)
        file.writelines(f"{port} {at}\n" for port, at in recent.items())
        return port


def keep(stop_signal: int, command: Sequence[str]) -> int:
    """Run `command` until it ends or standard input closes, then leave nothing of its group behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the pipe decides: a Ctrl-C meant for pytest must not race with its orderly end.
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        restore_signals=True,
        # An ignored signal stays ignored across exec, and TERM has to reach the server.
        preexec_fn=_default_signals,  # noqa: PLW1509 - the keeper has one thread
    )
    os.set_blocking(0, False)
    while child.poll() is None and not _closed():
        time.sleep(0.05)
    deadline = time.monotonic() + GRACE
    _signal_group(child.pid, stop_signal)
    while time.monotonic() < deadline and _group_exists(child):
        time.sleep(0.05)
    _signal_group(child.pid, signal.SIGKILL)
    return child.wait()


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _closed() -> bool:
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_exists(leader: "subprocess.Popen[bytes]") -> bool:
    leader.poll()  # reaps the leader, which would count as a member for as long as it is a zombie
    try:
        os.killpg(leader.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
