"""What every ledger promises those who look for stored resources. Part of tests/conformance/ledgers.py."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from handlers.plan import BundleTarget
from worker.ledger.base import Ledger
from worker.ledger.search import PAGE
from worker.ledger.values import Close, Entry, Found, Search, StoredObject, StoredResource

URLS = (
    "https://example.com/",
    "https://example.com/100%",
    "https://example.com/100%25_a~b",
    "https://example.com/100xx",
    "https://EXAMPLE.com/a",
    "https://example.com/a",
    "https://example.com/a[1]",
    "https://example.com/a]",
    "https://example.com/b\\c",
    "https://example.com/é😀",
    "https://example.com/\U0010ffff",
    "ftp://example.com/a",
)
PATTERNS = (
    *URLS,
    "",
    "*",
    "**",
    "https://example.com/*",
    "https://EXAMPLE.*",
    "https://example.com/?",
    "https://example.com/??",
    "https://example.com/100%*",
    "*100%25_?~b",
    "*_*",
    "*~*",
    "*\\*",
    "*/[ab]",
    "*/[!b]",
    "*/[a-z]",
    "*a[[]1[]]",
    "*[]]",
    "*[]",
    "*[!]",
    "*[",
    "*[b-a]",
    "https://example.com/\U0010ffff*",
    "https://example.com/\ud7ff*",
    "https://example.com/é?",
    "?tp*",
)


def stored(url: str, *objects: StoredObject, **changes: Any) -> StoredResource:
    """A resource that is named after its URL."""
    made = StoredResource(
        resource_id=f"id of {url}",
        url=url,
        content_type=None,
        status_code=None,
        meta={"n": 1},
        location="s3://staging/x",
        objects=objects or (lying("disk", url),),
    )
    return replace(made, **changes)


def lying(target: str, key: str, digest: str = "ab") -> StoredObject:
    return StoredObject(target, key, 3, digest * 32)


def entry(resource: StoredResource, bid: str = "b", recipe: str = "recipe") -> Entry:
    """The record of that resource in a bundle that stays open."""
    return Entry(
        message_id=f"{bid}/{resource.url}",
        fingerprint="f",
        bid=bid,
        recipe_id=recipe,
        primary_url="https://example.com/",
        resources_count=None,
        meta={},
        targets=tuple(
            BundleTarget(name, f"{name}/{bid}", f"{name}/{bid}/{recipe} é.json") for name in ("disk", "cloud")
        ),
        resource=resource,
    )


async def record(ledger: Ledger, entries: Iterable[Entry]) -> None:
    await asyncio.gather(*(ledger.record(each) for each in entries))


async def found(ledger: Ledger, **asked: Any) -> list[Found]:
    return [each async for each in ledger.search(Search(**asked))]


async def urls(ledger: Ledger, **asked: Any) -> set[str]:
    return {each.resource.url for each in await found(ledger, **asked)}


async def at(ledger: Ledger, target: str, key: str) -> str | None:
    """The bid of the bundle that has its manifest or archive there."""
    bundle = await ledger.bundle_at(target, key)
    return None if bundle is None else bundle.bid


class Searching:
    """Tests."""

    async def test_nothing_is_found_in_an_empty_ledger(self, ledger: Ledger) -> None:
        assert await found(ledger) == []
        assert await found(ledger, key="x", sha256="ab" * 32, target="disk") == []

    async def test_what_is_found_is_whole(self, ledger: Ledger) -> None:
        resource = stored(
            "https://example.com/",
            lying("cloud", "p/1"),
            lying("disk", "p/1"),
            content_type="text/html",
            status_code=200,
        )
        await ledger.record(entry(resource, "b", "fr"))
        (only,) = await found(ledger)
        assert (only.bid, only.recipe_id, only.resource) == ("b", "fr", resource)
        assert only.recorded_at > 1_700_000_000_000

    async def test_many_come_once_each_the_newest_first(self, ledger: Ledger) -> None:
        count = 2 * PAGE + 1
        for start in range(0, count, 100):
            numbers = range(start, min(start + 100, count))
            await record(ledger, (entry(stored(f"u{number}"), f"b{number % 3}") for number in numbers))
        everything = await found(ledger)
        order = [(each.recorded_at, each.bid, each.resource.resource_id) for each in everything]
        assert order == sorted(order, reverse=True)
        assert len(set(order)) == count
        assert {each.resource.url for each in everything} == {f"u{number}" for number in range(count)}
        some = [each async for each in ledger.search(Search(url="u?7"))]
        assert {each.resource.url for each in some} == {f"u{tens}7" for tens in range(1, 10)}

    async def test_patterns_mean_the_same_everywhere(self, ledger: Ledger) -> None:
        await record(ledger, (entry(stored(url)) for url in URLS))
        for pattern in PATTERNS:
            fitting = {url for url in URLS if fnmatchcase(url, pattern)}
            assert await urls(ledger, url=pattern) == fitting, pattern

    async def test_bundles_and_recipes(self, ledger: Ledger) -> None:
        places = (("b1", "fr"), ("b2", "FR"), ("c1", "fr-news"))
        await record(ledger, (entry(stored(bid), bid, recipe) for bid, recipe in places))
        assert await urls(ledger, recipe_id="fr") == {"b1"}
        assert await urls(ledger, recipe_id="fr*") == {"b1", "c1"}
        assert await urls(ledger, recipe_id="[Ff]*") == {"b1", "b2", "c1"}
        assert await urls(ledger, bid="b2") == {"b2"}
        assert await urls(ledger, bid="b?") == {"b1", "b2"}
        assert await urls(ledger, bid="b?", recipe_id="fr*") == {"b1"}

    async def test_content_types_are_compared_as_routes_do(self, ledger: Ledger) -> None:
        types = {
            "a": "text/html",
            "b": " Text/HTML ; charset=utf-8",
            "c": "text/x_y",
            "d": "text/xzy",
            "e": None,
        }
        await record(ledger, (entry(stored(url, content_type=type_)) for url, type_ in types.items()))
        assert await urls(ledger, content_type="text/html") == {"a", "b"}
        assert await urls(ledger, content_type="text/*") == {"a", "b", "c", "d"}
        assert await urls(ledger, content_type="text/x_y") == {"c"}
        assert await urls(ledger, content_type="*charset*") == set()
        assert await urls(ledger, content_type="") == {"e"}
        assert await urls(ledger, content_type="*") == set(types)

    async def test_status_codes(self, ledger: Ledger) -> None:
        codes = {"a": 200, "b": 404, "c": None}
        await record(ledger, (entry(stored(url, status_code=code)) for url, code in codes.items()))
        assert await urls(ledger, status_code=404) == {"b"}
        assert await urls(ledger, status_code=500) == set()

    async def test_of_objects_those_are_shown_that_were_asked_for(self, ledger: Ledger) -> None:
        one, two = lying("cloud", "p/1", "ab"), lying("disk", "p/1", "ef")
        three = lying("disk", "p/2", "cd")
        await record(ledger, [entry(stored("u1", one, two)), entry(stored("u2", three))])

        async def objects(**asked: str) -> set[StoredObject]:
            return {each for hit in await found(ledger, **asked) for each in hit.resource.objects}

        assert await objects(target="cloud") == {one}
        assert await objects(target="[cd]*") == {one, two, three}
        assert await objects(target="tape") == set()
        assert await urls(ledger, target="tape") == set()
        assert await objects(key="p/1") == {one, two}
        assert await objects(key="p/?") == set()
        assert await objects(key="p/1", target="disk") == {two}
        assert await objects(sha256="cd" * 32) == {three}
        assert await objects(sha256="ef" * 32) == {two}
        assert await objects(sha256="cd" * 32, key="p/1") == set()

    async def test_a_manifest_leads_to_its_bundle(self, ledger: Ledger) -> None:
        await record(ledger, [entry(stored("u1"), "b1", "r_1"), entry(stored("u2"), "b2", "rx1")])
        assert await at(ledger, "disk", "disk/b1/r_1 é.json") == "b1"
        assert await at(ledger, "cloud", "disk/b1/r_1 é.json") is None
        assert await at(ledger, "disk", "disk/b1") is None
        assert await at(ledger, "disk", "disk/b2/r_1 é.json") is None
        assert await at(ledger, "disk", "disk/b2/rx1 é.json") == "b2"

    async def test_an_archive_leads_to_its_bundle(self, ledger: Ledger) -> None:
        places = [
            BundleTarget(name, f"{name}/b", f"{name}/b.json", archive="zip", archive_key="b é.zip")
            for name in ("disk", "cloud")
        ]
        await ledger.record(replace(entry(stored("u1"), "b1"), targets=(places[0],)))
        await ledger.record(replace(entry(stored("u2"), "b2"), targets=(places[1],)))
        await ledger.record(entry(stored("u3"), "b3"))
        assert await at(ledger, "disk", "b é.zip") == "b1"
        assert await at(ledger, "cloud", "b é.zip") == "b2"
        assert await at(ledger, "tape", "b é.zip") is None
        assert await at(ledger, "disk", "") is None

    async def test_what_a_bundle_without_resources_has_leads_to_it(self, ledger: Ledger) -> None:
        place = BundleTarget("disk", "b", "b.json", archive="zip", archive_key="b.zip")
        bare = replace(entry(stored("u1"), "b1"), resource=None, close=Close(0, {}), targets=(place,))
        await ledger.record(bare)
        assert await at(ledger, "disk", "b.json") == await at(ledger, "disk", "b.zip") == "b1"

    async def test_times_are_the_databases(self, ledger: Ledger) -> None:
        await ledger.record(entry(stored("u1")))
        (only,) = await found(ledger)
        at = only.recorded_at
        assert await urls(ledger, since=at) == {"u1"}
        assert await urls(ledger, since=at + 1) == set()
        assert await urls(ledger, until=at) == set()
        assert await urls(ledger, since=at, until=at + 1) == {"u1"}

    async def test_a_resource_without_objects_is_found(self, ledger: Ledger) -> None:
        await ledger.record(entry(stored("u1", objects=())))
        assert await urls(ledger) == {"u1"}
        assert await urls(ledger, target="*") == set()
