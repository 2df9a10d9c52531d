"""The command as process 1 of a container: signals without a handler never arrive there (pid_namespaces(7))."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli import Transload
from tests.support.processes import free_port
from tests.support.services import fetch
from tests.support.workers import Worker, Workers, workers


class First(Transload):
    """Runs its commands in a PID namespace of their own; who may not make one takes a user namespace with it."""

    def command(self, *arguments: str | Path) -> list[str]:
        unshare = shutil.which("unshare")
        assert unshare is not None
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        return [unshare, *user, "--pid", "--fork", "--kill-child", *super().command(*arguments)]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Workers]:
    with workers(First(tmp_path / "home"), tmp_path / "logs") as pool:
        yield pool


def first(unshare: Worker) -> psutil.Process:
    """Process 1 of the namespace, once it catches SIGTERM."""
    unshare.until(lambda: bool(psutil.Process(unshare.pid).children()))
    (process,) = psutil.Process(unshare.pid).children()
    unshare.until(lambda: catches(process.pid, signal.SIGTERM))
    return process


def catches(pid: int, number: signal.Signals) -> bool:
    """SigCgt of proc_pid_status(5)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        fetch(f"http://127.0.0.1:{port}/readyz")
        return True
    return False


def test_a_worker_drains(pool: Workers) -> None:
    port = free_port()
    worker = pool.start("run", environ={"TRANSLOAD_ADMIN__PORT": str(port)})
    process = first(worker)
    worker.until(lambda: ready(port))
    process.terminate()
    assert worker.wait() == 0, worker.tail()
    assert worker.says("0 messages done")


def test_it_ends_while_it_is_still_starting(tmp_path: Path) -> None:
    settings = tmp_path / "transload.yaml"
    os.mkfifo(settings)  # nobody writes: it does not get further than here
    with workers(First(tmp_path / "home", settings), tmp_path / "logs") as pool:
        worker = pool.start("run")
        first(worker).terminate()
        assert worker.wait() == 128 + signal.SIGTERM, worker.tail()


def test_a_command_that_drains_nothing_ends_at_once(pool: Workers) -> None:
    command = pool.start("completions", "--follow")
    process = first(command)
    command.until((pool.transload.home / "completions.db").exists)
    process.terminate()
    assert command.wait() == 128 + signal.SIGTERM, command.tail()
