"""A reverse proxy before the NameNode and the DataNode that plays what a healthy cluster never shows. Used by tests of HDFS.

It stands in for both: redirects lead back to it (or to whatever `datanode_url` says), and a request that names its NameNode is
for the DataNode.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["lost reply", "error after", "corrupt", "shorten", "cut", "unknown operation", "hold"]
"""`lost reply`: the server does it, the client never hears. `error after`: it does it, and says 500. `corrupt`, `shorten`: the
body arrives with one bit flipped, or without its last byte. `cut`: half of the answer. `unknown operation`: asked of the real
server under a name that it does not know. `hold`: waits for `released`."""


@dataclass(slots=True)
class HdfsFront:
    """What the tests set and see."""

    url: str = ""
    datanode_url: str = ""
    """Where redirects lead to."""
    decodes_twice: bool = False
    """The NameNode reads paths as some releases do: https://issues.apache.org/jira/browse/HDFS-14423."""
    requests: list[str] = field(default_factory=list)
    """Method and URL of every request, in order, those to the DataNode marked with `datanode`."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: list[tuple[re.Pattern[str], Fault | tuple[int, str]]] = field(default_factory=list)

    def fail_next(self, pattern: str, fault: Fault | tuple[int, str], times: int = 1) -> None:
        """Let the next `times` requests that match fail that way; a pair is a status and a Java exception's name."""
        self._waiting += [(re.compile(pattern), fault)] * times

    def met(self, line: str) -> Fault | tuple[int, str] | None:
        """Note the request; the fault it meets, used up by asking."""
        self.requests.append(line)
        for number, (pattern, _) in enumerate(self._waiting):
            if pattern.search(line):
                return self._waiting.pop(number)[1]
        return None


@asynccontextmanager
async def hdfs_front(namenode: str) -> AsyncIterator[HdfsFront]:
    """Run a front before the cluster on a free port of loopback."""
    front = HdfsFront()
    datanode = ""
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def serve(request: web.BaseRequest) -> web.StreamResponse:
            nonlocal datanode
            to_datanode = "namenoderpcaddress" in request.query
            line = f"{request.method} {request.rel_url}"
            fault = front.met(f"datanode {line}" if to_datanode else line)
            if fault == "hold":
                front.held.set()
                await front.released.wait()
            if isinstance(fault, tuple):
                return web.json_response({"RemoteException": {"exception": fault[1]}}, status=fault[0])
            path = str(request.rel_url)
            if fault == "unknown operation":
                path = re.sub(r"op=\w+", "op=UNHEARDOF", path)
            if front.decodes_twice and not to_datanode:
                where, _, query = path.partition("?")
                path = f"{where.replace('%25', '%')}?{query}"
            target = URL((datanode if to_datanode else namenode) + path, encoded=True)
            body = _altered(request, fault) if request.body_exists else None
            async with session.request(request.method, target, data=body, allow_redirects=False) as answer:
                content = await answer.read()
            if fault == "lost reply" and request.transport is not None:
                request.transport.abort()
            if fault == "error after":
                return web.Response(status=500)
            headers = {name: answer.headers[name] for name in ("Date",) if name in answer.headers}
            if answer.status == 307:
                location = URL(answer.headers["Location"], encoded=True)
                datanode = str(location.origin())
                headers["Location"] = (front.datanode_url or front.url) + str(location.relative())
            if fault == "cut":
                return await _half(request, content)
            return web.Response(status=answer.status, body=content, headers=headers)

        runner = web.ServerRunner(web.Server(serve, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        front.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield front
        finally:
            await runner.cleanup()


async def _altered(request: web.BaseRequest, fault: object) -> AsyncIterator[bytes]:
    last = b""
    async for chunk in request.content.iter_any():
        if last:
            yield last
        last = bytes([chunk[0] ^ 1]) + chunk[1:] if fault == "corrupt" and not last else chunk
    yield last[:-1] if fault == "shorten" else last


async def _half(request: web.BaseRequest, content: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(content))})
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
