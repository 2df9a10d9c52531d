"""What an armed failpoint does. An audit hook cannot be taken back, so whatever arms one does it in a child process."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from backends.failpoints import failpoint
from tests.support.services import ROOT
from worker.failpoints import Failpoint, FailpointError, parse

PASS = """
import sys
from backends.failpoints import failpoint
from worker.failpoints import arm, parse
arm(parse(sys.argv[1]))
for number, name in enumerate(sys.argv[2:], 1):
    try:
        failpoint(name)
        print(number, name, flush=True)
    except Exception as exc:
        print(number, repr(exc), flush=True)
"""


def passing(armed: str, *names: str) -> "subprocess.Popen[str]":
    """A process that passes these places one after the other and says so."""
    return subprocess.Popen(
        [sys.executable, "-c", PASS, armed, *names], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def outcome(armed: str, *names: str) -> tuple[int, list[str]]:
    """Its exit status and what it said."""
    with passing(armed, *names) as process:
        said, _ = process.communicate(timeout=60)
        return process.returncode, said.splitlines()


def test_an_unarmed_place_does_nothing() -> None:
    failpoint("file.link.before")


@pytest.mark.parametrize(
    ("armed", "passed"),
    [
        ("a.b.after=kill", 1),
        ("a.b.after=kill@3", 5),
        ("a.*=kill@2", 1),
        ("x.y.before=kill; a.b.after=kill", 1),
    ],
)
def test_kill_is_a_sigkill_at_the_nth_passage(armed: str, passed: int) -> None:
    status, said = outcome(armed, *["a.b.before", "a.b.after"] * 4)
    assert status == -signal.SIGKILL
    assert len(said) == passed


def test_once_means_once_and_a_plus_means_from_then_on() -> None:
    status, said = outcome("a=raise:OSError:28@2;b=raise:ValueError@2+", *"aaabbb")
    assert status == 0
    no_space = repr(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert [line.partition(" ")[2] for line in said] == [
        "a",
        no_space,
        "a",
        "b",
        "ValueError('TRANSLOAD_FAILPOINTS says so')",
        "ValueError('TRANSLOAD_FAILPOINTS says so')",
    ]


@pytest.fixture
def stopping() -> Iterator["subprocess.Popen[str]"]:
    process = passing("a=stop", "b", "a", "c")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_stop_is_a_sigstop_that_a_sigcont_ends(stopping: "subprocess.Popen[str]") -> None:
    _, status = os.waitpid(stopping.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert psutil.Process(stopping.pid).status() == psutil.STATUS_STOPPED
    stopping.send_signal(signal.SIGCONT)
    said, _ = stopping.communicate(timeout=60)
    assert said.splitlines() == ["1 b", "2 a", "3 c"]


def test_sleep_holds_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr("worker.failpoints.time.sleep", naps.append)
    (armed,) = parse("a.b.before=sleep:2.5@2")
    for _ in range(3):
        armed.reached("a.b.before")
    assert naps == [2.5]


def test_of_many_threads_exactly_one_is_the_nth() -> None:
    acted: list[int] = []
    armed = Failpoint("a", lambda: acted.append(1), count=500)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(armed.reached, ["a"] * 1000))
    assert (len(acted), armed.passed) == (1, 1000)


def test_other_places_are_not_counted() -> None:
    (armed,) = parse("s3.*.after=kill@1000")
    for name in ("s3.put.after", "s3.put.before", "file.link.after", "s3.complete.after"):
        armed.reached(name)
    assert armed.passed == 2


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a=",
        "a=explode",
        "a=kill:9",
        "a=sleep",
        "a=sleep:soon",
        "a=raise",
        "a=raise:NoSuchError",
        "a=raise:OSError:ENOSPC",
        "a=raise:print",
        "a=kill@x",
        "a b=kill",
    ],
)
def test_what_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(FailpointError, match="TRANSLOAD_FAILPOINTS"):
        parse(text)


def test_nothing_armed_is_no_failpoint() -> None:
    assert parse("") == ()
    assert parse(" ; ") == ()
