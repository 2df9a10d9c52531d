"""Drives one adapter into one kind of trouble, as a process would meet it, and gathers all that was written meanwhile."""

import asyncio
import io
import json
import logging
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import yaml

from backends.registry import BACKENDS
from tests.faults.canaries.subjects import LOGIN, Subject
from tests.faults.canaries.words import around, everything_below, found_in
from tests.support import echoing
from tests.support.spans import Spans
from worker import bootstrap, cli, render, uncaught
from worker.dead_letters import look_at
from worker.invocation import Invocation
from worker.queues.base import OutgoingMessage
from worker.secret_values import Hidden
from worker.settings import Settings

SECONDS: Final = 3.0
"""For a worker that does not come to an end by itself."""
_MODULE: Final = """\
from base64 import b64encode

default_options = {}


def save(key, opts, payload):
    # The adapter knows the key as it is; encoded it gets further.
    raise ConnectionError(f"{b64encode(opts['api_key'].encode())} cannot save with {opts} at https://u:{opts['api_key']}@store/")


def get(key, opts):
    return None
"""


@dataclass(frozen=True, slots=True)
class Written:
    """Everything that left the process."""

    content: bytes
    heard: bytes
    """What the server was told."""
    more: tuple[str, ...]

    @property
    def leaks(self) -> list[str]:
        """Each form of the secret that is in there, with what stands around it."""
        return [around(self.content, needle) for needle in found_in(self.content, self.more)]


def drive(subject: Subject, answer: str, folder: Path, *, commands: bool = True) -> Written:
    """Everything the process writes while the adapter's server answers so. `commands`: those of the command line too."""
    given, home = folder / "given", folder / "home"
    given.mkdir()
    home.mkdir()
    (given / "wrapped").write_bytes(b"w" * 100)
    (given / "canary_module.py").write_text(_MODULE, encoding="utf-8")
    (folder / "is-a-file").write_bytes(b"")
    with _server(subject, answer) as server, _captured() as stream, _importable(given):
        url = f"https://127.0.0.1:{server.port}" if answer == "tls" else server.url
        file = given / "transload.yaml"
        file.write_text(
            yaml.safe_dump(_sections(subject.settings(url, server.port, folder))), encoding="utf-8"
        )
        invocation = Invocation(file, home, {"HOME": str(home)}, Hidden())
        _work(invocation, subject, stream)
        if commands:
            for command in _commands(subject, given):
                _command(["--config", str(file), "--home", str(home), *command])
        heard = b"\n".join(server.heard)
    written = stream.getvalue().encode() + everything_below(home)
    return Written(written, heard, subject.more)


def _sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "worker": {"max_attempts": 1, "max_outage_attempts": 1, "drain_timeout": 0.2},
        "relay": {"retry_base": 0.05, "retry_cap": 0.1, "poll_interval": 0.05},
        "logs": {"level": "debug", "format": "json"},
        "admin": {"enabled": False},
        **sections,
    }


@contextmanager
def _server(subject: Subject, answer: str) -> Iterator[echoing.Echo]:
    if answer in {"nobody", "broken"}:
        with socket.socket() as taken:
            # Bound and not listening: nobody else gets the port meanwhile, and every connection is refused.
            taken.bind(("127.0.0.1", 0))
            yield echoing.Echo(taken.getsockname()[1])
    elif answer == "refused" and subject.login is None:
        with echoing.refusing_ssh() as server:
            yield server
    else:
        with echoing.listening(_talk(subject, answer)) as server:
            yield server


def _talk(subject: Subject, answer: str) -> echoing.Talk:
    if answer == "refused" and subject.login is not None:
        return subject.login
    if subject.answers is LOGIN:
        return echoing.raw_answer(answer)
    return echoing.http_answer("garbage" if answer == "tls" else answer)


class _Stream(io.StringIO):
    """Standard output and error of the process."""


@contextmanager
def _captured() -> Iterator[_Stream]:
    stream = _Stream()
    with redirect_stdout(stream), redirect_stderr(stream):
        yield stream


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("canary_module", None)


