"""The commands for what waits for a person: dead letters, parked completions, completions that should go out again."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from typer.testing import CliRunner

from tests.support.cli import Transload
from tests.support.localstack import LocalStackEndpoint
from tests.support.rabbitmq import rabbit_queues
from tests.support.sqs import sqs_queues
from tests.support.workers import workers
from worker.cli import app
from worker.queues.base import REDRIVES_ATTRIBUTE, Ack, Dead, Message, OutgoingMessage, Queue
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions
from worker.queues.sqs import SqsQueue, SqsQueueOptions

BINARY = b"\xff\x00"
BROKEN = b'{"broken": \x1b[31m'
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
LEASE = 1.0


@pytest.fixture
def transload(tmp_path: Path) -> Transload:
    environ = {
        "TRANSLOAD_QUEUE__LEASE": str(LEASE),
        "TRANSLOAD_RELAY__LEASE": "1",
        "TRANSLOAD_WORKER__MAX_ATTEMPTS": "2",
        "TRANSLOAD_WORKER__RETRY_BASE": "0.05",
    }
    return Transload(tmp_path / "home", environ=environ)


@asynccontextmanager
async def opened(transload: Transload, lease: float = LEASE) -> AsyncIterator[Queue]:
    """The embedded queue of that home."""
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=transload.home / "queue.db", lease=lease))
    yield queue
    await queue.aclose()


def send(transload: Transload, *messages: OutgoingMessage) -> None:
    async def sending() -> None:
        async with opened(transload) as queue:
            await queue.send(messages)

    asyncio.run(sending())


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process's lease decides."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


async def bury(queue: Queue, *messages: OutgoingMessage) -> None:
    await queue.send(messages)
    taken: list[Message] = []
    while len(taken) < len(messages):
        taken += await queue.receive(10, 1)
    for message in taken:
        assert await queue.settle(message, Dead("malformed", "no JSON", "Refused"))


def lost_payload(transload: Transload, folder: Path) -> tuple[str, Callable[[], int]]:
    """Publish one file and take its payload out of staging. The bundle's id, and what puts the payload back."""
    folder.mkdir()
    (folder / "page.html").write_text("<p>", encoding="utf-8")
    bid = transload.ok("publish", folder, "--recipe", "fr").strip()
    (staged,) = (path for path in (transload.home / "staging").rglob("*") if path.is_file())
    content = staged.read_bytes()
    staged.unlink()
    return bid, partial(staged.write_bytes, content)


def test_case_28_a_dead_letter_tells_reason_attempts_and_body(transload: Transload, tmp_path: Path) -> None:
    bid, _ = lost_payload(transload, tmp_path / "in")
    send(transload, OutgoingMessage(BROKEN, TRACE), OutgoingMessage(BINARY))
    transload.ok("run", "--until-idle")

    found = transload.lines("dlq", "ls")
    assert sorted(letter["reason"] for letter in found) == ["malformed", "malformed", "payload_missing"]
    (lost,) = (letter for letter in found if letter["reason"] == "payload_missing")
    assert (lost["bid"], lost["recipe"], lost["error"]) == (bid, "fr", "PayloadMissing")
    assert (lost["receive_count"], lost["redrives"], lost["source"]) == (2, 0, "resources")
    assert lost["first_tried_at"] < lost["died_at"]
    (shown,) = transload.lines("dlq", "show", lost["id"])
    assert [attempt["error"] for attempt in shown["attempts"]] == ["PayloadMissing", "PayloadMissing"]
    assert json.loads(shown["body"])["bundle"]["bid"] == bid

    (broken,) = (letter for letter in found if "JSON" in letter["detail"])
    (shown,) = transload.lines("dlq", "show", broken["id"])
    assert (shown["body"].encode(), shown["body_encoding"]) == (BROKEN, "utf-8")
    assert shown["attributes"] == TRACE
    (binary,) = (letter for letter in found if "UTF-8" in letter["detail"])
    (shown,) = transload.lines("dlq", "show", binary["id"])
    assert (shown["body"], shown["body_encoding"]) == ("/wA=", "base64")
    # For a person: everything in sight, and nothing that steers the terminal.
    text = transload.ok("dlq", "show", broken["id"])
    assert '{"broken": \\x1b[31m' in text
    assert "\x1b" not in text
    assert TRACE["traceparent"] in text
    assert {letter["id"] for letter in found} <= set(transload.ok("dlq", "ls").split())
    unknown = transload.run("dlq", "show", "nobody")
    assert unknown.returncode == 1
    assert "none of the 3 dead letters" in unknown.stderr


