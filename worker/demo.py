"""The main job, shown: a folder of real files goes from staging to storage, and every byte is read back.

Behind `transload demo` and `make demo`. Uses the same producer, worker and verification as everything else.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from worker import bootstrap, render, stores
from worker.ledger.base import LedgerError
from worker.ledger.values import BundleRecord
from worker.local_files import LocalBundle, folders_of, publish
from worker.producer import ProducerError
from worker.publishers.embedded import EmbeddedPublisher
from worker.service import Service
from worker.settings import Settings
from worker.verify import Verification, verify

RECIPE = "demo"

_SHOWN = 12
"""Rows of the table of bundles; the rest is counted."""


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """What happened. Durations are seconds."""

    source: Path
    bundles: Sequence[LocalBundle]
    records: Sequence[BundleRecord]
    completions: Sequence[dict[str, Any]]
    dead: int
    where: Sequence[str]
    staging_seconds: float
    working_seconds: float
    verifications: Sequence[Verification]

    @property
    def passed(self) -> bool:
        """Every bundle announced, every digest as it should be."""
        return (
            not self.dead
            and all(record.state == "published" for record in self.records)
            and all(verification.passed for verification in self.verifications)
        )


async def run_demo(settings: Settings, source: Path) -> DemoOutcome:
    """Stage, work, verify. Raises `ProducerError` when the folder holds no files or completions go elsewhere."""
    if settings.publisher.type != "embedded":
        raise ProducerError("the demo shows completions, so it needs publisher.type embedded (the default)")
    bundles = list(folders_of(source, RECIPE, leave_out=settings.home))
    if not bundles:
        raise ProducerError(f"no files in {source} (hidden folders are left out); name a folder with --from")
    staging_seconds = await _stage(settings, bundles)
    working_seconds, service = await _work(settings, bundles)
    records, verifications, where = await _check(settings, bundles)
    return DemoOutcome(
        source=source,
        bundles=bundles,
        records=records,
        completions=await _completions(settings, bundles),
        dead=service.progress.dead,
        where=where,
        staging_seconds=staging_seconds,
        working_seconds=working_seconds,
        verifications=verifications,
    )


async def _stage(settings: Settings, bundles: Sequence[LocalBundle]) -> float:
    started = time.monotonic()
    async with bootstrap.open_producer(settings) as producer:
        with render.progress("staging", sum(bundle.size for bundle in bundles)) as advance:
            for bundle in bundles:
                metadata = {"source": "transload demo", "run_id": bundle.bid}
                await publish(producer, bundle, metadata=metadata, staged=lambda file: advance(file.size))
    return time.monotonic() - started


async def _work(settings: Settings, bundles: Sequence[LocalBundle]) -> tuple[float, Service]:
    expected = sum(len(bundle.files) + 1 for bundle in bundles)
    async with bootstrap.open_service(settings, admin=False) as service:
        started = time.monotonic()
        work = asyncio.create_task(service.run(until_idle=True), name="demo-worker")
        try:
            with render.progress("storing", expected, unit="messages") as advance:
                shown = 0
                while not work.done():
                    await asyncio.wait([work], timeout=0.1)
                    settled = service.progress.acked + service.progress.dead
                    advance(settled - shown)
                    shown = settled
        finally:
            # Also when interrupted: the parts are closed only once nobody works with them.
            service.stop()
            await work
    return max(service.progress.settled_at - started, 1e-3), service


async def _check(
    settings: Settings, bundles: Sequence[LocalBundle]
) -> tuple[Sequence[BundleRecord], Sequence[Verification], Sequence[str]]:
    async with bootstrap.open_ledger(settings) as ledger, stores.open_targets(settings) as targets:
        records = []
        for bundle in bundles:
            record = await ledger.bundle(bundle.bid)
            if record is None:
                raise LedgerError(
                    f"bundle {bundle.bid} was announced but never recorded; see transload status"
                )
            records.append(record)
        with render.progress("verifying", sum(bundle.size for bundle in bundles)) as advance:
            results = [
                await verify(record, ledger, targets, lambda stored: advance(stored.size))
                for record in records
            ]
        return records, results, [target.location for target in targets.values()]


async def _completions(settings: Settings, bundles: Sequence[LocalBundle]) -> Sequence[dict[str, Any]]:
    bids = {bundle.bid for bundle in bundles}
    found: list[dict[str, Any]] = []
    async with bootstrap.open_publisher(settings) as publisher:
        if not isinstance(publisher, EmbeddedPublisher):
            raise TypeError("checked by run_demo")
        after = 0
        while page := await publisher.read(after):
            after = page[-1].seq
            bodies = (json.loads(stored.notification.body) for stored in page)
            found.extend(body for body in bodies if body["bundle_id"] in bids)
    return found


def show(outcome: DemoOutcome, *, as_json: bool) -> None:
    """What came of it: bundles, completions, places, rates, and the verdict."""
    files = sum(len(bundle.files) for bundle in outcome.bundles)
    total = sum(bundle.size for bundle in outcome.bundles)
    objects = sum(result.objects for result in outcome.verifications)
    problems = [problem for result in outcome.verifications for problem in result.problems]
    if as_json:
        render.print_json(
            {
                "bundles": len(outcome.bundles),
                "resources": files,
                "bytes": total,
                "completions": len(outcome.completions),
                "dead_letters": outcome.dead,
                "objects_verified": objects,
                "problems": problems,
                "staging_seconds": round(outcome.staging_seconds, 3),
                "working_seconds": round(outcome.working_seconds, 3),
                "where": list(outcome.where),
            }
        )
        return
    out = render.out()
    out.print(f"\n[bold]bundles[/]  {len(outcome.bundles)}, one a folder of {escape(str(outcome.source))}")
    out.print(render.bundle_table(outcome.records[:_SHOWN]))
    if len(outcome.records) > _SHOWN:
        out.print(f"  … and {len(outcome.records) - _SHOWN} more")
    out.print(f"\n[bold]completions[/]  {len(outcome.completions)}, one a bundle; the last one:")
    if outcome.completions:
        out.print_json(json.dumps(outcome.completions[-1]))
    out.print("\n[bold]where it lies[/]")
    for place in outcome.where:
        out.print(f"  {place}", markup=False, soft_wrap=True)
    working = outcome.working_seconds
    out.print(
        f"\n[bold]rates[/]  staged {files} files, {render.size(total)} in {outcome.staging_seconds:.1f} s; "
        f"stored in {working:.1f} s: {files / working:,.0f} resources/s, {render.size(total / working)}/s",
        soft_wrap=True,
    )
    for problem in problems:
        out.print(problem, style="red", markup=False)
    verdict = (
        "[green]every digest matches[/]"
        if outcome.passed
        else f"[red]{len(problems)} problems, {outcome.dead} dead letters[/]"
    )
    out.print(f"[bold]verified[/]  {objects} objects read back: {verdict}")
