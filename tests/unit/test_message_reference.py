"""The message reference: the committed documents are the generated ones, and real messages of every kind fit them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from handlers.errors import Refused
from handlers.messages import BundleClosed, Command, decode, encode
from handlers.plan import BundleTarget
from worker import notification
from worker.message_reference import asyncapi, documents, json_schema

DOCS = Path(__file__).parents[2] / "docs"
TARGETS = [
    BundleTarget("main", "bundle_test-1", "bundle_test-1/bundle.meta"),
    BundleTarget("spare", "bundle_test-1", "bundle_test-1/bundle.meta", required=False),
]


def examples() -> list[dict[str, Any]]:
    """The three messages that docs/messages.md shows."""
    text = (DOCS / "messages.md").read_text(encoding="utf-8")
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def judge(name: str, content: object) -> None:
    Draft202012Validator({**json_schema(), "anyOf": [{"$ref": f"#/$defs/{name}"}]}).validate(content)


def name_of(command: Command) -> str:
    return type(command).__name__


@pytest.mark.parametrize("name", documents())
def test_the_documents_are_the_generated_ones(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == documents()[name], (
        f"run: python -m worker.message_reference {name} > docs/{name}"
    )


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_messages_of_the_page_fit_and_are_read() -> None:
    fetched, closed, completion = examples()
    for content in (fetched, closed):
        command = decode(json.dumps(content).encode())
        judge(name_of(command), content)
        judge(name_of(command), json.loads(encode(command)))
    judge("Completion", completion)


@pytest.mark.parametrize("missing", [{}, {"spare": 2}])
def test_what_is_announced_fits(missing: dict[str, int]) -> None:
    body = notification.body(
        bid="test-1",
        recipe_id="r",
        primary_url="",
        resources_count=1,
        completed_at=1_700_000_000_000,
        metadata={"source": "test"},
        targets=TARGETS,
        missing=missing,
        trace={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"},
    )
    content = json.loads(body)
    judge("Completion", content)
    known = json_schema()["$defs"]
    assert set(content) == set(known["Completion"]["properties"])
    for target in content["targets"]:
        assert set(target) <= set(known["CompletionTarget"]["properties"])
    attributes = notification.attributes(bid="test-1", recipe_id="r", completed_at=0) | notification.trace(
        body
    )
    assert set(attributes) == set(known["CompletionAttributes"]["properties"])


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("type",), "resource.fetched.v2"),
        (("version",), 2),
        (("id",), ""),
        (("bundle", "recipe_id"), None),
        (("bundle", "resources_count"), -1),
        (("resource", "status_code"), "200"),
        (("payload", "sha256"), "ABC"),
        (("payload", "location"), ""),
    ],
)
def test_what_a_worker_refuses_the_schema_refuses(where: tuple[str, ...], value: object) -> None:
    content = examples()[0]
    place = content
    for part in where[:-1]:
        place = place[part]
    place[where[-1]] = value
    with pytest.raises(Refused):
        decode(json.dumps(content).encode())
    with pytest.raises(ValidationError):
        judge("ResourceFetched", content)


@pytest.mark.parametrize("field", ["type", "version", "id", "bundle", "resource", "payload"])
def test_what_has_to_be_there(field: str) -> None:
    content = {key: value for key, value in examples()[0].items() if key != field}
    with pytest.raises(Refused):
        decode(json.dumps(content).encode())
    with pytest.raises(ValidationError):
        judge("ResourceFetched", content)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()
    resolver = Registry().with_resource("urn:transload", DRAFT202012.create_resource(document))
    found = set(re.findall(r'"\$ref": "(#/[^"]+)"', json.dumps(document)))
    assert {"#/components/schemas/Completion", "#/components/messages/BundleClosed"} <= found
    for reference in found:
        assert resolver.resolver("urn:transload").lookup(reference).contents


def test_both_documents_describe_the_same_messages() -> None:
    definitions = json.loads(json.dumps(json_schema()["$defs"]).replace("#/$defs/", "#/components/schemas/"))
    assert asyncapi()["components"]["schemas"] == definitions
    assert BundleClosed.__name__ in definitions
