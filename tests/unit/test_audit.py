"""Who the audit trail names, how long it is kept, and times on the command line."""

import os
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.housekeeping import World, opened
from worker import audit, bootstrap, moments
from worker.housekeeping import Swept
from worker.ledger.sql import SqlLedger
from worker.ledger.values import AuditQuery, AuditRecord
from worker.settings import SettingsError, load_settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as world:
        await SqlLedger(world.ledger._database, actor="a").audit([AuditRecord("removed")] * 5)
        yield world


async def test_housekeeping_deletes_what_is_old(world: World) -> None:
    assert await world.housekeeping(keep_audit=3600).sweep_once() == Swept()
    assert await world.housekeeping().sweep_once() == Swept(), "for ever, unless told"
    assert await world.housekeeping(keep_audit=0).sweep_once() == Swept(audit=5)
    assert b'transload_housekeeping_removed_total{what="audit"} 5.0' in world.metrics.render()


async def test_the_settings_reach_housekeeping(tmp_path: Path) -> None:
    environ = {"TRANSLOAD_AUDIT__KEEP": "86400"}
    async with bootstrap.open_housekeeping(
        load_settings(file=None, home=tmp_path, environ=environ)
    ) as keeping:
        assert keeping._settings.keep_audit == 86_400
    with pytest.raises(SettingsError, match=r"AUDIT__KEEP|audit\.keep"):
        load_settings(file=None, home=tmp_path, environ={"TRANSLOAD_AUDIT__KEEP": "60"})


@pytest.mark.parametrize(
    ("enabled", "actor", "expected"),
    [
        ("true", None, [audit.operator()]),
        ("true", audit.worker(), [f"worker@{socket.gethostname()}"]),
        ("false", audit.worker(), []),
    ],
)
async def test_whom_a_ledger_names(
    tmp_path: Path, enabled: str, actor: str | None, expected: list[str]
) -> None:
    settings = load_settings(file=None, home=tmp_path, environ={"TRANSLOAD_AUDIT__ENABLED": enabled})
    async with bootstrap.open_ledger(settings, actor) as ledger:
        await ledger.audit([AuditRecord("removed")])
        assert [row.actor async for row in ledger.audit_trail(AuditQuery())] == expected


def test_an_operator_is_who_the_process_runs_as(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert "somebody-else" not in audit.operator()
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert audit.operator() == f"cli:4000000000@{socket.gethostname()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
        ("2026-02-28T05:00", datetime(2026, 2, 28, 5, tzinfo=UTC)),
        ("2026-02-28T05:00:00.123Z", datetime(2026, 2, 28, 5, 0, 0, 123_000, tzinfo=UTC)),
        ("2026-11-21T10:04:07.709Z", datetime(2026, 11, 21, 10, 4, 7, 709_000, tzinfo=UTC)),
        ("2026-02-28T05:00+01:00", datetime(2026, 2, 28, 4, tzinfo=UTC)),
    ],
)
def test_times_as_people_write_them(text: str, expected: datetime) -> None:
    assert moments.milliseconds(text, NOW) == round(expected.timestamp() * 1000)


@pytest.mark.parametrize("text", ["", "h", "-2h", "2", "tomorrow", "999999999w", "2026-13-01", "2h3m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; use"):
        moments.milliseconds(text, NOW)
