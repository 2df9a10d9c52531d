"""The checksums that stores and fetchers know besides SHA-256, and how they are written.

Used by the adapters whose stores verify one of them, by handlers/messages.py to read what a message promises, and by
handlers/payload.py to prove it.

CRC32C is the one of RFC 3720, section 12.1; CRC-64/NVME that of the NVM Express NVM Command Set Specification (64b CRC), which S3
calls CRC64NVME. anycrc computes both, at several GB/s. The CRT of AWS would too, but wherever that is installed botocore signs
all its requests by it.
"""

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final, Literal, Protocol

from backends.errors import IntegrityError, Unsupported

Algorithm = Literal["crc32c", "crc64nvme", "md5"]

WIDTHS: Final[Mapping[str, int]] = MappingProxyType({"crc32c": 4, "crc64nvme": 8, "md5": 16})
"""Bytes of each."""

_MODELS: Final[Mapping[str, str]] = MappingProxyType({"crc32c": "CRC32-ISCSI", "crc64nvme": "CRC64-NVME"})


class Checksum(Protocol):
    """A running checksum, as `hashlib` has them."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes:
        """Of all bytes so far; a CRC with its highest byte first, as every store writes it."""
        ...


def running(algorithm: Algorithm) -> Checksum:
    """A new one, of no bytes yet."""
    return hashlib.md5(usedforsecurity=False) if algorithm == "md5" else _Crc(algorithm)


def in_base64(digest: bytes) -> str:
    """As the headers of all stores have it."""
    return base64.b64encode(digest).decode()


def in_hex(algorithm: Algorithm, text: str) -> str:
    """What `text` says in base64 or hex, in lower-case hex. The two cannot be mistaken: at these lengths base64 is padded.

    Raises `ValueError` that says what is expected.
    """
    width = WIDTHS[algorithm]
    if "-" in text:
        raise ValueError(
            f"a {algorithm} with '-' in it is made of the checksums of parts and says nothing of the bytes; leave it out"
        )
    digest = b""
    with suppress(ValueError):
        digest = base64.b64decode(text) if text.endswith("=") else base64.b16decode(text, casefold=True)
    if len(digest) != width or (text != in_base64(digest) and text.lower() != digest.hex()):
        raise ValueError(f"a {algorithm} is {width} bytes in base64, or {2 * width} hex digits")
    return digest.hex()


def require_shown(promised: Mapping[Algorithm, str], shown: Mapping[Algorithm, str], name: str) -> None:
    """Hold what a store shows of the object `name`, in hex, to what is promised of it.

    Raises `IntegrityError` where it shows another checksum, `Unsupported` where it shows none of that kind.
    """
    for algorithm, wanted in promised.items():
        found = shown.get(algorithm)
        if found is None:
            raise Unsupported(f"the store shows no {algorithm} of {name}, and one was promised")
        if found != wanted:
            raise IntegrityError(f"{name} has {algorithm} {found}; {wanted} was promised")


class _Crc:
    """As `Checksum` says."""

    def __init__(self, algorithm: Algorithm) -> None:
        from anycrc import Model  # noqa: PLC0415 - takes 25 ms, and most processes never need it

        self._model = Model(_MODELS[algorithm])
        self._width = WIDTHS[algorithm]
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._model.calc(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._width, "big")
