"""Fuzz target: whatever is done to something encrypted, its bytes come out or nothing wrong does, and then a refusal.

`fuzz` takes any bytes; `CHANGED` makes good ciphertexts and changes them. Called by tests/unit/test_encryption.py for a few
dozen examples.
"""

import asyncio
from types import MappingProxyType
from typing import Final

from hypothesis import strategies as st
from pydantic import SecretBytes

from handlers.errors import Refused
from handlers.transforms.base import Part, Work
from handlers.transforms.decrypt import Decrypt
from handlers.transforms.encrypt import Encrypt
from handlers.transforms.key_ring import KeyRing
from tests.support.tars import stream, work_of

OLD: Final = bytes(range(32))
NEW: Final = bytes(range(100, 132))
RING: Final = KeyRing(MappingProxyType({"old": SecretBytes(OLD), "new": SecretBytes(NEW)}), "new")
REASONS: Final = {"payload_corrupt", "payload_unsupported"}

_PLAIN = st.binary(max_size=200) | st.integers(65_000, 140_000).map(
    lambda size: bytes(range(256)) * (size // 256)
)


async def encrypted(
    data: bytes, *, ring: KeyRing = RING, identity: str = "bundle/1", chunk: int = 1 << 20
) -> bytes:
    work = work_of(identity=identity)
    part = await anext(Encrypt(ring).apply(Part(stream(data, chunk, work)), work))
    return b"".join([piece async for piece in part.chunks])


async def decrypted(
    data: bytes, *, ring: KeyRing = RING, chunk: int = 1 << 20, work: Work | None = None
) -> tuple[bytes, Refused | None]:
    """What came out before the end, and the refusal that took its place."""
    work = work or work_of()
    part = await anext(Decrypt(ring).apply(Part(stream(data, chunk, work)), work))
    out = bytearray()
    try:
        async for piece in part.chunks:
            out += piece
    except Refused as exc:
        return bytes(out), exc
    return bytes(out), None


@st.composite
def _changed(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A plaintext, and a ciphertext of it with bytes flipped, taken out, doubled, moved or cut off."""
    plain = draw(_PLAIN)
    data = bytearray(asyncio.run(encrypted(plain)))
    for _ in range(draw(st.integers(0, 2))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        to = draw(st.integers(at, len(data)))
        match draw(st.sampled_from(["flip", "cut", "drop", "double", "move"])):
            case "flip":
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "drop":
                del data[at:to]
            case "double":
                data[at:at] = data[at:to]
            case _:
                data = data[at:] + data[:at]
    return plain, bytes(data)


CHANGED = _changed()


def whole(plain: bytes, data: bytes) -> None:
    """`data` was a ciphertext of `plain`: a beginning of it comes out, all of it only if nothing was changed."""
    out, refusal = asyncio.run(decrypted(data, chunk=50_000))
    assert plain.startswith(out)
    if data == asyncio.run(encrypted(plain)):
        assert (out, refusal) == (plain, None)
    else:
        assert refusal is not None
        assert refusal.reason in REASONS


def fuzz(data: bytes) -> None:
    """Nobody without a key makes bytes that are taken."""
    out, refusal = asyncio.run(decrypted(data, chunk=333))
    assert out == b""
    assert refusal is not None
    assert refusal.reason in REASONS
