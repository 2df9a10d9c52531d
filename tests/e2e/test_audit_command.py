"""`transload audit export`: what becomes of a bundle, as somebody who asks gets to see it."""

import asyncio
import csv
import getpass
import hashlib
import io
import json
import os
import re
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support.cli import Transload
from tests.support.postgresql import PostgresqlServer
from worker.audit import COLUMNS
from worker.cli import app
from worker.ledger.database import open_database
from worker.ledger.sql import SqlLedger
from worker.ledger.values import AuditRecord
from worker.queues.base import Dead, OutgoingMessage
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue

OPERATOR = f"cli:{getpass.getuser()}@{socket.gethostname()}"
WORKER = f"worker@{socket.gethostname()}"


@pytest.fixture
def transload(tmp_path: Path) -> Transload:
    return Transload(tmp_path / "home")


def publish(transload: Transload, folder: Path) -> str:
    """A bundle of one file, stored and announced."""
    folder.mkdir()
    (folder / "page.html").write_bytes(b"<p>")
    bid = transload.ok("publish", folder, "--recipe", "fr").strip()
    transload.ok("run", "--until-idle")
    return bid


def export(transload: Transload, *arguments: str | Path) -> Result:
    """The export of that home, in this process: that spares its start."""
    command = ["--home", str(transload.home), "audit", "export", *map(str, arguments)]
    environ: dict[str, str | None] = {name: None for name in os.environ if name.startswith("TRANSLOAD_")}
    return CliRunner().invoke(app, command, env={**environ, **transload.environ})


def exported(transload: Transload, *arguments: str | Path) -> str:
    done = export(transload, *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def begin(transload: Transload) -> None:
    """An empty ledger."""
    assert exported(transload) == ""


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def audit(transload: Transload, *records: AuditRecord) -> None:
    """Rows of somebody else's, in the ledger of that home."""

    async def writing() -> None:
        ledger = SqlLedger(open_database(f"sqlite:///{transload.home}/ledger.db"), actor="=1+1@desk")
        await ledger.audit(records)
        await ledger.aclose()

    asyncio.run(writing())


def test_who_did_what_to_a_bundle(transload: Transload, tmp_path: Path) -> None:
    bid = publish(transload, tmp_path / "in")
    transload.ok("replay", bid)
    done = transload.run("audit", "export", "--bid", bid)
    assert done.returncode == 0
    found = rows(done.stdout)
    assert [(row["action"], row["actor"]) for row in found] == [
        ("stored", WORKER),
        ("completed", WORKER),
        ("published", WORKER),
        ("replayed", OPERATOR),
    ]
    stored = found[0]
    assert tuple(stored) == COLUMNS
    assert (stored["bid"], stored["recipe_id"], stored["target"]) == (bid, "fr", "main")
    assert (stored["size"], stored["sha256"]) == (3, hashlib.sha256(b"<p>").hexdigest())
    assert (transload.home / "storage" / stored["key"]).read_bytes() == b"<p>"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(stored["at"])) < timedelta(minutes=5)
    (completion,) = transload.ok("completions", "--json").splitlines()
    announced = hashlib.sha256(completion.encode()).hexdigest()
    assert [row["sha256"] for row in found[1:3]] == [announced] * 2
    assert hashlib.sha256(done.stdout.encode()).hexdigest() in done.stderr
    assert "4 rows" in done.stderr


def test_dead_letters_that_go_back_or_away(transload: Transload) -> None:
    async def bury() -> None:
        queue = await EmbeddedQueue.connect(EmbeddedOptions(path=transload.home / "queue.db"))
        await queue.send([OutgoingMessage(b"one"), OutgoingMessage(b"two")])
        for message in await queue.receive(2, 5):
            await queue.settle(message, Dead("malformed", "no JSON", "Refused"))
        await queue.aclose()

    begin(transload)
    asyncio.run(bury())
    first, second = (letter["id"] for letter in transload.lines("dlq", "ls"))
    transload.ok("dlq", "redrive", "--all", "--dry-run")
    away = Transload(transload.home, environ={"TRANSLOAD_LEDGER__URL": "postgresql://u:p@127.0.0.1:1/x"})
    assert away.run("dlq", "redrive", "--all").returncode == 1, "nothing is done unnoticed"
    transload.ok("dlq", "redrive", first)
    transload.ok("dlq", "purge", second, "--yes")
    found = rows(exported(transload))
    assert [(row["action"], row["actor"]) for row in found] == [("redriven", OPERATOR), ("purged", OPERATOR)]
    assert [first in found[0]["detail"], second in found[1]["detail"]] == [True, True]
    assert "malformed" in found[0]["detail"]


