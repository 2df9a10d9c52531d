"""LocalStack, the AWS services of the tests, from the Python package index: no Docker, no account.

4.14.0 is the last release that needs no account; it runs on Python 3.13 only (on 3.11 and 3.12 it says Ready with every
service in `error`), so 4.12.0 stands in on 3.11. Used by tests/conftest.py.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.processes import Server, free_port
from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive, fetch

VARIABLE = "TRANSLOAD_TEST_LOCALSTACK_URL"
NEEDED = ("s3", "sqs", "sns", "kms", "sts", "cloudwatch", "secretsmanager")
RELEASES = (("3.13", "4.14.0"), ("3.11", "4.12.0"))
"""Python version and the LocalStack release that works on it, the preferred one first."""
PINS = ("cbor2<6", "pyopenssl<26", "cryptography<46", "service-identity")
"""Newer releases of these break LocalStack's imports."""
COMMAND = (
    f"docker run -d -p 4566:4566 localstack/localstack:4.14.0 && export {VARIABLE}=http://127.0.0.1:4566"
)
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class LocalStackEndpoint:
    """What a client of LocalStack needs."""

    endpoint_url: str
    region: str = "us-east-1"
    access_key_id: str = "test"
    secret_access_key: str = "test"


class LocalStack:
    """The LocalStack of one test run."""

    name = "localstack"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._server: Server | None = None
        self._slot: IO[str] | None = None

    def start(self) -> Running:
        """From the environment, else installed (about a minute, once) and started (about five seconds)."""
        if given := os.environ.get(VARIABLE):
            url = given.rstrip("/")
            try:
                return Running(url, _version(_health(url)), "environment")
            except OSError as exc:
                raise NotAvailable(f"{VARIABLE}={url} does not answer ({exc})", COMMAND) from exc
        url = f"http://127.0.0.1:{free_port()}"
        self._server = self._spawn(self._install(), url)
        return Running(url, self._wait(self._server, url), "started here")

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        if self._slot is not None:
            self._slot.close()

    def _install(self) -> Path:
        """The Python of a virtual environment with LocalStack in it."""
        found = next(((p, release) for v, release in RELEASES for p in _pythons(v)), None)
        if found is None:
            raise NotAvailable("needs a Python 3.13 (or 3.11)", COMMAND)
        python, release = found
        wanted = (f"localstack-core[runtime]=={release}", *PINS)
        directory = self._home / f"localstack-{release}"
        inner, stamp = directory / "bin" / "python", directory / "installed"
        with exclusive(self._home / "install.lock"):
            # The stamp is written last, so an install that was interrupted is done anew.
            if stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(wanted):
                return inner
            shutil.rmtree(directory, ignore_errors=True)
            print(
                f"installing LocalStack {release} into {directory} (about a minute, once)",
                file=sys.__stderr__,
            )
            _run([python, "-m", "venv", "--without-pip", str(directory)])
            _run([*_pip(python), "--python", str(inner), "install", "--quiet", *wanted])
            stamp.write_text("\n".join(wanted), encoding="utf-8")
        return inner

    def _spawn(self, python: Path, url: str) -> Server:
        data, self._slot = self._data_directory()
        environment = environment_without("AWS_", "PYTHON", "VIRTUAL_ENV", "TRANSLOAD_")
        host = url.removeprefix("http://")
        environment |= {
            "OVERRIDE_IN_DOCKER": "0",  # else FILESYSTEM_ROOT is ignored
            "FILESYSTEM_ROOT": str(data),
            "GATEWAY_LISTEN": host,
            "LOCALSTACK_HOST": host,
            "SERVICES": ",".join(NEEDED),
            "EAGER_SERVICE_LOADING": "1",
            "SQS_ENDPOINT_STRATEGY": "path",  # else queue URLs name a host that does not resolve
            "SQS_DISABLE_CLOUDWATCH_METRICS": "1",  # else every SQS call is two
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        return Server.start(
            [str(python), "-m", "localstack.runtime.main"],
            log=data / "server.log",
            environment=environment,
            hold=[self._slot],
        )

    def _data_directory(self) -> tuple[Path, IO[str]]:
        """A data directory no other run uses, and its lock. Kept between runs: it caches the service catalogue."""
        number = 0
        while True:
            data = self._home / "data" / f"localstack-{number}"
            data.mkdir(parents=True, exist_ok=True)
            lock = (data / "lock").open("w", encoding="utf-8")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                number += 1
            else:
                return data, lock

    @staticmethod
    def _wait(server: Server, url: str) -> str:
        """Poll until every service says it runs: the log says Ready even when all of them failed. Returns the version."""
        deadline = time.monotonic() + START_SECONDS
        answer: dict[str, object] = {}
        while server.alive and time.monotonic() < deadline:
            try:
                answer = _health(url)
            except OSError:
                time.sleep(0.1)
                continue
            states = _states(answer)
            if all(states.get(name) in {"running", "available"} for name in NEEDED):
                return _version(answer)
            if "error" in states.values():
                break
            time.sleep(0.1)
        raise NotAvailable(
            f"did not start; it says {_states(answer)}; {server.log} ends:\n{server.last_lines()}\n", COMMAND
        )


def _health(url: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(fetch(f"{url}/_localstack/health"))
    return answer


def _states(health: dict[str, object]) -> dict[str, str]:
    states = health.get("services", {})
    return (
        {name: str(state) for name, state in states.items() if name in NEEDED}
        if isinstance(states, dict)
        else {}
    )


def _version(health: dict[str, object]) -> str:
    return str(health.get("version", "unknown"))


def _pythons(version: str) -> Iterator[str]:
    """Interpreters of that version which run, best first. A pyenv shim is on PATH without being one."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"), reverse=True)
    for candidate in (f"python{version}", *map(str, installed), sys.executable):
        path = shutil.which(candidate)
        if path is None:
            continue
        asked = subprocess.run(
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0 and asked.stdout.strip() == version:
            yield path


def _pip(python: str) -> list[str]:
    """A pip that can install into another interpreter's environment (22.3 or newer)."""
    base = str(Path(sys.base_prefix) / "bin" / "python3")
    for candidate in (python, base, "python3"):
        command = [candidate, "-m", "pip"]
        if (
            shutil.which(candidate)
            and subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0
        ):
            return command
    raise NotAvailable("installing it needs a Python with pip", COMMAND)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)
