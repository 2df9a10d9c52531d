"""A small Google Cloud Storage that is as strict as the real one where its emulator is kind; JSON API, on loopback.

Preconditions hold, and those of a resumable upload when it ends, as at Google (googleapis/google-cloud-java#201). Chunks have
their grain and their place, checksums are verified before an object comes into being, generations are told apart, listings
come in pages, long rewrites in steps, tokens expire. Failures come on demand. What it speaks:
https://cloud.google.com/storage/docs/json_api/v1 and https://cloud.google.com/storage/docs/performing-resumable-uploads.
"""

import asyncio
import base64
import gzip
import itertools
import json
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import IO, Any, Final, Literal

import google_crc32c

from tests.support.plain_http import Request, Response, serving

GRAIN: Final = 256 << 10
PAGE: Final = 1000
KEY_LIMIT: Final = 1024
METADATA_LIMIT: Final = 8 << 10
"""https://cloud.google.com/storage/quotas#objects"""

Fault = Literal[
    "corrupt",
    "cut",
    "denied",
    "gone",
    "hold",
    "lost reply",
    "no document",
    "partial",
    "rot",
    "taken",
    "throttled",
    "too many requests",
    "unavailable",
]
"""`corrupt`: a bit of the body flips on the way in, `rot`: on the way out. `cut`: the answer's body ends half way. `gone`: the
upload session is lost, 410. `hold`: the request waits until `released` is set. `lost reply`: it is carried out, the
connection breaks. `no document`: it is not carried out, and answered with 200 and `document`. `partial`: of a chunk only the first 256 KiB are kept, 503. The others are refusals."""
_REFUSALS: Final = {
    "denied": (403, "forbidden"),
    "taken": (412, "conditionNotMet"),
    "throttled": (403, "rateLimitExceeded"),
    "too many requests": (429, "rateLimitExceeded"),
    "unavailable": (503, "backendError"),
}
_RANGE: Final = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(?:(\d+)|\*)")


