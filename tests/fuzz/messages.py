"""Fuzz target: whatever arrives is a command with a plan inside what is configured, or refused; nothing else, and soon.

`fuzz` takes what `tests.support.hostile_messages.BATCHES` gives. Called by tests/unit/test_hostile_messages.py for a few dozen
examples. What is written of a message once it is planned, tests/fuzz/writing.py looks at.
"""

import os
import re
import signal
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import FrameType, MappingProxyType
from typing import Final

from backends.base import check_key
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.layouts import TEMPLATES, make_layout
from handlers.messages import Command, decode, encode
from handlers.plan import Plan, StagingSource, StorePlan
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Match, Route, Routes, Target
from tests.fuzz.writing import written
from worker.redaction import one_line

LIMIT: Final = 64 << 10
"""Bytes of a message."""
SECONDS: Final = 10.0
"""Of processor time for one batch, which takes some milliseconds: what takes so long hangs."""

DECODING: Final = frozenset({"malformed", "unknown_type", "unknown_version"})
PLANNING: Final = frozenset({"staging_not_allowed", "no_route"})

STAGING: Final = (
    StagingSource("s3", "s3://bucket/", "staging"),
    StagingSource("disk", "file:///srv/staging/"),
    StagingSource("disk-part", "file:///srv/other/", "in/here"),
    StagingSource("web", "https://files.example.com/in/"),
    StagingSource("ssh", "sftp://host/in/", "drop"),
)
BY_ID: Final = ("oc", "dated", "{bid}.{name}", "{name}.{bid}", "{bid}/{resource_id}")
"""Layouts whose keys follow from the ids alone, whatever else messages say."""
LAYOUTS: Final = (
    *BY_ID,
    *sorted({"oc-v1", *TEMPLATES} - set(BY_ID)),
    "{recipe_id}/{date:%Y/%m}/{bid}/{resource_id}",
    "{ext}/{bid}/{name}",
    "x={meta[a]}-{recipe_id}/{bid}/{resource_id}{ext}",
    "{host}/{type}/{subtype}/{content_type}/{table}/{date:%G-%V}/{bid}.{ext}/{resource_id}.x",
)
_PLACES: Final = (("", True), ("tenants/a", False))
"""Prefixes, each with whether the store keeps attributes."""
_ROOT: Final = PurePosixPath("/srv/storage")


def _targets() -> Mapping[str, tuple[Target, str, str]]:
    """By name: the target, its prefix, its layout."""
    return MappingProxyType(
        {
            f"{layout} below {prefix!r}": (
                Target(
                    f"{layout} below {prefix!r}",
                    make_layout(layout, prefix, keeps_attributes=keeps_attributes),
                    archive="zip" if layout != "oc-v1" else "",
                ),
                prefix,
                layout,
            )
            for layout in LAYOUTS
            for prefix, keeps_attributes in _PLACES
        }
    )


def _handlers() -> Handlers:
    """Each route leads to every target."""
    every = tuple(target for target, _, _ in TARGETS.values())
    routes = Routes(
        (
            Route("other-queue", every, Match({"queue": ["else*"]})),
            Route("recipe", every, Match({"recipe_id": ["fr", "*a*a*a*a*a*a*b"], "url": ["*x*x*x*x*x*x*y", "*.html"]})),
            Route("type", every, Match({"content_type": ["text/*", "*/*/*"]})),
            Route("most", every, Match({"recipe_id": ["[!#]*"]})),
        ),
        "resources",
    )  # fmt: skip
    return Handlers(ResourceFetchedHandler(STAGING, routes), BundleClosedHandler(routes))


TARGETS: Final = _targets()
HANDLERS: Final = _handlers()

_DEVICE: Final = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")

Owner = tuple[str, str, str]
"""Whose a key is: the kind of object, the bid, the URL where there is one."""


