"""How answers look: tables and sentences for a person, JSON lines for a program. Called by worker/cli.py and worker/demo.py.

Answers go to stdout; progress and errors to stderr, progress only where that is a terminal. What messages and stores said is
shown to a person with everything escaped that would steer a terminal, and exact in JSON.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from handlers.plan import ClosePlan, Plan
from handlers.storage_notifications import OtherEvent
from worker.ledger.values import BundleRecord, OutboxEntry, StoredResource, Summary
from worker.local_files import LocalBundle
from worker.notification import timestamp
from worker.queues.base import Depth
from worker.redaction import one_line, redact
from worker.secret_values import Hide
from worker.verify import Verification

_PIPED_WIDTH = 240


@dataclass(frozen=True, slots=True)
class Status:
    """What `transload status` shows."""

    queue: str
    depth: Depth
    ledger: Summary
    parked: Sequence[OutboxEntry]


def say(text: str) -> None:
    """One sentence for a person."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(one_line(text)))


def fail(error: Exception, hide: Hide = redact) -> None:
    """An error, one line a problem."""
    shown = "\n".join(map(one_line, hide(str(error)).split("\n")))
    print(f"transload: {shown}", file=sys.stderr)  # noqa: T201 - rich would wrap what people search for


@contextmanager
def progress(what: str, total: float | None, *, unit: str = "bytes") -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr while the block runs; yields the function that advances it."""
    columns = (
        (DownloadColumn(binary_units=True), TransferSpeedColumn())
        if unit == "bytes"
        else (MofNCompleteColumn(),)
    )
    console = Console(stderr=True)
    with Progress(
        TextColumn(f"{what:>10}"),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def published(bundle: LocalBundle, *, closed: bool, as_json: bool) -> None:
    """What `publish` did."""
    if as_json:
        print_json(
            {"bid": bundle.bid, "resources": len(bundle.files), "bytes": bundle.size, "closed": closed}
        )
        return
    end = "closed" if closed else "left open"
    out().print(f"{bundle.bid}", highlight=False)
    say(
        f"{len(bundle.files)} files, {size(bundle.size)} staged and announced; the bundle is {end}. Next: transload run"
    )


def status(found: Status, *, as_json: bool) -> None:
    """Depth, bundles, outbox, and what waits for a person."""
    if as_json:
        print_json(
            {
                "queue": {"name": found.queue, **asdict(found.depth)},
                "ledger": asdict(found.ledger),
                "parked": [{"event_id": r.event_id, "bid": r.bid, "error": r.error} for r in found.parked],
            }
        )
        return
    table = Table(show_header=False, box=None)
    depth, ledger = found.depth, found.ledger
    table.add_row("queue", f"{depth.visible} waiting, {depth.in_flight} in work, {depth.delayed} delayed")
    table.add_row("dead letters", _dead(depth.dead))
    table.add_row("bundles", ", ".join(f"{count} {state}" for state, count in ledger.bundles.items()))
    table.add_row("resources", f"{ledger.resources:,} stored")
    table.add_row("completions", f"{ledger.outbox_pending} to announce, {ledger.outbox_parked} parked")
    if ledger.oldest_incomplete_age is not None:
        table.add_row("oldest open bundle", _age(ledger.oldest_incomplete_age))
    out().print(table)
    for row in found.parked:
        out().print(one_line(f"parked {row.bid}: {row.error}"), markup=False, style="red")
    if found.parked:
        say("when the cause is mended: transload outbox retry BID, or --all")


def bundles(found: Sequence[BundleRecord], *, as_json: bool) -> None:
    """A list of bundles."""
    if as_json:
        for bundle in found:
            print_json(asdict(bundle))
        return
    out().print(bundle_table(found))


def bundle(record: BundleRecord, resources: Sequence[StoredResource], *, as_json: bool) -> None:
    """One bundle with everything in it."""
    if as_json:
        print_json({**asdict(record), "resources": [asdict(resource) for resource in resources]})
        return
    console = out()
    console.print(bundle_table([record]))
    if record.completed_at is not None:
        console.print(f"completed {timestamp(record.completed_at)}")
    for place in record.targets:
        console.print(f"target {place.target}: {place.storage_key}", markup=False, soft_wrap=True)
        console.print(f"manifest: {place.manifest_key}", markup=False, soft_wrap=True)
        if place.archive:
            console.print(f"archive: {place.archive_key}", markup=False, soft_wrap=True)
    for resource in resources:
        code = "" if resource.status_code is None else f"  status {resource.status_code}"
        late = "  late: not in the manifest" if resource.late else ""
        console.print(f"\n{one_line(resource.url)}{code}{late}", markup=False, soft_wrap=True)
        for stored in resource.objects:
            console.print(
                f"  {stored.target}: {one_line(stored.key)}\n  {size(stored.size)}  sha256 {stored.sha256}",
                markup=False,
                soft_wrap=True,
            )


def completion(body: bytes, *, as_json: bool) -> None:
    """One notification; with `as_json` its exact body."""
    if as_json:
        sys.stdout.write(body.decode() + "\n")
        sys.stdout.flush()
        return
    content = json.loads(body)
    facts = (content[name] for name in ("completion_timestamp", "bundle_id", "recipe_id", "resources_count"))
    out().print(
        one_line(f"{'  '.join(map(str, facts))} resources  {content['storage_key']}"),
        markup=False,
        highlight=False,
    )


def verification(result: Verification, *, as_json: bool) -> None:
    """Whether everything reads back as the ledger says."""
    if as_json:
        print_json({**asdict(result), "passed": result.passed})
        return
    for problem in result.problems:
        out().print(one_line(problem), style="red", markup=False)
    verdict = "every digest matches" if result.passed else f"{len(result.problems)} problems"
    out().print(
        f"{result.bid}: {result.objects} objects, {size(result.size)} read: {verdict}", highlight=False
    )


def plan(planned: Plan | OtherEvent, *, as_json: bool) -> None:
    """What a worker would do."""
    if isinstance(planned, OtherEvent):
        if as_json:
            print_json({"ignored": planned.what})
        else:
            out().print(f"nothing to do for {planned.what}", markup=False, highlight=False, soft_wrap=True)
        return
    if as_json:
        print_json(_plan_facts(planned))
        return
    table = Table(show_header=False, box=None)
    for key, value in _plan_facts(planned).items():
        if isinstance(value, list):
            for item in value:
                table.add_row(key, _cell("  ".join(f"{k} {v}" for k, v in item.items() if v is not None)))
        else:
            table.add_row(key, _cell(str(value)))
    out().print(table)


def migrated(before: str | None) -> None:
    """What `migrate` found."""
    say("the ledger is up to date" if before else "the ledger was made")


def size(count: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def bundle_table(found: Sequence[BundleRecord]) -> Table:
    """Bundles as rows."""
    table = Table(box=None)
    table.add_column("bid", no_wrap=True)
    for name in ("recipe", "state", "stored"):
        table.add_column(name, no_wrap=True)
    table.add_column("primary url", no_wrap=True)
    for record in found:
        count = "?" if record.resources_count is None else str(record.resources_count)
        stored = f"{record.stored_count}/{count}"
        table.add_row(record.bid, _cell(record.recipe_id), record.state, stored, _cell(record.primary_url))
    return table


def _plan_facts(planned: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": planned.command.type,
        "id": planned.command.id,
        "bid": planned.command.bundle.bid,
        "route": planned.route,
    }
    if isinstance(planned, ClosePlan):
        facts["resources_count"] = planned.command.bundle.resources_count
    else:
        facts["source"] = f"{planned.source.staging}: {planned.source.key}"
        if planned.transforms:
            facts["transforms"] = [{"step": step.name} for step in planned.transforms]
        if planned.max_size is not None:
            facts["max_size"] = planned.max_size.model_dump()
        if planned.deduplicate:
            facts["deduplicate"] = True
        facts["writes"] = [
            {"target": write.target, "key": write.key, "sidecar": write.sidecar_key}
            for write in planned.writes
        ]
    facts["bundle"] = [
        {
            "target": place.target,
            "storage_key": place.storage_key,
            "manifest_key": place.manifest_key,
            **({"archive_key": place.archive_key} if place.archive else {}),
        }
        for place in planned.bundle_targets
    ]
    return facts


def out() -> Console:
    """Stdout, for a person: as wide as the terminal, and wide enough for everything where it is piped."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def _cell(text: str) -> str:
    return escape(one_line(text))


def _dead(count: int | None) -> str:
    if count is None:
        return "not known"
    return f"{count}: transload dlq ls" if count else "0"


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def print_json(content: dict[str, Any]) -> None:
    """One object on one line, for a program."""
    sys.stdout.write(json.dumps(content) + "\n")
