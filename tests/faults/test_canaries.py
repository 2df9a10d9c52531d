"""The quick form of `make canaries`: every adapter that holds a secret, before a server that repeats it, and the places besides."""

import asyncio
import io
import json
import logging
import sys
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args
from urllib.error import HTTPError

import pytest
import structlog
import yaml
from pydantic import SecretStr

from backends.registry import BACKENDS
from tests.faults.canaries import driving
from tests.faults.canaries.driving import drive, message
from tests.faults.canaries.subjects import SUBJECTS, Subject
from tests.faults.canaries.words import MILD, PLAIN, SPICY, WORD, everything_below, found_in
from tests.support.spans import Spans
from worker import bootstrap, cli, logs, routing, uncaught
from worker.admin import AdminServer
from worker.health import Health
from worker.metrics import Metrics
from worker.publishers.registry import PUBLISHERS
from worker.queues.base import OutgoingMessage
from worker.queues.registry import QUEUES
from worker.secret_values import hider, hiding
from worker.settings import SettingsError, load_settings

QUICK = {
    ("file", "broken"),
    ("memory", "broken"),
    ("s3", "409"),
    ("azure, SAS", "409"),
    ("gcs", "403"),
    ("sftp, password", "refused"),
    ("hdfs", "500"),
    ("http", "500"),
    ("postgres", "refused"),
    ("module", "broken"),
    ("sqs", "403"),
    ("rabbitmq", "refused"),
    ("postgresql", "refused"),
    ("tracing", "403"),
    ("cloudwatch", "403"),
    ("key", "broken"),
    ("kms", "403"),
    ("secrets manager", "403"),
}
ONCE = {("s3", "staging"), ("http", "staging"), ("sqs", "queue")}
"""Adapters that are tried in another role here, and in this one by the command."""
TELLS_NOBODY = {"file", "memory", "module", "azure, SAS", "gcs", "key"}
"""Adapters that send no secret as it is."""


def quick() -> Iterator[tuple[Subject, str]]:
    for subject in SUBJECTS:
        for answer in subject.answers:
            if (subject.name, answer) in QUICK and (subject.name, subject.role) not in ONCE:
                yield subject, answer


@pytest.mark.parametrize(
    ("subject", "answer"),
    [*quick()],
    ids=lambda each: each if isinstance(each, str) else f"{each.name}-{each.role}",
)
def test_case_99_no_adapter_in_trouble_tells_its_secret(
    subject: Subject, answer: str, tmp_path: Path
) -> None:
    written = drive(subject, answer, tmp_path, commands=False)
    assert written.leaks == []
    assert len(written.content) > 200
    if subject.name not in TELLS_NOBODY:
        assert WORD.encode() in written.heard


def test_every_adapter_is_among_them() -> None:
    targets = {
        subject.name.partition(",")[0] for subject in SUBJECTS if subject.role in {"target", "staging"}
    }
    assert targets == set(BACKENDS.entries)
    for role, registry in (("queue", QUEUES), ("publisher", PUBLISHERS)):
        tried = {subject.name for subject in SUBJECTS if subject.role == role}
        # The embedded ones and the one in memory hold no secret.
        assert tried == set(registry.entries) - {"embedded", "memory"}
    assert {name for name, _ in QUICK} <= {subject.name for subject in SUBJECTS}


@pytest.mark.parametrize(
    "spelled",
    [
        WORD,
        WORD.encode().hex(),
        *(b64encode(f"{before}{WORD}!".encode()).decode() for before in ("", "a", "ab")),
    ],
)
def test_the_search_finds_the_canary(spelled: str) -> None:
    assert found_in(f"before {spelled} after".encode())
    assert not found_in(b"before after")


# Settings


