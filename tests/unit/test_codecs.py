"""gunzip, bunzip2, unxz, unzstd: what other programs write is read right, all of it, in bounded memory; damage never passes."""

import asyncio
import bz2
import gzip
import itertools
import lzma
import random
import shutil
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from backends.base import CHUNK_SIZE
from handlers.errors import Refused
from handlers.transforms.base import Limits, Part
from handlers.transforms.coding import Decompressor
from handlers.transforms.gunzip import Gunzip, Gzip
from handlers.transforms.members import Members
from handlers.transforms.unxz import Unxz
from handlers.transforms.unzstd import Unzstd
from tests.fuzz import codecs as fuzzing
from tests.support.codecs import (
    SAMPLES,
    Sample,
    gzip_member,
    gzip_quine,
    outcome,
    skippable,
    stream,
    work_of,
    zstd,
)

SMALL = b"".join(b"%d bottles of beer on the wall, " % number for number in range(40))
UNIQUE = random.Random(2).randbytes(200) + random.Random(2).randbytes(90)
"""One match, with one place to point to."""

LARGE = random.Random(1).randbytes(150_000) + bytes(2 * CHUNK_SIZE) + SMALL * 300

every = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


async def refused(transform: Any, data: bytes, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await outcome(transform, data, **options)
    return caught.value


async def right_or_refused(sample: Sample, data: bytes, right: bytes, size: int = CHUNK_SIZE) -> str:
    """The reason of the refusal; `unchanged` where it is no longer of the format, `right`, or an assertion fails."""
    try:
        made = await outcome(sample.transform, data, size=size)
    except Refused as exc:
        return exc.reason
    if not made.part.steps:
        assert made.data == data
        return "unchanged"
    assert made.data == right
    return "right"


@every
@pytest.mark.parametrize("size", [1, 7, 4096, CHUNK_SIZE])
async def test_what_was_encoded_comes_out_again_whatever_the_chunks(sample: Sample, size: int) -> None:
    for data in (b"", b"x", SMALL, LARGE if size > 1000 else SMALL * 3):
        made = await outcome(sample.transform, sample.encode(data), size=size)
        assert made.data == data
        assert all(0 < length <= CHUNK_SIZE for length in made.sizes)
        assert made.part.steps == (sample.transform.name,)
        assert made.part.depth == 1
        assert made.part.notes == ()


async def written_by(program: str, *arguments: str) -> bytes:
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe)
    written, _ = await running.communicate(None if arguments[-1].startswith("/") else LARGE)
    assert running.returncode == 0
    return written


PROGRAMS = [
    (program, *rest)
    for program, *rest in [
        ("gzip", "gunzip", "-1"),
        ("gzip", "gunzip", "-9n"),
        ("bzip2", "bunzip2", "-1"),
        ("bzip2", "bunzip2", "-9"),
        ("xz", "unxz", "-0"),
        ("xz", "unxz", "-9"),
        ("xz", "unxz", "--block-size=100000"),
        ("xz", "unxz", "--check=sha256"),
        ("xz", "unxz", "--check=none"),
        ("xz", "unxz", "--x86", "--lzma2"),
        ("zstd", "unzstd", "-1"),
        ("zstd", "unzstd", "-19"),
        ("zstd", "unzstd", "--long=26"),
        ("zstd", "unzstd", "--no-check"),
    ]
    if shutil.which(program)
]


@pytest.mark.parametrize("command", PROGRAMS, ids=" ".join)
async def test_what_the_programs_write_is_read(command: tuple[str, ...], tmp_path: Path) -> None:
    """A file with a name and a time, and a pipe, whose size is not known."""
    program, step, *options = command
    file = tmp_path / "payload.json"
    file.write_bytes(LARGE)
    named = await written_by(program, "-qc", *options, str(file))
    piped = await written_by(program, "-qc", *options)
    made = await outcome(SAMPLES[step].transform, named + piped, size=50_000)
    assert made.data == LARGE * 2


