"""Which route a message takes."""

from pathlib import Path

import pytest

from handlers.errors import Refused
from handlers.layouts import BundleFacts, ObjectLayout
from handlers.messages import Bundle, Resource
from handlers.routes import Match, Route, Routes, Target
from worker.settings import SettingsError, load_settings

BUNDLE = Bundle(bid="test-a", recipe_id="us-fl")
PAGE = Resource(url="https://example.com/a/page.html", content_type="Text/HTML; charset=utf-8")


def route(name: str, **patterns: str | tuple[str, ...]) -> Route:
    asked = {about: (text,) if isinstance(text, str) else text for about, text in patterns.items()}
    return Route(name, (Target("t", ObjectLayout()),), Match(asked))


@pytest.mark.parametrize(
    ("patterns", "fits"),
    [
        ({}, True),
        ({"recipe_id": "us-*"}, True),
        ({"recipe_id": ("fr", "us-??")}, True),
        ({"recipe_id": "us"}, False),
        ({"recipe_id": "US-*"}, False),
        ({"queue": "pages"}, True),
        ({"queue": "page"}, False),
        ({"url": "https://example.com/*"}, True),
        ({"url": "https://example.com/a/page.html"}, True),
        ({"url": "https://example.com/a/page.htm"}, False),
        ({"url": "https://example?com/*"}, True),
        ({"url": "https://exampleXcom/*"}, False),
        ({"content_type": "text/*"}, True),
        ({"content_type": "text/html"}, True),
        ({"content_type": ("application/*", "image/*")}, False),
        ({"recipe_id": "us-*", "content_type": "image/*"}, False),
        ({"recipe_id": ()}, True),
    ],
)
def test_what_a_route_matches(patterns: dict[str, str | tuple[str, ...]], fits: bool) -> None:
    routes = Routes((route("asked", **patterns), route("rest")), "pages")
    assert routes.of_resource(BUNDLE, PAGE).name == ("asked" if fits else "rest")


def test_the_first_that_matches_wins() -> None:
    routes = Routes((route("one", recipe_id="us-*"), route("two", recipe_id="us-fl"), route("rest")))
    assert routes.of_resource(BUNDLE, PAGE).name == "one"


def test_a_bundle_without_resources_takes_what_its_resources_might() -> None:
    routes = Routes((route("other", recipe_id="fr"), route("images", content_type="image/*"), route("rest")))
    assert routes.of_bundle(BUNDLE).name == "images"


@pytest.mark.parametrize("routes", [(), (route("fr", recipe_id="fr"),)])
def test_no_route_is_a_dead_letter_that_says_what_was_asked(routes: tuple[Route, ...]) -> None:
    with pytest.raises(Refused) as raised:
        Routes(routes, "pages").of_resource(BUNDLE, PAGE)
    assert raised.value.reason == "no_route"
    assert "recipe_id 'us-fl'" in raised.value.detail
    assert "add one, then redrive" in raised.value.detail
    with pytest.raises(Refused, match="no route"):
        Routes(routes, "pages").of_bundle(BUNDLE)


@pytest.mark.parametrize("named", ["targets: [a, b, a]", "targets: [b], best_effort: [a, a]"])
def test_a_target_that_a_route_names_twice_is_refused(tmp_path: Path, named: str) -> None:
    """Two writes of one payload to one target would share its reader, and each get half of the chunks."""
    file = tmp_path / "transload.yaml"
    file.write_text(f"targets: {{a: {{}}, b: {{}}}}\nroutes: {{all: {{{named}}}}}")
    with pytest.raises(SettingsError, match="a is named twice"):
        load_settings(file=file, home=tmp_path, environ={})


def test_no_content_type_matches_only_where_none_is_asked_for() -> None:
    bare = Resource(url="https://example.com/")
    assert (
        Routes((route("html", content_type="text/html"), route("rest"))).of_resource(BUNDLE, bare).name
        == "rest"
    )


def test_what_a_route_says_of_a_bundle() -> None:
    targets = (Target("a", ObjectLayout("p"), required=False, rank=1), Target("b", ObjectLayout(), rank=0))
    first, second = Route("r", targets).bundle_targets(BundleFacts("test-a"))
    assert (first.target, first.required, first.rank) == ("a", False, 1)
    assert (second.target, second.required, second.rank) == ("b", True, 0)
    assert first.storage_key == "p/bundles/test-a/resources"
