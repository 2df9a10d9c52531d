"""Group A of the failure catalogue: a worker is killed at one point on purpose, another one carries on, I1 to I8 hold.

Every test names the failpoint that stands for its case. Embedded queue, SQLite and files, unless the store or the queue makes
a difference. `make crash` visits every failpoint on every combination.

Cases 12, 14, 15 and 18 are in tests/conformance/test_ledgers.py,
tests/faults/test_drain.py and tests/faults/test_poison.py.
"""

import asyncio
import json
import signal
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from handlers.naming import resource_name
from tests.faults import power_cut, strokes
from tests.faults.scenarios import RUN, SCENARIOS, Stage
from tests.faults.worlds import (
    Combination,
    Place,
    Services,
    check,
    open_place,
    publish,
    publish_small,
)
from tests.support.history import Report
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_client
from tests.support.workers import workers
from worker import bootstrap, stores
from worker.ledger.database import open_database

Begin = Callable[..., Awaitable[Stage]]
EMBEDDED = Combination()
ARCHIVED: Mapping[str, Mapping[str, Any]] = {"targets": {"main": {"archive": "zip"}}}


@pytest.fixture
async def begin(tmp_path: Path) -> Any:
    """Makes a place with its pool of workers, cleared away at the end."""
    async with AsyncExitStack() as stack:

        async def make(
            combination: Combination = EMBEDDED,
            services: Services | None = None,
            changes: Mapping[str, Mapping[str, Any]] | None = None,
        ) -> Stage:
            place = await stack.enter_async_context(
                open_place(combination, services or Services(), tmp_path, changes=changes)
            )
            return Stage(place, stack.enter_context(workers(place.transload, tmp_path / "logs")), seed=1)

        yield make


async def killed(stage: Stage, failpoint: str, *arguments: str) -> None:
    """A worker dies there."""
    worker = stage.pool.start(*(arguments or RUN), failpoints=failpoint)
    assert await worker.ended() == -signal.SIGKILL, worker.tail()


async def recovered(stage: Stage) -> Report:
    """Another one carries on, and nothing is amiss. What was found."""
    await stage.done(*RUN)
    report = await check(stage.place, stage.load, [worker.log for worker in stage.pool.started])
    assert report.violations == []
    assert report.lost == set()
    return report


async def rows(place: Place, statement: str) -> list[tuple[Any, ...]]:
    """What the ledger answers."""
    database = open_database(place.settings.ledger.url)
    try:
        return await database.read(lambda conn: [tuple(row) for row in conn.execute(text(statement))])
    finally:
        await database.aclose()


def stored(place: Place) -> set[str]:
    """The file names in the target, finished or not."""
    return {path.name for path in (place.settings.home / "storage").rglob("*") if path.is_file()}


async def test_case_1_after_receive_before_any_row(begin: Begin) -> None:
    """`file.mkdir.before`: messages are taken, nothing is written."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "file.mkdir.before=kill")
    assert await rows(stage.place, "SELECT * FROM messages") == []
    async with bootstrap.open_queue(stage.place.settings) as queue:
        depth = await queue.depth()
        # Their lease is a second.
        assert depth.in_flight + depth.visible == 2
    await recovered(stage)


async def test_case_2_after_the_claim_is_committed(begin: Begin) -> None:
    """`relay.manifest.before`: a completion is claimed by a relay that is no more."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "relay.manifest.before=kill")
    assert await rows(stage.place, "SELECT state, attempts, generation FROM outbox") == [("pending", 1, 1)]
    await recovered(stage)
    assert await rows(stage.place, "SELECT state, generation FROM outbox") == [("published", 2)]


async def test_case_3_in_the_middle_of_a_download(begin: Begin) -> None:
    """`file.write.after`: some chunks of a payload of several are written."""
    stage = await begin(changes={"worker": {"concurrency": 1}})
    stage.load = await publish(stage.place, 1)
    # The small and the empty payload and their descriptions are a write each, in the order of the messages.
    await killed(stage, "file.write.after=kill@6")
    large = resource_name("https://example.com/large.bin")
    assert stored(stage.place).isdisjoint({large, f"{large}.meta"})
    await recovered(stage)
    assert large in stored(stage.place)


