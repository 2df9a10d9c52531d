"""The archive of a bundle: all resources it has in one target as one object of that target (docs/adr/0016-bundling.md).

Called by worker/manifest.py before it writes the manifest, which lists the archive. A manifest that lists it is therefore the
sign that it is there, and a redo after that reads nothing again.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from backends.base import CHUNK_SIZE, Attributes, Receipt, StorageBackend
from backends.errors import Conflict, MissingExtra, NotFound, PermissionDenied
from backends.failpoints import failpoint
from backends.registry import UnknownName
from handlers.bundling.archive import FORMATS, archive
from handlers.bundling.base import Member
from handlers.bundling.comparing import DECODERS, same_inside
from handlers.bundling.member_paths import member_path
from handlers.plan import BundleTarget
from worker.budget import Budget
from worker.ledger.base import Ledger
from worker.ledger.values import BundleRecord, StoredObject, StoredResource
from worker.manifest_errors import CannotArchive

LISTED_FIRST: Final = ',\n  "resources": ['
"""What follows the facts of a manifest, and stands nowhere else in it: no text of JSON holds a line feed as it is."""

_HEAD: Final = 4 << 20
"""Bytes of a manifest in which its list has to begin; messages are much smaller."""
_LARGE: Final = 64 << 20
"""Bytes of resources from which on an archive waits for the large ones, so that none waits long for one of these."""
_SMALL_AT_ONCE: Final = 2
_READ: Final = 4 * CHUNK_SIZE
"""What is read and not yet handed on, by the store, the format and its compressor."""
_MEMBER: Final = 400
"""About so many bytes are held for each member: digests of its path and folders, its line in a zip's directory."""

Members = Callable[[], AsyncGenerator[Member, None]]


@dataclass(frozen=True, slots=True)
class Archived:
    """An archive that lies in a target, as the bundle's manifest lists it."""

    key: str
    size: int
    sha256: str
    format: str


class Archives:
    """Writes them. Doing it again finds the same, or the same files packed by another version of a compressor."""

    def __init__(self, ledger: Ledger, budget: Budget) -> None:
        """`budget` is the memory all transfers of the process share."""
        self._ledger = ledger
        self._budget = budget
        self._small, self._large = asyncio.Semaphore(_SMALL_AT_ONCE), asyncio.Semaphore(1)

    async def write(self, bundle: BundleRecord, place: BundleTarget, target: StorageBackend) -> Archived:
        """See that the bundle's archive lies in `target`, which is where `place` says.

        Raises `CannotArchive`, a `StorageError` or a `LedgerError`.
        """
        content_type = _content_type(place.archive)
        if (known := await _announced(place, target)) is not None:
            return known
        members = partial(_members, self._ledger, bundle.bid, place.target, target)
        count, size = await _extent(members)
        memory = min(2 * size, _READ + target.write_buffer) + _MEMBER * count
        turn = self._small if size < _LARGE else self._large
        async with turn, self._budget.hold(memory):
            receipt = await _written(place, target, members, Attributes(content_type))
        return Archived(place.archive_key, receipt.size, receipt.sha256, place.archive)


async def _written(
    place: BundleTarget, target: StorageBackend, members: Members, attributes: Attributes
) -> Receipt:
    try:
        async with aclosing(_packed(place, members)) as chunks:
            failpoint("relay.archive.before")
            receipt = await target.write(place.archive_key, chunks, attributes)
            failpoint("relay.archive.after")
    except Conflict as exc:
        if place.archive not in DECODERS:
            raise
        # Another release's compressor may have made other bytes of the same tar. Writing what lies there once more has the
        # store prove that it lies there for good.
        try:
            async with (
                target.open(place.archive_key) as there,
                aclosing(same_inside(place.archive, there, members)) as chunks,
            ):
                failpoint("relay.archive_found.before")
                receipt = await target.write(place.archive_key, chunks, attributes)
                failpoint("relay.archive_found.after")
        except Conflict as other:
            raise exc from other
    return receipt


async def _packed(place: BundleTarget, members: Members) -> AsyncGenerator[bytes, None]:
    async with aclosing(archive(place.archive, members)) as chunks:
        try:
            async for chunk in chunks:
                yield chunk
        except ValueError as exc:
            raise CannotArchive(
                f"the bundle cannot be archived in {place.target!r}: {exc}", retryable=False
            ) from exc


async def _members(
    ledger: Ledger, bid: str, name: str, target: StorageBackend
) -> AsyncGenerator[Member, None]:
    """What lies of the bundle in that target, by the resource's id, then by key. Late resources are in no archive."""
    async for resource in ledger.resources(bid):
        lying = [] if resource.late else [stored for stored in resource.objects if stored.target == name]
        # A best-effort target may have got it later than the others, when its route had other transforms.
        several = len(lying) > 1
        # Databases differ in how they order text, and an archive that lies there may be of a bundle whose ledger was lost.
        for stored in sorted(lying, key=lambda each: each.key):
            yield _member(resource, stored, target, several=several)


def _member(
    resource: StoredResource, stored: StoredObject, target: StorageBackend, *, several: bool
) -> Member:
    steps = resource.before is not None and bool(resource.before.steps)
    transformed = steps or several or stored.member is not None
    path = member_path(resource.url, stored.key, transformed=transformed)
    return Member(path, stored.size, stored.sha256, partial(target.open, stored.key))


async def _extent(members: Members) -> tuple[int, int]:
    """How many members there are, and their bytes together."""
    count = size = 0
    async with aclosing(members()) as listed:
        async for member in listed:
            count += 1
            size += member.size
    return count, size


def _content_type(format_: str) -> str:
    try:
        return FORMATS.load(format_).content_type
    except (UnknownName, MissingExtra) as exc:
        # Its bundle was begun by a worker that knows it.
        raise CannotArchive(str(exc), retryable=True) from exc


async def _announced(place: BundleTarget, target: StorageBackend) -> Archived | None:
    """The archive, if the bundle's manifest lies there already and lists it; None where that cannot be told.

    Asked before anything is written, for another reason too: a circuit breaker that lets one call through to see whether the
    store is back would let through the write, which then could read nothing.
    """
    try:
        there = await target.stat(place.archive_key)
        if there is None:
            return None
        facts = await _facts(target, place.manifest_key)
    except (NotFound, PermissionDenied):
        # Some stores say the latter of what is missing to those who may not list.
        return None
    with suppress(LookupError, TypeError):
        known = Archived(**facts["archive"])
        if (known.key, known.format, known.size) == (place.archive_key, place.archive, there.size):
            return known
    return None


async def _facts(target: StorageBackend, manifest_key: str) -> dict[str, Any]:
    """What a manifest says before its list; nothing where it is not one of ours."""
    head, mark = b"", LISTED_FIRST.encode()
    async with target.open(manifest_key) as chunks:
        async for chunk in chunks:
            head += chunk
            if mark in head or len(head) > _HEAD:
                break
    facts, found, _ = head.partition(mark)
    with suppress(ValueError, RecursionError):
        loaded = json.loads(facts + b"\n}") if found else None
        return loaded if isinstance(loaded, dict) else {}
    return {}
