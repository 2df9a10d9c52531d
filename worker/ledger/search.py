"""The ledger as the index of what is stored: the read transactions behind `search` and `bundle_at`.

Called by worker/ledger/sql.py only. The database narrows down, by equality, LIKE and ranges, which may let through too much:
collations and LIKE differ between databases. What fits is decided here, by the patterns of routes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, Text, and_, cast, func, select, tuple_

from handlers.routes import Match
from worker.ledger.rows import before, bundle_record, bundle_targets, stored_object
from worker.ledger.schema import bundles, objects, resources
from worker.ledger.values import BundleRecord, Found, Search, StoredObject, StoredResource

After = tuple[int, str, str]
"""Where a page ended: time, bundle and resource of its last row."""

PAGE: Final = 200
"""Rows looked at in one transaction."""

_ESCAPE: Final = "~"
# As `fnmatch` reads them: a `]` that comes first belongs to the set, and a set without an end is none.
_WILD: Final = re.compile(r"\*+|\?|\[!?+\]?+[^\]]*+\]")
_ORDER: Final = (resources.c.recorded_at, resources.c.bid, resources.c.resource_id)


def page(conn: Connection, search: Search, after: After | None) -> tuple[Sequence[Found], After | None]:
    """What the next rows beyond `after` hold of what is looked for, and where they end; None at the end of all."""
    rows = conn.execute(_statement(search, after, conn.dialect.name)).all()
    fits = _matcher(search)
    fitting = [row for row in rows if fits(row)]
    lying = _objects(conn, search, fitting)
    found = [
        _found(row, lying[row.bid, row.resource_id])
        for row in fitting
        if lying[row.bid, row.resource_id] or not _asks_for_objects(search)
    ]
    last = (rows[-1].recorded_at, rows[-1].bid, rows[-1].resource_id) if len(rows) == PAGE else None
    return found, last


def bundle_at(conn: Connection, target: str, key: str) -> BundleRecord | None:
    """The bundle whose manifest or archive has that key in that target."""
    stored = _like(json.dumps(key), wild=False)
    named = cast(bundles.c.targets, Text).like(f"%{stored}%", escape=_ESCAPE)
    for row in conn.execute(select(bundles).where(named).order_by(bundles.c.bid)):
        places = (place for place in bundle_targets(row.targets) if place.target == target)
        if any(key in {place.manifest_key, place.archive_key or place.manifest_key} for place in places):
            return bundle_record(row)
    return None


def _statement(search: Search, after: After | None, dialect: str) -> Select[Any]:
    statement = (
        select(resources, bundles.c.recipe_id)
        .join(bundles, bundles.c.bid == resources.c.bid)
        .where(*_conditions(search, dialect))
        .order_by(*(column.desc() for column in _ORDER))
        .limit(PAGE)
    )
    return statement if after is None else statement.where(tuple_(*_ORDER) < tuple_(*after))


def _conditions(search: Search, dialect: str) -> Iterator[ColumnElement[bool]]:
    patterns = (
        (resources.c.bid, search.bid),
        (bundles.c.recipe_id, search.recipe_id),
        (resources.c.url, search.url),
    )
    for column, pattern in patterns:
        if pattern is not None:
            yield _may_fit(column, pattern, dialect)
    if search.content_type is not None:
        # Parameters and spaces around the media type are not looked at.
        somewhere = f"%{_like(search.content_type)}%"
        yield func.lower(func.coalesce(resources.c.content_type, "")).like(somewhere, escape=_ESCAPE)
    if search.status_code is not None:
        yield resources.c.status_code == search.status_code
    if search.since is not None:
        yield resources.c.recorded_at >= search.since
    if search.until is not None:
        yield resources.c.recorded_at < search.until
    if _asks_for_objects(search):
        yield _has_object(search, dialect)


def _asks_for_objects(search: Search) -> bool:
    return any(asked is not None for asked in (search.sha256, search.key, search.target))


def _has_object(search: Search, dialect: str) -> ColumnElement[bool]:
    equal = _equal(search)
    target = [] if search.target is None else [_may_fit(objects.c.target, search.target, dialect)]
    matching = select(objects.c.bid, objects.c.resource_id).where(*equal, *target)
    if equal:
        # Few: the database begins with them.
        return tuple_(resources.c.bid, resources.c.resource_id).in_(matching)
    return matching.where(
        objects.c.bid == resources.c.bid, objects.c.resource_id == resources.c.resource_id
    ).exists()


def _equal(search: Search) -> list[ColumnElement[bool]]:
    asked = ((objects.c.sha256, search.sha256), (objects.c.key, search.key))
    return [column == text for column, text in asked if text is not None]


def _matcher(search: Search) -> Callable[[Row[Any]], bool]:
    asked = {
        "bid": search.bid,
        "recipe_id": search.recipe_id,
        "url": search.url,
        "content_type": search.content_type,
    }
    match = Match({about: (pattern,) for about, pattern in asked.items() if pattern is not None})

    def fits(row: Row[Any]) -> bool:
        facts = {
            "bid": row.bid,
            "recipe_id": row.recipe_id,
            "url": row.url,
            "content_type": (row.content_type or "").partition(";")[0].strip().lower(),
        }
        return match.fits(facts)

    return fits


def _target_matcher(search: Search) -> Match:
    return Match({} if search.target is None else {"target": (search.target,)})


def _objects(
    conn: Connection, search: Search, rows: Sequence[Row[Any]]
) -> Mapping[tuple[str, str], list[StoredObject]]:
    """What lies in the targets of these resources and is looked for, by bundle and resource."""
    lying: dict[tuple[str, str], list[StoredObject]] = defaultdict(list)
    if not rows:
        return lying
    statement = (
        select(objects)
        .where(
            tuple_(objects.c.bid, objects.c.resource_id).in_([(row.bid, row.resource_id) for row in rows]),
            # An archive may have become many.
            *_equal(search),
        )
        .order_by(objects.c.target, objects.c.key)
    )
    of_target = _target_matcher(search)
    for row in conn.execute(statement):
        if of_target.fits({"target": row.target}):
            lying[row.bid, row.resource_id].append(stored_object(row))
    return lying


def _found(row: Row[Any], lying: Sequence[StoredObject]) -> Found:
    return Found(
        bid=row.bid,
        recipe_id=row.recipe_id,
        recorded_at=row.recorded_at,
        resource=StoredResource(
            resource_id=row.resource_id,
            url=row.url,
            content_type=row.content_type,
            status_code=row.status_code,
            meta=row.meta,
            location=row.location,
            objects=tuple(lying),
            late=row.late,
            before=before(row),
        ),
    )


def _may_fit(column: ColumnElement[str], pattern: str, dialect: str) -> ColumnElement[bool]:
    """Whatever the shell pattern fits, and perhaps more."""
    wild = _WILD.search(pattern)
    if wild is None:
        return column == pattern
    like = column.like(_like(pattern), escape=_ESCAPE)
    # After the last code point there is none; a shorter prefix lets through no less.
    prefix = pattern[: wild.start()].rstrip("\U0010ffff")
    if not prefix or dialect != "sqlite":
        # PostgreSQL takes the prefix out of LIKE by itself, where the collation of an index allows it.
        return like
    # SQLite's LIKE knows no case and so no index; its text is in the order of code points.
    return and_(column >= prefix, column < _successor(prefix), like)


def _like(pattern: str, *, wild: bool = True) -> str:
    """The shell pattern as one of LIKE; with `wild=False` the text itself."""
    parts: list[str] = []
    done = 0
    for found in _WILD.finditer(pattern) if wild else ():
        parts += [_literal(pattern[done : found.start()]), "%" if found[0][0] == "*" else "_"]
        done = found.end()
    return "".join([*parts, _literal(pattern[done:])])


def _literal(text: str) -> str:
    return re.sub(f"[%_{_ESCAPE}]", lambda found: _ESCAPE + found[0], text)


def _successor(prefix: str) -> str:
    """The first text, in the order of code points, that comes after all that begin with `prefix`."""
    following = ord(prefix[-1]) + 1
    # Surrogates are no text.
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)
