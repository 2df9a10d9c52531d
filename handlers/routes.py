"""Which targets a message is for: the routes, in the order of the configuration, the first that matches wins.

Made by worker/bootstrap.py, asked by the handlers. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property

from handlers.errors import Refused
from handlers.layouts import BundleFacts, Layout
from handlers.messages import Bundle, Resource
from handlers.plan import BundleTarget
from handlers.transforms.base import Limits, Transform
from handlers.transforms.max_size import NAME, MaxSize


@dataclass(frozen=True, slots=True)
class Target:
    """A configured target, as far as planning needs it."""

    name: str
    layout: Layout
    required: bool = True
    """A bundle is complete without the objects of the others."""
    server_copy: bool = True
    """It may copy inside its store what is staged there."""
    rank: int = 0
    """Its place in the configuration: of a bundle's required targets the first one is announced."""
    archive: str = ""
    """The format of handlers/bundling in which each bundle is archived there as well; empty: it is not."""

    def of_bundle(self, bundle: BundleFacts) -> BundleTarget:
        """Where that bundle lies in it."""
        return BundleTarget(
            self.name,
            self.layout.storage_key(bundle),
            self.layout.manifest_key(bundle),
            required=self.required,
            rank=self.rank,
            archive=self.archive,
            archive_key=self.layout.archive_key(bundle, self.archive) if self.archive else "",
        )


@dataclass(frozen=True)
class Match:
    """Patterns as of a shell (`*`, `?`, `[a-z]`), any of which has to fit the whole text; none at all fits everything."""

    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By what they are about: `recipe_id`, `queue`, `url`, `content_type`."""

    @cached_property
    def _compiled(self) -> Mapping[str, re.Pattern[str]]:
        return {
            about: re.compile("|".join(translate(pattern) for pattern in patterns))
            for about, patterns in self.patterns.items()
            if patterns
        }

    def fits(self, facts: Mapping[str, str]) -> bool:
        """Whether all that is asked for is so. What `facts` does not speak of is not asked for."""
        return all(
            pattern.fullmatch(facts[about]) is not None
            for about, pattern in self._compiled.items()
            if about in facts
        )


@dataclass(frozen=True, slots=True)
class Route:
    """Where the messages go that it matches."""

    name: str
    targets: tuple[Target, ...]
    match: Match = field(default_factory=Match)
    transforms: tuple[Transform, ...] = ()
    """What becomes of each payload on its way, in order."""
    limits: Limits = field(default_factory=Limits)
    max_size: MaxSize | None = None
    """What `transforms` hold every object to."""
    deduplicate: bool = False
    """An identical payload is stored once in each target. Not with transforms."""

    def transforms_of(self, size: int | None) -> tuple[Transform, ...]:
        """What becomes of a payload of which so many bytes are promised: nothing, where only its size could be amiss and is not."""
        kept = self.max_size is not None and size is not None and size <= self.max_size.bytes
        return () if kept and all(step.name == NAME for step in self.transforms) else self.transforms

    def bundle_targets(self, bundle: BundleFacts) -> tuple[BundleTarget, ...]:
        """Where that bundle lies in each target."""
        return tuple(target.of_bundle(bundle) for target in self.targets)


@dataclass(frozen=True, slots=True)
class Routes:
    """The enabled routes; `queue` is the name of the queue this process takes messages from."""

    routes: tuple[Route, ...]
    queue: str = ""

    def of_resource(self, bundle: Bundle, resource: Resource) -> Route:
        """The route of a fetched resource. Raises `Refused("no_route")`."""
        # Parameters such as the charset do not make another type, nor does case (RFC 9110, section 8.3.1).
        media_type = (resource.content_type or "").partition(";")[0].strip().lower()
        facts = {"recipe_id": bundle.recipe_id, "queue": self.queue, "url": resource.url}
        return self._first({**facts, "content_type": media_type})

    def of_bundle(self, bundle: Bundle) -> Route:
        """The route of a bundle of which no resource is known: the first that some resource of it might take.

        Raises `Refused("no_route")`.
        """
        return self._first({"recipe_id": bundle.recipe_id, "queue": self.queue})

    def _first(self, facts: Mapping[str, str]) -> Route:
        for route in self.routes:
            if route.match.fits(facts):
                return route
        asked = ", ".join(f"{about} {text[:200]!a}" for about, text in facts.items())
        known = ", ".join(route.name for route in self.routes) or "none is enabled"
        raise Refused("no_route", f"no route for {asked} (routes: {known}); add one, then redrive")
