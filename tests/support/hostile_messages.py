"""Messages as somebody writes them who means harm, or knows no better. Used by tests/fuzz/messages.py and the tests of cases 73 to 108.

`MESSAGES` begins with valid messages and changes them: a value here and there, a name twice, another encoding, a torn end. `HOSTILE`
are names that a store, a shell, a database, a terminal or a spreadsheet might take for more than a name.
"""

import base64
import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

BID: Final = "17571960-2065-e0cd-cf71-8196d8577b7e"

HOSTILE: Final = (
    *("..", ".", "../..", "/", "//", "a/../b", "/etc/passwd", "..\\..\\x", "C:\\x", "\\\\host\\share", "~", "~none"),
    *("%2F", "%2f", "%2e%2e%2f", "%252e", "%00", "a%2Fb", "a/b", "a%", "%zz", "+", "a+b", "a b", " a", "a ", "a.", "a..."),
    *("con", "CON", "nul.txt", "Com1", "lpt9.", "aux", "a:b", "a::$DATA", "a|b", 'a"b', "a*b?", "<a>", ".hidden", "_x", "_metadata"),
    *("é", "e\u0301", "É", "E\u0301", "ﬁ", "fi", "K", "\u212a", "ß", "SS", "\u0131", "I", "İ", "日本語", "a\u200bb", "\ufeffa", "\U0001f600"),
    *("\u202egpj.exe", "a\u2066b", "a\u2028b", "a\u2029b", "a\u0085b", "\x1b[2J\x1b[31m", "a\r\nb", "a\nb", "a\0b", "\x7f", "\uffff", "\ufdd0"),
    *("'; DROP TABLE bundles; --", "' OR '1'='1", "%s%s%n", "{0.__class__}", "{bid}", "{}", "${jndi:ldap://x/y}", "{{7*7}}"),
    *("$(touch pwned)", "`touch pwned`", "; touch pwned", "| touch pwned", "-rf", "--help", "=1+1", "@SUM(1)", "-1+1", "[red]x[/red]"),
    *("[link=file:///etc/passwd]x[/link]", "<script>", "os:system", "worker.cli:app", "__import__('os')", "!!python/name:os.system"),
    *("#x", "undated", "__HIVE_DEFAULT_PARTITION__", "bundles", "metadata.json", "x" * 65, "é" * 90, "x" * 9_000, "\U0001f600" * 300),
)  # fmt: skip

