"""Dependency groups of pyproject.toml in environments of their own below `.services/`: they are larger than all the tests need besides.

Called by the services beside it (mkdocs.py, supply.py).
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.services import ROOT, NotAvailable, exclusive

INSTALL_SECONDS = 600


def wanted(group: str) -> list[str]:
    """The requirements of a dependency group."""
    listed: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "dependency-groups"
    ][group]
    return listed


def programs(home: Path, name: str, group: str, command: str) -> Path:
    """The `bin` of an environment `name` below `home` that has the group: made once, and anew when the group or the place has changed.

    Raises `NotAvailable`, which tells `command`.
    """
    # Programs hold the path of their Python: it must not be one by way of a link that may go.
    directory = home.resolve() / name
    stamp, listed = directory / "installed", wanted(group)
    with exclusive(home / f"{name}.lock"):
        # The stamp is written last, so an install that was interrupted is done anew.
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(listed) or _moved(directory):
            shutil.rmtree(directory, ignore_errors=True)
            print(f"installing {' '.join(listed)} into {directory} (seconds, once)", file=sys.__stderr__)
            run([sys.executable, "-m", "venv", str(directory)], command)
            run([str(directory / "bin/python"), "-m", "pip", "install", "--quiet", *listed], command)
            stamp.write_text("\n".join(listed), encoding="utf-8")
    return directory / "bin"


def _moved(directory: Path) -> bool:
    """Whether the environment was made in another place, so that its programs do not start."""
    return str(directory) not in (directory / "bin/pip").read_text(encoding="utf-8")


def run(typed: list[str], command: str) -> None:
    """Raises `NotAvailable`, which tells `command`, when what was typed fails or does not end."""
    try:
        done = subprocess.run(typed, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise NotAvailable(f"{' '.join(typed)} took over {INSTALL_SECONDS} s", command) from exc
    if done.returncode:
        raise NotAvailable(f"{' '.join(typed)} failed: {done.stderr.strip()[-500:]}", command)
