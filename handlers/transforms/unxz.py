"""unxz: all streams of an .xz file (https://tukaani.org/xz/xz-file-format.txt), by the standard library.

The older .lzma format has no magic number, so nothing tells it from any other bytes: it goes on as it is.
"""

import lzma
from collections.abc import Mapping
from types import MappingProxyType

from handlers.errors import Refused
from handlers.transforms.base import Limits, exceeded
from handlers.transforms.codecs import Unpack
from handlers.transforms.coding import TABLES, Coding, corrupt, unsupported
from handlers.transforms.registry import NoOptions


class Xz(Coding):
    name = "xz"
    magics = (tuple(bytes([byte]) for byte in b"\xfd7zXZ\x00"),)
    suffixes: Mapping[str, str] = MappingProxyType({".xz": "", ".txz": ".tar"})
    types = frozenset({"application/x-xz", "application/xz", "application/x-xz-compressed-tar"})
    errors = (lzma.LZMAError, EOFError)
    padding = 4
    padded_between = True
    quick = False

    def member(self, limits: Limits, path: str) -> "_Stream":
        # The dictionary may have all of the limit: `xz -9` has one of 64 MiB.
        return _Stream(self, limits.memory + TABLES, path)

    def refused(self, exc: Exception, limits: Limits, path: str) -> Refused:
        # liblzma's return codes come out as these texts only: CPython's Modules/_lzmamodule.c, catch_lzma_error.
        text = str(exc)
        if text == "Memory usage limit exceeded":
            return exceeded("memory", limits.memory, path)
        if text == "Invalid or unsupported options":
            return unsupported(self, "a filter or option that is not known", path)
        return corrupt(self, text, path)


class _Stream:
    """Refuses a stream whose checksum nobody here can compute: liblzma would leave it unchecked."""

    def __init__(self, coding: Coding, memory: int, path: str) -> None:
        self._coding = coding
        self._path = path
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return self._stream.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        made = self._stream.decompress(data, max_length)
        check = self._stream.check
        if check != lzma.CHECK_UNKNOWN and not lzma.is_check_supported(check):
            raise unsupported(self._coding, f"checksums of kind {check}", self._path)
        return made


class Unxz(Unpack):
    """The step `unxz`."""

    def __init__(self, options: NoOptions | None = None) -> None:  # noqa: ARG002 - as all steps are made
        super().__init__("unxz", Xz())
