"""Arms failpoints from `TRANSLOAD_FAILPOINTS`. Called by worker/cli.py before anything else runs.

    TRANSLOAD_FAILPOINTS='s3.complete.after=kill@3;file.link.before=raise:OSError:28;ledger.record.before=sleep:5@2'

`NAME=ACTION[@N]`, several separated by `;`. `NAME` may be a pattern (`file.*`). The action happens the N-th time the place
is passed (default 1) and never again; `@N+` makes it happen every time from then on. Actions: `kill` (SIGKILL to this
process), `stop` (SIGSTOP), `raise:TYPE[:ERRNO]` (a built-in exception), `sleep:SECONDS` (the thread sleeps; on the event
loop's thread everything stalls), `note:FILE` (every passage adds the name of the place to the file, one a line; takes no
count).
"""

import builtins
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from backends.failpoints import EVENT

VARIABLE = "TRANSLOAD_FAILPOINTS"

_SYNTAX = re.compile(r"(?P<name>[\w.*?-]+)=(?P<action>[^@;]+)(?:@(?P<count>\d+)(?P<ever>\+)?)?")


class FailpointError(Exception):
    """The variable cannot be understood."""


@dataclass(slots=True)
class Failpoint:
    """One armed place. Threads pass it concurrently, and exactly one of them is the N-th."""

    name: str
    act: Callable[[], None]
    count: int = 1
    ever: bool = False
    passed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reached(self, name: str) -> None:
        """Count, and act when it is time."""
        if not fnmatchcase(name, self.name):
            return
        with self._lock:
            self.passed += 1
            due = self.passed >= self.count if self.ever else self.passed == self.count
        if due:
            self.act()


@dataclass(slots=True)
class Recorder(Failpoint):
    """Notes every passage, for a run that finds out which places a load passes and how often."""

    file: Path = Path(os.devnull)

    def reached(self, name: str) -> None:
        """Write the name down."""
        if fnmatchcase(name, self.name):
            # Opened anew each time: nothing is buffered that a kill could take along.
            with self.file.open("a", encoding="utf-8") as notes:
                notes.write(f"{name}\n")


def parse(text: str) -> tuple[Failpoint, ...]:
    """The failpoints of one variable. Raises `FailpointError` with what is wrong."""
    return tuple(_one(part.strip()) for part in text.split(";") if part.strip())


def arm(failpoints: tuple[Failpoint, ...]) -> None:
    """Act at these places from now until the process ends: an audit hook cannot be taken back."""
    if not failpoints:
        return

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == EVENT:
            for each in failpoints:
                each.reached(str(args[0]))

    sys.addaudithook(hook)


def _one(text: str) -> Failpoint:
    found = _SYNTAX.fullmatch(text)
    if found is None:
        raise FailpointError(f"{VARIABLE}: {text!r} is not NAME=ACTION[@N[+]]")
    kind, _, file = found["action"].partition(":")
    if kind == "note" and file and not found["count"]:
        return Recorder(found["name"], _nothing, file=Path(file))
    return Failpoint(
        found["name"], _action(found["action"]), int(found["count"] or 1), ever=found["ever"] is not None
    )


def _action(text: str) -> Callable[[], None]:
    kind, *arguments = text.split(":")
    if kind == "kill" and not arguments:
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop" and not arguments:
        return lambda: os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "sleep" and len(arguments) == 1 and re.fullmatch(r"\d+(\.\d+)?", arguments[0]):
        return lambda: time.sleep(float(arguments[0]))
    if kind == "raise" and 1 <= len(arguments) <= 2:
        return _raiser(*arguments)
    raise FailpointError(
        f"{VARIABLE}: no action {text!r}; use kill, stop, raise:TYPE[:ERRNO], sleep:SECONDS or note:FILE"
    )


def _nothing() -> None:
    """What a recorder does besides."""


def _raiser(name: str, number: str = "") -> Callable[[], None]:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or not (number.isdecimal() or not number):
        raise FailpointError(f"{VARIABLE}: {name}:{number} is no built-in exception with an error number")
    arguments = (int(number), os.strerror(int(number))) if number else (f"{VARIABLE} says so",)

    def act() -> None:
        raise kind(*arguments)

    return act
