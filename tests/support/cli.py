"""The `transload` command as a user runs it: a process of its own, in a home of its own.

Its processes are forked from one that has imported everything (tests/support/warm.py); `cold` ones start from nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support import warm

TIMEOUT = 120.0
"""Seconds until a command that hangs fails its test."""


@dataclass(frozen=True, slots=True)
class Transload:
    """Runs commands with `--home`, and with `--config` where there is one."""

    home: Path
    config: Path | None = None
    environ: dict[str, str] = field(default_factory=dict)
    cold: bool = False
    """Start every process from nothing."""

    def command(self, *arguments: str | Path) -> list[str]:
        """The whole command line."""
        config = [] if self.config is None else ["--config", str(self.config)]
        return [sys.executable, "-m", "worker", *config, "--home", str(self.home), *map(str, arguments)]

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever the exit status."""
        command = self.command(*arguments)
        with ExitStack() as stack:
            given, out, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            process = self.begin(command, stdin=given, stdout=out, stderr=errors)
            try:
                status = process.wait(TIMEOUT)
            finally:
                process.kill()
                process.wait()
            for file in (out, errors):
                file.seek(0)
            return subprocess.CompletedProcess(command, status, out.read().decode(), errors.read().decode())

    def ok(self, *arguments: str | Path) -> str:
        """Run to the end; what it printed on stdout. Fails with stderr unless the exit status is 0."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def lines(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """What a command with `--json` printed."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]

    def begin(
        self,
        command: Sequence[str],
        *,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
        environ: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> warm.Process:
        """Start `command` without waiting; `environ` goes over its environment. It ends with the test run at the latest."""
        begin = warm.tethered if cold or self.cold else warm.start
        return begin(
            command,
            {**self.environment(), **(environ or {})},
            stdin=stdin.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )

    def environment(self) -> dict[str, str]:
        """What a command is started with: this environment, less what would configure it, and `environ`."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRANSLOAD_", "OC_"))}
        return inherited | {"TRANSLOAD_ADMIN__PORT": "0"} | self.environ
