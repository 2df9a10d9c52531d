"""The `transload` command as a user runs it: a process of its own, in a home of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT = 120.0
"""Seconds until a command that hangs fails its test."""


@dataclass(frozen=True, slots=True)
class Transload:
    """Runs commands with `--home`, and with `--config` where there is one."""

    home: Path
    config: Path | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> list[str]:
        """The whole command line."""
        config = [] if self.config is None else ["--config", str(self.config)]
        return [sys.executable, "-m", "worker", *config, "--home", str(self.home), *map(str, arguments)]

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever the exit status."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env=self.environment(),
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def ok(self, *arguments: str | Path) -> str:
        """Run to the end; what it printed on stdout. Fails with stderr unless the exit status is 0."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def lines(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """What a command with `--json` printed."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start without waiting. The caller ends it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment(),
        )

    def environment(self) -> dict[str, str]:
        """What a command is started with: this environment, less what would configure it, and `environ`."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRANSLOAD_", "OC_"))}
        return inherited | {"TRANSLOAD_ADMIN__PORT": "0"} | self.environ
