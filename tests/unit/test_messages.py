"""What `decode` accepts, and how it refuses the rest. The numbers are those of the failure catalogue."""

import base64
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import Refused
from handlers.messages import (
    DEFAULT_LIMIT,
    BundleClosed,
    Command,
    ResourceFetched,
    _without_duplicates,
    decode,
    encode,
    json_schema,
)

BID = "17571960-2065-e0cd-cf71-8196d8577b7e"
CANARY = "hunter2canary"


def fetched(**changes: Any) -> dict[str, Any]:
    """A complete `resource.fetched`; `part__field=value` changes a field of a part."""
    content: dict[str, Any] = {
        "type": "resource.fetched",
        "version": 1,
        "id": "message-1",
        "bundle": {
            "bid": BID,
            "recipe_id": "fr",
            "primary_url": "https://example.com",
            "resources_count": 2,
            "meta": {"a": 1},
        },
        "resource": {
            "url": "https://example.com/page.html",
            "content_type": "text/html",
            "status_code": 200,
            "meta": {"b": [1]},
        },
        "payload": {"location": "s3://staging/x", "size": 123, "sha256": "0" * 64},
    }
    for path, value in changes.items():
        *parents, name = path.split("__")
        part = content
        for parent in parents:
            part = part[parent]
        part[name] = value
    return content


def closed(**bundle: Any) -> dict[str, Any]:
    return {
        "type": "bundle.closed",
        "version": 1,
        "id": "message-2",
        "bundle": {"bid": BID, "recipe_id": "fr", "resources_count": 2, **bundle},
    }


def raw(content: object) -> bytes:
    return json.dumps(content).encode()


def cloud_event(data: object, **more: object) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "source": "/fetcher",
        "type": "outer",
        "id": "event-1",
        "data": data,
        **more,
    }


def sns(content: object) -> dict[str, object]:
    return {"Type": "Notification", "MessageId": "sns-1", "Message": json.dumps(content)}


def refusal(body: bytes, limit: int = DEFAULT_LIMIT) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(body, limit)
    detail = caught.value.detail
    assert detail
    assert detail.isprintable(), "one line that no terminal obeys"
    assert len(detail) < 500
    assert not caught.value.retryable
    return caught.value


def test_plain_resource() -> None:
    command = decode(raw(fetched()))
    assert isinstance(command, ResourceFetched)
    assert (command.id, command.bundle.bid, command.bundle.resources_count) == ("message-1", BID, 2)
    assert command.resource.meta == {"b": [1]}
    assert (command.payload.size, command.payload.sha256) == (123, "0" * 64)


def test_only_what_is_needed() -> None:
    command = decode(
        raw(
            {
                "type": "resource.fetched",
                "version": 1,
                "id": "i",
                "bundle": {"bid": "test-a", "recipe_id": "r"},
                "resource": {"url": "u"},
                "payload": {"location": "l"},
            }
        )
    )
    assert isinstance(command, ResourceFetched)
    assert command.bundle.resources_count is None
    assert command.bundle.meta == {}
    assert (command.resource.content_type, command.payload.sha256) == (None, None)


def test_plain_close() -> None:
    command = decode(raw(closed(metadata={"run": "1"})))
    assert isinstance(command, BundleClosed)
    assert (command.bundle.resources_count, command.bundle.metadata) == (2, {"run": "1"})