class Refusal(Exception):
    """A request GCS refuses with this status, reason and message."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(reason)
        self.answer = _json(
            {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}, status
        )


@dataclass(slots=True)
class Stored:
    """One object: its description, and a file with its bytes."""

    resource: dict[str, Any]
    file: IO[bytes]

    @property
    def size(self) -> int:
        return int(self.resource["size"])

    def pieces(self, *, rotten: bool = False) -> Iterator[bytes]:
        """The bytes. The file's position is anybody's between two pieces."""
        for start in range(0, self.size, 1 << 20):
            self.file.seek(start)
            piece = self.file.read(1 << 20)
            yield _flipped(piece) if rotten and start == 0 else piece


@dataclass(slots=True)
class Session:
    """One resumable upload."""

    resource: dict[str, Any]
    condition: str | None
    file: IO[bytes]
    size: int = 0
    crc32c: int = 0
    done: dict[str, Any] | None = None


@dataclass(slots=True)
class StrictGcs:
    """The store. Requests that change something do so without an await: one after the other."""

    url: str = ""
    bucket: str = "bucket"
    objects: dict[str, Stored] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    permissions: set[str] = field(default_factory=lambda: {"storage.objects.create", "storage.objects.get"})
    step: int = 4 << 20
    """Bytes one rewrite call copies."""
    verifies: bool = True
    """Whether the CRC32C that comes with a last chunk is looked at. Emulators ignore it."""
    document: bytes = b""
    """The body of the answers that are none."""
    token: str | None = None
    """What requests have to carry, besides those for a new one; None lets everybody in."""
    issued: int = 0
    requests: list[str] = field(default_factory=list)
    """Method and target of every request, in order."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request arrived that waits for `released`."""
    _waiting: list[tuple[re.Pattern[str], Fault]] = field(default_factory=list)
    _files: ExitStack = field(default_factory=ExitStack)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))

    def fail_next(self, pattern: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests fail whose method, path, query and Content-Range match `pattern`."""
        self._waiting += [(re.compile(pattern), fault)] * times

    def forgive(self) -> None:
        """Drop the faults that nothing has met yet."""
        self._waiting.clear()

    async def handle(self, request: Request) -> Response:
        asked = "&".join(f"{name}={value}" for name, values in request.query.items() for value in values)
        line = f"{request.method} {request.path}?{asked} {request.headers.get('content-range', '')}".rstrip()
        self.requests.append(line)
        fault = self._met(line)
        if fault == "hold":
            self.held.set()
            await self.released.wait()
        try:
            answer = self._carry_out(request, fault)
        except Refusal as exc:
            answer = exc.answer
        return Response(
            answer.status,
            answer.headers,
            answer.body,
            answer.pieces,
            answer.length,
            cut=fault == "cut",
            lost=fault == "lost reply",
        )

    def _met(self, line: str) -> Fault | None:
        found = next((n for n, (pattern, _) in enumerate(self._waiting) if pattern.search(line)), -1)
        return self._waiting.pop(found)[1] if found >= 0 else None

    def _carry_out(self, request: Request, fault: Fault | None) -> Response:
        if request.path == "/token":
            self.issued += 1
            self.token = f"token-{self.issued}"
            return _json({"access_token": self.token, "expires_in": 3600, "token_type": "Bearer"})
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "authError")
        if fault in _REFUSALS:
            raise Refusal(*_REFUSALS[fault])
        if fault == "no document":
            return Response(body=self.document)
        if fault == "corrupt":
            request = replace(request, body=_flipped(request.body))
        return self._session(request, fault) if request.path == "/session" else self._operate(request, fault)

    def _operate(self, request: Request, fault: Fault | None) -> Response:
        api, _, rest = request.path.partition("/storage/v1/b/")
        name, *path = replace(request, path=rest).segments
        if name != self.bucket:
            raise Refusal(404, "notFound", "The specified bucket does not exist.")
        key = path[1] if path[:1] == ["o"] and len(path) > 1 else ""
        form = "/".join("{key}" if number in {1, 6} else segment for number, segment in enumerate(path))
        operations: dict[tuple[str, str, str], Callable[[], Response]] = {
            ("", "GET", "iam/{key}"): lambda: self._permitted(request),
            ("/upload", "POST", "o"): lambda: self._insert(request),
            ("", "GET", "o"): lambda: self._list(request),
            ("", "GET", "o/{key}"): lambda: self._get(request, key, rotten=fault == "rot"),
            ("", "PATCH", "o/{key}"): lambda: self._patch(request, key),
            ("", "DELETE", "o/{key}"): lambda: self._delete(request, key),
            ("", "POST", f"o/{{key}}/rewriteTo/b/{self.bucket}/o/{{key}}"): lambda: self._rewrite(
                request, key, path[6]
            ),
        }
        operation = operations.get((api, request.method, form))
        if operation is None:
            raise Refusal(501, "notImplemented")
        return operation()

    def _permitted(self, request: Request) -> Response:
        wanted = request.query.get("permissions", [])
        return _json({"permissions": [each for each in wanted if each in self.permissions]})

    def _delete(self, request: Request, key: str) -> Response:
        self._existing(request, key)
        del self.objects[key]
        return Response(204)

    def _insert(self, request: Request) -> Response:
        if request.asked("uploadType") == "resumable":
            return self._begin(request)
        described, data = _parts(request)
        told = described.get("crc32c", _crc32c(data))
        if told != _crc32c(data):
            raise Refusal(
                400,
                "invalid",
                f'Provided CRC32C "{told}" doesn\'t match calculated CRC32C "{_crc32c(data)}".',
            )
        self._require(request.asked("ifGenerationMatch"), described["name"])
        return _json(self._create(described, BytesIO(data), len(data), _crc32c(data)))

    def _begin(self, request: Request) -> Response:
        described = _described(json.loads(request.body or b"{}"), request.asked("name"))
        id_ = str(next(self._numbers))
        self.sessions[id_] = Session(
            described,
            request.asked("ifGenerationMatch"),
            self._file(),
        )
        return Response(headers={"Location": f"{self.url}/session?upload_id={id_}"})

    def _session(self, request: Request, fault: Fault | None) -> Response:
        id_ = request.asked("upload_id") or ""
        session = self.sessions.get(id_)
        if fault == "gone" and session is not None:
            del self.sessions[id_]
            session = None
        if session is None:
            raise Refusal(410, "gone")
        if request.method == "DELETE":
            del self.sessions[id_]
            raise Refusal(499, "clientClosedRequest")
        found = _RANGE.fullmatch(request.headers.get("content-range", ""))
        if request.method != "PUT" or found is None:
            raise Refusal(400, "invalid", "no Content-Range")
        if session.done is not None:
            return _json(session.done)
        start, end, total = (None if text is None else int(text) for text in found.groups())
        if start is not None and end is not None:
            self._append(
                session, request.body, start, end, final=total is not None, partial=fault == "partial"
            )
        elif request.body:
            raise Refusal(400, "invalid", "bytes without a place")
        if fault == "partial":
            raise Refusal(503, "backendError")
        return self._finish(session, request, total) if total == session.size else _incomplete(session.size)

    @staticmethod
    def _append(session: Session, body: bytes, start: int, end: int, *, final: bool, partial: bool) -> None:
        if len(body) != end - start + 1 or start > session.size:
            raise Refusal(400, "invalid", "bytes out of place")
        if not final and len(body) % GRAIN:
            raise Refusal(400, "invalid", "not a multiple of 256 KiB")
        # What has arrived before is ignored, as the documentation promises.
        fresh = body[session.size - start :][: GRAIN if partial else None]
        session.file.seek(session.size)
        session.file.write(fresh)
        session.size += len(fresh)
        session.crc32c = google_crc32c.extend(session.crc32c, fresh)

    def _finish(self, session: Session, request: Request, total: int) -> Response:
        crc32c = _base64(session.crc32c)
        told = request.headers.get("x-goog-hash", "").partition("crc32c=")[2]
        if self.verifies and told and told != crc32c:
            raise Refusal(
                400, "invalid", f'Provided CRC32C "{told}" doesn\'t match calculated CRC32C "{crc32c}".'
            )
        self._require(session.condition, session.resource["name"])
        session.done = self._create(session.resource, session.file, total, crc32c)
        return _json(session.done)

    def _file(self) -> IO[bytes]:
        return self._files.enter_context(tempfile.TemporaryFile())

    @property
    def open_sessions(self) -> int:
        """Uploads that were begun and neither finished nor cancelled."""
        return sum(session.done is None for session in self.sessions.values())

    def _create(
        self, described: Mapping[str, Any], file: IO[bytes], size: int, crc32c: str
    ) -> dict[str, Any]:
        generation = str(next(self._numbers))
        resource = {
            "contentType": "application/octet-stream",
            **described,
            "bucket": self.bucket,
            "generation": generation,
            "metageneration": "1",
            "etag": f"{generation}/1",
            "size": str(size),
            "crc32c": crc32c,
        }
        self.objects[described["name"]] = Stored(resource, file)
        return resource

    def _existing(self, request: Request, key: str) -> Stored:
        there = self.objects.get(key)
        if there is None or request.asked("generation") not in {None, there.resource["generation"]}:
            raise Refusal(404, "notFound", f"No such object: {self.bucket}/{key}")
        self._require(request.asked("ifGenerationMatch"), key)
        return there

    def _require(self, generation: str | None, key: str) -> None:
        there = self.objects.get(key)
        if generation not in {None, there.resource["generation"] if there else "0"}:
            raise Refusal(
                412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."
            )

    def _get(self, request: Request, key: str, *, rotten: bool) -> Response:
        there = self._existing(request, key)
        if request.asked("alt") != "media":
            return _json(there.resource)
        headers = {
            "Content-Type": there.resource["contentType"],
            "x-goog-generation": there.resource["generation"],
            "x-goog-hash": f"crc32c={there.resource['crc32c']},md5=unknown",
            **{f"x-goog-meta-{name}": value for name, value in there.resource.get("metadata", {}).items()},
        }
        if there.resource.get("contentEncoding") == "gzip":
            # https://cloud.google.com/storage/docs/transcoding
            if "gzip" not in request.headers.get("accept-encoding", ""):
                return Response(headers=headers, body=gzip.decompress(b"".join(there.pieces())))
            headers["Content-Encoding"] = "gzip"
        return Response(headers=headers, pieces=there.pieces(rotten=rotten), length=there.size)

    def _patch(self, request: Request, key: str) -> Response:
        there = self._existing(request, key)
        change = json.loads(request.body)
        metadata = {**there.resource.get("metadata", {}), **change.pop("metadata", {})}
        metageneration = str(int(there.resource["metageneration"]) + 1)
        etag = f"{there.resource['generation']}/{metageneration}"
        there.resource |= _described({**change, "metadata": metadata}, key)
        there.resource |= {"metageneration": metageneration, "etag": etag}
        return _json(there.resource)

    def _list(self, request: Request) -> Response:
        prefix, after = request.asked("prefix") or "", request.asked("pageToken") or ""
        most = min(int(request.asked("maxResults") or PAGE), PAGE)
        # In the order of the UTF-8 bytes, which is that of the code points.
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        page: dict[str, Any] = {"kind": "storage#objects"}
        if keys:
            page["items"] = [self.objects[key].resource for key in keys[:most]]
        if len(keys) > most:
            page["nextPageToken"] = keys[most - 1]
        return _json(page)

    def _rewrite(self, request: Request, key: str, other: str) -> Response:
        there = self.objects.get(key)
        if there is None or request.asked("sourceGeneration") not in {None, there.resource["generation"]}:
            raise Refusal(404, "notFound", f"No such object: {self.bucket}/{key}")
        self._require(request.asked("ifGenerationMatch"), other)
        done = int(request.asked("rewriteToken") or "0") + self.step
        told = {"totalBytesRewritten": str(min(done, there.size)), "objectSize": str(there.size)}
        if done < there.size:
            return _json({**told, "done": False, "rewriteToken": str(done)})
        described = _described(json.loads(request.body or b"{}"), other)
        copy = self._file()
        for piece in there.pieces():
            copy.write(piece)
        resource = self._create(described, copy, there.size, there.resource["crc32c"])
        return _json({**told, "done": True, "resource": resource})

    def close(self) -> None:
        """Close the files, also those of what is deleted: somebody may read it still."""
        self._files.close()


@asynccontextmanager
async def strict_gcs() -> AsyncIterator[StrictGcs]:
    """The store, with one empty bucket called `bucket`, at its `url` for as long as the block runs."""
    with closing(StrictGcs()) as store:
        async with serving(store.handle) as store.url:
            try:
                yield store
            finally:
                store.released.set()


def _described(resource: dict[str, Any], name: str | None) -> dict[str, Any]:
    """What a client may say of an object, within its limits."""
    key = name if name is not None else str(resource.get("name", ""))
    metadata = resource.get("metadata", {})
    if not key or len(key.encode()) > KEY_LIMIT or "\r" in key or "\n" in key:
        raise Refusal(400, "invalid", "The specified object name is not valid.")
    if sum(len(each.encode()) for pair in metadata.items() for each in pair) > METADATA_LIMIT:
        raise Refusal(400, "metadataTooLarge")
    return {**resource, "name": key}


def _parts(request: Request) -> tuple[dict[str, Any], bytes]:
    """The description and the bytes of a multipart/related request."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    start, end = b"--" + boundary + b"\r\n", b"\r\n--" + boundary + b"--\r\n"
    if not boundary or not request.body.startswith(start) or not request.body.endswith(end):
        raise Refusal(400, "badContent", "Malformed multipart body.")
    first, _, second = request.body[len(start) : -len(end)].partition(b"\r\n" + start)
    document = json.loads(first.partition(b"\r\n\r\n")[2])
    return _described(document, request.asked("name")), second.partition(b"\r\n\r\n")[2]


def _incomplete(size: int) -> Response:
    return Response(308, {"Range": f"bytes=0-{size - 1}"} if size else {})


def _json(document: Mapping[str, Any], status: int = 200) -> Response:
    body = json.dumps(document).encode()
    return Response(status, {"Content-Type": "application/json; charset=UTF-8"}, body)


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


def _crc32c(data: bytes) -> str:
    return _base64(google_crc32c.value(data))


def _base64(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()
