"""Notifications of stores, as S3, MinIO and EventBridge write them: read when a staging source takes them, refused by name otherwise."""

import json
import unicodedata
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import KEY_LIMIT
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers, Said
from handlers.errors import Refused
from handlers.messages import ResourceFetched, decode
from handlers.object_created import ObjectCreatedHandler
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Routes
from handlers.storage_notifications import MOST_RECORDS, ObjectCreated, OtherEvent
from tests.support.s3_events import bridged, direct, minio, record

SOURCE = StagingSource("drop", "s3://drops/", "in")
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=120).filter(
    lambda key: not key.endswith("/")
)
"""What S3 takes: any UTF-8."""


def handlers(recipe: str | None = "{staging}", source: StagingSource = SOURCE) -> Handlers:
    recipes = {} if recipe is None else {source.name: recipe}
    return Handlers(
        ResourceFetchedHandler([source], Routes(())),
        BundleClosedHandler(Routes(())),
        ObjectCreatedHandler([source], recipes),
    )


def read(content: Any) -> tuple[Said, ...]:
    return handlers().read(json.dumps(content).encode())


def created(content: Any) -> ObjectCreated:
    (event,) = read(content)
    assert isinstance(event, ObjectCreated)
    return event


def command(content: Any, recipe: str = "{staging}", source: StagingSource = SOURCE) -> ResourceFetched:
    made = handlers(recipe, source).command(created(content))
    assert isinstance(made, ResourceFetched)
    return made


def wrapped(content: Any) -> dict[str, Any]:
    return {
        "Type": "Notification",
        "Subject": "Amazon S3 Notification",
        "Message": json.dumps(content),
    }


def refusal(content: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        [handlers().command(said) for said in read(content)]
    return refused.value


TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "drops"}


@pytest.mark.parametrize(
    "content", [direct(), minio(), TEST_EVENT, bridged(), wrapped(direct()), wrapped(bridged())]
)
def test_where_no_source_takes_any_a_notification_is_refused_by_its_name(content: Any) -> None:
    body = json.dumps(content).encode()
    for reader in (decode, handlers(recipe=None).read):
        with pytest.raises(Refused, match="a notification of S3 or MinIO") as refused:
            reader(body)
        assert refused.value.reason == "unknown_type"


@pytest.mark.parametrize(
    "content", [{"Records": []}, {"Records": ["s3"]}, {"Records": [{"eventSource": None}]}, {"Records": {}}]
)
def test_what_only_looks_like_one_is_told_its_type(content: Any) -> None:
    assert "type is None" in refusal(content).detail


def test_all_that_is_told_of_a_put_is_read() -> None:
    expected = ObjectCreated(
        bucket="drops",
        key="in/red flower.jpg",
        etag="d41d8cd98f00b204e9800998ecf8427e",
        size=1024,
        milliseconds=1_700_000_000_123,
        version="096fKKXTRTtl3on89fVO",
        sequencer="0055AED6DCD90281E5",
    )
    assert created(direct("in/red+flower.jpg", versionId=expected.version)) == expected
    assert created(wrapped(direct("in/red+flower.jpg", versionId=expected.version))) == expected
    assert created(bridged("in/red flower.jpg", **{"version-id": expected.version})) == expected
    found = created(minio("in%2Fred+flower.jpg", versionId=expected.version))
    assert (found.key, found.version, found.content_type) == (expected.key, expected.version, "image/jpeg")


@given(KEYS)
def test_every_key_comes_back_exactly(key: str) -> None:
    # S3 leaves `/` as it is; MinIO and `quote_plus` do not; `quote` writes a space otherwise.
    for encoded in (quote_plus(key, safe="/"), quote_plus(key), quote(key), quote(key, safe="")):
        assert created(direct(encoded)).key == key
    assert created(bridged(key)).key == key


@given(KEYS)
def test_every_key_is_the_resources_or_refused(key: str) -> None:
    source = StagingSource("drop", "s3://drops/")
    made = None
    with suppress(Refused):
        made = command(direct(quote_plus(key)), source=source)
    segments = key.split("/")
    odd = any(unicodedata.category(character) == "Cc" for character in key)
    fits = not odd and {"", ".", ".."}.isdisjoint(segments) and len(key.encode()) <= KEY_LIMIT
    assert (made is not None) is fits
    if made is not None:
        assert source.key_of(made.payload.location) == key
        assert made.resource.url == made.payload.location


