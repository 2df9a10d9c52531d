"""Google Cloud Storage for the tests: the emulator as a service, and backends on it and on the strict fake.

The emulator (PyPI: gcp-storage-emulator) knows neither generations nor preconditions; tests/support/strict_gcs.py does.
Used by tests/conftest.py (fixture `gcs`) and by the tests of backends/gcs.py.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.gcs import GcsBackend
from backends.gcs_options import GcsOptions
from tests.support.processes import Server, free_port
from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive, fetch
from tests.support.strict_gcs import StrictGcs, strict_gcs

VARIABLE = "TRANSLOAD_TEST_GCS_URL"
RELEASE = "2026.7.19"
COMMAND = f"pip install gcp-storage-emulator=={RELEASE} && gcp-storage-emulator start --port 9023 & export {VARIABLE}=http://127.0.0.1:9023"
START_SECONDS = 30.0
CHUNK = 1 << 20
"""Of the backends below: small, so that objects of some megabytes take several."""


@dataclass(frozen=True, slots=True)
class GcsEmulator:
    """The emulator that answers at this URL."""

    url: str

    def new_bucket(self) -> str:
        """The name of a fresh, empty bucket. It goes with the server."""
        name = f"test-{secrets.token_hex(8)}"
        # Else every object that a test deletes stays, and is written down again with every change.
        bucket = {"name": name, "softDeletePolicy": {"retentionDurationSeconds": "0"}}
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}/storage/v1/b?project=test",
            json.dumps(bucket).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
        return name


class Gcs:
    """The emulator of one test run."""

    name = "gcs"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._server: Server | None = None

    def start(self) -> Running:
        """From the environment, else installed into an environment of its own (seconds, once) and started."""
        if given := os.environ.get(VARIABLE):
            url = given.rstrip("/")
            try:
                fetch(url)
            except OSError as exc:
                raise NotAvailable(f"{VARIABLE}={url} does not answer ({exc})", COMMAND) from exc
            return Running(url, "unknown", "environment")
        python = self._install()
        port = free_port()
        log = self._home / "data" / f"gcs-{port}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._server = Server.start(
            [
                str(python),
                "-m",
                "gcp_storage_emulator",
                "start",
                "-H",
                "127.0.0.1",
                "--port",
                str(port),
                "-q",
                "-M",
            ],
            log=log,
            environment=environment_without("PYTHON", "VIRTUAL_ENV", "GOOGLE_", "STORAGE_"),
        )
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while self._server.alive and time.monotonic() < deadline:
            with suppress(OSError):
                fetch(url)
                return Running(url, RELEASE, "started here")
            time.sleep(0.02)
        raise NotAvailable(f"it did not start; {log} ends:\n{self._server.last_lines()}\n", COMMAND)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server.log.unlink(missing_ok=True)

    def _install(self) -> Path:
        """The Python of a virtual environment with the emulator in it."""
        directory = self._home / f"gcs-{RELEASE}"
        inner, stamp = directory / "bin" / "python", directory / "installed"
        with exclusive(self._home / "install.lock"):
            # The stamp is written last, so an install that was interrupted is done anew.
            if not stamp.exists():
                shutil.rmtree(directory, ignore_errors=True)
                print(
                    f"installing gcp-storage-emulator {RELEASE} into {directory} (once)", file=sys.__stderr__
                )
                _run([sys.executable, "-m", "venv", str(directory)])
                _run([str(inner), "-m", "pip", "install", "--quiet", f"gcp-storage-emulator=={RELEASE}"])
                stamp.touch()
        return inner


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)


def gcs_options(url: str, **changes: Any) -> GcsOptions:
    """How to reach a store of the tests; `changes` replace single options."""
    return GcsOptions(
        **{
            "bucket": "bucket",
            "endpoint_url": url,
            "anonymous": True,
            "chunk_size": CHUNK,
            "request_timeout": 20.0,
            **changes,
        }
    )


@asynccontextmanager
async def gcs_backend(url: str, **changes: Any) -> AsyncIterator[GcsBackend]:
    """A connected backend, closed afterwards."""
    backend = await GcsBackend.connect(gcs_options(url, **changes))
    try:
        yield backend
    finally:
        await backend.aclose()


@asynccontextmanager
async def strict_backend(**changes: Any) -> AsyncIterator[tuple[GcsBackend, StrictGcs]]:
    """A backend on a strict GCS of its own, and that GCS."""
    async with strict_gcs() as store, gcs_backend(store.url, **changes) as backend:
        yield backend, store