async def test_case_3_in_the_middle_of_a_multipart_upload(
    begin: Begin, localstack: LocalStackEndpoint
) -> None:
    """`s3.part.after`: an upload is open. It is no object, and a sweep removes it."""
    stage = await begin(Combination(backend="s3"), Services(localstack=localstack))
    stage.load = await publish(stage.place, 1)
    await killed(stage, "s3.part.after=kill")
    async with stores.open_targets(stage.place.settings) as targets:
        names = {found.key.rpartition("/")[2] async for found in targets["main"].list()}
    assert resource_name("https://example.com/large.bin") not in names
    report = await recovered(stage)
    assert report.swept == 1


async def test_case_4_a_manifest_is_half_written(begin: Begin) -> None:
    """`file.sync.before` of the manifest."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "relay.manifest.before=kill")
    await killed(stage, "file.sync.before=kill")
    assert "bundle.meta" not in stored(stage.place)
    await recovered(stage)
    assert "bundle.meta" in stored(stage.place)


async def test_case_4_an_archive_is_half_written(begin: Begin) -> None:
    """`file.sync.before` of the archive, then `relay.archive.after`: the redo finds the same bytes."""
    stage = await begin(changes=ARCHIVED)
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "relay.archive.before=kill")
    await killed(stage, "file.sync.before=kill")
    assert {"bundle.zip", "bundle.meta"}.isdisjoint(stored(stage.place))
    await killed(stage, "relay.archive.after=kill")
    before = identities(stage.place)
    assert "bundle.zip" in before
    assert "bundle.meta" not in before
    await recovered(stage)
    assert before.items() <= identities(stage.place).items()
    (bundle,) = stage.load.published
    folder = stage.place.settings.home / "storage" / f"bundle_{bundle.bid}"
    with zipfile.ZipFile(folder / "bundle.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            resource_name(url): data for url, data in bundle.payloads.items()
        }


async def test_case_5_after_the_fsync_before_the_name(begin: Begin) -> None:
    """`file.sync.after`: all bytes are on the disk, under no name."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "file.sync.after=kill")
    assert stored(stage.place) == set()
    await recovered(stage)


