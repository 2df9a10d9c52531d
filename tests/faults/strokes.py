"""Case 16: a worker is killed at its N-th write, fsync, link, … for one N after the other, until it comes through.

Embedded queue, SQLite, files, one small bundle. tests/faults/crash/ goes through all of it, tests/faults/test_crash_points.py
through a handful.
"""

import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.worlds import (
    Combination,
    Place,
    Services,
    announced_after,
    check,
    open_place,
    publish_small,
)
from tests.support.history import Report
from tests.support.strace import Traced, killing
from tests.support.workers import workers

_DATABASE = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink")


@dataclass(frozen=True, slots=True)
class Stroke:
    """A kind of system call. `file` is the database whose calls are meant; `step`: every so manieth is visited."""

    name: str
    calls: tuple[str, ...]
    file: str = ""
    step: int = 1

    def options(self, place: Place, number: int) -> tuple[str, ...]:
        """For strace."""
        path = place.settings.home / self.file
        paths = [path.with_name(path.name + end) for end in ("", "-wal", "-journal")] if self.file else []
        return killing(self.calls, number, paths)


STROKES = (
    Stroke("target", ("fsync", "linkat", "mkdirat", "mkdir")),
    Stroke("ledger", _DATABASE, "ledger.db", step=3),
    Stroke("queue", _DATABASE, "queue.db", step=3),
    Stroke("completions", _DATABASE, "completions.db", step=3),
    Stroke("wake-ups", ("sendto",), step=3),
)
"""The loop is woken through a socket, hence `sendto`: a kill between what a thread did and what the loop makes of it.

Only SQLite calls fdatasync, and only the file backend fsync."""


@dataclass(frozen=True, slots=True)
class Struck:
    """One worker and what came after it."""

    stroke: Stroke
    number: int
    killed: bool
    recovery: float | None
    report: Report


async def strike(stroke: Stroke, number: int, folder: Path, seed: int, *, measured: bool = False) -> Struck:
    """Kill a worker at that call, let another one carry on, from nothing if that is `measured`, and look."""
    async with open_place(Combination(), Services(), folder) as place:
        load = await publish_small(place, seed)
        transload = place.transload
        traced = Traced(
            transload.home, transload.config, transload.environ, options=stroke.options(place, number)
        )
        with workers(traced, folder / "logs" / "struck") as pool:
            struck = pool.start("run", "--until-idle")
            status = await struck.ended()
        died = time.time()
        with workers(transload, folder / "logs" / "next") as pool:
            following = pool.start("run", "--until-idle", cold=measured)
            assert await following.ended() == 0, following.tail()
        assert status in {0, -signal.SIGKILL}, struck.tail()
        report = await check(place, load, [struck.log, following.log])
        return Struck(stroke, number, status != 0, announced_after(following, died), report)
