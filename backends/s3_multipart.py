"""One multipart upload to S3: parts in flight within a budget, nothing left behind. Called by backends/s3.py only.

aiobotocore carries the parts, not obstore: obstore abandons the upload when its future is cancelled and completes it
without a condition (docs/adr/0003-s3-data-plane.md).
"""

import asyncio
import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from backends.errors import StorageError
from backends.failpoints import failpoint
from backends.s3_errors import translated

MAX_PARTS = 10_000
MAX_PART_SIZE = 5 << 30
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

Result = TypeVar("Result")


def part_length(number: int, first: int) -> int:
    """Bytes of part `number` (from 1) when part 1 has `first`: doubled every 900 parts.

    So 5 TiB of unknown length fit into 10,000 parts even from parts of 5 MiB, and a stream stays at small parts for
    its first 900. Raises `StorageError` past the last part.
    """
    if number > MAX_PARTS:
        raise StorageError(f"the payload does not fit into {MAX_PARTS} parts; configure a larger part_size")
    return min(first << ((number - 1) // 900), MAX_PART_SIZE)


class Source:
    """A stream cut into parts, counted and digested on the way."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._exhausted = False
        self._digest = hashlib.sha256()
        self.size = 0

    async def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end of the stream, none after it. Raises what the stream raises."""
        pieces: list[memoryview] = []
        missing = length
        while missing and await self._more():
            piece, self._rest = self._rest[:missing], self._rest[missing:]
            pieces.append(piece)
            missing -= len(piece)
        # Looked ahead, so that `ended` is known as soon as the last part is out.
        await self._more()
        return b"".join(pieces)

    async def _more(self) -> bool:
        """Whether there is a byte left; reads on until there is, or the stream ends."""
        while not self._rest and not self._exhausted:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._exhausted = True
            else:
                self._digest.update(chunk)
                self.size += len(chunk)
                self._rest = memoryview(chunk)
        return bool(self._rest)

    @property
    def ended(self) -> bool:
        """Nothing is left to take."""
        return self._exhausted and not self._rest

    @property
    def sha256(self) -> str:
        """The digest of everything read so far, in hex."""
        return self._digest.hexdigest()


class MultipartUpload:
    """Use once: `run`."""

    def __init__(
        self,
        client: Any,
        *,
        bucket: str,
        key: str,
        headers: Mapping[str, Any],
        part_size: int,
        concurrency: int,
        checksums: bool,
    ) -> None:
        """`headers` go with the create call; `checksums` sends a CRC32 with every part for the store to verify."""
        self._client = client
        self._where = {"Bucket": bucket, "Key": key}
        self._name = f"s3://{bucket}/{key}"
        self._headers = headers
        self._part_size = part_size
        self._budget = part_size * concurrency
        self._checksums = checksums
        self.completing = False
        """The Complete call was sent: a failure from now on leaves open whether the object is there."""

    async def run(self, first: bytes, source: Source) -> Mapping[str, Any]:
        """Upload `first` and what `source` still has, create-only. Returns the answer of Complete.

        Raises `Conflict` when the key is taken. Whatever is raised, the upload is aborted before.
        """
        # A create whose answer nobody awaits would leave an upload nobody can abort.
        created = asyncio.create_task(self._create())
        try:
            upload_id = await asyncio.shield(created)
            return await self._complete(upload_id, await self._parts(upload_id, first, source))
        except BaseException as exc:
            await to_the_end(self._abort(created, exc))
            raise

    async def _create(self) -> str:
        # Parts with a checksum whose algorithm was not declared here are an InvalidPart at Complete.
        declared = {"ChecksumAlgorithm": "CRC32"} if self._checksums else {}
        with translated(f"begin the upload of {self._name}"):
            failpoint("s3.create.before")
            answer = await self._client.create_multipart_upload(**self._where, **self._headers, **declared)
            failpoint("s3.create.after")
        return str(answer["UploadId"])

    async def _parts(self, upload_id: str, first: bytes, source: Source) -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        flying: dict[asyncio.Task[dict[str, Any]], int] = {}
        number, part = 1, first
        try:
            while part:
                while flying and sum(flying.values()) + len(part) > self._budget:
                    done += await _first_of(flying)
                flying[asyncio.create_task(self._part(upload_id, number, part))] = len(part)
                number += 1
                part = b"" if source.ended else await source.take(part_length(number, self._part_size))
            while flying:
                done += await _first_of(flying)
        finally:
            # A part that lands after the abort would bring the upload back to life.
            for task in flying:
                task.cancel()
            await to_the_end(asyncio.gather(*flying, return_exceptions=True))
        return sorted(done, key=lambda part: int(part["PartNumber"]))

    async def _part(self, upload_id: str, number: int, body: bytes) -> dict[str, Any]:
        checksum = {"ChecksumCRC32": _crc32(body)} if self._checksums else {}
        with translated(f"write part {number} of {self._name}"):
            failpoint("s3.part.before")
            answer = await self._client.upload_part(
                **self._where, UploadId=upload_id, PartNumber=number, Body=body, **checksum
            )
            failpoint("s3.part.after")
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    async def _complete(self, upload_id: str, parts: list[dict[str, Any]]) -> Mapping[str, Any]:
        self.completing = True
        with translated(f"complete the upload of {self._name}"):
            failpoint("s3.complete.before")
            answer: Mapping[str, Any] = await self._client.complete_multipart_upload(
                **self._where, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
            failpoint("s3.complete.after")
        return answer

    async def _abort(self, created: "asyncio.Task[str]", cause: BaseException) -> None:
        """Abort the upload. Harmless after a Complete that did happen: the upload is gone, the object stays."""
        try:
            upload_id = await created
        except StorageError:
            return
        try:
            with translated(f"abort the upload of {self._name}"):
                failpoint("s3.abort.before")
                await self._client.abort_multipart_upload(**self._where, UploadId=upload_id)
                failpoint("s3.abort.after")
        except StorageError as exc:
            if not self.completing:
                cause.add_note(f"{exc}; a sweep has to remove it")


async def _first_of(flying: "dict[asyncio.Task[dict[str, Any]], int]") -> list[dict[str, Any]]:
    """Wait for at least one part, take those that are done off the list. Raises what a part raised."""
    done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    results = [task.result() for task in done]
    for task in done:
        del flying[task]
    return results


async def to_the_end(work: Awaitable[Result]) -> Result:
    """Await `work` whole, though the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


def _crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
