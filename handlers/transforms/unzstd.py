"""unzstd: all frames of a Zstandard file (RFC 8878), by libzstd as in Python 3.14 and its backport.

Of the packages for it this is the one whose decoder both stops after so many bytes and limits the window. Skippable frames
are skipped. A frame that wants a dictionary cannot be decoded here.
"""

import sys
from collections.abc import Mapping
from types import MappingProxyType

from handlers.transforms.base import Limits, exceeded
from handlers.transforms.codecs import Unpack
from handlers.transforms.coding import Coding, unsupported
from handlers.transforms.registry import NoOptions

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_FRAME = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = bytes(range(0x50, 0x60))


class Zstd(Coding):
    name = "zstd"
    magics = (
        tuple(bytes([byte]) for byte in _FRAME),
        (_SKIPPABLE, b"\x2a", b"\x4d", b"\x18"),
    )
    suffixes: Mapping[str, str] = MappingProxyType({".zst": "", ".zstd": "", ".tzst": ".tar"})
    types = frozenset({"application/zstd", "application/x-zstd", "application/x-zstd-compressed-tar"})
    errors = (zstd.ZstdError,)
    look = 64 * 1024

    def begins(self, head: bytes) -> bool:
        """Skippable frames are LZ4's as well: what counts is the first frame that is none."""
        while head[:1] and head[0] in _SKIPPABLE and head[1:4] == b"\x2a\x4d\x18" and len(head) >= 8:
            head = head[8 + int.from_bytes(head[4:8], "little") :]
        return head.startswith(_FRAME)

    def member(self, limits: Limits, path: str) -> "_Frame":
        return _Frame(self, limits, path)


class _Frame:
    """Reads the header, to name what is wrong with it, then hands on to libzstd."""

    def __init__(self, coding: Coding, limits: Limits, path: str) -> None:
        self._coding = coding
        self._limits = limits
        self._path = path
        self._header: bytes | None = b""
        # Of the windows that this lets through, `_check` refuses those that are too large by less than a factor of two.
        log = max(10, min(31, limits.memory.bit_length()))
        self._frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: log})

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def needs_input(self) -> bool:
        return self._header is not None or self._frame.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        if self._header is not None:
            self._header += data
            if len(self._header) < _length(self._header):
                return b""
            self._check(self._header)
            data, self._header = self._header, None
        return self._frame.decompress(data, max_length)

    def _check(self, header: bytes) -> None:
        """https://www.rfc-editor.org/rfc/rfc8878#name-frame-header"""
        if not header.startswith(_FRAME):
            return
        single, dictionary, content = _fields(header[4])
        start = 5 if single else 6
        if int.from_bytes(header[start : start + dictionary], "little"):
            raise unsupported(self._coding, "a frame that needs a dictionary", self._path)
        if single:
            # Sizes in two bytes are 256 more than they say; no limit is as small.
            window = int.from_bytes(header[start + dictionary : start + dictionary + content], "little")
        else:
            base = 1 << (10 + (header[5] >> 3))
            window = base + (base >> 3) * (header[5] & 7)
        if window > self._limits.memory:
            raise exceeded("memory", self._limits.memory, self._path)


def _length(header: bytes) -> int:
    """Bytes of a frame's header, as far as these tell."""
    if len(header) < 5 or not header.startswith(_FRAME):
        return 5
    single, dictionary, content = _fields(header[4])
    return (5 if single else 6) + dictionary + content


def _fields(descriptor: int) -> tuple[bool, int, int]:
    """Whether the frame is one segment, without a window of its own; bytes of dictionary id, and of the content's size."""
    single = bool(descriptor & 0x20)
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    return single, (0, 1, 2, 4)[descriptor & 3], content


class Unzstd(Unpack):
    """The step `unzstd`."""

    def __init__(self, options: NoOptions | None = None) -> None:  # noqa: ARG002 - as all steps are made
        super().__init__("unzstd", Zstd())
