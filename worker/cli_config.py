"""`transload config`: look at the settings, describe them, import those of another tool. Added by worker/cli.py."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from worker import render, routing
from worker.config_import import convert
from worker.invocation import Invocation
from worker.settings import json_schema

app = typer.Typer(no_args_is_help=True, help="Look at the configuration, without starting anything.")


@app.command()
def check(
    context: typer.Context,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Read what comes from AWS Secrets Manager too, as every other command does."
        ),
    ] = False,
) -> None:
    """Check the settings whole; exit status 2 lists everything that is wrong with them.

    Asks nobody: values that come from AWS Secrets Manager are named, and checked when a worker starts or with --fetch.
    """
    invocation = Invocation.of(context)
    settings, unread = (invocation.settings(quiet=True), []) if fetch else invocation.checked()
    if settings is not None:
        routing.make_handlers(settings)
    render.say("the settings are valid" + (", as far as they were read" if unread else ""))
    for key in unread:
        render.say(f"{key} is read from AWS Secrets Manager at start")


@app.command()
def show(context: typer.Context) -> None:
    """Print the settings in force as YAML: file, environment and defaults together, secrets redacted."""
    typer.echo(
        yaml.safe_dump(Invocation.of(context).settings(quiet=True).redacted(), sort_keys=False), nl=False
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors and CI."""
    typer.echo(json.dumps(json_schema(), indent=2))


@app.command(name="import")
def import_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other tool's YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write it there, where no file may be yet. Default: standard output."
        ),
    ] = None,
) -> None:
    """Turn another tool's storage configuration into a settings file: vCon's storages and chains, a medallion platform's
    bronze layer, FluxForge's unified storage.

    What has no counterpart becomes a comment, secrets become names of variables, and an unknown key is an error with its line.
    """
    text = convert(file)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as exc:
        raise typer.BadParameter(f"{out} is there already; name another file", param_hint="--out") from exc
    render.say(f"written to {out}; read its comments, then: transload --config {out} config check")
