"""The harness itself: what it reports, and that no server outlives its run."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.localstack import LocalStackEndpoint
from tests.support.services import ROOT, Board, NotAvailable, Running, Shared, exclusive, fetch


class Stub:
    """A service that comes up, or does not."""

    def __init__(self, name: str, outcome: Running | NotAvailable) -> None:
        self.name = name
        self.outcome = outcome
        self.starts = 0
        self.stops = 0

    def start(self) -> Running:
        self.starts += 1
        if isinstance(self.outcome, NotAvailable):
            raise self.outcome
        return self.outcome

    def stop(self) -> None:
        self.stops += 1


def test_the_table_gathers_what_several_processes_had() -> None:
    """As `-n` has it: each process has a board of its own, and sends it home as JSON."""
    there = Running("http://127.0.0.1:1", "1.0", "started here")
    whole = Board()
    for outcome in (there, NotAvailable("no such thing", "get it"), there):
        part = Board()
        try:
            part.demand(Stub("thing", outcome))
        except NotAvailable:
            assert not part.complete
        part.count(["thing", "other"])
        whole.merge(json.loads(json.dumps(part.report())))
    assert not whole.complete, "what one of them missed is missing"
    assert any("NOT AVAILABLE: no such thing; get it with: get it" in line for line in whole.table())
    whole = Board()
    for _ in range(2):
        part = Board()
        part.demand(Stub("thing", there))
        part.count(["thing"])
        whole.merge(json.loads(json.dumps(part.report())))
    assert whole.complete
    assert any(line.split() == ["thing", "1.0", "started", "here", "2"] for line in whole.table())


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_service_is_started_once_and_counted_per_test() -> None:
    board, stub = Board(), Stub("thing", Running("http://127.0.0.1:1", "1.2", "started here"))
    assert [board.demand(stub).version, board.demand(stub).version] == ["1.2", "1.2"]
    board.count(["thing", "tmp_path"])
    board.count(["tmp_path"])
    board.stop()
    assert (stub.starts, stub.stops) == (1, 1)
    assert board.complete
    assert any(line.split() == ["thing", "1.2", "started", "here", "1"] for line in board.table())


def test_a_missing_service_fails_every_time_and_the_table_tells_the_command() -> None:
    board, stub = Board(), Stub("thing", NotAvailable("nobody answers", "apt-get install thing"))
    for _ in range(2):
        with pytest.raises(NotAvailable, match="nobody answers"):
            board.demand(stub)
    assert stub.starts == 1
    assert not board.complete
    assert any(
        "NOT AVAILABLE: nobody answers; get it with: apt-get install thing" in line for line in board.table()
    )


SHARING = """
import sys
from pathlib import Path
from tests.support.services import Board, Running, Shared
class Counted:
    name = "thing"
    def start(self):
        with Path(sys.argv[1], "starts").open("a") as file:
            file.write("x")
        return Running("http://127.0.0.1:1", "1.2", "started here")
    def stop(self):
        pass
board = Board(shared=Shared(Path(sys.argv[1])))
print(board.demand(Counted()).version, flush=True)
sys.stdin.read()
board.stop()
print("left", flush=True)
"""


def test_processes_of_a_run_share_a_service_until_none_of_them_needs_it(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", SHARING, tmp_path],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        first, killed, last = processes
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "1.2\n"
        assert (tmp_path / "starts").read_text(encoding="utf-8") == "x"
        assert first.stdin is not None
        first.stdin.close()
        killed.kill()
        with (tmp_path / "using").open() as using, pytest.raises(BlockingIOError):
            fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert first.poll() is None, "the last one still uses it"
        assert last.stdin is not None
        last.stdin.close()
        for process in (first, last):
            assert process.stdout is not None
            assert process.stdout.read() == "left\n"


def test_what_is_missing_is_missing_for_all(tmp_path: Path) -> None:
    stubs = [Stub("thing", NotAvailable("nobody answers", "get it")) for _ in range(2)]
    boards = [Board(shared=Shared(tmp_path)) for _ in stubs]
    for board, stub in zip(boards, stubs, strict=True):
        with pytest.raises(NotAvailable, match="nobody answers"):
            board.demand(stub)
    assert [stub.starts for stub in stubs] == [1, 0]
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(board.stop) for board in boards]:
            done.result(10)
    assert [stub.stops for stub in stubs] == [1, 1]


def test_one_of_its_own_is_not_shared(tmp_path: Path) -> None:
    stubs = [Stub("thing", Running("http://127.0.0.1:1", "1.2", "started here")) for _ in range(2)]
    boards = [Board(shared=Shared(tmp_path)) for _ in stubs]
    for board, stub in zip(boards, stubs, strict=True):
        board.demand(stub, alone=True)
    assert [stub.starts for stub in stubs] == [1, 1]
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(board.stop) for board in boards]:
            done.result(10)


def test_the_embedded_ones_are_always_listed() -> None:
    assert [line.split()[0] for line in Board().table()] == ["service", "SQLite", "file"]


def test_localstack_runs_what_the_tests_need(localstack: LocalStackEndpoint) -> None:
    states = json.loads(fetch(f"{localstack.endpoint_url}/_localstack/health"))["services"]
    assert {states[name] for name in ("s3", "sqs", "sns", "kms", "sts")} <= {"running", "available"}


RUN = """
import os, sys, time
from pathlib import Path
from tests.support.processes import Server
script = "import os, signal, sys, time; from pathlib import Path; {trap}; Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
server = Server.start([sys.executable, "-c", script, sys.argv[1]], log=Path(sys.argv[1] + ".log"), environment=os.environ)
{then}
"""


@pytest.mark.parametrize(
    "then",
    ["time.sleep(600)", "sys.stdin.read(); server.stop()"],
    ids=["killed", "stopped"],
)
def test_a_server_ends_with_the_run_that_started_it(tmp_path: Path, then: str) -> None:
    pid_file = tmp_path / "pid"
    owner = subprocess.Popen(
        [sys.executable, "-c", RUN.format(then=then, trap="pass"), str(pid_file)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
    )
    try:
        assert until(lambda: pid_file.exists() and pid_file.read_text(encoding="utf-8") != "")
        server = int(pid_file.read_text(encoding="utf-8"))
        assert not gone(server)
        if "stop" in then:
            owner.communicate(timeout=20)
            assert gone(server)
    finally:
        owner.kill()
        owner.communicate()
    assert until(lambda: gone(server))


def test_of_two_installers_one_waits(tmp_path: Path) -> None:
    lock = tmp_path / "install.lock"
    script = "import sys; from pathlib import Path; from tests.support.services import exclusive\nwith exclusive(Path(sys.argv[1])): print('in')"
    with exclusive(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, env=os.environ
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
    assert other.communicate(timeout=20)[0] == b"in\n"


def test_the_run_fails_and_tells_the_command_when_a_service_is_missing() -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"{__file__}::{test_localstack_runs_what_the_tests_need.__name__}",
        ],
        cwd=ROOT,
        env={**os.environ, "TRANSLOAD_TEST_LOCALSTACK_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert (
        "localstack   -        NOT AVAILABLE: TRANSLOAD_TEST_LOCALSTACK_URL=http://127.0.0.1:9 does not answer"
        in run.stdout
    )
    assert "get it with: docker run" in run.stdout
