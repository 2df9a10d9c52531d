"""One multipart upload to S3: begun, fed, completed, or aborted. Called by backends/s3.py and backends/s3_copy.py only.

What feeds it is backends/s3_parts.py for a stream and backends/s3_copy.py for an object of the same store. aiobotocore
carries it, not obstore: obstore abandons the upload when its future is cancelled and completes it without a condition
(docs/adr/0003-s3-data-plane.md).
"""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

from backends.aws_refusals import on_object
from backends.cancellation import to_the_end
from backends.errors import Conflict, NotFound, PermissionDenied, StorageError, Unsupported
from backends.failpoints import failpoint
from backends.s3_checksums import Proof
from backends.s3_errors import request

MAX_PARTS = 10_000
MAX_PART_SIZE = 5 << 30
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

Part = dict[str, Any]
"""A part as Complete names it: `PartNumber`, `ETag`, and its checksum where the upload has one."""


class Parts(Protocol):
    """Where the parts of one upload come from."""

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the create call has to say for their sake."""
        ...

    async def send(self, upload: "MultipartUpload") -> list[Part]:
        """Put every part into the upload. None is under way any more when this ends, however it ends."""
        ...

    def closing(self) -> Mapping[str, Any]:
        """What Complete has to say of them besides their list. Asked when all are there."""
        ...


class MultipartUpload:
    """Use once: `run`, or `probe`."""

    def __init__(
        self,
        client: Any,
        *,
        bucket: str,
        key: str,
        headers: Mapping[str, Any],
        conditional: bool,
        seconds: float,
        algorithm: str | None = None,
    ) -> None:
        """`headers` go with the create call, which like every other may take `seconds`.

        `algorithm` is a checksum that the store has to say it knows wherever it is declared. `conditional` is whether the store heeds a condition of Complete; otherwise a look has to do.
        """
        self.client = client
        self.where = {"Bucket": bucket, "Key": key}
        """What every request says; the `UploadId` is among it once there is one."""
        self.name = f"s3://{bucket}/{key}"
        self._headers = headers
        self._condition = {"IfNoneMatch": "*"} if conditional else {}
        self._seconds = seconds
        self._algorithm = algorithm
        self.completing = False
        """The Complete call was sent: a failure from now on leaves open whether the object is there."""

    def needs(self, action: str) -> str:
        """The permission for a request of this upload."""
        return on_object(action, self.where["Bucket"], self.where["Key"])

    async def run(self, parts: Parts) -> Mapping[str, Any]:
        """Upload the parts, create-only. Returns the answer of Complete.

        Raises `Conflict` when the key is taken. Whatever is raised, the upload is aborted before.
        """
        # A create whose answer nobody awaits would leave an upload nobody can abort.
        created = asyncio.create_task(self._create(parts.declared))
        try:
            answer = await asyncio.shield(created)
            self._require_encryption(answer)
            self._require_algorithm(parts.declared, answer)
            return await self._complete(await parts.send(self), parts.closing())
        except BaseException as exc:
            await to_the_end(self._abort(created, exc))
            raise

    async def probe(self, declared: Mapping[str, Any], proof: Proof | None = None) -> None:
        """Begin the upload and abort it, with a part in between whose ETag `proof` is to be content with.

        Raises what the store has against the headers, or against what is `declared`; `Unsupported` where its ETag proves nothing.
        """
        with suppress(_Enough):
            await self.run(_Probe(declared, proof))

    async def put_part(
        self, number: int, body: bytes, checksum: Mapping[str, str], *, times: float = 1.0
    ) -> Mapping[str, Any]:
        """One part, in `times` the time that a request may take; what the store answers."""
        async with request(
            f"write part {number} of {self.name}", self._seconds * times, self.needs("PutObject")
        ):
            failpoint("s3.part.before")
            answer: Mapping[str, Any] = await self.client.upload_part(
                **self.where, PartNumber=number, Body=body, **checksum
            )
            failpoint("s3.part.after")
        return answer

    async def _create(self, declared: Mapping[str, Any]) -> Mapping[str, Any]:
        async with request(f"begin the upload of {self.name}", self._seconds, self.needs("PutObject")):
            failpoint("s3.create.before")
            answer: Mapping[str, Any] = await self.client.create_multipart_upload(
                **self.where, **self._headers, **declared
            )
            failpoint("s3.create.after")
        self.where["UploadId"] = str(answer["UploadId"])
        return answer

    def _require_encryption(self, answer: Mapping[str, Any]) -> None:
        """A store that knows no encryption ignores the header; one that does it says so."""
        wanted = self._headers.get("ServerSideEncryption")
        if wanted is not None and answer.get("ServerSideEncryption") != wanted:
            raise Unsupported(f"{self.name}: the store does not encrypt with {wanted}; nothing was written")

    def _require_algorithm(self, declared: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """A store that does not know it ignores the headers, and verifies nothing."""
        wanted = declared.get("ChecksumAlgorithm")
        if (
            self._algorithm is not None
            and wanted == self._algorithm
            and answer.get("ChecksumAlgorithm") != wanted
        ):
            raise Unsupported(f"{self.name}: the store does not verify {wanted}; nothing was written")

    async def _complete(self, parts: list[Part], closing: Mapping[str, Any]) -> Mapping[str, Any]:
        self.completing = True
        if not self._condition:
            await self._require_free()
        async with request(f"complete the upload of {self.name}", self._seconds, self.needs("PutObject")):
            failpoint("s3.complete.before")
            answer: Mapping[str, Any] = await self.client.complete_multipart_upload(
                **self.where, MultipartUpload={"Parts": parts}, **self._condition, **closing
            )
            failpoint("s3.complete.after")
        return answer

    async def _require_free(self) -> None:
        with suppress(NotFound):
            async with request(f"look up {self.name}", self._seconds, self.needs("GetObject")):
                await self.client.head_object(Bucket=self.where["Bucket"], Key=self.where["Key"])
            raise Conflict(f"{self.name} is there already")

    async def _abort(self, created: "asyncio.Task[Mapping[str, Any]]", cause: BaseException) -> None:
        """Abort the upload. Harmless after a Complete that did happen: the upload is gone, the object stays."""
        try:
            await created
        except StorageError:
            return
        try:
            needs = self.needs("AbortMultipartUpload")
            async with request(f"abort the upload of {self.name}", self._seconds, needs):
                failpoint("s3.abort.before")
                await self.client.abort_multipart_upload(**self.where)
                failpoint("s3.abort.after")
        except StorageError as exc:
            if isinstance(cause, _Enough) and isinstance(exc, PermissionDenied):
                # A probe is all that anybody hears of this upload, and the next start would leave another one.
                raise
            if not self.completing:
                cause.add_note(f"{exc}; a sweep has to remove it")


class _Enough(Exception):
    """Ends a probe."""


class _Probe:
    """The parts of an upload that is not to be."""

    def __init__(self, declared: Mapping[str, Any], proof: Proof | None) -> None:
        self.declared = declared
        self._proof = proof

    async def send(self, upload: MultipartUpload) -> list[Part]:
        if self._proof is not None:
            sent = self._proof.sent(1, b"probe")
            answer = await upload.put_part(1, b"probe", sent)
            # Of one part it is what it would be of an object in one piece.
            if (fault := self._proof.fault(answer, parts=0)) is not None:
                raise Unsupported(
                    f"{upload.name}: the store's ETags are no MD5s: {fault}; set checksums to when_required"
                )
        raise _Enough

    def closing(self) -> Mapping[str, Any]:
        return {}


class InFlight:
    """Parts under way at once, as many as fit into a budget."""

    def __init__(self, budget: int) -> None:
        """`budget` is in whatever unit `add` is told costs in. A part that alone exceeds it goes by itself."""
        self._budget = budget
        self._flying: dict[asyncio.Task[Part], int] = {}
        self._done: list[Part] = []

    async def add(self, part: Coroutine[Any, Any, Part], cost: int) -> None:
        """Start `part` once there is room. Raises what an earlier part raised."""
        try:
            while self._flying and sum(self._flying.values()) + cost > self._budget:
                await self._first()
        except BaseException:
            part.close()
            raise
        self._flying[asyncio.create_task(part)] = cost

    async def all(self) -> list[Part]:
        """All parts in order, once they are done. Raises what a part raised."""
        while self._flying:
            await self._first()
        return sorted(self._done, key=lambda part: int(part["PartNumber"]))

    async def stop(self) -> None:
        """Cancel what is under way and wait for its end: a part that lands after the abort would revive the upload."""
        for task in self._flying:
            task.cancel()
        await to_the_end(asyncio.gather(*self._flying, return_exceptions=True))

    async def _first(self) -> None:
        done, _ = await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
        self._done += [task.result() for task in done]
        for task in done:
            del self._flying[task]
