"""What every ledger promises about payloads that not all of their targets have yet. Part of tests/conformance/ledgers.py."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from handlers.plan import BundleTarget
from worker.ledger.base import Ledger
from worker.ledger.values import (
    Close,
    Entry,
    OutboxRow,
    Recorded,
    Retired,
    StoredObject,
    StoredResource,
    Transfer,
)

DISK = BundleTarget("disk", "disk/b", "disk/b/manifest")
MIRROR = BundleTarget("mirror", "mirror/b", "mirror/b/manifest", required=False, rank=1)


def lying(target: str, number: int = 0) -> StoredObject:
    return StoredObject(target, f"{target}/b/{number}", 3, "ab" * 32, "etag", "7")


def stored(number: int, *targets: str) -> StoredResource:
    """The bundle's resource of that number, in these targets."""
    return StoredResource(
        resource_id=f"r{number}",
        url=f"https://example.com/{number}",
        content_type=None,
        status_code=None,
        meta={},
        location=f"s3://staging/{number}",
        objects=tuple(lying(target, number) for target in targets),
    )


def entry(number: int = 0, *targets: str, missing: Sequence[str] = (), **changes: Any) -> Entry:
    """The record of that resource."""
    made = Entry(
        message_id=f"m{number}",
        fingerprint=f"f{number}",
        bid="b",
        recipe_id="recipe",
        primary_url="https://example.com/",
        resources_count=1,
        meta={},
        targets=(DISK, MIRROR),
        resource=stored(number, *targets),
        missing=tuple(Transfer(target, error="Unavailable: down") for target in missing),
    )
    return replace(made, **changes)


async def announced(ledger: Ledger) -> OutboxRow:
    (row,) = await ledger.claim(10, 60.0)
    return row


