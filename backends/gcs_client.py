"""Requests to the JSON API of Google Cloud Storage: deadlines, checked answers, and the retry of one call.

Used by backends/gcs*.py only. https://cloud.google.com/storage/docs/json_api says what the requests mean.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from yarl import URL

from backends.base import CHUNK_SIZE
from backends.errors import Unavailable
from backends.gcs_errors import check, translated
from backends.gcs_options import GcsOptions, Tokens

JSON: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json; charset=UTF-8"})
NONE: Mapping[str, str] = MappingProxyType({})

_LONGEST_HEADER = 64 << 10
_LONGEST_WAIT = 8.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer that is no error."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, doing: str) -> dict[str, Any]:
        """The body's document, empty where there is none. Raises `Unavailable` when it is something else: a proxy's page."""
        document: object = None
        with suppress(ValueError, RecursionError):
            document = json.loads(self.body) if self.body else {}
        if not isinstance(document, dict):
            raise Unavailable(f"GCS could not {doing}: HTTP {self.status} without a JSON document")
        return document


class GcsClient:
    """One connection pool to one endpoint. Answers are checked; errors are those of the port.

    Every request may be sent twice: aiohttp does so by itself, once, when a kept connection ends before it is answered.
    """

    def __init__(self, options: GcsOptions, tokens: Tokens) -> None:
        self._base = options.endpoint_url.rstrip("/")
        self._project = options.project
        self._tokens = tokens
        self._timeout = options.request_timeout
        self._attempts = options.retries + 1
        self._session = ClientSession(
            # Bounded by what its callers do at once, which is the worker's to say.
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=None, sock_connect=options.connect_timeout),
            # What is stored compressed is read as it is stored: its size and its checksum are of that.
            auto_decompress=False,
            read_bufsize=CHUNK_SIZE,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    def url(self, api: str, *path: str, **query: str | int | list[str]) -> str:
        """`url("storage/v1", "b", bucket, "o", key)`: every segment of the path quoted whole, slashes included."""
        asked = f"?{urlencode(query, doseq=True, quote_via=quote)}" if query else ""
        return f"{self._base}/{api}/{'/'.join(quote(segment, safe='') for segment in path)}{asked}"

    def at_home(self, url: str, doing: str) -> str:
        """The path and query of a URL that an answer named, at our endpoint: tokens and bytes go nowhere else."""
        try:
            named = URL(url, encoded=True)
        except ValueError as exc:
            raise Unavailable(f"GCS could not {doing}: it named a session that is no URL") from exc
        if not named.raw_path.startswith("/"):
            # What follows our host would become a part of its name.
            raise Unavailable(f"GCS could not {doing}: it named a session without a path")
        return str(URL(self._base).origin()) + named.raw_path_qs

    def attempts(self) -> AsyncRetrying:
        """The one retry of this adapter: passing failures, jittered, a few seconds in all. The last one comes out."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda exc: isinstance(exc, Unavailable) and not self._session.closed),
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            reraise=True,
        )

    async def call(
        self, method: str, url: str, doing: str, body: bytes = b"", headers: Mapping[str, str] = NONE
    ) -> Answer:
        """`once`, and again after a passing failure: only for what does no harm when it is done twice."""
        async for attempt in self.attempts():
            with attempt:
                answer = await self.once(method, url, doing, body, headers)
        return answer

    async def once(
        self, method: str, url: str, doing: str, body: bytes = b"", headers: Mapping[str, str] = NONE
    ) -> Answer:
        """One request and its whole answer within `request_timeout`."""
        with translated(doing):
            async with asyncio.timeout(self._timeout):
                response = await self._send(method, url, {"Accept-Encoding": "identity", **headers}, body)
                try:
                    answer = Answer(response.status, response.headers, await response.read())
                finally:
                    response.close()
        check(answer.status, answer.body, doing)
        return answer

    async def json(
        self, method: str, url: str, doing: str, document: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`call` with a JSON document, for the JSON that is answered."""
        body = b"" if document is None else json.dumps(document).encode()
        return (await self.call(method, url, doing, body, JSON)).json(doing)

    @asynccontextmanager
    async def media(
        self, url: str, doing: str
    ) -> AsyncIterator[tuple[Mapping[str, str], AsyncGenerator[bytes, None]]]:
        """The headers of an answer, and its body in chunks of `CHUNK_SIZE`, each within `request_timeout`."""
        async for attempt in self.attempts():
            with attempt:
                response = await self._begin(url, doing)
        chunks = self._chunks(response, doing)
        try:
            yield response.headers, chunks
        finally:
            await chunks.aclose()
            # A body that is left in the middle takes its connection with it.
            response.close()

    async def _begin(self, url: str, doing: str) -> ClientResponse:
        with translated(doing):
            async with asyncio.timeout(self._timeout):
                # Says that we want what is stored, not what GCS would make of it: https://cloud.google.com/storage/docs/transcoding
                response = await self._send("GET", url, {"Accept-Encoding": "gzip"})
                if response.status < 300:
                    return response
                try:
                    body = await response.read()
                finally:
                    response.close()
        check(response.status, body, doing)
        raise Unavailable(f"GCS could not {doing}: HTTP {response.status}")

    async def _chunks(self, response: ClientResponse, doing: str) -> AsyncGenerator[bytes, None]:
        whole = True
        while whole:
            with translated(doing):
                try:
                    async with asyncio.timeout(self._timeout):
                        chunk = await response.content.readexactly(CHUNK_SIZE)
                except asyncio.IncompleteReadError as exc:
                    chunk, whole = exc.partial, False
            if chunk:
                yield chunk

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> ClientResponse:
        """Send, and once more with a new token where the old one is refused before its time."""
        token = await self._tokens.current()
        response = await self._send_as(token, method, url, headers, body)
        if response.status != 401 or token is None:
            return response
        response.close()
        return await self._send_as(await self._tokens.instead_of(token), method, url, headers, body)

    async def _send_as(
        self, token: str | None, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> ClientResponse:
        if self._session.closed:
            raise Unavailable(f"the backend of {self._base} is closed")
        who = {"Authorization": f"Bearer {token}"} if token else {}
        billed = {"x-goog-user-project": self._project} if self._project else {}
        return await self._session.request(
            method,
            URL(url, encoded=True),
            headers={**headers, **billed, **who},
            # A file is sent in pieces, so that a large chunk does not hold up the loop.
            data=BytesIO(body) if body else None,
            allow_redirects=False,
        )

    async def aclose(self) -> None:
        """Close the pool. Calling it twice is harmless."""
        await self._session.close()
