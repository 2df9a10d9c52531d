"""What has to hold between sections: layouts that fit their targets, no staging inside a target. Called by worker/settings.py only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backends.errors import StorageError
from backends.registry import BACKENDS
from handlers.bundling.archive import FORMATS
from handlers.layouts import BUS, may_meet
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


def check_bus(
    draft: Draft, targets: Mapping[str, TargetSettings], routes: Mapping[str, RouteSettings]
) -> None:
    """Refuse OC's bus where its pointer to the latest bundle could not be moved."""
    laid = [(("targets", name, "layout"), name, target.layout) for name, target in targets.items()]
    for route in routes.values():
        used = (*route.targets, *route.best_effort)
        laid += [(("routes", route.name, "layout"), name, route.layout or "") for name in used]
    for path, name, layout in laid:
        if layout != BUS or name not in targets:
            continue
        features = BACKENDS.load(targets[name].backend).features_of(targets[name].options)
        if not (features.reads and features.deletes):
            draft.add(
                path,
                f"{BUS} reads and replaces bundle_hashes/_latest, which target {name!r} cannot; choose another layout or target",
            )


def check_deduplication(
    draft: Draft, targets: Mapping[str, TargetSettings], routes: Mapping[str, RouteSettings]
) -> None:
    """Refuse to look for identical payloads where nothing could be found, or what is found could be something else by now."""
    for route in routes.values():
        if not route.deduplicate:
            continue
        path = ("routes", route.name, "deduplicate")
        if route.transforms:
            draft.add(
                path,
                "compares payloads as they were staged, and transforms store something else (encrypt makes each copy different "
                "on purpose); remove one of the two, or give these payloads a route of their own",
            )
        elif route.max_size is not None:
            draft.add(
                path,
                "compares payloads as they were staged, and max_size may store them otherwise; remove one of the two",
            )
        for name in (*route.targets, *route.best_effort):
            if name not in targets:
                continue
            if (route.layout or targets[name].layout) == BUS:
                draft.add(
                    path,
                    f"lets a bundle refer to an object of another one, and in {BUS} (target {name!r}) all its content lies below "
                    "its own folder; choose another layout",
                )
            features = BACKENDS.load(targets[name].backend).features_of(targets[name].options)
            if not features.reads:
                draft.add(
                    path,
                    f"target {name!r} cannot be asked whether it still has a payload; give it a route of its own",
                )
            elif not features.create_only:
                draft.add(
                    path,
                    f"target {name!r} may replace what others would refer to; give it a route of its own",
                )


def check_archives(
    draft: Draft, targets: Mapping[str, TargetSettings], routes: Mapping[str, RouteSettings]
) -> None:
    """Refuse archives that could not be written, for what goes in is read back, and those that no document would list."""
    buses = {name for name, target in targets.items() if target.layout == BUS}
    for route in routes.values():
        if route.layout == BUS:
            buses |= {*route.targets, *route.best_effort}
    for target in targets.values():
        if target.archive is None:
            continue
        path = ("targets", target.name, "archive")
        if target.name in buses:
            draft.add(
                path, f"no document of {BUS} lists an archive; give archives a target with another layout"
            )
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


def check_notifications(draft: Draft, staging: Mapping[str, StagingSettings]) -> None:
    """Refuse notifications where no store sends any, and where an object could be deleted that nobody has stored."""
    for name, place in staging.items():
        if place.notifications is None:
            continue
        path = ("staging", name, "notifications")
        if not BACKENDS.load(place.backend).location_of(place.options).startswith("s3://"):
            draft.add(
                path,
                f"tells of objects in buckets of S3, and {place.backend!r} has none; remove notifications",
            )
        if place.delete_published:
            draft.add(
                path,
                "with delete_published an object could be deleted that has just replaced the one that was stored; remove one of the "
                "two, and let a lifecycle rule of the bucket delete",
            )


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
