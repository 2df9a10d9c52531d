"""The documents of a bundle in the layout of OC's bus (handlers/bus_layout.py), written when it is complete.

Called by worker/manifest.py in place of a manifest, and by worker/verify.py. In their order: `_discovered.json`,
`_manifest.jsonl`, the hash of the content, `_completed.json`, the registry's `_latest`. So who finds `_completed.json` finds
everything before it. Doing it again finds the same bytes: the only times are the ledger's.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

from backends.base import Attributes, StorageBackend, single
from backends.errors import Conflict, StorageError
from backends.failpoints import failpoint
from handlers import bus_layout
from handlers.plan import BundleTarget
from worker.bus_latest import LatestHash
from worker.ledger.values import BundleRecord, StoredObject, StoredResource
from worker.notification import event_id, timestamp

Resources = Callable[[], AsyncIterator[StoredResource]]
"""The bundle's resources in the ledger's order, as often as it is asked for."""

_AT_ONCE: Final = 256
"""Lines of a manifest that are made into text at a time."""
_DISCOVERED_AT: Final = "discovered_at"
_COMPLETED_AT: Final = "completed_at"


class BusDocuments:
    """Writes them."""

    def __init__(self) -> None:
        self._latest = LatestHash()

    async def write(
        self, bundle: BundleRecord, place: BundleTarget, resources: Resources, target: StorageBackend
    ) -> None:
        """Write all of them. Raises a `StorageError` or a `LedgerError`."""
        folder = bus_layout.folder_of(place.manifest_key)
        hashes = bus_layout.hashes_of(place.manifest_key)
        failpoint("bus.discovered.before")
        await _put(target, f"{folder}/{bus_layout.DISCOVERED}", discovered(bundle), _DISCOVERED_AT)
        failpoint("bus.discovered.after")
        failpoint("bus.manifest.before")
        await target.write(place.manifest_key, manifest_lines(place, resources()), _LINES)
        failpoint("bus.manifest.after")
        digest = await bundle_hash(place, resources())
        failpoint("bus.hash.before")
        with suppress(Conflict):
            # An earlier bundle has the same content: it stays the one that is named.
            await target.write(f"{hashes}/{digest}", single(bundle.bid.encode()), _TEXT)
        failpoint("bus.hash.after")
        failpoint("bus.completed.before")
        await _put(target, f"{folder}/{bus_layout.COMPLETED}", completed(bundle, digest), _COMPLETED_AT)
        failpoint("bus.completed.after")
        await self._latest.point(target, hashes, digest, bundle.bid)


def discovered(bundle: BundleRecord) -> dict[str, Any]:
    """`_discovered.json`: what was known when the first resource was stored."""
    return {
        "bid": bundle.bid,
        "data_registry_id": bundle.recipe_id,
        _DISCOVERED_AT: timestamp(bundle.created_at),
        "primary_url": bundle.primary_url,
        "meta": bundle.meta,
    }


def completed(bundle: BundleRecord, digest: str) -> dict[str, Any]:
    """`_completed.json`: what its closing told besides. `source` and `run_id` are null where nobody told them."""
    return {
        "bid": bundle.bid,
        "data_registry_id": bundle.recipe_id,
        _COMPLETED_AT: None if bundle.completed_at is None else timestamp(bundle.completed_at),
        "resources_count": bundle.stored_count,
        "bundle_hash": digest,
        "source": bundle.metadata.get("source"),
        "run_id": bundle.metadata.get("run_id"),
        "event_id": event_id(bundle.bid),
        "meta": bundle.metadata,
    }


async def manifest_lines(
    place: BundleTarget, resources: AsyncIterator[StoredResource]
) -> AsyncIterator[bytes]:
    """`_manifest.jsonl`, streamed: a line for each object of the content, by the resource's id, then by name.

    Late resources are not in it: they were not there when the bundle was completed.
    """
    lines: list[str] = []
    async for resource, stored, name in _content(place, resources):
        listed = {
            "key": f"content/{name}",
            "size": stored.size,
            "hash": f"sha256:{stored.sha256}",
            "name": name,
            "metadata": described(resource, stored),
        }
        lines.append(json.dumps(listed, ensure_ascii=False) + "\n")
        if len(lines) >= _AT_ONCE:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


async def bundle_hash(place: BundleTarget, resources: AsyncIterator[StoredResource]) -> str:
    """The SHA-256, in hex, of a line `size sha256 name` for each line of the manifest, in its order.

    Names and ids follow from URLs alone, so bundles of the same payloads from the same URLs have the same hash.
    """
    digest = sha256()
    async for _, stored, name in _content(place, resources):
        digest.update(f"{stored.size} {stored.sha256} {name}\n".encode())
    return digest.hexdigest()


async def differences(
    bundle: BundleRecord, place: BundleTarget, resources: Resources, target: StorageBackend
) -> list[str]:
    """What lies there otherwise than the ledger has it, a line each; nothing about `_latest`, which only hints."""
    folder, digest = bus_layout.folder_of(place.manifest_key), await bundle_hash(place, resources())
    problems = await _unlike_manifest(place, resources(), target)
    for name, document, moment in (
        (bus_layout.DISCOVERED, discovered(bundle), _DISCOVERED_AT),
        (bus_layout.COMPLETED, completed(bundle, digest), _COMPLETED_AT),
    ):
        key = f"{folder}/{name}"
        try:
            if not await _is_there(target, key, document, moment):
                problems.append(f"{key}: tells otherwise than the ledger")
        except StorageError as exc:
            problems.append(f"{key}: {exc}")
    named = f"{bus_layout.hashes_of(place.manifest_key)}/{digest}"
    try:
        if await target.stat(named) is None:
            problems.append(f"{named}: is not there")
    except StorageError as exc:
        problems.append(f"{named}: {exc}")
    return problems


async def _unlike_manifest(
    place: BundleTarget, resources: AsyncIterator[StoredResource], target: StorageBackend
) -> list[str]:
    key, found = place.manifest_key, dict[str, tuple[int, str]]()
    try:
        async with target.open(key) as chunks:
            content = b"".join([chunk async for chunk in chunks])
        for line in content.splitlines():
            listed = json.loads(line)
            found[listed["name"]] = (listed["size"], listed["hash"])
    except StorageError as exc:
        return [f"{key}: {exc}"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return [f"{key}: is not a manifest"]
    recorded = {
        name: (stored.size, f"sha256:{stored.sha256}") async for _, stored, name in _content(place, resources)
    }
    return [] if found == recorded else [f"{key}: lists other objects than the ledger"]


async def _content(
    place: BundleTarget, resources: AsyncIterator[StoredResource]
) -> AsyncIterator[tuple[StoredResource, StoredObject, str]]:
    """What lies below this bundle's `content/`, each with its name there.

    A bundle whose target had its layout changed meanwhile lies partly elsewhere, and has a manifest there.
    """
    content = bus_layout.content_of(place.manifest_key)
    async for resource in resources:
        if resource.late:
            continue
        # Databases differ in how they order text.
        for stored in sorted(resource.objects, key=lambda each: each.key):
            if stored.target == place.target and stored.key.startswith(content):
                yield resource, stored, stored.key.removeprefix(content)


def described(resource: StoredResource, stored: StoredObject) -> dict[str, Any]:
    """What any manifest says of an object besides its key, size and digest."""
    facts: dict[str, Any] = {
        "url": resource.url,
        "content_type": resource.content_type,
        "status_code": resource.status_code,
        "meta": resource.meta,
    }
    if stored.member is not None:
        facts["member"] = stored.member
    if (before := resource.before) is not None:
        facts["payload"] = {"size": before.size, "sha256": before.sha256}
        facts["transforms"] = before.steps
        facts["notes"] = before.notes
    return facts


async def _put(target: StorageBackend, key: str, document: Mapping[str, Any], moment: str) -> None:
    """Write it. One that differs in its moment alone is kept: a ledger that was lost learns of the same bundle later."""
    try:
        await target.write(key, single(_text(document)), _JSON)
    except Conflict:
        if not await _is_there(target, key, document, moment):
            raise


async def _is_there(target: StorageBackend, key: str, document: Mapping[str, Any], moment: str) -> bool:
    """Whether that document lies there, whatever its moment is."""
    most, content = len(_text(document)) + 1024, b""
    async with target.open(key) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > most:
                return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    # By way of JSON: what was a tuple is a list there.
    wanted = json.loads(_text(document))
    return isinstance(found, dict) and {**found, moment: None} == {**wanted, moment: None}


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"


_JSON: Final = Attributes("application/json")
_LINES: Final = Attributes("application/x-ndjson")
_TEXT: Final = Attributes("text/plain")
