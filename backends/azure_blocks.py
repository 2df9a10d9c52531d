"""One write of more than one block: staged within a budget, committed at once, dropped on failure. Called by backends/azure.py.

Blocks that were staged and never committed are invisible, and the service drops them a week after the last of them
(https://learn.microsoft.com/rest/api/storageservices/put-block). Sooner there is one way only: commit an empty blob in
their place and delete it. `discard` does that, for a write that fails and for a sweep.
"""

import asyncio
import hashlib
import re
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, ContentSettings

from backends.azure_container import Container
from backends.azure_metadata import DISCARDED
from backends.cancellation import to_the_end
from backends.errors import Conflict, NotFound, StorageError
from backends.failpoints import failpoint

MAX_BLOCKS = 50_000
MAX_BLOCK_SIZE = 4_000 << 20
"""https://learn.microsoft.com/azure/storage/blobs/scalability-targets"""

_WORTH_A_THREAD = 128 << 10
"""Bytes whose digests take longer than the way to a thread and back."""

_GRACE_SECONDS = 5.0
"""What blocks under way get when their write has failed: on a working connection they need far less."""

_DROP_SECONDS = 15.0
"""For what nobody sees and what a sweep or the service removes, a drain does not wait longer."""

_ID = re.compile(r"(?P<milliseconds>\d{14})-(?P<attempt>[0-9a-f]{16})-\d{5}")


