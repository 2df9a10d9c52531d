"""gunzip: RFC 1952, all members, by ISA-L's igzip (https://github.com/pycompression/python-isal).

The headers are read here: igzip ignores the reserved flags, and finds a right header checksum wrong when the header comes
in pieces.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast
from zlib import crc32

from isal import igzip_lib

from handlers.transforms.base import Limits
from handlers.transforms.codecs import Unpack
from handlers.transforms.coding import Coding, corrupt, unsupported
from handlers.transforms.registry import NoOptions

_HEADER = 128 * 1024
"""Bytes a header may have: name and comment have no limit in the RFC, the extra field 64 KiB."""

IgzipError = cast("type[Exception]", igzip_lib.error)
"""The package's stubs take the class for an instance."""

_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16


class Gzip(Coding):
    name = "gzip"
    # Method deflate, and no reserved flag: https://www.rfc-editor.org/rfc/rfc1952#section-2.3.1
    magics = ((b"\x1f", b"\x8b", b"\x08", bytes(range(32))),)
    suffixes: Mapping[str, str] = MappingProxyType(
        {".gz": "", ".gzip": "", ".tgz": ".tar", ".taz": ".tar", ".svgz": ".svg"}
    )
    types = frozenset(
        {
            "application/gzip",
            "application/x-gzip",
            "application/x-gtar-compressed",
            "application/x-tgz",
            "application/x-compressed-tar",
        }
    )
    errors = (IgzipError,)
    # Tapes and block devices fill up with zeros; https://www.gnu.org/software/gzip/manual/gzip.html#Tapes
    padding = 1

    def member(self, limits: Limits, path: str) -> "_Member":  # noqa: ARG002 - a window of 32 KiB, always
        return _Member(self, path)


class _Member:
    """Reads the header, then hands on to igzip, which checks CRC and size at the end."""

    def __init__(self, coding: Coding, path: str) -> None:
        self._coding = coding
        self._path = path
        self._header: bytearray | None = bytearray()
        self._body = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)

    @property
    def eof(self) -> bool:
        return self._body.eof

    @property
    def needs_input(self) -> bool:
        return self._header is not None or self._body.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._body.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        if self._header is not None:
            self._header += data
            end = self._end_of(self._header)
            if (end or len(self._header)) > _HEADER:
                raise unsupported(self._coding, f"a header of more than {_HEADER} bytes", self._path)
            if end is None:
                return b""
            data, self._header = bytes(self._header[end:]), None
        return self._body.decompress(data, max_length)

    def _end_of(self, header: bytearray) -> int | None:
        """Where the header ends; None when that is further on."""
        if len(header) < 12:
            # No member is shorter: its header has 10 bytes, and body and trailer follow.
            return None
        flags, end = header[3], 10
        if flags & _EXTRA:
            end += 2 + int.from_bytes(header[10:12], "little")
        for field in (_NAME, _COMMENT):
            if flags & field:
                nul = header.find(0, end)
                if nul < 0:
                    return None
                end = nul + 1
        if flags & _HEADER_CRC:
            if len(header) < end + 2:
                return None
            if header[end : end + 2] != (crc32(header[:end]) & 0xFFFF).to_bytes(2, "little"):
                raise corrupt(self._coding, "wrong checksum of a header", self._path)
            end += 2
        return end if end <= len(header) else None


class Gunzip(Unpack):
    """The step `gunzip`."""

    def __init__(self, options: NoOptions | None = None) -> None:  # noqa: ARG002 - as all steps are made
        super().__init__("gunzip", Gzip())