def secret_options() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Section, the least it needs, and the key that holds a secret: of every adapter and every plain section."""
    for section, registry in (("targets", BACKENDS), ("queue", QUEUES), ("publisher", PUBLISHERS)):
        for kind in registry.entries:
            for name, field in registry.load(kind).Options.model_fields.items():
                if SecretStr in {field.annotation, *get_args(field.annotation)}:
                    yield section, {"backend" if section == "targets" else "type": kind}, name
    yield "admin", {}, "token"
    yield "ledger", {}, "url"
    for section in ("secrets", "cloudwatch"):
        yield section, {}, "secret_access_key"
        yield section, {}, "session_token"


@pytest.mark.parametrize(("section", "needs", "key"), [*secret_options()])
def test_case_99_a_secret_of_the_wrong_kind_is_not_repeated(
    section: str, needs: dict[str, Any], key: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    wrong: list[dict[str, Any]] = [
        {key: [WORD], "nonsense": 1},
        {key: f"{WORD}\0", f"{key}s": WORD},
        {f"{key}_env": WORD},
        {f"{key}_env": [WORD], f"{key}_file": [{"x": WORD}], f"{key}_secret": {"x": WORD}},
    ]
    for each in wrong:
        given = {**needs, **each}
        file.write_text(
            yaml.safe_dump({section: {"m": given} if section == "targets" else given}), encoding="utf-8"
        )
        with pytest.raises(SettingsError) as caught:
            load_settings(file=file, home=tmp_path, environ={"HOME": str(tmp_path)})
        assert WORD not in str(caught.value)


def test_case_99_no_repr_shows_a_secret(tmp_path: Path) -> None:
    (tmp_path / "canary_module.py").write_text(driving._MODULE, encoding="utf-8")
    for subject in SUBJECTS:
        sections = dict(subject.settings("http://127.0.0.1:9", 9, tmp_path))
        if subject.name == "secrets manager":
            continue
        file = tmp_path / "t.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        settings = load_settings(file=file, home=tmp_path, environ={})
        shown = f"{settings!r} {settings} {settings.redacted()} {settings.model_dump()} {settings.model_dump_json()}"
        shown += repr(
            [[each.options for each in places.values()] for places in (settings.targets, settings.staging)]
        )
        if subject.role != "ledger" and subject.name != "module":
            # `model_dump` is for programs: it gives the ledger's URL and a module's options as they are.
            assert not found_in(shown.encode(), subject.more), subject.name
        assert not found_in(f"{settings!r} {settings.redacted()}".encode()), subject.name


# The places besides


def test_case_99_a_traceback_shows_neither_variables_nor_the_secret_of_any_cause() -> None:
    stream = io.StringIO()
    logs.configure("debug", "json", stream, hider([SPICY]))

    def refuse(password: str, headers: dict[str, str]) -> None:
        other = f"not to be seen: {password.upper()}"
        try:
            raise KeyError(headers)
        except KeyError as exc:
            raise ValueError(f"refused {password}", other[:3]) from exc

    try:
        refuse(SPICY, {"Authorization": f"Bearer {MILD}"})
    except ValueError:
        structlog.get_logger("t").exception("failed", exc_info=True)
        logging.getLogger("somebody.elses").exception("failed %s", SPICY)
    assert "ValueError: (" in stream.getvalue()
    assert "KeyError" in stream.getvalue()
    assert found_in(stream.getvalue().encode()) == []
    assert WORD.upper() not in stream.getvalue()


def test_case_99_what_nobody_catches_is_told_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    class Careless:
        def __del__(self) -> None:
            raise RuntimeError(f"cannot close {SPICY}")

        def __repr__(self) -> str:
            return f"Careless({SPICY})"

    def careless() -> None:
        raise RuntimeError(f"cannot run with {SPICY}") from OSError(SPICY)

    with uncaught.hidden(hider([SPICY])):
        Careless()
        thread = threading.Thread(target=careless, name="careless")
        thread.start()
        thread.join()
    told = capsys.readouterr().err
    assert "Careless" in told
    assert "Exception in thread careless" in told
    assert "RuntimeError: cannot run with" in told
    assert found_in(told.encode()) == []


def test_case_99_a_command_that_breaks_tells_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({"admin": {"token": PLAIN}}), encoding="utf-8")

    def broken(*_: object) -> None:
        raise ZeroDivisionError(f"with {PLAIN}")

    monkeypatch.setattr(routing, "make_handlers", broken)
    monkeypatch.setattr(sys, "argv", ["transload", "--config", str(file), "config", "check", "--fetch"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert "ZeroDivisionError: with **********" in told
    assert found_in(told.encode()) == []


def test_case_99_the_admin_endpoint_never_tells_its_token_or_what_it_was_sent() -> None:
    server = AdminServer(Metrics(), Health(), host="127.0.0.1", port=0, token=PLAIN)
    try:
        for path in ("/metrics", f"/{WORD}", f"/metrics?token={WORD}", "/livez", "/readyz"):
            for given in (f"Bearer {WORD}", f"Basic {WORD}", ""):
                request = urllib.request.Request(
                    f"http://127.0.0.1:{server.port}{path}", headers={"Authorization": given}
                )
                answer: Any = None
                try:
                    with urllib.request.urlopen(request) as found:  # noqa: S310 - as above
                        answer = (found.read(), str(found.headers))
                except HTTPError as exc:
                    with exc:
                        answer = (exc.read(), str(exc.headers))
                assert found_in(repr(answer).encode()) == []
    finally:
        server.close()


LOCATIONS = [
    f"https://user:{WORD}@host.example/key",
    f"https://bucket.s3.amazonaws.com/key?X-Amz-Credential={WORD}&X-Amz-Signature={WORD}&X-Amz-Security-Token={WORD}",
    f"https://acc.blob.core.windows.net/c/key?sv=2024-01-01&sig={WORD}%3D",
    f"https://storage.googleapis.com/b/k?X-Goog-Signature={WORD}",
    f"s3://AKIA:{WORD}@bucket/key",
    f"http://host.example/key?access_token={WORD}",
]


def test_case_99_secrets_in_a_message_stay_in_the_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, spans = io.StringIO(), Spans()
    settings = load_settings(file=None, home=tmp_path, environ={"TRANSLOAD_WORKER__MAX_ATTEMPTS": "1"})
    logs.configure("debug", "json", stream, hiding(settings))
    staged = tmp_path / "staging" / "a"
    staged.parent.mkdir()
    staged.write_bytes(b"a")

    async def work() -> None:
        async with bootstrap.open_queue(settings) as queue:
            await queue.send(
                [
                    OutgoingMessage(message(f"custom-{n}", location), {})
                    for n, location in enumerate(LOCATIONS)
                ]
            )
            await queue.send(
                [OutgoingMessage(message("custom-x", f"file://{staged}?sig={WORD}", LOCATIONS[0]), {})]
            )
        async with bootstrap.open_service(settings, admin=False, tracing=spans.tracing(settings)) as service:
            await service.run(until_idle=True)
            stream.write(service._metrics.render().decode())
        assert service.progress.dead == len(LOCATIONS) + 1

    asyncio.run(work())
    for number, location in enumerate(LOCATIONS):
        body = tmp_path / f"{number}.json"
        body.write_bytes(message(f"custom-{number}", location))
        monkeypatch.setattr(sys, "argv", ["transload", "--home", str(tmp_path), "explain", str(body)])
        with suppress(SystemExit):
            cli.main()
        body.unlink()
    captured = capsys.readouterr()
    written = stream.getvalue() + captured.out + captured.err + "".join(span.to_json() for span in spans.all)
    assert found_in(written.encode()) == []
    # The queue holds the messages as they came, and so do their dead letters; nothing else does.
    queue = [path for path in tmp_path.iterdir() if path.name.startswith("queue.db")]
    for path in queue:
        path.unlink()
    assert found_in(everything_below(tmp_path)) == []
    assert json.loads(message("b", LOCATIONS[0]))["payload"]["location"] == LOCATIONS[0]
