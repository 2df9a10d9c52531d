"""Where the objects of a bundle lie within a target: the seed's layouts, by name.

Called by worker/bootstrap.py, which gives each target its layout, and by the handlers, which ask it for keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What keys of a bundle may be built from: the same in all its messages."""

    bid: str
    recipe_id: str = ""


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """What the key of a resource may be built from besides."""

    name: str
    """handlers/naming.py; no two resources of a bundle share it."""
    url: str = ""
    content_type: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Layout(Protocol):
    """Keys of one target. Pure: the same facts always give the same keys, and no two resources share one."""

    def storage_key(self, bundle: BundleFacts) -> str:
        """What the completion notification calls `storage_key`: the folder of the bundle's resources."""
        ...

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        """Where the resource lies."""
        ...

    def sidecar_key(self, resource_key: str) -> str | None:
        """Where the facts about that resource lie, for stores that cannot keep them with the object."""
        ...

    def manifest_key(self, bundle: BundleFacts) -> str:
        """Where the bundle's manifest lies."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """`{prefix}/bundles/{bid}/resources/{name}` and `{prefix}/bundles/{bid}/metadata.json`."""

    prefix: str = ""

    def storage_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, "bundles", bundle.bid, "resources")

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        return _join(self.storage_key(bundle), resource.name)

    def sidecar_key(self, resource_key: str) -> str | None:  # noqa: ARG002 - the object itself carries its facts
        return None

    def manifest_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, "bundles", bundle.bid, "metadata.json")


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """`{prefix}/bundle_{bid}/{name}`, `{name}.meta` beside it, and `{prefix}/bundle_{bid}/bundle.meta`."""

    prefix: str = ""

    def storage_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, f"bundle_{bundle.bid}")

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        return _join(self.storage_key(bundle), resource.name)

    def sidecar_key(self, resource_key: str) -> str | None:
        return f"{resource_key}.meta"

    def manifest_key(self, bundle: BundleFacts) -> str:
        return _join(self.storage_key(bundle), "bundle.meta")


def make_layout(spec: str, prefix: str, *, keeps_attributes: bool) -> Layout:
    """The layout called `spec`; without `keeps_attributes` the facts about a resource lie beside it.

    `oc`, the default: objects where the store keeps attributes with them, folders with sidecars elsewhere.
    """
    if spec != "oc":
        raise ValueError(f"no layout is called {spec!r}")
    return ObjectLayout(prefix) if keeps_attributes else FolderLayout(prefix)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
