"""Servers from Debian's packages, where `make test` runs as root and apt is there. Called by the services beside it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.services import HOME, exclusive

POLICY = Path("/usr/sbin/policy-rc.d")
"""Asked before a package starts its service: https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt"""


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(package: str) -> None:
    """Install the package without starting anything. Raises `OSError` with apt's last words when it cannot be had."""
    command = ["apt-get", "install", "--yes", "--no-install-recommends", package]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"installing the package {package} (once)", file=sys.__stderr__)
    with exclusive(HOME / "apt.lock"), _nothing_started():
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            # A fresh image has no lists of packages, or old ones.
            subprocess.run(["apt-get", "update"], capture_output=True, check=False, env=environment)
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


@contextmanager
def _nothing_started() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
