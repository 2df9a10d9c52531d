"""decode: takes off what `Content-Encoding` says was put on (RFC 9110, 8.4), the last coding first.

Fetchers often decode a body and keep the header, so a claim that the bytes do not bear out is dropped, with a note.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import MappingProxyType

from isal import igzip_lib

from backends.base import CHUNK_SIZE
from handlers.transforms.base import Limits, Part, Work
from handlers.transforms.codecs import check_nesting, claim, unpacked
from handlers.transforms.coding import TRUNCATED, Coding, corrupt
from handlers.transforms.gunzip import Gzip, IgzipError
from handlers.transforms.members import decoded
from handlers.transforms.peek import peek
from handlers.transforms.registry import NoOptions
from handlers.transforms.unzstd import Zstd

_PROBE = 512
"""Bytes that have to decode for a payload to look like deflate: bare deflate has no magic number, and zlib a weak one."""


class _Deflate(Coding):
    """One stream, and nothing behind it."""

    suffixes: Mapping[str, str] = MappingProxyType({})
    errors = (IgzipError,)
    look = _PROBE
    several = False
    flag: int

    def member(self, limits: Limits, path: str) -> igzip_lib.IgzipDecompressor:  # noqa: ARG002 - a window of 32 KiB, always
        return igzip_lib.IgzipDecompressor(flag=self.flag)


class Zlib(_Deflate):
    """RFC 1950: what HTTP calls deflate."""

    name = "deflate"
    # Method 8, and a window of 32 KiB or less; the second byte makes the two a multiple of 31.
    magics = ((bytes(range(0x08, 0x88, 0x10)),),)
    flag = igzip_lib.DECOMP_ZLIB

    def begins(self, head: bytes) -> bool:
        if not super().begins(head) or int.from_bytes(head[:2]) % 31 or len(head) < 2:
            return False
        try:
            igzip_lib.IgzipDecompressor(flag=self.flag).decompress(head, CHUNK_SIZE)
        except IgzipError:
            return False
        return True


class BareDeflate(_Deflate):
    """RFC 1951 without anything around it: what some servers send for deflate. It has no checksum."""

    name = "bare deflate"
    magics = ((),)
    flag = igzip_lib.DECOMP_DEFLATE

    def begins(self, head: bytes) -> bool:
        """A payload that is shorter than what was looked at has to be whole."""
        probe = igzip_lib.IgzipDecompressor(flag=self.flag)
        try:
            probe.decompress(head, CHUNK_SIZE)
        except IgzipError:
            return False
        if probe.eof:
            return not probe.unused_data
        return len(head) >= _PROBE


_CODINGS: Mapping[str, tuple[Coding, ...]] = MappingProxyType(
    {
        "gzip": (Gzip(),),
        "x-gzip": (Gzip(),),
        "deflate": (Zlib(), BareDeflate()),
        "zstd": (Zstd(),),
    }
)
"""By their names in https://www.iana.org/assignments/http-parameters, which are compared without regard to case."""


class Decode:
    """The step `decode`."""

    Options = NoOptions
    early = False

    def __init__(self, options: NoOptions | None = None) -> None:
        """There is nothing to choose."""

    @property
    def name(self) -> str:
        return "decode"

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        async with AsyncExitStack() as opened:
            names = [name.strip().lower() for name in (part.content_encoding or "").split(",")]
            while names:
                coded = names.pop()
                if coded in {"", "identity"}:
                    continue
                codings = _CODINGS.get(coded)
                if codings is None:
                    part = part.noted(f"content encoding {coded[:80]!a} is not decoded here")
                    names.append(coded)
                    break
                head, chunks = await peek(part.chunks, max(coding.look for coding in codings))
                part = replace(part, chunks=chunks)
                coding = next((coding for coding in codings if coding.begins(head)), None)
                if coding is None:
                    if any(coding.cut(head) for coding in codings):
                        raise corrupt(codings[0], TRUNCATED, part.path)
                    is_something = "something else" if head else "empty"
                    part = part.noted(f"content encoding {coded!a} is claimed, but it is {is_something}")
                    names.clear()
                    break
                check_nesting(part, work)
                decoding = await opened.enter_async_context(
                    aclosing(decoded(coding, chunks, part.path, work))
                )
                part = await _without(coding, part, decoding)
            # What `changed` forgets and nobody has taken off is still on.
            yield replace(part, content_encoding=", ".join(names) or None)


async def _without(coding: Coding, part: Part, decoding: AsyncIterator[bytes]) -> Part:
    """The part without this layer, which is the transfer's: name and type are those of what is inside.

    Unless these claim the same coding and it was there once only: servers that are asked for `data.tar.gz` and have it
    describe the file and call that an encoding.
    """
    chunks = decoding
    if claim(part, coding):
        head, chunks = await peek(decoding, coding.look)
        if not coding.begins(head):
            return unpacked("decode", coding, part, chunks)
    made = part.changed("decode", chunks, content_type=part.content_type)
    return replace(made, depth=part.depth + 1)
