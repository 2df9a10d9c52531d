"""WebHDFS, spoken over aiohttp: single requests. Used by backends/hdfs.py and backends/hdfs_upload.py, nobody else.

https://hadoop.apache.org/docs/stable/hadoop-project-dist/hadoop-hdfs/WebHDFS.html. Bytes go to and come from a DataNode that
the NameNode names in a redirect. It is taken from the NameNode only, and only to hosts that `datanodes` admits; user and token
are sent to the NameNode alone, which puts into the redirect what the DataNode needs.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from backends.addresses import Judge, literals
from backends.errors import InvalidKey, NotFound, PermissionDenied, Unsupported
from backends.hdfs_errors import check, translated, understood
from backends.hdfs_options import HdfsOptions

PIECE = 1 << 18
"""Bytes that have to pass within `read_timeout`."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What a NameNode tells of one path."""

    name: str
    """The last segment, in listings; empty for the path that was asked for."""
    is_file: bool
    is_directory: bool
    length: int
    modified: int
    """Milliseconds since the epoch, by the NameNode's clock: when a file was closed, or begun if it is still open."""
    file_id: int
    """Never used twice and kept by a rename."""

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Self:
        kind = answer["type"]
        return cls(
            answer["pathSuffix"],
            kind == "FILE",
            kind == "DIRECTORY",
            answer["length"],
            answer["modificationTime"],
            answer["fileId"],
        )

    @property
    def etag(self) -> str:
        return f"{self.file_id}-{self.modified}"


