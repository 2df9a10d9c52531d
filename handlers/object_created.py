"""What it means that an object appeared in staging: a bundle of one resource, if the operator says so for that source.

Called by handlers/dispatch.py with what handlers/storage_notifications.py read; the rules come from the section `notifications` of a
staging source. From the command on, everything is as for `resource.fetched`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from handlers.bids import derived_bid
from handlers.errors import Refused
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.naming import resource_id
from handlers.plan import StagingSource, find_source
from handlers.storage_notifications import ObjectCreated

_PLACES: Final = frozenset({"staging", "folder"})


def check_recipe(template: str) -> str:
    """The template of a recipe's id. Raises `ValueError` for places that nothing is put into."""
    for place in re.findall(r"\{[^{}]*\}|[{}]", template):
        if place[1:-1] not in _PLACES:
            raise ValueError(f"{place!r} is not known; there are {{staging}} and {{folder}}")
    return template


@dataclass(frozen=True, slots=True)
class ObjectCreatedHandler:
    """`recipes`: by the name of a staging source that takes notifications, the template of its bundles' recipe."""

    staging: Sequence[StagingSource] = ()
    recipes: Mapping[str, str] = field(default_factory=dict)

    def command(self, event: ObjectCreated) -> ResourceFetched:
        """The resource that the object is. The same put of the same object always gives the same command.

        Raises `Refused` with `staging_not_allowed` or `malformed`.
        """
        location = f"s3://{event.bucket}/{event.key}"
        source, key = find_source(self.staging, location)
        template = self.recipes.get(source.name)
        if template is None:
            raise Refused(
                "staging_not_allowed",
                f"staging source {source.name!r} takes no notifications; set staging.{source.name}.notifications, then redrive",
            )
        # Each put counts, also of the same bytes; a notification that is sent again has the same of all of these.
        put = [location, event.version, event.etag, event.sequencer]
        bid = derived_bid(event.milliseconds, json.dumps(put).encode())
        try:
            return ResourceFetched(
                id=f"{bid}/{resource_id(location)}",
                bundle=Bundle(
                    bid=bid,
                    recipe_id=_recipe(template, source, key),
                    primary_url=location,
                    resources_count=1,
                ),
                resource=Resource(url=location, content_type=event.content_type, meta={"s3": _facts(event)}),
                payload=Payload(location=location, size=event.size, etag=event.etag),
            )
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
            where, why = first["loc"][0], first["msg"].removeprefix("Value error, ")
            raise Refused("malformed", f"object {location[:200]!a}, as {where}: {why}") from exc


def _recipe(template: str, source: StagingSource, key: str) -> str:
    below = key[len(source.prefix) + 1 :] if source.prefix else key
    folder, slash, _ = below.partition("/")
    if "{folder}" in template and not slash:
        raise Refused(
            "malformed",
            f"object {key[:200]!a} lies in no folder below staging source {source.name!r}, which is to be its recipe",
        )
    return template.replace("{staging}", source.name).replace("{folder}", folder)


def _facts(event: ObjectCreated) -> dict[str, Any]:
    """Which put it was, for the manifest."""
    told = {"etag": event.etag, "version_id": event.version, "sequencer": event.sequencer}
    return {name: text for name, text in told.items() if text is not None}
