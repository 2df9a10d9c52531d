"""Hostile messages on their way from the queue's bytes to a plan; tests/fuzz/messages.py and bundles.py have what has to hold."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from backends.errors import InvalidKey
from handlers import layout_fields, naming, plan
from tests.fuzz import bundles, messages
from tests.support.hostile_messages import BATCHES, BID, as_json
from worker import render
from worker.queues.base import QueueError


def fetched(url: str = "https://example.com/a.html", **changes: Any) -> bytes:
    """A `resource.fetched` that every route but one takes; `part__field=value` changes a field of a part."""
    content: dict[str, Any] = {
        "type": "resource.fetched",
        "version": 1,
        "id": "m",
        "bundle": {"bid": BID, "recipe_id": "main"},
        "resource": {"url": url},
        "payload": {"location": "s3://bucket/staging/a"},
    }
    for path, value in changes.items():
        part, _, name = path.partition("__")
        content[part][name] = value
    return as_json(content).encode()


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(BATCHES)
def test_cases_73_to_77_and_102_whatever_arrives_is_planned_within_bounds_or_refused(
    bodies: list[bytes],
) -> None:
    messages.fuzz(bodies)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(bundles.BATCHES)
def test_cases_78_and_79_whatever_messages_say_of_a_bundle_it_is_announced_once(bodies: list[bytes]) -> None:
    bundles.fuzz(bodies)


SPELLINGS = [
    ("https://example.com/a%2Fb", "https://example.com/a/b", "https://example.com/a%252Fb", "https://example.com/a%2fb"),
    ("https://example.com/caf\u00e9", "https://example.com/cafe\u0301", "https://example.com/caf%C3%A9"),
    ("https://example.com/A.html", "https://example.com/a.html", "https://EXAMPLE.com/a.html", "HTTPS://example.com/a.html"),
    ("https://example.com/a", "https://example.com/a.", "https://example.com/a ", "https://example.com/a/", "https://example.com/a//"),
    ("https://example.com/con", "https://example.com/CON.txt", "https://example.com/..", "https://example.com/.", ".."),
    ("\u212a", "K", "k", "\ufb01", "fi", "\u0131", "i", "I", "\u0130", "\u00df", "ss", "SS"),
]  # fmt: skip


@pytest.mark.parametrize("urls", SPELLINGS)
def test_case_77_two_spellings_never_meet_even_where_a_file_system_folds_them(urls: tuple[str, ...]) -> None:
    messages.fuzz([fetched(url) for url in urls])


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (naming, "resource_id", lambda _url: "0" * 16),
        (naming, "resource_id", lambda url: sha256(url.casefold().encode()).hexdigest()[:16]),
        (layout_fields, "quote", lambda value, **_: value),
        (plan, "check_key", lambda key: key),
    ],
)
def test_the_fuzz_finds_what_it_is_there_to_find(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Callable[..., Any]
) -> None:
    bodies = [
        [fetched("https://example.com/1"), fetched("https://example.com/2")],
        [fetched("https://example.com/A.html"), fetched("https://example.com/a.html")],
        [fetched(bundle__recipe_id="../../etc")],
        [fetched(payload__location="s3://bucket/staging/../secret")],
    ]
    for each in bodies:
        messages.fuzz(each)
    monkeypatch.setattr(where, name, broken)
    with pytest.raises((AssertionError, InvalidKey)):  # noqa: PT012 - which of them finds it does not matter
        for each in bodies:
            messages.fuzz(each)


def test_case_102_an_error_is_lines_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    render.fail(QueueError("one\x1b[2J\r\u202e\ntwo\u2028"))
    assert capsys.readouterr().err == "transload: one\\x1b[2J\\r\\u202e\ntwo\\u2028\n"
