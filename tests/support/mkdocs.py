"""MkDocs, from the Python package index, in an environment of its own: the theme is larger than everything else a test needs.

`python -m tests.support.mkdocs` (`make docs`) builds the site into .site/. Used by tests/conftest.py (fixture `mkdocs`).
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.services import HOME, ROOT, NotAvailable, Running, environment_without, exclusive

VARIABLE = "TRANSLOAD_TEST_MKDOCS"
COMMAND = (
    "python3 -m venv docs-venv && docs-venv/bin/pip install mkdocs-material && "
    f"export {VARIABLE}=$PWD/docs-venv/bin/mkdocs"
)
INSTALL_SECONDS = 600


class MkDocs:
    """The builder of one test run."""

    name = "mkdocs"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._command: Path | None = None

    def start(self) -> Running:
        """The command that the environment names, else one installed here (seconds, once)."""
        given = os.environ.get(VARIABLE)
        self._command = Path(given) if given else self._install()
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

    def _install(self) -> Path:
        """The command in a virtual environment that has the dependency group `docs`."""
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"][
            "docs"
        ]
        directory = self._home / "mkdocs"
        stamp = directory / "installed"
        with exclusive(self._home / "mkdocs.lock"):
            # The stamp is written last, so an install that was interrupted is done anew.
            if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(wanted):
                shutil.rmtree(directory, ignore_errors=True)
                print(f"installing MkDocs into {directory} (seconds, once)", file=sys.__stderr__)
                _run([sys.executable, "-m", "venv", str(directory)])
                _run([str(directory / "bin/python"), "-m", "pip", "install", "--quiet", *wanted])
                stamp.write_text("\n".join(wanted), encoding="utf-8")
        return directory / "bin" / "mkdocs"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise NotAvailable(f"{' '.join(command)} took over {INSTALL_SECONDS} s", COMMAND) from exc
    if done.returncode:
        raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)


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
