"""The completion notification: the seed's fields, frozen bytes, one id a bundle."""

import json
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handlers.plan import BundleTarget
from worker.notification import attributes, body, event_id, timestamp

BID = "17571960-2065-e0cd-cf71-8196d8577b7e"
COMPLETED_AT = 1_705_314_600_999
TARGETS = (BundleTarget("cloud", "p/b/resources", "p/b/metadata.json"), BundleTarget("disk", "d", "d/m"))


def made(**changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "bid": BID,
        "recipe_id": "fr",
        "primary_url": "https://example.com/é",
        "resources_count": 2,
        "completed_at": COMPLETED_AT,
        "metadata": {"source": "http_api", "run_id": "run_123"},
        "targets": TARGETS,
    }
    return body(**{**facts, **changes})


def test_the_fields_of_the_seed() -> None:
    content = json.loads(made())
    assert {name: content[name] for name in list(content)[:7]} == {
        "bundle_id": BID,
        "recipe_id": "fr",
        "primary_url": "https://example.com/é",
        "resources_count": 2,
        "storage_key": "p/b/resources",
        "completion_timestamp": "2024-01-15T10:30:00Z",
        "metadata": {"source": "http_api", "run_id": "run_123", "resources_count": 2},
    }


def test_the_added_fields() -> None:
    content = json.loads(made())
    assert {name: content[name] for name in list(content)[7:]} == {
        "event_id": event_id(BID),
        "schema_version": 1,
        "status": "complete",
        "targets": [
            {
                "target": "cloud",
                "status": "stored",
                "storage_key": "p/b/resources",
                "manifest_key": "p/b/metadata.json",
            },
            {"target": "disk", "status": "stored", "storage_key": "d", "manifest_key": "d/m"},
        ],
        "manifest_key": "p/b/metadata.json",
    }


def test_the_count_of_the_ledger_wins_over_a_fetchers_own() -> None:
    assert json.loads(made(metadata={"resources_count": 99}))["metadata"] == {"resources_count": 2}


def test_the_same_facts_give_the_same_ascii_bytes() -> None:
    assert made() == made()
    assert made().isascii()
    assert made(metadata={"a": 1, "b": 2}) != made(metadata={"b": 2, "a": 1}), "order is kept, not invented"


def test_one_id_a_bundle_for_ever() -> None:
    assert event_id(BID) == event_id(BID)
    assert event_id(BID) != event_id(BID.upper())
    assert uuid.UUID(event_id(BID)).version == 5
    assert event_id("test-a") == str(uuid.uuid5(uuid.UUID("628c544c-4212-4806-89f4-c74a6748356d"), "test-a"))


@given(st.integers(0, 4_102_444_800_000))
def test_timestamps_name_the_second(milliseconds: int) -> None:
    from datetime import datetime

    assert datetime.fromisoformat(timestamp(milliseconds)).timestamp() == milliseconds // 1_000


def test_the_attributes_of_the_seed() -> None:
    assert attributes(bid=BID, recipe_id="fr", completed_at=COMPLETED_AT) == {
        "bundle_id": BID,
        "recipe_id": "fr",
        "completion_timestamp": "2024-01-15T10:30:00Z",
    }
