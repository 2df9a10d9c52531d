"""decode: what HTTP put on comes off, the last first; what only claims to be encoded, or in a way unknown, goes on as it is."""

import gzip
import random
import zlib
from typing import Any

import pytest

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits
from handlers.transforms.content_encoding import Decode
from tests.support.codecs import deflated, outcome, zstd

TEXT = b"".join(b"<li>%d bottles of beer</li>\n" % number for number in range(300))
NOISE = random.Random(3).randbytes(2000)


async def refused(data: bytes, encoding: str, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await outcome(Decode(), data, content_encoding=encoding, **options)
    return caught.value


@pytest.mark.parametrize("size", [1, 100, CHUNK_SIZE])
@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("GZip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
        ("x-gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", deflated(TEXT)),
        ("deflate", zlib.compress(TEXT, wbits=9)),
        ("zstd", zstd(TEXT)),
        ("identity", TEXT),
        ("", TEXT),
        (" , gzip ,", gzip.compress(TEXT)),
        ("zstd, gzip", gzip.compress(zstd(TEXT))),
        ("deflate, identity, Gzip", gzip.compress(deflated(TEXT))),
    ],
)
async def test_what_was_put_on_comes_off_the_last_first(encoding: str, encoded: bytes, size: int) -> None:
    told: dict[str, Any] = {"label": "page.html", "content_type": "text/html; charset=utf-8"}
    made = await outcome(Decode(), encoded, size=size, content_encoding=encoding, **told)
    assert made.data == TEXT
    assert made.part.content_encoding is None
    assert made.part.notes == ()
    assert (made.part.label, made.part.content_type) == (told["label"], told["content_type"])
    assert made.part.depth == len(made.part.steps)
    assert made.part.key("b/page.html") == "b/page.html"


async def test_nothing_is_done_where_nothing_is_claimed() -> None:
    encoded = gzip.compress(TEXT)
    made = await outcome(Decode(), encoded, label="a.gz")
    assert (made.data, made.part.steps, made.part.notes) == (encoded, (), ())


async def test_an_encoding_nobody_knows_stays_on_with_a_note() -> None:
    made = await outcome(Decode(), NOISE, content_encoding="gzip, BR")
    assert made.data == NOISE
    assert made.part.content_encoding == "gzip, br"
    assert made.part.notes == ("content encoding 'br' is not decoded here",)
    inside = await outcome(Decode(), gzip.compress(NOISE), content_encoding="br,gzip")
    assert inside.data == NOISE
    assert inside.part.content_encoding == "br"
    assert len(inside.part.notes) == 1
    assert inside.part.steps == ("decode",)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize(
    "data", [TEXT, NOISE, b"{}", b"x", b"8O", b'{"a": 1}', b"x^2 + y", b"\x78\x9c", bytes(9)]
)
async def test_a_claim_that_the_bytes_do_not_bear_out_is_dropped_with_a_note(
    encoding: str, data: bytes
) -> None:
    """Fetchers decode a body and keep the header."""
    if encoding == "deflate" and data in {b"\x78\x9c", b"8O"}:
        # The beginning of zlib, and nothing that speaks against it.
        assert (await refused(data, encoding)).reason == "payload_corrupt"
        return
    made = await outcome(Decode(), data, content_encoding=encoding)
    assert made.data == data
    assert made.part.steps == ()
    assert made.part.content_encoding is None
    assert made.part.notes == (f"content encoding '{encoding}' is claimed, but it is something else",)


async def test_case_91_an_empty_body_is_not_encoded() -> None:
    for encoding in ("gzip", "deflate", "zstd"):
        made = await outcome(Decode(), b"", content_encoding=encoding)
        assert made.data == b""
        assert made.part.notes == (f"content encoding '{encoding}' is claimed, but it is empty",)


