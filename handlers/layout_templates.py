"""Keys by a template: `{recipe_id}/{date:%Y/%m}/{bid}/{name}`. What could give a bad key is refused before there is one.

Called by handlers/layouts.py, and through it by worker/settings_places.py, which checks templates. Pure.

What a template that is accepted promises, whatever recipes, URLs and metadata hold: no two resources, nor two bundles, share
a key; no key is also the folder of another one; every key is ASCII, within the limits of stores, and engines that read
partitions see payloads only, because manifests, archives and sidecars have names with `_` in front and payloads never do.

Spark overlooks such names but for those that hold a `=` or begin with `_metadata` or `_common_metadata`
(`HadoopFSUtils.shouldFilterOutPathName`); ours never do.
"""

import difflib
import re
from dataclasses import dataclass
from string import Formatter
from typing import Final

from handlers.layout_fields import FIELDS, BundleFacts, Field, ResourceFacts, day_of, encode, find_field

LONGEST: Final = 511
"""Bytes of a key below its prefix at most: a prefix has up to 512, a key 1024 (backends/base.py)."""
SEGMENT_LIMIT: Final = 255
"""Bytes of a segment at most: the NAME_MAX of common file systems."""

_NO_RESOURCE: Final = ResourceFacts("")
_MANIFESTS: Final = "_bundles"
_SIDECAR: Final = ("_meta.", ".json")
_OUTLANDISH: Final = re.compile(r"[^A-Za-z0-9._=,+@!()~/-]")

Part = str | Field
Segment = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class TemplateLayout:
    """Keys by the segments of a template; with `sidecars` the facts about a resource lie beside it."""

    segments: tuple[Segment, ...]
    prefix: str = ""
    sidecars: bool = False

    def storage_key(self, bundle: BundleFacts) -> str:
        """The deepest folder that holds all resources of the bundle; other bundles' may lie there too."""
        folders = []
        for segment in self.segments[:-1]:
            if not all(isinstance(part, str) or part.of_bundle for part in segment):
                break
            folders.append(_render(segment, bundle, _NO_RESOURCE))
        return _join(self.prefix, *folders)

    def resource_key(self, bundle: BundleFacts, resource: ResourceFacts) -> str:
        """By the template."""
        return _join(self.prefix, *(_render(segment, bundle, resource) for segment in self.segments))

    def sidecar_key(self, resource_key: str) -> str | None:
        """`_meta.{name}.json`, beside the resource."""
        if not self.sidecars:
            return None
        folder, slash, name = resource_key.rpartition("/")
        return f"{folder}{slash}{name.join(_SIDECAR)}"

    def manifest_key(self, bundle: BundleFacts) -> str:
        """`{prefix}/_bundles/{day}/_{bid}.json`."""
        return self._beside(bundle, "json")

    def archive_key(self, bundle: BundleFacts, suffix: str) -> str:
        """Beside the manifest: `{prefix}/_bundles/{day}/_{bid}.zip`."""
        return self._beside(bundle, suffix)

    def _beside(self, bundle: BundleFacts, suffix: str) -> str:
        return _join(self.prefix, _MANIFESTS, day_of(bundle.bid), f"_{encode(bundle.bid, 104)}.{suffix}")


def described_by(key: str) -> str | None:
    """The key of the resource that a sidecar is about; None for what is no sidecar's key."""
    folder, slash, name = key.rpartition("/")
    head, tail = _SIDECAR
    if len(name) <= len(head + tail) or not (name.startswith(head) and name.endswith(tail)):
        return None
    return f"{folder}{slash}{name.removeprefix(head).removesuffix(tail)}"


def parse(text: str) -> tuple[Segment, ...]:
    """The segments of a template. Raises `ValueError` that says what is wrong with it and what to write instead."""
    if len(text) > LONGEST:
        raise ValueError(f"a template has at most {LONGEST} characters; shorten it")
    segments: list[list[Part]] = [[]]
    for literal, field in _pieces(text):
        if found := _OUTLANDISH.search(literal):
            raise ValueError(
                f"the character {found[0]!a} is not for keys; use letters, digits and . _ - = , + @ ! ( ) ~ between the fields"
            )
        first, *others = literal.split("/")
        segments[-1] += [first] if first else []
        segments += [[other] if other else [] for other in others]
        segments[-1] += [field] if field else []
    checked = tuple(_checked(tuple(segment)) for segment in segments)
    if any(isinstance(part, str) and "=" in part for part in checked[-1]):
        raise ValueError(
            "a file's name holds '=', so that Spark would take a sidecar beside it for a partition; put a slash behind the field"
        )
    _check_fields(checked)
    _check_lengths(checked)
    return checked


