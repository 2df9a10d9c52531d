"""A message names a payload, and nothing else: cases 95, 96 and 98, with sources of every kind and the whole pipeline."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backends.base import check_key
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.messages import Bundle, Payload, Resource, ResourceFetched, decode, encode
from handlers.plan import StorePlan
from tests.support.plain_http import Request, Response, serving
from worker.bootstrap import open_service
from worker.queues.base import DETAIL_ATTRIBUTE, REASON_ATTRIBUTE, Message, OutgoingMessage
from worker.queues.embedded import EmbeddedQueue
from worker.routing import make_handlers
from worker.settings import Settings, load_settings

KEYS = {"access_key_id": "AKIA", "secret_access_key": "hidden"}
STAGING: dict[str, dict[str, Any]] = {
    "disk": {"backend": "file", "root": "/srv/staging", "prefix": "in"},
    "lake": {"backend": "s3", "bucket": "bucket", "prefix": "in", "region": "eu-west-1", **KEYS},
    "web": {"backend": "http", "base_url": "https://files.example.org:8443/v1", "prefix": "in"},
    "drop": {
        "backend": "sftp",
        "host": "files.example.org",
        "port": 2222,
        "username": "fetcher",
        "password": "hidden",
        "host_key": "ssh-ed25519 AAAA",
        "root": "/upload",
        "prefix": "in",
    },
    "google": {"backend": "gcs", "bucket": "bucket", "prefix": "in", "anonymous": True},
    "blob": {"backend": "azure", "account": "account", "container": "container", "prefix": "in"},
    "hadoop": {
        "backend": "hdfs",
        "url": "http://namenode:9870",
        "root": "/data",
        "user": "u",
        "prefix": "in",
    },
    "rows": {"backend": "postgres", "host": "db", "database": "d", "user": "u", "prefix": "in"},
}
LOCATIONS = {
    "disk": "file:///srv/staging/",
    "lake": "s3://bucket/",
    "web": "https://files.example.org:8443/v1/",
    "drop": "sftp://fetcher@files.example.org:2222/upload/",
    "google": "gs://bucket/",
    "blob": "azure://account/container/",
    "hadoop": "webhdfs://namenode:9870/data/",
    "rows": "postgresql://db:5432/d/transload/",
}
ENCODED = ("disk", "web")
"""Those whose locations are percent-encoded."""


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Handlers:
    folder = tmp_path_factory.mktemp("settings")
    targets = {
        "main": {"backend": "file", "root": str(folder / "main"), "prefix": "kept"},
        "other": {"backend": "file", "root": str(folder / "other")},
    }
    routes = {"news": {"recipe_id": "news", "targets": ["main"], "transforms": ["gunzip"]}}
    file = folder / "transload.yaml"
    file.write_text(
        yaml.safe_dump({"staging": STAGING, "targets": targets, "routes": routes}), encoding="utf-8"
    )
    return make_handlers(load_settings(file=file, home=folder / "home", environ={}))


def message(location: str, **payload: Any) -> ResourceFetched:
    return ResourceFetched(
        id="m",
        bundle=Bundle(bid="test-b", recipe_id="news", resources_count=1),
        resource=Resource(url="https://example.com/a.html"),
        payload=Payload(location=location, **payload),
    )


def planned(handlers: Handlers, command: ResourceFetched) -> StorePlan:
    plan = handlers.plan(command)
    assert isinstance(plan, StorePlan)
    return plan


def spelled_otherwise(location: str) -> Iterator[str]:
    """Ways to write `in/k` below a location so that something else is meant, or might be."""
    scheme, _, rest = location.partition("://")
    authority, _, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    user = f"{user}@" if user else ""
    name = host.partition(":")[0]
    key = f"{path}in/k"
    yield f"{scheme.upper()}://{authority}/{key}"
    yield f"{scheme}x://{authority}/{key}"
    yield f"{scheme}:{authority}/{key}"
    yield f"{scheme}:/{authority}/{key}"
    yield f"{scheme}:///{authority}/{key}x"
    yield f"{scheme}:\\\\{authority}\\{key}"
    yield f" {scheme}://{authority}/{key}"
    yield f"{scheme}://{authority}\\@evil.example/{key}"
    yield f"{scheme}://{authority}@evil.example/{key}"
    yield f"{scheme}://{authority}:80@evil.example/{key}"
    yield f"{scheme}://evil.example#@{authority}/{key}"
    yield f"{scheme}://evil.example?@{authority}/{key}"
    yield f"{scheme}://evil.example/{authority}/{key}"
    yield f"{scheme}://someone:secret@{host}/{key}"
    yield f"{scheme}://role@{host}/{key}"
    yield f"{scheme}://{user}{name}.evil.example/{key}"
    yield f"{scheme}://{user}evil-{host}/{key}"
    yield f"{scheme}://{user}{name}:1/{key}"
    yield f"{scheme}://{user}{name}./{key}"
    yield f"{scheme}://{user}{host}//{key}"
    for address in (
        "127.0.0.1",
        "[::1]",
        "[::ffff:169.254.169.254]",
        "169.254.169.254",
        "2130706433",
        "0x7f.1",
    ):
        yield f"{scheme}://{user}{address}/{key}"
    if name:
        yield f"{scheme}://{user}{host.upper()}/{key}"
        # Letters of another alphabet that look the same, and the full-width ones that IDNA folds to ours.
        yield f"{scheme}://{user}{host.replace('e', 'е')}/{key}".replace(f"{host}/", f"{host}х/")  # noqa: RUF001 - on purpose
        yield f"{scheme}://{user}{''.join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in host)}/{key}"
    for inside in (
        "",
        "in",
        "in/",
        "k",
        "inner/k",
        "IN/k",
        "/in/k",
        "in//k",
        "in/../k",
        "in/./k",
        "../in/k",
        "in/k/..",
        "in/" + "x" * 2000,
    ):
        yield f"{location}{inside}"


def encoded(location: str) -> Iterator[str]:
    """Besides, where an escape stands for its character."""
    for inside in (
        "in/%2e%2e/k",
        "in/%2E%2E%2Fk",
        "in%2f..%2fk",
        "%2e%2e/in/k",
        "in/k%00",
        "in/%ff",
        "%2fin/k",
        "in/a//k",
    ):
        yield f"{location}{inside}"


EVERYWHERE = [
    "file:///etc/passwd",
    "file:///srv/other/in/k",
    "file://localhost/srv/staging/in/k",
    "/srv/staging/in/k",
    "in/k",
    "s3://other/in/k",
    "s3://bucket.s3.us-west-2.amazonaws.com/in/k",
    "s3a://bucket/in/k",
    "arn:aws:s3:::bucket/in/k",
    "arn:aws:s3:us-west-2:123456789012:accesspoint/ap/object/in/k",
    "https://bucket.s3.eu-west-1.amazonaws.com/in/k",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://files.example.org:8443/v1/in/k",
    "https://files.example.org/v1/in/k",
    "https://files.example.org:8443/in/k",
    "https://files.example.org:8443/v1/in/k?list=1",
    "https://files.example.org:8443/v1/in/k#part",
    "ftp://files.example.org/upload/in/k",
    "sftp://root@files.example.org:2222/upload/in/k",
    "gs://bucket-2/in/k",
    "wasbs://container@account.blob.core.windows.net/in/k",
    "azure://other/container/in/k",
    "hdfs://namenode:9870/data/in/k",
    "swebhdfs://namenode:9870/data/in/k",
    "postgresql://db:5432/other/transload/in/k",
    "postgresql://db:5432/d/public/in/k",
    "memory://main/in/k",
    "module://os/in/k",
    "data:text/plain,x",
    "javascript:alert(1)",
    "gopher://127.0.0.1:6379/_x",
    "\u202ehttps://files.example.org:8443/v1/in/k",
]


@pytest.mark.parametrize("name", STAGING)
def test_case_98_only_what_is_spelled_as_configured_is_read(handlers: Handlers, name: str) -> None:
    plan = planned(handlers, message(f"{LOCATIONS[name]}in/k"))
    assert (plan.source.staging, plan.source.key) == (name, "in/k")
    wrong = [*spelled_otherwise(LOCATIONS[name]), *(encoded(LOCATIONS[name]) if name in ENCODED else ())]
    for location in wrong:
        with pytest.raises(Refused) as refused:
            planned(handlers, message(location))
        assert refused.value.reason == "staging_not_allowed", location
        assert "secret" not in refused.value.detail


@pytest.mark.parametrize("location", EVERYWHERE)
def test_cases_95_and_98_other_places_are_refused(handlers: Handlers, location: str) -> None:
    with pytest.raises(Refused) as refused:
        planned(handlers, message(location))
    assert refused.value.reason == "staging_not_allowed"


@pytest.mark.parametrize("name", sorted(STAGING.keys() - set(ENCODED)))
def test_case_98_what_looks_like_more_than_a_key_is_one(handlers: Handlers, name: str) -> None:
    """In a store whose keys are written raw nothing after the location means anything."""
    for key in (
        "in/k?region=us-west-2&role_arn=r",
        "in/k#f",
        "in/%2e%2e/k",
        "in/user@evil.example:80/k",
        "in/\\..\\k",
    ):
        plan = planned(handlers, message(f"{LOCATIONS[name]}{key}"))
        assert (plan.source.staging, plan.source.key) == (name, key)


def test_a_location_of_the_web_is_decoded_once(handlers: Handlers) -> None:
    for escaped, key in (
        ("in/a%20b", "in/a b"),
        ("in/%252e%252e", "in/%2e%2e"),
        ("in/%3Fq=1%23f", "in/?q=1#f"),
        ("in/ü", "in/ü"),
    ):
        assert planned(handlers, message(f"{LOCATIONS['web']}{escaped}")).source.key == key


SMUGGLED: dict[str, Any] = {
    "endpoint_url": "http://evil.example",
    "region": "us-west-2",
    "role_arn": "arn:aws:iam::1:role/admin",
    "profile": "admin",
    "access_key_id": "AKIAEVIL",
    "secret_access_key": "evil",
    "token": "evil",
    "bucket": "evil",
    "prefix": "../..",
    "root": "/",
    "staging": "lake",
    "target": "other",
    "targets": ["other"],
    "best_effort": ["other"],
    "route": "other",
    "queue": "other",
    "layout": "{url}",
    "transforms": ["unzip"],
    "limits": {"bytes": 1},
    "max_size": 1,
    "deduplicate": True,
    "storage_key": "/etc/passwd",
    "manifest_key": "/etc/passwd",
    "key": "/etc/passwd",
    "options": {"root": "/"},
    "backend": "s3",
    "verify_tls": False,
}


def decided(plan: StorePlan) -> StorePlan:
    """Everything but what is only carried along."""
    writes = tuple(replace(write, attributes=plan.writes[0].attributes) for write in plan.writes)
    return replace(plan, command=message("any"), writes=writes)


@pytest.mark.parametrize("place", ["", "bundle", "resource", "payload", "bundle.meta", "resource.meta"])
def test_case_98_no_field_widens_what_is_configured(handlers: Handlers, place: str) -> None:
    command = message(f"{LOCATIONS['lake']}in/k", size=3, sha256="0" * 64)
    document: dict[str, Any] = json.loads(encode(command))
    inner = document
    for name in place.split(".") if place else ():
        inner = inner.setdefault(name, {})
    before = dict(inner)
    inner |= {name: value for name, value in SMUGGLED.items() if name not in before}
    smuggling = decode(json.dumps(document).encode())
    assert isinstance(smuggling, ResourceFetched)
    clean, plan = decided(planned(handlers, command)), planned(handlers, smuggling)
    assert decided(plan) == replace(clean, writes=decided(plan).writes)
    assert [(write.target, write.key, write.sidecar_key) for write in plan.writes] == [
        (write.target, write.key, write.sidecar_key) for write in clean.writes
    ]
    assert (plan.source.staging, [write.target for write in plan.writes]) == ("lake", ["main"])
    assert [transform.name for transform in plan.transforms] == [t.name for t in clean.transforms]


TEXT = st.text(min_size=1, max_size=60)


@given(st.sampled_from(sorted(LOCATIONS)), TEXT)
def test_case_98_no_location_leaves_its_prefix(handlers: Handlers, name: str, rest: str) -> None:
    for location in (f"{LOCATIONS[name]}in/{rest}", f"{LOCATIONS[name]}{rest}", rest):
        with suppress(Refused, ValidationError):
            plan = planned(handlers, message(location))
            assert plan.source.key.startswith("in/")
            assert check_key(plan.source.key)
            assert [write.target for write in plan.writes] == ["main"]
            assert check_key(plan.writes[0].key).startswith("kept/")


# The whole of it


@pytest.fixture
async def web() -> AsyncIterator[tuple[str, list[Request]]]:
    """A server of payloads, and what it was asked."""
    asked: list[Request] = []

    async def handle(request: Request) -> Response:
        asked.append(request)
        return Response(body=b"payload")

    async with serving(handle) as url:
        yield url, asked


async def buried(settings: Settings, locations: list[str]) -> list[Message]:
    """The dead letters of a worker that has met a message with each of these locations, until nothing was left to do."""
    async with open_service(settings, admin=False) as service:
        queue = await EmbeddedQueue.connect(settings.queue.options)
        try:
            commands = [
                message(location).model_copy(update={"id": f"m{number}"})
                for number, location in enumerate(locations)
            ]
            await queue.send([OutgoingMessage(encode(command)) for command in commands])
            await service.run(until_idle=True)
            dead = await queue.open_dead_letters()
            try:
                return list(await dead.receive(len(locations) + 1, 0))
            finally:
                await dead.aclose()
        finally:
            await queue.aclose()


async def test_cases_95_96_and_98_end_as_dead_letters_and_touch_nothing(
    tmp_path: Path, web: tuple[str, list[Request]]
) -> None:
    url, asked = web
    root, outside = tmp_path / "staging", tmp_path / "outside"
    (root / "in" / "d").mkdir(parents=True)
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    (root / "in" / "leaf").symlink_to(outside / "k")
    (root / "in" / "away").symlink_to(outside)
    os.mkfifo(root / "in" / "fifo")
    (root / "in" / "dev").symlink_to("/dev")
    file = tmp_path / "transload.yaml"
    staging = {
        "disk": {"backend": "file", "root": str(root), "prefix": "in"},
        "web": {"backend": "http", "base_url": url, "health_path": "health"},
    }
    file.write_text(yaml.safe_dump({"staging": staging}), encoding="utf-8")
    settings = load_settings(file=file, home=tmp_path / "home", environ={})
    here = f"file://{root}/in"
    host = url.partition("://")[2]
    locations = [
        *(f"{here}/{name}" for name in ("leaf", "away/k", "fifo", "dev/null", "dev/zero")),
        f"file://{outside}/k",
        f"{here}/../../outside/k",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/",
        f"http://{host}@169.254.169.254/k",
        f"http://name:secret-word@{host}/k",
        f"http://localhost:{host.partition(':')[2]}/k",
        f"{url}/%2e%2e/k",
        f"{url}/k?x=1",
        f"{url}/k#x",
        f"{url}//k",
        "s3://bucket/k",
    ]
    letters = await buried(settings, locations)
    assert len(letters) == len(locations)
    assert {letter.attributes[REASON_ATTRIBUTE] for letter in letters} == {"staging_not_allowed"}
    assert not any("secret-word" in letter.attributes[DETAIL_ATTRIBUTE] for letter in letters)
    assert [request.path for request in asked] == ["/health"]
    assert not [path for path in (tmp_path / "home" / "storage").rglob("*") if path.is_file()]
