"""Bundles that are written to like files, the OC Fetcher's older form: `open_bundle`, `write`, `close`.

Made by worker/storage/own.py. Everything goes through a `BundleStorageContext`; what is written is one resource of it.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from hashlib import sha256
from types import TracebackType
from typing import Any

from handlers.bids import is_bid
from worker.producer import ProducerError
from worker.storage.base import BundleRef
from worker.storage.bundle import BundleStorageContext

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class BundleStream:
    """One open bundle. `write` and `write_resource` may be mixed; what `write` took is one resource."""

    def __init__(self, context: BundleStorageContext, url: str, metadata: Mapping[str, Any]) -> None:
        """Made by `open_bundle`. `url` is what the written resource is called."""
        self._context = context
        self._url = url
        self._metadata = dict(metadata)
        # One chunk waits while another is stored; whoever writes waits with it.
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._storing: asyncio.Task[None] | None = None
        self._ended = False
        self.given_up = False
        """It was aborted."""

    async def write(self, data: bytes) -> None:
        """Add to the resource. Raises what keeps it from being stored, as `add_resource` does, now or when it is closed."""
        if self._ended:
            raise ProducerError(f"bundle {self._context.bid} is closed; open another one")
        if self._storing is None:
            self._storing = asyncio.create_task(self._store(), name="bundle-stream")
        await self._hand(self._storing, bytes(data))

    async def write_resource(
        self,
        url: str,
        content_type: str | None = None,
        status_code: int | None = None,
        stream: AsyncIterator[bytes] | None = None,
    ) -> None:
        """Add a whole resource beside what is written, as `add_resource` does."""
        await self._context.add_resource(url, content_type, status_code, stream or _nothing())

    async def close(self) -> None:
        """Store what was written, and complete the bundle. May be called again after an error.

        Raises what `add_resource` and `complete` raise, and `ProducerError` after `abort`.
        """
        if self.given_up:
            raise ProducerError(f"bundle {self._context.bid} was given up; open another one")
        self._ended = True
        if self._storing is not None:
            # Who closes may be cancelled; storing goes on, and its end is told again if it was not taken.
            await self._hand(self._storing, None)
            await asyncio.wait([self._storing])
            self._storing.result()
        await self._context.complete(self._metadata)

    async def abort(self) -> None:
        """Give up what was written. The bundle is not announced."""
        self._ended = self.given_up = True
        if self._storing is not None:
            self._storing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._storing

    def get_bundle_ref(self) -> BundleRef:
        """The bundle; once it is closed, with its storage key and its number of resources."""
        return self._context.bundle_ref

    def get_metadata(self) -> dict[str, Any]:
        """What the bundle was opened with."""
        return dict(self._metadata)

    async def _store(self) -> None:
        content_type, status_code = self._metadata.get("content_type"), self._metadata.get("status_code")
        await self._context.add_resource(self._url, content_type, status_code, self._written())

    async def _written(self) -> AsyncGenerator[bytes, None]:
        while (data := await self._chunks.get()) is not None:
            yield data

    async def _hand(self, storing: asyncio.Task[None], data: bytes | None) -> None:
        """Give the next chunk, or the end, to whoever stores it, unless that has failed."""
        handing = asyncio.ensure_future(self._chunks.put(data))
        try:
            await asyncio.wait({handing, storing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            handing.cancel()
        if storing.done():
            storing.result()


class Opening:
    """What `open_bundle` returns: to be awaited, or entered."""

    def __init__(self, opened: Callable[[], Awaitable[BundleStream]]) -> None:
        self._opened = opened
        self._stream: BundleStream | None = None

    def __await__(self) -> Generator[Any, None, BundleStream]:
        return self._opened().__await__()

    async def __aenter__(self) -> BundleStream:
        self._stream = await self._opened()
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            return
        if kind is not None:
            await self._stream.abort()
        elif not self._stream.given_up:
            await self._stream.close()


def bundle_ref_of(bundle_id: str, metadata: Mapping[str, Any]) -> BundleRef:
    """The bundle that is called so: always the same bid for the same id."""
    url = str(metadata.get("primary_url") or metadata.get("url") or bundle_id)
    return BundleRef(url, bid=bid_of(bundle_id), meta=metadata)


def bid_of(bundle_id: str) -> str:
    """The id itself where it is a bid, else `custom-` and the id; with a digest where that would be none."""
    if is_bid(bundle_id):
        return bundle_id
    if _PLAIN.fullmatch(bundle_id):
        return f"custom-{bundle_id}"
    digest = sha256(bundle_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    readable = _UNSAFE.sub("-", bundle_id).strip("-_")[:60]
    return f"custom-{readable}-{digest}" if readable else f"custom-{digest}"


def recipe_id_of(metadata: Mapping[str, Any]) -> str:
    """What the metadata calls the recipe, or its source."""
    return str(metadata.get("recipe_id") or metadata.get("source") or "default")


async def _nothing() -> AsyncGenerator[bytes, None]:
    """A resource without bytes."""
    empty: tuple[bytes, ...] = ()
    for chunk in empty:
        yield chunk
