"""The wire schema v1: bytes from a queue become a `Command`, or `Refused` says why they never will.

Called by worker/pipeline.py and `transload explain`; worker/producer.py builds the same models to send them.

The content is accepted plain, as a structured-mode CloudEvent (CloudEvents JSON format 1.0.2, section 3) and wrapped in an
Amazon SNS notification (https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html). Unknown fields are
ignored; unknown types and versions are refused.
"""

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from backends.checksums import Algorithm, in_hex
from handlers.bids import is_bid
from handlers.errors import Refused
from handlers.storage_notifications import is_storage_notification

DEFAULT_LIMIT = 256 * 1024
"""Largest message decoded, in bytes."""

_DEPTH = 100
"""Levels of nesting read: whatever writes it again (database, notification, manifest) recurses once a level."""

_DIGITS = 40

_CONTAINERS = 10_000
"""Objects and lists in a message at most. The shortest has two bytes and becomes 64 in memory: a megabyte of them takes a second."""

_VALUES = 50_000
"""What stands in them at most, one not counted in each."""

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Always a match where a string begins, so that nothing is looked at twice."""

_ENVELOPES = 3
"""How many wrappings are opened: SNS around a CloudEvent is two; more is somebody playing."""

LARGEST = 2**53 - 1
"""Bytes of a payload at most: the largest number that every reader of JSON has exactly (RFC 7493, section 2.2)."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_CHARACTERS = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
"""What Unicode will never assign. SQS refuses a completion whose attributes have one."""


def _one_line(text: str) -> str:
    if _CONTROLS.search(text):
        raise ValueError("control characters are not allowed")
    if _NO_CHARACTERS.search(text):
        raise ValueError("code points that are no characters (as U+FFFF) are not allowed")
    return text


def _bid(text: str) -> str:
    if not is_bid(text):
        raise ValueError(
            "not a bundle id: use a UUID, 'bid:v1:registry:YYYYMMDDHHMMSS:hex8', 'test-...' or 'custom-...'"
        )
    return text


Bid = Annotated[str, Field(max_length=128), AfterValidator(_bid)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_line)]
Url = Annotated[str, Field(max_length=8192), AfterValidator(_one_line)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Crc32c = Annotated[str, Field(max_length=64), AfterValidator(partial(in_hex, "crc32c"))]
Crc64nvme = Annotated[str, Field(max_length=64), AfterValidator(partial(in_hex, "crc64nvme"))]
Md5 = Annotated[str, Field(max_length=64), AfterValidator(partial(in_hex, "md5"))]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Bundle(_Model):
    """The bundle a resource belongs to, as far as its fetcher knows it."""

    bid: Bid = Field(description="The bundle's id.")
    recipe_id: Name = Field(description="The recipe the fetch ran.")
    primary_url: Url = Field(default="", description="The URL the fetch began with.")
    resources_count: Count | None = Field(
        default=None, description="How many resources the bundle has, once known."
    )
    meta: dict[str, Any] = Field(default_factory=dict, description="Free-form, kept with the bundle.")


class ClosedBundle(Bundle):
    """The bundle when its fetch has ended."""

    resources_count: Count = Field(description="How many resources the bundle has: the last word.")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="Goes into the completion notification."
    )


class Resource(_Model):
    """One fetched thing."""

    url: Annotated[Url, Field(min_length=1)] = Field(
        description="Where it was fetched; names it within its bundle."
    )
    content_type: Annotated[Name, Field(max_length=256)] | None = Field(
        default=None, description="As the server said."
    )
    status_code: Annotated[int, Field(ge=0, le=999)] | None = Field(
        default=None, description="As the server said."
    )
    meta: dict[str, Any] = Field(default_factory=dict, description="Free-form, kept with the resource.")