def fuzz(bodies: Sequence[bytes]) -> None:
    """Raises `AssertionError` where a property does not hold."""
    with _soon():
        owners: dict[tuple[str, str], Owner] = {}
        keys: dict[tuple[str, Owner], str] = {}
        for body in bodies:
            command = decoded(body)
            plan = None if command is None else planned(command)
            if plan is None:
                continue
            for target, key, owner in keys_of(plan):
                _inside(target, key)
                assert owners.setdefault((target, key), owner) == owner, f"{target}: two ids on {key!a}"
                # A file system may not tell spellings apart, and two URLs do not meet there either.
                kind, bid, url = owner
                folded = kind, _folded(bid), url
                assert owners.setdefault((target, f"folded {_folded(key)}"), folded) == folded, f"{key!a}"
                if TARGETS[target][2] in BY_ID:
                    assert keys.setdefault((target, owner), key) == key, f"{target}: two keys of {owner!a}"
            written(plan)


def decoded(body: bytes) -> Command | None:
    """The command; None when it is refused as it should be."""
    refused: Refused | None = None
    try:
        command = decode(body, LIMIT)
    except Refused as exc:
        refused = exc
    if refused is not None:
        assert refused.reason in DECODING
        _one_bounded_line(refused)
        return None
    assert decode(encode(command), 4 * LIMIT) == command
    return command


def planned(command: Command) -> Plan | None:
    """The plan, the same each time; None when it is refused as it should be."""
    refused: Refused | None = None
    try:
        plan = HANDLERS.plan(command)
    except Refused as exc:
        refused = exc
    if refused is not None:
        assert refused.reason in PLANNING
        _one_bounded_line(refused)
        return None
    assert HANDLERS.plan(command) == plan
    if isinstance(plan, StorePlan):
        _read_inside(plan)
    return plan


def keys_of(plan: Plan) -> Iterator[tuple[str, str, Owner]]:
    """Every key with its target and its owner."""
    bid = plan.command.bundle.bid
    if isinstance(plan, StorePlan):
        url = plan.command.resource.url
        for write in plan.writes:
            yield write.target, write.key, ("resource", bid, url)
            if write.sidecar_key is not None:
                yield write.target, write.sidecar_key, ("sidecar", bid, url)
    for place in plan.bundle_targets:
        yield place.target, place.manifest_key, ("manifest", bid, "")
        if place.archive:
            yield place.target, place.archive_key, ("archive", bid, "")


def _inside(target: str, key: str) -> None:
    """Below the prefix, and so for whoever makes a path of it: the same name, nowhere else, short enough."""
    prefix = TARGETS[target][1]
    assert check_key(key) == key
    assert not prefix or key.startswith(f"{prefix}/"), f"{target}: {key!a}"
    path = os.path.normpath(f"{_ROOT}/{key}")
    assert path == f"{_ROOT}/{key}", f"{target}: {key!a}"
    assert PurePosixPath(path).is_relative_to(_ROOT / prefix)
    assert key.isascii()
    assert key.isprintable()
    for segment in key.split("/"):
        assert len(segment) <= 255
        assert not segment.endswith((".", " "))
        assert not _DEVICE.match(segment), f"{target}: {key!a}"


def _read_inside(plan: StorePlan) -> None:
    (source,) = (each for each in STAGING if each.name == plan.source.staging)
    key = plan.source.key
    assert check_key(key) == key
    assert plan.command.payload.location.startswith(source.location)
    assert not source.prefix or key.startswith(f"{source.prefix}/")
    assert source.key_of(source.location_of(key)) == key
    assert PurePosixPath(os.path.normpath(_ROOT / key)).is_relative_to(_ROOT / source.prefix)


def _one_bounded_line(refused: Refused) -> None:
    text = str(refused)
    assert refused.detail
    assert text.isprintable(), text
    assert one_line(text) == text
    assert len(text) < 16 << 10


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


@contextmanager
def _soon() -> Iterator[None]:
    """Ends what takes too much processor time; waiting, as for a busy machine, does not count."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"a batch of messages took more than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
