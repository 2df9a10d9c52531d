"""Fuzz target: whatever bytes a one-to-one decoder gets, what others decode them to comes out, or they are refused.

`fuzz` takes any bytes; `PAYLOADS` makes good ones and damages them. Called by tests/unit/test_codecs.py for a few dozen examples.
"""

import asyncio
import bz2
import gzip
import lzma
import zlib

from hypothesis import strategies as st

from handlers.errors import Refused
from handlers.transforms.base import Limits, Transform
from handlers.transforms.content_encoding import Decode
from tests.support.codecs import SAMPLES, deflated, gzip_member, outcome, skippable, zstd

LIMITS = Limits(total=1 << 22, entry=1 << 21, memory=1 << 20)
REASONS = {"payload_corrupt", "payload_limit", "payload_unsupported"}
ENCODINGS = ("gzip", "deflate", "zstd", "gzip, deflate", "zstd, x-gzip, identity")

_CONTENT = st.binary(max_size=200) | st.builds(
    lambda unit, count: unit * count, st.binary(min_size=1, max_size=9), st.integers(1, 30_000)
)
_MEMBER = st.one_of(
    st.builds(lambda data, level: gzip.compress(data, level, mtime=0), _CONTENT, st.integers(0, 9)),
    st.builds(
        lambda data, flags, field: gzip_member(data, flags, extra=field, name=b"n", comment=b"c"),
        _CONTENT,
        st.integers(0, 63),
        st.binary(max_size=5),
    ),
    st.builds(bz2.compress, _CONTENT, st.integers(1, 9)),
    st.builds(
        lambda data, check: lzma.compress(data, check=check, preset=0),
        _CONTENT,
        st.sampled_from([lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256]),
    ),
    st.builds(
        lambda data, level, checksum: zstd(data, level=level, write_checksum=checksum),
        _CONTENT,
        st.integers(-5, 9),
        st.booleans(),
    ),
    st.builds(skippable, st.binary(max_size=9)),
    st.builds(zlib.compress, _CONTENT),
    st.builds(deflated, _CONTENT),
)
_PADDING = st.sampled_from([b"", b"", b"", b"\0", bytes(4), bytes(600), b"junk"])


@st.composite
def _payloads(draw: st.DrawFn) -> bytes:
    """Members, mostly of one format, with up to three wounds."""
    member = draw(_MEMBER)
    others = draw(st.lists(st.just(member) | _MEMBER, max_size=2))
    data = draw(_PADDING).join([member, *others]) + draw(_PADDING)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:place]
            case 1:
                data = data[:place] + draw(st.binary(min_size=1, max_size=4)) + data[place:]
            case 2:
                data = data[:place] + data[place + draw(st.integers(1, 30)) :]
            case _ if data:
                flipped = data[place] ^ 1 << draw(st.integers(0, 7))
                data = data[:place] + bytes([flipped]) + data[place + 1 :]
    return data


PAYLOADS = _payloads() | st.binary(max_size=300)


def fuzz(data: bytes) -> None:
    """Every decoder, in large chunks and in small ones. Raises `AssertionError`."""
    asyncio.run(_fuzz(data))


async def _fuzz(data: bytes) -> None:
    for step, sample in SAMPLES.items():
        answers = [await _answer(sample.transform, data, size) for size in (len(data) or 1, 37)]
        assert answers[0] == answers[1]
        if not isinstance(answers[0], str):
            changed, came = answers[0]
            assert came == (sample.decode(data) if changed else data), step
    for encoding in ENCODINGS:
        answers = [await _answer(Decode(), data, size, encoding) for size in (len(data) or 1, 37)]
        assert answers[0] == answers[1]
        if "," not in encoding and not isinstance(answers[0], str):
            changed, came = answers[0]
            assert came == (_decoded(encoding, data) if changed else data), encoding


async def _answer(
    transform: Transform, data: bytes, size: int, encoding: str | None = None
) -> tuple[bool, bytes] | str:
    """Whether it was changed, and the bytes; or the reason why not."""
    try:
        made = await outcome(transform, data, size=size, limits=LIMITS, content_encoding=encoding)
    except Refused as exc:
        reason = exc.reason
    else:
        assert len(made.data) <= max(LIMITS.entry, len(data))
        return bool(made.part.steps), made.data
    assert reason in REASONS
    return reason


def _decoded(encoding: str, data: bytes) -> bytes:
    if encoding == "deflate":
        try:
            return zlib.decompress(data)
        except zlib.error:
            return zlib.decompress(data, wbits=-15)
    return SAMPLES[{"gzip": "gunzip", "zstd": "unzstd"}[encoding]].decode(data)
