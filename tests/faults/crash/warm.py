"""Worker processes forked from one that has imported everything: importing is most of what it takes to start one.

They are processes like any other, with the same command line and environment, a pid, a log, signals, an end. The crash matrix
starts thousands of them; those whose recovery it measures are real ones (tests/support/workers.py), and so are all others.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing import process as children
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Lock
from typing import cast

from tests.support import tether
from tests.support.workers import Worker, Workers

IMPORTED = (
    "tests.faults.crash.warm",
    "worker.cli",
    "worker.ledger.postgresql",
    "worker.publishers.rabbitmq",
    "worker.publishers.sqs",
    "worker.queues.rabbitmq",
    "worker.queues.sqs",
    "backends.file",
    "backends.s3",
    "alembic.command",
)


@dataclass(slots=True)
class WarmWorkers(Workers):
    """As `Workers`, started quicker."""

    def start(
        self, *arguments: str | Path, failpoints: str = "", environ: Mapping[str, str] | None = None
    ) -> Worker:
        """As in `Workers`."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{len(self.started)}.log"
        log.touch()
        armed = {"TRANSLOAD_FAILPOINTS": failpoints} if failpoints else {}
        environment = {**self.transload.environment(), **armed, **(environ or {})}
        context = get_context("forkserver")
        context.set_forkserver_preload([*IMPORTED])
        process = context.Process(target=_become, args=(self.transload.command(*arguments), environment, log))
        process.start()
        # Every start looks after all children it knows, on any thread; their status can be read once, and `_Forked` reads it.
        children._children.discard(process)  # type: ignore[attr-defined] # there is no other way to say so
        worker = Worker(cast("subprocess.Popen[bytes]", _Forked(process)), log)
        self.started.append(worker)
        return worker


class _Forked:
    """As much of `subprocess.Popen` as a `Worker` asks for."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self._lock = Lock()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        # The status is read from a pipe, once.
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _become(command: list[str], environment: dict[str, str], log: Path) -> None:
    """In the forked process: be that command, and die with the one it was forked from."""
    from worker.cli import main  # the program itself, which the matrix's own process has no use for

    ctypes.CDLL(None).prctl(tether.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["transload", *command[command.index("worker") + 1 :]]
    main()