@pytest.mark.parametrize("key", ["%FF", "in/%C3", "in/%ED%A0%80"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    assert refusal(direct(key)).detail.endswith("not UTF-8 once its encoding is undone")


@pytest.mark.parametrize("name", ["Put", "Post", "Copy", "CompleteMultipartUpload", "Something"])
@pytest.mark.parametrize("prefix", ["", "s3:"])
def test_whatever_creates_an_object_counts(prefix: str, name: str) -> None:
    assert created(direct(eventName=f"{prefix}ObjectCreated:{name}")).key == "in/a.html"


@pytest.mark.parametrize(
    "content",
    [
        TEST_EVENT,
        wrapped(TEST_EVENT),
        direct(eventName="ObjectRemoved:Delete"),
        direct(eventName="s3:ObjectRemoved:DeleteMarkerCreated"),
        direct(eventName="ObjectRestore:Completed"),
        direct(eventName="ObjectTagging:Put"),
        minio(eventName="s3:ObjectCreated:PutTagging"),
        minio(eventName="s3:ObjectAccessed:Get"),
        {**bridged(), "detail-type": "Object Deleted"},
        direct("in/folder%2F", size=0),
        minio("in%2Ffolder%2F", size=None),
        bridged("in/folder/", size=0),
    ],
)
def test_of_other_events_nothing_follows(content: Any) -> None:
    (event,) = read(content)
    assert isinstance(event, OtherEvent)
    assert handlers().command(event) == event
    assert handlers().planned(event) == event


def test_an_event_of_which_nothing_follows_need_not_be_whole() -> None:
    removed = {"eventSource": "aws:s3", "eventName": "ObjectRemoved:Delete"}
    assert read({"Records": [removed]}) == (OtherEvent("ObjectRemoved:Delete"),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"Records": [record(), "s3"]}, "Records.1: not an event of S3"),
        ({"Records": [record(), {**record(), "eventSource": "aws:sns"}]}, "Records.1: not an event of S3"),
        ({"Records": [{"eventSource": "aws:s3"}]}, "Records.0.eventName: a text is expected"),
        (direct(eventTime="yesterday"), "Records.0.eventTime: not a time"),
        (direct(eventTime="1969-12-31T23:59:59Z"), "between 1970 and 2300"),
        (direct(eventTime=None), "Records.0.eventTime: "),
        (direct(eTag=None), "Records.0.s3.object.eTag: "),
        (direct(size=-1), "Records.0.s3.object.size: "),
        (direct(size="3"), "Records.0.s3.object.size: "),
        (direct(""), "Records.0.s3.object.key: "),
        (direct(bucket="drops/in"), "Records.0.s3.bucket.name: "),
        (bridged(etag=None), "detail.object.etag: "),
        ({"source": "aws.s3", "detail-type": "Object Created", "detail": []}, ": "),
        ({"Records": [record()] * (MOST_RECORDS + 1)}, "at most 100 are read"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(content: Any, expected: str) -> None:
    refused = refusal(content)
    assert refused.reason == "malformed"
    assert expected in refused.detail


def test_as_many_as_are_read_are_read_in_order() -> None:
    events = read({"Records": [record(f"in/{number}") for number in range(MOST_RECORDS)]})
    assert [event.key for event in events if isinstance(event, ObjectCreated)] == [
        f"in/{number}" for number in range(MOST_RECORDS)
    ]


@pytest.mark.parametrize("extra", [b'"a":' + b"[" * 200 + b"]" * 200, b'"a":NaN', b'"Records":[]'])
def test_case_74_the_limits_of_messages_hold(extra: bytes) -> None:
    body = json.dumps(direct()).encode()[:-1] + b"," + extra + b"}"
    with pytest.raises(Refused) as refused:
        handlers().read(body)
    assert refused.value.reason == "malformed"


def test_case_75_so_does_the_cap_of_bytes() -> None:
    body = json.dumps(direct()).encode()
    assert handlers().read(body, len(body))
    with pytest.raises(Refused, match="at most"):
        handlers().read(body, len(body) - 1)


def test_an_object_is_a_bundle_of_one() -> None:
    made = command(direct("in/fr/red+flower.jpg"), recipe="drops-{folder}")
    assert made.bundle.recipe_id == "drops-fr"
    assert (made.bundle.resources_count, made.bundle.primary_url) == (
        1,
        "s3://drops/in/fr/red flower.jpg",
    )
    assert made.payload.location == made.resource.url == made.bundle.primary_url
    assert (made.payload.size, made.payload.etag) == (1024, "d41d8cd98f00b204e9800998ecf8427e")
    # A UUIDv7 of the moment the store had it.
    assert made.bundle.bid.startswith("018bcfe5-687b-7")
    assert made.id.startswith(f"{made.bundle.bid}/")
    assert made.resource.meta == {
        "s3": {"etag": "d41d8cd98f00b204e9800998ecf8427e", "sequencer": "0055AED6DCD90281E5"}
    }


def test_the_recipe_is_the_sources_name_unless_it_is_said() -> None:
    assert command(direct()).bundle.recipe_id == "drop"


def test_where_folders_are_recipes_an_object_needs_one() -> None:
    with pytest.raises(Refused, match="lies in no folder") as refused:
        command(direct("in/a.html"), recipe="{folder}")
    assert refused.value.reason == "malformed"
    assert command(direct("fr/a"), "{folder}", StagingSource("all", "s3://drops/")).bundle.recipe_id == "fr"


def test_case_19_the_same_put_is_the_same_bundle_however_it_is_told() -> None:
    assert command(direct()) == command(wrapped(direct())) == command(direct("in%2Fa.html"))


def test_each_put_is_a_bundle_of_its_own() -> None:
    puts = [
        direct(),
        direct(eTag="other"),
        direct(versionId="2"),
        direct(sequencer="0055AED6DCD90281E6"),
        direct("in/b.html"),
        direct(eventTime="2023-11-14T22:13:20.124Z"),
    ]
    assert len({command(put).bundle.bid for put in puts}) == len(puts)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (direct("out/a.html"), "is not under a configured staging source"),
        (direct(bucket="lake"), "is not under a configured staging source"),
        (direct("in/../out/a.html"), "segment"),
        (direct("in//a.html"), "segment"),
        (direct("in/folder/", size=3), "segment"),
    ],
)
def test_case_98_only_what_is_configured_is_read(content: Any, expected: str) -> None:
    refused = refusal(content)
    assert refused.reason == "staging_not_allowed"
    assert expected in refused.detail