async def test_case_6_after_the_name_before_the_row(begin: Begin) -> None:
    """`file.link.after`: the redo finds the identical object and leaves it."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "file.link.after=kill")
    before = identities(stage.place)
    assert before
    assert await rows(stage.place, "SELECT * FROM messages") == []
    await recovered(stage)
    assert before.items() <= identities(stage.place).items()


def identities(place: Place) -> dict[str, tuple[int, int]]:
    """Inode and time of the last write of every file in the target."""
    found = ((path, path.stat()) for path in (place.settings.home / "storage").rglob("*") if path.is_file())
    return {path.name: (status.st_ino, status.st_mtime_ns) for path, status in found}


@pytest.mark.parametrize("failpoint", ["s3.put.after", "s3.complete.after"])
async def test_case_6_no_second_version_in_a_bucket(
    begin: Begin, localstack: LocalStackEndpoint, failpoint: str
) -> None:
    """After Put and after Complete, before the row: each key of a versioned bucket has one version in the end."""
    stage = await begin(Combination(backend="s3"), Services(localstack=localstack))
    bucket = stage.place.settings.targets["main"].options.model_dump()["bucket"]
    async with s3_client(localstack) as client:
        await client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        stage.load = await publish(stage.place, 1)
        await killed(stage, f"{failpoint}=kill")
        before = await versions(client, bucket)
        assert len(before) >= 1
        await recovered(stage)
        after = await versions(client, bucket)
    assert before.items() <= after.items()
    # Five resources and two manifests.
    assert len(after) == 7


async def versions(client: Any, bucket: str) -> dict[str, str]:
    """The one version of every key."""
    listed = await client.list_object_versions(Bucket=bucket)
    found = [(each["Key"], each["VersionId"]) for each in listed.get("Versions", [])]
    assert "DeleteMarkers" not in listed
    assert len({key for key, _ in found}) == len(found)
    return dict(found)


THREE: Mapping[str, Mapping[str, Any]] = {"targets": {"two": {}, "three": {}}}


def payloads(place: Place, target: str) -> list[Path]:
    """The payload files in a target."""
    root = place.settings.home / ("storage" if target == "main" else f"storage-{target}")
    return [path for path in root.rglob("*") if path.is_file() and path.suffix not in {".meta", ".json"}]


async def test_case_7_after_some_of_three_targets(begin: Begin) -> None:
    """`ledger.note_transfers.after`: a target has the payload, and the ledger knows."""
    stage = await begin(changes=THREE)
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "ledger.note_transfers.after=kill")
    noted = await rows(stage.place, "SELECT target, stored FROM transfers WHERE state = 'stored'")
    assert 1 <= len({target for target, _ in noted}) <= 2 * len(THREE["targets"])
    await recovered(stage)
    assert all(payloads(stage.place, target) for target in ("main", "two", "three"))


async def test_case_7_what_a_target_has_is_not_sent_again(begin: Begin) -> None:
    """As before; the object is taken away behind our back, so that sending it again would show."""
    stage = await begin(changes=THREE)
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "ledger.note_transfers.after=kill")
    noted = await rows(stage.place, "SELECT target, stored FROM transfers WHERE state = 'stored'")
    gone = []
    for target, stored in noted:
        root = stage.place.settings.targets[target].options.model_dump()["root"]
        gone.append(Path(root) / json.loads(stored)["key"])
        gone[-1].unlink()
    await stage.done(*RUN)
    assert gone
    assert not any(path.exists() for path in gone)
    assert all(
        payloads(stage.place, target) for target in {"main", "two", "three"} - {name for name, _ in noted}
    )


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_case_8_the_last_resource_and_its_bundle_are_one_commit(begin: Begin, moment: str) -> None:
    """`ledger.record.before` and `.after`, of the second record of two: there is no moment between resource and bundle."""
    stage = await begin(changes={"worker": {"concurrency": 1}})
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, f"ledger.record.{moment}=kill@2")
    states = await rows(stage.place, "SELECT state, stored_count FROM bundles")
    outbox = await rows(stage.place, "SELECT state FROM outbox")
    assert (states, outbox) == (
        ([("open", 1)], []) if moment == "before" else ([("complete", 2)], [("pending",)])
    )
    await recovered(stage)


async def test_case_9_two_workers_finish_the_last_two_resources_together(begin: Begin) -> None:
    """`ledger.record.before` in both: they stand there at the same time, each with one of the two, and go on at once."""
    stage = await begin(changes={"worker": {"concurrency": 1, "look_ahead": 0}, "queue": {"lease": 60}})
    stage.load = await publish_small(stage.place, 1)
    pair = []
    for _ in range(2):
        worker = stage.pool.start(*RUN, failpoints="ledger.record.before=stop")
        pair.append(worker)
        while not worker.stopped:
            assert worker.alive, worker.tail()
            await asyncio.sleep(0.01)
    for worker in pair:
        worker.cont()
    for worker in pair:
        assert await worker.ended() == 0, worker.tail()
        assert worker.says("1 messages done")
    assert await rows(stage.place, "SELECT state, replays FROM outbox") == [("published", 0)]
    await recovered(stage)


async def test_case_10_after_send_before_mark(begin: Begin, localstack: LocalStackEndpoint) -> None:
    """`relay.publish.after`: it is announced again, with the same id and the same bytes."""
    stage = await begin(Combination(queue="sqs"), Services(localstack=localstack))
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "relay.publish.after=kill")
    assert await rows(stage.place, "SELECT state FROM outbox") == [("pending",)]
    report = await recovered(stage)
    assert (report.duplicates, report.inconsistent) == (1, 0)


HOUSEKEEPING = next(scenario for scenario in SCENARIOS if scenario.name == "housekeeping")


async def test_case_11_after_mark_before_the_staged_payloads_are_deleted(begin: Begin) -> None:
    """`housekeeping.unstage.before`: the bundle is published, its payloads still lie in staging; the next round deletes them."""
    stage = await begin(changes=HOUSEKEEPING.changes)
    stage.load = await publish_small(stage.place, 1)
    await killed(stage, "housekeeping.unstage.before=kill@2", "run")
    assert await rows(stage.place, "SELECT state FROM outbox") == [("published",)]
    staging = stage.place.settings.home / "staging"
    assert any(path.is_file() for path in staging.rglob("*"))
    await HOUSEKEEPING.recovered(stage)
    assert not any(path.is_file() for path in staging.rglob("*"))
    await recovered(stage)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_case_13_during_the_retention_sweep(begin: Begin, moment: str) -> None:
    """`ledger.retire.before` and `.after`: what is old and published goes, what is as old and unsent stays."""
    stage = await begin(changes=HOUSEKEEPING.changes)
    await HOUSEKEEPING.prepare(stage)
    unsent = stage.load.published[0].bid
    for table in ("outbox", "bundles"):
        await stage.sql(
            f"UPDATE {table} SET completed_at = 1, published_at = 1 WHERE bid = :bid",  # noqa: S608 - ours
            bid=unsent,
        )
    await stage.sql("UPDATE outbox SET state = 'parked' WHERE bid = :bid", bid=unsent)
    await killed(stage, f"ledger.retire.{moment}=kill", "run")
    await HOUSEKEEPING.recovered(stage)
    bids = {bid for (bid,) in await rows(stage.place, "SELECT bid FROM bundles")}
    assert bids == {bundle.bid for bundle in stage.load.published}
    await stage.done("outbox", "retry", "--all")
    await recovered(stage)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("stroke", "number"), [("target", 4), ("ledger", 40), ("queue", 6), ("completions", 12), ("wake-ups", 9)]
)
async def test_case_16_killed_at_a_system_call(tmp_path: Path, stroke: str, number: int) -> None:
    """strace kills the worker at its N-th call of a kind. A handful here, all of them in `make crash`."""
    chosen = next(each for each in strokes.STROKES if each.name == stroke)
    struck = await strokes.strike(chosen, number, tmp_path, seed=1)
    assert struck.killed
    assert struck.report.violations == []
    assert struck.report.lost == set()


@pytest.mark.usefixtures("strace")
async def test_case_17_what_was_not_synced_is_gone(begin: Begin, tmp_path: Path) -> None:
    """The power goes off during a sync: before an object has its name, after, before and after the row, at the end.

    Proves that every byte and every name was synced before something else relied on it: tests/faults/power_cut.py.
    """
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    cuts = await power_cut.recorded(stage.place, tmp_path)
    moments = [number for number, cut in enumerate(cuts) if "/storage" in cut.during]
    first, last = moments[0], moments[-1]
    for number in (0, first, last, last + 1, len(cuts) - 1):
        report = await power_cut.survived(stage.place, stage.load, cuts[number])
        assert report.violations == [], cuts[number].during
        assert report.lost == set()


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("deaf", ["/#", "/bundle_"])
async def test_case_17_would_find_a_forgotten_sync(begin: Begin, tmp_path: Path, deaf: str) -> None:
    """Without the fsync of files without a name, or of those and of their directory, the same cuts lose bundles."""
    stage = await begin()
    stage.load = await publish_small(stage.place, 1)
    cuts = await power_cut.recorded(stage.place, tmp_path, deaf)
    report = await power_cut.survived(stage.place, stage.load, cuts[-1])
    assert report.violations
