"""The transform `encrypt`: one part in, one authenticated ciphertext out. Made by whoever reads routes, with a loaded ring."""

from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Final

from backends.base import CHUNK_SIZE
from handlers.transforms.base import Part, Turn, Work
from handlers.transforms.encryption_format import CHUNK, TAG, Cipher, room, sealed, sealed_size
from handlers.transforms.encryption_magic import SUFFIX
from handlers.transforms.key_ring import KeyRing
from handlers.transforms.offload import offloaded
from handlers.transforms.registry import NoOptions

_BATCH: Final = CHUNK_SIZE // (CHUNK + TAG) * CHUNK
"""Bytes that are encrypted at a time: whole chunks, which make no more than `CHUNK_SIZE` bytes."""


class Encrypt:
    """Encrypts every part with the ring's primary key; the suffix `.enc` is added.

    The same part of the same payload gives the same bytes, as long as the primary key stays.
    """

    name = "encrypt"
    Options = NoOptions
    early = False

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port. `work.identity` is required: without it all payloads would share one derived key."""
        if not work.identity:
            raise ValueError("to encrypt a payload, Work.identity has to say which one it is")
        ring = self._ring
        # Other steps make other bytes of the same entry: those get a key of their own.
        identity = (work.identity, part.path, part.member, *part.steps)
        header, cipher = sealed(ring.primary, ring.keys[ring.primary].get_secret_value(), identity)
        chunks = _encrypted(header, cipher, part.chunks, work.turn)
        size = None if part.size is None else sealed_size(part.size, len(header))
        yield part.changed(self.name, chunks, add=SUFFIX, content_type="application/octet-stream", size=size)

    def room(self, limit: int) -> int:
        """The most bytes that become at most `limit` bytes; negative where no payload does."""
        return room(limit, self._ring.primary)


async def _encrypted(
    header: bytes, cipher: Cipher, chunks: AsyncIterator[bytes], turn: Turn
) -> AsyncGenerator[bytes, None]:
    yield header
    held, number = bytearray(), 0
    async for chunk in chunks:
        held += chunk
        # The last chunk is marked as such, so something always waits until more has come.
        while len(held) > _BATCH:
            batch = bytes(memoryview(held)[:_BATCH])
            del held[:_BATCH]
            yield await offloaded(len(batch), partial(cipher.seal, batch, number, last=False), turn)
            number += _BATCH // CHUNK
    yield await offloaded(len(held), partial(cipher.seal, bytes(held), number, last=True), turn)
