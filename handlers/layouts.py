"""Where the objects of a bundle lie within a target: layouts by name, and layouts by template.

Called by worker/bootstrap.py, which gives each target its layout, by worker/settings.py, which checks them, and by the
handlers, which ask for keys; by worker/belonging.py, which finds out what a key belongs to. docs/layouts.md is for users.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from handlers import layout_templates
from handlers.bus_layout import BusLayout
from handlers.layout_fields import FIELDS, BundleFacts, ResourceFacts
from handlers.layout_templates import TemplateLayout, opening, parse

__all__ = [
    "BUS",
    "BundleFacts",
    "FolderLayout",
    "Layout",
    "ObjectLayout",
    "ResourceFacts",
    "check_layout",
    "described_by",
    "make_layout",
    "manifest_beside",
    "may_meet",
]

SEED: Final = "oc"
BUS: Final = "oc-v1"
_SIDECAR: Final = ".meta"
_MANIFEST: Final = "bundle.meta"
"""Of a `FolderLayout`."""

TEMPLATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The bundle's id is in the file's name, not a folder: engines take folders below a partition for partitions.
        "hive": "system={recipe_id}/table={table}/dt={date:%Y-%m-%d}/{bid}.{name}",
        "dated": "{date:%Y/%m/%d}/{bid}/{name}",
    }
)
"""The layouts by template that have a name."""


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

    def archive_key(self, bundle: BundleFacts, suffix: str) -> str:
        """Where an archive of all the bundle's resources lies; `suffix` is `zip` and the like. Nothing else has that key."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """`{prefix}/bundles/{bid}/resources/{name}`, `{prefix}/bundles/{bid}/metadata.json` and `…/resources.zip`."""

    prefix: str = ""

    def storage_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, "bundles", bundle.bid, "resources")

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        return _join(self.storage_key(bundle), resource.name)

    def sidecar_key(self, resource_key: str) -> str | None:  # noqa: ARG002 - the object itself carries its facts
        return None

    def manifest_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, "bundles", bundle.bid, "metadata.json")

    def archive_key(self, bundle: BundleFacts, suffix: str) -> str:
        return _join(self.prefix, "bundles", bundle.bid, f"resources.{suffix}")


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """`{prefix}/bundle_{bid}/{name}`, `{name}.meta` beside it, `{prefix}/bundle_{bid}/bundle.meta` and `…/bundle.zip`."""

    prefix: str = ""

    def storage_key(self, bundle: BundleFacts) -> str:
        return _join(self.prefix, f"bundle_{bundle.bid}")

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        return _join(self.storage_key(bundle), resource.name)

    def sidecar_key(self, resource_key: str) -> str | None:
        return f"{resource_key}{_SIDECAR}"

    def manifest_key(self, bundle: BundleFacts) -> str:
        return _join(self.storage_key(bundle), _MANIFEST)

    def archive_key(self, bundle: BundleFacts, suffix: str) -> str:
        # No resource's: those end in the resource's id, or have a dot behind it.
        return _join(self.storage_key(bundle), f"bundle.{suffix}")


def make_layout(spec: str, prefix: str, *, keeps_attributes: bool) -> Layout:
    """The layout called `spec`, or of that template; without `keeps_attributes` the facts about a resource lie beside it.

    `oc`, the default: objects where the store keeps attributes with them, folders with sidecars elsewhere. `oc-v1` has sidecars
    everywhere.

    Raises `ValueError` as `check_layout` does.
    """
    check_layout(spec)
    if spec == SEED:
        return ObjectLayout(prefix) if keeps_attributes else FolderLayout(prefix)
    if spec == BUS:
        return BusLayout(prefix)
    return TemplateLayout(parse(TEMPLATES.get(spec, spec)), prefix, sidecars=not keeps_attributes)


def manifest_beside(key: str) -> str | None:
    """The key of the manifest in a bundle's folder, for one that may be a sidecar in it."""
    folder, below, name = key.rpartition("/")
    return f"{folder}/{_MANIFEST}" if below and name.endswith(_SIDECAR) else None


def described_by(key: str) -> str | None:
    """The key of the resource that a sidecar is about, by any of these layouts; None for what is no sidecar's key."""
    if key.endswith(_SIDECAR):
        return key.removesuffix(_SIDECAR)
    return layout_templates.described_by(key)


def check_layout(spec: str) -> str:
    """`spec` itself, if it is a layout's name or a template; else `ValueError`, with what is wrong and what to do."""
    if "{" in spec or "}" in spec:
        parse(spec)
    elif spec not in {SEED, BUS} and spec not in TEMPLATES:
        names = sorted([SEED, BUS, *TEMPLATES])
        close = difflib.get_close_matches(spec, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}, or a template"
        raise ValueError(f"no layout has that name; {hint}")
    return spec


def may_meet(spec: str, other: str) -> bool:
    """Whether objects of two different layouts could have the same key in one target, or one be the folder of the other's.

    False is certain: all their keys begin differently. Both have to be valid.
    """
    if spec == other:
        return False
    return all(ours & theirs for ours, theirs in zip(_opening(spec), _opening(other), strict=False))


def _opening(spec: str) -> list[frozenset[str]]:
    # Both seed layouts, `bundles/…` and `bundle_…`: which one it is depends on the target.
    if spec == SEED:
        return [frozenset(letter) for letter in "bundle"] + [frozenset("s_")]
    if spec == BUS:
        return [FIELDS["recipe_id"].alphabet]
    return opening(parse(TEMPLATES.get(spec, spec)))


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
