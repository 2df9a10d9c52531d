"""MkDocs, from the Python package index, in an environment of its own: the theme is larger than everything else a test needs.

`python -m tests.support.mkdocs` (`make docs`) builds the site into .site/. Used by tests/conftest.py (fixture `mkdocs`). What draws the
diagrams comes from npm and is put into the site; where there is no npm, browsers get it from unpkg.com, as the theme has it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.groups import programs, run
from tests.support.services import HOME, ROOT, NotAvailable, Running, environment_without, exclusive

VARIABLE = "TRANSLOAD_TEST_MKDOCS"
COMMAND = (
    "python3 -m venv docs-venv && docs-venv/bin/pip install mkdocs-material && "
    f"export {VARIABLE}=$PWD/docs-venv/bin/mkdocs"
)
MERMAID = "mermaid@11.12.0"
"""The theme is made for 11."""
DIGEST = "07e37dfa97b337ccc85365d57eddf99b9706f09db3b59b260d0333b23b343c4b"
"""SHA-256 of its script: it runs in readers' browsers."""
SCRIPT = "assets/javascripts/mermaid.min.js"
"""Where docs/.theme/main.html looks for it in the site."""


class MkDocs:
    """The builder of one test run."""

    name = "mkdocs"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._command: list[str] = []

    def start(self) -> Running:
        """The command that the environment names, else one installed here (seconds, once)."""
        given = os.environ.get(VARIABLE)
        # Not the script `mkdocs`: its first line names the folder it was installed into, and a checkout may be moved.
        self._command = (
            [given]
            if given
            else [str(programs(self._home, "mkdocs", "docs", COMMAND) / "python"), "-m", "mkdocs"]
        )
        try:
            told = subprocess.run([*self._command, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise NotAvailable(f"{' '.join(self._command)} does not work ({exc})", COMMAND) from exc
        version = told.stdout.split("version ")[1].split()[0]
        return Running("", version, "environment" if given else "started here")

    def stop(self) -> None:
        """It only runs while it builds."""

    def build(self, site: Path, config: Path = ROOT / "mkdocs.yml") -> "subprocess.CompletedProcess[str]":
        """Build strictly: a warning, such as a link that leads nowhere, is an error."""
        assert self._command
        built = subprocess.run(
            [*self._command, "build", "--strict", "-f", config, "-d", site],
            capture_output=True,
            text=True,
            check=False,
            env=environment_without("PYTHON", "VIRTUAL_ENV") | {"NO_MKDOCS_2_WARNING": "1"},
        )
        if not built.returncode:
            self._draw(site)
        return built

    def _draw(self, site: Path) -> None:
        """Put the script that draws diagrams into the site, where it can be had."""
        script = self._home / MERMAID.replace("@", "-") / "mermaid.min.js"
        npm = shutil.which("npm")
        with exclusive(self._home / "mermaid.lock"):
            if not script.exists() and npm is not None:
                with tempfile.TemporaryDirectory() as folder:
                    run([npm, "pack", MERMAID, "--silent", "--pack-destination", folder], COMMAND)
                    (archive,) = Path(folder).iterdir()
                    with tarfile.open(archive) as opened:
                        packed = opened.extractfile("package/dist/mermaid.min.js")
                        assert packed is not None
                        text = packed.read()
                        if (found := hashlib.sha256(text).hexdigest()) != DIGEST:
                            raise NotAvailable(
                                f"{MERMAID} is not what it was: its SHA-256 is {found}", COMMAND
                            )
                        script.parent.mkdir(parents=True, exist_ok=True)
                        # By its last name only once it is whole.
                        partial = script.with_suffix(".part")
                        partial.write_bytes(text)
                        partial.rename(script)
        if script.exists():
            (site / SCRIPT).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(script, site / SCRIPT)
        else:
            print("no npm here: browsers will take what draws diagrams from unpkg.com", file=sys.__stderr__)


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