def block_length(number: int, first: int) -> int:
    """Bytes of block `number` (from 1) when block 1 has `first`: doubled every 4,500 blocks.

    So 8 TiB of unknown length fit into 50,000 blocks even from blocks of 1 MiB. Raises `StorageError` past the last one.
    """
    if number > MAX_BLOCKS:
        raise StorageError(
            f"the payload does not fit into {MAX_BLOCKS} blocks; configure a larger block_size"
        )
    return min(first << ((number - 1) // 4_500), MAX_BLOCK_SIZE)


def block_id(attempt: str, number: int) -> str:
    """When it is staged, by whom, and which one it is: of equal length for all writers, or the service refuses one of them."""
    return f"{time.time_ns() // 1_000_000:014d}-{attempt}-{number:05d}"


def md5_header(md5: bytes) -> dict[str, str]:
    """Has the service compare the body it received with its checksum."""
    return {"Content-MD5": b64encode(md5).decode()}


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes of the stream and their MD5."""

    data: bytes
    md5: bytes


class BlockSource:
    """A stream cut into blocks, counted and digested on the way."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._exhausted = False
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0
        """Bytes taken so far."""

    async def take(self, length: int) -> Block:
        """The next `length` bytes, fewer at the end of the stream, none after it. Raises what the stream raises."""
        pieces: list[memoryview] = []
        missing = length
        while missing and await self._more():
            piece, self._rest = self._rest[:missing], self._rest[missing:]
            pieces.append(piece)
            missing -= len(piece)
        # Looked ahead, so that `ended` is known as soon as the last block is out.
        await self._more()
        self.size += length - missing
        if length - missing < _WORTH_A_THREAD:
            return self._seal(pieces)
        return await asyncio.to_thread(self._seal, pieces)

    def _seal(self, pieces: list[memoryview]) -> Block:
        data = b"".join(pieces)
        self._sha256.update(data)
        self._md5.update(data)
        return Block(data, hashlib.md5(data, usedforsecurity=False).digest())

    async def _more(self) -> bool:
        """Whether there is a byte left; reads on until there is, or the stream ends."""
        while not self._rest and not self._exhausted:
            try:
                self._rest = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                self._exhausted = True
        return bool(self._rest)

    @property
    def ended(self) -> bool:
        """Nothing is left to take."""
        return self._exhausted and not self._rest

    @property
    def sha256(self) -> str:
        """The digest of everything taken so far, in hex."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> bytes:
        """As `sha256`, as bytes."""
        return self._md5.digest()


class BlockUpload:
    """Use once: `run`."""

    def __init__(self, container: Container, key: str, *, block_size: int, concurrency: int) -> None:
        self._container = container
        self._key = key
        self._blob = container.blob(key)
        self._block_size = block_size
        self._budget = block_size * concurrency
        self._attempt = secrets.token_hex(8)
        self._staged: dict[int, str] = {}
        self.committing = False
        """The commit was sent: a failure from now on leaves open whether the blob is there."""

    async def run(
        self,
        first: Block,
        source: BlockSource,
        describe: Callable[[], tuple[ContentSettings, dict[str, str]]],
    ) -> Mapping[str, Any]:
        """Stage `first` and what `source` still has, and commit if the key is free. Returns the answer of the commit.

        `describe` is asked for the blob's settings and metadata once the stream has ended. Raises `Conflict` when the key
        is taken. Whatever is raised, the blocks are dropped before.
        """
        try:
            await self._stage_all(first, source)
            return await self._commit(*describe())
        except BaseException as exc:
            await to_the_end(self._drop(exc))
            raise

    async def _stage_all(self, first: Block, source: BlockSource) -> None:
        flying: dict[asyncio.Task[None], int] = {}
        number, block = 1, first
        try:
            while block.data:
                while flying and sum(flying.values()) + len(block.data) > self._budget:
                    await _first_of(flying)
                flying[asyncio.create_task(self.stage(number, block))] = len(block.data)
                number += 1
                if source.ended:
                    break
                block = await source.take(block_length(number, self._block_size))
            while flying:
                await _first_of(flying)
        finally:
            await to_the_end(_ended(flying))

    async def stage(self, number: int, block: Block) -> None:
        """Upload one block; it stays invisible."""
        name = block_id(self._attempt, number)
        async with self._container.call(f"write block {number} of", self._key):
            failpoint("azure.block.before")
            await self._blob.stage_block(name, block.data, len(block.data), headers=md5_header(block.md5))
            failpoint("azure.block.after")
        self._staged[number] = name

    async def _commit(self, settings: ContentSettings, metadata: dict[str, str]) -> Mapping[str, Any]:
        names = [BlobBlock(self._staged[number]) for number in sorted(self._staged)]
        self.committing = True
        async with self._container.call("commit the blocks of", self._key):
            failpoint("azure.commit.before")
            answer: Mapping[str, Any] = await self._blob.commit_block_list(
                names,
                content_settings=settings,
                metadata=metadata,
                match_condition=MatchConditions.IfMissing,
            )
            failpoint("azure.commit.after")
        return answer

    async def _drop(self, cause: BaseException) -> None:
        """Drop the blocks, unless another write to the same key has some there too: they cannot be dropped apart."""
        if self.committing and isinstance(cause, Conflict):
            return
        try:
            async with asyncio.timeout(_DROP_SECONDS):
                await discard(self._container, self._key, self._all_ours)
        except StorageError as exc:
            cause.add_note(f"{exc}; a sweep has to remove its blocks")
        except TimeoutError:
            cause.add_note(f"not dropped within {_DROP_SECONDS:g} s; a sweep has to remove its blocks")

    def _all_ours(self, names: Sequence[str]) -> bool:
        return all((found := _ID.fullmatch(name)) and found["attempt"] == self._attempt for name in names)


def untouched_since(limit: float) -> Callable[[Sequence[str]], bool]:
    """For `discard`: all blocks come from writers like this one, none of them later than `limit` (a Unix time)."""

    def check(names: Sequence[str]) -> bool:
        found = [_ID.fullmatch(name) for name in names]
        return all(each is not None and int(each["milliseconds"]) <= limit * 1_000 for each in found)

    return check


async def discard(container: Container, key: str, mine: Callable[[Sequence[str]], bool]) -> bool:
    """Drop the uncommitted blocks under a key that has no blob, if `mine` says so of their ids. True if it did.

    Not in a container whose blobs cannot be deleted: there the empty blob would stay.
    """
    blob = container.blob(key)
    try:
        async with container.call("look for blocks of", key):
            _, staged = await blob.get_block_list("uncommitted")
        if not staged or not mine([block.id for block in staged]) or await container.is_write_once():
            return False
        async with container.call("drop the blocks of", key):
            failpoint("azure.discard.before")
            answer = await blob.commit_block_list(
                [],
                content_settings=ContentSettings(content_type=DISCARDED),
                match_condition=MatchConditions.IfMissing,
            )
            failpoint("azure.discard.after")
    except (NotFound, Conflict):
        return False
    await container.remove(key, str(answer["etag"]))
    return True


async def _first_of(flying: "dict[asyncio.Task[None], int]") -> None:
    """Wait for at least one block, take those that are done off the list. Raises what a block raised."""
    done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
        del flying[task]


async def _ended(flying: "dict[asyncio.Task[None], int]") -> None:
    """No block is under way any more. A request that is cut off may still be carried out, after the others were dropped."""
    if flying:
        await asyncio.wait(flying, timeout=_GRACE_SECONDS)
    for task in flying:
        task.cancel()
    await asyncio.gather(*flying, return_exceptions=True)
