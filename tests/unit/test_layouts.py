"""Layouts by name and by template: which keys they give, and which templates are refused."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from backends.base import check_key
from handlers import bus_layout
from handlers.bids import BidFactory, timestamp_ms
from handlers.bundling.archive import FORMATS
from handlers.layout_fields import FIELDS, HIVE_NULL, VALUE_LIMIT, encode
from handlers.layouts import BundleFacts, ResourceFacts, check_layout, make_layout, may_meet
from handlers.messages import Bundle, Payload, Resource, ResourceFetched
from handlers.naming import resource_id, resource_name
from handlers.plan import StorePlan
from worker.cli import app
from worker.routing import make_handlers
from worker.settings import SettingsError, load_settings

V0 = "17571960-2065-e0cd-cf71-8196d8577b7e"
V1 = "bid:v1:main:20240115103000:0a1b2c3d"
URL = "https://Example.com/a/page.tar.gz?x=1"
NAME = resource_name(URL)
EVERYTHING = "{host}/{type}/{subtype}/{content_type}/{meta[a]}/{date:%G-%V}/{bid}.{ext}/{resource_id}.x"
TEMPLATES = [
    "{bid}/{name}",
    "{bid}.{name}",
    "{name}/{bid}",
    "{name}.{bid}",
    "x/{name}/{date:%Y/%m}/{bid}",
    "{recipe_id}/{date:%Y/%m}/{bid}/{resource_id}",
    "{meta[channel]}-{recipe_id}/{bid}/{resource_id}{ext}",
    "y={date:%Y}/m={date:%m}/{bid}.{name}",
    "{bid}/{resource_id}",
    EVERYTHING,
]
PARTITIONED = ["hive", "dated", *TEMPLATES]
LAYOUTS = ["oc", "oc-v1", *PARTITIONED]

TEXTS = st.text(max_size=80) | st.sampled_from(
    [
        "main",
        "fr",
        "",
        ".",
        "..",
        "a/../b",
        "/",
        "_x",
        ".x",
        "x.",
        "~",
        "~none",
        "undated",
        HIVE_NULL,
        "%2F",
        "a%2Fb",
        "%2f",
        "con",
        "%63on",
        "é",
        "e\u0301",
        "É",
        "Main",
        "\0",
        "日本" * 90,
    ]
)
BIDS = st.sampled_from(
    [
        *(V0, f"{V0[:-1]}f", V0.upper(), V1, V1.replace("main", "fr"), V1.replace("main", "other")),
        *("test-a", "test-a-b", "custom-0123456789abcdef", "bid:v1:r:99999999999999:00000000"),
    ]
) | st.builds("test-{}".format, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}", fullmatch=True))
URLS = st.builds("https://{}/{}".format, TEXTS, TEXTS) | TEXTS.filter(bool)
METAS = st.dictionaries(
    st.sampled_from(["a", "channel", "table"]), TEXTS | st.integers() | st.none() | st.lists(st.booleans())
)


def resource(
    url: str = URL, content_type: str | None = "text/html; charset=utf-8", **meta: Any
) -> ResourceFacts:
    return ResourceFacts(resource_name(url), url, content_type, meta)


RESOURCES = st.builds(
    lambda url, content_type, meta: ResourceFacts(resource_name(url), url, content_type, meta),
    URLS,
    st.none() | st.sampled_from(["text/html", "text", "/", "TEXT/HTML;x"]) | TEXTS,
    METAS,
)
OBJECTS = st.tuples(st.builds(BundleFacts, BIDS, TEXTS), RESOURCES)


@settings(max_examples=300)
@given(
    spec=st.sampled_from(LAYOUTS),
    keeps_attributes=st.booleans(),
    objects=st.lists(OBJECTS, min_size=2, max_size=5, unique_by=lambda one: (one[0].bid, one[1].url)),
)
def test_case_77_no_two_objects_share_a_key_in_any_layout(
    spec: str, keeps_attributes: bool, objects: list[tuple[BundleFacts, ResourceFacts]]
) -> None:
    layout = make_layout(spec, "p/q", keeps_attributes=keeps_attributes)
    # All messages of a bundle name the same recipe.
    recipes = {bundle.bid: bundle.recipe_id for bundle, _ in objects}
    objects = [(replace(bundle, recipe_id=recipes[bundle.bid]), facts) for bundle, facts in objects]
    bundles = {bundle.bid: bundle for bundle, _ in objects}.values()
    keys = {layout.manifest_key(bundle) for bundle in bundles}
    keys |= {layout.archive_key(bundle, suffix) for bundle in bundles for suffix in FORMATS.names()}
    expected = len(keys)
    assert expected == (1 + len(FORMATS.names())) * len(bundles)
    for bundle, facts in objects:
        key = layout.resource_key(bundle, facts)
        sidecar = layout.sidecar_key(key)
        assert PurePosixPath(key).is_relative_to(layout.storage_key(bundle))
        assert (sidecar is None) is (keeps_attributes and spec != "oc-v1")
        keys |= {key} if sidecar is None else {key, sidecar}
        expected += 1 if sidecar is None else 2
    assert len(keys) == expected
    for key in keys:
        assert key.isascii()
        assert check_key(key).startswith("p/q/")
        assert max(map(len, key.split("/"))) <= 255
    # A file system has no room for a file and a folder of one name.
    folders = {str(folder) for key in keys for folder in PurePosixPath(key).parents}
    assert not keys & folders


@given(spec=st.sampled_from(PARTITIONED), one=OBJECTS)
def test_engines_see_payloads_and_nothing_else(spec: str, one: tuple[BundleFacts, ResourceFacts]) -> None:
    layout = make_layout(spec, "", keeps_attributes=False)
    key = layout.resource_key(*one)
    sidecar = layout.sidecar_key(key)
    assert sidecar is not None
    assert not any(segment.startswith(("_", ".")) for segment in key.split("/"))
    beside = (sidecar, layout.manifest_key(one[0]), layout.archive_key(one[0], "zip"))
    for name in (PurePosixPath(each).name for each in beside):
        assert name.startswith("_")
        assert "=" not in name
        assert not name.startswith(("_metadata", "_common_metadata"))
    for each in beside[1:]:
        assert all(segment.startswith("_") for segment in PurePosixPath(each).parts[::2])


@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_two_values_never_have_the_same_text(values: list[str]) -> None:
    one, other = (encode(value) for value in values)
    assert one != other
    assert 0 < len(one) <= VALUE_LIMIT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain-1_2.x", "plain-1_2.x"),
        ("a b/c:é", "a%20b%2Fc%3A%C3%A9"),
        ("_hidden", "%5Fhidden"),
        (".hidden", "%2Ehidden"),
        ("..", "%2E%2E"),
        ("dot.", "dot%2E"),
        ("", "~"),
        ("~", "%7E"),
        ("con", "%63on"),
        ("NUL.txt", "%4EUL.txt"),
        ("lpt1.", "%6Cpt1%2E"),
        ("%63on", "%2563on"),
        ("console", "console"),
        ("com10", "com10"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 47 + "~9537c5fdf120482f"),
        ("x" * 45 + "é" * 20, "x" * 45 + "~140907e4d2f93614"),
    ],
)
def test_values_are_encoded(value: str, text: str) -> None:
    assert encode(value) == text


def test_the_hive_layout() -> None:
    layout = make_layout("hive", "bronze", keeps_attributes=True)
    bundle = BundleFacts(V1, "fr/été")
    partition = "bronze/system=fr%2F%C3%A9t%C3%A9/table={}/dt=2024-01-15"
    file = f"bid%3Av1%3Amain%3A20240115103000%3A0a1b2c3d.{NAME}"
    assert layout.resource_key(bundle, resource(table="users")) == f"{partition.format('users')}/{file}"
    assert layout.resource_key(bundle, resource()) == f"{partition.format('html')}/{file}"
    assert layout.resource_key(bundle, resource(table=7)) == f"{partition.format('html')}/{file}"
    assert (
        layout.resource_key(bundle, resource(content_type=None)) == f"{partition.format('resources')}/{file}"
    )
    assert layout.storage_key(bundle) == "bronze/system=fr%2F%C3%A9t%C3%A9"
    assert (
        layout.manifest_key(bundle)
        == "bronze/_bundles/2024-01-15/_bid%3Av1%3Amain%3A20240115103000%3A0a1b2c3d.json"
    )


def test_the_dated_layout() -> None:
    layout = make_layout("dated", "", keeps_attributes=False)
    key = layout.resource_key(BundleFacts(V1), resource())
    folder = "2024/01/15/bid%3Av1%3Amain%3A20240115103000%3A0a1b2c3d"
    assert key == f"{folder}/{NAME}"
    assert layout.sidecar_key(key) == f"{folder}/_meta.{NAME}.json"
    assert layout.storage_key(BundleFacts(V1)) == folder
    # Not `_metadata…`, which Spark reads as a summary of Parquet files.
    summary = layout.sidecar_key(layout.resource_key(BundleFacts(V1), resource("https://x.example/metadata")))
    assert summary is not None
    assert "/_meta.metadata-" in summary


def test_the_date_is_the_bundles_own() -> None:
    for bid, milliseconds in (
        (V0, 1_757_196_020_650),
        (BidFactory(clock=lambda: 1_705_314_600.0)(), 1_705_314_600_000),
    ):
        assert timestamp_ms(bid) == milliseconds
    layout = make_layout("{date:%Y-%m-%dT%H.%M.%S}_{date:%j}/{bid}/{name}", "", keeps_attributes=True)
    bundle = BundleFacts("bid:v1:r:00010203040506:00000000")
    assert layout.storage_key(bundle).startswith("0001-02-03T04.05.06_034/")


BUS_DAY = "raw/fr/data/year=2024/month=01/day=15"


@pytest.mark.parametrize(
    ("bid", "recipe", "folder"),
    [
        ("bid:v1:fr:20240115103000:0a1b2c3d", "fr", f"{BUS_DAY}/10-30-00-0a1b2c3d"),
        # The digits are those of another registry: bundles of both may be in this one.
        (V1, "fr", f"{BUS_DAY}/10-30-00-0a1b2c3d-main"),
        (V0, "fr", "raw/fr/data/year=2025/month=09/day=06/22-00-20-175719602065e0cdcf718196d8577b7e"),
        ("test-a", "_x/y", f"raw/%5Fx%2Fy/data/year={HIVE_NULL}/month={HIVE_NULL}/day={HIVE_NULL}/test-a"),
    ],
)
@pytest.mark.parametrize("keeps_attributes", [True, False])
def test_the_layout_of_the_bus(bid: str, recipe: str, folder: str, keeps_attributes: bool) -> None:
    layout = make_layout("oc-v1", "raw", keeps_attributes=keeps_attributes)
    bundle = BundleFacts(bid, recipe)
    key = layout.resource_key(bundle, resource())
    assert key == f"{folder}/content/{NAME}"
    assert layout.storage_key(bundle) == f"{folder}/content"
    assert layout.sidecar_key(key) == f"{folder}/metadata/{NAME}.metadata.json"
    manifest = layout.manifest_key(bundle)
    assert manifest == f"{folder}/metadata/_manifest.jsonl"
    assert bus_layout.is_bus(manifest)
    assert bus_layout.folder_of(manifest) == folder
    assert bus_layout.hashes_of(manifest) == f"{folder.partition('/data/')[0]}/bundle_hashes"
    assert make_layout("oc-v1", "", keeps_attributes=True).storage_key(
        bundle
    ) == f"{folder}/content".removeprefix("raw/")


@given(
    spec=st.sampled_from(LAYOUTS), keeps_attributes=st.booleans(), bundle=st.builds(BundleFacts, BIDS, TEXTS)
)
def test_a_manifest_of_the_bus_is_told_by_its_key(
    spec: str, keeps_attributes: bool, bundle: BundleFacts
) -> None:
    layout = make_layout(spec, "metadata", keeps_attributes=keeps_attributes)
    assert bus_layout.is_bus(layout.manifest_key(bundle)) is (spec == "oc-v1")


def test_a_bundle_without_a_time_has_a_place_too() -> None:
    bundle = BundleFacts("test-a", "fr")
    assert make_layout("dated", "", keeps_attributes=True).storage_key(bundle) == "undated/test-a"
    hive = make_layout("hive", "", keeps_attributes=True)
    # Text in a partition column of dates makes every query fail; this name is NULL to the engines.
    assert hive.resource_key(bundle, resource()) == f"system=fr/table=html/dt={HIVE_NULL}/test-a.{NAME}"
    assert hive.manifest_key(bundle) == "_bundles/undated/_test-a.json"


def test_every_field() -> None:
    layout = make_layout(EVERYTHING, "", keeps_attributes=True)
    key = layout.resource_key(BundleFacts(V1, "r"), resource(a=1))
    assert key == (
        f"example.com/text/html/text%2Fhtml/1/2024-03/bid%3Av1%3Amain%3A20240115103000%3A0a1b2c3d.tar.gz/{resource_id(URL)}.x"
    )
    bare = layout.resource_key(BundleFacts("test-a"), resource("x", None))
    assert bare == f"~none/~none/~none/~none/~none/undated/test-a.~none/{resource_id('x')}.x"
    assert layout.storage_key(BundleFacts("test-a")) == ""
    assert set(FIELDS) == {
        *("bid", "recipe_id", "name", "resource_id", "ext"),
        *("host", "content_type", "type", "subtype", "table"),
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hove", "no layout has that name; did you mean 'hive'?"),
        ("", "no layout has that name; there are: dated, hive, oc, oc-v1, or a template"),
        ("{recipe_id}/{name}", "{bid} is missing"),
        ("{bid}/{recipe_id}", "{name} or {resource_id} is missing"),
        ("{bid}/{nam}", "no field is called 'nam'; did you mean {name}?"),
        ("{bid}/{name.__class__}", "no field is called 'name.__class__'"),
        ("{bid}/{name[0]}", "no field is called 'name[0]'"),
        ("{bid}/{meta[a][b]}/{name}", "no field is called 'meta[a][b]'"),
        ("{bid}/{}", "no field is called ''"),
        ("{bid}/{0}", "no field is called '0'"),
        ("{bid!r}/{name}", "{bid} takes no conversion; remove !r"),
        ("{bid:>99999999}/{name}", "{bid} takes nothing behind a colon"),
        ("{bid:{name}}/{name}", "{bid} takes nothing behind a colon"),
        ("{date:%c}/{bid}/{name}", "{date:%c} is not understood"),
        ("{date:%Y//%m}/{bid}/{name}", "is not understood"),
        ("x{date:%Y/%m}/{bid}/{name}", "stands between slashes"),
        ("{bid}/{name", "the braces do not pair"),
        ("{bid}/{{}}{name}", "the character '{' is not for keys"),
        ("/{bid}/{name}", "an empty segment"),
        ("{bid}//{name}", "an empty segment"),
        ("{bid}/{name}/", "an empty segment"),
        ("../{bid}/{name}", "a segment '..' leads elsewhere"),
        ("{bid}/./{name}", "a segment '.' leads elsewhere"),
        ("_x/{bid}/{name}", "the segment '_x' begins with '_'"),
        ("{bid}/.{name}", "the segment '.' begins with '.'"),
        ("{bid}/{name}.", "a segment ends with a dot"),
        ("a\n/{bid}/{name}", r"the character '\n' is not for keys"),
        ("a%2F/{bid}/{name}", "the character '%' is not for keys"),
        ("a\\{bid}/{name}", "the character '\\\\' is not for keys"),
        ("é/{bid}/{name}", r"the character '\xe9' is not for keys"),
        ("{bid}-{name}", "where {bid} begins or ends cannot be told"),
        ("{bid}{name}", "where {bid} begins or ends cannot be told"),
        ("{recipe_id}{bid}/{name}", "where {bid} begins or ends cannot be told"),
        ("{bid}/{name}-{host}", "where {name} or {resource_id} begins or ends cannot be told"),
        ("{host}.{recipe_id}.{table}.{bid}/{name}.{ext}.{type}", "where {name}"),
        ("{bid}.{host}={table}/{name}", ""),
        ("{name}/b={bid}", "a file's name holds '='"),
        ("{host}={table}={type}={subtype}/{bid}/{name}", "a segment could have 259 bytes"),
        ("{bid}/{name}/" + "/".join("{recipe_id}" for _ in range(6)), "bytes below the prefix"),
        ("{bid}/{name}/" + "x" * 500, "at most 511 characters"),
    ],
)  # fmt: skip
def test_what_could_give_a_bad_key_is_refused(spec: str, expected: str) -> None:
    if not expected:
        assert check_layout(spec) == spec
        return
    with pytest.raises(ValueError, match=r"\w") as refused:
        check_layout(spec)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("oc", "oc", False),
        ("oc", "hive", False),
        ("oc", "dated", False),
        ("hive", "dated", False),
        ("oc", "{recipe_id}/{bid}/{name}", True),
        ("oc", "bundles/{bid}/{name}", True),
        ("oc", "bundle/{bid}/{name}", False),
        ("dated", "{date:%Y}/{bid}/{name}", True),
        ("dated", "undated/{bid}/{name}", True),
        ("dated", "x/{bid}/{name}", False),
        ("{bid}/{name}", "{name}/{bid}", True),
        ("a/{bid}/{name}", "ab/{bid}/{name}", False),
        ("a={date}/{bid}/{name}", "a={bid}/{name}", True),
        ("oc-v1", "oc", True),
        ("oc-v1", "dated", True),
        ("oc-v1", "+/{bid}/{name}", False),
        ("oc-v1", "oc-v1", False),
    ],
)
def test_layouts_of_one_target_begin_differently(one: str, other: str, meet: bool) -> None:
    assert may_meet(one, other) is meet
    assert may_meet(other, one) is meet


def settings_error(tmp_path: Path, text: str) -> str:
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        load_settings(file=tmp_path / "t.yaml", home=tmp_path, environ={})
    return str(error.value).replace(f"{tmp_path}/", "")


def test_layouts_are_checked_with_the_settings(tmp_path: Path) -> None:
    text = """\
