"""The commands that look at what is stored, and at whether all is well: get, ls, stat, rm, find, status BID, doctor, sweep."""

import asyncio
import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import structlog
import yaml
from typer.testing import CliRunner

from tests.support.cli import Transload
from tests.support.localstack import LocalStackEndpoint
from tests.support.postgresql import PostgresqlServer, in_thread
from tests.support.processes import free_port
from tests.support.s3 import new_bucket
from worker.cli import app, main

CANARY = "canary-secret-0123456789"


class Here(Transload):
    """Runs commands in this process, which takes a tenth of the time."""

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        if arguments[0] == "run" and threading.current_thread() is not threading.main_thread():
            # A worker listens for signals.
            return super().run(*arguments, stdin=stdin)
        done = self.raw(*arguments, stdin=stdin)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def raw(self, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """With the very bytes."""
        line = ["transload", *self.command(*arguments)[3:]]
        streams = {"stdin": io.BytesIO(stdin), "stdout": io.BytesIO(), "stderr": io.BytesIO()}
        with ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, self.environment(), clear=True))
            stack.enter_context(patch.object(sys, "argv", line))
            texts = {name: io.TextIOWrapper(stream, "utf-8") for name, stream in streams.items()}
            for name, text in texts.items():
                stack.enter_context(patch.object(sys, name, text))
            with pytest.raises(SystemExit) as ended:
                main()
        for name in ("stdout", "stderr"):
            texts[name].flush()
        return subprocess.CompletedProcess(
            line, int(ended.value.code or 0), streams["stdout"].getvalue(), streams["stderr"].getvalue()
        )


@pytest.fixture(autouse=True)
def _logs_of_others() -> Iterator[None]:
    """Commands in this process send all logs to a stream that goes with them."""
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.configure(**before)


@pytest.fixture
def transload(tmp_path: Path) -> Here:
    return Here(tmp_path / "home")


def configured(folder: Path, settings: Mapping[str, Any]) -> Here:
    """The command with these settings, and everything else embedded."""
    config = folder / "transload.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Here(folder / "home", config)


