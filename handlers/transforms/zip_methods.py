"""Decodes the content of a zip's entries and holds it to size and CRC. Used by handlers/transforms/unzip.py.

Extra: `transforms`. Everything here blocks on the spool and belongs on a thread.
"""

import lzma
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from struct import Struct
from types import MappingProxyType
from typing import Protocol, cast

from isal import igzip_lib
from isal.isal_zlib import crc32

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits, exceeded
from handlers.transforms.members import Members
from handlers.transforms.spool import Spool
from handlers.transforms.unzstd import Zstd
from handlers.transforms.zip_refusals import corrupt, unsupported

Decoder = Callable[[], bytes]
"""The next piece, of at most `CHUNK_SIZE` bytes; empty at the end, after all that was packed is used."""

_ERRORS = (cast("type[Exception]", igzip_lib.IsalError), lzma.LZMAError, OSError)
"""What the decompressors raise: isal's, whose stub says it is an exception, lzma's and bz2's."""
_FEED = 256 * 1024
_LZMA = Struct("<2BH")


class Packed:
    """The bytes of one entry as they lie in the archive, read in turn."""

    def __init__(self, spool: Spool, start: int, size: int, name: str) -> None:
        self._spool = spool
        self._at = start
        self.left = size
        self.name = name

    def read(self, size: int) -> bytes:
        piece = self._spool.read(self._at, min(size, self.left))
        self._at += len(piece)
        self.left -= len(piece)
        return piece


class Content:
    """The content of one entry, piece by piece."""

    def __init__(self, opened: Callable[[], Decoder], size: int, crc: int, name: str) -> None:
        """`opened` gives its decoder; `size` and `crc` are what it has to come to."""
        self._opened = opened
        self._decoder: Decoder | None = None
        self._size = size
        self._crc = crc
        self._name = name
        self._made = 0
        self._made_crc = 0
        self.whole = False
        """It was read to its end, and is what it should be."""

    def read(self) -> bytes:
        """The next piece. The last one comes only after all was checked. Raises `Refused("payload_corrupt")`."""
        decoder = self._decoder = self._decoder or self._opened()
        piece = decoder()
        self._made += len(piece)
        self._made_crc = crc32(piece, self._made_crc)
        if self._made < self._size:
            if not piece:
                corrupt(f"{self._name!a} has {self._made} bytes where {self._size} are stated")
            return piece
        if self._made > self._size or decoder():
            corrupt(f"{self._name!a} has more than the {self._size} bytes stated")
        if self._made_crc != self._crc:
            corrupt(f"the CRC of {self._name!a} is {self._made_crc:08x} where {self._crc:08x} is stated")
        self.whole = True
        return piece


class _Decompressor(Protocol):
    """What bz2, lzma and isal have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Pulled:
    """A decoder that is fed as it asks to be."""

    def __init__(self, packed: Packed, decompressor: _Decompressor) -> None:
        self._packed = packed
        self._decompressor = decompressor

    def __call__(self) -> bytes:
        decompressor, packed = self._decompressor, self._packed
        while not decompressor.eof:
            fed = packed.read(_FEED) if decompressor.needs_input else b""
            if decompressor.needs_input and not fed:
                corrupt(f"the content of {packed.name!a} ends too early")
            try:
                piece = decompressor.decompress(fed, CHUNK_SIZE)
            except _ERRORS as exc:
                raise Refused("payload_corrupt", f"zip: {packed.name!a} cannot be decoded: {exc}") from exc
            if piece:
                return piece
            if not fed and not decompressor.needs_input and not decompressor.eof:
                corrupt(f"{packed.name!a} cannot be decoded: no progress")
        if packed.left or decompressor.unused_data:
            corrupt(f"the content of {packed.name!a} is followed by other bytes")
        return b""


def _stored(packed: Packed, size: int, flags: int, limits: Limits) -> Decoder:  # noqa: ARG001 - as its sisters
    return lambda: packed.read(CHUNK_SIZE)


def _deflate(packed: Packed, size: int, flags: int, limits: Limits) -> Decoder:  # noqa: ARG001 - as its sisters
    return _Pulled(packed, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE))


def _bzip2(packed: Packed, size: int, flags: int, limits: Limits) -> Decoder:  # noqa: ARG001 - as its sisters
    return _Pulled(packed, BZ2Decompressor())


def _lzma(packed: Packed, size: int, flags: int, limits: Limits) -> Decoder:
    """APPNOTE.TXT 5.8.8: version, length of the properties, properties, stream. With bit 1 the stream has an end mark."""
    head = packed.read(_LZMA.size)
    properties = packed.read(5)
    if len(properties) < 5:
        corrupt(f"the content of {packed.name!a} ends too early")
    if _LZMA.unpack(head)[2] != 5:
        unsupported(f"LZMA properties of unknown form: {packed.name!a}")
    dictionary = int.from_bytes(properties[1:], "little")
    if dictionary > limits.memory:
        raise exceeded("memory", limits.memory, packed.name)
    length = 0xFFFFFFFFFFFFFFFF if flags & 1 << 1 else size
    # Besides the dictionary liblzma takes less than 128 KiB, for its tables.
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=dictionary + (1 << 20))
    try:
        decompressor.decompress(properties + length.to_bytes(8, "little"), 0)
    except lzma.LZMAError as exc:
        raise Refused("payload_corrupt", f"zip: {packed.name!a} cannot be decoded: {exc}") from exc
    return _Pulled(packed, decompressor)


def _zstandard(packed: Packed, size: int, flags: int, limits: Limits) -> Decoder:  # noqa: ARG001 - as its sisters
    """All its frames. What comes out is counted by whoever takes it."""
    frames = Members(Zstd(), limits, packed.name, lambda _: None)

    def decoded() -> Iterator[bytes]:
        while fed := packed.read(_FEED):
            yield from frames.feed(fed)
        frames.end()

    pieces = decoded()
    return lambda: next(pieces, b"")


METHODS = MappingProxyType({0: _stored, 8: _deflate, 12: _bzip2, 14: _lzma, 93: _zstandard})
"""By the number of APPNOTE.TXT 4.4.5: (packed, size, general purpose flags, limits) -> decoder."""
