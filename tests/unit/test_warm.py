"""Forked commands are what a command started from nothing is."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support import warm

ITSELF = """
import json, os, signal, sys, threading
sys.stderr.write("aside")
print(json.dumps({
    "arguments": sys.argv,
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:3],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "group": os.getpgid(0),
    "main": __name__,
    "path": sys.path[0],
    "read": sys.stdin.read(),
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "masked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": threading.active_count(),
    "umask": oct(os.umask(0)),
}))
"""


def run(
    code: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    begin: object = warm.start,
) -> "subprocess.CompletedProcess[str]":
    assert callable(begin)
    with ExitStack() as stack:
        given, out, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(b"words")
        given.seek(0)
        process: warm.Process = begin(
            [sys.executable, "-c", code, *arguments],
            os.environ if environment is None else environment,
            stdin=given.fileno(),
            stdout=out.fileno(),
            stderr=errors.fileno(),
        )
        status = process.wait(60)
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read().decode(), errors.read().decode())


def test_it_finds_what_one_that_starts_from_nothing_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("")  # so that the folder and the umask are not those the source started with
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "TRANSLOAD_HOME": "é", "AWS_REGION": "none"}
    kept = os.umask(0o027)
    try:
        forked, plain = (
            run(ITSELF, "a", "b c", environment=environment, begin=begin)
            for begin in (warm.start, warm.tethered)
        )
    finally:
        os.umask(kept)
    assert json.loads(forked.stdout) == json.loads(plain.stdout)
    assert (forked.returncode, forked.stderr) == (plain.returncode, plain.stderr) == (0, "aside")
    assert json.loads(forked.stdout)["folder"] == str(tmp_path)
    assert json.loads(forked.stdout)["umask"] == "0o27"


ENDS = {
    "a number": "raise SystemExit(3)",
    "words": "import sys; sys.exit('no')",
    "nothing said": "raise SystemExit",
    "an exception": "1 / 0",
    "exit functions": "import atexit; atexit.register(print, 'bye'); print('hello')",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()",
    "a signal": "import os, signal; print('lost'); os.kill(os.getpid(), signal.SIGKILL)",
    "an interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "lost words": "import os; print('lost'); os.close(1)",
}


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_one_that_starts_from_nothing_ends(end: str) -> None:
    forked, plain = (run(ENDS[end], begin=begin) for begin in (warm.start, warm.tethered))
    assert (forked.returncode, forked.stdout) == (plain.returncode, plain.stdout)
    last = [each.stderr.strip().rpartition("\n")[2] for each in (forked, plain)]
    assert last[0] == last[1] or end == "lost words"


def started(code: str, **environment: str) -> warm.Process:
    with Path(os.devnull).open("r+b") as nothing:
        return warm.start(
            [sys.executable, "-c", code],
            {**os.environ, **environment},
            stdin=nothing.fileno(),
            stdout=nothing.fileno(),
            stderr=nothing.fileno(),
        )


def test_several_at_once_are_waited_for_by_any_thread() -> None:
    processes = [started(f"raise SystemExit({number})") for number in range(5)]
    with ThreadPoolExecutor(10) as threads:
        waits = [threads.submit(process.wait, 60) for process in processes * 2]
        assert [wait.result() for wait in waits] == [*range(5)] * 2


def test_one_that_is_signalled_is_gone_when_its_status_is_there() -> None:
    process = started("import signal; signal.pause()")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.terminate()
    assert process.wait(60) == process.returncode == -signal.SIGTERM
    assert not psutil.pid_exists(process.pid)
    process.kill()


@pytest.mark.parametrize(
    ("name", "fitting"),
    [
        ("TRANSLOAD_CONFIG", True),
        ("AWS_PROFILE", True),
        ("PYTHONHASHSEED", False),
        ("LC_ALL", False),
        ("HOME", False),
    ],
)
def test_what_a_library_may_have_read_before_takes_a_process_from_nothing(name: str, fitting: bool) -> None:
    process = started("", **{name: "1"})
    assert process.wait(60) == 0
    assert isinstance(process, warm.Forked) is fitting


def test_so_does_what_is_missing() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PATH"}
    done = run("import os; print('PATH' in os.environ)", environment=environment)
    assert done.stdout == "False\n"
