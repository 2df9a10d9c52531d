"""Where the objects of a bundle lie within a target: the seed's layouts, by name.

Called by worker/bootstrap.py, which gives each target its layout, and by the handlers, which ask it for keys.
"""

from dataclasses import dataclass
from typing import Protocol


class Layout(Protocol):
    """Keys of one target. Pure: the same bundle and name always give the same keys, no two names share one."""

    def storage_key(self, bid: str) -> str:
        """What the completion notification calls `storage_key`: the folder of the bundle's resources."""
        ...

    def resource_key(self, bid: str, name: str) -> str:
        """Where the resource called `name` (handlers/naming.py) lies."""
        ...

    def sidecar_key(self, resource_key: str) -> str | None:
        """Where the facts about that resource lie, for stores that cannot keep them with the object."""
        ...

    def manifest_key(self, bid: str) -> str:
        """Where the bundle's manifest lies."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """`{prefix}/bundles/{bid}/resources/{name}` and `{prefix}/bundles/{bid}/metadata.json`."""

    prefix: str = ""

    def storage_key(self, bid: str) -> str:
        return _join(self.prefix, "bundles", bid, "resources")

    def resource_key(self, bid: str, name: str) -> str:
        return _join(self.storage_key(bid), name)

    def sidecar_key(self, resource_key: str) -> str | None:  # noqa: ARG002 - the object itself carries its facts
        return None

    def manifest_key(self, bid: str) -> str:
        return _join(self.prefix, "bundles", bid, "metadata.json")


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """`{prefix}/bundle_{bid}/{name}`, `{name}.meta` beside it, and `{prefix}/bundle_{bid}/bundle.meta`."""

    prefix: str = ""

    def storage_key(self, bid: str) -> str:
        return _join(self.prefix, f"bundle_{bid}")

    def resource_key(self, bid: str, name: str) -> str:
        return _join(self.storage_key(bid), name)

    def sidecar_key(self, resource_key: str) -> str | None:
        return f"{resource_key}.meta"

    def manifest_key(self, bid: str) -> str:
        return _join(self.storage_key(bid), "bundle.meta")


def oc_layout(prefix: str, *, keeps_attributes: bool) -> Layout:
    """The default layout `oc`: objects where the store keeps attributes with them, folders with sidecars elsewhere."""
    return ObjectLayout(prefix) if keeps_attributes else FolderLayout(prefix)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
