"""Python commands that are there at once: forked from a process that has imported the whole project.

    process = warm.start([sys.executable, "-m", "worker", "run"], environment, stdin=…, stdout=…, stderr=…)

Importing is most of what a short command takes. The processes started here are processes like any other: they have a pid, an
environment, a folder, a umask, streams, signals and an exit status of their own, and they end with the test run. What differs
is their parent, the command line that `ps` shows, and that the interpreter is not taken apart at the end: threads are waited
for, exit functions called and streams flushed, and then they are gone. Tests of how a command starts or ends take a cold one.

Used by tests/support/cli.py and workers.py. This file is also the program that the others are forked from.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tests.support import aws_models, tether

ROOT = Path(__file__).parents[2]
ROOMS = ("worker", "handlers", "backends")
BESIDES = ("alembic.command", "typer.rich_utils", "uuid", "pytest")
"""What the project imports where it needs it, and what the tests' own programs do."""
PATIENCE = 120.0
"""Seconds until a process that does not come fails its test."""
FREE = ("TRANSLOAD_", "OC_", "AWS_", "PYTEST_")
"""Environment variables that nothing reads before a command runs begin so."""


class Process(Protocol):
    """What a test may ask of a process it started: as much of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...

    def terminate(self) -> None: ...


class Forked:
    """A process whose status comes through a pipe: it is not a child of ours."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = os.fdopen(status, "rb", buffering=0)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and self._told(0):
                with self._status:
                    said = self._status.read(16)
                # Whoever would have told us is gone, and took it along.
                self.returncode = int(said) if said else -signal.SIGKILL
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        # The other thread that waits may be the one that reads.
        if self.returncode is None and not self._told(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _told(self, seconds: float | None) -> bool:
        if self._status.closed:
            return True
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))


def start(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> Process:
    """Start `python -m MODULE …` or `python -c CODE …` with exactly that environment, in the current folder.

    The streams are descriptors, which stay the caller's. An environment that Python or a library may have read before the
    command gets a process that starts from nothing.
    """
    source = _source()
    if source.fits(command, environment):
        return source.fork(command, environment, (stdin, stdout, stderr))
    return tethered(command, environment, stdin=stdin, stdout=stdout, stderr=stderr)


def tethered(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> "subprocess.Popen[bytes]":
    """Start a command from nothing. It ends with the thread that started it (tests/support/tether.py)."""
    return subprocess.Popen(
        [sys.executable, "-I", tether.__file__, str(os.getpid()), *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
    )


class Source:
    """Our end of the process that the others are forked from. It ends when this one does, and they with it."""

    def __init__(self, *modules: str) -> None:
        """`modules` are what it imports, instead of everything."""
        self._environment = dict(os.environ)
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(PATIENCE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno()), *modules],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
            )

    def fits(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a process of it differs in nothing that was settled when it started."""
        changed = dict(self._environment.items() ^ environment.items())
        return (
            command[0] == sys.executable
            and command[1] in {"-m", "-c"}
            and all(name.startswith(FREE) for name in changed)
        )

    def fork(
        self, command: Sequence[str], environment: Mapping[str, str], streams: tuple[int, int, int]
    ) -> Forked:
        """A new process."""
        request = json.dumps([command[1:], dict(environment), str(Path.cwd()), _umask()]).encode()
        ours, theirs = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._control, [request], [*streams, theirs])
                answer = self._control.recv(16)
        finally:
            os.close(theirs)
        assert answer, f"nothing to fork from: it ended with {self._process.wait()}"
        return Forked(int(answer), ours)

    def close(self) -> None:
        """End it. Calling it twice is harmless."""
        self._control.close()
        self._process.wait(PATIENCE)


def _umask() -> int:
    """Read where it is written down: to ask the system is to change it for a moment, for every thread."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)


@functools.cache
def _source() -> Source:
    source = Source()
    atexit.register(source.close)
    return source


def _everything() -> Iterator[str]:
    for room in ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not {"__main__", "migrations", "testing"} & {*module.name.split(".")}:
                yield module.name
    yield from BESIDES


def _serve(control: socket.socket) -> tuple[list[Any], list[int]] | None:
    """Fork for every request until nobody asks any more. Returns in the children, with the request and the streams."""
    waking, woken = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    watched: list[socket.socket | int] = [control, waking]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if waking in ready:
            os.read(waking, 1 << 16)
            _tell(running)
        if control in ready:
            request, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not request:
                return None
            *streams, status = descriptors
            parent, pid = os.getpid(), os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for descriptor in (*running.values(), status, waking, woken):
                    os.close(descriptor)
                control.close()
                _tether(parent)
                return json.loads(request), streams
            running[pid] = status
            for stream in streams:
                os.close(stream)
            with suppress(OSError):  # gone since; the next request is the end
                control.send(str(pid).encode())


def _tell(running: dict[int, int]) -> None:
    """Pass on the status of every child that has ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        descriptor = running.pop(pid)
        with suppress(BrokenPipeError):
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(descriptor)


def _tether(parent: int) -> None:
    ctypes.CDLL(None).prctl(tether.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the tether was tied
        os._exit(1)


def _become(request: list[Any], streams: list[int]) -> int:
    """Be that command. Returns its exit status."""
    (kind, what, *arguments), environment, folder, umask = request
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder if kind == "-m" else ""
    sys.argv = [kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), module.__dict__)  # noqa: S102 - the code is the test's own
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return exc.code or 0
        print(exc.code, file=sys.stderr)
        return 1
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is what this process ends of
        sys.excepthook(type(exc), exc, exc.__traceback__)
        return -signal.SIGINT if isinstance(exc, KeyboardInterrupt) else 1
    return 0


def _end(status: int) -> None:
    """As the interpreter ends, without the time it takes to free what goes with the process anyway."""
    threading._shutdown()  # type: ignore[attr-defined] # what multiprocessing does for its forks
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120  # as for any Python whose last words are lost
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


def main(descriptor: int, *modules: str) -> None:
    """Import, then fork. Returns when nobody asks any more."""
    # A Ctrl-C reaches the whole process group; what is forked heeds it again.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules or _everything():
        importlib.import_module(name)
    if not modules:
        aws_models.remember()
        aws_models.parse()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, (
        "a fork takes one thread along, and the locks of all"
    )
    gc.collect()
    # Else every fork's first collection copies most of what was imported.
    gc.freeze()
    if given := _serve(socket.socket(fileno=descriptor)):
        _end(_become(*given))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
