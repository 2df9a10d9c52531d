"""The writes of a plan, once it is known what its payload becomes. Called by handlers/execute.py where transforms run; pure."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from backends.base import Attributes
from handlers.naming import resource_name
from handlers.plan import StorePlan, Write
from handlers.stored_metadata import of_entry
from handlers.transforms.base import Part


def whole(plan: StorePlan, chunks: AsyncIterator[bytes]) -> Part:
    """The payload, before anything was done to it."""
    resource = plan.command.resource
    return Part(
        chunks,
        label=resource_name(resource.url),
        content_type=resource.content_type,
        content_encoding=_content_encoding(resource.meta),
        size=plan.source.size,
    )


def _content_encoding(meta: Mapping[str, object]) -> str | None:
    """As the fetcher noted it: `content_encoding` or `Content-Encoding`, however spelled."""
    for name, value in meta.items():
        if name.lower().replace("_", "-") == "content-encoding" and isinstance(value, str):
            return value
    return None


def of_part(write: Write, part: Part) -> Write:
    """The write of one part in place of the payload's."""
    attributes = write.attributes
    if part.steps:
        named = {**attributes.metadata}
        if part.path:
            named |= {"member": part.member, "uuid": of_entry(named["uuid"], part.member)}
        attributes = Attributes(part.content_type, named)
    return replace(
        write, key=part.key(write.key), sidecar_key=None, attributes=attributes, member=part.member
    )


def renamed(write: Write, key: str) -> Write:
    """The write whose sidecar has the name that the payload was given on its way; that of many has the name they came with."""
    folder, _, name = write.key.rpartition("/")
    now_folder, _, now = key.rpartition("/")
    if write.sidecar_key is None or now_folder != folder:
        return write
    beside, slash, sidecar_name = write.sidecar_key.rpartition("/")
    return replace(write, sidecar_key=f"{beside}{slash}{sidecar_name.replace(name, now)}")