WRAPPINGS: list[Callable[[dict[str, Any]], object]] = [
    cloud_event,
    lambda content: cloud_event(None, data_base64=base64.b64encode(raw(content)).decode()),
    sns,
    lambda content: sns(cloud_event(content)),
    lambda content: cloud_event(sns(content)),
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_wrapped_content_is_the_same_command(wrap: Callable[[dict[str, Any]], object]) -> None:
    assert decode(raw(wrap(fetched()))) == decode(raw(fetched()))


def test_a_cloud_event_lends_type_and_id() -> None:
    content = fetched()
    del content["type"], content["id"]
    command = decode(raw(cloud_event(content, type="resource.fetched")))
    assert isinstance(command, ResourceFetched)
    assert command.id == "event-1"


@pytest.mark.parametrize("data", [None, 3, "text", ["list"], base64.b64encode(b"{}").decode()])
def test_a_cloud_event_without_an_object_is_refused(data: object) -> None:
    assert refusal(raw(cloud_event(data))).reason == "malformed"


@pytest.mark.parametrize("text", ["!!!", "é", "YQ", "YQ==\n", "bm90IGpzb24="])
def test_bad_base64_is_refused(text: str) -> None:
    event = cloud_event(None, data_base64=text)
    assert refusal(raw(event)).reason == "malformed"


def test_too_many_wrappings_are_refused() -> None:
    error = refusal(raw(sns(cloud_event(cloud_event(fetched())))))
    assert (error.reason, error.detail) == ("malformed", "wrapped more than 2 times")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xff\xfe",
        b'{"id": "\xc3"}',
        b"\xef\xbb\xbf{}",
        raw(fetched()).decode().encode("utf-16"),
        b"3",
        b"null",
        b'"text"',
        b"[]",
        b"{",
        b"{} {}",
    ],
)
def test_case_73_what_is_no_json_object_is_malformed(body: bytes) -> None:
    assert refusal(body).reason == "malformed"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: raw({"Type": "Notification", "Message": text.decode()}),
        lambda text: raw(cloud_event(None, data_base64=base64.b64encode(text).decode())),
        lambda text: raw(cloud_event("HERE")).replace(b'"HERE"', text),
    ],
)
@pytest.mark.parametrize("levels", [101, 1_000, 100_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"specversion":'])
def test_case_74_depth(opening: bytes, levels: int, wrap: Callable[[bytes], bytes]) -> None:
    closing = b"]" if opening == b"[" else b"}"
    body = wrap(opening * levels + b"1" + closing * levels)
    assert refusal(body, limit=len(body)).reason == "malformed"


def test_case_74_brackets_in_a_string_are_no_levels() -> None:
    text = "[{," * 60_000 + '"\\' * 10
    body = raw(closed(metadata={"x": text, 'y"[': "\\"}))
    command = decode(body, len(body))
    assert isinstance(command, BundleClosed)
    assert command.bundle.metadata["x"] == text


def test_case_74_what_is_accepted_can_be_written_from_deep_down() -> None:
    def nested(depth: int) -> bytes:
        text = json.dumps(closed(metadata={"x": "HERE"}))
        return text.replace('"HERE"', "[" * depth + "]" * depth).encode()

    def accepted(depth: int) -> Command | None:
        try:
            return decode(nested(depth))
        except Refused:
            return None

    def write(command: BundleClosed, frames: int) -> str:
        return write(command, frames - 1) if frames else json.dumps(command.bundle.metadata)

    deepest = max((c for depth in range(1, 1_200) if (c := accepted(depth))), key=lambda c: len(encode(c)))
    assert isinstance(deepest, BundleClosed)
    assert write(deepest, 200)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1" * 1_000_000, "1e400", "-1e400"])
def test_case_74_numbers_that_are_none(value: str) -> None:
    body = raw(closed(metadata={"x": "HERE"})).replace(b'"HERE"', value.encode())
    assert refusal(body, limit=len(body)).reason == "malformed"


@pytest.mark.parametrize("value", ['"\\ud800"', '"\\udc00\\ud800"', '{"\\udfff": 1}'])
@pytest.mark.parametrize("wrap", [lambda content: content, sns])
def test_case_74_lone_surrogates(value: str, wrap: Callable[[object], object]) -> None:
    body = raw(wrap(closed(metadata={"x": json.loads(value)})))
    assert b"ud" in body
    assert "surrogate" in refusal(body).detail


def test_case_74_paired_surrogates_are_text() -> None:
    command = decode(raw(closed(metadata={"x": "😀"})))
    assert isinstance(command, BundleClosed)
    assert command.bundle.metadata == {"x": "😀"}


@pytest.mark.parametrize(
    "body",
    [
        raw(fetched()).replace(b'"id": "message-1"', b'"id": "message-1", "id": "other"'),
        raw(fetched()).replace(b'"size": 123', b'"size": 123, "size": 123'),
        raw(cloud_event(fetched())).replace(b'"id": "event-1"', b'"id": "x", "\\u0069d": "y"'),
    ],
)
def test_case_74_duplicate_names(body: bytes) -> None:
    error = refusal(body)
    assert error.reason == "malformed"
    assert "twice" in error.detail


def test_case_74_finding_the_duplicate_does_not_take_the_square_of_the_names() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = 2_000
    pairs: list[tuple[str, Any]] = [(Name(f"{number:05}"), 1) for number in range(names)]
    with pytest.raises(ValueError, match="twice"):
        _without_duplicates([*pairs, (Name(f"{names - 1:05}"), 2)])
    assert compared < 20 * names


def test_case_75_size_is_capped() -> None:
    body = raw(fetched(bundle__meta={"x": "y" * 300_000}))
    assert refusal(body).reason == "malformed"
    assert decode(body, limit=len(body)).id == "message-1"
    assert refusal(body, limit=len(body) - 1).reason == "malformed"


MANY = {
    "objects": "{}," * 10_001,
    "lists": "[[]]," * 5_001,
    "numbers": "1," * 50_001,
    "texts": '"",' * 50_001,
    "behind a string": '"\\\\","[",' + "[]," * 10_001,
}


@pytest.mark.parametrize("many", MANY)
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: raw(sns(json.loads(text)))])
def test_case_75_counts_are_capped_before_anything_is_made_of_them(
    many: str, wrap: Callable[[bytes], bytes]
) -> None:
    text = raw(closed(metadata={"x": ["HERE"]})).replace(b'"HERE"', MANY[many].rstrip(",").encode())
    body = wrap(text)
    assert "more than 10000 objects and lists" in refusal(body, limit=len(body)).detail


