"""`transload get`, `ls`, `stat` and `rm`: single objects of targets and staging sources. Added by worker/cli.py."""

import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from backends.base import StorageBackend
from backends.errors import NotFound, StorageError
from worker import belonging, bootstrap, invocation, objects, reading_back, render, render_objects
from worker.belonging import Known
from worker.invocation import AsJson, Invocation
from worker.ledger.base import LedgerError
from worker.ledger.values import AuditRecord
from worker.objects import Address, Download, Got
from worker.settings import Settings

_PLACES: Final = "TARGET is a name out of `targets`; staging:NAME is a staging source."

Object = Annotated[
    str,
    typer.Argument(metavar="TARGET:KEY", help=f"Only the first colon splits: a key may hold more. {_PLACES}"),
]


def get(
    context: typer.Context,
    address: Object,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR|-",
            help="Where it goes; - is standard output. Default: a file of the key's last part, in this folder.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The object as it lies: still encrypted, or the list of its parts.")
    ] = False,
    decompress: Annotated[
        bool, typer.Option("--decompress", help="Undo the compression as well, of zstd or gzip.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy an object to a file, and compare it with what the ledger recorded when it was stored.

    What `max_size` has split is put together again, and what `encrypt` wrote is decrypted with the keys of the settings. The file
    appears when it is whole, or not at all. Exit status 1 when the object is missing or is not what the ledger says; on standard
    output it has come out by then.
    """
    if output == "-" and as_json:
        raise typer.BadParameter(
            "the object itself goes to standard output; leave one out", param_hint="--json"
        )
    if raw and decompress:
        raise typer.BadParameter("what is decompressed is not as it lies; leave one out", param_hint="--raw")
    settings = Invocation.of(context).settings(quiet=True)
    place, key = _object(address, settings)
    if output and output != "-" and not Path(output).is_dir():
        # What the file is called is known without a look at the object: nothing is read for one that cannot be written.
        objects.destination(Path(output), key, force=force)

    async def work() -> Got:
        async with objects.opened(settings, place) as backend:
            lying = key if raw else await reading_back.located(backend, key)
            found, unknown = await _known(settings, place, lying, backend)
            stored = None if found is None else found.stored
            async with reading_back.content(
                backend, place, lying, raw=raw, decompress=decompress, keys=settings.encryption
            ) as content:
                size = content.size or (None if stored is None else stored.size)
                path = None
                if output != "-":
                    path = objects.destination(Path(output) if output else None, content.name, force=force)
                with ExitStack() as stack:
                    advance = stack.enter_context(render.progress("reading", size))
                    file: BinaryIO = sys.stdout.buffer
                    if path is not None:
                        file = stack.enter_context(Download(path, force=force).writing())
                    copied = await objects.copy(content.chunks, file, advance)
                    content.lying.facts().check(place.of(lying), stored)
        return Got(lying, copied, path, content.steps, found, unknown)

    render_objects.copied(place, invocation.run(work()), as_json=as_json)


def ls(
    context: typer.Context,
    address: Annotated[
        str,
        typer.Argument(
            metavar="TARGET[:PREFIX]",
            help="What keys begin with; without a colon, the place's own prefix. " + _PLACES,
        ),
    ],
    long: Annotated[bool, typer.Option("-l", "--long", help="With sizes, in bytes.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List objects in the order of their keys, as they come.

    PREFIX is plain text, no folder and no pattern: `main:a` finds `a/b` and `ab`. To look for resources by their recipe, URL or
    age, use `transload find`.
    """
    settings = Invocation.of(context).settings(quiet=True)
    place = _place(address, settings)

    async def work() -> bool:
        count = 0
        async with objects.opened(settings, place) as backend:
            async for found in backend.list(place.prefix(settings)):
                if count == limit:
                    return True
                render_objects.listed(found, long=long, as_json=as_json)
                count += 1
        return False

    if invocation.run(work()):
        render.say(f"there are more; raise --limit ({limit})")


def stat(context: typer.Context, address: Object, as_json: AsJson = False) -> None:
    """Show what the store tells of an object without reading it, and what the ledger knows of it.

    Exit status 1 when there is none.
    """
    settings = Invocation.of(context).settings(quiet=True)
    place, key = _object(address, settings)

    async def work() -> None:
        async with objects.opened(settings, place) as backend:
            found = await backend.stat(key)
            if found is None:
                lists = f"; `transload ls {place.place}` lists what there is"
                raise await reading_back.missing(backend, place, key, lists)
        of, unknown = await _known(settings, place, key, backend)
        render_objects.facts(place, found, of, unknown, as_json=as_json)

    invocation.run(work())


def rm(
    context: typer.Context,
    address: Object,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Delete even what belongs to a bundle, or may be waited for in staging."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete one object, for good. Asks first, and wants --yes where nobody can answer.

    What belongs to a bundle in the ledger is left alone unless --force is given: its completion says that it is there, and
    `transload verify` will miss it. Exit status 1 when it was left alone, or was not there.
    """
    settings = Invocation.of(context).settings(quiet=True)
    place, key = _object(address, settings)
    if as_json and not yes:
        raise typer.BadParameter("nothing is asked with --json; say --yes", param_hint="--yes")
    found = invocation.run(_allowed(settings, place, key, force=force))
    if not yes:
        belongs = f"; {render_objects.told(found)}" if found else ""
        typer.confirm(f"Delete {place.of(key)}, for good{belongs}?", abort=True, err=True)

    async def work() -> NotFound | None:
        async with AsyncExitStack() as stack:
            tell = await _trail(settings, place, key, found, stack, force=force)
            backend = await stack.enter_async_context(objects.opened(settings, place))
            if await objects.remove(backend, key, tell):
                return None
            return await reading_back.missing(backend, place, key)

    missing = invocation.run(work())
    if as_json:
        bid = None if found is None else found.bid
        render.print_json({"place": place.place, "key": key, "deleted": missing is None, "bid": bid})
    elif missing is None:
        render.say(f"{place.of(key)} is deleted")
    if missing is not None:
        raise missing


async def _trail(
    settings: Settings, place: Address, key: str, found: Known | None, stack: AsyncExitStack, *, force: bool
) -> Callable[[str, str | None], Awaitable[None]]:
    """What writes into the audit trail. Raises `LedgerError`; with `force`, what cannot be written is only said."""
    record = AuditRecord("removed", target=place.place, key=key)
    if found is not None:
        record = replace(record, bid=found.bid, recipe_id=found.recipe_id, url=found.url)
        if found.stored is not None:
            record = replace(record, size=found.stored.size, sha256=found.stored.sha256)
    try:
        ledger = await stack.enter_async_context(bootstrap.open_ledger(settings))
    except LedgerError as exc:
        if not force:
            raise
        render.say(f"the audit trail does not tell of it: {exc}")
        ledger = None

    async def tell(action: str, detail: str | None) -> None:
        if ledger is not None:
            await ledger.audit([replace(record, action=action, detail=detail)])

    return tell


async def _allowed(settings: Settings, place: Address, key: str, *, force: bool) -> Known | None:
    """What the ledger knows of what may be deleted. Raises `StorageError` when it may not, `LedgerError` when that is not known."""
    if place.kind == "staging":
        if not force:
            raise StorageError(
                f"{place.of(key)}: a message that waits for it would become a dead letter; --force deletes it all the same"
            )
        return None
    try:
        async with bootstrap.open_ledger(settings) as ledger, objects.opened(settings, place) as backend:
            try:
                found = await belonging.known(ledger, place.name, key, backend)
            except StorageError:
                if not force:
                    raise
                found = await belonging.known(ledger, place.name, key)
    except LedgerError as exc:
        if not force:
            raise LedgerError(
                f"{exc}; what belongs to a bundle is not known, --force deletes all the same"
            ) from exc
        return None
    if found is not None and not force:
        raise StorageError(
            f"{place.of(key)} is left alone: {render_objects.told(found)}; --force deletes it all the same"
        )
    return found


async def _known(
    settings: Settings, place: Address, key: str, backend: StorageBackend
) -> tuple[Known | None, str]:
    """What the ledger knows of the object, or why that is nothing: it may be down, and the object still be wanted."""
    if place.kind == "staging":
        return None, "the ledger has no digests of what is staged"
    try:
        async with bootstrap.open_ledger(settings) as ledger:
            return await belonging.known(ledger, place.name, key, backend), render_objects.told(None)
    except (LedgerError, StorageError) as exc:
        return None, str(exc)


def _place(address: str, settings: Settings) -> Address:
    try:
        return Address.parse(address, settings)
    except objects.NoSuchPlace as exc:
        raise typer.BadParameter(str(exc), param_hint="TARGET") from exc


def _object(address: str, settings: Settings) -> tuple[Address, str]:
    place = _place(address, settings)
    if not place.key:
        raise typer.BadParameter(
            f"give a key as well, as {place.of('KEY')}; `transload ls {place.place}` lists them",
            param_hint="TARGET:KEY",
        )
    return place, place.key
