"""The fields that the templates of keys are made of: what each stands for, and how any value becomes safe text in a segment.

Used by handlers/layout_templates.py. Pure.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from string import ascii_letters, digits, hexdigits
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, urlsplit

from handlers.bids import timestamp_ms
from handlers.naming import resource_id

VALUE_LIMIT: Final = 64
"""Longest text of a value; longer ones are cut, and a digest tells them apart."""

UNDATED: Final = "undated"
"""In place of the date of a bundle whose id tells none."""

HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
"""What Hive calls the partition of rows without a value (`hive.exec.default.partition.name`); Spark, Trino and Athena read
it as NULL, whatever the type of the column."""

DAY: Final = "%Y-%m-%d"

_NONE: Final = "~none"
_DIGEST: Final = 16
_TORN_ESCAPE: Final = re.compile(r"%[0-9A-F]?$")
_DATE_FORMAT: Final = re.compile(r"%[YmdHMSjGV](?:[-_.T/]?%[YmdHMSjGV])*")
_DEVICE: Final = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)")
"""https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file; the others hold what is encoded anyway."""
_META: Final = re.compile(r"meta\[([A-Za-z0-9_.-]{1,64})\]")

_SAFE: Final = frozenset(ascii_letters + digits + "-._~%")


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What keys of a bundle may be built from: the same in all its messages."""

    bid: str
    recipe_id: str = ""


@dataclass(frozen=True, slots=True)
class ResourceFacts:
    """What the key of a resource may be built from besides."""

    name: str
    """handlers/naming.py; no two resources of a bundle share it."""
    url: str = ""
    content_type: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a template: what it stands for, and what its text can look like."""

    name: str
    text: Callable[[BundleFacts, ResourceFacts], str | None]
    """Encoded; None where there is nothing."""
    longest: int = VALUE_LIMIT
    alphabet: frozenset[str] = _SAFE
    """The characters its text is made of."""
    width: int | None = None
    """The length of its text where that is always the same."""
    of_bundle: bool = False
    """It is the same for all resources of a bundle."""
    absent: str = _NONE
    """Its text where there is nothing: never the text of a value."""
    spans: bool = False
    """Its text may hold slashes."""

    def render(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        """Its text for that resource."""
        text = self.text(bundle, resource)
        return self.absent if text is None else text

    def as_partition(self) -> "Field":
        """The same, as the value of a Hive partition."""
        return replace(
            self,
            absent=HIVE_NULL,
            longest=max(self.longest, len(HIVE_NULL)),
            alphabet=self.alphabet | frozenset(HIVE_NULL),
        )


def encode(value: str, limit: int = VALUE_LIMIT) -> str:
    """`value` as text of letters, digits and `-._~%`, at most `limit` long: equal only for equal values.

    Everything else is percent-encoded, as Hive does it in the names of partitions, which engines undo. A dot or underscore in
    front is encoded too: engines overlook such names, and ours lie there. So is the first letter of a device of Windows, where
    `nul` is never a folder. `~` never stands for itself; it marks what was cut.
    """
    text = quote(value, safe="", errors="surrogatepass").replace("~", "%7E")
    if text[:1] in {".", "_"} or _DEVICE.match(text):
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if text.endswith("."):
        text = f"{text[:-1]}%2E"
    if len(text) > limit:
        kept = _TORN_ESCAPE.sub("", text[: limit - _DIGEST - 1])
        return f"{kept}~{sha256(text.encode()).hexdigest()[:_DIGEST]}"
    return text or "~"


def find_field(name: str, spec: str) -> Field:
    """The field called `name`, with what stands behind its colon. Raises `ValueError` that says what to write instead."""
    if name == "date":
        return _date(spec or DAY)
    found = FIELDS.get(name)
    if meta := _META.fullmatch(name):
        found = Field(name, _of_meta(meta[1]))
    if found is None:
        raise KeyError(name)
    if spec:
        raise ValueError(f"{{{name}}} takes nothing behind a colon, only {{date}} does; remove :{spec}")
    return found


def day_of(bid: str) -> str:
    """The day in a bundle's id, `2024-01-15`, or `undated`."""
    return _date(DAY).render(BundleFacts(bid), ResourceFacts(""))


