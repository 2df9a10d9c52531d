"""Objects in a container of Azure Blob Storage or Data Lake Storage Gen2. Loaded by name through backends/registry.py.

A write of one block is a Put Blob, a longer one stages blocks and commits them; both only if the key is free. Every blob
carries the digest of its bytes, committed with them, by which a copy inside the account is proven.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

from azure.storage.blob import BlobProperties
from azure.storage.blob.aio import BlobServiceClient

from backends.azure_blocks import Block, BlockSource, BlockUpload, discard, md5_header, untouched_since
from backends.azure_client import AzureOptions, service_for
from backends.azure_container import Container, location_of
from backends.azure_copy import Copying
from backends.azure_metadata import (
    content_md5,
    decode_metadata,
    is_discarded,
    metadata_for,
    recorded_sha256,
    settings_for,
)
from backends.azure_names import check_name
from backends.azure_read import opened, sha256_of
from backends.base import Attributes, BackendOptions, Features, ObjectStat, Promise, Receipt, StorageBackend
from backends.checksums import require_shown
from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.wrapper import bare

_FEATURES = Features(attributes=True, server_copy=True, copy_proves=frozenset({"md5"}))


class AzureBackend:
    """As the port says. The SDK repeats a request that failed; nothing else here does."""

    Options: ClassVar[type[BackendOptions]] = AzureOptions

    def __init__(self, options: AzureOptions, service: BlobServiceClient, resources: AsyncExitStack) -> None:
        """Takes what `connect` opened; `resources` is closed by `aclose`."""
        self._options = options
        self.container = Container(options, service)
        self._resources = resources

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Make the client and prove that the container is there and lets us in."""
        mine = _own(options)
        async with AsyncExitStack() as stack:
            try:
                service, credential = service_for(mine)
            except ValueError as exc:
                raise StorageError(f"the credential of {cls.location_of(mine)} cannot be read") from exc
            if credential is not None:
                stack.push_async_callback(credential.close)
            stack.push_async_callback(service.close)
            backend = cls(mine, service, stack)
            await backend.health()
            backend._resources = stack.pop_all()
        return backend

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """Attributes, and copies within the account."""
        return _FEATURES

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`azure://account/container/`."""
        return location_of(_own(options))

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return _FEATURES

    @property
    def location(self) -> str:
        """`azure://account/container/`."""
        return self.container.location

    @property
    def write_buffer(self) -> int:
        """The blocks in flight, the one being gathered, and that one joined."""
        return self._options.block_size * (self._options.max_concurrency + 2)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ranged reads one after the other, all of the same version of the object."""
        check_name(key)
        async with opened(self.container, key) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """Where the key is taken already, a stream of more than one block is only read, not sent."""
        check_name(key)
        source = BlockSource(chunks)
        first = await source.take(self._options.block_size)
        if source.ended:
            return await self._put(key, first, source, attributes)
        if await self.stat(key) is not None:
            while not source.ended:
                await source.take(self._options.block_size)
            return await self._compared(key, source.size, source.sha256, Conflict("it was there before"))
        upload = self._upload(key)
        try:
            answer = await upload.run(
                first,
                source,
                lambda: (
                    settings_for(attributes, source.md5),
                    metadata_for(attributes, source.sha256, source.md5),
                ),
            )
        except StorageError as exc:
            if not upload.committing:
                raise
            # Taken already, or an answer that got lost: what lies there now decides.
            there = await self._compared(key, source.size, source.sha256, exc)
            return replace(there, created=not isinstance(exc, Conflict))
        return self._receipt(key, source, answer)

    def _upload(self, key: str) -> BlockUpload:
        return BlockUpload(
            self.container,
            key,
            block_size=self._options.block_size,
            concurrency=self._options.max_concurrency,
        )

    async def _put(self, key: str, body: Block, source: BlockSource, attributes: Attributes) -> Receipt:
        try:
            async with self.container.call("write", key):
                failpoint("azure.put.before")
                answer = await self.container.blob(key).upload_blob(
                    body.data,
                    length=len(body.data),
                    overwrite=False,
                    content_settings=settings_for(attributes, source.md5),
                    metadata=metadata_for(attributes, source.sha256, source.md5),
                    headers=md5_header(body.md5),
                )
                failpoint("azure.put.after")
        except (Conflict, Unavailable) as exc:
            there = await self._compared(key, source.size, source.sha256, exc)
            return replace(there, created=not isinstance(exc, Conflict))
        return self._receipt(key, source, answer)

    @staticmethod
    def _receipt(key: str, source: BlockSource, answer: Any) -> Receipt:
        return Receipt(key, source.size, source.sha256, _etag(answer["etag"]), answer.get("version_id"))

    async def _compared(self, key: str, size: int, sha256: str, cause: StorageError) -> Receipt:
        """The receipt of what lies under `key` if it has this size and digest.

        Raises `Conflict` when it is something else, and where nothing lies there `cause`, or, for a key that was said to
        be taken, `Unavailable`: a new attempt will tell.
        """
        there = await self.container.properties(key)
        if there is None:
            if isinstance(cause, (Conflict, NotFound)):
                raise Unavailable(f"{self.location}{key}: {cause}, yet nothing lies there now") from cause
            raise cause
        try:
            same = there.size == size and await sha256_of(self.container, key) == sha256
        except NotFound as exc:
            raise Unavailable(f"{self.location}{key} went while it was compared") from exc
        if not same:
            raise Conflict(
                f"{self.location}{key} holds other content ({there.size} bytes); it was left as it is"
            )
        return Receipt(key, size, sha256, _etag(there.etag), there.version_id, created=False)

    async def stat(self, key: str) -> ObjectStat | None:
        """One HEAD request."""
        found = await self.container.properties(check_name(key))
        return None if found is None else _stat(found)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request per 1,000 objects."""
        async with aclosing(self.container.objects(prefix)) as objects:
            async for found in objects:
                yield _stat(found)

    async def delete(self, key: str) -> bool:
        """A HEAD request looks first: not all that has a name is an object."""
        if await self.container.properties(check_name(key)) is None:
            return False
        try:
            async with self.container.call("delete", key):
                failpoint("azure.delete.before")
                await self.container.blob(key).delete_blob()
                failpoint("azure.delete.after")
        except NotFound:
            return False
        return True

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """Within the account, of blobs that carry their digest: those this adapter has written."""
        check_name(key)
        source, source_key = bare(source, source_key)
        if not isinstance(source, AzureBackend) or source.container.account_url != self.container.account_url:
            raise Unsupported(f"{source.location}{source_key} does not lie in the account of {self.location}")
        original = await source.container.properties(check_name(source_key))
        name = f"{source.location}{source_key}"
        if original is None:
            raise NotFound(f"no object {name}")
        sha256 = recorded_sha256(original)
        if sha256 is None:
            raise Unsupported(f"{name} does not carry its digest, so a copy cannot be proven")
        if promise.size not in {None, original.size} or promise.sha256 not in {None, sha256}:
            raise IntegrityError(
                f"{name} has {original.size} bytes and SHA-256 {sha256}, not what was promised"
            )
        md5 = content_md5(original)
        require_shown(promise.checksums, {"md5": md5.hex()}, name)
        settings = settings_for(attributes, md5)
        copying = Copying(
            str(source.container.blob(source_key).url),
            original,
            self.container,
            key,
            self._options.request_timeout,
        )
        try:
            etag, version = await copying.run(metadata_for(attributes, sha256, md5), settings)
        except Conflict as exc:
            there = await self.container.properties(key)
            if there is None or recorded_sha256(there) != sha256:
                return await self._compared(key, original.size, sha256, exc)
            etag = await copying.settle(there, settings)
            return Receipt(key, there.size, sha256, _etag(etag), there.version_id, created=False)
        return Receipt(key, original.size, sha256, _etag(etag), version)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Drop uncommitted blocks of this adapter's writers, failed copies, and what a killed sweep left.

        Blocks under a key that has a blob by now cannot be found by a listing: the service drops them after a week.
        """
        limit, count = time.time() - older_than, 0
        async with aclosing(self.container.listing(prefix, "uncommittedblobs", "copy")) as blobs:
            async for found in blobs:
                count += await self._swept(found, limit)
        return count

    async def _swept(self, found: BlobProperties, limit: float) -> bool:
        status: object = found.copy.status
        if is_discarded(found) or status in {"failed", "aborted"}:
            old = found.last_modified.timestamp() <= limit
            return old and await self.container.remove(found.name, str(found.etag))
        return found.size == 0 and await discard(self.container, found.name, untouched_since(limit))

    async def health(self) -> None:
        """Ask for the first object: the endpoint answers, the container exists, the credential may list it."""
        await self.container.health()

    async def aclose(self) -> None:
        """Close the client, then the credential."""
        await self._resources.aclose()


def _own(options: BackendOptions) -> AzureOptions:
    if not isinstance(options, AzureOptions):
        raise TypeError(f"AzureBackend takes AzureOptions, not {type(options).__name__}")
    return options


def _stat(found: BlobProperties) -> ObjectStat:
    kind = found.content_settings.content_type
    return ObjectStat(found.name, found.size, _etag(found.etag), kind, decode_metadata(found.metadata))


def _etag(value: str | None) -> str | None:
    return value.strip('"') if value else None