class Checksums(_Model):
    """What stores and tools tell of the bytes besides SHA-256; kept in lower-case hex."""

    crc32c: Crc32c | None = Field(default=None, description="4 bytes, highest first, in base64 or hex.")
    crc64nvme: Crc64nvme | None = Field(default=None, description="8 bytes, highest first, in base64 or hex.")
    md5: Md5 | None = Field(default=None, description="16 bytes, in base64 or hex.")

    @property
    def given(self) -> dict[Algorithm, str]:
        """Those that are promised, by name."""
        named: dict[Algorithm, str | None] = {
            "crc32c": self.crc32c,
            "crc64nvme": self.crc64nvme,
            "md5": self.md5,
        }
        return {name: text for name, text in named.items() if text is not None}


class Payload(_Model):
    """Where the bytes wait."""

    location: Annotated[Url, Field(min_length=1)] = Field(
        description="A URL under a configured staging source."
    )
    size: Annotated[int, Field(ge=0, le=LARGEST)] | None = Field(
        default=None, description="In bytes; checked when given."
    )
    sha256: Sha256 | None = Field(default=None, description="Lower-case hex; checked when given.")
    checksums: Checksums | None = Field(
        default=None, description="Of the same bytes; each is checked when given."
    )
    etag: Annotated[Name, Field(max_length=256)] | None = Field(
        default=None,
        description="As staging tells it, without quotes; what has another one is not read. For stores that have ETags.",
    )

    @property
    def promised(self) -> Mapping[Algorithm, str]:
        """The checksums besides SHA-256, in hex."""
        return {} if self.checksums is None else self.checksums.given


class ResourceFetched(_Model):
    """`resource.fetched` v1: one payload lies in staging."""

    type: Literal["resource.fetched"] = "resource.fetched"
    version: Literal[1] = 1
    id: Name = Field(description="The producer's idempotency key.")
    bundle: Bundle
    resource: Resource
    payload: Payload

    @property
    def fingerprint(self) -> str:
        """Changes when the same `id` announces something else; where the payload is staged does not matter.

        Beside a SHA-256 other checksums say nothing new, so that one who learns to send them announces the same as before.
        """
        payload = self.payload
        known_by = [payload.promised] if payload.promised and payload.sha256 is None else []
        return _digest(self.type, self.bundle.bid, self.resource.url, payload.size, payload.sha256, *known_by)


class BundleClosed(_Model):
    """`bundle.closed` v1: the fetch has ended, this is the final count."""

    type: Literal["bundle.closed"] = "bundle.closed"
    version: Literal[1] = 1
    id: Name = Field(description="The producer's idempotency key.")
    bundle: ClosedBundle

    @property
    def fingerprint(self) -> str:
        """Changes when the same `id` closes another bundle or with another count."""
        return _digest(self.type, self.bundle.bid, self.bundle.resources_count)


Command = ResourceFetched | BundleClosed

_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])
_VERSIONS: Mapping[str, int] = MappingProxyType({"resource.fetched": 1, "bundle.closed": 1})


def decode(body: bytes, limit: int = DEFAULT_LIMIT) -> Command:
    """The command in a message's body.

    Raises `Refused` with `malformed`, `unknown_type` or `unknown_version` and one line that says what is wrong.
    """
    return command_in(content_of(body, limit))


def content_of(body: bytes, limit: int = DEFAULT_LIMIT) -> dict[str, Any]:
    """The JSON object a message is, out of its wrappings. Raises `Refused("malformed")`."""
    if len(body) > limit:
        raise Refused("malformed", f"the message has {len(body)} bytes; at most {limit} are read")
    return _unwrap(_parse(body))


