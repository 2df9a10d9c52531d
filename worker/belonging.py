"""What an object of a target is to the ledger: whose payload, whose facts, whose list. Called by worker/cli_objects.py.

Payloads the ledger knows by their keys, manifests and archives by their bundles'. The facts beside a payload are known by the
payload's key, where that is in their own; those of a resource that refers to another's object, or that was taken apart, by what they
say themselves.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from typing import Any, Final, Literal

from backends.base import StorageBackend
from backends.errors import NotFound
from handlers import bus_layout, layouts
from handlers.sidecar import LISTED_FIRST
from worker.ledger.base import Ledger
from worker.ledger.values import Found, Search, StoredObject

MANY: Final = 100
"""Nobody counts further how many resources share an object."""
_HEAD: Final = 4 << 20
"""Bytes of a sidecar that are looked at: messages, whose facts it holds, are much smaller."""


@dataclass(frozen=True, slots=True)
class Known:
    """Why an object is no stranger to the ledger."""

    bid: str
    recipe_id: str
    part: Literal["object", "sidecar", "manifest", "archive", "document"]
    """A payload; the facts beside one; the list of its bundle; all of its bundle in one file; what else is told of that."""
    url: str | None = None
    """Of the resource, where it is one's."""
    stored: StoredObject | None = None
    """What was recorded when it was written; of payloads only."""
    others: int = 0
    """Resources besides that one whose payload it is, `MANY` at most: identical ones may have been stored once."""


async def known(ledger: Ledger, target: str, key: str, backend: StorageBackend | None = None) -> Known | None:
    """What the object under that key is to the ledger; None when it has never heard of it.

    `backend` is the target itself, where it can be asked: what looks like a sidecar, and nobody knows by its key, is then read.
    Raises `LedgerError`, or a `StorageError` of that reading.
    """
    if (found := await _first(ledger, Search(target=target, key=key))) is not None:
        of = Known(found.bid, found.recipe_id, "object", found.resource.url, found.resource.objects[0])
        return replace(of, others=await _others(ledger, target, key))
    payload = layouts.described_by(key) or bus_layout.described_by(key)
    beside = None if payload is None else await _first(ledger, Search(target=target, key=payload))
    if beside is not None:
        return Known(beside.bid, beside.recipe_id, "sidecar", beside.resource.url)
    if (bundle := await ledger.bundle_at(target, key)) is not None:
        manifest = any(key == place.manifest_key for place in bundle.targets if place.target == target)
        return Known(bundle.bid, bundle.recipe_id, "manifest" if manifest else "archive")
    listed = layouts.manifest_beside(key) or bus_layout.manifest_beside(key)
    if listed is not None and (bundle := await ledger.bundle_at(target, listed)) is not None:
        # Its payload may lie elsewhere: it refers to another's, or was taken apart.
        part: Literal["sidecar", "document"] = "document" if payload is None else "sidecar"
        return Known(bundle.bid, bundle.recipe_id, part)
    if backend is None or not backend.features.reads or payload is None:
        return None
    return await _by_itself(ledger, target, await _facts(backend, key))


async def _by_itself(ledger: Ledger, target: str, facts: Any) -> Known | None:
    """Whose facts these are, if they are of a resource that the ledger has in that target."""
    if not isinstance(facts, dict):
        return None
    bid, url = facts.get("bid"), facts.get("url")
    if not isinstance(bid, str) or not isinstance(url, str):
        return None
    found = await _first(ledger, Search(bid=escape(bid), url=escape(url), target=target))
    return None if found is None else Known(found.bid, found.recipe_id, "sidecar", url)


async def _facts(backend: StorageBackend, key: str) -> Any:
    """What a sidecar says before its list of objects, if it has one; None for what is none."""
    head, mark = b"", LISTED_FIRST.encode()
    with suppress(NotFound):
        async with backend.open(key) as chunks:
            async for chunk in chunks:
                head += chunk
                if mark in head or len(head) > _HEAD:
                    break
    facts, listed, _ = head.partition(mark)
    with suppress(ValueError, RecursionError):
        return json.loads(facts + b"\n}" if listed else head)
    return None


async def _first(ledger: Ledger, search: Search) -> Found | None:
    return await anext(ledger.search(search), None)


async def _others(ledger: Ledger, target: str, key: str) -> int:
    count = -1
    async for _ in ledger.search(Search(target=target, key=key)):
        count += 1
        if count == MANY:
            break
    return max(0, count)