def test_case_75_what_a_message_takes_in_memory_is_bounded() -> None:
    worst = {
        "lists": "[" + ",".join(["[]"] * 9_990) + "]",
        "objects": "[" + ",".join(["{}"] * 9_990) + "]",
        "names": "{" + ",".join(f'"{n}":[]' for n in range(9_990)) + "}",
        "numbers": "[" + ",".join(["0.5"] * 49_990) + "]",
        "escapes": '"' + "\\u20ac" * 40_000 + '"',
    }
    for value in worst.values():
        body = raw(closed(metadata={"x": "HERE"})).replace(b'"HERE"', value.encode())
        tracemalloc.start()
        decode(body)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None, [1], {"password": CANARY * 9}])
def test_case_76_other_versions_are_refused(version: object) -> None:
    assert refusal(raw(fetched(version=version))).reason == "unknown_version"


@pytest.mark.parametrize("kind", ["resource.deleted", "Resource.fetched", "", None, 1, ["resource.fetched"]])
def test_case_76_other_types_are_refused(kind: object) -> None:
    error = refusal(raw(fetched(type=kind)))
    assert error.reason == "unknown_type"
    assert "bundle.closed, resource.fetched" in error.detail


def test_case_76_unknown_fields_are_ignored() -> None:
    more = fetched(new=1, bundle__new=2, resource__new=3, payload__new={"x": 4})
    assert decode(raw(more)) == decode(raw(fetched()))


BAD_BIDS = [
    "",
    "..",
    "../../etc",
    "a/b",
    f"{BID}/..",
    f"{BID}\n",
    f"{BID}\0",
    f" {BID}",
    "test-",
    "test-a b",
    "test-" + "x" * 10_000,
    "test-\u202eabc",
    "test-😀",
    "\uff11" + BID[1:],
]


@pytest.mark.parametrize("bid", BAD_BIDS)
def test_case_77_bids_that_are_no_path_segment_are_refused(bid: str) -> None:
    error = refusal(raw(fetched(bundle__bid=bid)))
    assert error.reason == "malformed"
    assert "bundle.bid" in error.detail


@pytest.mark.parametrize("name", ["id", "bundle__recipe_id", "resource__url", "payload__location"])
@pytest.mark.parametrize(
    "value", ["", "a\nb", "a\0", "a\x1b[31m", "a\x85b", "a\uffff", "\ufdd0", "\U0010fffe", "x" * 10_000]
)
def test_case_77_control_characters_and_lengths(name: str, value: str) -> None:
    error = refusal(raw(fetched(**{name: value})))
    assert error.reason == "malformed"
    assert name.replace("__", ".") in error.detail


