"""How single objects look, what a search found, and how far a bundle's targets are.

Called by worker/cli_objects.py, worker/cli_find.py and worker/cli.py. Keys and URLs are untrusted: escaped for a person, exact in
JSON.
"""

import sys
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from backends.base import ObjectStat
from worker.belonging import MANY, Known
from worker.bundle_status import BundleStatus
from worker.ledger.values import Found
from worker.notification import timestamp
from worker.objects import Address, Got
from worker.redaction import one_line
from worker.render import out, print_json, say, size


def told(found: Known | None) -> str:
    """What the ledger knows of an object, in a sentence."""
    if found is None:
        return "the ledger does not know it"
    if found.part in {"manifest", "archive"}:
        return f"it is the {found.part} of bundle {found.bid}"
    if found.part == "document":
        return f"it tells of bundle {found.bid}"
    what = "is" if found.part == "object" else "holds the facts about"
    which = f": {one_line(found.url)}" if found.url else ""
    return f"it {what} a resource of bundle {found.bid}{which}{_sharing(found.others)}"


def _sharing(others: int) -> str:
    if not others:
        return ""
    more = "at least " if others == MANY else ""
    return f", and of {more}{others} other resource{'s' if others > 1 else ''} with the same payload"


def copied(address: Address, got: Got, *, as_json: bool) -> None:
    """What `get` read; where that went to stdout, the sentence does not."""
    found, path = got.found, got.path
    verified = None if found is None or found.stored is None else True
    if as_json:
        facts = {"place": address.place, "key": got.key, "file": None if path is None else str(path)}
        about = {"verified": verified, "bid": None if found is None else found.bid, "steps": got.steps}
        print_json({**facts, **asdict(got.copied), **about})
        return
    known = told(found) if found else got.unknown
    verdict = f"verified: {known}" if verified else f"not verified: {known}"
    where = "" if path is None else f"{path}: "
    done = "".join(f"{step}, " for step in got.steps)
    sentence = f"{where}{size(got.copied.size)}, SHA-256 {got.copied.sha256}, {done}{verdict}"
    if path is None:
        say(sentence)
    else:
        out().print(sentence, markup=False, soft_wrap=True)


def listed(found: ObjectStat, *, long: bool, as_json: bool) -> None:
    """One object of a list."""
    if as_json:
        print_json({"key": found.key, "size": found.size, "etag": found.etag})
        return
    # One by one as they come, and a list may be long: rich is not asked.
    sys.stdout.write(f"{found.size:>14,}  {one_line(found.key)}\n" if long else f"{one_line(found.key)}\n")


def facts(address: Address, found: ObjectStat, of: Known | None, unknown: str, *, as_json: bool) -> None:
    """What the store and the ledger tell of one object."""
    stored = None if of is None else of.stored
    if as_json:
        ledger = None if of is None else {**asdict(of), "stored": None if stored is None else asdict(stored)}
        print_json({"place": address.place, **asdict(found), "ledger": ledger})
        return
    table = Table(show_header=False, box=None)
    rows = {
        "key": found.key,
        "size": f"{size(found.size)} ({found.size})",
        "etag": found.etag,
        "content type": found.content_type,
        **found.metadata,
        "ledger": told(of) if of else unknown,
        "sha256": None if stored is None else stored.sha256,
        "version": None if stored is None else stored.version,
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(escape(one_line(name)), escape(one_line(value)))
    out().print(table)


def hit(found: Found, *, as_json: bool) -> None:
    """One resource that a search found, with its objects as the other commands take them."""
    resource = found.resource
    if as_json:
        objects = [
            {"address": f"{stored.target}:{stored.key}", **asdict(stored)} for stored in resource.objects
        ]
        print_json(
            {
                "bid": found.bid,
                "recipe_id": found.recipe_id,
                "recorded_at": found.recorded_at,
                **asdict(resource),
                "objects": objects,
            }
        )
        return
    code = "-" if resource.status_code is None else resource.status_code
    of = (timestamp(found.recorded_at), found.bid, found.recipe_id, code, resource.content_type or "-")
    # As lines, for many of them: rich is not asked.
    sys.stdout.write(f"{'  '.join(one_line(str(each)) for each in of)}  {one_line(resource.url)}\n")
    for stored in resource.objects:
        sys.stdout.write(f"  {stored.target}:{one_line(stored.key)}  {size(stored.size)}\n")


def bundle_status(found: BundleStatus, *, as_json: bool) -> None:
    """How far a bundle is, and each of its targets."""
    if as_json:
        print_json(asdict(found))
        return
    console = out()
    count = "?" if found.resources_count is None else found.resources_count
    console.print(f"{found.bid}  {found.state}  {found.stored_count}/{count} resources stored", markup=False)
    table = Table(box=None)
    for name in ("target", "bundle waits", "state", "last error"):
        table.add_column(name, no_wrap=True)
    for target in found.targets:
        waits = "not known" if target.required is None else "yes" if target.required else "no: best effort"
        state = f"missing {target.missing}" if target.missing else target.state
        cells: tuple[Any, ...] = (target.target, waits, state, target.error or "")
        table.add_row(*(escape(one_line(str(cell))) for cell in cells))
    console.print(table)
