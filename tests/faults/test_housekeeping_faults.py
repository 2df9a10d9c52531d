"""Housekeeping in a process that is killed somewhere in it, and the next one that goes on."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.conformance.ledgers import HOUR
from tests.support.housekeeping import World, opened
from tests.support.programs import begin

UNSENT = ["open", "parked", "pending", "replayed"]
PUBLISHED = ["p0", "p1", "p2", "p3", "p4"]


async def killed_at(home: Path, place: str) -> None:
    """Announce and sweep in a child that dies at that failpoint, or fail if it never comes there."""
    child = await begin("-m", "tests.support.housekeeping", str(home), f"{place.replace('@', '=kill@')}")
    async with asyncio.timeout(60):
        assert await child.wait() == -signal.SIGKILL


async def fill(world: World) -> None:
    """Five bundles that are due, of which the child makes published ones, and one of each kind that has to stay."""
    await world.complete("parked")
    (row,) = await world.ledger.claim(1, HOUR)
    await world.ledger.park(row, "refused")
    await world.publish("replayed")
    await world.ledger.replay("replayed")
    await world.complete("pending")
    for row in await world.ledger.claim(10, HOUR):
        await world.ledger.postpone(row, HOUR, "not now")
    await world.stage("open", 0)
    await world.complete(*PUBLISHED)


async def assert_unsent_are_whole(world: World) -> None:
    bodies = {row.bid: row.state for row in await world.ledger.outbox() if row.bid in UNSENT}
    assert bodies == {"parked": "parked", "pending": "pending", "replayed": "pending"}
    for bid in UNSENT:
        assert await world.ledger.bundle(bid) is not None
        resources = [resource async for resource in world.ledger.resources(bid)]
        assert len(resources) == (1 if bid == "open" else 2)
        assert all(len(resource.objects) == 2 for resource in resources)
        assert await world.ledger.find(f"{bid}/0") == "fingerprint-0"


@pytest.mark.parametrize(
    "place",
    [
        "ledger.mark.after@1",
        "housekeeping.unstage.before@1",
        "housekeeping.unstage.before@4",
        "file.unlink.before@3",
        "file.unlink.after@3",
        "housekeeping.unstage.after@4",
        "ledger.mark_unstaged.before@1",
        "ledger.mark_unstaged.after@2",
    ],
)
async def test_case_11_killed_after_the_mark_the_next_run_deletes_what_is_published(
    tmp_path: Path, place: str
) -> None:
    async with opened(tmp_path) as world:
        await fill(world)
        await killed_at(tmp_path, place)
        staged = await world.staged()
        assert {*staged} >= {"open", "parked", "pending"}
        swept = await world.housekeeping(keep_published=None).sweep_once()
        assert swept.failures == 0
        # What was announced once is published, whatever is to be announced anew.
        assert await world.staged() == ["open", "parked", "pending"]
        assert await world.ledger.staged(0, 100) == []
        await assert_unsent_are_whole(world)


@pytest.mark.parametrize(
    "place",
    [
        "ledger.retire.before@1",
        "ledger.retire.before@2",
        "ledger.retire.after@1",
        "ledger.retire.after@2",
        "ledger.forget_attempts.before@1",
        "ledger.forget_attempts.after@1",
    ],
)
async def test_case_13_killed_while_the_ledger_forgets_no_unsent_row_is_lost(
    tmp_path: Path, place: str
) -> None:
    async with opened(tmp_path) as world:
        await fill(world)
        for number in range(5):
            await world.ledger.begin("queue", f"m{number}")
        await killed_at(tmp_path, place)
        await assert_unsent_are_whole(world)
        left = [bid for bid in await world.known() if bid not in UNSENT]
        for bid in left:
            bundle = await world.ledger.bundle(bid)
            assert bundle is not None
            assert bundle.stored_count == len([each async for each in world.ledger.resources(bid)]) == 2
        swept = await world.housekeeping().sweep_once()
        assert (swept.bundles, swept.failures) == (len(left), 0)
        assert await world.known() == UNSENT
        assert await world.ledger.attempts("queue", "m4") == []
        await assert_unsent_are_whole(world)
