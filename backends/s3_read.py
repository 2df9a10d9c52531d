"""One object of S3 read as a stream. Used by backends/s3.py and backends/s3_bucket.py only.

obstore reads: it asks for the rest of an object whose connection broke, as long as the object is the same one.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import obstore
from obstore.store import S3Store

from backends.aws_refusals import on_bucket, on_object
from backends.base import CHUNK_SIZE
from backends.errors import Conflict, Unavailable
from backends.s3_errors import request


@asynccontextmanager
async def opened(
    store: S3Store, bucket: str, key: str, seconds: float
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The object's chunks, each within `seconds`. `bucket` is that of `store`."""
    name = f"s3://{bucket}/{key}"
    # Of what is missing S3 says so only to those who may list.
    needs = f"{on_object('GetObject', bucket, key)}, and {on_bucket('ListBucket', bucket)}"
    async with request(f"read {name}", seconds, needs):
        result = await obstore.get_async(store, key)
    stream = result.stream(min_chunk_size=CHUNK_SIZE // 2)
    async with aclosing(_chunks(stream, result.meta["size"], name, seconds)) as chunks:
        yield chunks


async def sha256_of(store: S3Store, bucket: str, key: str, seconds: float) -> str:
    """The SHA-256 in hex, of the bytes as they are read."""
    digest = hashlib.sha256()
    async with opened(store, bucket, key, seconds) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


async def _chunks(stream: Any, size: int, name: str, seconds: float) -> AsyncGenerator[bytes, None]:
    received = 0
    pieces = aiter(stream)
    while True:
        try:
            async with request(f"read {name}", seconds):
                piece = await anext(pieces, None)
        except Conflict as exc:
            # The reader goes on after a broken connection only while the object is the same one.
            raise Unavailable(f"{name} changed while it was read") from exc
        if piece is None:
            break
        received += len(piece)
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK_SIZE):
            yield bytes(view[start : start + CHUNK_SIZE])
    if received != size:
        raise Unavailable(f"{name} ended after {received} of {size} bytes")
