"""`transload outbox` and `transload replay`: completions that are not out, or should go out again. Added by worker/cli.py."""

from typing import Annotated, Final

import typer

from worker import bootstrap, invocation, render, render_waiting
from worker.invocation import AsJson, Bid, Invocation
from worker.ledger.base import LedgerError
from worker.ledger.values import BundleRecord, OutboxEntry, OutboxState
from worker.notification import event_id

app = typer.Typer(
    no_args_is_help=True,
    help="Completions in the outbox: what is still to be announced, and what waits for you.",
)

_SENT_BY: Final = "a running worker sends it; now: transload run --until-idle"


@app.command()
def ls(
    context: typer.Context,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="Only these: pending, parked or published. Default: what is not out yet, pending and parked.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the oldest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List completions, the oldest first: when each is due or went out, how often it was tried and replayed, its last error."""
    states: dict[str, OutboxState] = {"pending": "pending", "parked": "parked", "published": "published"}
    if state is not None and state not in states:
        raise typer.BadParameter(f"{state!r} is no state; use {', '.join(states)}", param_hint="--state")
    wanted: list[OutboxState] = ["pending", "parked"] if state is None else [states[state]]
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> list[OutboxEntry]:
        async with bootstrap.open_ledger(settings) as ledger:
            # By id, because one may change its state between the two questions.
            found = {entry.event_id: entry for each in wanted for entry in await ledger.outbox(each, limit)}
            return sorted(found.values(), key=lambda entry: (entry.completed_at, entry.event_id))[:limit]

    render_waiting.completions(invocation.run(work()), as_json=as_json)


@app.command()
def retry(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVENT_ID|BID…", help="Parked completions, as `transload outbox ls` names them."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every parked completion.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try parked completions again, now. Mend the cause first: `transload outbox ls --state parked` shows it.

    A running worker sends them. Exit status 1 when none of those named was parked.
    """
    if bool(names) == everything:
        raise typer.BadParameter(
            "name completions by event id or bid, or say --all", param_hint="completions"
        )
    settings = Invocation.of(context).settings(quiet=True)
    # A bundle's event id follows from its bid.
    wanted = None if names is None else [one for name in names for one in (name, event_id(name))]

    async def work() -> int:
        async with bootstrap.open_ledger(settings) as ledger:
            return await ledger.retry_parked(wanted)

    retried = invocation.run(work())
    if as_json:
        render.print_json({"retried": retried})
    else:
        render.out().print(f"{retried} due now")
        if retried:
            render.say(_SENT_BY)
    if names and not retried:
        render.say("none of them is parked; `transload outbox ls` shows what is")
        raise typer.Exit(1)


def replay(context: typer.Context, bid: Bid, as_json: AsJson = False) -> None:
    """Announce a published bundle once more: the same event id, the same bytes.

    For a consumer that lost a completion. `transload outbox ls` counts it. Exit status 1 when there is nothing to replay.
    """
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> OutboxState:
        async with bootstrap.open_ledger(settings) as ledger:
            before = await ledger.replay(bid)
            if before is None:
                raise LedgerError(_not_complete(bid, await ledger.bundle(bid)))
            return before

    before = invocation.run(work())
    if before == "parked":
        raise LedgerError(
            f"the completion of bundle {bid} is parked; `transload outbox ls --state parked` says why, "
            f"`transload outbox retry {bid}` tries it again"
        )
    replayed = before == "published"
    if as_json:
        render.print_json({"bid": bid, "event_id": event_id(bid), "before": before, "replayed": replayed})
    elif replayed:
        render.say(f"the completion of bundle {bid} is due again: {_SENT_BY}")
    else:
        render.say(f"the completion of bundle {bid} is still to be announced: {_SENT_BY}")


def _not_complete(bid: str, found: BundleRecord | None) -> str:
    if found is None:
        return f"no bundle {bid}; `transload bundles` lists them (retention forgets old ones whole)"
    if found.resources_count is None:
        missing = f"{found.stored_count} resources are stored, and no message has said how many there are"
    else:
        missing = f"{found.stored_count} of {found.resources_count} resources are stored"
    return f"bundle {bid} is open: {missing}; it is announced when it is complete"
