"""pip-audit and cyclonedx-py, which judge and list the lock, in an environment of their own.

Used by tests/conftest.py (fixture `supply`) and by tests/supply.
"""

import os
import subprocess
from pathlib import Path

from tests.support.groups import programs, wanted
from tests.support.services import HOME, NotAvailable, Running, environment_without

VARIABLE = "TRANSLOAD_TEST_SUPPLY"
COMMAND = (
    f"python3 -m venv supply-venv && supply-venv/bin/pip install {' '.join(wanted('supply'))} && "
    f"export {VARIABLE}=$PWD/supply-venv/bin"
)


class Supply:
    """The programs of one test run."""

    name = "supply"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._programs: Path | None = None

    def start(self) -> Running:
        """Those in the folder that the environment names, else installed here (half a minute, once)."""
        given = os.environ.get(VARIABLE)
        self._programs = Path(given) if given else programs(self._home, "supply", "supply", COMMAND)
        try:
            told = self.run("pip-audit", "--version")
            told.check_returncode()
        except (OSError, subprocess.CalledProcessError) as exc:
            raise NotAvailable(f"{self._programs}/pip-audit does not work ({exc})", COMMAND) from exc
        return Running("", told.stdout.split()[1], "environment" if given else "started here")

    def stop(self) -> None:
        """Nothing runs on."""

    def run(
        self, program: str, *arguments: str | Path, given: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run `python`, `pip-audit` or `cyclonedx-py` to its end, whatever the exit status; after `start`.

        `given` is its standard input. A developer's settings of them count for nothing.
        """
        assert self._programs is not None
        return subprocess.run(
            [self._programs / program, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            env=environment_without("PYTHON", "VIRTUAL_ENV", "PIP_AUDIT_", "SOURCE_DATE_EPOCH"),
        )
