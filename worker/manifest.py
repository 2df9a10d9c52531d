"""The manifest of a bundle: what lies in one target, written when the bundle is complete, after its archive if it has one.

Called by worker/relay.py before it announces a bundle, and by worker/pipeline.py when a best-effort target got the last of what
it was owed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from functools import partial

from backends.base import Attributes, StorageBackend
from backends.failpoints import failpoint
from handlers.bus_layout import is_bus
from handlers.plan import BundleTarget
from worker.budget import Budget
from worker.bundle_archive import LISTED_FIRST, Archived, Archives
from worker.bus_documents import BusDocuments, described
from worker.ledger.base import Ledger
from worker.ledger.values import BundleRecord, StoredObject, StoredResource
from worker.manifest_errors import TargetGone
from worker.notification import event_id

_WRITTEN_AT_ONCE = 8
"""Manifests written side by side: each holds one page of resources in memory."""


class Manifests:
    """Writes them. Doing it again finds the same bytes."""

    def __init__(self, ledger: Ledger, targets: Mapping[str, StorageBackend], budget: Budget) -> None:
        """`targets` holds a connected backend for every target that is configured; `budget` bounds what archives hold."""
        self._ledger = ledger
        self._targets = targets
        self._bus = BusDocuments()
        self._archives = Archives(ledger, budget)
        self._gate = asyncio.Semaphore(_WRITTEN_AT_ONCE)

    async def write(self, bundle: BundleRecord, place: BundleTarget) -> None:
        """Write the bundle's archive, where it is to have one, and its manifest to one of its targets.

        In the layout of OC's bus the manifest is several documents.

        Raises `TargetGone`, `CannotArchive`, a `StorageError` or a `LedgerError`.
        """
        target = self._targets.get(place.target)
        if target is None:
            raise TargetGone(
                f"target {place.target!r} of bundle {bundle.bid} is not configured any more; add it again"
            )
        archived = await self._archives.write(bundle, place, target) if place.archive else None
        async with self._gate:
            if is_bus(place.manifest_key):
                resources = partial(self._ledger.resources, bundle.bid)
                await self._bus.write(bundle, place, resources, target)
                return
            chunks = manifest(bundle, place, self._ledger.resources(bundle.bid), archived)
            failpoint("relay.manifest.before")
            await target.write(place.manifest_key, chunks, _JSON)
            failpoint("relay.manifest.after")


async def manifest(
    bundle: BundleRecord,
    place: BundleTarget,
    resources: AsyncIterator[StoredResource],
    archived: Archived | None = None,
) -> AsyncIterator[bytes]:
    """The bundle's manifest as it lies in one target: JSON, streamed, the same bytes on every redo.

    Late resources are not in it: they were not there when the bundle was completed. Nor is any time of day: a bundle that
    is announced again from a lost or restored ledger finds its manifest equal.
    """
    head: dict[str, object] = {
        "bid": bundle.bid,
        "recipe_id": bundle.recipe_id,
        "primary_url": bundle.primary_url,
        "resources_count": bundle.stored_count,
        "storage_key": place.storage_key,
        "event_id": event_id(bundle.bid),
        "meta": bundle.meta,
        "metadata": bundle.metadata,
    }
    if archived is not None:
        head["archive"] = asdict(archived)
    text = json.dumps(head, ensure_ascii=False, indent=2)
    buffer = [text.removesuffix("\n}"), LISTED_FIRST]
    separator = "\n    "
    async for resource in resources:
        if resource.late:
            continue
        # Databases differ in how they order text.
        for stored in sorted(resource.objects, key=lambda each: each.key):
            if stored.target == place.target:
                buffer.append(separator + json.dumps(_listed(resource, stored), ensure_ascii=False))
                separator = ",\n    "
            if len(buffer) >= 256:
                # An archive alone may have become many objects.
                yield "".join(buffer).encode()
                buffer.clear()
    buffer.append("\n  ]\n}\n")
    yield "".join(buffer).encode()


def _listed(resource: StoredResource, stored: StoredObject) -> dict[str, object]:
    proof = {"key": stored.key, "size": stored.size, "sha256": stored.sha256}
    return {**proof, **described(resource, stored)}


_JSON = Attributes("application/json")
