"""The transform `decrypt`: what `encrypt` made, back again. For reading objects back, with the ring they were written with."""

from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Part, Turn, Work
from handlers.transforms.encryption_format import START, TAG, Header, header_length, parse
from handlers.transforms.encryption_magic import SUFFIX
from handlers.transforms.key_ring import KeyRing
from handlers.transforms.offload import offloaded
from handlers.transforms.registry import NoOptions


class Decrypt:
    """Decrypts every part and takes the suffix `.enc` off.

    Unlike other decoders it hands nothing on unchanged: whoever decrypts relies on the bytes being authentic, and what has no
    header is not. No limit is asked and no level of nesting counted, as less comes out than goes in.
    """

    name = "decrypt"
    Options = NoOptions
    early = False

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        """See the port. The chunks raise `Refused`: `payload_corrupt`, or `payload_unsupported` where the key is missing."""
        yield part.changed(self.name, self._decrypted(part.chunks, work.turn), drop=[SUFFIX])

    async def _decrypted(self, chunks: AsyncIterator[bytes], turn: Turn) -> AsyncGenerator[bytes, None]:
        header, held = await _header(chunks)
        key = self._ring.keys.get(header.key_id)
        if key is None:
            raise Refused(
                "payload_unsupported",
                f"encryption: written with the key {header.key_id!a}, which is not in the ring; add it to read this",
            )
        cipher, number = header.cipher(key.get_secret_value()), 0
        count = CHUNK_SIZE // header.chunk
        size = count * (header.chunk + TAG)
        chunk: bytes | None = b""
        while chunk is not None:
            held += chunk
            # Only what is followed by more is known not to be the last.
            while len(held) > size:
                batch = bytes(memoryview(held)[:size])
                del held[:size]
                yield await offloaded(size, partial(cipher.open, batch, number, last=False), turn)
                number += count
            chunk = await anext(chunks, None)
        if rest := await offloaded(len(held), partial(cipher.open, bytes(held), number, last=True), turn):
            yield rest


async def _header(chunks: AsyncIterator[bytes]) -> tuple[Header, bytearray]:
    """The header, and what was read beyond it."""
    held = bytearray()
    length = START
    while len(held) < length:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        held += chunk
        if len(held) >= START:
            length = header_length(bytes(held[:START]))
    header = parse(bytes(held[:length]))
    return header, held[length:]
