"""Real `transload` processes for fault tests: started, stopped, killed, looked at, and gone when the test run is.

    with workers(transload, tmp_path / "logs") as pool:
        worker = pool.start("run", failpoints="s3.complete.after=kill")
        assert worker.wait() == -signal.SIGKILL

Start cold ones (tests/support/cli.py) from a thread that outlives them, such as pytest's main one: they die with it.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.cli import Transload
from tests.support.warm import Process

PATIENCE = 60.0
"""Seconds until what does not happen fails its test."""
LOOKS = 0.01
"""Seconds between two looks at a condition."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds; `rss` in bytes."""

    rss: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Worker:
    """One process. Its standard output and error go to `log`."""

    process: Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Also true while it is stopped."""
        return self.process.poll() is None

    @property
    def stopped(self) -> bool:
        """Held by SIGSTOP, ours or a failpoint's."""
        try:
            return self.alive and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    @property
    def drains(self) -> bool:
        """It heeds SIGTERM by now; before, that would just end it (SigCgt of proc_pid_status(5))."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        except FileNotFoundError:
            return False
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Harmless when it is."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread of it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        self.until(lambda: self.stopped)

    def cont(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM: drain. A second one: leave at once."""
        self.process.terminate()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit status, negative for the signal that ended it. Fails with the end of its log when it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"still running after {seconds} s; its log ends:\n{self.tail()}") from exc

    async def ended(self, seconds: float = PATIENCE) -> int:
        """As `wait`, for a test whose event loop must go on (proxies and fakes run there)."""
        return await asyncio.to_thread(self.wait, seconds)

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for `condition`. Fails with the end of the log when the process ends before, or the time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.alive, f"ended with status {self.process.returncode}; its log ends:\n{self.tail()}"
            assert time.monotonic() < deadline, f"nothing after {seconds} s; its log ends:\n{self.tail()}"
            time.sleep(LOOKS)

    def says(self, text: str) -> bool:
        """Whether its log holds `text` by now."""
        return text.encode() in self.log.read_bytes()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def usage(self) -> Usage:
        """What it holds now."""
        process = psutil.Process(self.pid)
        with process.oneshot():
            return Usage(process.memory_info().rss, process.num_fds(), process.num_threads())


@dataclass(slots=True)
class Workers:
    """The processes of one test, in the order of their starts."""

    transload: Transload
    logs: Path
    started: list[Worker] = field(default_factory=list)

    def start(
        self,
        *arguments: str | Path,
        failpoints: str = "",
        environ: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> Worker:
        """Start `transload ARGUMENTS…`; `failpoints` is its TRANSLOAD_FAILPOINTS."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{len(self.started)}.log"
        armed = {"TRANSLOAD_FAILPOINTS": failpoints} if failpoints else {}
        with log.open("wb") as output, Path(os.devnull).open("rb") as nothing:
            process = self.transload.begin(
                self.transload.command(*arguments),
                stdin=nothing,
                stdout=output,
                stderr=output,
                environ={**armed, **(environ or {})},
                cold=cold,
            )
        worker = Worker(process, log)
        self.started.append(worker)
        return worker

    @property
    def alive(self) -> list[Worker]:
        return [worker for worker in self.started if worker.alive]

    def close(self) -> None:
        """Kill what still runs, stopped ones too."""
        for worker in self.alive:
            worker.kill()


@contextmanager
def workers(transload: Transload, logs: Path) -> Iterator[Workers]:
    """A pool of workers of one home and configuration; `logs` is the folder of their logs."""
    pool = Workers(transload, logs)
    try:
        yield pool
    finally:
        pool.close()
