"""A small, strict HTTP API that stores objects: on loopback, over real sockets, its objects in files.

    PUT|GET|HEAD|DELETE /objects/KEY      POST /objects/KEY      GET /list?prefix=&cursor=      GET /health

A request whose body does not come whole stores nothing, `If-None-Match: *` never replaces, `Content-Digest` is verified, and
an `Idempotency-Key` is answered as it was the first time, or with 422 for other content. Failures come on demand (`Fault`).
Used by the tests of backends/http_api.py.
"""

import asyncio
import base64
import hashlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import web
from pydantic import SecretStr

from backends.http_api_options import HttpOptions

Fault = Literal[
    "accepted",
    "busy",
    "corrupt",
    "drop after",
    "drop before",
    "early",
    "elsewhere",
    "error after",
    "error before",
    "hold",
    "moved here",
    "open end",
    "packed",
    "stale replay",
    "throttle",
    "truncated",
]
"""What becomes of a request. `after`: it is carried out, then 500 or a reset; `before`: it is not. `accepted`: 202, nothing
stored. `busy`: 409, nothing there. `corrupt`: a bit flips on the way in. `early`: 201 before the body has come. `elsewhere`,
`moved here`: a redirect to another origin, to this one. `hold`: waits until `released`. `open end`: the answer ends with the
connection. `packed`: the answer says it is gzip. `stale replay`: 201 as kept from before, nothing stored. `throttle`: 429 with
`retry_after`, before the body. `truncated`: half the answer, then a reset."""

PAGE = 1000
TOKEN = "let-me-in"
_OBJECTS = "/objects/"


@dataclass(frozen=True, slots=True)
class Stored:
    """One object. Its bytes are in the file `path`."""

    path: Path
    size: int
    sha256: str
    headers: Mapping[str, str]

    @property
    def answer_headers(self) -> dict[str, str]:
        digest = base64.b64encode(bytes.fromhex(self.sha256)).decode()
        return {**self.headers, "ETag": f'"{self.sha256[:16]}"', "Repr-Digest": f"sha-256=:{digest}:"}


