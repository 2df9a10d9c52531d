"""What a format of compression is: how it begins, what decodes one member of it, which exceptions mean what.

The formats: gunzip.py (`Gzip`), bunzip2.py, unxz.py, unzstd.py. `Limits.memory` holds for a decoder's window; the tables beside it
take less than `TABLES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from handlers.errors import Refused
from handlers.transforms.base import Limits

TABLES = 1 << 20
"""Bytes that a decoder may take beside its window."""

TRUNCATED = "it ends before its end: truncated"
"""What is said of a payload that lacks its end."""


class Decompressor(Protocol):
    """Decodes one member; as `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended, checked."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes without more data."""
        ...

    @property
    def unused_data(self) -> bytes:
        """After the end: what was given and is not the member's."""
        ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """At most `max_length` bytes more; the rest of `data` is kept."""
        ...


class Coding(ABC):
    """A format of compression. Has no state."""

    name: str
    """As people call the format."""
    magics: Sequence[Sequence[bytes]]
    """For each way a member may begin: the values that its first bytes may have."""
    suffixes: Mapping[str, str]
    """Of names, in lower case, and what stands in their place after decoding."""
    types: frozenset[str] = frozenset()
    """Content types that claim the format."""
    errors: tuple[type[Exception], ...]
    """What its decompressor raises."""
    look: int = 16
    """Bytes that `begins` wants to see."""
    padding: int = 0
    """Zero bytes may follow the last member, a multiple of so many; 0 where none may."""
    padded_between: bool = False
    """Whether the padding may be followed by another member."""
    several: bool = True
    """Whether a member may follow another."""
    quick: bool = True
    """Whether little input means little work."""

    def begins(self, head: bytes) -> bool:
        """Whether a payload with these first bytes is of this format."""
        return any(_fits(head, magic) and len(head) >= len(magic) for magic in self.magics)

    def cut(self, payload: bytes) -> bool:
        """Whether a payload of these bytes and no more ends within a magic number."""
        return bool(payload) and any(
            _fits(payload, magic) and len(payload) < len(magic) for magic in self.magics
        )

    @property
    def magic(self) -> int:
        """Bytes that tell whether a member begins."""
        return max((len(magic) for magic in self.magics), default=0)

    def follows(self, head: bytes) -> bool:
        """Whether a member begins with these `magic` bytes."""
        return any(_fits(head, magic) for magic in self.magics)

    @abstractmethod
    def member(self, limits: Limits, path: str) -> Decompressor:
        """For one member, from its first byte. It may raise `Refused` by itself."""

    def refused(self, exc: Exception, limits: Limits, path: str) -> Refused:  # noqa: ARG002 - for codings with a memory limit
        """What one of `errors` means."""
        return corrupt(self, str(exc), path)


def corrupt(coding: Coding, what: str, path: str) -> Refused:
    """The refusal of a payload that is damaged."""
    return Refused("payload_corrupt", f"{coding.name}: {what}, at {path or 'the payload'!a}")


def unsupported(coding: Coding, what: str, path: str) -> Refused:
    """The refusal of a payload that may be right, and cannot be decoded here."""
    return Refused("payload_unsupported", f"{coding.name}: {what}, at {path or 'the payload'!a}")


def _fits(head: bytes, magic: Sequence[bytes]) -> bool:
    return all(byte in values for byte, values in zip(head, magic, strict=False))
