"""A small S3 that is as strict as AWS where LocalStack is kind, in memory, on loopback, by path, unsigned.

Conditional writes are atomic, part sizes and part numbers have their limits, every checksum a request carries is verified, a
Complete has to name the parts as they were answered, metadata ends at 2 KB, a finished upload is gone, and nothing is stored
under a KMS key that is disabled or denied. Failures come on demand (tests/support/s3_faults.py). What it speaks: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html.
"""

import base64
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote
from uuid import uuid4
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import anycrc
import google_crc32c
from aiohttp import web

from tests.support.s3_faults import REFUSALS, Faults, error_document, flipped

SMALLEST_PART: Final = 5 << 20
MOST_PARTS: Final = 10_000
METADATA_LIMIT: Final = 2048
KEY_LIMIT: Final = 1024
PAGE: Final = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

_META = "x-amz-meta-"
_PLACEMENT = (
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-storage-class",
)
_KEY_REFUSALS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "disabled": (400, "KMS.DisabledException"),
        "denied": (403, "AccessDenied"),
        "missing": (400, "KMS.NotFoundException"),
    }
)
"""https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#KMSErrorCodeList"""
_CHECKSUM = "x-amz-checksum-"
_NVME: Final = anycrc.Model("CRC64-NVME")
_DIGESTS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "content-md5": lambda data: hashlib.md5(data).digest(),  # noqa: S324 - what S3's ETags and Content-MD5 are
        f"{_CHECKSUM}crc32c": lambda data: google_crc32c.value(data).to_bytes(4, "big"),
        f"{_CHECKSUM}crc64nvme": lambda data: _NVME.calc(data).to_bytes(8, "big"),
        f"{_CHECKSUM}crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
        f"{_CHECKSUM}sha1": lambda data: hashlib.sha1(data).digest(),  # noqa: S324 - one of S3's checksums
        f"{_CHECKSUM}sha256": lambda data: hashlib.sha256(data).digest(),
    }
)


