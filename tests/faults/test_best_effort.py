"""Case 72 with real processes: a best-effort target that cannot take a payload, its dead letter, and its cure, killed on the way."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenarios import RUN, Stage
from tests.faults.test_crash_points import Begin, begin, killed, payloads, recovered, rows
from tests.faults.worlds import publish_small

__all__ = ["begin"]

SPARE: Mapping[str, Mapping[str, Any]] = {
    "targets": {"two": {}, "spare": {}},
    "routes": {"default": {"best_effort": ["spare"]}},
    "queue": {"lease": 1},
}


async def obstructed(stage: Stage) -> Path:
    """A file lies where the bundle's folder has to be in the target `spare`; what was published is in the load."""
    stage.load = await publish_small(stage.place, 1)
    (bundle,) = stage.load.published
    obstacle = stage.place.settings.home / "storage-spare" / f"bundle_{bundle.bid}"
    obstacle.parent.mkdir(parents=True)
    await asyncio.to_thread(obstacle.write_bytes, b"in the way")
    return obstacle


async def completion(stage: Stage) -> dict[str, Any]:
    (notification,) = await stage.place.received()
    found: dict[str, Any] = json.loads(notification.body)
    return found


async def test_case_72_the_bundle_is_announced_and_the_debt_is_a_dead_letter(begin: Begin) -> None:
    stage = await begin(changes=SPARE)
    await obstructed(stage)
    await stage.done(*RUN)
    states = await rows(stage.place, "SELECT target, state FROM transfers ORDER BY target")
    assert states == [("spare", "missing")] * 2
    assert len(payloads(stage.place, "main")) == len(payloads(stage.place, "two")) == 2
    targets = {each["target"]: each for each in (await completion(stage))["targets"]}
    assert targets["main"]["status"] == targets["two"]["status"] == "stored"
    assert (targets["spare"]["status"], targets["spare"]["missing"]) == ("incomplete", 2)


@pytest.mark.parametrize(
    "failpoint",
    [
        "ledger.settle.before",
        "ledger.settle.after",
        "relay.manifest.before",
        "ledger.forget_transfers.before",
        "ledger.forget_transfers.after",
    ],
)
async def test_case_72_the_debt_is_paid_though_the_worker_is_killed(begin: Begin, failpoint: str) -> None:
    stage = await begin(changes=SPARE)
    obstacle = await obstructed(stage)
    await stage.done(*RUN)
    await asyncio.to_thread(obstacle.unlink)
    await stage.done("dlq", "redrive", "--all")
    await killed(stage, f"{failpoint}=kill")
    report = await recovered(stage)
    assert report.duplicates == 0, "what was announced is not announced again"
    assert await rows(stage.place, "SELECT * FROM transfers") == []
    assert len(payloads(stage.place, "spare")) == 2
    assert list(obstacle.glob("bundle.meta")), "the manifest that was owed"