def test_case_30_what_is_mended_completes_and_what_is_not_dies_again(
    transload: Transload, tmp_path: Path
) -> None:
    bid, mend = lost_payload(transload, tmp_path / "in")
    send(transload, OutgoingMessage(BROKEN, {REDRIVES_ATTRIBUTE: "2"}))
    transload.ok("run", "--until-idle")
    mend()

    dry = transload.ok("dlq", "redrive", "--all", "--dry-run")
    assert "selected 2" in dry
    assert bid in dry
    # A crash between send and ack: both messages are back, and both letters are there again after their lease.
    assert killed_at("redrive.ack.before", transload) == -signal.SIGKILL
    until(lambda: len(transload.lines("dlq", "ls")) == 2)
    *told, summary = transload.lines("dlq", "redrive", "--all")
    assert [letter["outcome"] for letter in told] == ["redriven", "redriven"]
    assert summary["summary"]["redriven"] == 2
    transload.ok("run", "--until-idle")

    (completion,) = transload.lines("completions")
    assert completion["bundle_id"] == bid
    letters = transload.lines("dlq", "ls")
    assert [(letter["reason"], letter["redrives"]) for letter in letters] == [("malformed", 3)] * 2
    capped = transload.run("dlq", "redrive", letters[0]["id"])
    assert capped.returncode == 1
    assert capped.stdout.startswith("redriven 0, over the cap 1, not matching ")
    assert f"left {letters[0]['id']}: it was redriven 3 times already" in capped.stderr
    assert "deleted 2" in transload.ok("dlq", "purge", "--all", "--yes")
    assert transload.lines("dlq", "ls") == []


@pytest.mark.parametrize(
    ("place", "back", "letters"),
    [
        ("redrive.send.before", 0, 1),
        ("redrive.send.after", 1, 1),
        ("redrive.ack.before", 1, 1),
        ("redrive.ack.after", 1, 0),
    ],
)
async def test_a_redrive_killed_anywhere_leaves_the_letter_or_both(
    transload: Transload, place: str, back: int, letters: int
) -> None:
    async with opened(transload) as queue:
        await bury(queue, OutgoingMessage(b"kept"))
        assert await asyncio.to_thread(killed_at, place, transload) == -signal.SIGKILL
        depth = await queue.depth()
        assert (depth.visible, depth.dead) == (back, letters)
        dead = await queue.open_dead_letters()
        async with asyncio.timeout(30):
            for shelf, count in ((queue, back), (dead, letters)):
                # What the killed one held returns when its lease passes.
                bodies = [message.body for _ in range(count) for message in await shelf.receive(1, 30)]
                assert bodies == [b"kept"] * count
        await dead.aclose()


def killed_at(place: str, transload: Transload) -> int:
    """The exit status of a redrive of everything that is armed to die there."""
    armed = Transload(
        transload.home, transload.config, transload.environ | {"TRANSLOAD_FAILPOINTS": f"{place}=kill"}
    )
    return armed.run("dlq", "redrive", "--all").returncode


async def test_ctrl_c_gives_the_letters_back(tmp_path: Path) -> None:
    transload = Transload(tmp_path / "home", environ={"TRANSLOAD_QUEUE__LEASE": "60"})
    async with opened(transload, lease=60) as queue:
        await bury(queue, *(OutgoingMessage(f"{number}".encode()) for number in range(5)))
        # One letter in a hundred seconds: it is asked to stop while it waits for the second one's turn.
        with workers(transload, tmp_path / "logs") as pool:
            command = pool.start("dlq", "redrive", "--all", "--rate", "0.01/s")
            async with asyncio.timeout(30):
                while (await queue.depth()).dead != 4:  # noqa: ASYNC110 - another process's work has no event
                    await asyncio.sleep(0.02)
            command.process.send_signal(signal.SIGINT)
            assert await command.ended(30) == 130, command.tail()
        letters = await queue.open_dead_letters()
        depth = await letters.depth()
        assert (depth.visible, depth.in_flight) == (4, 0)
        await letters.aclose()
        assert (await queue.depth()).visible == 1


