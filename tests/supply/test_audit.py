"""`make audit`, with a service on loopback that speaks OSV's API (https://google.github.io/osv.dev/post-v1-query/)."""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.supply.audit import KNOWN, main
from tests.support.supply import Supply

HASH = "--hash=sha256:" + "a" * 64
LOCK = f"aiohttp==3.14.5 \\\n    {HASH}\nyarl==1.25.1 ; sys_platform == 'win32' \\\n    {HASH}\n    # via aiohttp\n"


@dataclass(frozen=True, slots=True)
class Osv:
    """A service that answers what it is told to."""

    url: str
    holes: dict[str, tuple[str, str, str]]
    """By `name==version`: an id, an alias, and the version that mends it."""
    broken: set[str] = field(default_factory=set)
    """Names for which it fails."""
    asked: list[str] = field(default_factory=list)

    def answer(self, name: str, version: str) -> tuple[int, Mapping[str, Any]]:
        self.asked.append(name)
        if name in self.broken:
            return 500, {}
        if (hole := self.holes.get(f"{name}=={version}")) is None:
            return 200, {}
        number, alias, mended = hole
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": mended}]}]
        package = {"ecosystem": "PyPI", "name": name}
        affected = [{"package": package, "ranges": ranges}]
        return 200, {
            "vulns": [{"id": number, "aliases": [alias], "details": "A hole.", "affected": affected}]
        }


@pytest.fixture
def osv() -> Iterator[Osv]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = service.answer(asked["package"]["name"], asked["version"])
            written = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    holes = {f"{KNOWN.name}=={KNOWN.version}": ("PYSEC-2018-97", "CVE-2018-6594", "2.7")}
    service = Osv(f"http://127.0.0.1:{server.server_port}/v1/query", holes)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield service
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK, encoding="utf-8")
    return file


def test_case_110_a_lock_without_known_holes_passes(
    supply: Supply, osv: Osv, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--osv-url", osv.url, "--lock", str(lock)], supply) == 0
    assert capsys.readouterr().out == f"2 packages audited by {osv.url}: 0 known vulnerabilities\n"
    assert sorted(osv.asked) == ["aiohttp", "pycrypto", "yarl"], "what only other platforms install, too"


def test_case_110_a_pin_with_a_known_hole_is_refused(
    supply: Supply, osv: Osv, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.holes["yarl==1.25.1"] = ("PYSEC-2027-1", "CVE-2027-0001", "1.25.2")
    assert main(["--osv-url", osv.url, "--lock", str(lock), "--where-it-can"], supply) == 1
    said = capsys.readouterr().out
    assert said.startswith("yarl 1.25.1: PYSEC-2027-1, CVE-2027-0001; mended in 1.25.2\n")
    assert "1 known vulnerabilities" in said


def test_case_110_a_service_that_knows_no_holes_at_all_is_not_believed(
    supply: Supply, osv: Osv, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.holes.clear()
    assert main(["--osv-url", osv.url, "--lock", str(lock)], supply) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT AUDITED: no vulnerability service answers")
    assert "knows no vulnerability of pycrypto 2.6.1" in said


@pytest.mark.slow
def test_case_110_an_audit_that_is_not_finished_fails_wherever_it_runs(
    supply: Supply, osv: Osv, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.broken.add("yarl")
    assert main(["--osv-url", osv.url, "--lock", str(lock), "--where-it-can"], supply) == 1
    assert capsys.readouterr().out.startswith(f"NOT AUDITED: {osv.url}: ")


def test_case_110_where_no_service_answers_it_says_so_in_one_line(
    supply: Supply, osv: Osv, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    osv.broken.update(("aiohttp", KNOWN.name))
    assert main(["--osv-url", osv.url, "--lock", str(lock), "--where-it-can"], supply) == 0
    said = capsys.readouterr().out
    assert said.startswith("NOT AUDITED: no vulnerability service answers (")
    assert said.endswith(". Where one does: make audit\n")
    assert said.count("\n") == 1