@dataclass(slots=True)
class HttpApi:
    """What the tests set and see."""

    directory: Path
    url: str = ""
    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    """Method, raw path and headers of every request, in order."""
    torn: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the body of a request has broken off."""
    received: int = 0
    """Bytes of bodies that came in."""
    token: str = TOKEN
    retry_after: str = "0"
    elsewhere: str = ""
    tells_digest: bool = True
    held: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key and digest of what was stored, by `Idempotency-Key`."""
    _waiting: list[tuple[re.Pattern[str], Fault]] = field(default_factory=list)

    def fail_next(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests whose `METHOD /path` matches `pattern` fail that way."""
        self._waiting += [(re.compile(pattern), fault)] * times

    def forgive(self) -> None:
        """Drop the faults that nothing has met yet."""
        self._waiting.clear()

    def asked(self, method: str) -> list[Mapping[str, str]]:
        """The headers of every request with that method."""
        return [headers for name, _, headers in self.requests if name == method]

    def content(self, key: str) -> bytes:
        """The bytes of an object."""
        return self.objects[key].path.read_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Store an object behind everybody's back."""
        path = self.directory / uuid4().hex
        path.write_bytes(data)
        self.objects[key] = Stored(path, len(data), hashlib.sha256(data).hexdigest(), {})

    def remove(self, key: str) -> None:
        """Take an object away, and the answers that speak of it."""
        self.objects.pop(key).path.unlink()
        self._answers = {name: kept for name, kept in self._answers.items() if kept[0] != key}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        self.requests.append((request.method, request.raw_path, request.headers.copy()))
        fault = self._met(request)
        refused = self._refused(request, fault)
        if refused is not None:
            return refused
        if fault == "hold":
            self.held.set()
            await self.released.wait()
        if request.path == "/health":
            return web.Response()
        if request.path == "/list":
            return self._page(request)
        key = unquote(request.raw_path.removeprefix(_OBJECTS))
        if request.method in {"PUT", "POST"}:
            answer = await self._put(request, key, fault)
        elif request.method == "DELETE":
            answer = self._delete(key)
        else:
            return await self._get(request, key, fault)
        if fault == "error after":
            return web.Response(status=500)
        if fault == "drop after":
            _reset(request)
        return answer

    def _met(self, request: web.BaseRequest) -> Fault | None:
        line = f"{request.method} {request.raw_path}"
        found = next((n for n, (pattern, _) in enumerate(self._waiting) if pattern.search(line)), -1)
        return self._waiting.pop(found)[1] if found >= 0 else None

    def _refused(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse | None:
        """What is answered before the body is read."""
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text=f"not {request.headers.get('Authorization')}")
        if fault == "drop before":
            _reset(request)
        statuses: Mapping[Fault | None, int] = {"busy": 409, "early": 201, "error before": 500}
        if fault in statuses:
            return web.Response(status=statuses[fault])
        if fault == "throttle":
            return web.Response(status=429, headers={"Retry-After": self.retry_after})
        if fault == "elsewhere":
            return web.Response(status=307, headers={"Location": self.elsewhere + request.raw_path})
        if fault == "moved here":
            return web.Response(status=307, headers={"Location": request.raw_path})
        return None

    async def _put(self, request: web.BaseRequest, key: str, fault: Fault | None) -> web.Response:
        path, digest, size = self.directory / uuid4().hex, hashlib.sha256(), 0
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            with path.open("wb") as file:
                async for chunk in request.content.iter_any():
                    self.received += len(chunk)
                    taken = bytes([chunk[0] ^ 1]) + chunk[1:] if fault == "corrupt" and not size else chunk
                    digest.update(taken)
                    size += len(taken)
                    file.write(taken)
        except BaseException:
            path.unlink()
            self.torn.set()
            raise
        kept = {
            name: value
            for name, value in request.headers.items()
            if name == "Content-Type" or name.startswith("X-Meta-")
        }
        # From here on nothing awaits: this is the transaction.
        answer = self._decided(request, key, Stored(path, size, digest.hexdigest(), kept), fault)
        if key not in self.objects or self.objects[key].path != path:
            path.unlink()
        return answer

    def _decided(self, request: web.BaseRequest, key: str, new: Stored, fault: Fault | None) -> web.Response:
        said = {"Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(new.sha256)).decode()}:"}
        claimed = request.headers.get("Content-Digest")
        if claimed is not None and claimed != said["Repr-Digest"]:
            problem = "https://iana.org/assignments/http-problem-types#digest-mismatching-values"
            return web.json_response({"type": problem}, status=400, content_type="application/problem+json")
        if fault in {"accepted", "stale replay"}:
            return (
                web.Response(status=202) if fault == "accepted" else self._told(201, key, new, replayed=True)
            )
        name = request.headers["Idempotency-Key"]
        if name in self._answers:
            _, before = self._answers[name]
            if before != new.sha256:
                return web.Response(status=422)
            return self._told(201, key, self.objects[key], replayed=True)
        there = self.objects.get(key)
        if there is not None and request.headers.get("If-None-Match") == "*":
            return self._told(412, key, there)
        self.objects[key], self._answers[name] = new, (key, new.sha256)
        return self._told(201, key, new)

    def _told(self, status: int, key: str, what: Stored, *, replayed: bool = False) -> web.Response:
        headers = what.answer_headers if self.tells_digest else {}
        headers.pop("Content-Type", None)
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        document = {"key": key, "stored": {"sha256": what.sha256}}
        return web.json_response(document, status=status, headers=headers)

    def _delete(self, key: str) -> web.Response:
        if key not in self.objects:
            return web.Response(status=404)
        self.remove(key)
        return web.Response(status=204)

    async def _get(self, request: web.BaseRequest, key: str, fault: Fault | None) -> web.StreamResponse:
        found = self.objects.get(key)
        if found is None:
            return web.Response(status=404)
        headers = {**found.answer_headers, "Content-Length": str(found.size)}
        if fault == "packed":
            headers["Content-Encoding"] = "gzip"
        if fault == "open end":
            del headers["Content-Length"]
            headers["Connection"] = "close"
        if fault in {"open end", "truncated"}:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            assert request.transport is not None
            request.transport.write(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode())
            request.transport.write(self.content(key)[: found.size // 2])
            request.transport.close()
            raise ConnectionResetError
        response = web.StreamResponse(headers=headers)
        response.content_length = found.size
        await response.prepare(request)
        if request.method == "GET":
            with found.path.open("rb") as file:
                while chunk := file.read(1 << 18):
                    await response.write(chunk)
        await response.write_eof()
        return response

    def _page(self, request: web.BaseRequest) -> web.Response:
        prefix, after = request.query.get("prefix", ""), request.query.get("cursor", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        items = [{"name": key, "bytes": self.objects[key].size} for key in keys[:PAGE]]
        more = keys[PAGE - 1] if len(keys) > PAGE else None
        return web.json_response({"page": {"objects": items}, "next": more})


def _reset(request: web.BaseRequest) -> None:
    """RST: nothing of an answer arrives."""
    assert request.transport is not None
    peer: Any = request.transport.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    raise ConnectionResetError


@asynccontextmanager
async def http_api(
    directory: Path, *, certificate: Path | None = None, key: Path | None = None
) -> AsyncIterator[HttpApi]:
    """One on a free port, with its objects below `directory`; by TLS where it is given a certificate."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    api = HttpApi(directory)
    runner = web.ServerRunner(web.Server(api.handle), shutdown_timeout=0.1)
    await runner.setup()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if certificate is not None else None
    if tls is not None and certificate is not None:
        tls.load_cert_chain(certificate, key)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    api.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield api
    finally:
        await runner.cleanup()


def options_for(api: HttpApi, **changes: Any) -> HttpOptions:
    """How to reach it; `changes` replace single options."""
    return HttpOptions(
        **{
            "base_url": api.url,
            "token": SecretStr(TOKEN),
            "path": "objects/{key}",
            "metadata_prefix": "X-Meta-",
            "list_path": "list?prefix={prefix}&cursor={cursor}",
            "list_items": "page.objects",
            "list_key": "name",
            "list_size": "bytes",
            **changes,
        }
    )