def command_in(content: dict[str, Any]) -> Command:
    """The command that a message's content is. Raises `Refused` as `decode` does."""
    kind, version = content.get("type"), content.get("version")
    if not isinstance(kind, str) or kind not in _VERSIONS:
        if is_storage_notification(content):
            raise Refused(
                "unknown_type",
                "this is a notification of S3 or MinIO, and no staging source takes notifications: fetchers announce payloads, "
                "or staging.….notifications is set",
            )
        raise Refused("unknown_type", f"type is {_short(kind)}; known are {', '.join(sorted(_VERSIONS))}")
    if type(version) is not int or version != _VERSIONS[kind]:
        raise Refused(
            "unknown_version",
            f"version of {kind} is {_short(version)}; this release reads version {_VERSIONS[kind]}",
        )
    try:
        return _COMMANDS.validate_python(content)
    except ValidationError as exc:
        raise Refused("malformed", _first_problem(exc)) from exc


def encode(command: Command) -> bytes:
    """The command as a plain message body."""
    return command.model_dump_json().encode()


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every message version this release reads."""
    return _COMMANDS.json_schema()


def _parse(text: bytes | str) -> dict[str, Any]:
    """JSON as RFC 8259 and I-JSON (RFC 7493) have it: no duplicate names, no NaN, no lone surrogates, bounded depth."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        # Before there is anything but text. Only where it looks bad, strings are taken out of the count.
        if _too_many(text) and _too_many(_STRING.sub("", text)):
            raise Refused(
                "malformed", f"more than {_CONTAINERS} objects and lists, or than {_VALUES} values in them"
            )
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        if _too_deep(value):
            raise RecursionError
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as exc:
        raise Refused("malformed", f"not UTF-8 at byte {exc.start}") from exc
    except UnicodeEncodeError as exc:
        raise Refused("malformed", "a string holds a lone surrogate") from exc
    except RecursionError as exc:
        raise Refused("malformed", "nested too deeply") from exc
    except ValueError as exc:
        raise Refused("malformed", f"not JSON: {_short(str(exc), 160, quote=False)}") from exc
    if not isinstance(value, dict):
        raise Refused("malformed", f"a JSON object is expected, not {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"the name {_short(twice)} appears twice in one object")
    return found


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError("a number is beyond what a double holds")
    return number


def _bounded(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"an integer has more than {_DIGITS} digits")
    return int(text)


def _too_many(text: str) -> bool:
    return text.count("{") + text.count("[") > _CONTAINERS or text.count(",") > _VALUES


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (
                outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
            )
        ]
        if not level:
            return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unwrap(content: dict[str, Any]) -> dict[str, Any]:
    for _ in range(_ENVELOPES):
        if content.get("Type") == "Notification" and isinstance(content.get("Message"), str):
            content = _parse(cast("str", content["Message"]))
        elif "specversion" in content:
            content = _cloud_event(content)
        else:
            return content
    raise Refused("malformed", f"wrapped more than {_ENVELOPES - 1} times")


def _cloud_event(event: dict[str, Any]) -> dict[str, Any]:
    """The event's data, with `type` and `id` from the envelope where the data itself has none."""
    data = event.get("data")
    if data is None and isinstance(event.get("data_base64"), str):
        try:
            data = _parse(base64.b64decode(event["data_base64"], validate=True))
        except ValueError as exc:  # binascii.Error, or plain for text that is not ASCII
            raise Refused("malformed", "data_base64 of the CloudEvent is not base64") from exc
    if not isinstance(data, dict):
        raise Refused("malformed", "the CloudEvent carries no JSON object in data")
    return {"type": event.get("type"), "id": event.get("id"), **data}


def _first_problem(error: ValidationError) -> str:
    """`payload.sha256: String should match …`: the first problem, located; never the value (it may hold a secret)."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    # The first element of the location is the union's tag, which the reader did not write.
    where = ".".join(str(part) for part in first["loc"][1:]) or "message"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_short(where, 120, quote=False)}: {_short(first['msg'].removeprefix('Value error, '), 160, quote=False)}{more}"


def _short(value: object, limit: int = 60, *, quote: bool = True) -> str:
    text = ascii(value) if quote else ascii(value)[1:-1]
    return text if len(text) <= limit else f"{text[:limit]}…"


def _digest(*parts: object) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()