def test_exports_go_on_where_the_last_one_ended(transload: Transload, tmp_path: Path) -> None:
    publish(transload, tmp_path / "in")
    first = export(transload, "--out", tmp_path / "1.jsonl")
    assert (first.exit_code, first.stdout) == (0, "")
    content = (tmp_path / "1.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() in first.stderr
    audit(transload, AuditRecord("removed"))
    following = re.findall(r"the next export: (--after) (\d+)", first.stderr)[0]
    second = exported(transload, *following)
    assert rows(content.decode()) + rows(second) == rows(exported(transload))
    assert rows(second)
    again = transload.run("audit", "export", "--out", tmp_path / "1.jsonl")
    assert again.returncode == 1
    assert "does not replace" in again.stderr
    assert (tmp_path / "1.jsonl").read_bytes() == content


def test_spans_of_time_that_meet_hold_every_row_once(transload: Transload) -> None:
    begin(transload)
    for _ in range(3):
        audit(transload, AuditRecord("removed"), AuditRecord("removed"))
    everything = exported(transload)
    middle = rows(everything)[-1]["at"]
    before = export(transload, "--until", middle)
    assert f"the next export: --since {middle}" in before.stderr
    behind = exported(transload, "--since", middle)
    assert before.stdout + behind == everything
    assert rows(behind)
    assert exported(transload, "--since", "1h", "--until", "2026-01-01") == ""
    for wrong in (("--since", "yesterday"), ("--format", "xml"), ("--after", "-1")):
        assert export(transload, *wrong).exit_code == 2


def test_a_spreadsheet_takes_nothing_for_a_formula(transload: Transload, tmp_path: Path) -> None:
    begin(transload)
    texts = (
        "=cmd|' /C calc'!A0",
        "+1",
        "-1",
        "@x",
        "\t=1",
        "\r\n=1",
        " =1",
        "\uff1d1",
        "plain",
        'a"b,c',
        "-",
    )
    audit(transload, *(AuditRecord("removed", key=text, size=-1) for text in texts))
    out = tmp_path / "x.csv"
    exported(transload, "--format", "csv", "--out", out)
    found = list(csv.DictReader(io.StringIO(out.read_bytes().decode())))
    assert tuple(found[0]) == COLUMNS
    assert [row["key"] for row in found] == [
        "'=cmd|' /C calc'!A0",
        "'+1",
        "'-1",
        "'@x",
        "\\t=1",
        "\\r\\n=1",
        "' =1",
        "'\uff1d1",
        "plain",
        'a"b,c',
        "'-",
    ]
    assert {row["actor"] for row in found} == {"'=1+1@desk"}
    assert [row["size"] for row in found] == ["-1"] * len(texts)
    assert out.read_bytes().count(b"\n") == len(texts) + 1, "a line a row"
    assert [row["key"] for row in rows(exported(transload))] == list(texts), "JSON is exact"


def test_case_99_an_export_has_no_secrets_of_urls(transload: Transload) -> None:
    begin(transload)
    url = "https://user:canary@example.com/?X-Amz-Signature=canary"
    audit(transload, AuditRecord("stored", url=url, detail=f"from {url}"))
    for form in ("jsonl", "csv"):
        text = exported(transload, "--format", form)
        assert "example.com" in text
        assert "canary" not in text


def test_nothing_is_kept_where_it_is_off(transload: Transload, tmp_path: Path) -> None:
    off = Transload(transload.home, environ={"TRANSLOAD_AUDIT__ENABLED": "false"})
    publish(off, tmp_path / "in")
    done = export(off)
    assert done.stdout == ""
    assert "audit.enabled is false" in done.stderr


def test_what_retention_took_is_told(transload: Transload) -> None:
    begin(transload)
    audit(transload, *(AuditRecord("removed") for _ in range(3)))

    async def trim() -> None:
        ledger = SqlLedger(open_database(f"sqlite:///{transload.home}/ledger.db"))
        assert await ledger.trim_audit(0, 2) == 2
        await ledger.aclose()

    asyncio.run(trim())
    done = export(transload, "--after", "1")
    assert [row["id"] for row in rows(done.stdout)] == [3]
    assert "rows 2 to 2 are not in it" in done.stderr
    assert "are not in it" not in export(transload, "--after", "2").stderr


async def test_an_export_from_postgresql(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    async with postgresql.database() as url:
        transload = Transload(tmp_path / "home", environ={"TRANSLOAD_LEDGER__URL": url})
        bid = await asyncio.to_thread(publish, transload, tmp_path / "in")
        found = rows(await asyncio.to_thread(transload.ok, "audit", "export"))
        assert [(row["action"], row["bid"]) for row in found] == [
            (action, bid) for action in ("stored", "completed", "published")
        ]