def configured(folder: Path, section: str, adapter: str, options: Mapping[str, Any]) -> Transload:
    """The command with one section of its settings given, everything else embedded."""
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in options.items()
    }
    config = folder / "transload.yaml"
    config.write_text(yaml.safe_dump({section: {"type": adapter, **plain}}), encoding="utf-8")
    return Transload(folder / "home", config)


@asynccontextmanager
async def on_sqs(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[tuple[Transload, Queue]]:
    async with sqs_queues(request.getfixturevalue("localstack"), lease=30) as queues:
        queue = await SqsQueue.connect(SqsQueueOptions(**queues.options()))
        yield configured(folder, "queue", "sqs", queues.options()), queue
        await queue.aclose()


@asynccontextmanager
async def on_rabbitmq(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[tuple[Transload, Queue]]:
    async with rabbit_queues(request.getfixturevalue("rabbitmq")) as queues:
        options = queues.options(lease=10)
        queue = await RabbitQueue.connect(RabbitQueueOptions(**options))
        yield configured(folder, "queue", "rabbitmq", options), queue
        await queue.aclose()


@pytest.mark.parametrize("service", [on_sqs, on_rabbitmq])
async def test_cases_28_and_30_on_a_server(
    service: Callable[[pytest.FixtureRequest, Path], AbstractAsyncContextManager[tuple[Transload, Queue]]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    async with service(request, tmp_path) as (transload, queue):
        await bury(queue, *(OutgoingMessage(f"broken {number}".encode(), TRACE) for number in range(12)))
        letters = await queue.open_dead_letters()
        # As a server's own policy leaves it: without a word.
        await letters.send([OutgoingMessage(b"moved")])
        await letters.aclose()

        found = await asyncio.to_thread(transload.lines, "dlq", "ls")
        assert len({letter["id"] for letter in found}) == 13
        (moved,) = (letter for letter in found if letter["reason"] is None)
        assert {letter["detail"] for letter in found if letter is not moved} == {"no JSON"}
        (shown,) = await asyncio.to_thread(transload.lines, "dlq", "show", moved["id"])
        assert shown["body"] == "moved"

        out = await asyncio.to_thread(transload.ok, "dlq", "redrive", moved["id"])
        assert out.startswith("redriven 1, ")
        (message,) = await taken(queue, 1)
        assert (message.body, message.attributes) == (b"moved", {REDRIVES_ATTRIBUTE: "1"})
        out = await asyncio.to_thread(transload.ok, "dlq", "redrive", "--where", "reason=malformed")
        assert out == "redriven 12, not matching 0\n"
        messages = await taken(queue, 12)
        assert {message.body.decode() for message in messages} == {f"broken {n}" for n in range(12)}
        assert all(each.attributes == {**TRACE, REDRIVES_ATTRIBUTE: "1"} for each in messages)
        assert await asyncio.to_thread(transload.lines, "dlq", "ls") == []


async def taken(queue: Queue, count: int) -> list[Message]:
    """That many messages, for good."""
    messages: list[Message] = []
    async with asyncio.timeout(30):
        while len(messages) < count:
            page = await queue.receive(10, 2)
            assert all([await queue.settle(message, Ack()) for message in page])
            messages += page
    return messages


async def test_case_30_a_fifo_queue_takes_a_redrive_and_drops_its_repetition(
    localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    async with sqs_queues(localstack, lease=1, fifo=True) as queues:
        transload = configured(tmp_path, "queue", "sqs", queues.options())
        queue = await SqsQueue.connect(SqsQueueOptions(**queues.options()))
        await bury(queue, OutgoingMessage(b"broken", TRACE, group="g", deduplication_id="m1"))
        assert await asyncio.to_thread(killed_at, "redrive.ack.before", transload) == -signal.SIGKILL
        redrive = partial(transload.ok, "dlq", "redrive", "--all")
        await asyncio.to_thread(until, lambda: redrive().startswith("redriven 1"))
        (message,) = await taken(queue, 1)
        assert (message.body, message.attributes) == (b"broken", {**TRACE, REDRIVES_ATTRIBUTE: "1"})
        assert await queue.receive(1, 1) == []
        # All of it is within five minutes of the first message: the next redrive must not be taken for it.
        await bury(queue, OutgoingMessage(b"broken", message.attributes, group="g", deduplication_id="m2"))
        await asyncio.to_thread(redrive)
        (message,) = await taken(queue, 1)
        assert message.attributes[REDRIVES_ATTRIBUTE] == "2"
        await queue.aclose()


def test_a_parked_completion_is_tried_again_when_told(transload: Transload, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>", encoding="utf-8")
    bid = transload.ok("publish", tmp_path / "page.html", "--recipe", "fr", "--bid", "test-parked").strip()
    manifest = transload.home / "storage" / f"bundle_{bid}" / "bundle.meta"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("another bundle's", encoding="utf-8")
    transload.ok("run", "--until-idle")

    (parked,) = transload.lines("outbox", "ls")
    assert (parked["bid"], parked["state"]) == (bid, "parked")
    assert "bundle.meta" in parked["error"]
    refused = transload.run("replay", bid)
    assert refused.returncode == 1
    assert f"transload outbox retry {bid}" in refused.stderr
    nobody = transload.run("outbox", "retry", "test-nobody", "--json")
    assert (nobody.returncode, nobody.stdout) == (1, '{"retried": 0}\n')

    manifest.unlink()
    assert transload.lines("outbox", "retry", bid) == [{"retried": 1}]
    transload.ok("run", "--until-idle")
    assert [completion["bundle_id"] for completion in transload.lines("completions")] == [bid]


async def test_a_replayed_completion_has_the_same_id_and_bytes(
    localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    async with sqs_queues(localstack, lease=30) as queues:
        transload = configured(tmp_path, "publisher", "sqs", queues.options())
        event_id = await asyncio.to_thread(announced_twice, transload, tmp_path)
        queue = await SqsQueue.connect(SqsQueueOptions(**queues.options()))
        first, second = await taken(queue, 2)
        await queue.aclose()
    assert (first.body, first.attributes) == (second.body, second.attributes)
    assert json.loads(first.body)["event_id"] == event_id


def announced_twice(transload: Transload, folder: Path) -> str:
    (folder / "page.html").write_text("<p>", encoding="utf-8")
    bid = transload.ok("publish", folder / "page.html", "--recipe", "fr").strip()
    transload.ok("run", "--until-idle")
    (answer,) = transload.lines("replay", bid)
    assert (answer["before"], answer["replayed"]) == ("published", True)
    (again,) = transload.lines("replay", bid)
    assert (again["before"], again["replayed"]) == ("pending", False)
    transload.ok("run", "--until-idle")
    (entry,) = transload.lines("outbox", "ls", "--state", "published")
    assert (entry["bid"], entry["replays"]) == (bid, 1)
    return str(entry["event_id"])


def test_a_replay_of_what_is_not_complete_says_what_is_missing(transload: Transload, tmp_path: Path) -> None:
    unknown = transload.run("replay", "test-nobody")
    assert unknown.returncode == 1
    assert "no bundle test-nobody" in unknown.stderr
    (tmp_path / "page.html").write_text("<p>", encoding="utf-8")
    transload.ok("publish", tmp_path / "page.html", "--recipe", "fr", "--bid", "test-open", "--no-close")
    transload.ok("run", "--until-idle")
    not_yet = transload.run("replay", "test-open")
    assert not_yet.returncode == 1
    assert "bundle test-open is open: 1 resources are stored" in not_yet.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["dlq", "redrive"], "say --all"),
        (["dlq", "redrive", "--all", "id"], "neither IDs nor --where"),
        (["dlq", "redrive", "--where", "reasons=x"], "use id, reason, error"),
        (["dlq", "redrive", "--all", "--rate", "0"], "0.5/s"),
        (["dlq", "redrive", "--all", "--rate", "nan"], "0.5/s"),
        (["dlq", "ls", "--where", "reason"], "FIELD=GLOB"),
        (["dlq", "purge", "--all"], "say --yes"),
        (["outbox", "ls", "--state", "lost"], "use pending, parked, published"),
        (["outbox", "retry"], "say --all"),
        (["outbox", "retry", "--all", "id"], "say --all"),
    ],
)
def test_wrong_arguments_say_what_to_give(tmp_path: Path, command: Sequence[str], words: str) -> None:
    """In this process, as nothing is done."""
    done = CliRunner().invoke(app, ["--home", str(tmp_path), *command])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "command",
    [
        "dlq",
        "dlq ls",
        "dlq show",
        "dlq redrive",
        "dlq purge",
        "outbox",
        "outbox ls",
        "outbox retry",
        "replay",
    ],
)
def test_help_says_what_it_does(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="transload")
    assert done.exit_code == 0
    assert f"Usage: transload {command}" in done.output
    assert len(done.output.split()) > 40
