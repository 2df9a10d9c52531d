"""Objects in an S3 bucket, AWS's or a compatible store's. Loaded by name through backends/registry.py.

Reads and objects of up to one part go through obstore, everything else through aiobotocore; both use the credentials and
the endpoint that botocore resolves. The figures behind that are in docs/adr/0003-s3-data-plane.md.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

from obstore.store import S3Store

from backends.aws_refusals import on_object
from backends.base import (
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
    single,
)
from backends.errors import (
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.header_metadata import decode_metadata
from backends.s3_bucket import Bucket, location_of
from backends.s3_checksums import Proof, proof_of, required_algorithm
from backends.s3_client import S3Options, clients
from backends.s3_copy import CopiedParts, Original
from backends.s3_errors import translated
from backends.s3_metadata import etag_of, headers_for
from backends.s3_multipart import MultipartUpload
from backends.s3_parts import Source, StreamedParts
from backends.s3_put import Put
from backends.s3_read import opened
from backends.wrapper import bare


class S3Backend:
    """`open` and `write` as the port says; a write of more than one part is a conditional multipart upload."""

    Options: ClassVar[type[BackendOptions]] = S3Options

    def __init__(self, options: S3Options, client: Any, store: S3Store, resources: AsyncExitStack) -> None:
        """Takes what `connect` opened; `resources` is closed by `aclose`."""
        self._options = options
        self.bucket = options.bucket
        self.endpoint: str = client.meta.endpoint_url
        self._bucket = Bucket(client, store, options)
        self._single = Put(client, store, options)
        self._client = client
        self._store = store
        self._resources = resources

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Open the clients and prove that the bucket is there and lets us in."""
        options = _own(options)
        async with AsyncExitStack() as stack:
            with translated(f"open bucket {options.bucket}"):
                client, store = await stack.enter_async_context(clients(options))
            backend = cls(options, client, store, stack.pop_all())
        try:
            await backend.health()
            await backend._prove_options()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`s3://bucket/`."""
        return location_of(_own(options))

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:
        """Attributes; copies and create-only writes where the store has checksums and conditions for them."""
        of = _own(options)
        return Features(
            attributes=True,
            server_copy=of.modern_checksums,
            create_only=of.conditional_writes == "always",
            copy_proves=frozenset({"crc32c", "crc64nvme", "md5"}),
        )

    @property
    def features(self) -> Features:
        """As `features_of` says."""
        return self.features_of(self._options)

    @property
    def location(self) -> str:
        """`s3://bucket/`."""
        return self._bucket.location

    @property
    def write_buffer(self) -> int:
        """The parts in flight and their copies inside the client, the part being gathered, and that part joined.

        What is gathered for one PUT stays until the last part of it is out.
        """
        options = self._options
        gathered = options.largest_put if options.largest_put > options.part_size else 0
        return max(2 * options.largest_put, gathered + options.part_size * (2 * options.max_concurrency + 2))

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A read that loses its connection goes on from where it was, as long as the object is the same one."""
        _check(key)
        async with opened(self._store, self.bucket, key, self._options.request_timeout) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """One PUT for a short stream, else a multipart upload; both only if the key is free."""
        _check(key)
        options = self._options
        proof = proof_of(options.checksums)
        source = Source(chunks, proof)
        first = await source.take(options.largest_put)
        if source.ended:
            return await self._put(key, first, source, attributes, proof)
        source.give_back(first)
        del first
        parts = StreamedParts(
            source,
            part_size=options.part_size,
            concurrency=options.max_concurrency,
            proof=proof,
        )
        return await self._upload(key, parts, source, attributes)

    async def _upload(
        self,
        key: str,
        parts: StreamedParts | CopiedParts,
        content: Source | CopiedParts,
        attributes: Attributes,
    ) -> Receipt:
        """`content` knows size and digest once the parts are sent."""
        upload = self._multipart(key, headers_for(attributes))
        try:
            answer = await upload.run(parts)
        except StorageError as exc:
            if isinstance(content, Source) and exc is content.error:
                raise
            # Taken already, or an answer that got lost: what lies there now decides.
            there = await self._bucket.equal(key, content.size, content.sha256) if upload.completing else None
            if there is None:
                raise _retryable(exc) from exc.__cause__
            return replace(there, created=not isinstance(exc, Conflict))
        await self._require_proven(key, answer, parts.fault(answer))
        return Receipt(
            key, content.size, content.sha256, etag_of(answer.get("ETag")), answer.get("VersionId")
        )

    def _multipart(self, key: str, headers: Mapping[str, Any]) -> MultipartUpload:
        return MultipartUpload(
            self._client,
            bucket=self.bucket,
            key=key,
            headers={**headers, **self._options.placement},
            conditional=self._options.conditional_writes == "always",
            seconds=self._options.request_timeout,
            algorithm=required_algorithm(self._options.checksums),
        )

    async def _put(
        self, key: str, body: bytes, source: Source, attributes: Attributes, proof: Proof
    ) -> Receipt:
        conditional = self._options.conditional_writes != "never"
        if not conditional and (there := await self._bucket.equal(key, source.size, source.sha256)):
            return there
        try:
            needs = on_object("PutObject", self.bucket, key)
            async with self._bucket.request(f"write {self.location}{key}", needs):
                answer = await self._single.send(key, body, attributes, proof, conditional=conditional)
        except Conflict as exc:
            there = await self._bucket.equal(key, source.size, source.sha256)
            if there is None:
                raise _retryable(exc) from exc.__cause__
            return there
        await self._require_proven(key, answer, proof.fault(answer, parts=0))
        return Receipt(key, source.size, source.sha256, etag_of(answer["ETag"]), answer.get("VersionId"))

    async def _require_proven(self, key: str, answer: Mapping[str, Any], fault: str | None) -> None:
        """Take away what the store has just made, and raise `IntegrityError`, if it says that it is something else."""
        if fault is None:
            return
        error = IntegrityError(f"S3 could not write {self.location}{key}: {fault}; it was removed")
        try:
            await self._bucket.remove(key, str(answer.get("ETag", "")))
        except StorageError as exc:
            error = IntegrityError(f"S3 could not write {self.location}{key}: {fault}; remove it ({exc})")
        raise error

    async def stat(self, key: str) -> ObjectStat | None:
        """One HEAD request."""
        _check(key)
        try:
            answer = await self._bucket.head(key)
        except NotFound:
            return None
        metadata = decode_metadata(answer.get("Metadata", {}))
        return ObjectStat(
            key, answer["ContentLength"], etag_of(answer.get("ETag")), answer.get("ContentType"), metadata
        )

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request per 1,000 objects; neither content type nor metadata."""
        doing = f"list {self.location}{prefix}"
        async for page in self._bucket.pages("list_objects_v2", doing, prefix, "ListBucket"):
            for entry in page.get("Contents", ()):
                yield ObjectStat(entry["Key"], entry["Size"], etag_of(entry.get("ETag")))

    async def delete(self, key: str) -> bool:
        """S3 answers the same whether the object was there or not, so a HEAD request looks first."""
        if await self.stat(key) is None:
            return False
        await self._bucket.delete(key)
        return True

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """From any bucket at the same endpoint that these credentials may read; backends/s3_copy.py says how it is proven."""
        _check(key)
        origin, origin_key = bare(source, source_key)
        refusal = f"{self.location}{key} cannot be copied from {source.location}{source_key} inside the store"
        if (
            not self.features.server_copy
            or not isinstance(origin, S3Backend)
            or origin.endpoint != self.endpoint
        ):
            raise Unsupported(refusal)
        there = await origin.stat(origin_key)
        if there is None:
            raise NotFound(f"{origin.location}{origin_key} does not exist")
        try:
            # Seen by our own credentials too, and the same object: what has its name may be somebody else's.
            seen = await self._bucket.head(
                origin_key, bucket=origin.bucket, ChecksumMode="ENABLED", IfMatch=f'"{there.etag}"'
            )
        except (Conflict, NotFound, PermissionDenied) as exc:
            raise Unsupported(f"{refusal}: {exc}") from exc
        original = Original.of(origin.bucket, origin_key, seen)
        if not original.size:
            # An upload has no empty parts.
            original.require_size(promise)
            original.require_checksums(promise)
            return await self.write(key, single(b""), attributes)
        parts = CopiedParts(
            original,
            promise,
            concurrency=self._options.max_concurrency,
            seconds=self._options.request_timeout,
        )
        return await self._upload(key, parts, parts, attributes)

    async def health(self) -> None:
        """HeadBucket: the endpoint answers, the bucket exists, the credentials may list it."""
        await self._bucket.health()

    async def _prove_options(self) -> None:
        """Raise unless the store encrypts as it is asked to, and knows the checksum: it may ignore the headers of either.

        With `md5` its ETags have to be MD5s: else every write would be taken away again.
        """
        options = self._options
        proof = proof_of(options.checksums)
        declared = {} if required_algorithm(options.checksums) is None else proof.declared
        if options.encryption is None and not declared and options.checksums != "md5":
            return
        key = f".transload-{secrets.token_hex(8)}.probe"
        try:
            await self._multipart(key, {}).probe(declared, proof if options.checksums == "md5" else None)
        except (PermissionDenied, Unsupported) as exc:
            wanted = f"encryption: {options.encryption}, kms_key_id: {options.kms_key_id}, checksums: {options.checksums}"
            raise type(exc)(f"{exc}; every write asks for {wanted}") from exc

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        """Abort multipart uploads that were begun at least `older_than` seconds ago, whoever began them.

        `older_than` has to exceed the longest write: an upload another process is still feeding looks the same.
        """
        return await self._bucket.sweep(older_than, prefix)

    async def aclose(self) -> None:
        """Close aiobotocore's pool; obstore's goes with the last reference to it."""
        await self._resources.aclose()


def _own(options: BackendOptions) -> S3Options:
    if not isinstance(options, S3Options):
        raise TypeError(f"S3Backend takes S3Options, not {type(options).__name__}")
    return options


def _check(key: str) -> None:
    check_key(key)
    if any(character < " " or character == "\x7f" for character in key):
        raise InvalidKey(f"key {key!a} holds a control character, which S3's listings cannot carry")


def _retryable(exc: StorageError) -> StorageError:
    """A key said to be taken where nothing lies: another write or delete is under way, and a new attempt will tell."""
    return Unavailable(f"{exc}, yet nothing lies there now") if isinstance(exc, (Conflict, NotFound)) else exc