@every
@pytest.mark.parametrize("size", [1, 5, CHUNK_SIZE])
async def test_case_88_all_members_are_decoded(sample: Sample, size: int) -> None:
    parts = [SMALL, b"", b"y" * 5000, b""]
    encoded = b"".join(sample.encode(part) for part in parts)
    assert (await outcome(sample.transform, encoded, size=size)).data == b"".join(parts)


class Counted:
    """A decompressor; `given` gets the size of all that it is given."""

    def __init__(self, inner: Decompressor, given: list[int]) -> None:
        self.inner = inner
        self.given = given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        self.given.append(len(data))
        return self.inner.decompress(data, max_length)


@every
def test_case_88_the_work_for_many_small_members_is_in_proportion(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them in one chunk: of what is behind one, little is looked at before its turn."""
    coding = sample.transform._coding
    given: list[int] = []
    member = coding.member
    monkeypatch.setattr(coding, "member", lambda limits, path: Counted(member(limits, path), given))
    made: list[int] = []
    members = Members(coding, Limits(), "", made.append)
    assert b"".join(members.feed(sample.encode(b"z") * 20_000)) == b"z" * 20_000
    members.end()
    assert made == [1] * 20_000
    assert sum(given) < 20_000 * 4096


async def test_case_88_zeros_may_follow_a_gzip_and_nothing_else() -> None:
    encoded = gzip.compress(SMALL)
    for zeros in (1, 3, 512, 40_000):
        for size in (1000, CHUNK_SIZE):
            made = await outcome(Gunzip(), encoded + bytes(zeros), size=size)
            assert made.data == SMALL
    for junk in (
        b"x",
        b"\0x",
        bytes(700) + encoded,
        b"\x1f",
        encoded[:5],
        encoded[:9] + b"\xff" * 9,
        b"\x1f\x8b\x08\xff",
    ):
        for size in (1, CHUNK_SIZE):
            assert (await refused(Gunzip(), encoded + junk, size=size)).reason == "payload_corrupt"


async def test_case_88_padding_of_xz_is_a_multiple_of_four() -> None:
    encoded = lzma.compress(SMALL)
    for padding in (4, 8, 20_000):
        for size in (1, CHUNK_SIZE) if padding < 100 else (CHUNK_SIZE,):
            made = await outcome(Unxz(), encoded + bytes(padding) + encoded + bytes(padding), size=size)
            assert made.data == SMALL * 2
    for junk in (b"\0", bytes(3), bytes(6) + encoded, b"x", bytes(4) + b"x", encoded[:7]):
        for size in (1, CHUNK_SIZE):
            assert (await refused(Unxz(), encoded + junk, size=size)).reason == "payload_corrupt"


@pytest.mark.parametrize("step", ["bunzip2", "unzstd"])
async def test_case_88_nothing_may_follow_the_others(step: str) -> None:
    sample = SAMPLES[step]
    for junk in (b"\0", bytes(4), b"x", sample.encode(b"")[:3]):
        for size in (1, CHUNK_SIZE):
            answer = await refused(sample.transform, sample.encode(SMALL) + junk, size=size)
            assert answer.reason == "payload_corrupt"


@every
async def test_case_88_cut_anywhere_it_is_refused(sample: Sample) -> None:
    encoded = sample.encode(SMALL) + sample.encode(b"two")
    first = len(sample.encode(SMALL))
    for end in range(1, len(encoded)):
        for size in (3, CHUNK_SIZE):
            if end == first:
                # A file of one member less. No format here says how many there are.
                assert (await outcome(sample.transform, encoded[:end], size=size)).data == SMALL
                continue
            answer = await refused(sample.transform, encoded[:end], size=size, label=f"a{sample.suffix}")
            assert answer.reason == "payload_corrupt", end
            assert "truncated" in answer.detail or "follows" in answer.detail


MEANINGLESS = {
    "gunzip": {3, *range(4, 10), -9},
    "bunzip2": {3, 14, *range(123, 157), -1},
    "unxz": set[int](),
    "unzstd": {4, 5},
}
"""Bytes of the encoded `UNIQUE` with bits that no decoder needs. gzip: of the header the text flag, and time, extra flags and
system; the padding behind the body. bzip2: the level, where blocks are smaller than it says; `randomised`, which changes nothing
of a block this short; the second table of codes, which has to be there and is not used; the padding at the end. zstd: the unused
bit of the frame's descriptor, and the size of a window that is larger than it need be."""


@every
@pytest.mark.parametrize("repeats", [False, True])
async def test_case_88_with_any_bit_flipped_it_is_right_or_refused(sample: Sample, repeats: bool) -> None:
    """With text that repeats, right also because a match may point to another place where the same bytes are."""
    data = SMALL if repeats else UNIQUE
    encoded = sample.encode(data)
    seen: dict[str, set[int]] = {}
    for place in range(len(encoded)):
        for bit in range(8):
            flipped = bytearray(encoded)
            flipped[place] ^= 1 << bit
            answer = await right_or_refused(sample, bytes(flipped), data)
            seen.setdefault(answer, set()).add(place)
    assert seen.pop("unchanged") <= set(range(sample.magic))
    assert seen.pop("payload_corrupt") >= {len(encoded) - 2, len(encoded) // 2}
    right = seen.pop("right", set())
    assert repeats or right <= {place % len(encoded) for place in MEANINGLESS[sample.transform.name]}
    # What a flip in a header asks for, before any checksum could tell.
    assert seen.keys() <= {"payload_limit", "payload_unsupported"}


@every
async def test_case_88_with_any_byte_gone_or_added_it_is_refused(sample: Sample) -> None:
    encoded = sample.encode(SMALL)
    for place in range(sample.magic, len(encoded)):
        for changed in (encoded[:place] + encoded[place + 1 :], encoded[:place] + b"U" + encoded[place:]):
            assert await right_or_refused(sample, changed, SMALL, 11) != "unchanged"


@pytest.mark.parametrize("size", [1, 13, CHUNK_SIZE])
async def test_gzip_headers_with_every_field(size: int) -> None:
    for flags in range(32):
        member = gzip_member(SMALL, flags, extra=b"ex" * 30, name=b"na\xefme", comment=b"c" * 99)
        assert (await outcome(Gunzip(), member * 2, size=size)).data == SMALL * 2
        for end in range(10, len(member) - len(SMALL), 7):
            assert (await refused(Gunzip(), member[:end], size=size)).reason == "payload_corrupt"
    wrong = gzip_member(SMALL, 2 | 8, name=b"n", crc=1)
    assert "checksum of a header" in (await refused(Gunzip(), wrong, size=size)).detail


async def test_a_gzip_header_has_a_limit() -> None:
    long = gzip_member(SMALL, 4 | 8, extra=b"x" * 65535, name=b"n" * 60_000)
    assert (await outcome(Gunzip(), long, size=4000)).data == SMALL
    endless = gzip_member(SMALL, 8, name=b"n" * 200_000)
    assert (await refused(Gunzip(), endless)).reason == "payload_unsupported"


async def test_reserved_flags_of_gzip_are_no_gzip() -> None:
    member = gzip_member(SMALL, 0x20)
    made = await outcome(Gunzip(), member, label="x.gz")
    assert made.data == member
    assert made.part.notes == ("name 'x.gz' claims gzip, but it is something else",)


@pytest.mark.parametrize("place", [-8, -4], ids=["CRC", "ISIZE"])
async def test_case_88_what_the_trailer_says_is_checked_in_every_member(place: int) -> None:
    good = gzip.compress(SMALL)
    bad = bytearray(good)
    bad[place] ^= 1
    for encoded in (bytes(bad), good + bytes(bad), bytes(bad) + good):
        answer = await refused(Gunzip(), encoded, path="folder/a.gz")
        assert answer.reason == "payload_corrupt"
        assert "'folder/a.gz'" in answer.detail


async def test_xz_with_a_checksum_nobody_knows_is_refused() -> None:
    """liblzma would decode it and check nothing."""
    encoded = bytearray(lzma.compress(b"", check=lzma.CHECK_CRC32))
    for place in (7, len(encoded) - 3):
        encoded[place] = 0x0F
    encoded[8:12] = struct.pack("<I", zlib.crc32(encoded[6:8]))
    encoded[-12:-8] = struct.pack("<I", zlib.crc32(encoded[-8:-2]))
    assert lzma.decompress(encoded) == b""
    for size in (1, CHUNK_SIZE):
        assert (await refused(Unxz(), bytes(encoded), size=size)).reason == "payload_unsupported"


async def test_lzma_alone_has_no_magic_number() -> None:
    encoded = lzma.compress(SMALL, lzma.FORMAT_ALONE)
    made = await outcome(Unxz(), encoded, label="x.lzma")
    assert made.data == encoded
    assert made.part.steps == ()


async def test_skippable_frames_of_zstd_are_skipped() -> None:
    frame = zstd(SMALL)
    for size in (1, 5, CHUNK_SIZE):
        encoded = skippable(b"x") + skippable() + frame + skippable(b"y" * 300) + frame + skippable()
        assert (await outcome(Unzstd(), encoded, size=size)).data == SMALL * 2
    for end in (3, 7, 8, 200):
        answer = await refused(Unzstd(), frame + skippable(b"y" * 300)[:end])
        assert answer.reason == "payload_corrupt"


async def test_skippable_frames_alone_are_not_zstd() -> None:
    """They are LZ4's as well."""
    for payload in (
        skippable(b"x"),
        skippable(b"x") + b"\x04\x22\x4d\x18rest",
        skippable(b"x" * 70_000) + zstd(b""),
    ):
        made = await outcome(Unzstd(), payload, content_type="application/zstd")
        assert made.data == payload
        assert len(made.part.notes) == 1


async def test_a_dictionary_of_zstd_is_unsupported() -> None:
    dictionary = zstandard.train_dictionary(
        4096, [b"bottles of beer on the wall %d" % number * 9 for number in range(500)]
    )
    encoded = zstd(SMALL, dict_data=dictionary)
    for size in (1, CHUNK_SIZE):
        answer = await refused(Unzstd(), encoded, size=size)
        assert answer.reason == "payload_unsupported"
        assert "dictionary" in answer.detail


def with_window(log: int, data: bytes = SMALL) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, write_checksum=True)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return encoder.compress(data) + encoder.flush()


def with_dictionary(size: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}]
    return lzma.compress(SMALL, filters=filters)


