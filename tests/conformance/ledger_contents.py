"""What every ledger promises about payloads that routes store once. Part of tests/conformance/ledgers.py."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.conformance.ledger_transfers import entry as transferred
from worker.ledger.base import Ledger
from worker.ledger.values import AuditQuery, Entry, Retired, Shared, StoredObject

if TYPE_CHECKING:
    from tests.conformance.ledgers import Database

PAYLOAD = "ab" * 32
OTHER = "cd" * 32


def entry(
    bid: str,
    number: int = 0,
    *,
    sha256: str = PAYLOAD,
    stored: Sequence[str] = ("disk",),
    referred: Mapping[str, str] | None = None,
    route: str = "main",
    count: int | None = 1,
) -> Entry:
    """The record of a bundle's resource: stored in some targets, in others the object under that key."""
    keys = {**{target: f"{target}/{bid}/{number}" for target in stored}, **(referred or {})}
    made = transferred(number)
    assert made.resource is not None
    objects = tuple(StoredObject(target, key, 3, sha256, "etag", "7") for target, key in sorted(keys.items()))
    return replace(
        made,
        bid=bid,
        message_id=f"{bid}/{number}",
        resources_count=count,
        resource=replace(made.resource, objects=objects),
        shared=Shared(route, frozenset(stored), frozenset(referred or ())),
    )


def lying(target: str, key: str) -> dict[str, StoredObject]:
    return {target: StoredObject(target, key, 3, PAYLOAD, "etag", "7")}


async def published(ledger: Ledger, *bids: str) -> None:
    rows = [row for row in await ledger.claim(1_000, 60.0) if row.bid in bids]
    assert await ledger.mark_published(rows) == len(bids)


