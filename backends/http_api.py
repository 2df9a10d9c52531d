"""Objects behind an HTTP API that takes, gives and removes them by URL. Loaded by name through backends/registry.py.

What the API has to do for a write to be atomic and create-only, and what is left to chance where it does not, is in
docs/targets/http.md. A write is one request; its 2xx is the commit, unless `verify` says that it has to be proven.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar, Self

from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
)
from backends.errors import Conflict, IntegrityError, StorageError, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.http_api_body import Answer, Source, digest_field, idempotency_key, told_digest
from backends.http_api_client import HttpClient
from backends.http_api_errors import refusal
from backends.http_api_metadata import etag_of, headers_for
from backends.http_api_options import HttpOptions
from backends.http_api_reading import MISSING, Reader

_STORED = frozenset({200, 201, 204})
_PROBE = ".transload-health"


class HttpBackend:
    """`open`, `stat`, `list` and `delete` as far as the options say that the API has them."""

    Options: ClassVar[type[BackendOptions]] = HttpOptions

    def __init__(self, options: HttpOptions, client: HttpClient) -> None:
        """`client` is closed by `aclose`."""
        self._options = options
        self._client = client
        self._reader = Reader(options, client)

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Make the pool of connections and ask for the API's health."""
        backend = cls(_checked(options), await HttpClient.open(_checked(options)))
        try:
            await backend.health()
        except BaseException:
            await backend.aclose()
            raise
        return backend

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`base_url`, ending in a slash."""
        return _checked(options).root

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:
        """As configured: nothing can be found out by asking."""
        of = _checked(options)
        return Features(
            attributes=of.metadata_prefix is not None,
            reads=of.reads,
            lists=of.list_path is not None,
            deletes=of.deletes,
            create_only=of.if_none_match and (of.reads or of.proof == "answer"),
        )

    @property
    def features(self) -> Features:
        """See `features_of`."""
        return self.features_of(self._options)

    @property
    def location(self) -> str:
        """`base_url`, ending in a slash."""
        return self._options.root

    @property
    def write_buffer(self) -> int:
        """What is gathered, its copy as one piece, and what is read back at a time."""
        return 2 * self._options.buffer + 4 * CHUNK_SIZE

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """One GET. An answer that does not say where it ends is refused: nobody could tell whether it is whole."""
        check_key(key)
        self._need("reads")
        async with self._reader.get(key) as (_, chunks):
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        """One request. Whatever leaves open whether it was carried out is decided by what lies there, if that can be read.

        Where it cannot, the error may be tried again, and the API has the same `Idempotency-Key` to know the request by.
        """
        check_key(key)
        source = Source(chunks)
        first = await source.take(self._options.buffer)
        if self._options.reads and not self._options.if_none_match and await self.stat(key) is not None:
            await source.finish()
            return await self._there(key, source)
        doing = self._reader.doing("write", key)
        try:
            failpoint("http.write.before")
            answer = await self._client.send(
                self._options.method,
                self._reader.url(key, write=True),
                doing,
                self._write_headers(key, first, source, attributes),
                first,
                source,
            )
            failpoint("http.write.after")
            if answer.status not in _STORED:
                error = refusal(answer.status, doing, answer.headers.get("Content-Type", ""), answer.body)
                if not isinstance(error, Conflict):
                    raise error
        except Unavailable:
            if not self._options.reads or not source.ended:
                raise
            found = await self._reader.equal(key, source.size, source.sha256)
            if found is None:
                raise
            return Receipt(key, source.size, source.sha256, found.etag)
        await source.finish()
        if answer.status in _STORED:
            return await self._stored(key, source, answer)
        return await self._taken(key, source, answer)

    def _write_headers(
        self, key: str, first: bytes, source: Source, attributes: Attributes
    ) -> dict[str, str]:
        options = self._options
        sha256 = source.sha256 if source.ended else None
        headers = {
            "Idempotency-Key": idempotency_key(self._reader.url(key, write=True), sha256),
            **headers_for(attributes, options.metadata_prefix),
        }
        if sha256 is not None:
            headers |= {"Content-Length": str(len(first)), "Content-Digest": digest_field(sha256)}
        if options.if_none_match:
            headers["If-None-Match"] = "*"
        if options.proof == "answer":
            headers["Want-Repr-Digest"] = "sha-256=10"
        return headers

    async def _stored(self, key: str, source: Source, answer: Answer) -> Receipt:
        """The receipt for a 2xx, once it is proven."""
        doing = self._reader.doing("write", key)
        replayed = answer.headers.get("Idempotent-Replayed", "").lower() == "true"
        etag = etag_of(answer.headers)
        if self._options.proof == "answer":
            told = self._told(answer)
            if told is None:
                raise StorageError(
                    f"could not prove to {doing}: the answer has no SHA-256; configure digest_header, digest_field or verify"
                )
            if told != source.sha256:
                raise (Conflict if replayed else IntegrityError)(
                    f"could not {doing}: the API says that it holds {told}"
                )
        elif self._options.proof == "read_back":
            try:
                found = await self._reader.equal(key, source.size, source.sha256)
            except Conflict as exc:
                if replayed:
                    raise
                raise IntegrityError(f"could not {doing}: other bytes are read back than were sent") from exc
            if found is None:
                raise Unavailable(f"could not {doing}: HTTP {answer.status}, yet nothing lies there")
            etag = found.etag
        return Receipt(key, source.size, source.sha256, etag, created=not replayed)

    async def _taken(self, key: str, source: Source, answer: Answer) -> Receipt:
        """The receipt if what lies there is what was to be written. Raises `Conflict` when it is not, or cannot be told."""
        if self._options.reads:
            return await self._there(key, source)
        doing, told = self._reader.doing("write", key), self._told(answer)
        if told is None:
            raise Conflict(
                f"could not {doing}: something lies there (HTTP {answer.status}) that cannot be compared"
            )
        if told != source.sha256:
            raise Conflict(f"could not {doing}: other content lies there; it was left as it is")
        return Receipt(key, source.size, source.sha256, etag_of(answer.headers), created=False)

    async def _there(self, key: str, source: Source) -> Receipt:
        found = await self._reader.equal(key, source.size, source.sha256)
        if found is None:
            # Another write or a delete is under way, and a new attempt will tell.
            raise Unavailable(
                f"could not {self._reader.doing('write', key)}: taken, yet nothing lies there now"
            )
        return Receipt(key, source.size, source.sha256, found.etag, created=False)

    async def stat(self, key: str) -> ObjectStat | None:
        """One HEAD (or GET, see `stat_method`)."""
        check_key(key)
        self._need("reads")
        return await self._reader.stat(key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """A request a page. The API has to list in order of the keys' code points; a page that does not is an error."""
        self._need("lists")
        async with aclosing(self._reader.list(prefix)) as objects:
            async for found in objects:
                yield found

    async def delete(self, key: str) -> bool:
        """Looks first where it can: some APIs answer the same whether the object was there or not."""
        check_key(key)
        self._need("deletes")
        if self._options.reads and await self.stat(key) is None:
            return False
        doing = self._reader.doing("delete", key)
        failpoint("http.delete.before")
        answer = await self._client.ask("DELETE", self._reader.url(key), doing)
        failpoint("http.delete.after")
        if answer.status not in _STORED | MISSING:
            raise refusal(answer.status, doing)
        return answer.status in _STORED

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - refused whatever they are
        promise: Promise,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Not offered: HTTP has no copy."""
        raise Unsupported(f"{self.location} cannot copy {source.location}{source_key} to {key!r} by itself")

    async def sweep(self, older_than: float, prefix: str = "") -> int:  # noqa: ARG002 - there is nothing to look at
        """A request that was not finished left nothing that a client could see."""
        return 0

    async def health(self) -> None:
        """The API answers and takes the credentials; whether it lets them write is seen when it does."""
        options, doing = self._options, f"reach {self.location}"
        if options.health_path is not None:
            answer = await self._client.ask("GET", self.location + options.health_path.lstrip("/"), doing)
            good = 200 <= answer.status < 300
        else:
            method = options.stat_method if options.reads else "HEAD"
            answer = await self._client.ask(method, self._reader.url(_PROBE), doing)
            # Without reads an API need not know HEAD; that it answers at all is what can be told.
            good = answer.status in {200, *MISSING} or (not options.reads and answer.status == 405)
        if not good:
            raise refusal(answer.status, doing)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._client.aclose()

    def _need(self, feature: str) -> None:
        if not getattr(self.features, feature):
            raise Unsupported(f"{self.location} is configured without `{feature}`")

    def _told(self, answer: Answer) -> str | None:
        return told_digest(answer, self._options.digest_header, self._options.digest_field)


def _checked(options: BackendOptions) -> HttpOptions:
    if not isinstance(options, HttpOptions):
        raise TypeError(f"HttpBackend takes HttpOptions, not {type(options).__name__}")
    return options