def opening(segments: tuple[Segment, ...]) -> list[frozenset[str]]:
    """The characters that a key can begin with, place by place, as far as that can be told."""
    found: list[frozenset[str]] = []
    for part in segments[0]:
        if isinstance(part, Field):
            return [*found, part.alphabet]
        found += [frozenset(character) for character in part]
    return [*found, frozenset("/")]


def _pieces(text: str) -> list[tuple[str, Field | None]]:
    try:
        pieces = [*Formatter().parse(text)]
    except ValueError as exc:
        raise ValueError(f"the braces do not pair ({exc}); write a field as {{name}}") from exc
    return [
        (literal, None if name is None else _field(name, spec or "", conversion))
        for literal, name, spec, conversion in pieces
    ]


def _field(name: str, spec: str, conversion: str | None) -> Field:
    if conversion is not None:
        raise ValueError(f"{{{name}}} takes no conversion; remove !{conversion}")
    try:
        return find_field(name, spec)
    except KeyError as exc:
        known = [*FIELDS, "date", "meta[…]"]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {{{close[0]}}}?" if close else f"there are: {', '.join(sorted(known))}"
        raise ValueError(f"no field is called {name[:60]!a}; {hint}") from exc


def _checked(segment: Segment) -> Segment:
    """The segment, with the value of a Hive partition as such."""
    match segment:
        case ():
            raise ValueError("an empty segment; no slash in front, at the end, or beside another one")
        case (("." | "..") as dots,):
            raise ValueError(f"a segment {dots!r} leads elsewhere; name the place directly")
        case (str(first), *_) if first[0] in "._":
            raise ValueError(
                f"the segment {first!r} begins with {first[0]!r}: such names are kept for manifests and sidecars; rename it"
            )
        case (*_, str(last)) if last.endswith("."):
            raise ValueError("a segment ends with a dot, which some stores drop; remove it")
        case (str(first), Field() as field) if first.endswith("="):
            segment = (first, field.as_partition())
    for part in segment:
        if isinstance(part, Field) and part.spans and len(segment) > 1:
            raise ValueError("a {date:…} with slashes stands between slashes; put one before and behind it")
    return segment


def _check_fields(segments: tuple[Segment, ...]) -> None:
    """Refuse a template from whose keys bundle and resource could not be read again: then two might share one."""
    parts = [(segment, index) for segment in segments for index, _ in enumerate(segment)]
    for names in (("bid",), ("name", "resource_id")):
        wanted = " or ".join(f"{{{name}}}" for name in names)
        places = [(segment, index) for segment, index in parts if _name(segment[index]) in names]
        if not places:
            raise ValueError(f"{wanted} is missing: without it two objects could have one key; add it")
        if not any(_is_told(segment, index) for segment, index in places):
            raise ValueError(
                f"where {wanted} begins or ends cannot be told, so that two objects could have one key; "
                "give it a segment of its own, or write {bid}.{name}"
            )


def _is_told(segment: Segment, index: int) -> bool:
    """Whether the text of a part can be cut out of the text of its segment again, whatever all values are."""
    left = _boundaries(segment)
    mirrored = tuple(part[::-1] if isinstance(part, str) else part for part in reversed(segment))
    right = _boundaries(mirrored)[::-1]
    return all(left[place] or right[place] for place in (index, index + 1))


def _boundaries(parts: Segment) -> list[bool]:
    """Of each place between parts, and of both ends: whether a reader who begins at the left finds it."""
    found = [True]
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        ends = (
            isinstance(part, str)
            or part.width is not None
            or (isinstance(behind, str) and behind[0] not in part.alphabet)
        )
        found.append(found[-1] and ends)
    found[-1] = True
    return found


def _check_lengths(segments: tuple[Segment, ...]) -> None:
    lengths = [
        sum(len(part) if isinstance(part, str) else part.longest for part in each) for each in segments
    ]
    beside = sum(map(len, _SIDECAR))
    longest = max([*lengths[:-1], lengths[-1] + beside])
    if longest > SEGMENT_LIMIT:
        raise ValueError(
            f"a segment could have {longest} bytes, more than the {SEGMENT_LIMIT} of a file's name; put a slash between its fields"
        )
    if sum(lengths) + len(lengths) - 1 + beside > LONGEST:
        raise ValueError(
            f"a key could have {sum(lengths) + len(lengths) - 1 + beside} bytes below the prefix, more than {LONGEST}; "
            "leave some fields out"
        )


def _name(part: Part) -> str:
    return "" if isinstance(part, str) else part.name


def _render(segment: Segment, bundle: BundleFacts, resource: ResourceFacts) -> str:
    return "".join(part if isinstance(part, str) else part.render(bundle, resource) for part in segment)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
