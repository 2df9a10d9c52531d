"""The payload of a write, watched: whose fault it was. Used by the guards of this package.

A source reads from another store, so what it raises looks like this store's own failure. The port promises that a source's
exception comes out of `write` as it is, so identity tells the two apart.
"""

from collections.abc import AsyncIterator
from typing import Self


class WatchedSource:
    """The chunks it is given, and a memory of what they raised."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.raised: BaseException | None = None
        """What the source raised; None while it is well, and when it came to its end."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except BaseException as exc:
            self.raised = exc
            raise
