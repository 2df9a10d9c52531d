"""What other users of the machine can see of a worker's secrets: its command line, and the files it makes."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer.main

from handlers.transforms.spool import Spool
from tests.faults.canaries.driving import message
from worker import bootstrap
from worker.cli import app
from worker.queues.base import OutgoingMessage
from worker.redaction import is_secret_name
from worker.settings import load_settings


def parameters(command: Any, path: str = "transload") -> Iterator[tuple[str, Any]]:
    """Every option and argument of every command."""
    for parameter in command.params:
        yield path, parameter
    for name, below in getattr(command, "commands", {}).items():
        yield from parameters(below, f"{path} {name}")


def test_case_106_no_command_takes_a_secret_as_an_argument() -> None:
    found = [*parameters(typer.main.get_command(app))]
    assert len(found) > 50
    assert len({path for path, _ in found}) > 20
    for path, parameter in found:
        spelled = [parameter.name or "", *parameter.opts, *parameter.secondary_opts]
        assert not [name for name in spelled if is_secret_name(name)], f"{path}: {spelled}"
        # Neither by a variable of its own, which `--help` would show with its value as the default.
        assert not parameter.envvar
        # Nor asked for, and hidden while it is typed: whoever types it may have it in a history.
        assert not getattr(parameter, "hide_input", False)


def files_of(home: Path) -> list[Path]:
    """Those that hold no payloads."""
    files = [path for path in home.rglob("*") if path.is_file()]
    return [path for path in files if path.relative_to(home).parts[0] not in {"staging", "storage"}]


@pytest.fixture
def generous() -> Iterator[None]:
    """Nothing is kept from anybody unless whoever makes a file says so."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous")
def test_case_106_everything_a_worker_keeps_for_itself_is_its_owners(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = load_settings(file=None, home=home, environ={})
    (home / "staging").mkdir(parents=True)
    payload = home / "staging" / "a"
    payload.write_bytes(b"a payload")

    modes: dict[str, int] = {}

    async def work() -> None:
        async with bootstrap.open_queue(settings) as queue:
            await queue.send([OutgoingMessage(message("custom-1", payload.as_uri()), {})])
        async with bootstrap.open_service(settings, admin=False) as service:
            await service.run(until_idle=True)
            assert service.progress.acked == 1
            # While everything is open: with the write-ahead logs of the databases.
            modes.update((path.name, stat.S_IMODE(path.stat().st_mode)) for path in files_of(home))

    asyncio.run(work())
    assert modes.keys() >= {"ledger.db", "ledger.db-wal", "queue.db", "queue.db-wal", "completions.db"}
    assert set(modes.values()) == {0o600}, modes
    # Payloads follow the umask: others are to read them.
    stored = [path for path in (home / "storage").rglob("*") if path.is_file()]
    assert stored
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored} == {0o666}


@pytest.mark.usefixtures("generous")
def test_case_106_spooled_payloads_have_no_name_and_no_reader(tmp_path: Path) -> None:
    spool = Spool(nullcontext)
    spool.open(tmp_path)
    try:
        spool.append([b"a payload"])
        assert spool._file is not None
        assert stat.S_IMODE(os.fstat(spool._file.fileno()).st_mode) == 0o600
        assert [*tmp_path.iterdir()] == []
    finally:
        spool.close()