def test_case_98_a_source_takes_notifications_only_where_it_is_said() -> None:
    other = StagingSource("quiet", "s3://quiet/")
    handler = ObjectCreatedHandler([SOURCE, other], {"drop": "r"})
    with pytest.raises(Refused, match=r"set staging\.quiet\.notifications") as refused:
        handler.command(created(direct("a", bucket="quiet")))
    assert refused.value.reason == "staging_not_allowed"


def test_case_98_where_it_says_it_is_means_nothing() -> None:
    elsewhere = direct()
    elsewhere["Records"][0] |= {
        "awsRegion": "mars-1",
        "userIdentity": {"principalId": "AWS:root"},
        "responseElements": {"x-minio-origin-endpoint": "http://169.254.169.254"},
        "glacierEventData": {"restoreEventData": {"lifecycleRestoreStorageClass": "GLACIER"}},
    }
    assert command(elsewhere) == command(direct())


def test_case_100_a_key_with_control_characters_is_refused_in_one_line() -> None:
    refused = refusal(direct("in%2Fa%0Ab%1B[2J"))
    assert refused.reason == "malformed"
    assert "control characters are not allowed" in refused.detail
    assert refused.detail.isprintable()


def test_a_command_is_read_as_before() -> None:
    body = {"type": "bundle.closed", "version": 1, "id": "c", "Records": [record()]}
    body["bundle"] = {"bid": "test-a", "recipe_id": "r", "resources_count": 1}
    (said,) = read(body)
    assert said == decode(json.dumps(body).encode())
