"""The port of every place bytes rest: staging is read through it, targets are written through it.

The contract all adapters keep, proven by the suite in `backends.testing`:

- Keys are relative, `/`-separated, non-empty UTF-8 without `.`/`..`/empty segments, NUL or a leading `/`
  (`check_key`); anything else is `InvalidKey`, before any I/O.
- `write` is atomic and create-only. A reader sees the whole object or none. If the key is taken, equal content
  (size and SHA-256) makes the write a success with `created=False`; other content is `Conflict`, and what lay there stays.
- When the chunk iterator raises, or the caller is cancelled, nothing appears under the key and nothing is left
  behind: no temporary file, no open multipart upload. The iterator's own exception comes out unchanged.
- When `write` returns, the object survives a crash of this machine (or the store's word for it has been given).
- Memory is bounded by a few chunks, whatever the size.
- All methods may be called concurrently. Whoever constructs a backend calls `aclose`, once.
- Only errors of `backends.errors` come out, besides the iterator's own and `CancelledError`.
- What `Features` says a backend cannot do raises `Unsupported`, before any I/O.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict

from backends.checksums import Algorithm
from backends.errors import InvalidKey

CHUNK_SIZE = 1 << 20
"""Bytes a reader hands out at a time (the last chunk is shorter): large enough to amortise a thread hop."""

KEY_LIMIT = 1024
"""Longest key, in UTF-8 bytes: S3's limit, the smallest among the object stores."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a backend can do beyond the port's minimum."""

    attributes: bool
    """Keeps `Attributes` with the object and returns them from `stat`."""
    server_copy: bool = False
    """`copy_from` can move bytes inside the store without this process seeing them."""
    reads: bool = True
    """`open` and `stat` work. Without them a write cannot be compared with what lies there."""
    lists: bool = True
    """`list` works."""
    deletes: bool = True
    """`delete` works."""
    create_only: bool = True
    """`write` never replaces other content. False only where a store that is not ours gives no way to tell."""
    copy_proves: frozenset[Algorithm] = frozenset()
    """The checksums of a `Promise` that `copy_from` can hold the store's own to. It is given no others."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What travels with an object besides its bytes. Backends without `Features.attributes` drop them silently."""

    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata. Adapters encode names and values for their store and cut them to its limit."""


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store tells of one object without reading it."""

    key: str
    size: int
    etag: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of a durable write: what lies under `key` now."""

    key: str
    size: int
    sha256: str
    etag: str | None = None
    version: str | None = None
    created: bool = True
    """False when an identical object lay there already."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is said of an object before anybody has read it; None where nothing is."""

    size: int | None = None
    sha256: str | None = None
    checksums: Mapping[Algorithm, str] = field(default_factory=dict)
    """In hex."""


class BackendOptions(BaseModel):
    """What an adapter is configured with; each adapter's `Options` extends it. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def unverified(self) -> str | None:
        """What these options leave unverified of whoever answers, and the option that does: a line for a warning. None: nothing."""
        return None


class StorageBackend(Protocol):
    """See the module's docstring for what holds everywhere; adapters document only how they differ."""

    @property
    def features(self) -> Features:
        """What this backend can do beyond the minimum."""
        ...

    @property
    def location(self) -> str:
        """The URL every key of this backend hangs under, ending in `/`: `s3://bucket/`, `file:///srv/storage/`."""
        ...

    @property
    def write_buffer(self) -> int:
        """About how many bytes one `write` holds in memory at most, whatever the object's size."""
        ...

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read one object as chunks of at most `CHUNK_SIZE` bytes. An empty object yields nothing.

        Raises `NotFound` on entering the context; a read that ends early raises `Unavailable`, never a short stream.
        """
        ...

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """Store the chunks (any sizes, `b""` included) under `key`, atomically and create-only.

        Raises `Conflict` when other content lies there.
        """
        ...

    async def stat(self, key: str) -> ObjectStat | None:
        """The object's facts, or None when there is none."""
        ...

    def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """Every object whose key starts with `prefix` (a plain string prefix, all pages), in key order.

        Temporary objects of unfinished writes are not among them. `content_type` and `metadata` may be missing.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove the object. True if it was there; a store that cannot tell looks first."""
        ...

    async def copy_from(
        self, source: "StorageBackend", source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """Copy inside the store, without the bytes passing through this process; atomic and create-only as `write`.

        `source` may be wrapped (backends/wrapper.py). The receipt's SHA-256 is the store's own of the copy, or one computed
        here where reading is free of network. Where neither can be had, it is the promised one, provided the store shows
        source and copy to have the same checksum. Size, digest and, of those in `features.copy_proves`, every promised
        checksum as the store shows it of the source must be the promised ones: `IntegrityError`, and nothing under `key`,
        otherwise.

        Raises `Unsupported`, before anything is written, unless `features.server_copy`, both sides lie in the same store and
        the copy can be proven so, each promised checksum with it: the caller then streams. Raises `NotFound` when the source is missing, `Conflict`.
        """
        ...

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Remove what killed writers left under `prefix` (temporary files, open uploads), untouched for `older_than` seconds.

        Returns how many; 0 where nothing can be left. A write that began longer ago looks the same: if it is swept, it
        fails with an error that may be tried again, and never leaves a torn object. Several may sweep at once.
        """
        ...

    async def health(self) -> None:
        """Return when the store answers and this backend may read and write it; raise a `StorageError` otherwise."""
        ...

    async def aclose(self) -> None:
        """Release connections and threads. Calling it twice is harmless."""
        ...


class BackendAdapter(StorageBackend, Protocol):
    """What the class of an adapter offers besides: how it is configured and made. Wrappers are not adapters."""

    Options: ClassVar[type[BackendOptions]]

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:
        """The `features` of a backend with these options, told without connecting."""
        ...

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """The `location` of a backend with these options, told without connecting."""
        ...

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Open the store: make clients and, for a local root, the directory. Raises a `StorageError` that says what to do."""
        ...


def check_key(key: str) -> str:
    """Return `key` if every backend may use it, else raise `InvalidKey` with the reason.

    Purely lexical: what a key resolves to on a file system is the file adapter's to confine.
    """
    try:
        encoded = key.encode()
    except UnicodeEncodeError as exc:
        raise InvalidKey(f"key {key!a} holds a lone surrogate") from exc
    if not key or len(encoded) > KEY_LIMIT:
        raise InvalidKey(f"key {key[:60]!a} has {len(encoded)} bytes; 1 to {KEY_LIMIT} are allowed")
    if "\0" in key or any(segment in {"", ".", ".."} for segment in key.split("/")):
        raise InvalidKey(f"key {key!a} has an empty, '.' or '..' segment, or a NUL")
    return key


async def single(data: bytes) -> AsyncIterator[bytes]:
    """`data` as the one chunk of a stream."""
    yield data
