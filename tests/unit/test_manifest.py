"""The manifest of a bundle as a stream: no more of it is in memory than a few of its lines."""

import json
from collections.abc import AsyncIterator, Iterable

from handlers.payload import Before
from handlers.plan import BundleTarget
from worker.ledger.values import BundleRecord, StoredObject, StoredResource
from worker.manifest import manifest

PLACE = BundleTarget("disk", "b", "b/manifest")


async def test_one_archive_of_many_entries_comes_in_many_pieces() -> None:
    objects = tuple(
        StoredObject(target, f"b/x.zip/{number}", 1, "0" * 64, member=f"{number}")
        for target in ("cloud", "disk")
        for number in range(2_000)
    )
    before = Before(1, "1" * 64, ("unzip",), ())
    meta = {"text": "x" * 1_000}
    archive = StoredResource("r", "https://example.com/", None, 200, meta, "s", objects, before=before)
    bundle = BundleRecord(
        "b", "r", "https://example.com/", "complete", 1, 1, False, {}, {}, (PLACE,), 0, 0, None
    )

    async def resources() -> AsyncIterator[StoredResource]:
        yield archive

    pieces = [piece async for piece in manifest(bundle, PLACE, resources())]
    assert max(map(len, pieces)) < 1 << 19
    listed = json.loads(b"".join(pieces))["resources"]
    assert [each["member"] for each in listed] == sorted(f"{number}" for number in range(2_000))


async def test_the_order_of_what_one_resource_became_is_no_databases() -> None:
    """A collation of PostgreSQL has `a` before `B`, and SQLite has not."""
    objects = [StoredObject("disk", f"b/x.zip/{name}", 1, "0" * 64) for name in ("B", "a", "ä", "Z-", "Za")]
    bundle = BundleRecord(
        "b", "r", "https://example.com/", "complete", 1, 1, False, {}, {}, (PLACE,), 0, 0, None
    )

    async def written(lying: Iterable[StoredObject]) -> bytes:
        async def resources() -> AsyncIterator[StoredResource]:
            yield StoredResource("r", "https://example.com/", None, 200, {}, "s", tuple(lying))

        return b"".join([piece async for piece in manifest(bundle, PLACE, resources())])

    assert await written(objects) == await written(reversed(objects))
