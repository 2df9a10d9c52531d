"""Requests to one HTTP API: credentials, deadlines, redirects, Retry-After, and the hand-over of a stream.

Called by backends/http_api.py and backends/http_api_reading.py only. Everything that goes wrong comes out as an error of this
room; an answer of the API, whatever its status, comes out as an answer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

import aiohttp
from yarl import URL

from backends.base import CHUNK_SIZE
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.http_api_body import PIECE, Answer, Source, pieces
from backends.http_api_errors import translated
from backends.http_api_options import HttpOptions
from backends.http_api_reach import connections, redirected

ANSWER_LIMIT = 16 << 20
"""Bytes of an answer that are looked at: a page of a listing is the largest."""

_MOST_REDIRECTS = 5


class HttpClient:
    """Connections to the API, and others to where it redirects. `open` makes them."""

    def __init__(
        self,
        options: HttpOptions,
        session: aiohttp.ClientSession,
        abroad: aiohttp.ClientSession,
        resources: AsyncExitStack,
    ) -> None:
        """`abroad` is for other origins; `resources` closes both sessions."""
        self._options = options
        self._session = session
        self._abroad = abroad
        self._resources = resources

    @classmethod
    async def open(cls, options: HttpOptions) -> Self:
        """No proxy, no netrc, no cookies: only what the options say. Raises `StorageError` for an unusable `ca_file`."""
        async with AsyncExitStack() as stack:
            here, abroad = await connections(options, stack)
            return cls(options, here, abroad, stack.pop_all())

    async def aclose(self) -> None:
        await self._resources.aclose()

    async def ask(
        self, method: str, url: str, doing: str, headers: Mapping[str, str] | None = None, limit: int = PIECE
    ) -> Answer:
        """A request without a body, and at most `limit` bytes of its answer's. Raises `Unavailable`, `PermissionDenied`."""
        async with self.reading(method, url, doing, headers) as response:
            with translated(doing):
                async with asyncio.timeout(self._options.idle_timeout):
                    return await _answer(response, limit)

    @asynccontextmanager
    async def reading(
        self, method: str, url: str, doing: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As `ask`, with the answer's body still to be read. Redirects are followed for GET and HEAD, as far as
        backends/http_api_reach.py lets them lead.
        """
        response = await self._begin(method, url, doing, headers or {})
        try:
            wait = self._pause(response.status, response.headers)
            if wait is not None:
                response.close()
                await asyncio.sleep(wait)
                response = await self._begin(method, url, doing, headers or {})
            yield response
        finally:
            # Only a body that was read to its end leaves a connection that can be used again.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _begin(
        self, method: str, url: str, doing: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        target, session = URL(url, encoded=True), self._session
        for _ in range(_MOST_REDIRECTS + 1):
            with translated(doing):
                # Whoever has sent us away may have chosen what we are to ask for, also where that is at home again.
                own = await self._credentials() if session is self._session else {}
                async with asyncio.timeout(self._options.idle_timeout):
                    response = await session.request(
                        method, target, headers={**own, **headers}, allow_redirects=False
                    )
            there = (
                redirected(response, target, self._options.redirect_hosts)
                if method in {"GET", "HEAD"}
                else None
            )
            if there is None:
                return response
            response.close()
            if there.origin() != target.origin():
                session = self._abroad
            target = there
        raise StorageError(f"could not {doing}: more than {_MOST_REDIRECTS} redirects")

    async def send(
        self, method: str, url: str, doing: str, headers: Mapping[str, str], first: bytes, source: Source
    ) -> Answer:
        """A request whose body is `first` and what `source` still has. Raises `Unavailable`, and what the source raises.

        A refusal with a Retry-After is waited for and the request sent again, once, as long as all of the body that was sent
        is still in hand.
        """
        answer = await self._send(method, url, doing, headers, first, source)
        wait = self._pause(answer.status, answer.headers)
        if wait is None or source.touched:
            return answer
        await asyncio.sleep(wait)
        return await self._send(method, url, doing, headers, first, source)

    async def _send(
        self, method: str, url: str, doing: str, headers: Mapping[str, str], first: bytes, source: Source
    ) -> Answer:
        """The body goes from task to task, so that the source is pulled by its owner and nobody else.

        The HTTP library's task would cancel it in the middle when the API hangs up, and still be in it when the owner leaves.
        """
        handed: asyncio.Queue[memoryview | None] = asyncio.Queue(1)
        body = first if source.ended else _Body(handed)
        sending = asyncio.create_task(self._exchange(method, url, doing, headers, body))
        try:
            if isinstance(body, _Body):
                async with aclosing(_all(first, source)) as whole:
                    async for piece in whole:
                        if not await self._hand(handed, piece, sending, doing):
                            break
                    else:
                        await self._hand(handed, None, sending, doing)
            whole_pieces = len(body) // PIECE if isinstance(body, bytes) else 0
            await self._within_idle({sending}, doing, whole_pieces + 1)
            answer = sending.result()
        finally:
            # Ends the connection unless the exchange is over: an API that sees no end of the body stores nothing.
            await _ended(sending)
        if answer.status < 300 and isinstance(body, _Body) and not body.complete:
            raise Unavailable(f"could not {doing}: HTTP {answer.status} before all of the body was sent")
        return answer

    async def _hand(
        self,
        handed: "asyncio.Queue[memoryview | None]",
        piece: memoryview | None,
        sending: "asyncio.Task[Answer]",
        doing: str,
    ) -> bool:
        """False when the exchange is over already."""
        if sending.done():
            return False
        if not handed.full():
            handed.put_nowait(piece)
            return True
        putting = asyncio.create_task(handed.put(piece))
        try:
            await self._within_idle({putting, sending}, doing)
            return putting.done()
        finally:
            putting.cancel()

    async def _within_idle(
        self, tasks: "set[asyncio.Task[None] | asyncio.Task[Answer]]", doing: str, times: int = 1
    ) -> None:
        done, _ = await asyncio.wait(
            tasks, timeout=self._options.idle_timeout * times, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise Unavailable(f"could not {doing}: nothing moved for {self._options.idle_timeout:g} s")

    async def _exchange(
        self, method: str, url: str, doing: str, headers: Mapping[str, str], body: "bytes | _Body"
    ) -> Answer:
        with translated(doing):
            own = await self._credentials()
            async with self._session.request(
                method,
                URL(url, encoded=True),
                headers={**own, **headers},
                data=body,
                allow_redirects=False,
                expect100=isinstance(body, _Body) and self._options.expect_continue,
            ) as response:
                return await _answer(response, ANSWER_LIMIT if self._options.digest_field else PIECE)

    async def chunks(self, response: aiohttp.ClientResponse, doing: str) -> AsyncGenerator[bytes, None]:
        """The body in chunks of at most `CHUNK_SIZE`. Raises `Unavailable` when it ends early or stalls."""
        while True:
            with translated(doing):
                async with asyncio.timeout(self._options.idle_timeout):
                    chunk = await _read(response, PIECE)
            if not chunk:
                return
            yield chunk

    async def _credentials(self) -> dict[str, str]:
        options = self._options
        own = {name: value.get_secret_value() for name, value in options.headers.items()}
        token = options.token.get_secret_value() if options.token is not None else None
        if options.token_file is not None:
            token = await asyncio.to_thread(_token, options.token_file)
        return own | ({"Authorization": f"Bearer {token}"} if token is not None else {})

    def _pause(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait before asking once more; None where that is not asked for, or for too long."""
        if status not in {429, 503}:
            return None
        seconds = retry_after(headers.get("Retry-After", ""))
        return seconds if seconds is not None and seconds <= self._options.max_retry_after else None


class _Body:
    """What is handed on, as the HTTP library wants it: iterated once, to the None at its end.

    A second time there would be a rest only, and its end would look like that of the whole. aiohttp before 3.14.4 asks for it
    when it repeats a PUT (https://github.com/aio-libs/aiohttp/pull/13330).
    """

    def __init__(self, handed: "asyncio.Queue[memoryview | None]") -> None:
        self._handed = handed
        self._begun = False
        self.complete = False

    async def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        if self._begun:
            raise ConnectionResetError("a stream is not sent twice")
        self._begun = True
        while (piece := await self._handed.get()) is not None:
            yield piece
        self.complete = True


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as exc:
        raise PermissionDenied(f"no token can be read from {path}: {type(exc).__name__}") from exc
    if not token.isprintable():
        raise PermissionDenied(f"{path} holds more than one line, which no token has")
    return token


def retry_after(value: str) -> float | None:
    """Seconds from now: https://www.rfc-editor.org/rfc/rfc9110.html#section-10.2.3"""
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


async def _all(first: bytes, source: Source) -> AsyncGenerator[memoryview, None]:
    for piece in pieces(memoryview(first)):
        yield piece
    async with aclosing(source.rest()) as rest:
        async for piece in rest:
            yield piece


async def _answer(response: aiohttp.ClientResponse, limit: int) -> Answer:
    """A body that is longer than `limit`, and a body nobody wants, end the connection instead of being read."""
    body = bytearray()
    while len(body) < limit and (piece := await response.content.read(limit - len(body))):
        body += piece
    if not response.content.at_eof():
        response.close()
    return Answer(response.status, response.headers, bytes(body))


async def _read(response: aiohttp.ClientResponse, least: int) -> bytes:
    """At least `least` bytes, fewer only at the end, none after it."""
    read = bytearray()
    while len(read) < least and (piece := await response.content.read(CHUNK_SIZE - len(read))):
        read += piece
    return bytes(read)


async def _ended(task: "asyncio.Task[Answer]") -> None:
    """Cancel the task and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # looked at, whatever it is: the caller has its answer or an error already