@pytest.mark.parametrize(
    ("step", "encode"),
    [("unzstd", lambda size: with_window(size.bit_length() - 1)), ("unxz", with_dictionary)],
)
async def test_case_92_the_window_is_limited_by_memory(step: str, encode: Callable[[int], bytes]) -> None:
    transform = SAMPLES[step].transform
    for memory in (1 << 20, 64 << 20):
        limits = Limits(memory=memory)
        assert (await outcome(transform, encode(memory), limits=limits)).data == SMALL
        answer = await refused(transform, encode(memory * 2), limits=limits, path="a/b")
        assert answer.reason == "payload_limit"
        assert "limits.memory" in answer.detail
        assert "'a/b'" in answer.detail


async def test_case_92_a_window_between_powers_of_two() -> None:
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(20 - 10) << 3 | 1]) + b"\x01\x00\x00"
    limits = Limits(memory=1 << 20)
    assert "limits.memory" in (await refused(Unzstd(), header, limits=limits)).detail
    assert (await outcome(Unzstd(), header, limits=Limits(memory=(1 << 20) + (1 << 17)))).data == b""


async def test_case_92_a_frame_of_one_segment_is_its_own_window() -> None:
    encoded = zstd(bytes(3 << 20), level=19)
    assert zstandard.get_frame_parameters(encoded).window_size == 3 << 20
    assert "limits.memory" in (await refused(Unzstd(), encoded, limits=Limits(memory=2 << 20))).detail
    assert (await outcome(Unzstd(), encoded, limits=Limits(memory=3 << 20))).data == bytes(3 << 20)


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """64 MiB of zeros each, in 10 kB or less but for gzip."""
    zeros = bytes(64 << 20)
    return {
        "gunzip": gzip.compress(zeros, 9),
        "bunzip2": bz2.compress(zeros),
        "unxz": lzma.compress(zeros, preset=0),
        "unzstd": zstd(zeros),
    }


