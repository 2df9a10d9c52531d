"""Re-reads what the ledger says is stored and compares every digest. Behind `transload verify` and `transload demo`."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from backends.base import StorageBackend
from backends.errors import StorageError
from handlers.bus_layout import is_bus
from worker.bus_documents import differences
from worker.ledger.base import Ledger
from worker.ledger.values import BundleRecord, StoredObject


@dataclass(slots=True)
class Verification:
    """What was found. Sizes are bytes."""

    bid: str
    objects: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything is as the ledger says."""
        return not self.problems


async def verify(
    bundle: BundleRecord,
    ledger: Ledger,
    targets: Mapping[str, StorageBackend],
    checked: Callable[[StoredObject], None],
) -> Verification:
    """Read every object of the bundle, and its manifests and archives once it was published.

    `checked` is called after each object.
    """
    result = Verification(bundle.bid)
    listed: dict[str, dict[str, str]] = {place.target: {} for place in bundle.targets}
    async for resource in ledger.resources(bundle.bid):
        for stored in resource.objects:
            if not resource.late:
                listed.setdefault(stored.target, {})[stored.key] = stored.sha256
            await _check_object(stored, targets, result)
            checked(stored)
    if bundle.state == "published":
        for place in bundle.targets:
            if (target := targets.get(place.target)) is None:
                continue
            if is_bus(place.manifest_key):
                resources = partial(ledger.resources, bundle.bid)
                result.problems += await differences(bundle, place, resources, target)
                continue
            content = await _check_manifest(place.manifest_key, listed[place.target], target, result)
            if place.archive and content is not None:
                await _check_archive(place.archive_key, content.get("archive"), target, result)
    return result


async def _check_object(
    stored: StoredObject, targets: Mapping[str, StorageBackend], result: Verification
) -> None:
    result.objects += 1
    target = targets.get(stored.target)
    if target is None:
        result.problems.append(f"{stored.key}: target {stored.target!r} is not configured any more")
        return
    try:
        size, digest = await _read(target, stored.key)
    except StorageError as exc:
        result.problems.append(f"{stored.key}: {exc}")
        return
    result.size += size
    if size != stored.size:
        result.problems.append(f"{stored.key}: has {size} bytes, the ledger says {stored.size}")
    elif digest != stored.sha256:
        result.problems.append(f"{stored.key}: has SHA-256 {digest}, the ledger says {stored.sha256}")


async def _check_manifest(
    key: str, listed: Mapping[str, str], target: StorageBackend, result: Verification
) -> Mapping[str, Any] | None:
    """What it says; None where it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(b"".join([chunk async for chunk in _chunks(target, key)]))
        found = {entry["key"]: entry["sha256"] for entry in content["resources"]}
    except StorageError as exc:
        result.problems.append(f"{key}: {exc}")
    except (ValueError, LookupError, TypeError, RecursionError):
        result.problems.append(f"{key}: is not a manifest")
    else:
        if found != listed:
            result.problems.append(f"{key}: lists other objects than the ledger")
        return content
    return None


async def _check_archive(key: str, listed: Any, target: StorageBackend, result: Verification) -> None:
    """Whether it is what the manifest says: the ledger has no digest of it."""
    try:
        size, digest = await _read(target, key)
    except StorageError as exc:
        result.problems.append(f"{key}: {exc}")
        return
    found = {"key": key, "size": size, "sha256": digest}
    if not isinstance(listed, dict) or found != {name: listed.get(name) for name in found}:
        result.problems.append(
            f"{key}: has {size} bytes with SHA-256 {digest}, which is not what the manifest says"
        )


async def _read(target: StorageBackend, key: str) -> tuple[int, str]:
    """Size and SHA-256 of what lies there. Raises `StorageError`."""
    size, digest = 0, sha256()
    async for chunk in _chunks(target, key):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


async def _chunks(target: StorageBackend, key: str) -> AsyncIterator[bytes]:
    async with target.open(key) as chunks:
        async for chunk in chunks:
            yield chunk
