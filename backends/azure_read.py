"""One blob read as a stream. Used by backends/azure.py only."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from backends.azure_container import Container
from backends.azure_metadata import is_object
from backends.base import CHUNK_SIZE
from backends.errors import Conflict, NotFound, Unavailable


@asynccontextmanager
async def opened(container: Container, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The object's chunks, by ranged reads one after the other, all of the same version of it."""
    async with container.call("read", key):
        # Without `decompress` a blob with a Content-Encoding would come out as other bytes than it holds.
        download = await container.blob(key).download_blob(decompress=False)
    if not is_object(download.properties):
        raise NotFound(f"no object {container.location}{key}")
    async with aclosing(_chunks(container, key, aiter(download.chunks()), download.size)) as chunks:
        yield chunks


async def sha256_of(container: Container, key: str) -> str:
    """The SHA-256 in hex, of the bytes as they are read."""
    digest = hashlib.sha256()
    async with opened(container, key) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


async def _chunks(
    container: Container, key: str, pieces: AsyncIterator[bytes], size: int
) -> AsyncGenerator[bytes, None]:
    name, received = f"{container.location}{key}", 0
    while True:
        try:
            async with container.call("read", key):
                piece = await anext(pieces, None)
        except (Conflict, NotFound) as exc:
            raise Unavailable(f"{name} changed while it was read") from exc
        if piece is None:
            break
        received += len(piece)
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK_SIZE):
            yield bytes(view[start : start + CHUNK_SIZE])
    if received != size:
        raise Unavailable(f"{name} ended after {received} of {size} bytes")
