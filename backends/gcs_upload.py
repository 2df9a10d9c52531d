"""One object on its way into Google Cloud Storage, in one request or in a resumable session. Used by backends/gcs.py only.

Both carry `ifGenerationMatch=0`: GCS checks it when the object comes into being, for a session with its last chunk, and then
in one step. The last chunk also carries the CRC32C of the whole, and GCS refuses what does not match it.
https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.cancellation import to_the_end
from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable
from backends.failpoints import failpoint
from backends.gcs_client import JSON, Answer, GcsClient
from backends.gcs_errors import RESUME, translated
from backends.gcs_resources import Crc32c, described

_CANCEL_SECONDS = 5.0
"""For what nobody sees and what ends by itself, a drain does not wait."""
_PERSISTED = re.compile(r"bytes=0-(\d+)")


class Source:
    """A stream cut into chunks, counted and digested on the way."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._exhausted = False
        self._sha256 = hashlib.sha256()
        self._crc32c = Crc32c()
        self.size = 0

    async def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end of the stream, none after it. Raises what the stream raises."""
        pieces: list[memoryview] = []
        missing = length
        while missing and await self._more():
            piece, self._rest = self._rest[:missing], self._rest[missing:]
            pieces.append(piece)
            missing -= len(piece)
        # Looked ahead, so that `ended` is known as soon as the last chunk is out.
        await self._more()
        return b"".join(pieces)

    async def drain(self) -> None:
        """Read to the end, for size and digest only."""
        while await self._more():
            self._rest = memoryview(b"")

    async def _more(self) -> bool:
        """Whether there is a byte left; reads on until there is, or the stream ends."""
        while not self._rest and not self._exhausted:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                self._exhausted = True
            else:
                self._sha256.update(chunk)
                self._crc32c.update(chunk)
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
        return self._sha256.hexdigest()

    @property
    def crc32c(self) -> str:
        """As GCS writes it."""
        return self._crc32c.told()


async def put(
    client: GcsClient, bucket: str, resource: Mapping[str, Any], body: bytes, doing: str
) -> dict[str, Any]:
    """Store an object in one request of two parts, its description and its bytes. Returns what GCS says of it.

    Raises `Conflict` when the key is taken, also by an earlier attempt of this very call.
    """
    boundary = secrets.token_hex(16)
    kind = resource.get("contentType", "application/octet-stream")
    message = b"".join(
        [
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
            json.dumps(resource).encode(),
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(),
            body,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
    )
    url = client.url("upload/storage/v1", "b", bucket, "o", uploadType="multipart", ifGenerationMatch=0)
    with translated(doing):
        failpoint("gcs.put.before")
        answer = await client.call(
            "POST", url, doing, message, {"Content-Type": f"multipart/related; boundary={boundary}"}
        )
        failpoint("gcs.put.after")
    return described(answer.json(doing), doing)


class ResumableUpload:
    """Use once: `run`."""

    def __init__(
        self, client: GcsClient, bucket: str, resource: Mapping[str, Any], chunk_size: int, doing: str
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._resource = resource
        self._chunk_size = chunk_size
        self._doing = doing
        self._persisted = 0
        self.completing = False
        """The last chunk was sent: a failure from now on leaves open whether the object is there."""

    async def run(self, first: bytes, source: Source) -> dict[str, Any]:
        """Upload `first` and what `source` still has, create-only. Returns what GCS says of the object.

        Raises `Conflict` when the key is taken. Whatever is raised, the session is cancelled before.
        """
        session = await self._begin()
        try:
            chunk = first
            while not source.ended:
                await self._chunk(session, chunk)
                chunk = await source.take(self._chunk_size)
            return await self._last(session, chunk, source)
        except BaseException as exc:
            await to_the_end(self._cancel(session, exc))
            raise

    async def _begin(self) -> str:
        """The URL of a new session. One that nobody uses holds nothing and goes away after a week."""
        name = self._resource["name"]
        query: dict[str, str | int] = {"uploadType": "resumable", "name": name, "ifGenerationMatch": 0}
        url = self._client.url("upload/storage/v1", "b", self._bucket, "o", **query)
        with _anew(), translated(self._doing):
            failpoint("gcs.create.before")
            answer = await self._client.call(
                "POST", url, self._doing, json.dumps(self._resource).encode(), JSON
            )
            failpoint("gcs.create.after")
        if not answer.headers.get("Location"):
            raise Unavailable(f"GCS could not {self._doing}: it opened no session")
        return self._client.at_home(answer.headers["Location"], self._doing)

    async def _chunk(self, session: str, chunk: bytes) -> None:
        with _anew(), translated(self._doing):
            failpoint("gcs.chunk.before")
            await self._send(session, chunk, None, {})
            failpoint("gcs.chunk.after")

    async def _last(self, session: str, chunk: bytes, source: Source) -> dict[str, Any]:
        self.completing = True
        with translated(self._doing):
            failpoint("gcs.commit.before")
            answer = await self._send(session, chunk, source.size, {"x-goog-hash": f"crc32c={source.crc32c}"})
            failpoint("gcs.commit.after")
        return described(answer.json(self._doing), self._doing)

    async def _send(
        self, session: str, chunk: bytes, total: int | None, headers: Mapping[str, str]
    ) -> Answer:
        """Send a chunk until all of it has arrived. Before every further attempt the session is asked how much has.

        `total` is the size of the whole where this is the last chunk: then the answer is the object's.
        """
        end = self._persisted + len(chunk)
        start = self._persisted
        size = "*" if total is None else str(total)
        async for attempt in self._client.attempts():
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    answer = await self._put(session, b"", f"bytes */{size}", headers)
                    if self._arrived(answer, start, end, final=total is not None):
                        return answer
                rest = chunk[self._persisted - start :]
                extent = f"{self._persisted}-{end - 1}" if rest else "*"
                answer = await self._put(session, rest, f"bytes {extent}/{size}", headers)
                if self._arrived(answer, start, end, final=total is not None):
                    return answer
                raise Unavailable(
                    f"GCS could not {self._doing}: {self._persisted} of {end} bytes have arrived"
                )
        raise AssertionError("attempts end with an answer or an error")

    async def _put(self, session: str, body: bytes, extent: str, headers: Mapping[str, str]) -> Answer:
        """Raises `NotFound` when the session is gone."""
        return await self._client.once(
            "PUT", session, self._doing, body, {"Content-Range": extent, **headers}
        )

    def _arrived(self, answer: Answer, start: int, end: int, *, final: bool) -> bool:
        """Whether this chunk is done with; takes down how much has arrived."""
        if answer.status != RESUME:
            if not final:
                raise IntegrityError(f"GCS could not {self._doing}: it ended the upload after {end} bytes")
            return True
        found = _PERSISTED.fullmatch(answer.headers.get("Range", ""))
        persisted = int(found[1]) + 1 if found else 0
        if not start <= persisted <= end:
            raise IntegrityError(
                f"GCS could not {self._doing}: it has {persisted} bytes instead of {start} to {end}"
            )
        self._persisted = persisted
        return persisted == end and not final

    async def _cancel(self, session: str, cause: BaseException) -> None:
        """Drop what has arrived. Harmless after a last chunk that did arrive: the session is gone, the object stays."""
        try:
            with translated(f"cancel: {self._doing}"):
                failpoint("gcs.cancel.before")
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._client.once("DELETE", session, f"cancel: {self._doing}")
                failpoint("gcs.cancel.after")
        except NotFound:
            # 499 is how GCS says that it is done, 404 and 410 that it was over already.
            return
        except StorageError as exc:
            cause.add_note(f"{exc}; the session, which nobody sees, goes away by itself after a week")


@contextmanager
def _anew() -> Iterator[None]:
    """A refusal that does not concern the last chunk says nothing yet of what lies there: the next attempt looks."""
    try:
        yield
    except (Conflict, NotFound) as exc:
        raise Unavailable(f"{exc}; the upload has to begin anew") from exc
