import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backends.base import Attributes, single
from backends.file import FileBackend, FileOptions
from handlers.plan import StagingSource
from tests.conformance.ledgers import HOUR
from tests.support.housekeeping import World, opened
from worker import housekeeping
from worker.housekeeping import Housekeeping, Place, Swept
from worker.ledger.base import LedgerUnavailable
from worker.ledger.sql import SqlLedger
from worker.ledger.values import Retired, Transfer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as world:
        yield world


def keeping(world: World) -> Housekeeping:
    """One that forgets no bundle, so that what it knows of staging shows."""
    return world.housekeeping(keep_published=None)


# Staged payloads.


async def test_payloads_of_published_bundles_go_and_all_others_stay(world: World) -> None:
    await world.publish(*[f"p{number}" for number in range(5)])
    await world.complete("due")
    await world.stage("open", 0)
    assert await keeping(world).sweep_once() == Swept(staged=10)
    assert await world.staged() == ["due", "open"]
    assert await world.ledger.staged(0, 100) == []
    assert await keeping(world).sweep_once() == Swept()


async def test_a_bundle_of_many_resources_is_emptied(world: World) -> None:
    await world.publish("b", resources=100)
    assert (await keeping(world).sweep_once()).staged == 100
    assert await world.staged() == []


async def test_payloads_stay_for_as_long_as_they_are_to(world: World) -> None:
    await world.publish("b")
    assert await world.housekeeping(keep_published=None, delete_after=HOUR).sweep_once() == Swept()
    assert await world.staged() == ["b"]


async def test_a_payload_that_is_gone_is_fine(world: World) -> None:
    await world.publish("b")
    await world.staging.delete("b/0")
    assert await keeping(world).sweep_once() == Swept(staged=1)
    assert await world.ledger.staged(0, 100) == []


async def test_a_source_without_the_flag_is_left_alone(world: World) -> None:
    await world.publish("b")
    assert await world.housekeeping(keep_published=None, deletable={}).sweep_once() == Swept()
    assert await world.staged() == ["b"]
    assert await world.ledger.staged(0, 100) == ["b"], "the flag may be set later"


async def test_of_two_sources_only_the_one_with_the_flag_is_emptied(world: World, tmp_path: Path) -> None:
    other = await FileBackend.connect(FileOptions(root=tmp_path / "other"))
    await other.write("k", single(b"x"), Attributes())
    sources = [StagingSource("other", other.location), world.source]
    await world.stage("b", 0, count=2)
    await world.stage("b", 1, location=f"{other.location}k", count=2)
    await world.announce()
    assert await world.housekeeping(keep_published=None, sources=sources).sweep_once() == Swept(staged=1)
    assert await world.staged() == []
    assert await other.stat("k") is not None
    await other.aclose()


async def test_places_of_no_source_are_passed_over_and_told_once(world: World) -> None:
    outside = world.home / "outside"
    await asyncio.to_thread(outside.write_text, "x")
    locations = [f"file://{outside}", f"{world.staging.location}../outside", "s3://other/key", "nonsense"]
    for number, location in enumerate(locations):
        await world.stage("b", number, location=location, count=5)
    await world.stage("b", 4, count=5)
    await world.announce()
    keeper = keeping(world)
    with capture_logs() as logs:
        assert await keeper.sweep_once() == Swept(staged=1)
        await world.stage("b", 5, location="s3://other/late")
        assert await keeper.sweep_once() == Swept()
    assert outside.exists()
    assert [line["log_level"] for line in logs] == ["warning", "info", "info"]
    assert await world.ledger.staged(0, 100) == []


async def test_case_79_a_late_resource_is_unstaged_too(world: World) -> None:
    await world.publish("b")
    await keeping(world).sweep_once()
    assert (await world.stage("b", 2)).late
    assert await world.staged() == ["b"]
    assert await keeping(world).sweep_once() == Swept(staged=1)
    assert await world.staged() == []


async def test_case_79_a_resource_that_comes_just_before_the_mark_is_unstaged_too(world: World) -> None:
    class Ledger(SqlLedger):
        async def mark_unstaged(self, seen: Mapping[str, int]) -> None:
            if seen["a"] == 2:
                assert (await world.stage("a", 2)).late
            await super().mark_unstaged(seen)

    await world.publish("a", "b")
    ledger = Ledger(world.ledger._database)
    swept = await world.housekeeping(keep_published=None, ledger=ledger).sweep_once()
    assert swept == Swept(staged=5)
    assert await world.staged() == []
    assert await world.ledger.staged(0, 100) == []


