"""strace: a worker killed at its N-th system call of a kind, and the record of what a worker asked of the disk.

Used by tests/faults/strokes.py, tests/faults/power_cut.py and their tests.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import apt
from tests.support.cli import Transload
from tests.support.services import NotAvailable, Running

COMMAND = "apt-get install strace"


class Strace:
    """The tracer, as a row of the service table."""

    name = "strace"

    def start(self) -> Running:
        """From PATH, else Debian's package. Raises `NotAvailable` also where tracing is forbidden."""
        path = shutil.which("strace")
        if path is None:
            with contextlib.suppress(OSError):
                if apt.can_install():
                    apt.install("strace")
            path = shutil.which("strace")
        if path is None:
            raise NotAvailable("no strace on PATH", COMMAND)
        said = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stdout
        tried = subprocess.run([path, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            raise NotAvailable(
                f"strace may not trace here: {tried.stderr.strip()}", "docker run --cap-add SYS_PTRACE …"
            )
        return Running(path, said.split("\n", 1)[0].rpartition(" ")[2], "on PATH")

    def stop(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class Traced(Transload):
    """Runs its commands under strace with these options. Only for commands that end by themselves: strace's death frees them."""

    options: tuple[str, ...] = ()

    def command(self, *arguments: str | Path) -> list[str]:
        strace = shutil.which("strace")
        assert strace is not None
        return [strace, "-f", "-qq", *self.options, *super().command(*arguments)]


def killing(calls: Sequence[str], number: int, paths: Sequence[Path] = ()) -> tuple[str, ...]:
    """Options that kill the process when one of its threads makes one of these calls for the N-th time, on these paths.

    The call is not carried out. strace counts for each thread by itself; each database of a worker has a thread of its own,
    so with its paths given every call on it can be met.
    """
    names = ",".join(calls)
    chosen = [option for path in paths for option in ("-P", str(path))]
    inject = f"inject={names}:signal=KILL:when={number}"
    return ("-o", os.devnull, *chosen, "-e", f"trace={names}", "-e", inject)
