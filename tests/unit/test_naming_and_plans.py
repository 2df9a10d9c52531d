"""Names, layouts, staging and the plans of both handlers: decisions only, nothing is opened."""

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import KEY_LIMIT, check_key
from backends.errors import InvalidKey
from handlers.bundle_closed import BundleClosedHandler
from handlers.errors import Refused
from handlers.layouts import BundleFacts, FolderLayout, Layout, ObjectLayout, ResourceFacts, make_layout
from handlers.messages import Bundle, BundleClosed, ClosedBundle, Payload, Resource, ResourceFetched
from handlers.naming import resource_id, resource_name
from handlers.plan import BundleTarget, StagingSource, find_source
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from handlers.stored_metadata import planned

BIDS = ["17571960-2065-e0cd-cf71-8196d8577b7e", "bid:v1:main:20240115103000:0a1b2c3d", "test-a"]
URLS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.builds(
    "https://example.com/{}?{}".format, st.text(max_size=300), st.text(max_size=20)
)
NASTY = [
    "https://example.com/../../etc/passwd",
    "https://example.com/%2e%2e%2f%2e%2e%2fetc",
    "https://example.com/a%00b.html",
    "https://example.com/.htaccess",
    "https://example.com/-rf",
    "https://example.com/CON.txt",
    "https://example.com/\u202egpj.exe",
    "https://example.com/日本語.html",
    "https://example.com/" + "x" * 5_000 + ".html",
    "https://example.com/a." + "x" * 5_000,
    "https://example.com/page.html/",
    "https://example.com",
    "http://[",
    "..",
    "/",
    "%",
    " ",
]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{16,120}")


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("https://example.com/a/page.html?x=1#y", r"page-[0-9a-f]{16}\.html"),
        ("https://example.com/data.tar.gz", r"data-[0-9a-f]{16}\.tar\.gz"),
        ("https://example.com/", r"index-[0-9a-f]{16}"),
        ("https://example.com/folder/", r"folder-[0-9a-f]{16}"),
        ("https://example.com/my%20file.pdf", r"my_file-[0-9a-f]{16}\.pdf"),
        ("https://example.com/.hidden", r"hidden-[0-9a-f]{16}"),
        ("https://example.com/x", r"x-[0-9a-f]{16}"),
    ],
)
def test_names_stay_readable(url: str, pattern: str) -> None:
    assert re.fullmatch(pattern, resource_name(url))


@pytest.mark.parametrize("url", NASTY)
def test_names_of_nasty_urls_are_safe(url: str) -> None:
    name = resource_name(url)
    assert NAME.fullmatch(name)
    assert resource_id(url) in name


@given(URLS)
def test_any_url_has_a_safe_name(url: str) -> None:
    assert NAME.fullmatch(resource_name(url))


@given(st.lists(URLS, unique=True, min_size=2, max_size=6))
def test_case_77_two_urls_never_share_a_key(urls: list[str]) -> None:
    # On a file system that ignores case, keys that differ in case only are the same key.
    for layout in (ObjectLayout("p"), FolderLayout("p")):
        keys: list[str] = []
        for url in urls:
            key = layout.resource_key(BundleFacts("test-a"), ResourceFacts(resource_name(url)))
            keys += [key, *filter(None, [layout.sidecar_key(key)])]
        keys.append(layout.manifest_key(BundleFacts("test-a")))
        assert len({key.lower() for key in keys}) == len(keys)


@pytest.mark.parametrize("prefix", ["", "p", "a/b"])
@pytest.mark.parametrize("layout", [ObjectLayout, FolderLayout])
@given(url=URLS, bid=st.sampled_from(BIDS))
def test_keys_are_usable_everywhere_and_stay_under_their_prefix(
    layout: type[ObjectLayout | FolderLayout], prefix: str, url: str, bid: str
) -> None:
    laid = layout(prefix)
    folder = PurePosixPath(laid.storage_key(BundleFacts(bid)))
    key = laid.resource_key(BundleFacts(bid), ResourceFacts(resource_name(url)))
    assert check_key(key) == key
    assert key.isascii()
    assert PurePosixPath(key).parent == folder
    assert folder.is_relative_to(prefix)
    assert bid in str(folder)
    for beside in (laid.manifest_key(BundleFacts(bid)), laid.sidecar_key(key)):
        if beside is not None:
            check_key(beside)
            assert PurePosixPath(beside).is_relative_to(prefix)
            assert bid in beside


def test_the_layouts_of_the_seed() -> None:
    objects: Layout = make_layout("oc", "p", keeps_attributes=True)
    assert objects.storage_key(BundleFacts("test-a")) == "p/bundles/test-a/resources"
    assert objects.resource_key(BundleFacts("test-a"), ResourceFacts("n")) == "p/bundles/test-a/resources/n"
    assert objects.manifest_key(BundleFacts("test-a")) == "p/bundles/test-a/metadata.json"
    assert objects.sidecar_key("p/bundles/test-a/resources/n") is None
    folders: Layout = make_layout("oc", "", keeps_attributes=False)
    assert folders.resource_key(BundleFacts("test-a"), ResourceFacts("n.html")) == "bundle_test-a/n.html"
    assert folders.sidecar_key("bundle_test-a/n.html") == "bundle_test-a/n.html.meta"
    assert folders.manifest_key(BundleFacts("test-a")) == "bundle_test-a/bundle.meta"


S3 = StagingSource("s3", "s3://bucket/", "staging")
FILE = StagingSource("disk", "file:///srv/staging/")
SOURCES = (S3, FILE)


