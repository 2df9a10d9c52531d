"""`transload provision`: makes and checks buckets and queues. Added to the command by worker/cli.py."""

from collections.abc import Sequence
from typing import Annotated

import typer

from backends.errors import MissingExtra
from worker import invocation, render
from worker.invocation import AsJson, Invocation
from worker.provision.plan import ProvisionError, ProvisionRefused, Step, Verdict, settled, tallied
from worker.secret_values import hiding
from worker.settings import Settings


def provision(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="As --dry-run, with exit status 1 when anything is not as it should be."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the buckets and queues that the settings name, and make them as the section `provision` says.

    May be repeated after any error: what is as it should be stays untouched, and so do rules, statements and tags of others.
    Exit status 1 when something differs that this command cannot change.
    """
    settings = Invocation.of(context).settings(quiet=True)
    try:
        steps = invocation.run(_provisioned(settings, change=not (dry_run or check), as_json=as_json))
    except ProvisionRefused as exc:
        render.fail(exc, hiding(settings))
        raise typer.Exit(2) from None
    except ProvisionError as exc:
        render.fail(exc, hiding(settings))
        raise typer.Exit(1) from None
    if check:
        raise typer.Exit(0 if settled(steps) else 1)
    if not dry_run and any(step.verdict is Verdict.DIFFERS for step in steps):
        raise typer.Exit(1)


async def _provisioned(settings: Settings, *, change: bool, as_json: bool) -> Sequence[Step]:
    try:
        from worker.provision.run import planned  # noqa: PLC0415 - needs an extra that most commands do without
    except ImportError as exc:
        raise MissingExtra(
            "provision needs aiobotocore and obstore: pip install 'transload[s3,sqs]'"
        ) from exc
    async with planned(settings) as steps:
        for step in steps:
            if change:
                await step.apply()
            _show(step, as_json=as_json)
    if not as_json:
        render.say(
            f"{', '.join(tallied(steps)) or 'nothing to provision'}{'' if change else '; nothing was changed'}"
        )
    return steps


def _show(step: Step, *, as_json: bool) -> None:
    if as_json:
        render.print_json(
            {
                "verdict": step.verdict.value,
                "resource": step.resource,
                "aspect": step.aspect,
                "old": step.old,
                "new": step.new,
            }
        )
        return
    what = step.new if step.verdict is Verdict.OK else f"{step.old} -> {step.new}"
    render.out().print(
        f"{step.verdict.value:<8}{step.resource}  {step.aspect}: {what}", markup=False, soft_wrap=True
    )
