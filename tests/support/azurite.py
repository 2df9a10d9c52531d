"""Azurite, Microsoft's emulator of Azure Blob Storage, from npm. Used by tests/conftest.py (fixture `azurite`)."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError

from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive, fetch

VARIABLE = "TRANSLOAD_TEST_AZURITE_URL"
RELEASE = "3.35.0"
INTEGRITY = "sha512-GzKmi+/5U0baNRjEEVtBMLpLuIKEJ0uSh0VWBzOI4qe4f5ziJyoZQmcTO7QhxZTF6+rphj7TZS3PtJY7uiiacA=="
"""Of the package, as npm checks it; its own dependencies are not pinned."""
COMMAND = (
    f"docker run -d -p 10000:10000 mcr.microsoft.com/azure-storage/azurite:{RELEASE} azurite-blob --blobHost 0.0.0.0 "
    f"--skipApiVersionCheck && export {VARIABLE}=http://127.0.0.1:10000/devstoreaccount1"
)
START_SECONDS = 60.0
INSTALL_SECONDS = 300
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class AzuriteEndpoint:
    """What a client of Azurite needs. The key is the one that every Azurite has."""

    account_url: str
    account: str = "devstoreaccount1"
    account_key: str = (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )


class Azurite:
    """The Azurite of one test run."""

    name = "azurite"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._closing = ExitStack()

    def start(self) -> Running:
        """From the environment, else installed (about 20 seconds, once) and started (about one)."""
        if given := os.environ.get(VARIABLE):
            url = given.rstrip("/")
            try:
                return Running(url, _version(url), "environment")
            except OSError as exc:
                raise NotAvailable(f"{VARIABLE}={url} does not answer ({exc})", COMMAND) from exc
        program = self._install()
        port = free_port()
        data, slot = self._data_directory()
        where = ["--location", str(data / "store"), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        server = Server.start(
            ["node", str(program), "--silent", "--skipApiVersionCheck", "--disableTelemetry", *where],
            log=data / "server.log",
            environment=environment_without("AZURE_", "AZURITE_", "NODE_", "TRANSLOAD_"),
            hold=[slot],
        )
        self._closing.callback(server.stop)
        url = f"http://127.0.0.1:{port}/devstoreaccount1"
        return Running(url, _wait(server, url), "started here")

    def stop(self) -> None:
        self._closing.close()

    def _data_directory(self) -> tuple[Path, IO[str]]:
        """An empty data directory no other run uses, and its lock. What a killed run left there goes now."""
        number = 0
        while True:
            data = self._home / "data" / f"azurite-{number}"
            data.mkdir(parents=True, exist_ok=True)
            lock = self._closing.enter_context((data / "lock").open("w", encoding="utf-8"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                number += 1
            else:
                store = data / "store"
                shutil.rmtree(store, ignore_errors=True)
                store.mkdir()
                self._closing.callback(shutil.rmtree, store, ignore_errors=True)
                return data, lock

    def _install(self) -> Path:
        """The server of blobs alone: the package has one for queues and one for tables besides."""
        npm = _npm()
        directory = self._home / f"azurite-{RELEASE}"
        program = directory / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        stamp = directory / "installed"
        with exclusive(self._home / "azurite.lock"):
            # The stamp is written last, so an install that was interrupted is done anew.
            if stamp.exists():
                return program
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            print(
                f"installing Azurite {RELEASE} into {directory} (about 20 seconds, once)", file=sys.__stderr__
            )
            command = [
                npm,
                "install",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(directory),
                f"azurite@{RELEASE}",
            ]
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=INSTALL_SECONDS,
                    env=_trusting_as_the_machine_does(),
                )
            except subprocess.TimeoutExpired as exc:
                raise NotAvailable(f"{' '.join(command)} took over {INSTALL_SECONDS} s", COMMAND) from exc
            if done.returncode:
                raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)
            locked = json.loads((directory / "package-lock.json").read_text(encoding="utf-8"))
            if (brought := locked["packages"]["node_modules/azurite"]["integrity"]) != INTEGRITY:
                raise NotAvailable(f"npm brought another Azurite than was expected: {brought}", COMMAND)
            stamp.touch()
        return program


def _trusting_as_the_machine_does() -> dict[str, str]:
    """Node has a list of authorities of its own, in which those that were added to the machine's are missing."""
    authorities = {"NODE_EXTRA_CA_CERTS": str(AUTHORITIES)} if AUTHORITIES.exists() else {}
    return {**authorities, **os.environ}


def _wait(server: Server, url: str) -> str:
    """Poll until it answers. Returns its version."""
    deadline = time.monotonic() + START_SECONDS
    while server.alive and time.monotonic() < deadline:
        try:
            return _version(url)
        except OSError:
            time.sleep(0.05)
    raise NotAvailable(f"it did not start; {server.log} ends:\n{server.last_lines()}\n", COMMAND)


def _npm() -> str:
    """Debian's packages where there is none."""
    for _ in range(2):
        if shutil.which("node") and (npm := shutil.which("npm")):
            return npm
        if not apt.can_install():
            raise NotAvailable("needs node and npm", COMMAND)
        try:
            apt.install("npm")
        except OSError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
    raise NotAvailable("the package npm brought no node and npm", COMMAND)


def _version(url: str) -> str:
    """As the header of any answer says: `Azurite-Blob/3.35.0`. A request without credentials is refused. Raises `OSError`."""
    try:
        fetch(f"{url}?comp=list")
    except HTTPError as exc:
        with exc:
            return str(exc.headers.get("Server", "")).partition("/")[2] or "unknown"
    return "unknown"
