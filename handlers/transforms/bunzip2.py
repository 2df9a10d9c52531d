"""bunzip2: all streams of a bzip2 file, by the standard library. At most 4 MB of tables, whatever the input."""

import bz2
from collections.abc import Mapping
from types import MappingProxyType

from handlers.transforms.base import Limits
from handlers.transforms.codecs import Unpack
from handlers.transforms.coding import Coding
from handlers.transforms.registry import NoOptions

_START = tuple(bytes([byte]) for byte in b"BZh")
_LEVELS = b"123456789"
_BLOCK, _END = (tuple(bytes([byte]) for byte in mark) for mark in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"))


class Bzip2(Coding):
    name = "bzip2"
    # `BZh` alone could be the beginning of a text: a block follows it, or the end of a stream without any.
    magics = ((*_START, _LEVELS, *_BLOCK), (*_START, _LEVELS, *_END))
    suffixes: Mapping[str, str] = MappingProxyType(
        {".bz2": "", ".bz": "", ".tbz2": ".tar", ".tbz": ".tar", ".tb2": ".tar"}
    )
    types = frozenset({"application/x-bzip2", "application/x-bzip", "application/bzip2"})
    errors = (OSError, ValueError, EOFError)
    # A block of 900,000 bytes can be written in 40.
    quick = False

    def member(self, limits: Limits, path: str) -> bz2.BZ2Decompressor:  # noqa: ARG002 - nothing here depends on them
        return bz2.BZ2Decompressor()


class Bunzip2(Unpack):
    """The step `bunzip2`."""

    def __init__(self, options: NoOptions | None = None) -> None:  # noqa: ARG002 - as all steps are made
        super().__init__("bunzip2", Bzip2())
