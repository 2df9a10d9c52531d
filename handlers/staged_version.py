"""Holds staging to the version of a payload that was announced. Called by handlers/execute.py before it reads, and after.

Staging is read by key, and whoever put something else there since has replaced what was announced. That is no damage and no
reason to try again: the dead letter says so, and a later message tells of the other version, or nobody does.
"""

from backends.base import StorageBackend
from backends.errors import InvalidKey
from handlers.errors import Refused
from handlers.plan import Source


async def expect_version(source: Source, staging: StorageBackend) -> None:
    """Raises `Refused("conflict")` where another ETag lies there than `source` has. Without one nothing is asked.

    What is missing is for the reader to find out; what is gone afterwards was there.
    """
    if source.etag is None:
        return
    try:
        found = await staging.stat(source.key)
    except InvalidKey:
        return
    if found is None or found.etag == source.etag:
        return
    there = "no ETag" if found.etag is None else f"ETag {found.etag}"
    raise Refused(
        "conflict",
        f"payload {source.key!a} has {there} in staging {source.staging!r}; {source.etag} was announced: it was replaced",
    )