class Refusal(Exception):
    """A request S3 refuses with this status and code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Stored:
    """One object."""

    data: bytes
    etag: str
    headers: Mapping[str, str]
    """Content type, metadata, encryption and storage class, as they came."""
    stored_at: datetime
    checksums: Mapping[str, str] = field(default_factory=dict)
    """The headers that tell its checksum, where it was stored with one."""


@dataclass(slots=True)
class Part:
    """One part as it was answered."""

    data: bytes
    etag: str
    checksum: str | None


@dataclass(slots=True)
class Upload:
    """One open multipart upload."""

    bucket: str
    key: str
    headers: Mapping[str, str]
    algorithm: str | None
    whole: bool
    """The checksum is to be one of the whole object."""
    begun_at: datetime
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(slots=True)
class StrictS3(Faults):
    """The store. Requests that change something do so without an await: one after the other."""

    buckets: dict[str, dict[str, Stored]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    kms_keys: dict[str, str] = field(default_factory=dict)
    """State of every KMS key by its id: `enabled`, `disabled` or `denied`."""
    checks: bool = True
    """False for a store that takes the headers of checksums and ignores them."""
    tells_md5: bool = True
    """False for a store whose ETags look like MD5s and are none."""
    encrypts: bool = True
    """False for a store that takes the headers of an encryption and ignores them."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        head = "\r\n".join(
            [
                f"{request.method} {request.raw_path} HTTP/1.1",
                *(f"{name.decode()}: {value.decode()}" for name, value in request.raw_headers),
                "\r\n",
            ]
        )
        fault = await self.met(head)
        body = await request.read()
        if fault is not None and fault in REFUSALS:
            return _refused(*REFUSALS[fault])
        try:
            body = flipped(body) if fault == "corrupt" else body
            if self.checks:
                _verify(request, body)
            answer = self._carry_out(request, flipped(body) if fault == "rot" else body)
        except Refusal as exc:
            answer = _refused(exc.status, exc.code)
        if fault == "lost reply" and request.transport is not None:
            request.transport.abort()
        return await _half(request, answer) if fault == "cut" else answer

    def _carry_out(self, request: web.Request, body: bytes) -> web.Response:
        name, _, key = unquote(request.raw_path.partition("?")[0]).removeprefix("/").partition("/")
        if name not in self.buckets:
            raise Refusal(404, "NoSuchBucket")
        asked = request.query
        if not key:
            if request.method == "HEAD":
                return web.Response(headers={"x-amz-bucket-region": "us-east-1"})
            if request.method == "GET":
                return self._open_uploads(name, asked) if "uploads" in asked else self._list(name, asked)
            raise Refusal(501, "NotImplemented")
        if len(key.encode()) > KEY_LIMIT:
            raise Refusal(400, "KeyTooLongError")
        operations: dict[tuple[str, str], Callable[[], web.Response]] = {
            ("HEAD", ""): lambda: self._get(request, name, key),
            ("GET", ""): lambda: self._get(request, name, key),
            ("PUT", ""): lambda: self._put(request, name, key, body),
            ("DELETE", ""): lambda: self._delete(name, key),
            ("POST", "uploads"): lambda: self._create(request, name, key),
            ("PUT", "uploadId"): lambda: self._part(request, name, key, body),
            ("POST", "uploadId"): lambda: self._complete(request, name, key, body),
            ("DELETE", "uploadId"): lambda: self._abort(asked["uploadId"], name, key),
        }
        kind = next((word for word in ("uploads", "uploadId") if word in asked), "")
        operation = operations.get((request.method, kind))
        if operation is None:
            raise Refusal(501, "NotImplemented")
        return operation()

    def _get(self, request: web.Request, bucket: str, key: str) -> web.Response:
        there = self.buckets[bucket].get(key)
        if there is None:
            raise Refusal(404, "NoSuchKey")
        if request.headers.get("If-Match", there.etag) != there.etag:
            raise Refusal(412, "PreconditionFailed")
        headers = {
            **there.headers,
            "ETag": there.etag,
            "Last-Modified": format_datetime(there.stored_at, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if request.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= there.checksums
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(there.data))})
        wanted = request.http_range
        if wanted.start is None and wanted.stop is None:
            return web.Response(body=there.data, headers=headers)
        start, stop, _ = wanted.indices(len(there.data))
        if start >= len(there.data):
            raise Refusal(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(there.data)}"
        return web.Response(status=206, body=there.data[start:stop], headers=headers)

    def _put(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        headers = self._kept(request)
        self._require_free(request, bucket, key)
        etag = self._etag(body)
        checksums = {
            name.lower(): base64.b64encode(_DIGESTS[name.lower()](body)).decode()
            for name in request.headers
            if self.checks and name.lower().startswith(_CHECKSUM) and name.lower() in _DIGESTS
        }
        if checksums:
            checksums["x-amz-checksum-type"] = "FULL_OBJECT"
        self.buckets[bucket][key] = Stored(body, etag, headers, _now(), checksums)
        return web.Response(headers={"ETag": etag, **_encryption(headers), **checksums})

    def _etag(self, data: bytes) -> str:
        return f'"{_md5(data if self.tells_md5 else data + b"salt")}"'

    def _delete(self, bucket: str, key: str) -> web.Response:
        self.buckets[bucket].pop(key, None)
        return web.Response(status=204)

    def _create(self, request: web.Request, bucket: str, key: str) -> web.Response:
        id_ = uuid4().hex
        algorithm = request.headers.get("x-amz-checksum-algorithm")
        whole = request.headers.get("x-amz-checksum-type") == "FULL_OBJECT"
        headers = self._kept(request)
        self.uploads[id_] = Upload(bucket, key, headers, algorithm, whole, _now())
        return _document(
            "InitiateMultipartUploadResult",
            f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{id_}</UploadId>",
            {**_encryption(headers), **_declared(request, checks=self.checks)},
        )

    def _part(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        upload = self._upload(request.query["uploadId"], bucket, key)
        number = int(request.query["partNumber"])
        if not 1 <= number <= MOST_PARTS:
            raise Refusal(400, "InvalidArgument")
        self._require_key(upload.headers)
        if "x-amz-copy-source" in request.headers:
            return self._copied_part(request, upload, number)
        checksum = request.headers.get(f"{_CHECKSUM}{upload.algorithm.lower()}") if upload.algorithm else None
        upload.parts[number] = Part(body, self._etag(body), checksum)
        return web.Response(headers={"ETag": upload.parts[number].etag})

    def _copied_part(self, request: web.Request, upload: Upload, number: int) -> web.Response:
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")
        there = self.buckets.get(bucket, {}).get(key)
        if there is None:
            raise Refusal(404, "NoSuchKey")
        if request.headers.get("x-amz-copy-source-if-match", there.etag) != there.etag:
            raise Refusal(412, "PreconditionFailed")
        first, _, last = (
            request.headers.get("x-amz-copy-source-range", "").removeprefix("bytes=").partition("-")
        )
        data = there.data[int(first) : int(last) + 1] if first else there.data
        checksum = _checksum(upload.algorithm, data)
        upload.parts[number] = part = Part(data, self._etag(data), checksum)
        told = f"<Checksum{upload.algorithm}>{checksum}</Checksum{upload.algorithm}>" if checksum else ""
        return _document("CopyPartResult", f"<ETag>{escape(part.etag)}</ETag>{told}")

    def _complete(self, request: web.Request, bucket: str, key: str, body: bytes) -> web.Response:
        id_ = request.query["uploadId"]
        upload = self._upload(id_, bucket, key)
        parts = list(_named_parts(upload, body))
        if any(len(part.data) < SMALLEST_PART for part in parts[:-1]):
            raise Refusal(400, "EntityTooSmall")
        self._require_free(request, bucket, key)
        whole = b"".join(part.data for part in parts)
        etag = f'"{_md5(b"".join(bytes.fromhex(part.etag.strip(chr(34))) for part in parts))}-{len(parts)}"'
        checksums = _checksums(upload, parts, whole)
        for name, value in checksums.items():
            if request.headers.get(name, value) != value:
                raise Refusal(400, "BadDigest")
        self.buckets[bucket][key] = Stored(whole, etag, upload.headers, _now(), checksums)
        del self.uploads[id_]
        told = "".join(
            f"<Checksum{upload.algorithm}>{value}</Checksum{upload.algorithm}>"
            for name, value in checksums.items()
            if name != "x-amz-checksum-type"
        )
        return _document(
            "CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{etag}</ETag>{told}"
        )

    def _abort(self, id_: str, bucket: str, key: str) -> web.Response:
        self._upload(id_, bucket, key)
        del self.uploads[id_]
        return web.Response(status=204)

    def _upload(self, id_: str, bucket: str, key: str) -> Upload:
        upload = self.uploads.get(id_)
        if upload is None or (upload.bucket, upload.key) != (bucket, key):
            raise Refusal(404, "NoSuchUpload")
        return upload

    def _kept(self, request: web.Request) -> dict[str, str]:
        """The headers that stay with an object. Refuses a key that may not be used."""
        headers = _kept(request)
        if not self.encrypts:
            headers = {name: value for name, value in headers.items() if "encryption" not in name}
        self._require_key(headers)
        return headers

    def _require_key(self, headers: Mapping[str, str]) -> None:
        key = headers.get("x-amz-server-side-encryption-aws-kms-key-id")
        state = "enabled" if key is None else self.kms_keys.get(key, "missing")
        if state in _KEY_REFUSALS:
            raise Refusal(*_KEY_REFUSALS[state])

    def _require_free(self, request: web.Request, bucket: str, key: str) -> None:
        if request.headers.get("If-None-Match") == "*" and key in self.buckets[bucket]:
            raise Refusal(412, "PreconditionFailed")

    def _list(self, bucket: str, asked: Mapping[str, str]) -> web.Response:
        after, prefix = asked.get("continuation-token", ""), asked.get("prefix", "")
        quoted = asked.get("encoding-type") == "url"
        # In the order of the UTF-8 bytes, which is that of the code points.
        keys = sorted(key for key in self.buckets[bucket] if key.startswith(prefix) and key > after)
        page, more = keys[:PAGE], len(keys) > PAGE
        entries = "".join(
            f"<Contents><Key>{_xml_key(key, quoted=quoted)}</Key><Size>{len(there.data)}</Size><ETag>{escape(there.etag)}</ETag>"
            f"<LastModified>{_iso(there.stored_at)}</LastModified></Contents>"
            for key in page
            for there in [self.buckets[bucket][key]]
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        coding = "<EncodingType>url</EncodingType>" if quoted else ""
        return _document(
            "ListBucketResult",
            f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{coding}{token}{entries}",
        )

    def _open_uploads(self, bucket: str, asked: Mapping[str, str]) -> web.Response:
        quoted = asked.get("encoding-type") == "url"
        entries = "".join(
            f"<Upload><Key>{_xml_key(upload.key, quoted=quoted)}</Key><UploadId>{id_}</UploadId>"
            f"<Initiated>{_iso(upload.begun_at)}</Initiated></Upload>"
            for id_, upload in self.uploads.items()
            if upload.bucket == bucket and upload.key.startswith(asked.get("prefix", ""))
        )
        coding = "<EncodingType>url</EncodingType>" if quoted else ""
        return _document(
            "ListMultipartUploadsResult",
            f"<Bucket>{bucket}</Bucket><IsTruncated>false</IsTruncated>{coding}{entries}",
        )


@asynccontextmanager
async def strict_s3(*buckets: str) -> AsyncIterator[StrictS3]:
    """The store with these buckets, by default one called `bucket`, at its `url` for as long as the block runs."""
    store = StrictS3(buckets={name: {} for name in buckets or ("bucket",)})
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", store.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        store.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield store
    finally:
        store.released.set()
        await runner.cleanup()


def _verify(request: web.Request, body: bytes) -> None:
    """Refuse a body that is not what the request says of it."""
    if "aws-chunked" in request.headers.get("Content-Encoding", ""):
        raise Refusal(501, "NotImplemented")
    signed = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    if signed != "UNSIGNED-PAYLOAD" and signed != hashlib.sha256(body).hexdigest():
        raise Refusal(400, "XAmzContentSHA256Mismatch")
    # At Complete a checksum header is the object's, and this store computes none of those.
    if request.method == "PUT":
        for name, digest in _DIGESTS.items():
            if request.headers.get(name, "") not in {"", base64.b64encode(digest(body)).decode()}:
                raise Refusal(400, "BadDigest")


def _kept(request: web.Request) -> dict[str, str]:
    """The headers that stay with an object."""
    metadata = {
        name.lower(): value for name, value in request.headers.items() if name.lower().startswith(_META)
    }
    if sum(len(name.removeprefix(_META)) + len(value) for name, value in metadata.items()) > METADATA_LIMIT:
        raise Refusal(400, "MetadataTooLarge")
    placement = {name: request.headers[name] for name in _PLACEMENT if name in request.headers}
    content_type = request.headers.get("Content-Type", "binary/octet-stream")
    return {"Content-Type": content_type, **metadata, **placement}


def _encryption(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if "encryption" in name}


def _declared(request: web.Request, *, checks: bool) -> dict[str, str]:
    names = ("x-amz-checksum-algorithm", "x-amz-checksum-type")
    return {name: request.headers[name] for name in names if checks and name in request.headers}


def _checksum(algorithm: str | None, data: bytes) -> str | None:
    if algorithm is None:
        return None
    return base64.b64encode(_DIGESTS[f"{_CHECKSUM}{algorithm.lower()}"](data)).decode()


def _checksums(upload: Upload, parts: list[Part], whole: bytes) -> dict[str, str]:
    """The headers that tell the checksum of a finished upload: of the whole, or of its parts' checksums."""
    if upload.algorithm is None:
        return {}
    if upload.whole:
        value, kind = _checksum(upload.algorithm, whole), "FULL_OBJECT"
    else:
        together = b"".join(base64.b64decode(part.checksum or "") for part in parts)
        value, kind = f"{_checksum(upload.algorithm, together)}-{len(parts)}", "COMPOSITE"
    return {f"{_CHECKSUM}{upload.algorithm.lower()}": value or "", "x-amz-checksum-type": kind}


def _named_parts(upload: Upload, body: bytes) -> Iterator[Part]:
    """The parts a Complete names, which have to be as they were answered."""
    last = 0
    try:
        document = ET.fromstring(body)  # noqa: S314 - what the adapter under test wrote
    except ET.ParseError as exc:
        raise Refusal(400, "MalformedXML") from exc
    listed = [{_bare(item.tag): item.text or "" for item in part} for part in document]
    if not listed:
        raise Refusal(400, "MalformedXML")
    for named in listed:
        number = int(named["PartNumber"])
        if number <= last:
            raise Refusal(400, "InvalidPartOrder")
        last, part = number, upload.parts.get(number)
        checksum = next((text for name, text in named.items() if name.startswith("Checksum")), None)
        if part is None or part.etag.strip('"') != named["ETag"].strip('"') or checksum != part.checksum:
            raise Refusal(400, "InvalidPart")
        yield part


def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def _refused(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=error_document(code), content_type="application/xml")


def _document(name: str, content: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        headers=headers,
        text=f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</{name}>',
        content_type="application/xml",
    )


async def _half(request: web.Request, answer: web.Response) -> web.StreamResponse:
    """The first half of the answer, and the end of the connection."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    cut = web.StreamResponse(status=answer.status, headers=answer.headers)
    cut.content_length = len(body)
    await cut.prepare(request)
    await cut.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return cut


def _xml_key(key: str, *, quoted: bool) -> str:
    return quote(key) if quoted else escape(key)


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()  # noqa: S324 - what S3's ETags are


def _now() -> datetime:
    return datetime.now(UTC)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
