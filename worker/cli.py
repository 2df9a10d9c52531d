"""The `transload` command: arguments in, parts from worker/bootstrap.py, words and JSON out.

Answers go to stdout, everything else (logs, progress, errors) to stderr, so that every `--json` can be piped. Exit status:
0 done, 1 it did not work out, 2 the arguments, the settings or the message are wrong.
"""

import asyncio
import importlib.metadata
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from backends.errors import StorageError
from handlers.errors import HandlerError, Refused
from worker import (
    bootstrap,
    cli_audit,
    cli_config,
    cli_dead_letters,
    cli_doctor,
    cli_find,
    cli_objects,
    cli_outbox,
    cli_provision,
    failpoints,
    invocation,
    local_files,
    logs,
    render,
    render_objects,
    routing,
    stores,
    uncaught,
)
from worker import demo as demonstration
from worker.admin import AdminError
from worker.bundle_status import BundleStatus, bundle_status
from worker.failpoints import FailpointError
from worker.invocation import AsJson, Bid, Invocation
from worker.ledger.base import LedgerError
from worker.ledger.database import migrate as migrate_database
from worker.ledger.values import BundleState
from worker.producer import ProducerError
from worker.publishers.base import PublishError
from worker.publishers.embedded import EmbeddedPublisher
from worker.queues.base import QueueError
from worker.secret_values import Hidden
from worker.service import Service
from worker.settings import SettingsError
from worker.verify import verify as verify_bundle

app = typer.Typer(
    name="transload",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Event-driven storage worker: staged payloads in, durable objects and one completion per bundle out.",
    epilog="First steps: transload demo. Everything embedded (queue, ledger, staging, storage, completions) lies in --home.",
)
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_config.app, name="config")
app.add_typer(cli_dead_letters.app, name="dlq")
app.add_typer(cli_outbox.app, name="outbox")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("transload"))
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The settings file (YAML). Also TRANSLOAD_CONFIG."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where everything embedded lies. Also TRANSLOAD_HOME; default ~/.transload."
        ),
    ] = None,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Event-driven storage worker: staged payloads in, durable objects and one completion per bundle out."""
    hidden = context.obj if isinstance(context.obj, Hidden) else Hidden()
    context.obj = Invocation(config, home, os.environ, hidden)


@app.command()
def run(
    context: typer.Context,
    until_idle: Annotated[
        bool,
        typer.Option(
            "--until-idle",
            help="End when the queue is empty and every completion is out; opens no admin port. "
            "Messages in work elsewhere, or left by a killed worker, are waited for.",
        ),
    ] = False,
    until_empty: Annotated[
        float | None,
        typer.Option(
            "--until-empty",
            metavar="SECONDS",
            min=1,
            max=43_200,
            help="End once the queue has given nothing for so long and nothing is in work here. For Jobs.",
        ),
    ] = None,
) -> None:
    """Run a worker: take messages, store payloads, announce complete bundles.

    SIGTERM or Ctrl-C stops taking, finishes what is in work within worker.drain_timeout, and gives the rest back. A second
    one exits at once; the queue then returns the messages when their lease passes.
    """
    if until_idle and until_empty is not None:
        raise typer.BadParameter(
            "--until-idle ends in another way; give one of them", param_hint="--until-empty"
        )
    settings = Invocation.of(context).settings()

    async def work() -> Service:
        async with bootstrap.open_service(settings, admin=not until_idle) as service:
            _stop_on_signals(service)
            await service.run(until_idle=until_idle, until_empty=until_empty)
            return service

    done = invocation.run(work()).progress
    render.say(f"{done.acked} messages done, {done.retried} retries, {done.dead} dead letters")


@app.command()
def demo(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", exists=True, file_okay=False, help="The folder to store."),
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Store a folder from end to end: stage its files (one bundle a folder), run the worker until idle, show and verify.

    Uses the queue, ledger, staging and target of --home. Running it again on unchanged files finds every bundle known.
    """
    settings = Invocation.of(context).settings(quiet=True)
    outcome = invocation.run(demonstration.run_demo(settings, source))
    demonstration.show(outcome, as_json=as_json)
    if not outcome.passed:
        raise typer.Exit(1)


