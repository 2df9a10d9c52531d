"""Finds out whether a target has a payload already. Called by handlers/execute.py, for routes that store identical ones once.

A payload counts as known only after it was read here to its end: what a message promises of it could be another's digest.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from backends.base import Receipt, StorageBackend
from backends.errors import Conflict
from handlers.payload import Digest, checked, opened
from handlers.plan import Source

MINIMUM: Final = 4096
"""Bytes. Referring to less costs about as much as storing it: a row, its index, and two looks at the store."""

Known = Callable[[str], Awaitable[Mapping[str, Receipt]]]
"""What each target, by name, has of the payload with that SHA-256, as it was recorded."""


async def contents(
    source: Source, staging: StorageBackend, known: Known
) -> tuple[Source, Mapping[str, Receipt]]:
    """What targets may have of the payload, and what was found out about it: whatever is written later has to be that.

    Raises `PayloadMissing`, `IntegrityError`, and what reading or `known` raises.
    """
    if source.size is not None and source.size < MINIMUM:
        return source, {}
    found: Mapping[str, Receipt] | None = None
    if source.sha256 is not None:
        found = await known(source.sha256)
        if not found:
            # New, if it is what was promised, and the stream that stores it proves that.
            return source, {}
    source = await _proven(source, staging)
    size, sha256 = source.size or 0, source.sha256 or ""
    if size < MINIMUM:
        return source, {}
    if found is None:
        found = await known(sha256)
    return source, {name: receipt for name, receipt in found.items() if receipt.size == size}


async def usable(target: StorageBackend, key: str, content: Receipt) -> Receipt | None:
    """The receipt of an object that can stand for the one under `key`, or None: then that one is to be written.

    What lies under `key` is left to the write to compare: a try that was killed may have written it, or it is a conflict.
    """
    try:
        there = await target.stat(content.key)
        if there is None or there.size != content.size:
            return None
        if content.etag is not None and there.etag not in {None, content.etag}:
            return None
        if content.key != key and await target.stat(key) is not None:
            return None
    except Exception:  # noqa: BLE001 - as in handlers/execute.py: one target's fault, which its write will find out
        return None
    return replace(content, created=False)


async def check_facts(target: StorageBackend, sidecar_key: str, sha256: str) -> None:
    """See that the facts there are of that payload; a try that referred to another one has left nothing else to tell by.

    Raises `Conflict`, or what reading raises.
    """
    async with target.open(sidecar_key) as chunks:
        text = b"".join([chunk async for chunk in chunks])
    try:
        same = json.loads(text)["sha256"] == sha256
    except (ValueError, LookupError, TypeError, RecursionError):
        same = False
    if not same:
        raise Conflict(f"{target.location}: the facts under {sidecar_key!r} are of another payload")


async def _proven(source: Source, staging: StorageBackend) -> Source:
    """Read the payload to its end; the source with the size and digest it has."""
    digest = Digest()
    async with (
        opened(source, staging) as chunks,
        aclosing(checked(chunks, source, digest)) as payload,
    ):
        async for _ in payload:
            pass
    return replace(source, size=digest.size, sha256=digest.sha256)
