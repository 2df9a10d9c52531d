"""The main job as a new user does it: publish files, run the worker, read completions, verify. Embedded defaults."""

import asyncio
import json
import random
import time
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.cli import Transload
from tests.support.workers import workers
from worker.cli import app
from worker.queues.base import (
    DETAIL_ATTRIBUTE,
    REASON_ATTRIBUTE,
    Message,
    OutgoingMessage,
)
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue


@pytest.fixture
def transload(tmp_path: Path) -> Transload:
    return Transload(
        tmp_path / "home", environ={"TRANSLOAD_QUEUE__LEASE": "3", "TRANSLOAD_RELAY__LEASE": "3"}
    )


def make_files(folder: Path, count: int, size: int = 10_000) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(str(folder))
    files = [folder / f"file-{number}.bin" for number in range(count)]
    for file in files:
        file.write_bytes(source.randbytes(size))
    return files


def stored_payloads(home: Path) -> dict[Path, bytes]:
    files = (path for path in (home / "storage").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.suffix != ".meta"}


def test_three_files_become_one_completion(transload: Transload, tmp_path: Path) -> None:
    files = make_files(tmp_path / "in", 3)
    bid = transload.ok("publish", *files, "--recipe", "r").strip()
    transload.ok("run", "--until-idle")
    (completion,) = transload.lines("completions")
    assert completion["resources_count"] == 3
    assert completion["bundle_id"] == bid
    assert completion["recipe_id"] == "r"
    assert completion["storage_key"] == f"bundle_{bid}"
    assert set(completion) >= {"primary_url", "completion_timestamp", "metadata", "event_id", "manifest_key"}
    (verification,) = transload.lines("verify", bid)
    assert verification["passed"]
    assert verification["objects"] == 3
    assert sorted(stored_payloads(transload.home).values()) == sorted(file.read_bytes() for file in files)


def test_publishing_the_same_bundle_again_announces_nothing_new(transload: Transload, tmp_path: Path) -> None:
    files = make_files(tmp_path / "in", 3)
    first = transload.ok("publish", *files, "--recipe", "r").strip()
    transload.ok("run", "--until-idle")
    assert transload.ok("publish", *files, "--recipe", "r").strip() == first
    transload.ok("publish", *files, "--recipe", "r", "--bid", first)
    transload.ok("run", "--until-idle")
    assert len(transload.lines("completions")) == 1
    (status,) = transload.lines("status")
    assert status["queue"]["visible"] == status["queue"]["dead"] == 0