@pytest.mark.parametrize(
    ("encoding", "encoded", "unproven"),
    [
        ("gzip", gzip.compress(TEXT), range(0)),
        ("zstd", zstd(TEXT), range(0)),
        # Of one byte nobody can tell.
        ("deflate", zlib.compress(TEXT), range(1, 2)),
        # Without a magic number it takes 512 bytes to believe it.
        ("deflate", deflated(NOISE), range(1, 512)),
    ],
    ids=["gzip", "zstd", "zlib", "bare"],
)
async def test_case_88_cut_anywhere_it_is_refused(encoding: str, encoded: bytes, unproven: range) -> None:
    for end in range(1, len(encoded)):
        if end in unproven:
            made = await outcome(Decode(), encoded[:end], content_encoding=encoding)
            assert made.data == encoded[:end]
            assert len(made.part.notes) == 1
        else:
            assert (await refused(encoded[:end], encoding, size=700)).reason == "payload_corrupt"


async def test_case_88_with_any_bit_flipped_zlib_is_right_or_refused_or_unchanged() -> None:
    """Unchanged only where the first 512 bytes do not decode: then nothing shows that it is zlib at all."""
    encoded = zlib.compress(NOISE + TEXT)
    reasons = set()
    for place in range(len(encoded)):
        flipped = bytearray(encoded)
        flipped[place] ^= 1 << (place % 8)
        try:
            made = await outcome(Decode(), bytes(flipped), content_encoding="deflate")
        except Refused as exc:
            reasons.add(exc.reason)
        else:
            assert made.data == (bytes(flipped) if not made.part.steps else NOISE + TEXT)
            assert made.part.steps or place < 512
    assert reasons == {"payload_corrupt"}


async def test_nothing_may_follow_deflate() -> None:
    for encoded in (zlib.compress(TEXT), deflated(NOISE)):
        assert (await refused(encoded + b"\0", "deflate")).reason == "payload_corrupt"
        assert (await refused(encoded + encoded, "deflate", size=100)).reason == "payload_corrupt"


async def test_what_decodes_as_bare_deflate_in_part_only_is_something_else() -> None:
    encoded = deflated(b"short") + b"!"
    made = await outcome(Decode(), encoded, content_encoding="deflate")
    assert made.data == encoded
    assert len(made.part.notes) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_case_93_a_bomb_stops_at_the_limit(encoding: str) -> None:
    zeros = bytes(40 << 20)
    bomb = {"gzip": gzip.compress(zeros), "deflate": zlib.compress(zeros), "zstd": zstd(zeros)}[encoding]
    limits = Limits(ratio=50)
    answer = await refused(bomb, encoding, limits=limits)
    assert answer.reason == "payload_limit"
    assert "limits.ratio" in answer.detail


async def test_case_93_a_bomb_in_a_bomb_counts_both_levels() -> None:
    bomb = gzip.compress(gzip.compress(bytes(200 << 20)))
    assert len(bomb) < 1500
    answer = await refused(bomb, "gzip, gzip")
    assert answer.reason == "payload_limit"


async def test_case_85_many_encodings_are_beyond_the_nesting_limit() -> None:
    encoded = TEXT
    for _ in range(4):
        encoded = gzip.compress(encoded)
    answer = await refused(encoded, "gzip, gzip, gzip, gzip")
    assert "limits.nesting" in answer.detail
    limits = Limits(nesting=4)
    made = await outcome(Decode(), encoded, content_encoding="gzip,gzip,gzip,gzip", limits=limits)
    assert made.data == TEXT


async def test_a_long_header_is_cheap() -> None:
    made = await outcome(Decode(), TEXT, content_encoding=",".join(["identity"] * 10_000 + ["nonsense" * 90]))
    assert made.data == TEXT
    assert len(made.part.notes[0]) < 200


async def test_a_file_that_is_called_its_own_encoding_loses_its_suffix() -> None:
    """Servers that describe `data.tar.gz` as `Content-Type: application/x-gzip` and as an encoding, with one gzip."""
    told: dict[str, Any] = {"label": "data.tar.gz", "content_type": "application/x-gzip"}
    once = await outcome(Decode(), gzip.compress(TEXT), content_encoding="x-gzip", **told)
    assert (once.data, once.part.label, once.part.content_type) == (TEXT, "data.tar", "application/x-tar")
    assert once.part.key("k/data.tar.gz") == "k/data.tar"
    inner = gzip.compress(TEXT)
    twice = await outcome(Decode(), gzip.compress(inner), content_encoding="gzip", **told)
    assert (twice.data, twice.part.label, twice.part.content_type) == (inner, *told.values())
