"""The backend for tests and trials: objects in a dict of this instance, gone with it. Called through the port only.

Objects are held whole, so memory grows with what is stored; nothing survives the process. Attributes are kept uncut.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Self

from pydantic import Field

from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
)
from backends.errors import Conflict, IntegrityError, NotFound, Unsupported
from backends.wrapper import bare


class MemoryOptions(BackendOptions):
    """A name, to tell several apart."""

    name: str = Field(
        default="main", description="Names the store in locations; instances never share objects."
    )


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    stat: ObjectStat


class MemoryBackend:
    """Objects in a dict. The event loop's turns are its transactions: nothing awaits between a look and a change."""

    Options: ClassVar[type[BackendOptions]] = MemoryOptions

    def __init__(self, location: str) -> None:
        """Empty. `connect` makes one from options."""
        self._location = location
        self._objects: dict[str, _Object] = {}

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """A new, empty store."""
        if not isinstance(options, MemoryOptions):
            raise TypeError(f"MemoryBackend takes MemoryOptions, not {type(options).__name__}")
        return cls(cls.location_of(options))

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`memory://`, the name, `/`."""
        if not isinstance(options, MemoryOptions):
            raise TypeError(f"MemoryBackend takes MemoryOptions, not {type(options).__name__}")
        return f"memory://{options.name}/"

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """Attributes and copies."""
        return Features(attributes=True, server_copy=True)

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return Features(attributes=True, server_copy=True)

    @property
    def location(self) -> str:
        """`memory://`, the name, `/`."""
        return self._location

    @property
    def write_buffer(self) -> int:
        """None beyond the object itself, which stays."""
        return 0

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """As the port says."""
        found = self._objects.get(check_key(key))
        if found is None:
            raise NotFound(f"{self._location}: no object {key!r}")
        async with aclosing(_pieces(found.data)) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """As the port says, as far as memory is durable."""
        check_key(key)
        data = b"".join([chunk async for chunk in chunks])
        sha256 = hashlib.sha256(data).hexdigest()
        return self._keep(key, data, sha256, attributes)

    def _keep(self, key: str, data: bytes, sha256: str, attributes: Attributes) -> Receipt:
        there = self._objects.get(key)
        if there is None:
            metadata = MappingProxyType(dict(attributes.metadata))
            stat = ObjectStat(key, len(data), sha256, attributes.content_type, metadata)
            self._objects[key] = _Object(data, stat)
        elif there.data != data:
            raise Conflict(f"{self._location}: another object lies under {key!r}")
        return Receipt(key, len(data), sha256, etag=sha256, created=there is None)

    async def stat(self, key: str) -> ObjectStat | None:
        """As the port says; the etag is the SHA-256 in hex."""
        found = self._objects.get(check_key(key))
        return found.stat if found else None

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """What was there when the listing began."""
        for stat in [found.stat for key, found in sorted(self._objects.items()) if key.startswith(prefix)]:
            yield stat

    async def delete(self, key: str) -> bool:
        """As the port says."""
        return self._objects.pop(check_key(key), None) is not None

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,
        promise: Promise,
    ) -> Receipt:
        """Within this instance; both keys share the bytes."""
        origin, origin_key = bare(source, source_key)
        check_key(key)
        check_key(origin_key)
        if origin is not self:
            raise Unsupported(
                f"{self._location} cannot copy {source.location}{source_key} to {key!r} by itself"
            )
        found = self._objects.get(origin_key)
        if found is None:
            raise NotFound(f"{self._location}: no object {origin_key!r}")
        if promise.size not in {None, found.stat.size} or promise.sha256 not in {None, found.stat.etag}:
            raise IntegrityError(f"{self._location}: {origin_key!r} is not what was promised")
        return self._keep(key, found.data, str(found.stat.etag), attributes)

    async def sweep(self, older_than: float, prefix: str = "") -> int:  # noqa: ARG002 - there is nothing to look at
        """Nothing is ever left."""
        return 0

    async def health(self) -> None:
        """Always well."""

    async def aclose(self) -> None:
        """Nothing to release; the objects stay until the instance goes."""


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), CHUNK_SIZE):
        yield data[start : start + CHUNK_SIZE]