async def test_case_79_a_late_resource_that_a_target_waits_for_keeps_its_bundle(world: World) -> None:
    class Ledger(SqlLedger):
        """A late resource is stored, but for its best-effort target, between the look for bundles and that for payloads."""

        async def staged(self, age: float, limit: int) -> Sequence[str]:
            found = await super().staged(age, limit)
            if not await world.ledger.missing("a"):
                await world.stage("a", 9, missing=(Transfer("spare", error="down"),))
            return found

    await world.publish("a")
    await world.housekeeping(keep_published=None, ledger=Ledger(world.ledger._database)).sweep_once()
    assert len([found async for found in world.staging.list("a/")]) == 3


def bar(world: World, *bids: str) -> None:
    """Let the payloads of these bundles lie behind a link, where the backend does not go."""
    for bid in bids:
        (world.home / f"staging/{bid}").rename(world.home / f"barred-{bid}")
        (world.home / f"staging/{bid}").symlink_to(world.home / f"barred-{bid}")


def unbar(world: World, *bids: str) -> None:
    for bid in bids:
        (world.home / f"staging/{bid}").unlink()
        (world.home / f"barred-{bid}").rename(world.home / f"staging/{bid}")


async def test_a_bundle_that_fails_does_not_stop_the_others_and_is_tried_in_the_next_round(
    world: World,
) -> None:
    await world.publish("a", "b", "c", "d")
    bar(world, "b")
    keeper = keeping(world)
    with capture_logs() as logs:
        assert await keeper.sweep_once() == Swept(staged=6, failures=1)
    assert [line["bid"] for line in logs if line["log_level"] == "warning"] == ["b"]
    assert await world.ledger.staged(0, 100) == ["b"]
    assert await keeper.sweep_once() == Swept(failures=1)
    unbar(world, "b")
    assert await keeper.sweep_once() == Swept(staged=2)
    assert await world.staged() == []


async def test_bundles_that_keep_failing_do_not_hide_those_behind_them(world: World) -> None:
    await world.publish("a", "b", "c", "good", "better")
    bar(world, "a", "b", "c")
    keeper = keeping(world)
    assert await keeper.sweep_once() == Swept(failures=2), "a whole batch failed: enough for this round"
    assert await keeper.sweep_once() == Swept(staged=4, failures=1)
    assert await world.staged() == []
    unbar(world, "a", "b", "c")
    assert await keeper.sweep_once() == Swept(staged=6)


async def test_case_101_only_so_many_that_failed_are_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_PUT_OFF", 2)
    bids = [f"b{number}" for number in range(9)]
    await world.publish(*bids)
    bar(world, *bids)
    keeper = keeping(world)
    for _ in range(9):
        await keeper.sweep_once()
        assert len(keeper._put_off) <= 4
    unbar(world, *bids)
    while await world.staged():
        await keeper.sweep_once()


@pytest.mark.parametrize("bids", [["a"], ["a", "b", "c"]], ids=["few", "more than a batch"])
async def test_while_staging_does_not_answer_nothing_is_forgotten(world: World, bids: list[str]) -> None:
    await world.publish(*bids)
    (world.home / "staging").rename(world.home / "unmounted")
    keeper = world.housekeeping(places=[])
    assert await keeper.sweep_once() == Swept(failures=min(len(bids), 2))
    assert await world.known() == bids
    (world.home / "unmounted").rename(world.home / "staging")
    assert sum([(await keeper.sweep_once()).bundles for _ in range(2)]) == len(bids), "what failed is put off"


# Rows.


async def test_case_13_only_bundles_whose_completion_is_out_are_forgotten(world: World) -> None:
    await world.complete("parked")
    (row,) = await world.ledger.claim(1, HOUR)
    await world.ledger.park(row, "refused")
    await world.publish("p0", "replayed", "p1", "p2", "p3")
    await world.ledger.replay("replayed")
    await world.complete("pending")
    await world.stage("open", 0)
    swept = await world.housekeeping().sweep_once()
    assert swept.bundles == 4
    assert await world.known() == ["open", "parked", "pending", "replayed"]
    assert {row.bid for row in await world.ledger.outbox()} == {"parked", "pending", "replayed"}
    assert await world.ledger.find("p0/0") is None
    await world.announce()
    assert (await world.housekeeping().sweep_once()).bundles == 2
    assert await world.known() == ["open", "parked"]


@pytest.mark.parametrize("keep", [None, HOUR])
async def test_published_bundles_are_kept_for_as_long_as_is_said(world: World, keep: float | None) -> None:
    await world.publish("a", "b", "c")
    assert (await world.housekeeping(keep_published=keep).sweep_once()).bundles == 0
    assert await world.known() == ["a", "b", "c"]


async def test_notes_of_tries_are_forgotten_when_they_are_old(world: World) -> None:
    for number in range(5):
        await world.ledger.begin("queue", f"m{number}")
    assert await world.housekeeping(keep_attempts=HOUR).sweep_once() == Swept()
    assert await world.housekeeping().sweep_once() == Swept(attempts=5)
    assert await world.ledger.attempts("queue", "m0") == []


