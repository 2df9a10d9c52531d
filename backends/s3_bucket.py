"""What is asked of one bucket of S3 besides reading and writing, each request within its time. Used by backends/s3.py only."""

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from obstore.store import S3Store

from backends.aws_refusals import on_bucket, on_object
from backends.base import Receipt
from backends.errors import Conflict, NotFound, StorageError
from backends.failpoints import failpoint
from backends.s3_client import S3Options
from backends.s3_errors import request
from backends.s3_metadata import etag_of
from backends.s3_read import sha256_of


class Bucket:
    """A bucket by its name, seen with the credentials of `client`."""

    def __init__(self, client: Any, store: S3Store, options: S3Options) -> None:
        """As `clients` of s3_client.py gives them; they stay the caller's to close."""
        self._client = client
        self._store = store
        self._options = options
        self.name = options.bucket
        self.location = location_of(options)

    def request(self, doing: str, needs: str) -> AbstractAsyncContextManager[None]:
        """Runs one request: within its deadline, its errors as those of this room. `needs` is the permission for it."""
        return request(doing, self._options.request_timeout, needs)

    async def head(self, key: str, *, bucket: str | None = None, **asked: str) -> Mapping[str, Any]:
        """What the store tells of an object, of another bucket where one is named. Raises `NotFound`."""
        where = self.name if bucket is None else bucket
        # Of what is missing S3 says so only to those who may list.
        needs = f"{on_object('GetObject', where, key)}, and {on_bucket('ListBucket', where)}"
        async with self.request(f"look up s3://{where}/{key}", needs):
            answer: Mapping[str, Any] = await self._client.head_object(Bucket=where, Key=key, **asked)
        return answer

    async def equal(self, key: str, size: int, sha256: str) -> Receipt | None:
        """The receipt of what lies under `key` if it has this size and digest; None if nothing lies there.

        Raises `Conflict` when it is something else. Reads it only where the store keeps no SHA-256 of it.
        """
        name = f"{self.location}{key}"
        try:
            there = await self.head(key, ChecksumMode="ENABLED")
            same = there["ContentLength"] == size and (
                there.get("ChecksumSHA256") in _sums(sha256)
                or await sha256_of(self._store, self.name, key, self._options.request_timeout) == sha256
            )
        except NotFound:
            return None
        if not same:
            raise Conflict(
                f"{name} holds other content ({there['ContentLength']} bytes); it was left as it is"
            )
        return Receipt(key, size, sha256, etag_of(there.get("ETag")), created=False)

    async def pages(
        self, operation: str, doing: str, prefix: str, needs: str
    ) -> AsyncIterator[Mapping[str, Any]]:
        """All answers of a listing operation, up to 1,000 entries each. `needs` is its action."""
        pages = aiter(self._client.get_paginator(operation).paginate(Bucket=self.name, Prefix=prefix))
        while True:
            async with self.request(doing, on_bucket(needs, self.name)):
                page = await anext(pages, None)
            if page is None:
                return
            yield page

    async def delete(self, key: str) -> None:
        """S3 answers the same whether the object was there or not."""
        async with self.request(f"delete {self.location}{key}", on_object("DeleteObject", self.name, key)):
            failpoint("s3.delete.before")
            await self._client.delete_object(Bucket=self.name, Key=key)
            failpoint("s3.delete.after")

    async def remove(self, key: str, etag: str) -> None:
        """Delete what was just written, unless it is something else by now."""
        needs = on_object("DeleteObject (and s3:GetObject)", self.name, key)
        async with self.request(f"delete {self.location}{key}", needs):
            failpoint("s3.undo.before")
            await self._client.delete_object(Bucket=self.name, Key=key, IfMatch=etag)
            failpoint("s3.undo.after")

    async def sweep(self, older_than: float, prefix: str) -> int:
        """Abort the multipart uploads that were begun at least `older_than` seconds ago; how many."""
        limit = datetime.now(UTC) - timedelta(seconds=older_than)
        count = 0
        doing, needs = f"sweep {self.location}{prefix}", "ListBucketMultipartUploads"
        async for page in self.pages("list_multipart_uploads", doing, prefix, needs):
            for upload in page.get("Uploads", ()):
                if upload["Initiated"] <= limit:
                    count += await self._abort(upload["Key"], upload["UploadId"])
        return count

    async def _abort(self, key: str, upload_id: str) -> bool:
        """False when its writer, or another sweep, has ended it meanwhile."""
        try:
            needs = on_object("AbortMultipartUpload", self.name, key)
            async with self.request(f"abort an upload of {self.location}{key}", needs):
                failpoint("s3.sweep.before")
                await self._client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)
                failpoint("s3.sweep.after")
        except NotFound:
            return False
        return True

    async def health(self) -> None:
        """HeadBucket: the endpoint answers, the bucket exists, the credentials may list it."""
        try:
            async with self.request(f"open bucket {self.name}", on_bucket("ListBucket", self.name)):
                answer = await self._client.head_bucket(Bucket=self.name)
        except NotFound as exc:
            raise NotFound(
                f"bucket {self.name} does not exist; create it with: transload provision, or aws s3api create-bucket --bucket {self.name}"
            ) from exc
        region = answer.get("BucketRegion")
        if not self._options.endpoint_url and region and region != self._client.meta.region_name:
            raise StorageError(f"bucket {self.name} lies in {region}; configure region: {region}")


def location_of(options: S3Options) -> str:
    """`s3://bucket/`."""
    return f"s3://{options.bucket}/"


def _sums(sha256: str) -> tuple[str, str]:
    """How S3 may tell that SHA-256: of a whole object, and of a multipart upload of one part."""
    digest = bytes.fromhex(sha256)
    of_parts = hashlib.sha256(digest).digest()
    return base64.b64encode(digest).decode(), f"{base64.b64encode(of_parts).decode()}-1"