@every
@pytest.mark.parametrize("limit", ["entry", "total", "ratio"])
async def test_case_84_a_bomb_stops_at_the_limit(sample: Sample, bombs: dict[str, bytes], limit: str) -> None:
    bomb = bombs[sample.transform.name]
    limits = {
        "entry": Limits(ratio=1e9, entry=5 << 20),
        "total": Limits(ratio=1e9, total=5 << 20),
        "ratio": Limits(ratio=20),
    }[limit]
    most = max(5 << 20, 20 * len(bomb), 16 << 20 if limit == "ratio" else 0) + CHUNK_SIZE
    work = work_of(limits)
    came = 0

    async def drain() -> None:
        nonlocal came
        async for part in sample.transform.apply(Part(stream(bomb, CHUNK_SIZE, work.meter)), work):
            async for chunk in part.chunks:
                came += len(chunk)

    tracemalloc.start()
    try:
        with pytest.raises(Refused) as caught:
            await drain()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "payload_limit"
    assert f"limits.{limit}" in caught.value.detail
    assert came <= most - CHUNK_SIZE
    assert work.meter._made <= most
    assert peak < 24 << 20


async def test_case_84_many_payloads_are_many_entries() -> None:
    """Each layer is an entry."""
    twice = gzip.compress(gzip.compress(SMALL))
    steps = [Gunzip(), Gunzip()]
    assert (await outcome(steps, twice, limits=Limits(entries=2))).data == SMALL
    assert "limits.entries" in (await refused(steps, twice, limits=Limits(entries=1))).detail