class WebHdfs:
    """One cluster. Paths are below the root."""

    def __init__(self, options: HdfsOptions) -> None:
        self.options = options
        self._root = options.root
        self._base = URL(options.url)
        with translated(f"read {options.ca_file}"):
            tls = ssl.create_default_context(cafile=options.ca_file) if self._base.scheme == "https" else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=options.max_connections,
                ssl=tls,
                # A cluster has private addresses. A NameNode that names a cloud's metadata is not obeyed.
                socket_factory=Judge(
                    literals([self._base.raw_host or "", *options.datanodes]), private=True
                ).socket,
            ),
            # The NameNode's cookie is a credential; nobody is to get it.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            # Nothing is asked for packed, and nothing that comes packed is unpacked.
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=None, sock_connect=options.connect_timeout, sock_read=options.read_timeout
            ),
        )
        self._batches = True

    async def aclose(self) -> None:
        await self._session.close()

    async def status(self, path: str) -> FileStatus | None:
        """GETFILESTATUS; None when nothing lies there."""
        try:
            answer = await self.ask("GET", "GETFILESTATUS", path)
        except (NotFound, InvalidKey):
            # The latter below a file, unless one is the superuser.
            return None
        with understood(f"GETFILESTATUS {self.where(path)}"):
            return FileStatus.read(answer["FileStatus"])

    async def pages(self, path: str) -> AsyncIterator[list[FileStatus]]:
        """What lies in a directory, in the server's portions; nothing for a file or a missing directory."""
        after: dict[str, str] = {}
        while True:
            try:
                page, remaining = await self._page(path, after)
            except (NotFound, InvalidKey):
                return
            # Asked for a file, HDFS lists the file, without a name.
            yield [status for status in page if status.name]
            if not remaining or not page:
                return
            after = {"startAfter": page[-1].name}

    async def _page(self, path: str, after: Mapping[str, str]) -> tuple[list[FileStatus], int]:
        if self._batches:
            try:
                answer = await self.ask("GET", "LISTSTATUS_BATCH", path, **after)
            except Unsupported:
                # Hadoop 2.7 and older. They list a directory in one answer.
                self._batches = False
            else:
                with understood(f"LISTSTATUS_BATCH {self.where(path)}"):
                    listing = answer["DirectoryListing"]
                    found = listing["partialListing"]["FileStatuses"]["FileStatus"]
                    return [FileStatus.read(each) for each in found], int(listing["remainingEntries"])
        answer = await self.ask("GET", "LISTSTATUS", path)
        with understood(f"LISTSTATUS {self.where(path)}"):
            return [FileStatus.read(each) for each in answer["FileStatuses"]["FileStatus"]], 0

    async def clock(self) -> float:
        """The NameNode's time: seconds since the epoch, at most one too many. HTTP tells whole seconds."""
        doing = f"GETFILESTATUS {self.where('')}"
        async with self._asked("GET", self._url("GETFILESTATUS", ""), doing) as response:
            date = response.headers.get("Date")
        with understood(doing):
            return parsedate_to_datetime(date).timestamp() + 1 if date else time.time()

    async def ask(self, method: str, op: str, path: str, **parameters: str) -> Any:
        """One request to the NameNode; its JSON, None where the answer is empty."""
        doing = f"{op} {self.where(path)}"
        async with self._asked(method, self._url(op, path, **parameters), doing) as response:
            body = await response.read()
        with understood(doing):
            return json.loads(body) if body else None

    async def datanode(self, method: str, op: str, path: str, **parameters: str) -> URL:
        """Where the NameNode sends a request for bytes to."""
        doing = f"{op} {self.where(path)}"
        async with self._asked(method, self._url(op, path, **parameters), doing, expected=307) as response:
            location = response.headers.get("Location", "")
        with understood(doing):
            url = URL(location, encoded=True)
            host = url.origin().host or ""
        if url.scheme != "https" and (url.scheme != "http" or self._base.scheme == "https"):
            raise PermissionDenied(f"HDFS was to {doing}, and sent us to a {url.scheme or 'nameless'} URL")
        if not any(fnmatchcase(host, pattern.lower()) for pattern in self.options.datanodes):
            raise PermissionDenied(f"HDFS was to {doing}, and sent us to {host!a}, which is not in datanodes")
        # The NameNode writes the path through Java's URI, which composes what Unicode lets it compose: another name.
        return URL(f"{url.origin()}{self._path(path)}?{url.raw_query_string}", encoded=True)

    async def put(self, url: URL, body: AsyncIterator[bytes], doing: str) -> None:
        """Send a file to a DataNode; returns when it is closed. The caller sees to the time that sending takes."""
        headers = {"Content-Type": "application/octet-stream"}
        with translated(doing):
            async with self._session.put(url, data=body, headers=headers, allow_redirects=False) as response:
                await check(response, 201, doing)

    async def read(self, path: str, size: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a file, which are `size`; fewer are `Unavailable`, in whatever way they end."""
        doing, received = f"OPEN {self.where(path)}", 0
        if not size:
            return
        url = await self.datanode("GET", "OPEN", path)
        with translated(doing):
            async with asyncio.timeout(self.options.connect_timeout + self.options.read_timeout):
                response = await self._session.get(url, allow_redirects=False)
        try:
            with translated(doing):
                await check(response, 200, doing)
            while received < size:
                with translated(doing):
                    async with asyncio.timeout(self.options.read_timeout):
                        piece = await response.content.readexactly(min(PIECE, size - received))
                received += len(piece)
                yield piece
        finally:
            response.close()

    def where(self, path: str) -> str:
        return f"{self.options.location}{path}"

    def destination(self, path: str) -> str:
        """The path as a parameter names it."""
        return f"{self._root}/{path}"

    def _url(self, op: str, path: str, **parameters: str) -> URL:
        token = self.options.delegation_token
        identity = {"delegation": token.get_secret_value()} if token else {"user.name": self.options.user}
        query = {"op": op, **identity, **parameters}
        text = "&".join(
            f"{name}={quote(value, safe='')}" for name, value in query.items() if value is not None
        )
        return URL(f"{self._base.origin()}{self._path(path)}?{text}", encoded=True)

    def _path(self, path: str) -> str:
        full = f"{self._root}/{path}" if path else self._root
        # Older releases do not find what `%3D` stands for.
        return "/webhdfs/v1" + quote(full, safe="/=")

    @asynccontextmanager
    async def _asked(
        self, method: str, url: URL, doing: str, expected: int = 200
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with translated(doing):
            async with (
                asyncio.timeout(self.options.connect_timeout + self.options.read_timeout),
                self._session.request(method, url, allow_redirects=False) as response,
            ):
                await check(response, expected, doing)
                yield response