class Transfers:
    """Tests."""

    async def test_nothing_is_noted_of_what_was_never_tried_or_went_well(self, ledger: Ledger) -> None:
        assert await ledger.transfers("m0") == []
        assert (await ledger.record(entry(0, "disk", "mirror"))).completed
        assert await ledger.transfers("m0") == []
        assert await ledger.bundle_transfers("b") == []
        assert await ledger.missing("b") == {}

    async def test_case_7_what_a_target_has_is_known_after_a_crash(self, ledger: Ledger) -> None:
        await ledger.note_transfers(entry(), [Transfer("disk", lying("disk"))])
        assert await ledger.transfers("m0") == [Transfer("disk", lying("disk"))]
        assert await ledger.find("m0") is None, "a note is no record"
        (shown,) = await ledger.bundle_transfers("b")
        assert (shown.message_id, shown.resource_id, shown.transfer.target) == ("m0", "r0", "disk")
        assert shown.updated_at > 0

    async def test_what_a_target_has_it_keeps(self, ledger: Ledger) -> None:
        await ledger.note_transfers(
            entry(), [Transfer("disk", lying("disk")), Transfer("mirror", error="one")]
        )
        await ledger.note_transfers(
            entry(), [Transfer("disk", error="late word"), Transfer("mirror", error="two")]
        )
        assert await ledger.transfers("m0") == [
            Transfer("disk", lying("disk")),
            Transfer("mirror", error="two"),
        ]
        await ledger.note_transfers(entry(), [Transfer("mirror", lying("mirror"))])
        assert [transfer.stored for transfer in await ledger.transfers("m0")] == [
            lying("disk"),
            lying("mirror"),
        ]

    async def test_the_record_ends_the_notes(self, ledger: Ledger) -> None:
        await ledger.note_transfers(entry(), [Transfer("disk", lying("disk")), Transfer("mirror", error="x")])
        await ledger.record(entry(0, "disk", "mirror"))
        assert await ledger.transfers("m0") == []

    async def test_case_72_the_completion_tells_what_a_best_effort_target_is_without(
        self, ledger: Ledger
    ) -> None:
        assert (await ledger.record(entry(0, "disk", missing=["mirror"]))).completed
        body = json.loads((await announced(ledger)).body)
        assert body["storage_key"] == "disk/b"
        assert [
            (target["target"], target["status"], target.get("missing")) for target in body["targets"]
        ] == [
            ("disk", "stored", None),
            ("mirror", "incomplete", 1),
        ]
        assert await ledger.transfers("m0") == [Transfer("mirror", error="Unavailable: down")]
        assert await ledger.missing("b") == {"mirror": 1}

    async def test_what_was_missing_is_settled(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        await ledger.settle(entry(0), [Transfer("mirror", error="still down")])
        assert await ledger.missing("b") == {"mirror": 1}
        assert [transfer.error for transfer in await ledger.transfers("m0")] == ["still down"]
        await ledger.settle(entry(0, "mirror"), [Transfer("mirror", lying("mirror"))])
        assert await ledger.missing("b") == {}
        (resource,) = [resource async for resource in ledger.resources("b")]
        assert [found.target for found in resource.objects] == ["disk", "mirror"]
        assert await ledger.transfers("m0") == [Transfer("mirror", lying("mirror"))], (
            "its manifest may be owed"
        )
        await ledger.forget_transfers("m0")
        assert await ledger.transfers("m0") == []

    async def test_settled_before_the_bundle_is_complete_nothing_is_missing(self, ledger: Ledger) -> None:
        first = entry(0, "disk", missing=["mirror"], resources_count=2)
        await ledger.record(first)
        await ledger.settle(entry(0, "mirror"), [Transfer("mirror", lying("mirror"))])
        await ledger.record(entry(1, "disk", "mirror", resources_count=2))
        body = json.loads((await announced(ledger)).body)
        assert [target["status"] for target in body["targets"]] == ["stored", "stored"]

    async def test_a_late_word_of_a_duplicate_is_no_debt(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", "mirror"))
        await ledger.note_transfers(entry(0), [Transfer("mirror", error="a slower worker failed")])
        assert await ledger.missing("b") == {}

    async def test_payloads_that_a_target_waits_for_stay_in_staging(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        await ledger.mark_published([await announced(ledger)])
        assert await ledger.staged(0.0, 10) == []
        await ledger.settle(entry(0, "mirror"), [Transfer("mirror", lying("mirror"))])
        assert await ledger.staged(0.0, 10) == ["b"]

    async def test_a_retired_bundle_takes_its_transfers_along(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        await ledger.mark_published([await announced(ledger)])
        assert await ledger.retire(0.0, 10) == Retired(1, 1, 1)
        assert await ledger.bundle_transfers("b") == []

    async def test_only_notes_of_unrecorded_messages_are_forgotten_by_age(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        await ledger.note_transfers(entry(1), [Transfer("disk", lying("disk", 1))])
        assert await ledger.forget_attempts(3600.0, 10) == 0
        assert await ledger.forget_attempts(-1.0, 10) == 1
        assert await ledger.transfers("m1") == []
        assert await ledger.missing("b") == {"mirror": 1}

    async def test_targets_of_a_bundle_are_those_of_all_its_resources(self, ledger: Ledger) -> None:
        images = BundleTarget("images", "images/b", "images/b/manifest", rank=2)
        await ledger.record(entry(0, "images", resources_count=2, targets=(images,)))
        await ledger.record(entry(1, "disk", "mirror", resources_count=2))
        record = await ledger.bundle("b")
        assert record is not None
        assert record.targets == (DISK, images, MIRROR), "the required ones first, as they are configured"
        assert json.loads((await announced(ledger)).body)["storage_key"] == "disk/b"

    async def test_a_bundle_is_archived_as_it_was_when_it_began(self, ledger: Ledger) -> None:
        zipped = replace(DISK, archive="zip", archive_key="disk/b.zip")
        packed = replace(MIRROR, archive="tar.gz", archive_key="mirror/b.tar.gz")
        await ledger.record(entry(0, "disk", resources_count=2, targets=(zipped, MIRROR)))
        await ledger.record(entry(1, "disk", "mirror", resources_count=2, targets=(DISK, packed)))
        record = await ledger.bundle("b")
        assert record is not None
        assert record.targets == (zipped, MIRROR)

    async def test_a_close_adds_no_target(self, ledger: Ledger) -> None:
        images = BundleTarget("images", "images/b", "images/b/manifest", rank=2)
        close = entry(9, resource=None, close=Close(1, {}), targets=(images,))
        await ledger.record(close)
        await ledger.record(entry(0, "disk", "mirror"))
        record = await ledger.bundle("b")
        assert record is not None
        assert record.targets == (DISK, MIRROR)

    async def test_a_bundle_of_nothing_lies_where_its_close_says(self, ledger: Ledger) -> None:
        closed = await ledger.record(entry(9, resource=None, close=Close(0, {}), resources_count=0))
        assert closed.completed
        record = await ledger.bundle("b")
        assert record is not None
        assert record.targets == (DISK, MIRROR)

    async def test_a_slower_duplicate_takes_no_debt_along(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        for slower in (entry(0, "disk", missing=["mirror"]), entry(0, "disk", "mirror")):
            assert await ledger.record(slower) == Recorded(unsettled=True)
            assert await ledger.transfers("m0") == [Transfer("mirror", error="Unavailable: down")]
            assert await ledger.owed("b") == {"mirror": 1}

    async def test_of_duplicates_in_one_batch_one_is_recorded_and_the_others_learn_what_is_left(
        self, ledger: Ledger
    ) -> None:
        copies = [entry(0, "disk", missing=["mirror"]), entry(0, "disk", "mirror")]
        assert await asyncio.gather(*map(ledger.record, copies)) == [
            Recorded(completed=True),
            Recorded(unsettled=True),
        ]
        assert await ledger.owed("b") == {"mirror": 1}

    async def test_a_note_that_came_beside_the_record_is_no_object(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"], resources_count=2))
        await ledger.note_transfers(entry(0), [Transfer("mirror", lying("mirror"))])
        assert await ledger.owed("b") == {"mirror": 1}, "no manifest would list it"
        await ledger.record(entry(1, "disk", "mirror", resources_count=2))
        body = json.loads((await announced(ledger)).body)
        assert [target.get("missing") for target in body["targets"]] == [None, 1]
        await ledger.settle(entry(0, "mirror"), [])
        assert await ledger.owed("b") == {}

    async def test_settling_adds_no_second_object_of_a_target(self, ledger: Ledger) -> None:
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        moved = replace(stored(0), objects=(replace(lying("disk"), key="elsewhere"), lying("mirror")))
        await ledger.settle(entry(0, resource=moved), [Transfer("mirror", lying("mirror"))])
        (resource,) = [resource async for resource in ledger.resources("b")]
        assert resource.objects == (lying("disk"), lying("mirror"))

    async def test_only_what_a_bundle_consists_of_is_owed(self, ledger: Ledger) -> None:
        down = [Transfer("mirror", error="down")]
        await ledger.note_transfers(entry(7), down)
        await ledger.record(entry(0, "disk", missing=["mirror"]))
        await ledger.note_transfers(entry(0, message_id="of the same resource"), down)
        await ledger.record(entry(8, "disk", missing=["mirror"]))
        body = json.loads((await announced(ledger)).body)
        assert body["targets"][1]["missing"] == 1
        assert await ledger.owed("b") == {"mirror": 1}, "neither what is late nor what is not recorded"
        assert await ledger.missing("b") == {"mirror": 3}, "each has been tried"

    async def test_a_record_in_fewer_targets_ends_the_notes_of_the_others(self, ledger: Ledger) -> None:
        """The operator has taken a broken target out of the route."""
        await ledger.note_transfers(entry(), [Transfer("broken", error="down")])
        await ledger.record(entry(0, "disk", targets=(DISK,)))
        await ledger.mark_published([await announced(ledger)])
        assert await ledger.staged(0.0, 10) == ["b"]

    async def test_what_one_of_many_notes_at_once_says_is_there_is_there(self, ledger: Ledger) -> None:
        await asyncio.gather(
            ledger.note_transfers(entry(), [Transfer("disk", lying("disk"))]),
            ledger.note_transfers(entry(), [Transfer("disk", error="a slower worker failed")]),
        )
        assert await ledger.transfers("m0") == [Transfer("disk", lying("disk"))]

    async def test_best_effort_for_one_resource_is_best_effort_for_the_bundle(self, ledger: Ledger) -> None:
        required = replace(MIRROR, required=True)
        await ledger.record(entry(0, "disk", "mirror", resources_count=2, targets=(DISK, required)))
        lax = entry(1, "disk", missing=["mirror"], resources_count=2, targets=(DISK, MIRROR))
        assert (await ledger.record(lax)).completed
        record = await ledger.bundle("b")
        assert record is not None
        assert record.targets == (DISK, MIRROR), "its manifest has to wait for what is missing"
        body = json.loads((await announced(ledger)).body)
        assert [target.get("missing") for target in body["targets"]] == [None, 1]

    async def test_where_all_targets_are_best_effort_a_whole_one_is_announced(self, ledger: Ledger) -> None:
        lax_disk, strict_mirror = replace(DISK, required=False), replace(MIRROR, required=True)
        await ledger.record(entry(0, "disk", "mirror", resources_count=2))
        swapped = entry(1, "mirror", missing=["disk"], resources_count=2, targets=(strict_mirror, lax_disk))
        assert (await ledger.record(swapped)).completed
        assert json.loads((await announced(ledger)).body)["storage_key"] == "mirror/b"

    async def test_notes_of_many_at_once(self, ledger: Ledger) -> None:
        entries = [entry(number) for number in range(40)]
        await asyncio.gather(
            *(
                ledger.note_transfers(each, [Transfer(target, lying(target, number))])
                for number, each in enumerate(entries)
                for target in ("mirror", "disk")
            )
        )
        found = await asyncio.gather(*(ledger.transfers(each.message_id) for each in entries))
        assert all([transfer.target for transfer in transfers] == ["disk", "mirror"] for transfers in found)
