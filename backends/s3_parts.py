"""A stream cut into the parts of one multipart upload, and sent. Called by backends/s3.py only."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from backends.errors import StorageError
from backends.failpoints import failpoint
from backends.s3_checksums import Proof
from backends.s3_errors import request
from backends.s3_multipart import MAX_PART_SIZE, MAX_PARTS, InFlight, MultipartUpload, Part


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

    def __init__(self, chunks: AsyncIterator[bytes], proof: Proof) -> None:
        self._chunks = chunks
        self._proof = proof
        self._ahead: deque[memoryview] = deque()
        self._exhausted = False
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: Exception | None = None
        """What the stream raised: no fault of the store."""

    async def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end of the stream, none after it. Raises what the stream raises."""
        pieces: list[memoryview] = []
        missing = length
        while missing and await self._more():
            chunk = self._ahead.popleft()
            pieces.append(chunk[:missing])
            if len(chunk) > missing:
                self._ahead.appendleft(chunk[missing:])
            missing -= len(pieces[-1])
        # Looked ahead, so that `ended` is known as soon as the last part is out.
        await self._more()
        return b"".join(pieces)

    def give_back(self, data: bytes) -> None:
        """`data` was taken last, and is to be taken again."""
        if data:
            self._ahead.appendleft(memoryview(data))

    async def _more(self) -> bool:
        """Whether there is a byte left; reads on until there is, or the stream ends."""
        while not self._ahead and not self._exhausted:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._exhausted = True
            except Exception as exc:
                self.error = exc
                raise
            else:
                self._digest.update(chunk)
                self._proof.update(chunk)
                self.size += len(chunk)
                if chunk:
                    self._ahead.append(memoryview(chunk))
        return bool(self._ahead)

    @property
    def ended(self) -> bool:
        """Nothing is left to take."""
        return self._exhausted and not self._ahead

    @property
    def sha256(self) -> str:
        """The digest of everything read so far, in hex."""
        return self._digest.hexdigest()


class StreamedParts:
    """What a source still has, as the `Parts` of an upload."""

    def __init__(
        self, source: Source, *, part_size: int, concurrency: int, proof: Proof, seconds: float
    ) -> None:
        """`proof` is that of `source`.

        `seconds` is what a part of `part_size` bytes may take; larger ones get proportionally more.
        """
        self._source = source
        self._part_size = part_size
        self._budget = part_size * concurrency
        self._proof = proof
        self._seconds = seconds
        self._number = 0

    @property
    def declared(self) -> Mapping[str, Any]:
        return self._proof.declared

    def closing(self) -> Mapping[str, Any]:
        return self._proof.closing(self._source.size)

    def fault(self, answer: Mapping[str, Any]) -> str | None:
        """What is wrong with the answer to Complete."""
        return self._proof.fault(answer, parts=self._number)

    async def send(self, upload: MultipartUpload) -> list[Part]:
        flying = InFlight(self._budget)
        try:
            while not self._source.ended:
                self._number += 1
                body = await self._source.take(part_length(self._number, self._part_size))
                await flying.add(self._part(upload, self._number, body), len(body))
            return await flying.all()
        finally:
            await flying.stop()

    async def _part(self, upload: MultipartUpload, number: int, body: bytes) -> Part:
        checksum = await asyncio.to_thread(self._proof.sent, number, body)
        seconds = self._seconds * max(1.0, len(body) / self._part_size)
        async with request(f"write part {number} of {upload.name}", seconds, upload.needs("PutObject")):
            failpoint("s3.part.before")
            answer = await upload.client.upload_part(**upload.where, PartNumber=number, Body=body, **checksum)
            failpoint("s3.part.after")
        return {"PartNumber": number, "ETag": answer["ETag"], **self._proof.named(checksum)}
