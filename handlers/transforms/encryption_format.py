"""The format of encrypted parts: header, chunks and the keys of both. Used by encrypt.py and decrypt.py; it does no I/O.

docs/encryption.md has the format for those who read it without us, docs/adr/0015-encryption.md the reasons for it.
"""

import hmac
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from handlers.errors import Refused
from handlers.transforms.encryption_magic import MAGIC

START: Final = len(MAGIC) + 2
"""So much of the beginning tells how long the header is."""
TAG: Final = 16
CHUNK: Final = 64 << 10
"""Bytes of plaintext in each chunk but the last. Readers take what the header says."""

_VERSION: Final = 1
_SALT: Final = 32
_CHECK: Final = 32
_SIV_KEY: Final = 64
"""AES-SIV-CMAC-512: AES-256 twice (RFC 5297, 6.3)."""
_CRC: Final = 4
_FIXED: Final = START + 1 + 4 + 1 + _SALT + _CHECK + _CRC
_KEY_ID: Final = 255
_CHUNKS: Final = range(1 << 10, (1 << 20) + 1)
_SALT_LABEL: Final = b"transload encryption v1: salt\0"
_KEY_LABEL: Final = b"transload encryption v1: keys\0"


class Cipher:
    """The chunks of one part. Holds the part's own keys, which nothing prints."""

    def __init__(self, header: bytes, key: bytes, chunk: int) -> None:
        self._header = header
        self._aead = AESSIV(key)
        self.chunk = chunk

    def seal(self, data: bytes, first: int, *, last: bool) -> bytes:
        """The chunks that `data` becomes, numbered from `first`. `last`: the part ends with it; only then may it end in a
        short chunk, or be empty.
        """
        pieces = self._pieces(data, self.chunk)
        return b"".join(
            self._aead.encrypt(piece, [self._header, _place(first + n, last=last and n == len(pieces) - 1)])
            for n, piece in enumerate(pieces)
        )

    def open(self, data: bytes, first: int, *, last: bool) -> bytes:
        """What `seal` was given. All of `data` is authenticated before anything is returned.

        Raises `Refused("payload_corrupt")` that names the chunk.
        """
        pieces = self._pieces(data, self.chunk + TAG)
        opened = []
        for n, piece in enumerate(pieces):
            final = last and n == len(pieces) - 1
            try:
                opened.append(self._aead.decrypt(piece, [self._header, _place(first + n, last=final)]))
            except InvalidTag as exc:
                raise Refused(
                    "payload_corrupt",
                    f"encryption: chunk {first + n} is not authentic; it was changed, moved or cut off",
                ) from exc
        return b"".join(opened)

    @staticmethod
    def _pieces(data: bytes, size: int) -> list[memoryview]:
        view = memoryview(data)
        return [view[start : start + size] for start in range(0, len(view), size)] or [view]


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says, before any key is there to prove it."""

    raw: bytes
    key_id: str
    chunk: int
    salt: bytes
    check: bytes

    def cipher(self, key: bytes) -> Cipher:
        """The cipher of the part. Raises `Refused("payload_corrupt")` unless `key` wrote the header."""
        siv_key, check = _derived(key, self.salt, self.raw[: -_CHECK - _CRC])
        if not hmac.compare_digest(check, self.check):
            raise Refused(
                "payload_corrupt",
                f"encryption: the header is not authentic, or the key {self.key_id!a} of the ring is not the one it names",
            )
        return Cipher(self.raw, siv_key, self.chunk)


def sealed(key_id: str, key: bytes, identity: Sequence[str]) -> tuple[bytes, Cipher]:
    """The header, and the cipher, of the part that `identity` sets apart; the same for the same arguments."""
    salt = _hkdf(key, None, _SALT_LABEL + json.dumps(list(identity)).encode(), _SALT)
    name = key_id.encode("ascii")
    if not 1 <= len(name) <= _KEY_ID:
        raise ValueError(f"the id of a key has 1 to {_KEY_ID} characters")
    start = b"".join(
        (
            MAGIC,
            (_FIXED + len(name)).to_bytes(2, "big"),
            bytes([_VERSION]),
            CHUNK.to_bytes(4, "big"),
            bytes([len(name)]),
            name,
            salt,
        )
    )
    siv_key, check = _derived(key, salt, start)
    raw = start + check + zlib.crc32(start + check).to_bytes(_CRC, "big")
    return raw, Cipher(raw, siv_key, CHUNK)


def sealed_size(size: int, header: int) -> int:
    """Bytes that `size` bytes of plaintext become, with a header of `header` bytes."""
    return header + size + TAG * max(1, -(-size // CHUNK))


def room(limit: int, key_id: str) -> int:
    """The most plaintext that becomes at most `limit` bytes; negative where not even an empty one does."""
    body = limit - _FIXED - len(key_id)
    full, rest = divmod(body, CHUNK + TAG)
    return full * CHUNK + max(0, rest - TAG) if body >= TAG else -1


def header_length(start: bytes) -> int:
    """Bytes of the header that begins with these `START` bytes. Raises `Refused("payload_corrupt")`."""
    if not start.startswith(MAGIC) or len(start) < START:
        raise Refused(
            "payload_corrupt", "encryption: no header; these are not bytes that were encrypted here"
        )
    length = int.from_bytes(start[len(MAGIC) : START], "big")
    if not _FIXED < length <= _FIXED + _KEY_ID:
        raise Refused("payload_corrupt", "encryption: the header is damaged")
    return length


def parse(raw: bytes) -> Header:
    """The header that these bytes, as many as `header_length` says, are.

    Raises `Refused`: `payload_corrupt` for a damaged one, `payload_unsupported` for one of a later version.
    """
    # The checksum proves nothing against an adversary. It tells damage from a version, or a key, that is not known here.
    if len(raw) < header_length(raw) or zlib.crc32(raw[:-_CRC]) != int.from_bytes(raw[-_CRC:], "big"):
        raise Refused("payload_corrupt", "encryption: the header is damaged")
    version, chunk, name_length = (
        raw[START],
        int.from_bytes(raw[START + 1 : START + 5], "big"),
        raw[START + 5],
    )
    if version != _VERSION:
        raise Refused("payload_unsupported", f"encryption: version {version}; this release reads {_VERSION}")
    name, rest = raw[START + 6 : START + 6 + name_length], raw[START + 6 + name_length :]
    if len(raw) != _FIXED + name_length or not name.isascii() or chunk not in _CHUNKS:
        raise Refused("payload_corrupt", "encryption: the header is damaged")
    return Header(raw, name.decode("ascii"), chunk, rest[:_SALT], rest[_SALT : _SALT + _CHECK])


def _place(number: int, *, last: bool) -> bytes:
    """What binds a chunk to its place: STREAM's nonce (https://eprint.iacr.org/2015/189), as associated data."""
    return number.to_bytes(8, "big") + bytes([last])


def _derived(key: bytes, salt: bytes, header: bytes) -> tuple[bytes, bytes]:
    """The part's key, and what shows in its header that the ring's key is the right one."""
    both = _hkdf(key, salt, _KEY_LABEL + header, _SIV_KEY + _CHECK)
    return both[:_SIV_KEY], both[_SIV_KEY:]


def _hkdf(key: bytes, salt: bytes | None, info: bytes, length: int) -> bytes:
    """RFC 5869."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)
