"""How `transload find` reads times."""

from datetime import UTC, datetime, timedelta

import pytest
import typer

from worker.cli_find import _time

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("5m", NOW - timedelta(minutes=5)),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T06:30", datetime(2026, 11, 1, 6, 30, tzinfo=UTC)),
        ("2026-11-01T06:30:00Z", datetime(2026, 11, 1, 6, 30, tzinfo=UTC)),
        ("2026-11-01T06:30+02:00", datetime(2026, 11, 1, 4, 30, tzinfo=UTC)),
    ],
)
def test_times(text: str, then: datetime) -> None:
    assert _time(text, NOW, "--since") == then.timestamp() * 1000


@pytest.mark.parametrize("text", ["", "2", "2y", "-2h", "h", "2026-13-01", "999999999w", "now"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="use 2h"):
        _time(text, NOW, "--since")
