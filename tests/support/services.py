"""The real services of a test run: how a test gets one, and the table at the end that says what really ran.

A fixture of tests/conftest.py asks the `Board` for a service the first time a test needs it. Processes that share the tests
of a run share its services, too. A service is taken from the environment if its URL is there, else installed below `.services/` of the checkout and started, else every test that
needs it fails with the command that gets it. Nothing is ever skipped.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".services"
"""Where components are installed and keep their data; ignored by git, kept between runs."""


class NotAvailable(Exception):
    """The service can be had neither from the environment nor here. `command` is what a person types to get it."""

    def __init__(self, reason: str, command: str) -> None:
        super().__init__(reason)
        self.command = command


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers."""

    endpoint_url: str
    version: str
    """What the service itself says it is."""
    origin: str
    """`environment` or `started here`."""


class Service(Protocol):
    """One service: how to get it, and how to leave it."""

    @property
    def name(self) -> str:
        """As the table prints it; also the name of the fixture, by which tests are counted."""
        ...

    def start(self) -> Running:
        """Find or start it and wait until it answers. Raises `NotAvailable`."""
        ...

    def stop(self) -> None:
        """Stop what `start` started, also when `start` did not get to its end. Calling it twice is harmless."""
        ...


class Shared:
    """One process's part in the services that all processes of a run use (`pytest -n`).

    Whoever asks for one first starts it. In the run's folder lie a lock and, once it was started, the outcome of each, and a
    lock that every process holds as long as it has tests.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the same one for all of them, and empty at first."""
        self._folder = folder
        self._using = (folder / "using").open("w", encoding="utf-8")
        fcntl.flock(self._using, fcntl.LOCK_SH)

    def start(self, service: Service) -> Running:
        """The service, started here unless another process has. Raises `NotAvailable`, the same for all."""
        told = self._folder / f"{service.name}.json"
        with exclusive(self._folder / f"{service.name}.lock"):
            if not told.exists():
                try:
                    outcome = asdict(service.start())
                except NotAvailable as exc:
                    outcome = {"reason": str(exc), "command": exc.command}
                told.write_text(json.dumps(outcome), encoding="utf-8")
            outcome = json.loads(told.read_text(encoding="utf-8"))
        if "reason" in outcome:
            raise NotAvailable(**outcome)
        return Running(**outcome)

    def leave(self) -> None:
        """Return when no process has tests any more, however it ended. Calling it twice is harmless."""
        if not self._using.closed:
            fcntl.flock(self._using, fcntl.LOCK_UN)
            fcntl.flock(self._using, fcntl.LOCK_EX)
            self._using.close()


@dataclass(slots=True)
class Board:
    """What the tests of this session asked for, and what became of it."""

    shared: Shared | None = None
    """Where other processes have tests of the same run."""
    services: dict[str, Service] = field(default_factory=dict)
    outcomes: dict[str, Running | NotAvailable] = field(default_factory=dict)
    tests: Counter[str] = field(default_factory=Counter)

    def demand(self, service: Service, *, alone: bool = False) -> Running:
        """The running service, started on the first call. Raises `NotAvailable`, the same one every time.

        `alone` is for a service that a test knows more of than its URL: it is this process's own.
        """
        if service.name not in self.outcomes:
            self.services[service.name] = service
            try:
                start = service.start if alone or self.shared is None else partial(self.shared.start, service)
                self.outcomes[service.name] = start()
            except NotAvailable as exc:
                self.outcomes[service.name] = exc
        outcome = self.outcomes[service.name]
        if isinstance(outcome, NotAvailable):
            raise outcome
        return outcome

    def count(self, fixture_names: list[str]) -> None:
        """Note that one test ran with these fixtures."""
        self.tests.update(name for name in fixture_names if name in self.outcomes)

    def report(self) -> dict[str, Any]:
        """Everything the table needs, fit to be sent to another process; `merge` takes it in there."""
        return {
            "outcomes": {
                name: (str(outcome), outcome.command)
                if isinstance(outcome, NotAvailable)
                else (outcome.endpoint_url, outcome.version, outcome.origin)
                for name, outcome in self.outcomes.items()
            },
            "tests": dict(self.tests),
        }

    def merge(self, report: Mapping[str, Any]) -> None:
        """Add what another process's tests had. A service that one of them missed is missing."""
        for name, facts in report["outcomes"].items():
            if len(facts) == 2:
                self.outcomes[name] = NotAvailable(*facts)
            elif not isinstance(self.outcomes.get(name), NotAvailable):
                self.outcomes[name] = Running(*facts)
        self.tests.update(report["tests"])

    def stop(self) -> None:
        """Stop everything that was started here, when nobody uses it any more."""
        if self.shared is not None:
            self.shared.leave()
        for service in self.services.values():
            service.stop()

    @property
    def complete(self) -> bool:
        """Every service that was asked for was there."""
        return not any(isinstance(outcome, NotAvailable) for outcome in self.outcomes.values())

    def table(self) -> Iterator[str]:
        """The lines of the table: service, version, origin, tests."""
        rows = [("service", "version", "how it was got", "tests")]
        for name, outcome in sorted(self.outcomes.items()):
            if isinstance(outcome, NotAvailable):
                rows.append((name, "-", f"NOT AVAILABLE: {outcome}; get it with: {outcome.command}", "0"))
            else:
                rows.append((name, outcome.version, outcome.origin, str(self.tests[name])))
        rows.append(("SQLite", sqlite3.sqlite_version, "embedded", "-"))
        rows.append(("file system", file_system(HOME.parent), "embedded", "-"))
        widths = [max(len(row[column]) for row in rows if row[2][:3] != "NOT") for column in range(3)]
        for row in rows:
            yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])


def file_system(path: Path) -> str:
    """The type of the file system `path` lies on, `unknown` where the kernel has no /proc/mounts."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, fstype, *_ = line.split()
            inside = mount == "/" or path == Path(mount) or Path(mount) in path.parents
            if inside and len(mount) >= len(best):
                best, kind = mount, fstype
    return kind


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold `path` as a lock: of several test runs in one checkout, one installs and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(url: str, *, seconds: float = 2.0) -> bytes:
    """GET without any proxy, whatever the environment says. Raises `OSError`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=seconds) as response:
        body: bytes = response.read()
        return body


def environment_without(*prefixes: str) -> dict[str, str]:
    """This process's environment for a server, less the variables that would reconfigure it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
