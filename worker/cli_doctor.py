"""`transload doctor` and `transload sweep`: whether all is well, and a round of housekeeping. Added by worker/cli.py."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from worker import bootstrap, invocation, logs, render, render_doctor
from worker.doctor import Finding, State, examine
from worker.housekeeping import Swept
from worker.invocation import AsJson, Invocation
from worker.secret_values import hiding
from worker.settings import SettingsError


def doctor(
    context: typer.Context,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Try it: write, read and delete an object .transload-doctor-… in each place, and commit in the ledger.",
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, metavar="S", help="Seconds for each part.")
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Look at the ledger, the queue, the publisher, and every staging source and target; say what is wrong and what to do.

    Each is met as a worker meets it: reachable, permitted, the schema current, dead letters there and kept long enough, clocks
    close. Of buckets it also tells versioning, encryption and what ends unfinished uploads. Exit status 1 when there is a problem,
    2 when the settings themselves are wrong.
    """
    try:
        settings = Invocation.of(context).settings(quiet=True)
    except SettingsError as exc:
        wrong = [Finding("settings", "valid", State.PROBLEM, problem) for problem in exc.problems]
        render_doctor.findings(wrong, as_json=as_json)
        raise typer.Exit(2) from exc
    # What adapters warn of when they are opened is among the findings.
    logs.configure("error", settings.logs.format, sys.stderr, hiding(settings))
    found = invocation.run(examine(settings, write=write, seconds=seconds))
    render_doctor.findings(found, as_json=as_json)
    if any(finding.state is State.PROBLEM for finding in found):
        raise typer.Exit(1)


def sweep(context: typer.Context, as_json: AsJson = False) -> None:
    """Do one round of housekeeping now, as the settings have it, and say what was removed. Workers may run meanwhile.

    Staged payloads of published bundles (where delete_published says so), bundles older than keep_published, old notes of tries,
    and what killed writers left: temporary files and unfinished uploads. Exit status 1 when something could not be done.
    """
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> Swept:
        async with bootstrap.open_housekeeping(settings) as housekeeping:
            return await housekeeping.sweep_once()

    swept = invocation.run(work())
    if as_json:
        render.print_json(asdict(swept))
    else:
        render_doctor.swept(swept)
    if swept.failures:
        raise typer.Exit(1)