async def test_case_85_a_gzip_in_a_gzip_is_decoded_one_level_a_step() -> None:
    twice = gzip.compress(gzip.compress(SMALL))
    once = await outcome(Gunzip(), twice, label="a.gz.gz", content_type="application/gzip")
    assert gzip.decompress(once.data) == SMALL
    assert once.part.label == "a.gz"
    assert once.part.content_type == "application/gzip"
    both = await outcome([Gunzip(), Gunzip()], twice, label="a.gz.gz", content_type="application/gzip")
    assert both.data == SMALL
    assert both.part.depth == 2
    assert both.part.renames == ((".gz", ""), (".gz", ""))
    assert both.part.key("x/a.gz.gz") == "x/a"


async def test_case_85_a_gzip_that_decodes_to_itself_ends_at_the_nesting_limit() -> None:
    quine = gzip_quine()
    assert gzip.decompress(quine) == quine
    assert (await outcome([Gunzip()] * 3, quine)).data == quine
    answer = await refused([Gunzip()] * 4, quine, path="r.gz")
    assert answer.reason == "payload_limit"
    assert "limits.nesting: 3" in answer.detail
    assert "'r.gz'" in answer.detail
    assert (await outcome([Gunzip()] * 5, quine, limits=Limits(nesting=5))).part.depth == 5


@every
async def test_case_91_nothing_at_all(sample: Sample) -> None:
    made = await outcome(sample.transform, b"")
    assert (made.data, made.part.notes, made.part.steps) == (b"", (), ())
    claimed = await outcome(sample.transform, b"", label=f"a{sample.suffix}")
    assert claimed.data == b""
    (note,) = claimed.part.notes
    assert "but it is empty" in note


