"""`bundle_hashes/_latest` of OC's bus: the one object that changes, in a store that only ever creates.

Called by worker/bus_documents.py. It is deleted and made again, so it is a hint: for a moment there is none, and of two
processes that complete bundles of one registry at the same moment, the older one's may stay until the next completion.
docs/layouts.md says so to users, docs/adr/0017-bus-layout.md why.
"""

import asyncio
import re
from typing import Final
from weakref import WeakValueDictionary

from backends.base import Attributes, StorageBackend, single
from backends.errors import Conflict, InvalidKey, NotFound, Unavailable
from backends.failpoints import failpoint
from handlers.bids import timestamp_ms
from handlers.bus_layout import LATEST

_TRIES: Final = 5
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z:._-]{0,199}")
"""A hash, also one that another program made."""
_LONGEST: Final = 512
"""Bytes of a hash or bid that somebody else may have written."""


class LatestHash:
    """Moves it, for one process: its tasks take turns."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def point(self, target: StorageBackend, hashes: str, digest: str, bid: str) -> None:
        """Let `_latest` in the folder `hashes` name `digest`, unless it names a newer bundle's.

        Newer is what the bids tell. A bundle whose bid tells no time is newer than others of that kind only.

        Raises a `StorageError`.
        """
        key = f"{hashes}/{LATEST}"
        async with self._turns.setdefault(f"{target.location}{key}", asyncio.Lock()):
            for _ in range(_TRIES):
                named = await _text(target, key)
                if named == digest:
                    return
                if named is not None:
                    if _is_newer(await _bid_of(target, hashes, named), bid):
                        return
                    failpoint("bus.latest_delete.before")
                    await target.delete(key)
                    failpoint("bus.latest_delete.after")
                try:
                    failpoint("bus.latest.before")
                    await target.write(key, single(digest.encode()), Attributes("text/plain"))
                    failpoint("bus.latest.after")
                except Conflict:
                    # Another process was faster; perhaps its bundle is newer.
                    continue
                return
        raise Unavailable(f"{target.location}{key}: others change it all the time")


def _is_newer(other: str | None, bid: str) -> bool:
    """Whether the bundle `other` was begun later than `bid`; of one moment, one of them always is the later."""
    theirs, ours = None if other is None else timestamp_ms(other), timestamp_ms(bid)
    if other is None or theirs is None:
        return False
    return ours is None or (theirs, other) > (ours, bid)


async def _bid_of(target: StorageBackend, hashes: str, named: str) -> str | None:
    """The bundle that a hash stands for, as far as it can be told."""
    if not _NAME.fullmatch(named):
        return None
    try:
        return await _text(target, f"{hashes}/{named}")
    except InvalidKey:
        return None


async def _text(target: StorageBackend, key: str) -> str | None:
    """What the object says, without the space around it; None when there is none."""
    content = b""
    try:
        async with target.open(key) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > _LONGEST:
                    break
    except NotFound:
        return None
    return content[:_LONGEST].decode(errors="replace").strip()