class Contents:
    """See `contents` in worker/ledger/base.py."""

    async def test_what_a_route_has_stored_is_known_by_its_digest(self, ledger: Ledger) -> None:
        assert await ledger.contents("main", PAYLOAD) == {}
        await ledger.record(entry("a", stored=("disk", "mirror")))
        assert await ledger.contents("main", PAYLOAD) == {
            **lying("disk", "disk/a/0"),
            **lying("mirror", "mirror/a/0"),
        }
        assert await ledger.contents("main", OTHER) == {}
        assert await ledger.contents("other", PAYLOAD) == {}

    async def test_only_what_is_told_is_noted(self, ledger: Ledger) -> None:
        await ledger.record(replace(entry("a"), shared=None))
        await ledger.record(replace(entry("b"), shared=Shared("main")))
        assert await ledger.contents("main", PAYLOAD) == {}

    async def test_who_refers_notes_nothing(self, ledger: Ledger) -> None:
        await ledger.record(entry("a"))
        await ledger.record(entry("b", stored=("mirror",), referred={"disk": "disk/a/0"}))
        assert await ledger.contents("main", PAYLOAD) == {
            **lying("disk", "disk/a/0"),
            **lying("mirror", "mirror/b/0"),
        }
        (resource,) = [each async for each in ledger.resources("b")]
        assert [each.key for each in resource.objects] == ["disk/a/0", "mirror/b/0"]

    async def test_who_stores_it_again_replaces_what_was_known(self, ledger: Ledger) -> None:
        await ledger.record(entry("a"))
        again = entry("b")
        await ledger.record(again)
        assert await ledger.contents("main", PAYLOAD) == lying("disk", "disk/b/0")
        await ledger.record(entry("c"))
        await ledger.record(again)
        assert await ledger.contents("main", PAYLOAD) == lying("disk", "disk/c/0"), "a redo changes nothing"

    async def test_what_was_not_accepted_is_not_noted(self, ledger: Ledger) -> None:
        await ledger.record(entry("a"))
        differs = replace(entry("a", sha256=OTHER), message_id="differs")
        assert (await ledger.record(differs)).differs
        same = replace(entry("a", stored=(), referred={"disk": "elsewhere"}), message_id="same")
        await ledger.record(replace(same, shared=Shared("main", frozenset({"disk"}))))
        assert await ledger.contents("main", OTHER) == {}
        assert await ledger.contents("main", PAYLOAD) == lying("disk", "disk/a/0")

    async def test_many_of_one_transaction(self, ledger: Ledger) -> None:
        await asyncio.gather(*(ledger.record(entry(f"b{number}")) for number in range(20)))
        assert (await ledger.contents("main", PAYLOAD))["disk"].key in {
            f"disk/b{number}/0" for number in range(20)
        }

    async def test_a_resource_that_two_messages_bring_at_once_has_one_object_in_a_target(
        self, ledger: Ledger
    ) -> None:
        """The one stored it when the other found it elsewhere."""
        both = [
            entry("a"),
            replace(entry("a", stored=(), referred={"disk": "elsewhere"}), message_id="again"),
        ]
        outcomes = await asyncio.gather(*map(ledger.record, both))
        assert [outcome.differs or outcome.conflict for outcome in outcomes] == [False, False]
        (resource,) = [each async for each in ledger.resources("a")]
        assert [each.key for each in resource.objects] == ["disk/a/0"]

    async def test_what_a_best_effort_target_gets_later_is_noted(self, ledger: Ledger) -> None:
        first = entry("a")
        await ledger.record(first)
        assert first.resource is not None
        later = entry("a", stored=("mirror",))
        await ledger.settle(later, [])
        assert await ledger.contents("main", PAYLOAD) == {
            **lying("disk", "disk/a/0"),
            **lying("mirror", "mirror/a/0"),
        }

    async def test_it_goes_with_the_bundle_that_stored_it(self, ledger: Ledger) -> None:
        await ledger.record(entry("a"))
        await ledger.record(entry("b", sha256=OTHER))
        await ledger.record(entry("c", stored=(), referred={"disk": "disk/a/0"}))
        await published(ledger, "a", "c")
        assert (await ledger.retire(0, 1)).bundles == 1
        assert (await ledger.retire(0, 1)).bundles == 1
        assert await ledger.contents("main", PAYLOAD) == {}
        assert len(await ledger.contents("main", OTHER)) == 1
        await ledger.record(entry("d"))
        assert await ledger.contents("main", PAYLOAD) == lying("disk", "disk/d/0")

    async def test_what_was_replaced_outlives_the_bundle_that_stored_it_first(self, ledger: Ledger) -> None:
        await ledger.record(entry("a"))
        await ledger.record(entry("b"))
        await published(ledger, "a")
        assert await ledger.retire(0, 10) == Retired(bundles=1, resources=1, messages=1)
        assert await ledger.contents("main", PAYLOAD) == lying("disk", "disk/b/0")

    async def test_ledgers_that_note_and_forget_the_same_payloads_do_not_block_each_other(
        self, database: "Database"
    ) -> None:
        """Each writes the same rows as the others, in another order of its entries; sweeps run beside them."""
        ledgers = [database.open(), database.open(), database.open()]
        digests = [f"{number:064x}" for number in range(12)]

        async def write(which: int, turn: int) -> None:
            ordered = digests if which % 2 else digests[::-1]
            await asyncio.gather(
                *(
                    ledgers[which].record(entry(f"{which}-{turn}", at, sha256=digest, count=12))
                    for at, digest in enumerate(ordered)
                )
            )

        async def sweep() -> None:
            await ledgers[2].mark_published(await ledgers[2].claim(10, 60.0))
            await ledgers[2].retire(0, 10)

        for turn in range(4):
            await asyncio.gather(write(0, turn), write(1, turn), sweep())
        await sweep()
        assert await ledgers[2].bundles() == []
        assert [await ledgers[2].contents("main", digest) for digest in digests] == [{}] * 12

    async def test_the_audit_trail_tells_what_was_referred_to(self, database: "Database") -> None:
        ledger = database.open(actor="worker@here")
        await ledger.record(entry("a"))
        await ledger.record(entry("b", stored=("mirror",), referred={"disk": "disk/a/0"}))
        rows = [row.record async for row in ledger.audit_trail(AuditQuery())]
        assert [(row.target, row.key, row.detail) for row in rows if row.action == "stored"] == [
            ("disk", "disk/a/0", None),
            ("disk", "disk/a/0", "refers to an identical payload that was there"),
            ("mirror", "mirror/b/0", None),
        ]