@app.command()
def publish(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Files, and folders with all files below.")
    ],
    recipe: Annotated[str, typer.Option(metavar="ID", help="The recipe's id.")],
    bid: Annotated[
        str | None,
        typer.Option(
            metavar="BID",
            help="The bundle's id. Default: derived from the files, so that publishing them again is the same bundle.",
        ),
    ] = None,
    primary_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Default: the file, or the folder around all files.")
    ] = None,
    no_close: Annotated[
        bool, typer.Option("--no-close", help="Announce the files but leave the bundle open for more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stage files as one bundle and announce them on the queue; `transload run` then stores them.

    Prints the bundle's id. May be repeated after any error: what was announced before is known by its id.
    """
    settings = Invocation.of(context).settings(quiet=True)
    bundle = local_files.bundle_of(
        local_files.find_files(paths, leave_out=settings.home), recipe, bid=bid, primary_url=primary_url
    )

    async def work() -> None:
        async with bootstrap.open_producer(settings) as producer:
            with render.progress("staging", bundle.size) as advance:
                await local_files.publish(
                    producer,
                    bundle,
                    metadata={"source": "transload publish", "run_id": bundle.bid},
                    close=not no_close,
                    staged=lambda file: advance(file.size),
                )

    invocation.run(work())
    render.published(bundle, closed=not no_close, as_json=as_json)


@app.command()
def status(
    context: typer.Context,
    bid: Annotated[
        str | None, typer.Argument(help="A bundle's id: show how far it is in each of its targets.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show queue depth, bundles by state, pending completions, and what waits for a person; or how far one bundle is.

    Of a bundle: which of its targets have everything, which are without something and why, and which it waits for.
    """
    settings = Invocation.of(context).settings(quiet=True)

    async def of_bundle(bid: str) -> BundleStatus:
        async with bootstrap.open_ledger(settings) as ledger:
            found = await bundle_status(ledger, bid)
        if found is None:
            raise LedgerError(f"no bundle {bid}; `transload bundles` lists them")
        return found

    if bid is not None:
        render_objects.bundle_status(invocation.run(of_bundle(bid)), as_json=as_json)
        return

    async def work() -> render.Status:
        async with bootstrap.open_ledger(settings) as ledger, bootstrap.open_queue(settings) as queue:
            return render.Status(
                queue.name, await queue.depth(), await ledger.summary(), await ledger.outbox("parked", 20)
            )

    render.status(invocation.run(work()), as_json=as_json)


@app.command()
def bundles(
    context: typer.Context,
    state: Annotated[
        str | None, typer.Option(metavar="S", help="Only these: open, complete or published.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List bundles, the newest first."""
    states: dict[str, BundleState] = {"open": "open", "complete": "complete", "published": "published"}
    if state is not None and state not in states:
        raise typer.BadParameter(f"{state!r} is no state; use {', '.join(states)}", param_hint="--state")
    wanted = None if state is None else states[state]
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> Any:
        async with bootstrap.open_ledger(settings) as ledger:
            return await ledger.bundles(wanted, limit)

    render.bundles(invocation.run(work()), as_json=as_json)


@app.command()
def show(context: typer.Context, bid: Bid, as_json: AsJson = False) -> None:
    """Show one bundle: its facts, its resources, and where their objects lie."""
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> Any:
        async with bootstrap.open_ledger(settings) as ledger:
            found = await ledger.bundle(bid)
            if found is None:
                raise LedgerError(f"no bundle {bid}; `transload bundles` lists them")
            return found, [resource async for resource in ledger.resources(bid)]

    render.bundle(*invocation.run(work()), as_json=as_json)


@app.command()
def completions(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Stay, and print new ones as they come.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the completion notifications of the embedded publisher, the oldest first; --json prints their exact bodies."""
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> None:
        async with bootstrap.open_publisher(settings) as publisher:
            if not isinstance(publisher, EmbeddedPublisher):
                raise PublishError(
                    f"completions go to {publisher.destination}; read them there (only the embedded publisher keeps a list)"
                )
            after = 0
            while True:
                page = await publisher.read(after)
                for stored in page:
                    after = stored.seq
                    render.completion(stored.notification.body, as_json=as_json)
                if not page:
                    if not follow:
                        return
                    await asyncio.sleep(0.2)

    invocation.run(work())


@app.command()
def verify(context: typer.Context, bid: Bid, as_json: AsJson = False) -> None:
    """Re-read every object of a bundle from its targets and compare size and SHA-256 with the ledger's.

    Exit status 1 when anything is missing or differs.
    """
    settings = Invocation.of(context).settings(quiet=True)

    async def work() -> Any:
        async with bootstrap.open_ledger(settings) as ledger, stores.open_targets(settings) as targets:
            found = await ledger.bundle(bid)
            if found is None:
                raise LedgerError(f"no bundle {bid}; `transload bundles` lists them")
            with render.progress("reading", None) as advance:
                return await verify_bundle(found, ledger, targets, lambda stored: advance(stored.size))

    result = invocation.run(work())
    render.verification(result, as_json=as_json)
    if not result.passed:
        raise typer.Exit(1)


app.command()(cli_outbox.replay)
app.command()(cli_provision.provision)
app.command()(cli_objects.get)
app.command()(cli_objects.ls)
app.command()(cli_objects.stat)
app.command()(cli_objects.rm)
app.command()(cli_find.find)
app.command()(cli_doctor.doctor)
app.command()(cli_doctor.sweep)


@app.command()
def explain(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A message's body; - reads standard input.")],
    as_json: AsJson = False,
) -> None:
    """Say what a worker would do with a message: route, source, keys and targets. Asks no queue, ledger or store, writes nothing.

    A message that would be a dead letter gives its reason in one line, and exit status 2.
    """
    settings = Invocation.of(context).settings(quiet=True)
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise typer.BadParameter(f"cannot read {file}: {exc.strerror}", param_hint="FILE") from exc
    handlers = routing.make_handlers(settings)
    for said in handlers.read(body, settings.worker.max_message_bytes):
        render.plan(handlers.planned(said), as_json=as_json)


@app.command()
def migrate(context: typer.Context) -> None:
    """Bring the ledger's database to this release's schema. The embedded SQLite ledger does it by itself at start."""
    settings = Invocation.of(context).settings()

    async def work() -> str | None:
        database = bootstrap.open_ledger_database(settings)
        try:
            return await migrate_database(database)
        finally:
            await database.aclose()

    render.migrated(invocation.run(work()))


def main() -> None:
    """The console script. Turns every foreseen error into one line on stderr and an exit status."""
    hidden = Hidden()
    try:
        _arm_failpoints(os.environ.get(failpoints.VARIABLE, ""))
        with uncaught.hidden(hidden):
            app(obj=hidden)
    except (SettingsError, Refused, ProducerError, FailpointError) as exc:
        render.fail(exc, hidden)
        sys.exit(2)
    except (HandlerError, StorageError, QueueError, LedgerError, PublishError, AdminError, OSError) as exc:
        render.fail(exc, hidden)
        sys.exit(1)
    except Exception as exc:  # noqa: BLE001 - it is told, as Python itself would, but for the secrets
        uncaught.tell(exc, hidden)
        sys.exit(1)


def _arm_failpoints(text: str) -> None:
    """First of all, so that no durable effect comes before; loud, because nobody wants this outside a test."""
    armed = failpoints.parse(text)
    failpoints.arm(armed)
    if armed:
        logs.configure("warning", "auto", sys.stderr)
        structlog.get_logger("failpoints").warning("failpoints are armed", places=text)


def _stop_on_signals(service: Service) -> None:
    loop = asyncio.get_running_loop()
    asked = False

    def stop(number: int) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
