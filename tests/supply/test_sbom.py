"""`make sbom`: what is in the bill of materials, and that its schema takes it."""

import json
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.supply.licences import licence_of
from tests.supply.packages import brought_by, locked
from tests.supply.sbom import bill, refusal
from tests.support.supply import Supply


@pytest.fixture(scope="module")
def document(supply: Supply) -> dict[str, Any]:
    return bill(supply)


def test_case_110_the_bill_lists_a_workers_packages_with_hashes_and_licences(
    document: dict[str, Any],
) -> None:
    lock = locked()
    components = {canonicalize_name(component["name"]): component for component in document["components"]}
    assert set(components) == set(brought_by())
    for name, component in components.items():
        kind, _, written = component["purl"].rpartition("/")
        told, _, version = written.partition("@")
        assert (kind, canonicalize_name(told), version) == ("pkg:pypi", name, lock[name].version)
        (files,) = (each for each in component["externalReferences"] if "hashes" in each)
        assert {(each["alg"], each["content"]) for each in files["hashes"]} == {
            ("SHA-256", digest) for digest in lock[name].hashes
        }
        assert component["licenses"][0]["expression"] == licence_of(name)


def test_case_110_the_bill_tells_who_needs_whom(document: dict[str, Any]) -> None:
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    root = document["metadata"]["component"]
    assert (root["name"], root["licenses"][0]["license"]["id"]) == ("transload", "Apache-2.0")
    refs = {component["bom-ref"] for component in document["components"]}
    assert set(needs) == {root["bom-ref"], *refs}
    assert {ref for each in needs.values() for ref in each} == refs, "somebody needs each of them"


def test_case_110_the_bill_holds_nothing_of_the_moment_or_the_machine(document: dict[str, Any]) -> None:
    assert "serialNumber" not in document
    assert "timestamp" not in document["metadata"]
    assert "file:" not in json.dumps(document)


@pytest.mark.slow
def test_case_110_the_schema_takes_the_bill_and_it_is_the_same_again(
    supply: Supply, document: dict[str, Any]
) -> None:
    assert refusal(supply, document) == ""
    assert bill(supply) == document
    spoiled = {**document, "components": [{"type": "library"}]}
    assert "'name' is a required property" in refusal(supply, spoiled)