def _work(invocation: Invocation, subject: Subject, stream: _Stream) -> None:
    """A worker with one message, as `transload run` has it; what it ends with is told as the command would."""
    settings = None
    try:
        settings = invocation.settings()
        # Harsher than any setting: all that the SDKs have to say, with the headers they send.
        logging.getLogger().setLevel(logging.DEBUG)
        stream.write(f"{settings!r}\n{settings.redacted()}\n")
        with uncaught.hidden(invocation.hidden):
            asyncio.run(_worked(settings, subject, stream))
    except Exception as exc:  # noqa: BLE001 - every way to fail is to be told without the secret
        render.fail(exc, invocation.hidden)
        uncaught.tell(exc, invocation.hidden)
        if settings is not None:
            structlog.get_logger("canary").error("failed", error=exc, exc_info=exc)
    finally:
        logging.getLogger().setLevel(logging.WARNING)


async def _worked(settings: Settings, subject: Subject, stream: _Stream) -> None:
    if settings.queue.type == "embedded":
        await _announce(settings, subject)
    spans = Spans()
    tracing = None if settings.tracing.enabled else spans.tracing(settings)
    async with bootstrap.open_service(settings, tracing=tracing) as service:
        run = asyncio.create_task(service.run(until_idle=True))
        # What is published for ever, or received for ever, comes to no end by itself.
        patience = 0.8 if subject.role in {"queue", "publisher", "beside"} else SECONDS
        await asyncio.wait({run}, timeout=patience)
        service.stop()
        await run
        stream.write(service._metrics.render().decode())
        stream.write(repr(vars(service)))
    stream.writelines(f"{span.to_json()}\n" for span in spans.all)
    if settings.queue.type == "embedded":
        async with bootstrap.open_queue(settings) as queue, look_at(queue) as look:
            for letter in await look.more():
                stream.write(f"{letter}\n{letter.delivery.message}\n")


async def _announce(settings: Settings, subject: Subject) -> None:
    bid = str(uuid.uuid4())
    location = _staged(settings)
    if subject.role == "staging":
        name = next(name for name in settings.staging if name != "main")
        place = settings.staging[name]
        location = BACKENDS.load(place.backend).location_of(place.options) + "a/b.txt"
    async with bootstrap.open_queue(settings) as queue:
        await queue.send([OutgoingMessage(message(bid, location), {})])


def _staged(settings: Settings) -> str:
    root = Path(settings.staging["main"].options.model_dump()["root"])
    root.mkdir(parents=True, exist_ok=True)
    (root / "a.txt").write_bytes(b"a payload")
    return f"file://{root}/a.txt"


def message(bid: str, location: str, url: str = "https://example.com/a.txt") -> bytes:
    """A bundle of one resource."""
    return json.dumps(
        {
            "type": "resource.fetched",
            "version": 1,
            "id": f"{bid}/1",
            "bundle": {"bid": bid, "recipe_id": "fr", "primary_url": url, "resources_count": 1},
            "resource": {"url": url, "content_type": "text/plain", "status_code": 200},
            "payload": {"location": location},
        }
    ).encode()


def _commands(subject: Subject, given: Path) -> Sequence[Sequence[str]]:
    (given / "message.json").write_bytes(message(str(uuid.uuid4()), "file:///nowhere/a.txt"))
    commands: list[Sequence[str]] = [
        ["config", "check"],
        ["config", "show"],
        ["doctor", "--write", "--timeout", "2"],
        ["explain", str(given / "message.json")],
        ["status"],
        ["dlq", "ls", "--json"],
        ["publish", str(given / "message.json"), "--recipe", "fr"],
    ]
    if subject.role == "target":
        commands += [["ls", "main:"], ["get", "main:a.txt"], ["stat", "main:a.txt"], ["sweep"]]
    if subject.name.startswith(("s3", "sqs")):
        commands.append(["provision", "--check"])
    return commands


def _command(arguments: Sequence[str]) -> None:
    """As the console script, in this process."""
    before = sys.argv
    sys.argv = ["transload", *arguments]
    try:
        cli.main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
