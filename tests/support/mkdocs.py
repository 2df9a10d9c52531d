"""MkDocs, from the Python package index, in an environment of its own: the theme is larger than everything else a test needs.

`python -m tests.support.mkdocs` (`make docs`) builds the site into .site/. Used by tests/conftest.py (fixture `mkdocs`).
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.groups import programs
from tests.support.services import HOME, ROOT, NotAvailable, Running, environment_without

VARIABLE = "TRANSLOAD_TEST_MKDOCS"
COMMAND = (
    "python3 -m venv docs-venv && docs-venv/bin/pip install mkdocs-material && "
    f"export {VARIABLE}=$PWD/docs-venv/bin/mkdocs"
)


class MkDocs:
    """The builder of one test run."""

    name = "mkdocs"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._command: Path | None = None

    def start(self) -> Running:
        """The command that the environment names, else one installed here (seconds, once)."""
        given = os.environ.get(VARIABLE)
        self._command = Path(given) if given else programs(self._home, "mkdocs", "docs", COMMAND) / "mkdocs"
        try:
            told = subprocess.run([self._command, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise NotAvailable(f"{self._command} does not work ({exc})", COMMAND) from exc
        version = told.stdout.split()[2]
        return Running("", version, "environment" if given else "started here")

    def stop(self) -> None:
        """It only runs while it builds."""

    def build(self, site: Path, config: Path = ROOT / "mkdocs.yml") -> "subprocess.CompletedProcess[str]":
        """Build strictly: a warning, such as a link that leads nowhere, is an error."""
        assert self._command is not None
        return subprocess.run(
            [self._command, "build", "--strict", "-f", config, "-d", site],
            capture_output=True,
            text=True,
            check=False,
            env=environment_without("PYTHON", "VIRTUAL_ENV") | {"NO_MKDOCS_2_WARNING": "1"},
        )


def main() -> None:
    """Build the site."""
    builder = MkDocs()
    try:
        builder.start()
    except NotAvailable as exc:
        sys.exit(f"MkDocs is not available: {exc}\nget it with: {exc.command}")
    built = builder.build(ROOT / ".site")
    if built.returncode:
        sys.exit(built.stderr + built.stdout)
    print(f"{ROOT / '.site/index.html'}")


if __name__ == "__main__":
    main()