targets:
  main:
    layout: hove
  lake:
    layout: "{recipe_id}/{name}"
    root: lake
routes:
  all:
    layout: "{bid}/{nome}"
"""
    assert settings_error(tmp_path, text).splitlines() == [
        "t.yaml:3: targets.main.layout: 'hove' is refused: no layout has that name; did you mean 'hive'?",
        (
            "t.yaml:5: targets.lake.layout: '{recipe_id}/{name}' is refused: {bid} is missing: without it two objects could "
            "have one key; add it"
        ),
        "t.yaml:9: routes.all.layout: '{bid}/{nome}' is refused: no field is called 'nome'; did you mean {name}?",
    ]


def test_two_layouts_that_could_meet_in_one_target_are_refused(tmp_path: Path) -> None:
    text = 'targets: {main: {}}\nroutes:\n  one: {recipe_id: fr}\n  two:\n    layout: "{recipe_id}/{bid}/{name}"\n'
    assert settings_error(tmp_path, text) == (
        "t.yaml:5: routes.two.layout: '{recipe_id}/{bid}/{name}' could give target 'main' the same keys as 'oc', which it has "
        "by route 'one'; begin a template with a word of its own, as 'archive/…'"
    )


WRITE_ONLY = "{backend: http, base_url: 'http://127.0.0.1:1', OPTION: false}"


@pytest.mark.parametrize("option", ["deletes", "reads"])
def test_the_bus_takes_a_target_that_reads_and_deletes(tmp_path: Path, option: str) -> None:
    target = WRITE_ONLY.replace("OPTION", option)
    said = "oc-v1 reads and replaces bundle_hashes/_latest, which target 'main' cannot; choose another layout or target"
    text = f"targets:\n  main: {target[:-1]}, layout: oc-v1}}\n"
    assert settings_error(tmp_path, text) == f"t.yaml:2: targets.main.layout: {said}"
    text = f"targets:\n  main: {target}\nroutes:\n  a:\n    layout: oc-v1\n"
    assert settings_error(tmp_path, text) == f"t.yaml:5: routes.a.layout: {said}"


def test_a_route_may_lay_out_differently(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("targets: {main: {layout: dated}}\nroutes: {a: {layout: hive}, b: {}}\n")
    loaded = load_settings(file=tmp_path / "t.yaml", home=tmp_path, environ={})
    assert (loaded.targets["main"].layout, loaded.routes["a"].layout) == ("dated", "hive")


def test_plans_have_the_keys_of_the_routes_layout(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        "targets: {main: {prefix: p}}\nroutes:\n  a: {recipe_id: a, layout: hive}\n  b: {layout: oc}\n"
    )
    handlers = make_handlers(load_settings(file=tmp_path / "t.yaml", home=tmp_path, environ={}))
    keys = []
    for recipe in ("a", "b"):
        plan = handlers.plan(
            ResourceFetched(
                id="1",
                bundle=Bundle(bid=V0, recipe_id=recipe),
                resource=Resource(url=URL, content_type="text/html", meta={"table": "t"}),
                payload=Payload(location=(tmp_path / "staging/x").as_uri()),
            )
        )
        assert isinstance(plan, StorePlan)
        keys += [(write.key, write.sidecar_key) for write in plan.writes]
        keys += [(place.storage_key, place.manifest_key) for place in plan.bundle_targets]
    hive = "p/system=a/table=t/dt=2025-09-06"
    assert keys == [
        (f"{hive}/{V0}.{NAME}", f"{hive}/_meta.{V0}.{NAME}.json"),
        ("p/system=a", f"p/_bundles/2025-09-06/_{V0}.json"),
        (f"p/bundle_{V0}/{NAME}", f"p/bundle_{V0}/{NAME}.meta"),
        (f"p/bundle_{V0}", f"p/bundle_{V0}/bundle.meta"),
    ]


@pytest.mark.parametrize("layout", ["hive", "dated"])
def test_what_is_stored_by_a_layout_is_found_again(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.html").write_text("a")
    (source / "metadata").write_text("b")
    (tmp_path / "t.yaml").write_text(f"targets: {{main: {{prefix: p, layout: {layout}}}}}\n")
    arguments = ["--config", str(tmp_path / "t.yaml"), "--home", str(tmp_path / "home")]
    # The demonstration reads back and compares everything that it has stored.
    done = CliRunner().invoke(app, [*arguments, "demo", "--from", str(source)])
    assert done.exit_code == 0, done.output
    names = [path.name for path in (tmp_path / "home/storage/p").rglob("*") if path.is_file()]
    assert len([name for name in names if not name.startswith("_")]) == 2
    assert len(names) == 5
