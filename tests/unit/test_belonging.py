"""What `rm` leaves alone, of bundles that have no resource by which it could be found."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Attributes, single
from backends.errors import StorageError
from handlers.plan import BundleTarget
from tests.conformance.ledgers import closing
from worker import bootstrap, stores
from worker.belonging import Known, known
from worker.cli_objects import _allowed
from worker.ledger.sql import SqlLedger
from worker.objects import Address
from worker.settings import Settings, load_settings

PLACE = BundleTarget("main", "s", "bundle_x/bundle.meta", archive="zip", archive_key="bundle_x/bundle.zip")


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return load_settings(file=None, home=tmp_path, environ={})


@pytest.fixture
async def ledger(chosen: Settings) -> AsyncIterator[SqlLedger]:
    """With one bundle, which was closed without a resource."""
    async with bootstrap.open_ledger(chosen) as ledger:
        await ledger.record(replace(closing("x", 0), targets=(PLACE,)))
        assert isinstance(ledger, SqlLedger)
        yield ledger


async def test_manifest_and_archive_of_a_bundle_without_resources_are_its_own(
    ledger: SqlLedger, chosen: Settings
) -> None:
    bid = (await ledger.bundles())[0].bid
    recipe = (await ledger.bundles())[0].recipe_id
    assert await known(ledger, "main", PLACE.manifest_key) == Known(bid, recipe, "manifest")
    assert await known(ledger, "main", PLACE.archive_key) == Known(bid, recipe, "archive")
    assert await known(ledger, "lake", PLACE.manifest_key) is None
    for key in (PLACE.manifest_key, PLACE.archive_key):
        with pytest.raises(StorageError, match=f"is left alone: .* of bundle {bid}"):
            await _allowed(chosen, Address("target", "main", key), key, force=False)


@pytest.mark.usefixtures("ledger")
async def test_what_only_looks_like_facts_may_be_deleted(chosen: Settings) -> None:
    """Nobody has recorded the resource that these are said to be of."""
    key = "a/_meta.page.html.json"
    async with stores.open_targets(chosen) as targets:
        await targets["main"].write(key, single(b'{"bid": "x", "url": "https://e.x/"}'), Attributes())
    assert await _allowed(chosen, Address("target", "main", key), key, force=False) is None
