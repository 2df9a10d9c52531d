"""The layout of OC's data pipeline bus, version 1: a registry's bundles by day, each with its content and its documents.

    {prefix}/{recipe_id}/data/year=2024/month=01/day=15/10-30-00-0a1b2c3d/content/{name}
                                                                          metadata/{name}.metadata.json
                                                                          metadata/_discovered.json …
    {prefix}/{recipe_id}/bundle_hashes/

Called by handlers/layouts.py for the keys of new objects, and by worker/bus_documents.py, worker/belonging.py and worker/verify.py,
which read from the recorded key of a manifest that it is one of these, and where the rest is. Pure.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from handlers.bids import timestamp_ms
from handlers.layout_fields import HIVE_NULL, BundleFacts, ResourceFacts, encode

MANIFEST: Final = "metadata/_manifest.jsonl"
DISCOVERED: Final = "metadata/_discovered.json"
COMPLETED: Final = "metadata/_completed.json"
LATEST: Final = "_latest"

_CONTENT: Final = "content"
_SIDECAR: Final = ".metadata.json"
_BID_LIMIT: Final = 104
_V1: Final = re.compile(r"bid:v1:(?P<registry>[^:]+):[0-9]{14}:(?P<hex>[0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class BusLayout:
    """See the module's docstring. Sidecars are files of their own on every store: the bus reads them."""

    prefix: str = ""

    def storage_key(self, bundle: BundleFacts) -> str:
        return f"{self._folder(bundle)}/{_CONTENT}"

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        return f"{self.storage_key(bundle)}/{resource.name}"

    def sidecar_key(self, resource_key: str) -> str | None:
        folder, _, name = resource_key.rpartition(f"/{_CONTENT}/")
        return f"{folder}/metadata/{name}{_SIDECAR}"

    def manifest_key(self, bundle: BundleFacts) -> str:
        return f"{self._folder(bundle)}/{MANIFEST}"

    def archive_key(self, bundle: BundleFacts, suffix: str) -> str:
        """No resource's, nor a sidecar's. The settings refuse archives here: nobody who reads the bus knows of them."""
        return f"{self._folder(bundle)}/metadata/_archive.{suffix}"

    def _folder(self, bundle: BundleFacts) -> str:
        parts = (self.prefix, encode(bundle.recipe_id), "data", *_day_and_name(bundle))
        return "/".join(part for part in parts if part)


def _day_and_name(bundle: BundleFacts) -> tuple[str, str, str, str]:
    """The partitions of its day, and a name that no other bundle of the recipe has there."""
    milliseconds = timestamp_ms(bundle.bid)
    if milliseconds is None:
        return f"year={HIVE_NULL}", f"month={HIVE_NULL}", f"day={HIVE_NULL}", encode(bundle.bid, _BID_LIMIT)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    time = f"{moment.hour:02}-{moment.minute:02}-{moment.second:02}"
    day = f"year={moment.year:04}", f"month={moment.month:02}", f"day={moment.day:02}"
    if (found := _V1.fullmatch(bundle.bid)) is None:
        return *day, f"{time}-{bundle.bid.replace('-', '')}"
    # Eight digits set the bundles of one registry apart, and a bundle's recipe may be another one.
    registry = "" if found["registry"] == bundle.recipe_id else f"-{found['registry']}"
    return *day, f"{time}-{found['hex']}{registry}"


def is_bus(manifest_key: str) -> bool:
    """Whether the manifest is one of this layout; no other layout has keys that end so."""
    return manifest_key.endswith(f"/{MANIFEST}")


def folder_of(manifest_key: str) -> str:
    """The bundle's folder."""
    return manifest_key.removesuffix(f"/{MANIFEST}")


def content_of(manifest_key: str) -> str:
    """What the keys of the bundle's content begin with."""
    return f"{folder_of(manifest_key)}/{_CONTENT}/"


def hashes_of(manifest_key: str) -> str:
    """The folder of the registry's bundle hashes."""
    registry = folder_of(manifest_key).rsplit("/", 5)[0]
    return f"{registry}/bundle_hashes"


def manifest_beside(key: str) -> str | None:
    """The key of the manifest, for one that may be a document or sidecar of the same bundle."""
    folder, below, name = key.rpartition("/metadata/")
    return f"{folder}/{MANIFEST}" if below and name else None


def described_by(key: str) -> str | None:
    """The key of the content that a sidecar is about; None for what is no sidecar's key."""
    folder, below, name = key.rpartition("/metadata/")
    if not below or not name.endswith(_SIDECAR):
        return None
    return f"{folder}/{_CONTENT}/{name.removesuffix(_SIDECAR)}"