@every
async def test_what_is_something_else_goes_on_unchanged_with_a_note_if_it_claims(sample: Sample) -> None:
    for data in (b"<html>", LARGE, b"BZh9 is not enough", b"\x1f\x8b\x07\x00abc"):
        plain = await outcome(sample.transform, data, label="a.html", content_type="text/html")
        assert (plain.data, plain.part.notes, plain.part.steps, plain.part.depth) == (data, (), (), 0)
        claims: list[dict[str, Any]] = [
            {"label": f"A{sample.suffix.upper()}"},
            {"content_type": f"{sample.content_type}; q=1"},
            {"content_type": sample.content_type.upper()},
        ]
        for claim in claims:
            made = await outcome(sample.transform, data, **claim)
            assert made.data == data
            assert made.part.steps == ()
            assert len(made.part.notes) == 1


@pytest.mark.parametrize(
    ("step", "label", "told", "left", "content_type"),
    [
        ("gunzip", "data.json.gz", "application/gzip", "data.json", "application/json"),
        ("gunzip", "data.json.gz", None, "data.json", "application/json"),
        ("gunzip", "data.csv.gz", "text/csv", "data.csv", "text/csv"),
        ("gunzip", "DATA.TGZ", "application/x-gzip", "DATA.tar", "application/x-tar"),
        ("gunzip", "drawing.svgz", None, "drawing.svg", "image/svg+xml"),
        ("gunzip", "page.html", "application/octet-stream", "page.html", "text/html"),
        ("gunzip", "download", "application/gzip", "download", None),
        ("gunzip", ".gz", "application/gzip", ".gz", None),
        ("gunzip", ".tgz", "application/gzip", ".tgz", None),
        ("gunzip", "", "Application/GZip; x=y", "", None),
        ("bunzip2", "a.sql.bz2", "application/x-bzip2", "a.sql", "application/sql"),
        ("bunzip2", "a.tbz2", None, "a.tar", "application/x-tar"),
        ("unxz", "a.txz", "application/x-xz", "a.tar", "application/x-tar"),
        ("unzstd", "a.parquet.zst", "application/zstd", "a.parquet", "application/vnd.apache.parquet"),
        ("unzstd", "a.tzst", None, "a.tar", "application/x-tar"),
    ],
)
async def test_names_and_types_after_decoding(
    step: str, label: str, told: str | None, left: str, content_type: str | None
) -> None:
    sample = SAMPLES[step]
    encoded = sample.encode(SMALL)
    made = await outcome(sample.transform, encoded, label=label, content_type=told)
    assert (made.part.label, made.part.content_type) == (left, content_type)
    assert made.part.key(f"bundles/1/{label}") == f"bundles/1/{left}"
    entry = await outcome(sample.transform, encoded, label=label, content_type=told, path=f"in/{label}")
    assert entry.part.path == f"in/{left}"


async def test_heavy_work_is_done_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, int] = {}
    member = Gzip.member

    def watched(self: Gzip, limits: Limits, path: str) -> Any:
        threads[path] = threading.get_ident()
        return member(self, limits, path)

    monkeypatch.setattr(Gzip, "member", watched)
    for path, data in (("small", SMALL[:50]), ("large", LARGE)):
        await outcome(Gunzip(), gzip.compress(data), path=path)
    assert threads["small"] == threading.get_ident()
    assert threads["large"] != threading.get_ident()


async def test_whoever_stops_early_leaves_nothing_open() -> None:
    closed = []

    async def endless() -> Any:
        try:
            for chunk in itertools.repeat(gzip.compress(LARGE)):
                yield chunk
        finally:
            closed.append(True)

    source = endless()
    async for made in Gunzip().apply(Part(source), work_of()):
        async for _ in made.chunks:
            break
    await source.aclose()
    assert closed == [True]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(fuzzing.PAYLOADS)
def test_fuzzing_finds_the_right_bytes_or_a_refusal(data: bytes) -> None:
    fuzzing.fuzz(data)
