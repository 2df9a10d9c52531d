"""Objects in an S3 bucket, AWS's or a compatible store's. Loaded by name through backends/registry.py.

Reads and objects of up to one part go through obstore, everything else through aiobotocore; both use the credentials and
the endpoint that botocore resolves. The figures behind that are in docs/adr/0003-s3-data-plane.md.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

import obstore
from aiobotocore.session import AioSession
from obstore.store import S3Store

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
from backends.errors import (
    Conflict,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.failpoints import failpoint
from backends.s3_client import S3Options, client_config, store_for
from backends.s3_errors import translated
from backends.s3_metadata import decode_metadata, headers_for
from backends.s3_multipart import MultipartUpload, Source


class S3Backend:
    """`open` and `write` as the port says; a write of more than one part is a conditional multipart upload."""

    Options: ClassVar[type[BackendOptions]] = S3Options

    def __init__(self, options: S3Options, client: Any, store: S3Store, resources: AsyncExitStack) -> None:
        """Takes what `connect` opened; `resources` is closed by `aclose`."""
        self._options = options
        self._bucket = options.bucket
        self._client = client
        self._store = store
        self._resources = resources

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Open the clients and prove that the bucket is there and lets us in."""
        if not isinstance(options, S3Options):
            raise TypeError(f"S3Backend takes S3Options, not {type(options).__name__}")
        async with AsyncExitStack() as stack:
            with translated(f"open bucket {options.bucket}"):
                session = AioSession(profile=options.profile)
                if options.access_key_id is not None and options.secret_access_key is not None:
                    token = options.session_token.get_secret_value() if options.session_token else None
                    session.set_credentials(
                        options.access_key_id, options.secret_access_key.get_secret_value(), token
                    )
                client = await stack.enter_async_context(
                    session.create_client(
                        "s3",
                        region_name=options.region,
                        endpoint_url=options.endpoint_url,
                        config=client_config(options),
                    )
                )
                store = store_for(options, session, client)
            backend = cls(options, client, store, stack.pop_all())
        try:
            await backend.health()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`s3://bucket/`."""
        if not isinstance(options, S3Options):
            raise TypeError(f"S3Backend takes S3Options, not {type(options).__name__}")
        return f"s3://{options.bucket}/"

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """Attributes."""
        return Features(attributes=True)

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return Features(attributes=True)

    @property
    def location(self) -> str:
        """`s3://bucket/`."""
        return f"s3://{self._bucket}/"

    @property
    def write_buffer(self) -> int:
        """The parts in flight and their copies inside the client, the part being gathered, and that part joined."""
        return self._options.part_size * (2 * self._options.max_concurrency + 2)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A read that loses its connection goes on from where it was, as long as the object is the same one."""
        _check(key)
        with translated(f"read {self.location}{key}"):
            result = await obstore.get_async(self._store, key)
        async with aclosing(
            self._chunks(key, result.stream(min_chunk_size=CHUNK_SIZE // 2), result.meta["size"])
        ) as chunks:
            yield chunks

    async def _chunks(self, key: str, stream: Any, size: int) -> AsyncGenerator[bytes, None]:
        received = 0
        pieces = aiter(stream)
        while True:
            try:
                with translated(f"read {self.location}{key}"):
                    piece = await anext(pieces, None)
            except Conflict as exc:
                # The reader goes on after a broken connection only while the object is the same one.
                raise Unavailable(f"{self.location}{key} changed while it was read") from exc
            if piece is None:
                break
            received += len(piece)
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_SIZE):
                yield bytes(view[start : start + CHUNK_SIZE])
        if received != size:
            raise Unavailable(f"{self.location}{key} ended after {received} of {size} bytes")

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """One PUT for a stream of at most `part_size` bytes, else a multipart upload; both only if the key is free."""
        _check(key)
        source = Source(chunks)
        first = await source.take(self._options.part_size)
        if source.ended:
            return await self._put(key, first, source, attributes)
        upload = MultipartUpload(
            self._client,
            bucket=self._bucket,
            key=key,
            headers=headers_for(attributes),
            part_size=self._options.part_size,
            concurrency=self._options.max_concurrency,
            checksums=self._options.checksums == "when_supported",
        )
        try:
            answer = await upload.run(first, source)
        except StorageError as exc:
            # Taken already, or an answer that got lost: what lies there now decides.
            there = await self._compare(key, source) if upload.completing else None
            if there is None:
                raise _retryable(exc) from exc.__cause__
            return replace(there, created=not isinstance(exc, Conflict))
        return Receipt(key, source.size, source.sha256, _etag(answer.get("ETag")), answer.get("VersionId"))

    async def _put(self, key: str, body: bytes, source: Source, attributes: Attributes) -> Receipt:
        headers = headers_for(attributes)
        fields = {"Content-Type": headers["ContentType"]} if "ContentType" in headers else {}
        try:
            with translated(f"write {self.location}{key}"):
                failpoint("s3.put.before")
                answer = await obstore.put_async(
                    self._store,
                    key,
                    body,
                    attributes={**fields, **headers["Metadata"]},
                    mode="create",
                    use_multipart=False,
                )
                failpoint("s3.put.after")
        except Conflict as exc:
            there = await self._compare(key, source)
            if there is None:
                raise _retryable(exc) from exc.__cause__
            return there
        return Receipt(key, source.size, source.sha256, _etag(answer["e_tag"]), answer["version"])

    async def _compare(self, key: str, source: Source) -> Receipt | None:
        """The receipt of what lies under `key` if it equals what was read; None if nothing lies there.

        Raises `Conflict` when it is something else.
        """
        there = await self.stat(key)
        if there is None:
            return None
        digest = hashlib.sha256()
        if there.size == source.size:
            try:
                async with self.open(key) as chunks:
                    async for chunk in chunks:
                        digest.update(chunk)
            except NotFound:
                return None
        if there.size != source.size or digest.hexdigest() != source.sha256:
            raise Conflict(
                f"{self.location}{key} holds other content ({there.size} bytes); it was left as it is"
            )
        return Receipt(key, source.size, source.sha256, there.etag, created=False)

    async def stat(self, key: str) -> ObjectStat | None:
        """One HEAD request."""
        _check(key)
        try:
            with translated(f"look up {self.location}{key}"):
                answer = await self._client.head_object(Bucket=self._bucket, Key=key)
        except NotFound:
            return None
        metadata = decode_metadata(answer.get("Metadata", {}))
        return ObjectStat(
            key, answer["ContentLength"], _etag(answer.get("ETag")), answer.get("ContentType"), metadata
        )

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request per 1,000 objects; neither content type nor metadata."""
        pages = aiter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        )
        while True:
            with translated(f"list {self.location}{prefix}"):
                page = await anext(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                yield ObjectStat(entry["Key"], entry["Size"], _etag(entry.get("ETag")))

    async def delete(self, key: str) -> bool:
        """S3 answers the same whether the object was there or not, so a HEAD request looks first."""
        if await self.stat(key) is None:
            return False
        with translated(f"delete {self.location}{key}"):
            failpoint("s3.delete.before")
            await self._client.delete_object(Bucket=self._bucket, Key=key)
            failpoint("s3.delete.after")
        return True

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - refused whatever they are
        promise: Promise,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Not offered: see `features`."""
        raise Unsupported(
            f"{self.location}{key} cannot be copied from {source.location}{source_key} inside the store"
        )

    async def health(self) -> None:
        """HeadBucket: the endpoint answers, the bucket exists, the credentials may list it."""
        try:
            with translated(f"open bucket {self._bucket}"):
                answer = await self._client.head_bucket(Bucket=self._bucket)
        except NotFound as exc:
            raise NotFound(
                f"bucket {self._bucket} does not exist; create it with: aws s3api create-bucket --bucket {self._bucket}"
            ) from exc
        except PermissionDenied as exc:
            raise PermissionDenied(f"{exc}; the credentials need s3:ListBucket on {self._bucket}") from exc
        region = answer.get("BucketRegion")
        if not self._options.endpoint_url and region and region != self._client.meta.region_name:
            raise StorageError(f"bucket {self._bucket} lies in {region}; configure region: {region}")

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Abort multipart uploads that were begun at least `older_than` seconds ago, whoever began them.

        `older_than` has to exceed the longest write: an upload another process is still feeding looks the same.
        """
        limit = datetime.now(UTC) - timedelta(seconds=older_than)
        count = 0
        with translated(f"sweep {self.location}{prefix}"):
            paginator = self._client.get_paginator("list_multipart_uploads")
            async for page in paginator.paginate(Bucket=self._bucket, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"] <= limit:
                        count += await self._abort(upload["Key"], upload["UploadId"])
        return count

    async def _abort(self, key: str, upload_id: str) -> bool:
        """False when its writer, or another sweep, has ended it meanwhile."""
        try:
            with translated(f"abort an upload of {self.location}{key}"):
                failpoint("s3.sweep.before")
                await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
                failpoint("s3.sweep.after")
        except NotFound:
            return False
        return True

    async def aclose(self) -> None:
        """Close aiobotocore's pool; obstore's goes with the last reference to it."""
        await self._resources.aclose()


def _check(key: str) -> None:
    check_key(key)
    if any(character < " " or character == "\x7f" for character in key):
        raise InvalidKey(f"key {key!a} holds a control character, which S3's listings cannot carry")


def _etag(value: str | None) -> str | None:
    return value.strip('"') if value else None


def _retryable(exc: StorageError) -> StorageError:
    """A key said to be taken where nothing lies: another write or delete is under way, and a new attempt will tell."""
    return Unavailable(f"{exc}, yet nothing lies there now") if isinstance(exc, (Conflict, NotFound)) else exc
