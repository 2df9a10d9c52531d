"""The facts about one resource, for stores that cannot keep them with the object: the file beside it.

Called by handlers/execute.py. The same bytes on every redo but for `stored_at`, when it was written; the first one stays.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

from backends.base import Receipt
from handlers.messages import ResourceFetched
from handlers.stored_metadata import moment, planned

LISTED_FIRST: Final = ',\n  "objects": ['
"""What follows the facts where objects are listed, and stands nowhere else: no text of JSON holds a line feed as it is."""
_AT_ONCE = 256
"""Entries of an archive that are made into text at a time."""


def of_object(command: ResourceFetched, receipt: Receipt, now: float, notes: Sequence[str] = ()) -> bytes:
    """Of a payload that was stored as it is, at `now`, in seconds since the epoch."""
    noted = {"notes": notes} if notes else {}
    return _text({**_of_resource(command, now), **_of_receipt(receipt), **_promised(command), **noted})


async def of_parts(
    command: ResourceFetched, before: Mapping[str, Any], parts: Iterable[tuple[str, Receipt]], now: float
) -> AsyncIterator[bytes]:
    """Of a payload that was transformed: `before` says what it was, `parts` what it became, each with its name in the archive."""
    payload = {"payload": {"size": before["size"], "sha256": before["sha256"], **_promised(command)}}
    done = {"transforms": before["steps"], "notes": before["notes"]}
    head = _text({**_of_resource(command, now), **payload, **done}).decode().removesuffix("\n}\n")
    pieces = [head, LISTED_FIRST]
    separator = "\n    "
    for member, receipt in parts:
        facts = {**({"member": member} if member else {}), **_of_receipt(receipt)}
        pieces.append(separator + json.dumps(facts, ensure_ascii=False))
        separator = ",\n    "
        if len(pieces) >= _AT_ONCE:
            yield "".join(pieces).encode()
            pieces.clear()
    pieces.append("\n  ]\n}\n")
    yield "".join(pieces).encode()


def _of_resource(command: ResourceFetched, now: float) -> dict[str, Any]:
    known = planned(command)
    return {
        "uuid": known["uuid"],
        "created_at": known.get("created_at"),
        "stored_at": moment(now),
        "storage_version": known["storage_version"],
        "bid": command.bundle.bid,
        "recipe_id": command.bundle.recipe_id,
        "url": command.resource.url,
        "content_type": command.resource.content_type,
        "status_code": command.resource.status_code,
        "meta": command.resource.meta,
    }


def _promised(command: ResourceFetched) -> dict[str, Any]:
    """The checksums that were promised, and so proven."""
    promised = command.payload.promised
    return {"checksums": promised} if promised else {}


def _of_receipt(receipt: Receipt) -> dict[str, Any]:
    return {"key": receipt.key, "size": receipt.size, "sha256": receipt.sha256}


def _text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, indent=2).encode() + b"\n"
