"""A copy from bucket to bucket of one S3, its bytes never leaving the store. Used by backends/s3.py only.

It is a multipart upload even of one part: UploadPartCopy tells the SHA-256 of what it copied before the object has a name,
and Complete is create-only. CopyObject names the object first, and older stores ignore its `If-None-Match` silently.

Up to 5 GiB are one part, whose SHA-256 is the object's. S3 knows no SHA-256 of several parts together. So a larger object is
copied only where the store keeps a checksum of the whole of it: Complete is given that one and refused unless the copy has it.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from backends.aws_refusals import on_object
from backends.base import Promise
from backends.checksums import Algorithm, require_shown
from backends.errors import Conflict, IntegrityError, NotFound, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.s3_checksums import shown_by
from backends.s3_errors import request
from backends.s3_multipart import MAX_PART_SIZE, InFlight, MultipartUpload, Part

SHARE = 1 << 30
"""Bytes of a part where there are several: 5 TiB have 5,120 of them."""

_WHOLE = ("CRC64NVME", "CRC32C", "CRC32")
"""Checksums that S3 computes of a whole object in parts, the best one first."""


@dataclass(frozen=True, slots=True)
class Original:
    """The source of a copy, as HEAD tells it. The ETag pins it: a copy of anything else is refused by the store."""

    bucket: str
    key: str
    size: int
    etag: str
    checksum: tuple[str, str] | None
    """Algorithm and value (in base64) of a checksum of the whole object, where the store keeps one."""
    shown: Mapping[Algorithm, str] = field(default_factory=dict)
    """All that it tells of the whole object, in hex."""

    @classmethod
    def of(cls, bucket: str, key: str, head: Mapping[str, Any]) -> Self:
        """`head` is the answer of HeadObject with `ChecksumMode=ENABLED`."""
        known = [name for name in _WHOLE if f"Checksum{name}" in head]
        whole = head.get("ChecksumType") == "FULL_OBJECT" and known
        checksum = (known[0], str(head[f"Checksum{known[0]}"])) if whole else None
        return cls(bucket, key, head["ContentLength"], head["ETag"], checksum, shown_by(head))

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def require_size(self, promise: Promise) -> None:
        """Raise `IntegrityError` unless the size is as promised, and of an empty object the digest too."""
        if promise.size not in {None, self.size}:
            raise IntegrityError(f"{self.name} has {self.size} bytes; promised were {promise.size}")
        if not self.size and promise.sha256 not in {None, hashlib.sha256().hexdigest()}:
            raise IntegrityError(f"{self.name} is empty; promised was the SHA-256 {promise.sha256}")

    def require_checksums(self, promise: Promise) -> None:
        """Raise `IntegrityError` or `Unsupported` unless the store shows each promised checksum.

        They are the source's. What the copy has is proven by its SHA-256, so that has to be promised with them.
        """
        # Most ETags are the MD5, and nothing says which: one that is equal is no accident, one that differs tells nothing.
        md5 = promise.checksums.get("md5")
        by_etag: dict[Algorithm, str] = {} if md5 is None or self.etag.strip('"') != md5 else {"md5": md5}
        require_shown(promise.checksums, {**by_etag, **self.shown}, self.name)
        if promise.checksums and promise.sha256 is None:
            raise Unsupported(
                f"without a promised SHA-256 a copy of {self.name} cannot be proven to be equal"
            )


class CopiedParts:
    """An object of the same store, as the `Parts` of an upload."""

    def __init__(
        self,
        original: Original,
        promise: Promise,
        *,
        concurrency: int,
        seconds: float,
        largest: int = MAX_PART_SIZE,
        share: int = SHARE,
    ) -> None:
        """`largest` is the size up to which one part does; of several each has `share` bytes, which may take `seconds`.

        Raises `Unsupported` when the copy could not be proven, `IntegrityError` when its size is not the promised one.
        """
        original.require_size(promise)
        original.require_checksums(promise)
        self._several = original.size > largest
        self._whole = original.checksum if self._several else None
        if self._several and (self._whole is None or promise.sha256 is None):
            raise Unsupported(f"{original.name} is too large to be copied without a checksum of the whole")
        self._original = original
        self._promised = promise.sha256
        self._concurrency = concurrency
        self._share = share if self._several else original.size
        self._seconds = seconds * max(1.0, self._share / share)
        self.size = original.size
        self.sha256 = promise.sha256 or ""
        """In hex. Of one part it is the store's own once that is copied, of several the promised one."""

    @property
    def declared(self) -> Mapping[str, Any]:
        if self._whole is None:
            return {"ChecksumAlgorithm": "SHA256"}
        return {"ChecksumAlgorithm": self._whole[0], "ChecksumType": "FULL_OBJECT"}

    def closing(self) -> Mapping[str, Any]:
        if self._whole is None:
            return {}
        name, value = self._whole
        return {f"Checksum{name}": value, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": self.size}

    def fault(self, answer: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - as StreamedParts has it
        """None: all is proven before Complete, or by it."""
        return None

    async def send(self, upload: MultipartUpload) -> list[Part]:
        flying = InFlight(self._concurrency)
        try:
            for number, start in enumerate(range(0, self.size, self._share), 1):
                stop = min(start + self._share, self.size)
                await flying.add(self._part(upload, number, f"bytes={start}-{stop - 1}"), 1)
            parts = await flying.all()
        finally:
            await flying.stop()
        if not self._several:
            self._prove(parts[0])
        return parts

    async def _part(self, upload: MultipartUpload, number: int, span: str) -> Part:
        original = self._original
        ranged = {"CopySourceRange": span} if self._several else {}
        try:
            needs = (
                f"{on_object('GetObject', original.bucket, original.key)}, and {upload.needs('PutObject')}"
            )
            doing = f"copy {original.name} into part {number} of {upload.name}"
            async with request(doing, self._seconds, needs):
                failpoint("s3.copy.before")
                answer = await upload.client.upload_part_copy(
                    **upload.where,
                    PartNumber=number,
                    CopySource={"Bucket": original.bucket, "Key": original.key},
                    CopySourceIfMatch=original.etag,
                    **ranged,
                )
                failpoint("s3.copy.after")
        except (Conflict, NotFound) as exc:
            raise Unavailable(f"{original.name} changed or went while it was copied") from exc
        result = answer["CopyPartResult"]
        checksums = {name: value for name, value in result.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": result["ETag"], **checksums}

    def _prove(self, part: Part) -> None:
        """Take the store's SHA-256 of the one part. Nothing has a name yet."""
        found = part.get("ChecksumSHA256")
        if found is None:
            raise Unsupported(f"the store tells no SHA-256 of the copy of {self._original.name}")
        self.sha256 = base64.b64decode(found).hex()
        if self._promised not in {None, self.sha256}:
            raise IntegrityError(
                f"{self._original.name} has the SHA-256 {self.sha256}; promised was {self._promised}"
            )