@pytest.mark.parametrize(
    ("location", "name", "key"),
    [
        ("s3://bucket/staging/a/b.html", "s3", "staging/a/b.html"),
        ("s3://bucket/staging/100%25 a?b#c", "s3", "staging/100%25 a?b#c"),
        ("s3://bucket/staging/%2e%2e/x", "s3", "staging/%2e%2e/x"),
        ("file:///srv/staging/a%20b", "disk", "a b"),
        ("file:///srv/staging/%E6%97%A5.html", "disk", "日.html"),
        ("file:///srv/staging/..a/b..", "disk", "..a/b.."),
    ],
)
def test_allowed_locations(location: str, name: str, key: str) -> None:
    source, found = find_source(SOURCES, location)
    assert (source.name, found) == (name, key)


@pytest.mark.parametrize(
    "location",
    [
        "s3://other/staging/a",
        "s3://bucket-evil/staging/a",
        "s3://bucket/staging-evil/a",
        "s3://bucket/stagin",
        "s3://bucket/staging",
        "s3://bucket/staging/",
        "s3://bucket/",
        "s3://bucket/staging//a",
        "s3://bucket/staging/../secret",
        "s3://bucket/staging/./a",
        "s3://bucket/staging/a\0b",
        "s3://bucket/other/a",
        "S3://bucket/staging/a",
        "s3://user@bucket/staging/a",
        "s3:/bucket/staging/a",
        "https://bucket/staging/a",
        "file:///etc/passwd",
        "file:///srv/staging",
        "file:///srv/staging-evil/a",
        "file:///srv/staging/",
        "file:///srv/staging/../../etc/passwd",
        "file:///srv/staging/%2e%2e/secret",
        "file:///srv/staging/%2E./secret",
        "file:///srv/staging/a%2f..%2f..%2fsecret",
        "file:///srv/staging/%2fetc/passwd",
        "file:///srv/staging/a%00b",
        "file:///srv/staging/%ff",
        "file://host/srv/staging/a",
        "/srv/staging/a",
        "",
        "s3://bucket/staging/" + "x" * (KEY_LIMIT + 1),
    ],
)
def test_cases_95_and_98_other_locations_are_refused(location: str) -> None:
    with pytest.raises(Refused) as caught:
        find_source(SOURCES, location)
    assert caught.value.reason == "staging_not_allowed"
    assert caught.value.detail.isprintable()


def test_nothing_is_allowed_where_nothing_is_configured() -> None:
    with pytest.raises(Refused, match="staging_not_allowed"):
        find_source((), "s3://bucket/staging/a")


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(source=st.sampled_from([StagingSource("a", "s3://b/"), FILE]), key=KEYS)
def test_a_location_leads_back_to_its_key(source: StagingSource, key: str) -> None:
    try:
        check_key(key)
    except InvalidKey:
        with pytest.raises(Refused):
            find_source([source], source.location_of(key))
    else:
        assert find_source([source], source.location_of(key)) == (source, key)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_no_location_leaves_its_source(rest: str) -> None:
    for location in (f"{FILE.location}{rest}", f"{FILE.location}{quote(rest)}", f"{S3.location}{rest}"):
        try:
            source, key = find_source(SOURCES, location)
        except Refused:
            continue
        assert check_key(key) == key
        assert key.startswith(source.prefix)


ROUTE = Route("default", (Target("disk", FolderLayout()), Target("cloud", ObjectLayout("p"), rank=1)))
ROUTES = Routes((ROUTE,))


def command(**resource: Any) -> ResourceFetched:
    return ResourceFetched(
        id="m",
        bundle=Bundle(bid="test-a", recipe_id="r"),
        resource=Resource(url="https://example.com/a.html", **resource),
        payload=Payload(location="s3://bucket/staging/x", size=3, sha256="0" * 64),
    )


def test_the_plan_of_a_resource() -> None:
    handler = ResourceFetchedHandler(SOURCES, ROUTES)
    plan = handler.plan(command(content_type="text/html", status_code=200))
    name = resource_name("https://example.com/a.html")
    assert (plan.source.staging, plan.source.key) == ("s3", "staging/x")
    assert (plan.source.size, plan.source.sha256) == (3, "0" * 64)
    assert [(write.target, write.key, write.sidecar_key) for write in plan.writes] == [
        ("disk", f"bundle_test-a/{name}", f"bundle_test-a/{name}.meta"),
        ("cloud", f"p/bundles/test-a/resources/{name}", None),
    ]
    assert plan.writes[0].attributes.content_type == "text/html"
    assert plan.writes[0].attributes.metadata == {
        "url": "https://example.com/a.html",
        "content_type": "text/html",
        "status_code": "200",
        **planned(command()),
    }
    assert plan.bundle_targets == (
        BundleTarget("disk", "bundle_test-a", "bundle_test-a/bundle.meta"),
        BundleTarget("cloud", "p/bundles/test-a/resources", "p/bundles/test-a/metadata.json", rank=1),
    )
    assert plan == handler.plan(command(content_type="text/html", status_code=200))


def test_what_is_not_known_is_no_attribute() -> None:
    plan = ResourceFetchedHandler(SOURCES, ROUTES).plan(command())
    assert plan.writes[0].attributes.content_type is None
    assert plan.writes[0].attributes.metadata == {"url": "https://example.com/a.html", **planned(command())}


def test_the_plan_of_a_close() -> None:
    close = BundleClosed(id="m", bundle=ClosedBundle(bid="test-a", recipe_id="r", resources_count=0))
    plan = BundleClosedHandler(ROUTES).plan(close)
    assert (plan.command, plan.route) == (close, "default")
    assert plan.bundle_targets == ROUTE.bundle_targets(BundleFacts("test-a", "fr"))


def test_a_message_does_not_widen_what_is_allowed() -> None:
    with pytest.raises(Refused, match="staging_not_allowed"):
        ResourceFetchedHandler([FILE], ROUTES).plan(command())
