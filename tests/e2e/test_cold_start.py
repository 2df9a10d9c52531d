"""The console script itself, from nothing: the other tests fork their commands from a process that has imported everything
(tests/support/warm.py), and would not see what a command itself forgets to import."""

import importlib.metadata
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.support.cli import Transload
from tests.support.warm import Process, Source
from tests.support.workers import workers

SCRIPT = Path(sys.executable).with_name("transload")


class Script(Transload):
    """As a shell runs it."""

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(SCRIPT), *super().command(*arguments)[3:]]


EXTRAS = [
    "aiobotocore",
    "aiohttp",
    "aiormq",
    "asyncpg",
    "asyncssh",
    "azure",
    "botocore",
    "cryptography",
    "google",
    "isal",
    "obstore",
    "zstandard",
]
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); from worker.cli import main; main()"


class Bare(Transload):
    """As where it was installed without any extra: importing a name whose module is None fails."""

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-c", WITHOUT, *super().command(*arguments)[3:]]


@dataclass(frozen=True)
class Barely(Transload):
    """In a process forked from one that has imported what `source` says."""

    source: Source | None = None

    def begin(
        self,
        command: Sequence[str],
        *,
        stdin: IO[bytes],
        stdout: IO[bytes],
        stderr: IO[bytes],
        environ: Mapping[str, str] | None = None,
        cold: bool = False,
    ) -> Process:
        assert self.source is not None
        assert not cold
        streams = stdin.fileno(), stdout.fileno(), stderr.fileno()
        return self.source.fork(command, {**self.environment(), **(environ or {})}, streams)


MESSAGE = b"""{
    "type": "resource.fetched", "version": 1, "id": "m",
    "bundle": {"bid": "test-1", "recipe_id": "r"}, "resource": {"url": "https://example.com/", "status_code": 200},
    "payload": {"location": "file://HOME/staging/m"}
}"""


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home with one published bundle: where it lies, what is in it."""
    folder = tmp_path_factory.mktemp("cold")
    (folder / "in").mkdir()
    (folder / "in" / "file.txt").write_bytes(b"payload")
    transload = Transload(folder / "home")
    bid = transload.ok("publish", folder / "in", "--recipe", "r").strip()
    transload.ok("run", "--until-idle")
    ((found,),) = (line["objects"] for line in transload.lines("find", "--url", "*/file.txt"))
    return {
        "HOME": str(transload.home),
        "IN": str(folder / "in"),
        "OUT": str(folder / "out.txt"),
        "BID": bid,
        "ADDRESS": found["address"],
    }


COMMANDS = {
    "publish IN --recipe again": "",
    "run --until-idle": "messages done",
    "demo --from IN": "bundles",
    "status": "dead letters",
    "bundles": "published",
    "show BID": "file.txt",
    "completions": "1 resources",
    "verify BID": "BID",
    "replay BID": "BID",
    "ls main": "bundle.meta",
    "stat ADDRESS": "size",
    "get ADDRESS -o OUT": "verified",
    "find --bid BID": "file.txt",
    "doctor": "reachable",
    "sweep": "removed: ",
    "explain -": "main",
    "provision": "nothing to provision",
    "migrate": "up to date",
    "audit export": '"action": "stored"',
    "config check": "valid",
    "config schema": "properties",
    "config show": "targets",
    "dlq ls": "no dead letters",
    "outbox ls": "",
    "rm ADDRESS --yes --force": "ADDRESS",
}
"""What each says."""


@pytest.fixture(scope="module")
def imported() -> Iterator[Source]:
    """A process that has imported what every command imports first, and nothing else."""
    with closing(Source("worker.cli")) as source:
        yield source


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_finds_everything_it_needs(names: dict[str, str], imported: Source, line: str) -> None:
    words = [names.get(word, word) for word in line.split()]
    done = Barely(Path(names["HOME"]), source=imported).run(
        *words, stdin=MESSAGE.replace(b"HOME", names["HOME"].encode())
    )
    assert done.returncode == 0, done.stderr
    assert names.get(COMMANDS[line], COMMANDS[line]) in done.stdout + done.stderr


def test_the_script_itself(tmp_path: Path) -> None:
    transload = Script(tmp_path / "home", cold=True)
    assert "Event-driven storage worker" in transload.ok("--help")
    assert transload.ok("--version").strip() == importlib.metadata.version("transload")
    transload.ok("publish", Path(__file__), "--recipe", "r")
    transload.ok("run", "--until-idle")
    (completion,) = transload.lines("completions")
    assert completion["resources_count"] == 1


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = Script(tmp_path / "home", environ={"TRANSLOAD_WORKER__MAX_ATTEMPTS": "none"}, cold=True).run("run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "max_attempts" in done.stderr


def test_what_did_not_work_out_is_status_1(tmp_path: Path) -> None:
    done = Script(tmp_path / "home", cold=True).run("show", "test-none")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no bundle test-none" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_leaves_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    with workers(Script(tmp_path / "home", cold=True), tmp_path / "logs") as pool:
        worker = pool.start("run")
        worker.until(lambda: worker.drains)
        worker.process.send_signal(number)
        assert worker.wait() == 0, worker.tail()
        assert worker.says("0 messages done")


def test_everything_embedded_needs_no_extra(names: dict[str, str], tmp_path: Path) -> None:
    transload = Bare(tmp_path / "home", cold=True)
    assert "bundles" in transload.ok("demo", "--from", names["IN"])


def test_an_extra_that_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    config = tmp_path / "transload.yaml"
    config.write_text(
        "queue: {type: sqs, queue_url: 'http://127.0.0.1:9/000000000000/q', region: us-east-1}\n"
    )
    done = Bare(tmp_path / "home", config, cold=True).run("run", "--until-idle")
    assert done.returncode == 2
    assert "transload[sqs]" in done.stderr
