"""What is to be done for a message: frozen data, made without I/O, carried out by handlers/execute.py.

`transload explain` prints these plans; the tests of the handlers compare them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from backends.base import Attributes, check_key
from backends.checksums import Algorithm
from backends.errors import InvalidKey
from handlers.errors import Refused
from handlers.messages import BundleClosed, ResourceFetched
from handlers.transforms.base import Limits, Transform
from handlers.transforms.max_size import MaxSize


@dataclass(frozen=True, slots=True)
class StagingSource:
    """One place payloads may be read from. `location` ends in `/` and is what messages' locations must begin with."""

    name: str
    location: str
    prefix: str = ""

    def key_of(self, location: str) -> str | None:
        """The key that `location` names within this source, or None when it lies elsewhere.

        Raises `Refused` when it lies under this source only by its spelling (`..`, empty segments, NUL).
        """
        if not location.startswith(self.location):
            return None
        rest = location[len(self.location) :]
        if self._web and not {"?", "#"}.isdisjoint(rest):
            raise Refused("staging_not_allowed", "location: a query or a fragment is no part of a key")
        key = unquote(rest, errors="strict") if self._encoded else rest
        try:
            check_key(key)
        except InvalidKey as exc:
            raise Refused("staging_not_allowed", f"location: {exc}") from exc
        return key if not self.prefix or key.startswith(f"{self.prefix}/") else None

    def location_of(self, key: str) -> str:
        """The URL that `key_of` turns back into `key`."""
        return self.location + (quote(key) if self._encoded else key)

    @property
    def _web(self) -> bool:
        return urlsplit(self.location).scheme in {"http", "https"}

    @property
    def _encoded(self) -> bool:
        """The URLs of files (RFC 8089) and of the web are percent-encoded; the keys of object stores are written raw by every tool."""
        return self._web or urlsplit(self.location).scheme == "file"


@dataclass(frozen=True, slots=True)
class BundleTarget:
    """Where a bundle lies in one target."""

    target: str
    storage_key: str
    manifest_key: str
    required: bool = True
    """The bundle is not complete without what belongs there."""
    rank: int = 0
    """The target's place in the configuration; the first required one is announced."""
    archive: str = ""
    """The format in which all its resources are archived there once it is complete (handlers/bundling); empty: they are not."""
    archive_key: str = ""
    """Where that archive lies."""


@dataclass(frozen=True, slots=True)
class Source:
    """The payload to read, and what is promised of it."""

    staging: str
    key: str
    size: int | None
    sha256: str | None
    checksums: Mapping[Algorithm, str] = field(default_factory=dict)
    """Other checksums that are promised, in hex."""
    etag: str | None = None
    """The version that is meant, as staging tells it; None: whatever lies there."""

    @property
    def promises(self) -> bool:
        """Whether there is anything to prove."""
        return self.size is not None or self.sha256 is not None or bool(self.checksums)


@dataclass(frozen=True, slots=True)
class Write:
    """One object to write from the payload; `sidecar_key` is set where facts need a file of their own."""

    target: str
    key: str
    sidecar_key: str | None
    attributes: Attributes
    required: bool = True
    server_copy: bool = True
    """The target may copy the payload by itself where staging is in the same store."""
    member: str = ""
    """For one entry of an archive: what the archive calls it."""


@dataclass(frozen=True, slots=True)
class StorePlan:
    """For `resource.fetched`: read the source once, for all writes."""

    command: ResourceFetched
    route: str
    resource_id: str
    source: Source
    writes: tuple[Write, ...]
    bundle_targets: tuple[BundleTarget, ...]
    transforms: tuple[Transform, ...] = ()
    """Between source and writes; with any, the keys of `writes` are where it all begins, and may not be where it ends."""
    limits: Limits = field(default_factory=Limits)
    """Of what the transforms may make of the payload."""
    max_size: MaxSize | None = None
    """Of what is stored. Among the transforms already, unless the payload's promised size shows that it is kept."""
    deduplicate: bool = False
    """Whether an identical payload that the route has stored may stand for this one."""


@dataclass(frozen=True, slots=True)
class ClosePlan:
    """For `bundle.closed`: nothing to move, only something to record."""

    command: BundleClosed
    route: str
    bundle_targets: tuple[BundleTarget, ...]


Plan = StorePlan | ClosePlan


def find_source(sources: Sequence[StagingSource], location: str) -> tuple[StagingSource, str]:
    """The configured source that `location` lies in, and its key there.

    Raises `Refused("staging_not_allowed")` for every other place: a message never widens what was configured.
    """
    for source in sources:
        try:
            key = source.key_of(location)
        except UnicodeDecodeError as exc:
            raise Refused(
                "staging_not_allowed", "location is not UTF-8 once its percent-encoding is undone"
            ) from exc
        if key is not None:
            return source, key
    known = ", ".join(f"{source.location}{source.prefix}" for source in sources)
    raise Refused(
        "staging_not_allowed",
        f"location {_shown(location)!a} is not under a configured staging source ({known})",
    )


def _shown(location: str) -> str:
    """Without what may be a credential: userinfo and query."""
    return re.sub(r"://[^/\s]*@", "://…@", location.partition("?")[0])[:200]
