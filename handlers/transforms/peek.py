"""Looks at the first bytes of a stream without losing them."""

from collections.abc import AsyncIterator


async def peek(chunks: AsyncIterator[bytes], size: int) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first `size` bytes, fewer where there are no more, and the whole stream."""
    held: list[bytes] = []
    have = 0
    while have < size:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        held.append(chunk)
        have += len(chunk)
    return b"".join(held)[:size], _again(held, chunks)


async def _again(held: list[bytes], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while held:
        yield held.pop(0)
    async for chunk in chunks:
        yield chunk
