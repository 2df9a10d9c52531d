"""What a consumer of OC's data pipeline bus expects of a bucket: bundles that are complete, and hashes that lead to them.

Knows the layout from its description alone, nothing of the code that writes it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from backends.base import StorageBackend

_FOLDER = re.compile(
    r"(?P<registry>.+)/data/year=\d{4}/month=\d\d/day=\d\d/\d\d-\d\d-\d\d-[0-9a-f]+(-[A-Za-z0-9_-]+)?"
)
_COMPLETED = "/metadata/_completed.json"


async def contents(store: StorageBackend) -> dict[str, bytes]:
    """Every object of a store."""
    found = {}
    for key in [stat.key async for stat in store.list()]:
        async with store.open(key) as chunks:
            found[key] = b"".join([chunk async for chunk in chunks])
    return found


def bundles(objects: Mapping[str, bytes]) -> dict[str, str]:
    """The folder of each complete bundle, by its bid."""
    found = (key.removesuffix(_COMPLETED) for key in objects if key.endswith(_COMPLETED))
    return {document(objects, folder, "_completed.json")["bid"]: folder for folder in found}


def document(objects: Mapping[str, bytes], folder: str, name: str) -> dict[str, Any]:
    """One of a bundle's documents."""
    content = json.loads(objects[f"{folder}/metadata/{name}"])
    assert isinstance(content, dict)
    return content


def manifest(objects: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    """The lines of a bundle's manifest."""
    text = objects[f"{folder}/metadata/_manifest.jsonl"].decode()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def problems(objects: Mapping[str, bytes], *, late: int = 0) -> list[str]:
    """What a consumer would stumble over, a line each. So many objects came too late for a manifest."""
    found, unlisted = [], 0
    for bid, folder in bundles(objects).items():
        said, listed = _of_bundle(objects, bid, folder)
        found += said
        content = {key for key in objects if key.startswith(f"{folder}/content/")}
        unlisted += len(content - listed)
    if unlisted != late:
        found.append(f"{unlisted} objects are in no manifest, {late} should be")
    for key in objects:
        if key.endswith("/bundle_hashes/_latest"):
            beside = f"{key.removesuffix('_latest')}{objects[key].decode()}"
            found += [] if beside in objects else [f"{key} names {beside}, which is not there"]
    return found


def _of_bundle(objects: Mapping[str, bytes], bid: str, folder: str) -> tuple[list[str], set[str]]:
    return [*_documents(objects, bid, folder), *_content(objects, folder)], {
        f"{folder}/{line['key']}" for line in manifest(objects, folder)
    }


def _documents(objects: Mapping[str, bytes], bid: str, folder: str) -> Iterator[str]:
    match = _FOLDER.fullmatch(folder)
    if match is None:
        yield f"{folder} is no bundle's folder"
        return
    completed, discovered = (
        document(objects, folder, f"_{name}.json") for name in ("completed", "discovered")
    )
    if completed.keys() < {
        "bid",
        "completed_at",
        "resources_count",
        "bundle_hash",
        "source",
        "run_id",
        "meta",
    }:
        yield f"{folder}: _completed.json has {sorted(completed)}"
    if discovered.keys() < {"bid", "data_registry_id", "discovered_at", "primary_url", "meta"}:
        yield f"{folder}: _discovered.json has {sorted(discovered)}"
    if discovered["bid"] != bid:
        yield f"{folder}: was discovered as {discovered['bid']}"
    named = f"{match['registry']}/bundle_hashes/{completed['bundle_hash']}"
    if named not in objects:
        yield f"{named} is not there"


def _content(objects: Mapping[str, bytes], folder: str) -> Iterator[str]:
    for line in manifest(objects, folder):
        data = objects.get(f"{folder}/{line['key']}")
        stated = (line["key"], line["size"], line["hash"])
        if data is None:
            yield f"{line['key']} is not there"
        elif stated != (f"content/{line['name']}", len(data), f"sha256:{sha256(data).hexdigest()}"):
            yield f"{line['key']} is not what its line states"
    for key in objects:
        if key.startswith(f"{folder}/content/"):
            # What an archive held lies in a folder of the archive's name.
            name = key.removeprefix(f"{folder}/content/").partition("/")[0]
            if f"{folder}/metadata/{name}.metadata.json" not in objects:
                yield f"{key} has no metadata"