# Leftovers.


def leave(directory: Path, age: float = 0.0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".transload-dead-0.part"
    path.write_bytes(b"half")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


async def test_i6_leftovers_go_once_they_are_old(world: World) -> None:
    old = [leave(world.home / "staging/x", HOUR), leave(world.home / "storage/y", HOUR)]
    young = leave(world.home / "storage/z", HOUR / 4)
    assert await world.housekeeping(sweep_after=HOUR / 2).sweep_once() == Swept(leftovers=2)
    assert [path.exists() for path in [*old, young]] == [False, False, True]


async def test_what_lies_beside_the_prefix_stays(world: World) -> None:
    ours, others = leave(world.home / "storage/ours/x"), leave(world.home / "storage/ours-not")
    places = [Place("main", world.target, "ours")]
    assert await world.housekeeping(places=places).sweep_once() == Swept(leftovers=1)
    assert [ours.exists(), others.exists()] == [False, True]


async def test_a_place_that_failed_is_looked_at_again_in_the_next_round(world: World) -> None:
    keeper = world.housekeeping(sweep_after=HOUR)
    (world.home / "staging").rmdir()
    await keeper._round(leftovers=True)
    assert keeper._leftovers_due == 0
    (world.home / "staging").mkdir()
    await keeper._round(leftovers=True)
    assert keeper._leftovers_due > 0


async def test_a_place_that_fails_does_not_stop_the_next(world: World) -> None:
    leave(world.home / "storage")
    (world.home / "staging").rmdir()
    with capture_logs() as logs:
        assert await world.housekeeping().sweep_once() == Swept(leftovers=1, failures=1)
    assert [line["what"] for line in logs if line["log_level"] == "warning"] == ["leftovers in staging-main"]


# Rounds.


async def until_cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Counting(SqlLedger):
    """Counts rounds; `fails` rounds fail at first."""

    def __init__(self, world: World, fails: int = 0, error: Exception | None = None) -> None:
        super().__init__(world.ledger._database)
        self.rounds = 0
        self.fails = fails
        self.error = error or LedgerUnavailable("busy")
        self.third = asyncio.Event()

    async def retire(self, age: float, limit: int, *, unstaged_only: bool = False) -> Retired:
        self.rounds += 1
        if self.rounds == 3:
            self.third.set()
        if self.rounds <= self.fails:
            raise self.error
        return await super().retire(age, limit, unstaged_only=unstaged_only)


async def test_rounds_follow_each_other_until_cancelled(world: World) -> None:
    await world.publish("a")
    ledger = Counting(world, fails=2)
    keeper = world.housekeeping(ledger=ledger)
    with capture_logs() as logs:
        task = asyncio.create_task(keeper.run())
        async with asyncio.timeout(10):
            await ledger.third.wait()
        await until_cancelled(task)
    failed = [line for line in logs if line["log_level"] == "warning"]
    assert [line["what"] for line in failed] == ["published bundles"] * 2
    assert task.cancelled()


async def test_leftovers_are_looked_for_once_in_their_age(world: World) -> None:
    looked: list[float] = []

    class Target(FileBackend):
        async def sweep(self, older_than: float, prefix: str = "") -> int:
            looked.append(older_than)
            return await super().sweep(older_than, prefix)

    target = await Target.connect(FileOptions(root=world.home / "storage"))
    for age in (HOUR, 0.0):
        looked.clear()
        ledger = Counting(world)
        keeper = world.housekeeping(ledger=ledger, places=[Place("main", target)], sweep_after=age)
        task = asyncio.create_task(keeper.run())
        async with asyncio.timeout(10):
            await ledger.third.wait()
        await until_cancelled(task)
        # Each round looks after its third step, which the last one may not have passed.
        assert looked == [age] if age else len(looked) >= 2
    await target.aclose()


async def test_what_nobody_foresaw_ends_the_run(world: World) -> None:
    ledger = Counting(world, fails=1, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(10):
            await world.housekeeping(ledger=ledger).run()


async def test_what_was_removed_is_counted(world: World) -> None:
    await world.publish("a", "b")
    await world.ledger.begin("queue", "m")
    leave(world.home / "storage")
    with capture_logs() as logs:
        await world.housekeeping().sweep_once()
    counts = {"staged": 4, "bundles": 2, "attempts": 1, "leftovers": 1}
    (line,) = logs
    assert {name: line[name] for name in counts} == counts
    shown = world.metrics.render().decode()
    for what, number in counts.items():
        assert f'transload_housekeeping_removed_total{{what="{what}"}} {float(number)}' in shown
