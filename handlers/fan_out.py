"""One stream read once and handed to several readers. Used by handlers/execute.py, whose readers are a payload's targets.

The slowest reader sets the pace: between it and the source lie at most `limit` chunks, and the readers share them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing
from typing import TypeVar

from backends.errors import Unavailable

READ_AHEAD = 4
"""Chunks between the source and the slowest reader at most."""

T = TypeVar("T")


async def give_each(
    readers: Sequence[T],
    chunks: AsyncIterator[bytes],
    read: Callable[[T, AsyncIterator[bytes]], Awaitable[None]],
) -> None:
    """All of `chunks` to every reader, each by its own call of `read`, which must not raise.

    Raises what the source raised, whatever the readers made of it.
    """
    if len(readers) == 1:
        feed = _Feed(chunks)
        await read(readers[0], feed)
        if feed.error is not None:
            raise feed.error
    elif readers:
        await _give_several(readers, chunks, read)


async def _give_several(
    readers: Sequence[T],
    chunks: AsyncIterator[bytes],
    read: Callable[[T, AsyncIterator[bytes]], Awaitable[None]],
) -> None:
    fan_out = FanOut(set(range(len(readers))), READ_AHEAD)

    async def one(number: int, reader: T) -> None:
        try:
            async with aclosing(fan_out.reader(number)) as feed:
                await read(reader, feed)
        finally:
            await fan_out.leave(number)

    async with asyncio.TaskGroup() as group:
        pump = group.create_task(fan_out.pump(chunks))
        running = [group.create_task(one(number, reader)) for number, reader in enumerate(readers)]
        await asyncio.wait(running)
        # Nobody reads any more, and the source may be one that never answers.
        pump.cancel()
    if fan_out.error is not None:
        raise fan_out.error


class FanOut:
    """For the tasks of one event loop. Whoever reads must `leave` in the end, whether it has read everything or not."""

    def __init__(self, readers: set[Hashable], limit: int) -> None:
        """`limit`: chunks held at most."""
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._dropped = 0
        """Chunks that everybody has read, and are no longer held."""
        self._read = dict.fromkeys(readers, 0)
        self._ended = False
        self._changed = asyncio.Condition()
        self.error: BaseException | None = None
        """What the source raised: every reader gets it, unchanged, in place of an end."""

    async def pump(self, chunks: AsyncIterator[bytes]) -> None:
        """Read the source to its end, or until nobody reads any more. What it raises goes to the readers only."""
        try:
            async for chunk in chunks:
                async with self._changed:
                    await self._changed.wait_for(self._has_room)
                    if not self._read:
                        return
                    self._chunks.append(chunk)
                    self._changed.notify_all()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the readers' to raise
            self.error = exc
        except BaseException:
            if self._read:
                # A cancellation from inside the source: nobody may wait for the rest, nor take the torn stream for a whole one.
                self.error = Unavailable("the reading of the payload was broken off")
            raise
        finally:
            async with self._changed:
                self._ended = True
                self._changed.notify_all()

    async def reader(self, name: Hashable) -> AsyncGenerator[bytes, None]:
        """The stream, for the reader of that name."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ended or self._unread(name))
                if not self._unread(name):
                    break
                chunk = self._chunks[self._read[name] - self._dropped]
                self._read[name] += 1
                self._drop()
            yield chunk
        if self.error is not None:
            raise self.error

    async def leave(self, name: Hashable) -> None:
        """This reader wants no more: nobody waits for it."""
        async with self._changed:
            self._read.pop(name, None)
            self._drop()
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return not self._read or len(self._chunks) < self._limit

    def _unread(self, name: Hashable) -> bool:
        return self._read[name] < self._dropped + len(self._chunks)

    def _drop(self) -> None:
        slowest = min(self._read.values(), default=self._dropped + len(self._chunks))
        while self._dropped < slowest:
            self._chunks.popleft()
            self._dropped += 1
            self._changed.notify_all()


class _Feed:
    """A stream that remembers what it raised: that is the source's fault, not the target's."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except Exception as exc:
            self.error = exc
            raise
