"""Staging on a slow S3: one bucket to read from, whose payloads trickle, or stop half way until they are let go on.

Loopback, by path, unsigned. Used by tests/faults/test_queue_faults.py.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import ClientConnectionResetError, web

BUCKET = "staging"
_PIECES = 100


@dataclass(slots=True)
class SlowStaging:
    """What the tests set and see. Keys are those of objects."""

    url: str = ""
    payloads: dict[str, bytes] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    """Keys whose second half waits for `released`."""
    seconds: float = 0.0
    """How long every other payload takes, or those in `slow`."""
    slow: set[str] = field(default_factory=set)
    """Keys that take so long, where not all do."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[str] = field(default_factory=list)
    """The key of every read that began."""
    halfway: list[str] = field(default_factory=list)
    """The key of every read that came to the middle."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        _, _, key = request.path.removeprefix("/").partition("/")
        if not key:
            return web.Response(headers={"x-amz-bucket-region": "us-east-1"})
        data = self.payloads.get(key)
        if data is None:
            return web.Response(status=404)
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        response.headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        response.headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        if request.method == "GET":
            self.begun.append(key)
            with suppress(ClientConnectionResetError):
                await self._send(response, key, data[start:])
        return response

    async def _send(self, response: web.StreamResponse, key: str, data: bytes) -> None:
        if key in self.held:
            await response.write(data[: len(data) // 2])
            self.halfway.append(key)
            await self.released.wait()
            await response.write(data[len(data) // 2 :])
            return
        step = max(1, -(-len(data) // _PIECES))
        for number, at in enumerate(range(0, len(data), step)):
            if number == _PIECES // 2:
                self.halfway.append(key)
            await response.write(data[at : at + step])
            if self.seconds and (not self.slow or key in self.slow):
                await asyncio.sleep(self.seconds / min(_PIECES, len(data)))


@asynccontextmanager
async def slow_staging() -> AsyncIterator[SlowStaging]:
    """The store, at its `url` for as long as the block runs."""
    store = SlowStaging()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", store.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        store.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield store
    finally:
        store.released.set()
        await runner.cleanup()
