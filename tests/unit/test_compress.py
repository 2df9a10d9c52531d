"""compress: smaller, the same bytes from every machine, and what is small already is left alone."""

import bz2
import gzip
import hashlib
import io
import lzma
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pydantic import ValidationError

from backends.base import CHUNK_SIZE
from handlers.transforms.compress import Compress, CompressOptions
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.unzstd import Unzstd
from tests.support.codecs import outcome, unzstd, zstd

WORDS = [random.Random(number).randbytes(4).hex().encode() for number in range(500)]
TEXT = b" ".join(random.Random(4).choices(WORDS, k=400_000))
NOISE = random.Random(5).randbytes(3 * CHUNK_SIZE + 17)

CODECS = {"gzip": (gzip.decompress, Gunzip()), "zstd": (unzstd, Unzstd())}


def step(codec: str, level: int | None = None) -> Compress:
    return Compress(CompressOptions.model_validate({"codec": codec, "level": level}))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE], ids=["empty", "one", "text", "noise"])
async def test_what_was_compressed_comes_out_again(codec: str, data: bytes) -> None:
    decode, unpack = CODECS[codec]
    made = await outcome(step(codec), data, label="a.json", content_type="application/json")
    assert decode(made.data) == data
    assert all(0 < size <= CHUNK_SIZE for size in made.sizes)
    assert made.part.steps == ("compress",)
    assert made.part.depth == 0
    back = await outcome([step(codec), unpack], data, label="a.json")
    assert (back.data, back.part.label, back.part.content_type) == (data, "a.json", "application/json")


@pytest.mark.parametrize("codec", CODECS)
async def test_the_bytes_do_not_depend_on_the_chunks(codec: str) -> None:
    data = TEXT[: CHUNK_SIZE + 300_000]
    for level in (1, None, 9):
        made = {
            (await outcome(step(codec, level), data, size=size)).data
            for size in (5000, 333_333, CHUNK_SIZE - 1, CHUNK_SIZE, 2 * CHUNK_SIZE)
        }
        assert len(made) == 1


async def test_a_gzip_header_has_no_name_time_or_system() -> None:
    made = await outcome(step("gzip"), TEXT, label="name.txt")
    assert made.data[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


async def test_zstd_writes_a_checksum() -> None:
    made = await outcome(step("zstd"), TEXT)
    assert zstandard.get_frame_parameters(made.data).has_checksum


@pytest.mark.parametrize("codec", CODECS)
async def test_another_process_writes_the_same_bytes(codec: str) -> None:
    code = (
        "import asyncio, hashlib; from tests.unit.test_compress import *; "
        f"print(hashlib.sha256(asyncio.run(outcome(step({codec!r}), TEXT)).data).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: ASYNC221 - nothing else waits
    made = await outcome(step(codec), TEXT)
    assert done.stdout.strip() == hashlib.sha256(made.data).hexdigest()


async def test_a_higher_level_is_smaller() -> None:
    prose = (Path(__file__).parents[2] / "LICENSE").read_bytes()
    for codec, highest in (("gzip", 9), ("zstd", 14)):
        sizes = [len((await outcome(step(codec, level), prose)).data) for level in (1, highest)]
        assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("codec", "suffix", "content_type"),
    [("gzip", ".gz", "application/gzip"), ("zstd", ".zst", "application/zstd")],
)
async def test_names_and_types(codec: str, suffix: str, content_type: str) -> None:
    made = await outcome(step(codec), TEXT, label="a.csv", content_type="text/csv")
    assert (made.part.label, made.part.content_type) == (f"a.csv{suffix}", content_type)
    assert made.part.key("x/a.csv") == f"x/a.csv{suffix}"
    entry = await outcome(step(codec), TEXT, label="a.csv", path="in/a.csv")
    assert entry.part.key("x.zip") == f"x.zip/in/a.csv{suffix}"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", TEXT[:100])
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"x"),
        zstd(b"x"),
        bz2.compress(b"x"),
        lzma.compress(b"x"),
        zipped(),
        b"\x89PNG\r\n\x1a\n" + NOISE[:50],
        b"\xff\xd8\xff\xe0" + NOISE[:50],
        b"\x00\x00\x00\x20ftypisom" + NOISE[:50],
        b"RIFF\x10\x20\x00\x00WEBPVP8 " + NOISE[:50],
        b"PAR1" + NOISE[:50],
    ],
    ids=["gzip", "zstd", "bzip2", "xz", "zip", "png", "jpeg", "mp4", "webp", "parquet"],
)
@pytest.mark.parametrize("size", [1, CHUNK_SIZE])
async def test_what_is_small_already_is_left_alone(data: bytes, size: int) -> None:
    for codec in CODECS:
        made = await outcome(step(codec), data, size=size, label="a", content_type="x/y")
        assert made.data == data
        assert (made.part.steps, made.part.notes, made.part.content_type) == ((), (), "x/y")


async def test_what_only_looks_a_little_like_it_is_compressed() -> None:
    for data in (b"%PDF-1.7", b"PK", b"BZhello", b"RIFF1234WAVEfmt ", b"\x1f\x8b", b"abcdftyq"):
        assert (await outcome(step("zstd"), data)).part.steps == ("compress",)


async def test_a_content_encoding_that_is_still_on_is_noted() -> None:
    made = await outcome(step("zstd"), NOISE[:100], content_encoding="br")
    assert "'br'" in made.part.notes[0]


@pytest.mark.parametrize(
    "options", [{"codec": "br"}, {"level": 0}, {"codec": "gzip", "level": 10}, {"level": 15}, {"window": 3}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompressOptions.model_validate(options)