def test_files_of_the_same_name_stay_two_objects(transload: Transload, tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(text, encoding="utf-8")
    transload.ok("publish", tmp_path / "a", tmp_path / "b", "--recipe", "r")
    transload.ok("run", "--until-idle")
    assert sorted(stored_payloads(transload.home).values()) == [b"one", b"two"]


def test_a_text_file_called_zip_is_stored_byte_for_byte(transload: Transload, tmp_path: Path) -> None:
    file = tmp_path / "cordata.zip"
    content = b"This is no archive, whatever its name says. " * 4
    file.write_bytes(content[:145])
    bid = transload.ok("publish", file, "--recipe", "r").strip()
    transload.ok("run", "--until-idle")
    ((path, stored),) = stored_payloads(transload.home).items()
    assert stored == content[:145]
    assert path.name.startswith("cordata-")
    assert path.suffix == ".zip"
    manifest = json.loads((transload.home / "storage" / f"bundle_{bid}" / "bundle.meta").read_bytes())
    (entry,) = manifest["resources"]
    assert entry["sha256"] == sha256(stored).hexdigest()
    assert entry["url"] == file.as_uri()


def test_an_open_bundle_is_closed_by_a_later_publish(transload: Transload, tmp_path: Path) -> None:
    files = make_files(tmp_path / "in", 2)
    bid = transload.ok("publish", files[0], "--recipe", "r", "--bid", "test-two-steps", "--no-close").strip()
    transload.ok("run", "--until-idle")
    assert transload.lines("completions") == []
    (record,) = transload.lines("bundles", "--state", "open")
    assert (record["bid"], record["stored_count"], record["resources_count"]) == (bid, 1, None)
    transload.ok("publish", files[1], "--recipe", "r", "--bid", bid)
    transload.ok("run", "--until-idle")
    (completion,) = transload.lines("completions")
    assert completion["resources_count"] == 2
    (shown,) = transload.lines("show", bid)
    assert {resource["url"] for resource in shown["resources"]} == {file.as_uri() for file in files}


def test_verify_finds_a_changed_byte_and_a_missing_file(transload: Transload, tmp_path: Path) -> None:
    bid = transload.ok("publish", *make_files(tmp_path / "in", 2), "--recipe", "r").strip()
    transload.ok("run", "--until-idle")
    first, second = sorted(stored_payloads(transload.home))
    content = bytearray(first.read_bytes())
    content[5_000] ^= 1
    first.write_bytes(content)
    second.unlink()
    done = transload.run("verify", bid, "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 2
    assert any("SHA-256" in problem for problem in problems)


def test_cases_1_to_10_killed_at_any_moment_nothing_is_lost(transload: Transload, tmp_path: Path) -> None:
    """Case 1-10 of the crash points, at random moments; the crash matrix visits each on purpose."""
    folders = [tmp_path / f"in-{number}" for number in range(4)]
    files = {folder: make_files(folder, 40) for folder in folders}
    bids = [transload.ok("publish", folder, "--recipe", "r").strip() for folder in folders]
    moments = random.Random(7)
    storage = transload.home / "storage"
    for done in (20, 60, 100, 150):
        with workers(transload, tmp_path / f"logs-{done}") as pool:
            worker = pool.start("run", "--until-idle")
            deadline = time.monotonic() + 60
            while worker.alive and time.monotonic() < deadline:
                if sum(1 for _ in storage.rglob("file-*.bin")) >= done:
                    time.sleep(moments.random() / 50)
                    break
    transload.ok("run", "--until-idle")
    completions = transload.lines("completions")
    assert sorted(c["bundle_id"] for c in completions) == sorted(bids)
    assert {c["resources_count"] for c in completions} == {40}
    for bid in bids:
        assert transload.lines("verify", bid)[0]["passed"]
    everything = sorted(file.read_bytes() for group in files.values() for file in group)
    assert sorted(stored_payloads(transload.home).values()) == everything
    (status,) = transload.lines("status")
    assert status["queue"] | {"name": ""} == {
        "name": "",
        "visible": 0,
        "in_flight": 0,
        "delayed": 0,
        "dead": 0,
    }


def test_case_14_sigterm_finishes_and_leaves_with_status_0(transload: Transload, tmp_path: Path) -> None:
    transload.ok("publish", *make_files(tmp_path / "in", 5), "--recipe", "r")
    with workers(transload, tmp_path / "logs") as pool:
        worker = pool.start("run")
        worker.until(lambda: bool(transload.lines("completions")))
        worker.terminate()
        assert worker.wait() == 0, worker.tail()
        assert worker.says("6 messages done")


def fetched(location: str, **changes: object) -> dict[str, object]:
    message: dict[str, object] = {
        "type": "resource.fetched",
        "version": 1,
        "id": "m-1",
        "bundle": {"bid": "test-bundle", "recipe_id": "r", "resources_count": 1},
        "resource": {"url": "https://example.com/page.html", "status_code": 200},
        "payload": {"location": location},
    }
    return message | changes


BAD_MESSAGES = {
    "malformed": b'{"type": "resource.fetched", ',
    "unknown_version": json.dumps(fetched("file:///x", version=2)).encode(),
    "unknown_type": json.dumps(fetched("file:///x", type="resource.deleted")).encode(),
    "staging_not_allowed": json.dumps(fetched("file:///etc/passwd")).encode(),
    "malformed bid": json.dumps(fetched("file:///x", bundle={"bid": "../up", "recipe_id": "r"})).encode(),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_explain_refuses_in_one_line_with_status_2(transload: Transload, tmp_path: Path, name: str) -> None:
    file = tmp_path / "message.json"
    file.write_bytes(BAD_MESSAGES[name])
    done = transload.run("explain", file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert name.split(maxsplit=1)[0] in done.stderr


def test_explain_tells_the_plan_and_writes_nothing(transload: Transload) -> None:
    location = (transload.home / "staging" / "x" / "page.html").as_uri()
    done = transload.run("explain", "-", "--json", stdin=json.dumps(fetched(location)).encode())
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["source"] == "main: x/page.html"
    (write,) = plan["writes"]
    assert write["target"] == "main"
    assert write["key"].startswith("bundle_test-bundle/page-")
    assert write["sidecar"] == write["key"] + ".meta"
    assert not transload.home.exists()


async def test_case_28_the_worker_buries_bad_messages_with_reason_and_body(transload: Transload) -> None:
    options = EmbeddedOptions(path=transload.home / "queue.db", lease=30)
    queue = await EmbeddedQueue.connect(options)
    await queue.send([OutgoingMessage(body, {"origin": name}) for name, body in BAD_MESSAGES.items()])
    await asyncio.to_thread(transload.ok, "run", "--until-idle")
    dead = await queue.open_dead_letters()
    buried: list[Message] = list(await dead.receive(10, 0))
    await dead.aclose()
    await queue.aclose()
    assert {message.attributes["origin"]: message.body for message in buried} == BAD_MESSAGES
    for message in buried:
        assert message.attributes[REASON_ATTRIBUTE] == message.attributes["origin"].split()[0]
        assert message.attributes[DETAIL_ATTRIBUTE]


def test_case_67_a_payload_that_is_not_as_promised_never_gets_a_final_name(
    transload: Transload, tmp_path: Path
) -> None:
    bid = transload.ok("publish", *make_files(tmp_path / "in", 1), "--recipe", "r").strip()
    (staged,) = (path for path in (transload.home / "staging").rglob("*") if path.is_file())
    staged.write_bytes(staged.read_bytes()[:-1])
    again = Transload(transload.home, environ={"TRANSLOAD_WORKER__MAX_ATTEMPTS": "2"})
    again.ok("run", "--until-idle")
    assert stored_payloads(transload.home) == {}
    (status,) = again.lines("status")
    assert status["queue"]["dead"] == 1
    (record,) = again.lines("bundles")
    assert (record["bid"], record["state"], record["stored_count"]) == (bid, "open", 0)


def test_demo_stores_a_folder_and_verifies_it(transload: Transload, tmp_path: Path) -> None:
    for folder in ("one", "two", "two/three"):
        make_files(tmp_path / "in" / folder, 4)
    make_files(tmp_path / "in" / ".hidden", 1)
    (outcome,) = transload.lines("demo", "--from", tmp_path / "in")
    assert (outcome["bundles"], outcome["resources"], outcome["completions"]) == (3, 12, 3)
    assert (outcome["objects_verified"], outcome["problems"], outcome["dead_letters"]) == (12, [], 0)
    (again,) = transload.lines("demo", "--from", tmp_path / "in")
    assert again["completions"] == 3
    assert len(transload.lines("completions")) == 3


COMMANDS = [
    "run",
    "demo",
    "publish",
    "status",
    "bundles",
    "show",
    "completions",
    "verify",
    "explain",
    "migrate",
]


@pytest.mark.parametrize("command", [["config"], *([name] for name in COMMANDS)])
def test_help_says_what_it_does(command: list[str]) -> None:
    """In this process: a dozen of others would do nothing but import."""
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="transload")
    assert done.exit_code == 0
    assert "Usage: transload" in done.output
    assert len(done.output.split()) > 25


def test_help_names_every_command(transload: Transload) -> None:
    text = transload.ok("--help")
    assert "Usage:" in text
    assert {*COMMANDS, "config"} <= set(text.split())


def test_errors_of_the_command_line_say_what_to_do(transload: Transload, tmp_path: Path) -> None:
    missing = transload.run("publish", tmp_path / "nothing", "--recipe", "r")
    assert missing.returncode == 2
    assert "nothing is not a file or folder" in missing.stderr
    unknown = transload.run("show", "test-none")
    assert unknown.returncode == 1
    assert "no bundle test-none" in unknown.stderr
    bad_bid = transload.run("publish", Path(__file__), "--recipe", "r", "--bid", "../up")
    assert bad_bid.returncode == 2
    assert "bid" in bad_bid.stderr
