"""`transload find`: the ledger as the index of what is stored. Added by worker/cli.py."""

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from worker import bootstrap, invocation, moments, render, render_objects
from worker.invocation import AsJson, Invocation
from worker.ledger.values import Search


def find(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Option(metavar="P", help="Pattern of the recipe's id.")] = None,
    url: Annotated[str | None, typer.Option(metavar="P", help="Pattern of the resource's whole URL.")] = None,
    bid: Annotated[str | None, typer.Option(metavar="P", help="Pattern of the bundle's id.")] = None,
    content_type: Annotated[
        str | None,
        typer.Option(metavar="P", help="Pattern of the media type, in lower case and without parameters."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="P", help="Pattern of a target's name; shows objects there only.")
    ] = None,
    status_code: Annotated[
        int | None, typer.Option(min=0, max=999, metavar="N", help="The status code it was fetched with.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="T", help=f"Stored then or later: {moments.HELP}")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="T", help="Stored before then.")] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="An object of it has this SHA-256.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Find stored resources in the ledger, the newest first: when, bundle, recipe, status code, type, URL, and each object.

    All that is given has to hold; nothing given finds everything. Patterns are those of routes and of a shell: *, ?, [a-z], of the
    whole text, case-sensitive. `transload get` takes objects as they are shown. Exit status 1 when nothing is found.
    """
    now = datetime.now(UTC)
    search = Search(
        bid=bid,
        recipe_id=recipe,
        url=url,
        content_type=content_type,
        status_code=status_code,
        target=target,
        sha256=_digest(sha256),
        since=_time(since, now, "--since"),
        until=_time(until, now, "--until"),
    )
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> int:
        count = 0
        async with bootstrap.open_ledger(settings) as ledger:
            async for found in ledger.search(search):
                if count == limit:
                    render.say(f"there may be more; raise --limit ({limit}), or narrow the search")
                    break
                render_objects.hit(found, as_json=as_json)
                count += 1
        return count

    if not invocation.run(work()):
        render.say("nothing is found")
        raise typer.Exit(1)


def _digest(text: str | None) -> str | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise typer.BadParameter(f"{text!r} is no SHA-256; give its 64 hex digits", param_hint="--sha256")
    return text.lower()


def _time(text: str | None, now: datetime, option: str) -> int | None:
    """Milliseconds since the epoch."""
    if text is None:
        return None
    try:
        return moments.milliseconds(text, now)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from exc
