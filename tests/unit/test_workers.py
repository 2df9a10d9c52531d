"""The process runner of the fault tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli import Transload
from tests.support.services import ROOT
from tests.support.workers import Workers, workers


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Workers]:
    with workers(Transload(tmp_path / "home"), tmp_path / "logs") as pool:
        yield pool


def test_a_worker_is_stopped_continued_and_told_to_leave(pool: Workers) -> None:
    worker = pool.start("run")
    worker.until((pool.transload.home / "queue.db").exists)
    worker.stop()
    assert worker.stopped
    assert worker.alive
    worker.cont()
    worker.until(lambda: not worker.stopped)
    usage = worker.usage()
    assert usage.rss > 10 << 20
    assert usage.fds > 3
    worker.until(lambda: worker.drains)
    worker.terminate()
    assert worker.wait() == 0, worker.tail()
    assert worker.says("0 messages done")


def test_a_killed_worker_is_gone_and_so_are_stopped_ones_at_the_end(tmp_path: Path) -> None:
    with workers(Transload(tmp_path / "home"), tmp_path / "logs") as pool:
        killed, stopped = pool.start("run"), pool.start("run")
        killed.kill()
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        stopped.stop()
        assert pool.alive == [stopped]
    assert not psutil.pid_exists(stopped.pid)


def test_a_worker_that_ends_too_early_fails_with_its_log(pool: Workers) -> None:
    worker = pool.start("no-such-command")
    with pytest.raises(AssertionError, match="No such command"):
        worker.until(lambda: False)
    assert worker.wait() == 2


def test_a_failpoint_kills_the_worker(pool: Workers) -> None:
    worker = pool.start("run", failpoints="sqlite.commit.before=kill")
    assert worker.wait() == -signal.SIGKILL, worker.tail()


OUTLIVED = """
import sys, time
from pathlib import Path
from tests.support.cli import Transload
from tests.support.workers import Workers
home = Path(sys.argv[1])
worker = Workers(Transload(home), home).start("run", cold=sys.argv[2] == "cold")
worker.until(lambda: worker.drains)
print(worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["warm", "cold"])
def test_no_worker_outlives_a_test_run_that_is_killed(tmp_path: Path, kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OUTLIVED, tmp_path, kind], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        worker = psutil.Process(int(run.stdout.readline()))
        os.kill(run.pid, signal.SIGKILL)
        psutil.wait_procs([worker], timeout=60)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
