"""`transload dlq`: look at dead letters, send them back, delete them. Added to the command by worker/cli.py."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final, TypeVar

import typer

from worker import bootstrap, invocation, render, render_waiting
from worker.dead_letters import FIELDS, Condition, Letter, Look, Selection, look_at
from worker.invocation import AsJson, Invocation
from worker.ledger.base import Ledger
from worker.ledger.values import AuditRecord
from worker.queues.base import Queue, QueueError
from worker.redrive import DONE, FAILED, MAX_REDRIVES, Outcome, Pace, Purge, Redrive, Run
from worker.settings import Settings

_Result = TypeVar("_Result")
_Before = Callable[[Sequence[Letter]], Awaitable[None]]

app = typer.Typer(
    no_args_is_help=True,
    help="Dead letters: look at them, send them back, delete them. Works on every queue, while workers run.",
    epilog="What a command looks at is hidden from other consumers until it ends, and is then given back.",
)

_WHERE_HELP: Final = (
    f"Only letters whose FIELD matches GLOB (*, ?; case-sensitive): {', '.join(FIELDS)}. "
    "FIELD=- asks for letters without it. Given several times, all must hold."
)
_CHOICE: Final = "name letters by their IDs, choose them with --where FIELD=GLOB, or say --all"

Where = Annotated[list[str] | None, typer.Option("--where", metavar="FIELD=GLOB", help=_WHERE_HELP)]
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID…", help="Letters, as `transload dlq ls` names them.")
]
All = Annotated[bool, typer.Option("--all", help="Every letter there is.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many.")]


@app.command()
def ls(
    context: typer.Context,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters: why and when each died, how often it was received and redriven, and its bundle if that can be told.

    What SQS moved there by itself has no reason.
    """
    selection = Selection(where=_conditions(where))

    async def work(_: Queue, look: Look) -> None:
        found: list[Letter] = []
        while len(found) < limit and (page := await look.more()):
            found += [letter for letter in page if selection.matches(letter)]
        render_waiting.letters(found[:limit], as_json=as_json)
        if len(found) >= limit and (len(found) > limit or await look.waiting()):
            render.say(f"there may be more; raise --limit ({limit})")
        render_waiting.unseen(look.unseen)

    _looking(Invocation.of(context).settings(quiet=True), work)


@app.command()
def show(
    context: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="The letter, as `transload dlq ls` names it.")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter whole: its attempts, its original attributes, its original body.

    The body is shown as text, or in base64 where it is not UTF-8. Control characters are escaped; --json is exact.
    """

    async def work(queue: Queue, look: Look) -> None:
        seen = 0
        while page := await look.more():
            seen += len(page)
            for letter in page:
                if letter.id == id_:
                    render_waiting.letter(letter, as_json=as_json)
                    return
        raise QueueError(
            f"queue {queue.name!r}: {id_!r} is none of the {seen} dead letters that no other consumer holds; "
            "`transload dlq ls` lists them"
        )

    _looking(Invocation.of(context).settings(quiet=True), work)


@app.command()
def redrive(
    context: typer.Context,
    ids: Ids = None,
    where: Where = None,
    everything: All = False,
    dry_run: DryRun = False,
    rate: Annotated[
        str | None,
        typer.Option(metavar="N[/s]", help="At most so many a second. Default: as fast as the queue goes."),
    ] = None,
    limit: Limit = None,
    max_redrives: Annotated[
        int, typer.Option(min=1, metavar="N", help="Leave letters that were redriven so often already.")
    ] = MAX_REDRIVES,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their queue as they were, counted in the attribute `transload_redrives`.

    Each message is in the queue before its letter goes: a crash between leaves both, and a worker knows the message by its id.
    What dies while this runs is left for the next run. Exit status 1 when a chosen letter was not redriven.
    """
    selection = _selection(ids, where, everything=everything)
    pace = Pace(_rate(rate))
    settings = Invocation.of(context).settings(quiet=True)
    report = _Report(dry_run=dry_run, as_json=as_json)

    def run(queue: Queue, before: _Before) -> Run:
        return Redrive(
            selection,
            queue=queue,
            limit=limit,
            max_redrives=max_redrives,
            pace=pace,
            dry_run=dry_run,
            told=report.told,
            before=before,
        )

    _carry_out(settings, run, report, Outcome.REDRIVEN, limit)


