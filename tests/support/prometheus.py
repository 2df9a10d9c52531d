"""Prometheus, which scrapes workers and fires alerts, and promtool. Used by tests/conftest.py (fixture `prometheus`).

Each test starts a server of its own, because what a server scrapes and which rules it has is the matter of the test:

    with prometheus.scraping(tmp_path, {"a": 9464}, rules) as server:
        server.until(lambda: server.query("transload_live == 1"))
"""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without, fetch

COMMAND = "apt-get install --no-install-recommends prometheus"
START_SECONDS = 30.0
PATIENCE = 60.0
"""Seconds until what does not happen fails its test."""
LOOKS = 0.05
JOB = "transload"
"""What the rules call the scrape."""


class Prometheus:
    """The programs, as a row of the service table."""

    name = "prometheus"

    def start(self) -> Running:
        """From PATH, else Debian's package. Raises `NotAvailable`."""
        if None in _programs() and apt.can_install():
            with contextlib.suppress(OSError):
                apt.install("prometheus")
        server, tool = _programs()
        if server is None or tool is None:
            raise NotAvailable("no prometheus and promtool on PATH", COMMAND)
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
        # Releases differ in which of the two streams they tell it on.
        return Running(server, (said.stdout + said.stderr).split()[2], "on PATH")

    def stop(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    """A server that scrapes."""

    url: str
    server: Server

    def query(self, expression: str) -> Sequence[Sample]:
        """What an expression gives now. Fails with the server's words where it is none."""
        return [
            Sample(each["metric"], float(each["value"][1]))
            for each in self._ask(f"query?query={quote(expression)}")["result"]
        ]

    def history(self, expression: str, began: float, ended: float, step: float) -> Any:
        """What it gave from `began` to `ended` (seconds since the epoch): a list of `metric` and `values` each."""
        return self._ask(f"query_range?query={quote(expression)}&start={began}&end={ended}&step={step}")[
            "result"
        ]

    def firing(self, alert: str) -> set[str]:
        """The instances for which the alert fires."""
        return {
            each["labels"]["instance"]
            for each in self._ask("alerts")["alerts"]
            if each["labels"]["alertname"] == alert and each["state"] == "firing"
        }

    def rules(self) -> list[dict[str, Any]]:
        """What it made of the rules: `name`, `health`, `lastError` and more of each."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait for `condition`. Fails with the end of the server's log when it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing after {seconds} s:\n{self.server.last_lines()}"
            time.sleep(LOOKS)

    def _ask(self, path: str) -> Any:
        answer = json.loads(fetch(f"{self.url}/api/v1/{path}", seconds=10))
        assert answer["status"] == "success", answer
        return answer["data"]


def promtool(*arguments: str | Path) -> str:
    """What promtool printed. Fails with it unless the exit status is 0."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def scraping(
    folder: Path, ports: Mapping[str, int], rules: Path, *, every: str = "250ms"
) -> Iterator[PrometheusServer]:
    """A server that scrapes loopback's `ports`, `instance` by their names, and evaluates `rules`, both `every` so often.

    Its first scrape is 5 seconds away, whatever that is: so long it waits for others to tell it of targets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "prometheus.yaml"
    scrape = {
        "job_name": JOB,
        "static_configs": [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in ports.items()
        ],
    }
    often = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    content = {"global": often, "rule_files": [str(rules)], "scrape_configs": [scrape]}
    configuration.write_text(yaml.safe_dump(content), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    server = Server.start(
        [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}",
        ],
        log=folder / "prometheus.log",
        environment=environment_without("TRANSLOAD_", "GO"),
    )
    try:
        started = PrometheusServer(url, server)
        started.until(lambda: _answers(started), START_SECONDS)
        yield started
    finally:
        server.stop()


def _answers(started: PrometheusServer) -> bool:
    assert started.server.alive, started.server.last_lines()
    with contextlib.suppress(OSError):
        fetch(f"{started.url}/-/ready")
        return True
    return False


def _programs() -> tuple[str | None, str | None]:
    return shutil.which("prometheus"), shutil.which("promtool")