_BIDS: Final = (
    *(BID, BID.upper(), f"{BID[:-1]}f", "018f4d2e-7b1c-7000-8000-000000000000", "0" * 8 + "-0000" * 3 + "-" + "0" * 12),
    *("bid:v1:main:20240115103000:0a1b2c3d", "bid:v1:fr:20240115103000:0a1b2c3d", "bid:v1:fr:00000000000000:0a1b2c3d"),
    *("bid:v1:fr:99999999999999:00000000", "bid:v1:a-b:00010101000000:00000000", "bid:v1:fr:20240115103061:0a1b2c3d"),
    *("test-a", "test-A", "test-a-b", "custom-a", "custom-con", "99999999-9999-9999-9999-999999999999"),
)  # fmt: skip
_PLACES: Final = (
    *("s3://bucket/staging/a", "s3://bucket/staging/a/b.html", "s3://bucket/", "s3://other/staging/a", "file:///srv/staging/"),
    *("file:///srv/staging/a%20b", "https://files.example.com/in/", "sftp://host/in/", "file:///etc/passwd", "", "memory://main/"),
)  # fmt: skip
_NUMBERS: Final = (
    0,
    1,
    -1,
    2,
    999,
    1000,
    10_000_000,
    10_000_001,
    2**31,
    2**53,
    2**63,
    -(2**63) - 1,
    10**39,
    1.5,
    1e308,
    -0.0,
)


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON text that `json` would not write."""

    text: str


_RAW: Final = tuple(
    map(Raw, ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 41, "-" + "9" * 5_000, "0.1e-99999", "1E5", "01", "+1"))
) + tuple(map(Raw, ('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"', '{"a":1,"a":2}', "[" * 99 + "]" * 99)))  # fmt: skip
_RAW_NAME: Final = "@raw"

TEXTS: Final = st.sampled_from(HOSTILE) | st.text(max_size=20)
ACCEPTED: Final = tuple(
    text for text in HOSTILE if len(text) <= 256 and not re.search(r"[\x00-\x1f\x7f-\x9f\uffff\ufdd0]", text)
)
"""Those that `decode` takes for a name."""
NAMES: Final = st.sampled_from(ACCEPTED) | st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=20
)
"""What is a name to `decode`, however it may look to others."""
URLS: Final = (
    st.builds("https://example.com/{}".format, NAMES)
    | st.builds("https://{}/{}".format, NAMES, NAMES)
    | NAMES
    | st.sampled_from(
        [
            "http://[",
            "http://[::1%25x]/a",
            "https://ex\u2100mple/a",
            "https://example.com/a.html",
            "https://example.com/A.html",
        ]
        + [
            f"https://example.com/{name}"
            for name in (
                "a%2Fb",
                "a/b",
                "a%252Fb",
                "caf\u00e9",
                "cafe\u0301",
                "caf%C3%A9",
                "a.tar.gz",
                "x.con",
            )
        ]
    )
)
_LOCATIONS: Final = st.sampled_from(_PLACES) | st.builds("{}{}".format, st.sampled_from(_PLACES), NAMES)
_METAS: Final = st.dictionaries(
    st.sampled_from(["table", "a", "transforms"]) | TEXTS, TEXTS | st.sampled_from(_NUMBERS), max_size=3
)


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


_BUNDLES: Final = st.fixed_dictionaries(
    {"bid": st.sampled_from(_BIDS), "recipe_id": st.sampled_from(["fr", "Fr", "main"]) | NAMES},
    optional={"primary_url": URLS, "resources_count": _maybe(st.integers(0, 3)), "meta": _METAS},
)
_FETCHED: Final = st.fixed_dictionaries(
    {
        "type": st.just("resource.fetched"),
        "version": st.just(1),
        "id": NAMES,
        "bundle": _BUNDLES,
        "resource": st.fixed_dictionaries(
            {"url": URLS},
            optional={
                "content_type": _maybe(st.sampled_from(["text/html", "TEXT/HTML; charset=é", "/", "a/b/c"]) | NAMES),
                "status_code": _maybe(st.integers(0, 999)),
                "meta": _METAS,
            },
        ),
        "payload": st.fixed_dictionaries(
            {"location": st.sampled_from(["s3://bucket/staging/a", "file:///srv/staging/a%20b"] * 4) | _LOCATIONS.filter(bool)},
            optional={"size": _maybe(st.integers(0, 2**53)), "sha256": _maybe(st.just("0" * 64))},
        ),
    }
)  # fmt: skip
_CLOSED: Final = st.fixed_dictionaries(
    {
        "type": st.just("bundle.closed"),
        "version": st.just(1),
        "id": NAMES,
        "bundle": st.builds(
            lambda bundle, count, more: {**bundle, "resources_count": count, "metadata": more},
            _BUNDLES,
            st.integers(0, 3),
            _METAS,
        ),
    }
)
CONTENTS: Final = st.one_of(_FETCHED, _FETCHED, _FETCHED, _CLOSED)
"""What has the form of a message, whatever its values are."""

_LEAVES: Final = (
    TEXTS | URLS | _LOCATIONS | st.sampled_from(_NUMBERS) | st.sampled_from(_RAW) | st.booleans() | st.none()
)
_VALUES: Final = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def as_json(content: object, *, ascii_: bool = True) -> str:
    """JSON text with what is `Raw` in it as it stands."""
    found: list[str] = []

    def default(raw: Raw) -> dict[str, int]:
        found.append(raw.text)
        return {_RAW_NAME: len(found) - 1}

    text = json.dumps(content, default=default, ensure_ascii=ascii_)
    for number, raw in enumerate(found):
        text = text.replace(f'{{"{_RAW_NAME}": {number}}}', raw)
    return text


@st.composite
def _mutated(draw: st.DrawFn) -> dict[str, Any]:
    content = copy.deepcopy(draw(CONTENTS))
    for _ in range(draw(st.integers(0, 2))):
        part: Any = content
        while inner := [name for name, value in sorted(part.items()) if isinstance(value, dict) and value]:
            if draw(st.integers(0, 2)) == 0:
                break
            part = part[draw(st.sampled_from(inner))]
        name = draw(st.sampled_from(sorted(part)) | TEXTS)
        match draw(st.integers(0, 4)):
            case 0:
                part.pop(name, None)
            case 1:
                part[draw(TEXTS)] = part.pop(name, None)
            case _:
                part[name] = draw(_VALUES)
    return content


@st.composite
def _wrapped(draw: st.DrawFn) -> str:
    content: dict[str, Any] = draw(_mutated())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        match draw(st.integers(0, 3)):
            case 0:
                content = {"Type": "Notification", "Message": as_json(content)}
            case 1:
                content = {
                    "specversion": "1.0",
                    "data_base64": base64.b64encode(_bytes(as_json(content))).decode(),
                }
            case 2:
                content = {"specversion": "1.0", "type": "resource.fetched", "id": "e", "data": content}
            case _:
                content = {**content, "specversion": "1.0", "data": copy.copy(content)}
    return as_json(content, ascii_=draw(st.booleans()))


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    text = draw(_wrapped())
    body = _bytes(text)
    at = draw(st.integers(0, len(body)))
    nest = draw(st.sampled_from([50, 99, 101, 2_000, 20_000]))
    return draw(
        st.sampled_from(
            [
                b"\xef\xbb\xbf" + body,
                text.encode("utf-16", "surrogatepass"),
                body[:at],
                body + draw(st.sampled_from([b"{}", b"\0", b"\xff", b" \n", b",", b"//x"])),
                body[:at] + draw(st.binary(max_size=4)) + body[at:],
                body.replace(b'"id": ', b'"id": "first", "id": ', 1),
                body.replace(b"}", b",}", 1),
                body.replace(b"}", b"}}", 1),
                body.replace(b"1", b"[" * nest + b"]" * nest, 1),
                body[:at] + body[at + 1 :],
            ]
        )
    )


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


MESSAGES: Final = st.one_of(_wrapped().map(_bytes), _wrapped().map(_bytes), _spoilt(), st.binary(max_size=80))
"""Bodies. About half of them are messages after all."""

BATCHES: Final[st.SearchStrategy[Sequence[bytes]]] = st.one_of(
    st.lists(CONTENTS.map(lambda content: _bytes(as_json(content))), min_size=2, max_size=5),
    st.lists(MESSAGES, min_size=1, max_size=4),
)
"""Bodies that arrive one after the other: what two of them mean must not meet."""