@app.command()
def purge(
    context: typer.Context,
    ids: Ids = None,
    where: Where = None,
    everything: All = False,
    dry_run: DryRun = False,
    limit: Limit = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, for good.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good, body and all. Wants --yes; --dry-run shows what would go.

    Letters that died in another queue stay, unless --where source=NAME chooses them. Exit status 1 when a chosen letter was not
    deleted.
    """
    selection = _selection(ids, where, everything=everything)
    if not (yes or dry_run):
        raise typer.BadParameter(
            "letters are deleted for good; look with --dry-run, then say --yes", param_hint="--yes"
        )
    settings = Invocation.of(context).settings(quiet=True)
    report = _Report(dry_run=dry_run, as_json=as_json)
    _carry_out(
        settings,
        lambda queue, before: Purge(
            selection, queue=queue, limit=limit, dry_run=dry_run, told=report.told, before=before
        ),
        report,
        Outcome.PURGED,
        limit,
    )


class _Report:
    """Hears what becomes of each letter: shows it, or keeps it for the end."""

    def __init__(self, *, dry_run: bool, as_json: bool) -> None:
        self.dry_run = dry_run
        self.as_json = as_json
        self.advance: Callable[[float], None] = lambda _: None
        self.left: list[tuple[Letter, Outcome]] = []
        self.undone: list[tuple[Letter, Outcome]] = []
        """Begun with, and left where they were."""

    def told(self, letter: Letter, outcome: Outcome) -> None:
        self.advance(1)
        if outcome in {Outcome.REFUSED, Outcome.LEASE_LOST}:
            self.undone.append((letter, outcome))
        if self.as_json:
            if outcome in DONE | FAILED:
                render_waiting.told(letter, outcome)
        elif outcome is Outcome.SELECTED:
            render_waiting.selected(letter)
        elif outcome in FAILED and len(self.left) < render_waiting.NAMED:
            self.left.append((letter, outcome))


class _Trail:
    """Writes into the audit trail, before it is done, what is done with letters; nowhere without a ledger."""

    def __init__(self, ledger: Ledger | None, action: str) -> None:
        self._ledger = ledger
        self._action = action

    async def before(self, letters: Sequence[Letter]) -> None:
        if self._ledger is not None:
            await self._ledger.audit([_record(self._action, letter, letter.reason) for letter in letters])

    async def undone(self, left: Sequence[tuple[Letter, Outcome]]) -> None:
        if self._ledger is not None and left:
            await self._ledger.audit([_record("kept", letter, why.value) for letter, why in left])


@asynccontextmanager
async def _trail(settings: Settings, report: _Report, main: Outcome) -> AsyncIterator[_Trail]:
    """Raises `LedgerError` where the trail is kept and the ledger does not answer: nothing is done unnoticed."""
    if report.dry_run or not settings.audit.enabled:
        yield _Trail(None, main.value)
        return
    async with bootstrap.open_ledger(settings) as ledger:
        trail = _Trail(ledger, main.value)
        try:
            yield trail
        finally:
            await trail.undone(report.undone)


def _record(action: str, letter: Letter, why: str | None) -> AuditRecord:
    return AuditRecord(
        action, letter.bid, letter.recipe, letter.url, detail=f"dead letter {letter.id}: {why or 'no reason'}"
    )


def _carry_out(
    settings: Settings,
    make: Callable[[Queue, _Before], Run],
    report: _Report,
    main: Outcome,
    limit: int | None,
) -> None:
    async def work(queue: Queue, look: Look) -> Run:
        async with _trail(settings, report, main) as trail:
            return await over(make(queue, trail.before), look)

    async def over(run: Run, look: Look) -> Run:
        total = await look.waiting()
        try:
            with render.progress("letters", min(total, limit or total), unit="letters") as report.advance:
                await run.over(look)
        finally:
            # Also after an error or Ctrl-C: what was done is done.
            render_waiting.ended(
                run.outcomes,
                report.left,
                sorted(run.missing),
                main=Outcome.SELECTED if report.dry_run else main,
                as_json=report.as_json,
            )
            render_waiting.unseen(look.unseen)
        return run

    if not _looking(settings, work).complete:
        raise typer.Exit(1)


def _looking(settings: Settings, work: Callable[[Queue, Look], Awaitable[_Result]]) -> _Result:
    async def looking() -> _Result:
        async with AsyncExitStack() as stack:
            queue = await stack.enter_async_context(bootstrap.open_queue(settings))
            return await work(queue, await stack.enter_async_context(look_at(queue)))

    return invocation.run(looking())


def _selection(ids: list[str] | None, where: list[str] | None, *, everything: bool) -> Selection:
    if everything and (ids or where):
        raise typer.BadParameter("--all takes neither IDs nor --where", param_hint="--all")
    if not (everything or ids or where):
        raise typer.BadParameter(_CHOICE, param_hint="letters")
    return Selection(frozenset(ids or ()), _conditions(where))


def _conditions(where: list[str] | None) -> tuple[Condition, ...]:
    try:
        return tuple(Condition.parse(text) for text in where or ())
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--where") from exc


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text.removesuffix("/s"))
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 100_000:
        raise typer.BadParameter(f"{text!r} is no rate; use 10 or 0.5/s", param_hint="--rate")
    return rate
