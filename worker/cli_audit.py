"""`transload audit`: the audit trail, for those who ask. Added by worker/cli.py."""

import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from worker import audit, bootstrap, invocation, moments, objects, render
from worker.invocation import Invocation
from worker.ledger.values import AuditQuery

app = typer.Typer(
    no_args_is_help=True,
    help="The audit trail: who stored, announced or removed what, when, with which SHA-256.",
)

_FORMS: Final[tuple[audit.Format, ...]] = ("csv", "jsonl")


@app.callback()
def _several() -> None:
    """With one command typer would leave out its name."""


@app.command()
def export(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option(metavar="T", help=f"Written then or later: {moments.HELP}")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Written before then.")] = None,
    after: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="ID", help="Rows behind this id: go on where the last export says it ended."
        ),
    ] = None,
    bid: Annotated[str | None, typer.Option(metavar="BID", help="Of this bundle only.")] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="F", help="jsonl: exact. csv: safe to open in a spreadsheet.")
    ] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A new file, there whole or not at all; default: standard output."),
    ] = None,
) -> None:
    """Write the audit trail, a row a line, in the order of ids; what is asked for must all hold.

    The last line on stderr says how many rows there are, up to which id the trail was looked at, and the SHA-256 of the bytes.
    Whoever goes on as it says gets every row once. A row is in the trail if and only if what it tells was committed.
    """
    chosen = next((each for each in _FORMS if each == form), None)
    if chosen is None:
        raise typer.BadParameter(f"{form!r} is no format; use {' or '.join(_FORMS)}", param_hint="--format")
    now = datetime.now(UTC)
    query = AuditQuery(
        after or 0, since=_time(since, now, "--since"), until=_time(until, now, "--until"), bid=bid
    )
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> audit.Exported:
        async with bootstrap.open_ledger(settings) as ledger:
            with _destination(out) as file:
                exported = await audit.export(ledger, query, chosen, file.write)
                file.flush()
            return exported

    exported = invocation.run(work())
    if (after or 0) < exported.trimmed:
        missing = (
            f"rows {(after or 0) + 1} to {exported.trimmed} are not in it: audit.keep has passed for them"
        )
        render.say(missing)
    if not settings.audit.enabled:
        render.say("audit.enabled is false: nothing is added to the trail")
    # Rows that --until left out lie behind the last id, too.
    following = f"--after {exported.last}" if query.until is None else f"--since {until}"
    render.say(
        f"{exported.rows} rows, ids up to {exported.last} looked at, SHA-256 {exported.sha256}; "
        f"the next export: {following}"
    )


def _time(text: str | None, now: datetime, option: str) -> int | None:
    try:
        return None if text is None else moments.milliseconds(text, now)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from exc


def _destination(out: Path | None) -> AbstractContextManager[BinaryIO]:
    if out is None:
        return nullcontext(sys.stdout.buffer)
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} is there already; an export does not replace it")
    return objects.Download(out, force=False).writing()