def stored(transload: Transload, folder: Path, files: Mapping[str, bytes], *more: str) -> str:
    """Publish the files as one bundle and run the worker. The bundle's id."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    bid = transload.ok("publish", folder, "--recipe", "fr", *more).strip()
    transload.ok("run", "--until-idle")
    return bid


def address(transload: Transload, url: str) -> str:
    """Of the one object whose resource has such a URL."""
    (found,) = transload.lines("find", "--url", url)
    (stored_there,) = found["objects"]
    return str(stored_there["address"])


def test_what_was_stored_comes_back_verified(transload: Here, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    bid = stored(transload, tmp_path / "in", {"page.html": content})
    where = address(transload, "*/page.html")
    done = transload.raw("get", where, "-o", "-")
    assert (done.returncode, done.stdout) == (0, content)

    file = tmp_path / "out.html"
    (got,) = transload.lines("get", where, "-o", file)
    assert (got["verified"], got["bid"], got["size"]) == (True, bid, len(content))
    assert file.read_bytes() == content
    refused = transload.run("get", where, "-o", file)
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
    file.write_bytes(b"other")
    said = transload.ok("get", where, "-o", file, "--force")
    assert f"verified: it is a resource of bundle {bid}" in said
    assert file.read_bytes() == content

    (tmp_path / "folder").mkdir()
    transload.ok("get", where, "-o", tmp_path / "folder")
    (inside,) = (tmp_path / "folder").iterdir()
    assert inside.name == where.rpartition("/")[2]


def test_a_damaged_object_leaves_no_file(transload: Here, tmp_path: Path) -> None:
    stored(transload, tmp_path / "in", {"page.html": b"right"})
    where = address(transload, "*/page.html")
    (transload.home / "storage" / where.partition(":")[2]).write_bytes(b"wrong")
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_bytes(b"old")
    for path in (out / "new", out / "old"):
        done = transload.run("get", where, "-o", path, "--force")
        assert done.returncode == 1
        assert "the ledger recorded 5 with" in done.stderr
    assert [(each.name, each.read_bytes()) for each in out.iterdir()] == [("old", b"old")]


def test_a_copy_that_is_killed_leaves_no_torn_file(transload: Here, tmp_path: Path) -> None:
    stored(transload, tmp_path / "in", {"page.html": b"content"})
    where = address(transload, "*/page.html")
    out = tmp_path / "out"
    out.mkdir()
    armed = Transload(transload.home, environ={"TRANSLOAD_FAILPOINTS": "objects.flush.before=kill"})
    assert armed.run("get", where, "-o", out / "page").returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".transload-")
    assert left.name.endswith(".part")


def test_what_belongs_to_a_bundle_is_left_alone(transload: Here, tmp_path: Path) -> None:
    bid = stored(transload, tmp_path / "in", {"page.html": b"content"})
    where = address(transload, "*/page.html")
    manifest = f"main:bundle_{bid}/bundle.meta"
    for each, what in (
        (where, "is a resource of"),
        (f"{where}.meta", "holds the facts about a resource of"),
        (manifest, "is the manifest of"),
    ):
        done = transload.run("rm", each, "--yes")
        assert done.returncode == 1
        assert f"it {what} bundle {bid}" in done.stderr
    assert (transload.lines("stat", manifest)[0]["ledger"]["part"]) == "manifest"

    # Nobody answers, and somebody says no.
    assert transload.run("rm", where, "--force").returncode == 1
    assert transload.run("rm", where, "--force", stdin=b"n\n").returncode == 1
    assert len(transload.lines("stat", where)) == 1
    done = transload.run("rm", where, "--force", stdin=b"y\n")
    assert done.returncode == 0
    assert f"Delete {where}, for good; it is a resource of bundle {bid}" in done.stderr
    assert transload.run("stat", where).returncode == 1
    assert transload.run("verify", bid).returncode == 1


def test_the_audit_trail_tells_what_was_removed(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"audit": {"enabled": True}})
    bid = stored(transload, tmp_path / "in", {"page.html": b"content"})
    where = address(transload, "*/page.html")
    transload.ok("rm", where, "--yes", "--force")
    assert transload.run("rm", where, "--yes", "--force").returncode == 1
    with closing(sqlite3.connect(transload.home / "ledger.db")) as ledger:
        rows = ledger.execute(
            "SELECT actor, bid, url, key, size FROM audit WHERE action = 'removed'"
        ).fetchall()
    ((actor, *facts),) = rows
    assert actor.startswith("cli:")
    assert facts == [bid, (tmp_path / "in" / "page.html").as_uri(), where.partition(":")[2], 7]


def test_strangers_and_staged_payloads(transload: Here, tmp_path: Path) -> None:
    """A key may hold colons, and `staging` leads to what is staged."""
    stored(transload, tmp_path / "in", {"a.txt": b"a"})
    transload.ok("publish", tmp_path / "in", "--recipe", "other")
    (transload.home / "storage" / "x:y:z").write_bytes(b"stranger")
    assert "the ledger does not know it" in transload.ok("get", "main:x:y:z", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"stranger"
    assert transload.lines("ls", "main:x:") == [{"key": "x:y:z", "size": 8, "etag": None}]
    assert transload.ok("ls", "main:x", "-l").split() == ["8", "x:y:z"]
    assert transload.lines("rm", "main:x:y:z", "--yes") == [
        {"place": "main", "key": "x:y:z", "deleted": True, "bid": None}
    ]
    gone = transload.run("rm", "main:x:y:z", "--yes")
    assert (gone.returncode, gone.stderr) == (1, "transload: there is no main:x:y:z\n")

    keys = [each["key"] for each in transload.lines("ls", "staging:main")]
    assert len(keys) == 2
    assert transload.run("ls", "staging:main", "--limit", "1").stderr == "there are more; raise --limit (1)\n"
    assert transload.raw("get", f"staging:main:{keys[0]}", "-o", "-").stdout == b"a"
    refused = transload.run("rm", f"staging:main:{keys[0]}", "--yes")
    assert refused.returncode == 1
    assert "a message that waits for it" in refused.stderr
    transload.ok("rm", f"staging:main:{keys[0]}", "--yes", "--force")
    assert [each["key"] for each in transload.lines("ls", "staging:main")] == keys[1:]


def test_an_object_is_to_be_had_while_the_ledger_is_down(transload: Here, tmp_path: Path) -> None:
    stored(transload, tmp_path / "in", {"page.html": b"content"})
    where = address(transload, "*/page.html")
    url = f"postgresql://nobody:{CANARY}@127.0.0.1:{free_port()}/ledger"
    cut_off = Here(transload.home, environ={"TRANSLOAD_LEDGER__URL": url})
    said = cut_off.ok("get", where, "-o", tmp_path / "out")
    assert "not verified: ledger postgresql://" in said
    assert CANARY not in said
    refused = cut_off.run("rm", where, "--yes")
    assert refused.returncode == 1
    assert "what belongs to a bundle is not known" in refused.stderr


async def on_s3(localstack: LocalStackEndpoint, bucket: str | None = None, **changes: str) -> dict[str, Any]:
    """Settings of a target on a bucket, a new one unless it is named."""
    return {
        "backend": "s3",
        "bucket": bucket or await new_bucket(localstack),
        "region": localstack.region,
        "endpoint_url": localstack.endpoint_url,
        "access_key_id": localstack.access_key_id,
        "secret_access_key": localstack.secret_access_key,
        **changes,
    }


def test_objects_on_s3(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    target = in_thread(on_s3(localstack))
    transload = configured(tmp_path, {"targets": {"cloud": {**target, "prefix": "captures"}}})
    bid = stored(transload, tmp_path / "in", {"page.html": b"content"})
    where = address(transload, "*/page.html")
    assert where.startswith(f"cloud:captures/bundles/{bid}/resources/page-")
    (facts,) = transload.lines("stat", where)
    assert (facts["size"], facts["content_type"]) == (7, "text/html")
    assert facts["metadata"]["url"] == (tmp_path / "in" / "page.html").as_uri()
    assert facts["ledger"]["stored"]["sha256"] in transload.ok("stat", where)
    (got,) = transload.lines("get", where, "-o", tmp_path / "out")
    assert got["verified"]
    keys = [each["key"] for each in transload.lines("ls", "cloud")]
    assert keys == [f"captures/bundles/{bid}/metadata.json", where.partition(":")[2]]
    assert transload.run("rm", f"cloud:{keys[0]}", "--yes").returncode == 1
    transload.ok("rm", where, "--yes", "--force")
    assert [each["key"] for each in transload.lines("ls", "cloud:captures/")] == keys[:1]


def findings(transload: Transload, *arguments: str, status: int) -> dict[tuple[str, str], Any]:
    """What the doctor found, by part and check; how many problems there are under `("", "problems")`."""
    done = transload.run("doctor", *arguments, "--json")
    assert done.returncode == status, done.stderr
    assert CANARY not in done.stdout + done.stderr
    *found, summary = map(json.loads, done.stdout.splitlines())
    by_place = {(each["part"], each["check"]): each for each in found}
    assert len(by_place) == len(found)
    return by_place | {("", "problems"): summary["problems"]}


def test_a_doctor_finds_nothing_wrong_with_what_is_new(transload: Here) -> None:
    found = findings(transload, "--write", status=0)
    assert found.pop(("", "problems")) == 0
    assert {each["state"] for each in found.values()} == {"ok"}
    assert {part for part, check in found if check == "writable"} == {"ledger", "staging main", "target main"}
    for place in ("storage", "staging"):
        assert list((transload.home / place).iterdir()) == []
    text = transload.ok("doctor")
    assert text.splitlines()[-1] == "0 problems"


def test_a_doctor_looks_at_everything_though_much_is_broken(
    localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    good = in_thread(on_s3(localstack))
    missing = in_thread(on_s3(localstack, "test-nobody-made-it"))
    nowhere = {**good, "endpoint_url": f"http://127.0.0.1:{free_port()}", "max_retries": 0}
    (tmp_path / "file").write_bytes(b"")
    transload = configured(
        tmp_path,
        {
            "targets": {
                "good": good,
                "missing": missing,
                "nowhere": {**nowhere, "secret_access_key": CANARY},
                "none": {"backend": "file", "root": str(tmp_path / "file")},
            },
            "queue": {
                "type": "sqs",
                "queue_url": f"{localstack.endpoint_url}/000000000000/test-nobody-made-it",
                **{
                    key: good[key] for key in ("region", "endpoint_url", "access_key_id", "secret_access_key")
                },
            },
            "ledger": {"url": f"postgresql://nobody:{CANARY}@127.0.0.1:{free_port()}/ledger"},
        },
    )
    found = findings(transload, "--write", status=1)
    assert found["", "problems"] == 5
    broken = ("target missing", "target nowhere", "target none", "queue", "ledger")
    problems = [found[part, "reachable"] for part in broken]
    assert [each["state"] for each in problems] == ["problem"] * 5
    words = ("create-bucket", "ConnectorError", "not a directory", "no such queue", "ledger.url")
    for problem, word in zip(problems, words, strict=True):
        assert word in f"{problem['text']}; {problem['remedy']}" or word == "ConnectorError", problem
    assert found["target good", "writable"]["state"] == "ok"
    assert found["target good", "clock"]["state"] == "ok"
    assert found["target good", "versioning"]["text"] == "versioning is off"
    assert found["target good", "unfinished uploads"]["state"] == "note"
    assert found["publisher", "reachable"]["state"] == "ok"
    text = transload.run("doctor")
    assert text.stdout.splitlines()[-1] == "5 problems"
    assert CANARY not in text.stdout + text.stderr


def test_a_doctor_shows_what_is_wrong_with_the_settings(tmp_path: Path) -> None:
    transload = configured(tmp_path, {"targets": {"main": {"backend": "tape"}}, "quue": {}})
    found = transload.run("doctor", "--json")
    assert found.returncode == 2
    *problems, summary = map(json.loads, found.stdout.splitlines())
    assert summary == {"problems": 2}
    assert any("targets.main.backend" in each["text"] for each in problems)


async def test_search_on_postgresql(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    async with postgresql.database() as url:
        transload = Here(tmp_path / "home", environ={"TRANSLOAD_LEDGER__URL": url})
        await asyncio.to_thread(_search, transload, tmp_path)
        found = await asyncio.to_thread(findings, transload, "--write", status=0)
        assert found["ledger", "clock"]["state"] == found["ledger", "writable"]["state"] == "ok"


def test_search_on_sqlite(transload: Here, tmp_path: Path) -> None:
    _search(transload, tmp_path)


def _search(transload: Transload, folder: Path) -> None:
    files = {"a_1.html": b"one", "aX1.html": b"two", "B.txt": b"three"}
    bid = stored(transload, folder / "in", files)
    urls = partial(_urls, transload)
    assert urls() == ["B.txt", "aX1.html", "a_1.html"] or set(urls()) == set(files)
    assert urls("--url", "*/a_1.*") == ["a_1.html"]
    assert urls("--url", "*/b.txt") == []
    assert urls("--recipe", "f?", "--content-type", "text/plain", "--bid", f"{bid[:8]}*") == ["B.txt"]
    assert urls("--since", "1h", "--until", "2999-01-01", "--status-code", "404") == []
    assert set(urls("--since", "1h", "--until", "2999-01-01T00:00+02:00")) == set(files)
    assert urls("--until", "1h") == []
    assert len(urls("--limit", "2")) == 2
    (two,) = transload.lines("find", "--url", "*/aX1*")
    (lying,) = two["objects"]
    assert two["recipe_id"] == "fr"
    assert abs(two["recorded_at"] / 1000 - time.time()) < 600
    assert urls("--sha256", lying["sha256"].upper(), "--target", "m*") == ["aX1.html"]
    assert lying["address"] in transload.ok("find")
    nothing = transload.run("find", "--target", "cloud")
    assert (nothing.returncode, nothing.stdout) == (1, "")


def _urls(transload: Transload, *arguments: str) -> list[str]:
    """The last part of each URL that is found."""
    done = transload.run("find", *arguments, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == (0 if found else 1), done.stderr
    return [each["url"].rpartition("/")[2] for each in found]


def test_case_72_the_partial_state_of_a_bundle_is_visible(tmp_path: Path) -> None:
    transload = configured(
        tmp_path,
        {
            "targets": {"main": {}, "spare": {}},
            "routes": {"default": {"best_effort": ["spare"]}},
            "worker": {"max_attempts": 1},
        },
    )
    obstacle = transload.home / "storage-spare" / "bundle_test-partial"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_bytes(b"in the way")
    stored(transload, tmp_path / "in", {"a": b"a", "b": b"b"}, "--bid", "test-partial")
    (status,) = transload.lines("status", "test-partial")
    assert (status["state"], status["stored_count"]) == ("published", 2)
    main, spare = status["targets"]
    assert main == {"target": "main", "required": True, "state": "stored", "missing": 0, "error": None}
    assert (spare["target"], spare["required"], spare["state"]) == ("spare", False, "incomplete")
    assert spare["missing"] == 2
    assert "InvalidKey" in spare["error"]
    text = transload.ok("status", "test-partial")
    assert "no: best effort" in text
    assert "missing 2" in text

    obstacle.unlink()
    transload.ok("dlq", "redrive", "--all")
    transload.ok("run", "--until-idle")
    (status,) = transload.lines("status", "test-partial")
    assert [target["state"] for target in status["targets"]] == ["stored", "stored"]
    unknown = transload.run("status", "test-nobody")
    assert (unknown.returncode, "no bundle test-nobody" in unknown.stderr) == (1, True)


def test_one_round_of_housekeeping(transload: Here) -> None:
    left = transload.home / "storage" / ".transload-dead-0.part"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (time.time() - 2 * 86_400,) * 2)
    (swept,) = transload.lines("sweep")
    assert (swept["leftovers"], swept["failures"]) == (1, 0)
    assert not left.exists()
    assert "0 leftovers" in transload.ok("sweep")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["get", "tape:key"], "no place is named 'tape'; there are: main, staging:main"),
        (["get", "staging:tape:key"], "no place is named 'staging:tape'"),
        (["get", "main"], "give a key as well, as main:KEY"),
        (["stat", "main:"], "give a key as well"),
        (["get", "main:key", "-o", "-", "--json"], "standard output"),
        (["rm", "main:key", "--json"], "say --yes"),
        (["find", "--since", "yesterday"], "is no time; use 2h, 3d"),
        (["find", "--until", "99999999w"], "is no time"),
        (["find", "--sha256", "ab"], "64 hex digits"),
        (["find", "--status-code", "1000"], "999"),
        (["doctor", "--timeout", "0"], "0.1"),
    ],
)
def test_wrong_arguments_say_what_to_give(tmp_path: Path, command: Sequence[str], words: str) -> None:
    """In this process, as nothing is done."""
    done = CliRunner().invoke(app, ["--home", str(tmp_path), *command])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", ["get", "ls", "stat", "rm", "find", "status", "doctor", "sweep"])
def test_help_says_what_it_does(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], prog_name="transload")
    assert done.exit_code == 0
    assert f"Usage: transload {command}" in done.output
    assert len(done.output.split()) > 40
