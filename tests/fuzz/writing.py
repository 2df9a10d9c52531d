"""What is written of a message - headers, sidecars, notifications, manifests, documents, exports - is data to whoever reads it.

Called by tests/fuzz/messages.py with every plan.
"""

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

from backends import azure_metadata, http_api_metadata, s3_metadata
from backends.base import Attributes, Receipt
from handlers import bus_layout, sidecar
from handlers.messages import BundleClosed
from handlers.plan import Plan, StorePlan
from handlers.stored_metadata import stamped
from worker import audit, aws, bus_documents, notification
from worker.ledger.values import AuditRecord, AuditRow, BundleRecord, StoredObject, StoredResource
from worker.manifest import manifest
from worker.rabbitmq import limits

_NOW: Final = int(datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp())
_SHA256: Final = "5" * 64
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def written(plan: Plan) -> None:
    """Raises `AssertionError` where a reader would find something else than was said, or more than that."""
    resources = _resources(plan)
    bundle = _bundle(plan)
    if isinstance(plan, StorePlan):
        _headers(plan.writes[0].attributes)
        _sidecar(plan)
    _notification(bundle)
    asyncio.run(_documents(bundle, resources))
    _exports(plan)


def _headers(attributes: Attributes) -> None:
    """As HTTP has them: no value ends its line, and none is longer than the store takes."""
    attributes = stamped(attributes, float(_NOW))
    fields = s3_metadata.fields_for(attributes, None)
    named = [
        (fields, s3_metadata.METADATA_LIMIT + 3 * 256),
        (http_api_metadata.headers_for(attributes, "X-Meta-"), http_api_metadata.METADATA_LIMIT + 3 * 256 + 200),
        (azure_metadata.metadata_for(attributes, _SHA256, b"5" * 16), 8192),
    ]  # fmt: skip
    for headers, limit in named:
        assert all(map(_TOKEN.fullmatch, headers)), headers
        assert all(map(_VALUE.fullmatch, headers.values())), headers
        assert sum(map(len, headers)) + sum(map(len, headers.values())) <= limit


def _sidecar(plan: StorePlan) -> None:
    write, resource = plan.writes[0], plan.command.resource
    facts = json.loads(sidecar.of_object(plan.command, Receipt(write.key, 3, _SHA256), float(_NOW)))
    said = {"url": resource.url, "content_type": resource.content_type, "meta": resource.meta}
    assert {name: facts[name] for name in said} == said
    assert facts["recipe_id"] == plan.command.bundle.recipe_id


def _notification(bundle: BundleRecord) -> None:
    body = notification.body(
        bid=bundle.bid,
        recipe_id=bundle.recipe_id,
        primary_url=bundle.primary_url,
        resources_count=1,
        completed_at=_NOW * 1000,
        metadata=bundle.metadata,
        targets=bundle.targets,
    )
    assert body.isascii()
    assert b"\n" not in body
    content = json.loads(body)
    assert content["metadata"] == {**bundle.metadata, "resources_count": 1}
    assert (content["recipe_id"], content["primary_url"]) == (bundle.recipe_id, bundle.primary_url)
    attributes = notification.attributes(bid=bundle.bid, recipe_id=bundle.recipe_id, completed_at=_NOW * 1000)
    assert aws.objection(body, attributes, 1 << 20) is None
    assert all(aws.readable(value) == value for value in attributes.values())
    assert limits.objection(content["event_id"], attributes) is None


async def _documents(bundle: BundleRecord, resources: list[StoredResource]) -> None:
    for place in bundle.targets[:1]:
        listed = json.loads(await _joined(manifest(bundle, place, _each(resources))))["resources"]
        assert [each["url"] for each in listed] == [resource.url for resource in resources]
    for place in (each for each in bundle.targets if bus_layout.is_bus(each.manifest_key)):
        lines = (await _joined(bus_documents.manifest_lines(place, _each(resources)))).split(b"\n")
        assert lines.pop() == b""
        assert [json.loads(line)["metadata"]["url"] for line in lines] == [each.url for each in resources]
        found = bus_documents.discovered(bundle)
        assert json.loads(bus_documents._text(found)) == found
        assert re.fullmatch("[0-9a-f]{64}", await bus_documents.bundle_hash(place, _each(resources)))


def _exports(plan: Plan) -> None:
    url = plan.command.resource.url if isinstance(plan, StorePlan) else plan.command.bundle.primary_url
    record = AuditRecord(
        "stored", plan.command.bundle.bid, plan.command.bundle.recipe_id, url, detail=plan.command.id
    )
    facts = audit._facts(AuditRow(1, _NOW * 1000, "worker@host", record))
    assert audit._jsonl(facts).count(b"\n") == 1
    line = audit._csv(facts, header=False)
    assert line.count(b"\n") == 1
    (row,) = csv.DictReader(io.StringIO(line.decode()), audit.COLUMNS)
    assert not any(cell.lstrip().startswith(_FORMULA) for cell in row.values())


def _bundle(plan: Plan) -> BundleRecord:
    bundle = plan.command.bundle
    metadata = plan.command.bundle.metadata if isinstance(plan.command, BundleClosed) else {}
    return BundleRecord(
        bid=bundle.bid,
        recipe_id=bundle.recipe_id,
        primary_url=bundle.primary_url,
        state="complete",
        resources_count=1,
        stored_count=1,
        closed=True,
        meta=bundle.meta,
        metadata=metadata,
        targets=plan.bundle_targets,
        created_at=_NOW * 1000,
        completed_at=_NOW * 1000,
        published_at=None,
    )


def _resources(plan: Plan) -> list[StoredResource]:
    if not isinstance(plan, StorePlan):
        return []
    resource = plan.command.resource
    return [
        StoredResource(
            plan.resource_id,
            resource.url,
            resource.content_type,
            resource.status_code,
            resource.meta,
            plan.command.payload.location,
            tuple(StoredObject(write.target, write.key, 3, _SHA256) for write in plan.writes),
        )
    ]


async def _each(resources: list[StoredResource]) -> AsyncIterator[StoredResource]:
    for resource in resources:
        yield resource


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])
