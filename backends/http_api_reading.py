"""What changes nothing at an HTTP API: objects read, looked up, listed and compared. Used by backends/http_api.py only."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from urllib.parse import quote

from backends.base import ObjectStat
from backends.errors import Conflict, NotFound, StorageError
from backends.http_api_body import at
from backends.http_api_client import ANSWER_LIMIT, HttpClient
from backends.http_api_errors import refusal
from backends.http_api_metadata import attributes_of, etag_of
from backends.http_api_options import HttpOptions

MISSING = frozenset({404, 410})


class Reader:
    """The objects of one API, as far as it can be read. Whoever asks has looked whether it can."""

    def __init__(self, options: HttpOptions, client: HttpClient) -> None:
        """`client` stays the caller's to close."""
        self._options = options
        self._client = client

    def url(self, key: str, *, write: bool = False) -> str:
        """Where an object lies, or is written."""
        options = self._options
        path = (options.write_path if write else None) or options.path
        return options.root + path.lstrip("/").format(key=quote(key, safe="/~"))

    def doing(self, verb: str, key: str) -> str:
        """How errors call what was asked."""
        return f"{verb} {self._options.root}{key}"

    @asynccontextmanager
    async def get(self, key: str) -> AsyncIterator[tuple[ObjectStat, AsyncIterator[bytes]]]:
        """The object's facts (size -1 where only its end tells) and its bytes."""
        doing = self.doing("read", key)
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(self._client.reading("GET", self.url(key), doing))
            if response.status != 200:
                raise refusal(response.status, doing)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise StorageError(f"could not {doing}: it comes packed, though `identity` was asked for")
            size = response.content_length
            if size is None and response.headers.get("Transfer-Encoding", "").lower() != "chunked":
                raise StorageError(f"could not {doing}: the answer does not say where it ends")
            stat = self._stat_of(key, -1 if size is None else size, response.headers)
            yield stat, await stack.enter_async_context(aclosing(self._client.chunks(response, doing)))

    async def stat(self, key: str) -> ObjectStat | None:
        """The object's facts, by `stat_method`; None when there is none."""
        doing = self.doing("look up", key)
        async with self._client.reading(self._options.stat_method, self.url(key), doing) as response:
            if response.status in MISSING:
                return None
            if response.status != 200:
                raise refusal(response.status, doing)
            if response.content_length is None:
                raise StorageError(f"could not {doing}: the answer has no Content-Length")
            return self._stat_of(key, response.content_length, response.headers)

    async def equal(self, key: str, size: int, sha256: str) -> ObjectStat | None:
        """The facts of what lies under `key` if it has this size and digest; None if nothing does. Raises `Conflict`."""
        digest, received = hashlib.sha256(), 0
        try:
            async with self.get(key) as (stat, chunks):
                same = stat.size in {-1, size}
                if same:
                    async for chunk in chunks:
                        digest.update(chunk)
                        received += len(chunk)
        except NotFound:
            return None
        if not same or (received, digest.hexdigest()) != (size, sha256):
            raise Conflict(f"{self._options.root}{key} holds other content; it was left as it is")
        return stat

    async def list(self, prefix: str) -> AsyncGenerator[ObjectStat, None]:
        """The objects in the order of their keys, a request a page. A page that is out of order is an error."""
        doing, seen, cursor = self.doing("list", prefix), "", ""
        while True:
            path = (self._options.list_path or "").format(
                prefix=quote(prefix, safe=""), cursor=quote(cursor, safe="")
            )
            answer = await self._client.ask(
                "GET", self._options.root + path.lstrip("/"), doing, limit=ANSWER_LIMIT
            )
            if answer.status != 200:
                raise refusal(answer.status, doing)
            page = answer.json()
            items = at(page, self._options.list_items)
            if not isinstance(items, list):
                raise StorageError(
                    f"could not {doing}: a page without a list under {self._options.list_items!r}"
                )
            for item in items:
                key, size = at(item, self._options.list_key), at(item, self._options.list_size)
                if not isinstance(key, str) or not isinstance(size, int) or key <= seen:
                    raise StorageError(f"could not {doing}: an object without key or size, or out of order")
                seen = key
                if key.startswith(prefix):
                    yield ObjectStat(key, size)
            following = at(page, self._options.list_next)
            if not following:
                return
            if str(following) == cursor:
                raise StorageError(f"could not {doing}: the cursor does not move on")
            cursor = str(following)

    def _stat_of(self, key: str, size: int, headers: Mapping[str, str]) -> ObjectStat:
        content_type, metadata = attributes_of(headers, self._options.metadata_prefix)
        return ObjectStat(key, size, etag_of(headers), content_type, metadata)
