"""Objects in a bucket of Google Cloud Storage. Loaded by name through backends/registry.py.

Everything goes over the JSON API (docs/adr/0012-gcs-json-api.md). An object of up to a chunk is one request, a larger one
a resumable session; both come into being only where nothing lies, and only with the CRC32C that was computed here.

How this adapter differs:

- Keys with a line break, and keys below `.well-known/acme-challenge/`, are `InvalidKey`: GCS refuses them.
- The etag of an object is its generation, which is also the version in a receipt.
- A write notes the SHA-256 with the object, in a metadata entry of its own that `stat` hides. After a session that takes
  one more request; where it fails, the object is whole and lacks the note. `copy_from` needs the note of the source:
  the store itself knows CRC32C and MD5 only.
- A process killed in mid-write leaves an upload session, which nobody can see or list and which holds no object. GCS
  drops it after a week, so `sweep` has nothing to do.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar, Self

from backends.base import (
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
)
from backends.checksums import require_shown
from backends.errors import (
    Conflict,
    IntegrityError,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.failpoints import failpoint
from backends.gcs_bucket import GcsBucket
from backends.gcs_client import GcsClient
from backends.gcs_errors import translated
from backends.gcs_options import GcsOptions, Tokens
from backends.gcs_resources import (
    Crc32c,
    check_gcs_key,
    checksums_of,
    crc32c_in,
    described,
    digest_of,
    resource_of,
    stat_of,
)
from backends.gcs_upload import ResumableUpload, Source, put
from backends.wrapper import bare

_PAGE = 1000
_NEEDED = ("storage.objects.create", "storage.objects.get")


class GcsBackend:
    """See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = GcsOptions

    def __init__(self, options: GcsOptions, client: GcsClient) -> None:
        """Takes what `connect` opened; `aclose` closes it."""
        self.options = options
        self.bucket = GcsBucket(client, options.bucket)
        self._client = client

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Find the credentials and prove that the bucket is there and lets us in."""
        if not isinstance(options, GcsOptions):
            raise TypeError(f"GcsBackend takes GcsOptions, not {type(options).__name__}")
        backend = cls(options, GcsClient(options, await Tokens.of(options)))
        try:
            await backend.health()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`gs://bucket/`."""
        if not isinstance(options, GcsOptions):
            raise TypeError(f"GcsBackend takes GcsOptions, not {type(options).__name__}")
        return f"gs://{options.bucket}/"

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:  # noqa: ARG003 - the same for all of them
        """Attributes, and copies inside the store."""
        return Features(attributes=True, server_copy=True, copy_proves=frozenset({"crc32c", "md5"}))

    @property
    def features(self) -> Features:
        """The same for every instance."""
        return self.features_of(self.options)

    @property
    def location(self) -> str:
        """`gs://bucket/`."""
        return self.location_of(self.options)

    @property
    def write_buffer(self) -> int:
        """The chunk being sent, the request around it, and what is gathered of the next one."""
        return 3 * self.options.chunk_size

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """As the port says. Bytes that do not have the CRC32C GCS promises with them end in `IntegrityError`."""
        check_gcs_key(key)
        doing = f"read {self.location}{key}"
        async with (
            self._client.media(self.bucket.url("o", key, alt="media"), doing) as (headers, chunks),
            aclosing(_verified(chunks, crc32c_in(headers), doing)) as verified,
        ):
            yield verified

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """One request for a stream of at most `chunk_size` bytes, else a session; both only if the key is free."""
        check_gcs_key(key)
        source = Source(chunks)
        doing = f"write {self.location}{key}"
        first = await source.take(self.options.chunk_size)
        if source.ended:
            noted = {**resource_of(key, attributes, source.sha256), "crc32c": source.crc32c}
            try:
                made = await put(self._client, self.options.bucket, noted, first, doing)
            except Conflict as exc:
                return await self._same(key, source, exc)
            await self.bucket.prove(made, source.crc32c, doing)
            return _receipt(made, source.sha256)
        if await self.bucket.look(key) is not None:
            # GCS would say so after the last chunk only.
            await source.drain()
            return await self._same(key, source, Conflict(f"GCS could not {doing}: the key is taken"))
        return await self._upload(key, first, source, attributes, doing)

    async def _upload(
        self, key: str, first: bytes, source: Source, attributes: Attributes, doing: str
    ) -> Receipt:
        upload = ResumableUpload(
            self._client, self.options.bucket, resource_of(key, attributes), self.options.chunk_size, doing
        )
        try:
            made = await upload.run(first, source)
        except (Conflict, NotFound, Unavailable) as exc:
            # Taken meanwhile, or an answer that got lost: what lies there now decides.
            if not upload.completing:
                raise
            return await self._same(key, source, exc)
        await self.bucket.prove(made, source.crc32c, doing)
        await self.bucket.note(key, made, source.sha256, doing)
        return _receipt(made, source.sha256)

    async def _same(self, key: str, source: Source, exc: StorageError) -> Receipt:
        """The receipt of what lies under `key`, if it equals what was read.

        Raises `Conflict` when it is something else, and what speaks for another attempt when nothing lies there.
        """
        there = await self.bucket.equal(key, source.size, source.crc32c, source.sha256)
        if there is None:
            raise _retryable(exc) from exc.__cause__
        return _receipt(there, source.sha256, created=not isinstance(exc, Conflict))

    async def stat(self, key: str) -> ObjectStat | None:
        """One request."""
        check_gcs_key(key)
        there = await self.bucket.look(key)
        return None if there is None else stat_of(there)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request per 1,000 objects, with content type and metadata."""
        fields = "nextPageToken,items(name,size,generation,contentType,metadata)"
        more: dict[str, str] = {}
        doing = f"list {self.location}{prefix}"
        while True:
            url = self.bucket.url("o", prefix=prefix, maxResults=_PAGE, fields=fields, **more)
            page = await self._client.json("GET", url, doing)
            for found in page.get("items", ()):
                yield stat_of(described(found, doing))
            if not page.get("nextPageToken"):
                return
            more = {"pageToken": page["nextPageToken"]}

    async def delete(self, key: str) -> bool:
        """One request; the store tells whether it was there."""
        check_gcs_key(key)
        doing = f"delete {self.location}{key}"
        try:
            with translated(doing):
                failpoint("gcs.delete.before")
                await self._client.call("DELETE", self.bucket.url("o", key), doing)
                failpoint("gcs.delete.after")
        except NotFound:
            return False
        return True

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        """A rewrite of one generation of the source, from any bucket that is reached in the same way with the same credentials."""
        check_gcs_key(key)
        origin, origin_key = bare(source, source_key)
        check_gcs_key(origin_key)
        doing = f"copy {source.location}{source_key} to {self.location}{key}"
        if not isinstance(origin, GcsBackend) or origin.options.identity != self.options.identity:
            raise Unsupported(f"GCS could not {doing}: they are not in the same store")
        there = await origin.bucket.look(origin_key)
        if there is None:
            raise NotFound(f"GCS could not {doing}: there is no source")
        sha256 = digest_of(there)
        if sha256 is None or "crc32c" not in there:
            raise Unsupported(
                f"GCS could not {doing}: the source has no checksums that a copy could be proven by"
            )
        size = int(there["size"])
        if promise.size not in {None, size} or promise.sha256 not in {None, sha256}:
            raise IntegrityError(
                f"{source.location}{source_key} is not what was promised ({size} bytes, SHA-256 {sha256})"
            )
        require_shown(promise.checksums, checksums_of(there), f"{source.location}{source_key}")
        try:
            made = await self.bucket.rewrite(
                origin.bucket, there, resource_of(key, attributes, sha256), doing
            )
        except Conflict as exc:
            found = await self.bucket.equal(key, size, there["crc32c"], sha256)
            if found is None:
                raise _retryable(exc) from exc.__cause__
            return _receipt(found, sha256, created=False)
        await self.bucket.prove(made, there["crc32c"], doing)
        return _receipt(made, sha256)

    async def sweep(self, older_than: float, prefix: str = "") -> int:  # noqa: ARG002 - nothing can be left
        """0: see the module's docstring."""
        return 0

    async def health(self) -> None:
        """One object is listed, which proves endpoint, bucket and credentials; then GCS is asked what else they may."""
        doing = f"open bucket {self.options.bucket}"
        try:
            await self._client.json("GET", self.bucket.url("o", maxResults=1), doing)
        except NotFound as exc:
            raise NotFound(
                f"bucket {self.options.bucket} does not exist; create it with: gcloud storage buckets create gs://{self.options.bucket}"
            ) from exc
        except PermissionDenied as exc:
            raise PermissionDenied(
                f"{exc}; the credentials need roles/storage.objectUser on {self.options.bucket}"
            ) from exc
        url = self.bucket.url("iam", "testPermissions", permissions=[*_NEEDED])
        granted = (await self._client.json("GET", url, doing)).get("permissions", [])
        if missing := [needed for needed in _NEEDED if needed not in granted]:
            raise PermissionDenied(f"GCS could not {doing}: the credentials lack {', '.join(missing)}")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _verified(
    chunks: AsyncIterator[bytes], crc32c: str | None, doing: str
) -> AsyncGenerator[bytes, None]:
    running = Crc32c()
    async for chunk in chunks:
        running.update(chunk)
        yield chunk
    if crc32c not in {None, running.told()}:
        raise IntegrityError(
            f"GCS could not {doing}: the bytes have CRC32C {running.told()} instead of {crc32c}"
        )


def _receipt(resource: Mapping[str, Any], sha256: str, *, created: bool = True) -> Receipt:
    generation = str(resource["generation"])
    return Receipt(resource["name"], int(resource["size"]), sha256, generation, generation, created)


def _retryable(exc: StorageError) -> StorageError:
    """A key said to be taken where nothing lies, or a session that is gone: a new attempt will tell."""
    return Unavailable(f"{exc}, yet nothing lies there now") if isinstance(exc, (Conflict, NotFound)) else exc
