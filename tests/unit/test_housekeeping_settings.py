"""What the settings make of the housekeeping and of the transfers' memory."""

import os
from pathlib import Path

import pytest

from handlers.plan import StagingSource
from tests.support.housekeeping import opened
from worker.bootstrap import open_housekeeping, open_service
from worker.housekeeping import HousekeepingSettings, Swept
from worker.settings import Settings, SettingsError, load_settings

DAY = 86_400.0


def load(home: Path, text: str = "") -> Settings:
    file = home / "t.yaml"
    file.write_text(text or "{}\n")
    return load_settings(file=file, home=home, environ={"HOME": str(home)})


async def test_by_default_only_leftovers_and_old_notes_go(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.publish("b")
    for part, age in (("staging", 2 * DAY), ("storage", 2 * DAY), ("storage/young", DAY / 2)):
        path = tmp_path / part / ".transload-dead-0.part"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    async with open_housekeeping(load(tmp_path)) as housekeeping:
        assert await housekeeping.sweep_once() == Swept(leftovers=2)
    async with opened(tmp_path) as world:
        assert await world.staged() == ["b"]
        assert await world.known() == ["b"]


async def test_a_staging_source_that_says_so_is_emptied(tmp_path: Path) -> None:
    text = """
        staging:
          main: {delete_published: true, root: ./staging}
          other: {root: ./other}
    """
    async with opened(tmp_path) as world:
        await world.publish("a")
        location = StagingSource("other", f"file://{tmp_path}/other/").location_of("k")
        await world.stage("b", 0, location=location, count=1)
        await world.announce()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/k").touch()
    async with open_housekeeping(load(tmp_path, text)) as housekeeping:
        assert await housekeeping.sweep_once() == Swept(staged=2)
    assert (tmp_path / "other/k").exists()


async def test_the_longest_wait_of_the_sources_that_delete_counts(tmp_path: Path) -> None:
    text = """
        staging:
          main: {delete_published: true, delete_after: 5, root: ./staging}
          other: {delete_published: true, delete_after: 3600, root: ./other}
          third: {delete_after: 7200, root: ./third}
        housekeeping: {interval: 30, batch: 7, keep_published: 1296000, keep_attempts: 1300000, sweep_after: 4000}
    """
    async with open_housekeeping(load(tmp_path, text)) as housekeeping:
        assert housekeeping._settings == HousekeepingSettings(
            interval=30,
            batch=7,
            delete_after=3600,
            keep_published=1_296_000,
            keep_attempts=1_300_000,
            sweep_after=4000,
        )


@pytest.mark.parametrize(
    "text",
    [
        "housekeeping: {keep_published: 1295999}",
        "housekeeping: {keep_attempts: 1295999}",
        "housekeeping: {sweep_after: 3599}",
        "housekeeping: {interval: 0}",
        "housekeeping: {batch: 0}",
        "staging: {main: {delete_after: 1209601}}",
        "worker: {transfer_memory: 8388607}",
        "worker: {large_transfers: 4}",
    ],
)
def test_what_would_lose_something_or_cannot_work_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        load(tmp_path, text)


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_worker_does_it_unless_told_not_to(tmp_path: Path, *, enabled: bool) -> None:
    settings = load(tmp_path, f"housekeeping: {{enabled: {str(enabled).lower()}}}")
    async with open_service(settings, admin=False) as service:
        assert (service._housekeeping is not None) is enabled


async def test_the_memory_held_is_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, "worker: {transfer_memory: 16777216}")
    async with (
        open_service(settings, admin=False) as service,
        service._settler._pipeline._budget.hold(1 << 40),
    ):
        shown = service._metrics.render().decode()
    values = [line.split()[1] for line in shown.splitlines() if line.startswith("transload_transfer_memory")]
    assert [float(value) for value in values] == [16_777_216 * 7 / 8]