@pytest.mark.parametrize("value", ["a/b", "..", "\u202eabc", "😀", "with space", "x" * 256])
def test_case_77_other_ids_stay_as_they_are(value: str) -> None:
    assert decode(raw(fetched(id=value))).id == value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("payload__size", -1),
        ("payload__size", "123"),
        ("payload__size", 1.5),
        ("payload__size", True),
        ("payload__size", 2**53),
        ("payload__size", 10**39),
        ("payload__sha256", "0" * 63),
        ("payload__sha256", "A" * 64),
        ("payload__sha256", "0" * 64 + "\n"),
        ("resource__status_code", 1000),
        ("resource__meta", [1]),
        ("bundle__resources_count", -1),
        ("bundle__resources_count", 10_000_001),
        ("bundle", None),
        ("resource", "text"),
    ],
)
def test_a_wrong_field_is_located(path: str, value: object) -> None:
    error = refusal(raw(fetched(**{path: value})))
    assert error.reason == "malformed"
    assert error.detail.startswith(path.replace("__", "."))


def test_a_missing_field_is_located() -> None:
    content = fetched()
    del content["payload"]["location"]
    assert refusal(raw(content)).detail == "payload.location: Field required"


@pytest.mark.parametrize(
    "changes",
    [
        {"payload__sha256": CANARY},
        {"bundle__bid": CANARY},
        {"bundle__meta": CANARY},
        {"resource__status_code": CANARY},
        {"payload__location": f"https://user:{CANARY}@host/\n"},
        {"resource__meta": {"token": CANARY}, "payload__size": "no"},
    ],
)
def test_case_99_no_value_of_a_field_is_repeated(changes: dict[str, object]) -> None:
    error = refusal(raw(fetched(**changes)))
    assert CANARY not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "version",
                    "id",
                    "bundle",
                    "resource",
                    "payload",
                    "data",
                    "specversion",
                    "data_base64",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def returns_or_refuses(body: bytes) -> None:
    refused: Refused | None = None
    try:
        command = decode(body)
        assert decode(encode(command)) == command
    except Refused as error:
        refused = error
    if refused is not None:
        assert refused.reason in {"malformed", "unknown_type", "unknown_version"}
        assert refused.detail.isprintable()


@given(st.binary())
def test_any_bytes(body: bytes) -> None:
    returns_or_refuses(body)


@given(JSON)
def test_any_json(content: object) -> None:
    returns_or_refuses(raw(content))


@given(st.sampled_from([fetched(), closed(), cloud_event(fetched()), sns(fetched())]), st.data())
def test_any_change_of_a_message(content: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(content)))
    changed = {**content, name: data.draw(JSON)}
    inner = changed.get("bundle")
    if isinstance(inner, dict):
        changed["bundle"] = {**inner, data.draw(st.sampled_from(sorted(inner) or ["x"])): data.draw(JSON)}
    returns_or_refuses(raw(changed))


@given(
    st.builds(
        fetched,
        id=st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=40),
        resource__url=st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=200),
        resource__meta=st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()),
        payload__size=st.none() | st.integers(min_value=0, max_value=2**53 - 1),
    )
)
def test_what_is_sent_is_what_arrives(content: dict[str, Any]) -> None:
    command = ResourceFetched.model_validate(content)
    assert decode(encode(command)) == command


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle__bid": "test-other"},
        {"resource__url": "https://example.com/other.html"},
        {"payload__size": 124},
        {"payload__sha256": "1" * 64},
        {"payload__sha256": None},
    ],
)
def test_the_fingerprint_tells_other_content(changes: dict[str, object]) -> None:
    assert decode(raw(fetched(**changes))).fingerprint != decode(raw(fetched())).fingerprint


def test_the_fingerprint_does_not_depend_on_id_or_staging() -> None:
    moved = decode(raw(fetched(id="other", payload__location="s3://elsewhere/x")))
    assert moved.fingerprint == decode(raw(fetched())).fingerprint


def test_the_fingerprint_of_a_close_tells_bundle_and_count() -> None:
    prints = {
        decode(raw(closed(**changes))).fingerprint
        for changes in ({}, {"resources_count": 3}, {"bid": "test-a"})
    }
    assert len(prints) == 3
    assert decode(raw(closed(metadata={"x": 1}))).fingerprint in prints


def test_the_schema_names_both_messages() -> None:
    schema = json_schema()
    assert set(schema["discriminator"]["mapping"]) == {"resource.fetched", "bundle.closed"}
    assert set(schema["$defs"]["ResourceFetched"]["required"]) >= {"id", "bundle", "resource", "payload"}