def _date(spec: str) -> Field:
    if not _DATE_FORMAT.fullmatch(spec):
        raise ValueError(
            f"{{date:{spec}}} is not understood; write it of %Y %m %d %H %M %S %j %G %V with one of - _ . T / between them"
        )

    def text(bundle: BundleFacts, _: ResourceFacts) -> str | None:
        milliseconds = timestamp_ms(bundle.bid)
        if milliseconds is None:
            return None
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
        return re.sub("%(.)", lambda found: _DIRECTIVES[found[1]](moment), spec)

    longest = len(re.sub("%(.)", lambda found: "9" * _WIDTHS.get(found[1], 2), spec))
    between = frozenset(re.sub("%.", "", spec)) - {"/"}
    return Field(
        "date",
        text,
        longest=max(longest, len(UNDATED)),
        alphabet=frozenset(digits) | between | frozenset(UNDATED),
        of_bundle=True,
        absent=UNDATED,
        spans="/" in spec,
    )


# Not strftime: its %Y of the first millennium has less than four digits on some platforms.
_DIRECTIVES: Final[Mapping[str, Callable[[datetime], str]]] = MappingProxyType(
    {
        "Y": lambda moment: f"{moment.year:04}",
        "m": lambda moment: f"{moment.month:02}",
        "d": lambda moment: f"{moment.day:02}",
        "H": lambda moment: f"{moment.hour:02}",
        "M": lambda moment: f"{moment.minute:02}",
        "S": lambda moment: f"{moment.second:02}",
        "j": lambda moment: f"{moment.timetuple().tm_yday:03}",
        "G": lambda moment: f"{moment.isocalendar().year:04}",
        "V": lambda moment: f"{moment.isocalendar().week:02}",
    }
)
_WIDTHS: Final[Mapping[str, int]] = MappingProxyType({"Y": 4, "G": 4, "j": 3})


def _host(_: BundleFacts, resource: ResourceFacts) -> str | None:
    try:
        host = urlsplit(resource.url).hostname
    except ValueError:  # `http://[` and its like have none
        return None
    return encode(host) if host else None


def _extension(_: BundleFacts, resource: ResourceFacts) -> str | None:
    behind = resource.name.rpartition("-")[2].partition(".")[2]
    return encode(behind.lower()) if behind else None


def _media_type(resource: ResourceFacts) -> str:
    # Parameters such as the charset do not make another type, nor does case (RFC 9110, section 8.3.1).
    return (resource.content_type or "").partition(";")[0].strip().lower()


def _whole_type(_: BundleFacts, resource: ResourceFacts) -> str | None:
    media_type = _media_type(resource)
    return encode(media_type) if media_type else None


def _type(_: BundleFacts, resource: ResourceFacts) -> str | None:
    major = _media_type(resource).partition("/")[0]
    return encode(major) if major else None


def _subtype(_: BundleFacts, resource: ResourceFacts) -> str | None:
    minor = _media_type(resource).partition("/")[2]
    return encode(minor) if minor else None


def _table(bundle: BundleFacts, resource: ResourceFacts) -> str | None:
    given = resource.meta.get("table")
    if isinstance(given, str) and given:
        return encode(given)
    return _subtype(bundle, resource) or "resources"


def _of_meta(key: str) -> Callable[[BundleFacts, ResourceFacts], str | None]:
    def text(_: BundleFacts, resource: ResourceFacts) -> str | None:
        value = resource.meta.get(key)
        if value is None:
            return None
        return encode(value if isinstance(value, str) else json.dumps(value, sort_keys=True))

    return text


_BID_LIMIT: Final = 104
_NAME_LIMIT: Final = 116
_BID_LETTERS: Final = _SAFE - {"."}

FIELDS: Final[Mapping[str, Field]] = MappingProxyType(
    {
        each.name: each
        for each in (
            Field(
                "bid",
                lambda bundle, _: encode(bundle.bid, _BID_LIMIT),
                longest=_BID_LIMIT,
                alphabet=_BID_LETTERS,
                of_bundle=True,
            ),
            Field("recipe_id", lambda bundle, _: encode(bundle.recipe_id), of_bundle=True),
            Field("name", lambda _, resource: encode(resource.name, _NAME_LIMIT), longest=_NAME_LIMIT),
            Field(
                "resource_id",
                lambda _, resource: resource_id(resource.url),
                longest=16,
                alphabet=frozenset(hexdigits),
                width=16,
            ),
            Field("ext", _extension, longest=18, alphabet=frozenset(ascii_letters + digits + ".~%")),
            Field("host", _host),
            Field("content_type", _whole_type),
            Field("type", _type),
            Field("subtype", _subtype),
            Field("table", _table),
        )
    }
)
"""The fields without a parameter; `date` and `meta[…]` are made by `find_field`."""
