"""What has to hold between sections: no layouts whose keys meet, no staging inside a target. Called by worker/settings.py only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backends.errors import StorageError
from backends.registry import BACKENDS
from handlers.bundling.archive import FORMATS
from handlers.layouts import may_meet
from handlers.transforms.registry import KEYED
from worker.config_file import Draft
from worker.settings_places import RouteSettings, StagingSettings, TargetSettings

_HOLDING: Final = frozenset({"hdfs", "http"})
"""Backends whose writes keep their connection while they wait for the next chunk. With too few of them a read would time out."""
_CONNECTIONS: Final = 8
"""More than the archives that relay and pipeline write at once (worker/bundle_archive.py): one of them can always read."""


def check_layouts(
    draft: Draft, targets: Mapping[str, TargetSettings], routes: Mapping[str, RouteSettings]
) -> None:
    """Refuse two layouts of one target, by different routes, whose keys could meet: other content would lie there."""
    first: dict[str, dict[str, str]] = {}
    for route in routes.values():
        for name in (*route.targets, *route.best_effort):
            if name not in targets:
                continue
            layout = route.layout or targets[name].layout
            before = first.setdefault(name, {})
            for other, user in before.items():
                if may_meet(layout, other):
                    draft.add(
                        ("routes", route.name, "layout"),
                        f"{layout!r} could give target {name!r} the same keys as {other!r}, which it has by route {user!r}; "
                        "begin a template with a word of its own, as 'archive/…'",
                    )
            before.setdefault(layout, route.name)


def check_archives(draft: Draft, targets: Mapping[str, TargetSettings]) -> None:
    """Refuse archives that could not be written: what goes in is read back from the target."""
    for target in targets.values():
        if target.archive is None:
            continue
        path = ("targets", target.name, "archive")
        try:
            FORMATS.load(target.archive)
            features = BACKENDS.load(target.backend).features_of(target.options)
        except StorageError as exc:
            draft.add(path, str(exc))
            continue
        if not features.reads:
            draft.add(
                path,
                f"an archive is made of what lies in the target, and {target.backend!r} cannot read it back as it is configured; "
                "remove archive, or choose a target that reads",
            )
        connections = target.options.model_dump().get("max_connections")
        if target.backend in _HOLDING and connections is not None and connections < _CONNECTIONS:
            draft.add(
                path,
                f"{target.backend!r} holds a connection for each archive that is written and one for the member that is read; "
                f"set max_connections to {_CONNECTIONS} or more",
            )


def check_overlaps(
    draft: Draft, staging: Mapping[str, StagingSettings], targets: Mapping[str, TargetSettings]
) -> None:
    """Refuse a place to read from that shares its objects with another place: a target could be taken for staging."""
    sources = [(("staging", name), _place(place)) for name, place in staging.items()]
    others = sources + [(("targets", name), _place(place)) for name, place in targets.items()]
    for index, (path, place) in enumerate(sources):
        for other_path, other in others[index + 1 :]:
            if place[0] != other[0]:
                continue
            shared = min(len(place[1]), len(other[1]))
            if place[1][:shared] == other[1][:shared]:
                draft.add(
                    path,
                    f"overlaps {'.'.join(other_path)} (used at {draft.where(other_path)}), one lies inside the other; "
                    "give each its own root, bucket or prefix",
                )


def _place(place: StagingSettings | TargetSettings) -> tuple[object, tuple[str, ...]]:
    """Which store a place is in, and the segments of its path there. Two memory backends never share anything."""
    prefix = tuple(place.prefix.split("/")) if place.prefix else ()
    options = place.options.model_dump()
    if place.backend == "memory":
        return object(), prefix
    if place.backend == "file":
        return "file", (*Path(os.path.realpath(options["root"])).parts, *prefix)
    if place.backend == "s3":
        endpoint = (options.get("endpoint_url") or "").rstrip("/").lower()
        store = "aws" if not endpoint or ".amazonaws.com" in endpoint else endpoint
        return ("s3", store, options["bucket"]), prefix
    location = BACKENDS.load(place.backend).location_of(place.options)
    return place.backend, (*location.rstrip("/").split("/"), *prefix)


def check_keys(draft: Draft, routes: Mapping[str, RouteSettings]) -> None:
    """Refuse transforms that need keys where there are none."""
    if "encryption" in draft.values:
        return
    for route in routes.values():
        for step in route.transforms:
            if step.name in KEYED:
                draft.add(
                    ("routes", route.name, "transforms"),
                    f"{step.name} needs keys; add the section encryption with keys and primary",
                )
