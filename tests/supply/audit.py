"""pip-audit over requirements.lock: `python -m tests.supply.audit` (`make audit`).

A vulnerability service can be out of reach, and a mirror of the package index can have no vulnerabilities to tell: pip-audit then
says "No known vulnerabilities found". So a release with known holes is asked for along with the lock. Only who knows those is believed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.supply.packages import LOCK, Pin, pins
from tests.support.services import NotAvailable
from tests.support.supply import Supply

KNOWN = Pin("pycrypto", "2.6.1", "", ("0" * 64,))
"""Given up in 2013 with holes that nobody will mend: PYSEC-2017-94 and PYSEC-2018-97."""
SERVICES: Mapping[str, tuple[str, ...]] = {"PyPI's JSON API": ("-s", "pypi"), "OSV": ("-s", "osv")}
"""Asked in this order, and what pip-audit calls them."""
COMMAND = "make audit"


class Unanswered(Exception):
    """No service could be asked; the message says which was, and what came of it."""


class Unfinished(Exception):
    """A service that knows vulnerabilities did not tell of every package."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A known vulnerability of a package in the lock."""

    package: str
    version: str
    ids: tuple[str, ...]
    mended: tuple[str, ...]
    """The versions without it, where there are any."""

    def __str__(self) -> str:
        mended = f"mended in {', '.join(self.mended)}" if self.mended else "not mended yet"
        return f"{self.package} {self.version}: {', '.join(self.ids)}; {mended}"


@dataclass(frozen=True, slots=True)
class Audit:
    """What one service knows of a lock."""

    service: str
    packages: int
    findings: Sequence[Finding]


def audit(tools: Supply, lock: str, services: Mapping[str, tuple[str, ...]] = SERVICES) -> Audit:
    """Ask the first service that answers for all packages of the lock.

    Raises `Unanswered` when none answers, and `Unfinished` when one does but not for everything: a package that the service does
    not know may be one that was taken away.
    """
    packages = pins(lock)
    failures = []
    for name, how in services.items():
        told = _ask(tools, how, [*packages.values(), KNOWN])
        if isinstance(told, str):
            alone = _ask(tools, how, [KNOWN])
            if not isinstance(alone, str) and alone.get(KNOWN.name):
                raise Unfinished(f"{name}: {told}")
            failures.append(f"{name}: {alone if isinstance(alone, str) else told}")
        elif not told.pop(KNOWN.name, None):
            failures.append(f"{name}: answers, and knows no vulnerability of {KNOWN.name} {KNOWN.version}")
        elif missing := set(packages) - set(told):
            raise Unfinished(f"{name}: nothing was said of {', '.join(sorted(missing))}")
        else:
            return Audit(name, len(packages), [finding for found in told.values() for finding in found])
    raise Unanswered("; ".join(failures))


def _ask(tools: Supply, how: tuple[str, ...], packages: Sequence[Pin]) -> dict[str, list[Finding]] | str:
    """What pip-audit found for each package, or why it could not."""
    with tempfile.TemporaryDirectory(prefix="transload-audit-") as folder:
        # Without markers: what only other platforms install is audited too.
        file = Path(folder) / "requirements.txt"
        lines = (f"{pin.name}=={pin.version} --hash=sha256:{pin.hashes[0]}\n" for pin in packages)
        file.write_text("".join(lines), encoding="utf-8")
        # Else packages that the service does not know are passed over, with exit status 0.
        strictly = ("--strict", "--disable-pip", "--require-hashes", "--progress-spinner", "off")
        done = tools.run("pip-audit", *strictly, "--format", "json", *how, "-r", file)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"]
        return said[-1].removeprefix("ERROR:pip_audit._cli:")[:300]
    return {each["name"]: _findings(each) for each in dependencies if "vulns" in each}


def _findings(dependency: Mapping[str, Any]) -> list[Finding]:
    return [
        Finding(
            dependency["name"],
            dependency["version"],
            (vulnerability["id"], *vulnerability["aliases"]),
            tuple(vulnerability["fix_versions"]),
        )
        for vulnerability in dependency["vulns"]
    ]


def main(arguments: Sequence[str] | None = None, tools: Supply | None = None) -> int:
    """The command; its exit status: 0 for an audit without a finding, 1 for any other outcome."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Audit requirements.lock for known vulnerabilities."
    )
    parser.add_argument(
        "--osv-url", help="ask only this service, which speaks OSV's API (https://…/v1/query)"
    )
    parser.add_argument("--lock", type=Path, default=LOCK, help="another lock than requirements.lock")
    parser.add_argument(
        "--where-it-can",
        action="store_true",
        help="where no service answers, say so in one line and end with 0: for machines without the internet",
    )
    asked = parser.parse_args(arguments)
    services = {asked.osv_url: ("-s", "osv", "--osv-url", asked.osv_url)} if asked.osv_url else SERVICES
    try:
        if tools is None:
            tools = Supply()
            tools.start()
        done = audit(tools, asked.lock.read_text(encoding="utf-8"), services)
    except NotAvailable as exc:
        print(f"NOT AUDITED: {exc}; get it with: {exc.command}")
        return 1
    except Unanswered as exc:
        print(f"NOT AUDITED: no vulnerability service answers ({exc}). Where one does: {COMMAND}")
        return 0 if asked.where_it_can else 1
    except Unfinished as exc:
        print(f"NOT AUDITED: {exc}")
        return 1
    for finding in done.findings:
        print(finding)
    print(f"{done.packages} packages audited by {done.service}: {len(done.findings)} known vulnerabilities")
    return 1 if done.findings else 0


if __name__ == "__main__":
    sys.exit(main())
