"""One stream read once and handed to several readers. Used by handlers/execute.py when a payload has several targets.

The slowest reader sets the pace: between it and the source lie at most `limit` chunks, and the readers share them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Hashable

from backends.errors import Unavailable


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
