"""One stream to a DataNode, into a temporary file that nobody else knows. Called by backends/hdfs.py only.

The DataNode takes chunked encoding and closes the file when the stream ends, in whatever way: a connection that breaks leaves a
short file, complete in the eyes of HDFS. That is why every write goes to a temporary name first, and why one that is given up
ends its stream in order and waits for the answer: what is deleted before the DataNode has made it would be made afterwards.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from yarl import URL

from backends.errors import StorageError, Unavailable
from backends.failpoints import failpoint
from backends.hdfs_client import PIECE, WebHdfs


class Upload:
    """Use once: `run`, and `discard` whenever the temporary file is not renamed."""

    def __init__(self, client: WebHdfs, path: str) -> None:
        self._client = client
        self.path = path
        self._doing = f"CREATE {client.where(path)}"
        self._handed: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._sending: asyncio.Task[None] | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """The digest of everything sent, in hex."""
        return self._digest.hexdigest()

    async def run(self, chunks: AsyncIterator[bytes]) -> None:
        """Send all chunks; returns when the DataNode has closed the file. Raises what the stream raises."""
        options = self._client.options
        settings = {
            "createflag": "CREATE,SYNC_BLOCK" if options.sync else None,
            "replication": options.replication,
            "blocksize": options.block_size,
        }
        given = {name: str(value) for name, value in settings.items() if value is not None}
        url = await self._client.datanode("PUT", "CREATE", self.path, overwrite="false", **given)
        self._sending = asyncio.create_task(self._put(url))
        # Whoever waits for room has to learn that nobody takes any more.
        self._sending.add_done_callback(lambda _: self._make_room())
        async for chunk in chunks:
            self._digest.update(chunk)
            self.size += len(chunk)
            for start in range(0, len(chunk), PIECE):
                await self._hand(chunk[start : start + PIECE])
                if self._sending.done():
                    await self._sending
                    raise Unavailable(f"HDFS could not {self._doing}: it answered before the end")
        await self._hand(b"")
        try:
            async with asyncio.timeout(options.read_timeout):
                await asyncio.shield(self._sending)
        except TimeoutError as exc:
            raise Unavailable(f"HDFS could not {self._doing}: no answer") from exc

    async def _hand(self, piece: bytes) -> None:
        try:
            async with asyncio.timeout(
                self._client.options.connect_timeout + self._client.options.read_timeout
            ):
                await self._handed.put(piece)
        except TimeoutError as exc:
            raise Unavailable(f"HDFS could not {self._doing}: it takes no bytes") from exc

    async def _put(self, url: URL) -> None:
        failpoint("hdfs.create.before")
        await self._client.put(url, self._body(), self._doing)
        failpoint("hdfs.create.after")

    async def _body(self) -> AsyncIterator[bytes]:
        while piece := await self._handed.get():
            yield piece

    def _make_room(self) -> None:
        if not self._handed.empty():
            self._handed.get_nowait()

    async def discard(self, cause: BaseException | None) -> None:
        """End the stream, and delete the temporary file. What fails is noted on `cause`: a sweep will find it."""
        if self._sending is None:
            return
        if not self._sending.done():
            self._make_room()
            self._handed.put_nowait(b"")
            await asyncio.wait([self._sending], timeout=self._client.options.connect_timeout)
            self._sending.cancel()
        await asyncio.wait([self._sending])
        if not self._sending.cancelled():
            self._sending.exception()  # seen by `run`, or of no interest any more
        try:
            failpoint("hdfs.abort.before")
            await self._client.ask("DELETE", "DELETE", self.path, recursive="false")
            failpoint("hdfs.abort.after")
        except StorageError as exc:
            if cause is not None:
                cause.add_note(f"{exc}; a sweep has to remove it")
