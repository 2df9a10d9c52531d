"""Archives of bundles: the same bytes every time, whole or not at all, and readable by others' programs."""

import asyncio
import io
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from pydantic import ValidationError

from backends.base import CHUNK_SIZE, Attributes
from backends.errors import IntegrityError, NotFound, Unavailable
from backends.memory import MemoryBackend
from backends.registry import UnknownName
from handlers.bundling.archive import FORMATS, archive
from handlers.bundling.base import Member, blocks
from handlers.bundling.listing import listed
from handlers.bundling.tar_writer import headers, tar
from handlers.bundling.zip_format import Entry, central_header, descriptor, end_records, local_header
from handlers.transforms.base import Limits
from tests.fuzz.bundling import BUNDLES, Bundle, fuzz, read_back, taken_apart
from tests.support import apt
from tests.support.bundles import archived, listing, member, members_of, opening
from tests.support.services import NotAvailable

FORMAT_NAMES = ["tar.gz", "tar.zst", "zip"]
NOISE = b"".join(sha256(b"%d" % number).digest() for number in range(70_000))
FILES = {
    "page-0123456789abcdef.html": b"<html>" * 1_000,
    "empty-1123456789abcdef": b"",
    "noise-2123456789abcdef.bin": NOISE,
    "block-3123456789abcdef.bin": NOISE[:65_535],
    "over-4123456789abcdef.bin": NOISE[:65_536],
    "site-5123456789abcdef.zip/a/é.txt": "é".encode(),
    "site-5123456789abcdef.zip/a/" + "long" * 40 + ".txt": b"long",
}
ZERO_5_GIB = "7f06c62352aebd8125b2a1841e2b9e1ffcbed602f381c3dcb3200200e383d1d5"


def program(name: str) -> str:
    """Where the program is; the package has its name."""
    command = f"apt-get install {name}"
    if shutil.which(name) is None:
        if not apt.can_install():
            raise NotAvailable(f"{name} is not here", command)
        apt.install(name)
    return name


def succeeds(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    return done.stdout


async def plain_tar(members: list[Member]) -> bytes:
    return b"".join([bytes(piece) async for piece in tar(listing(members)())])


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_the_standard_library_reads_back_every_member(format_: str) -> None:
    assert read_back(format_, await archived(format_, members_of(FILES))) == list(FILES.items())


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_our_own_transforms_read_back_every_member(format_: str) -> None:
    assert await taken_apart(format_, await archived(format_, members_of(FILES))) == list(FILES.items())


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_a_bundle_of_nothing_is_an_empty_archive(format_: str) -> None:
    assert read_back(format_, await archived(format_, [])) == []


@pytest.mark.parametrize(
    ("format_", "command"),
    [
        ("zip", ["unzip", "-tqq"]),
        ("tar.gz", ["tar", "--gzip", "--list", "--file"]),
        ("tar.gz", ["gzip", "--test"]),
        ("tar.zst", ["zstd", "--test"]),
    ],
)
async def test_other_programs_find_nothing_wrong(format_: str, command: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"bundle.{format_}"
    path.write_bytes(await archived(format_, members_of(FILES)))
    succeeds(program(command[0]), *command[1:], str(path))


async def test_info_zip_extracts_names_and_modes(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(await archived("zip", members_of(FILES)))
    succeeds(program("unzip"), "-qq", str(path), "-d", str(tmp_path / "out"))
    for name, data in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == data
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("format_", FORMAT_NAMES)
@pytest.mark.parametrize("cut", [1_000, 65_535, 65_536, 10 * CHUNK_SIZE])
async def test_how_the_streams_are_cut_makes_no_difference(format_: str, cut: int) -> None:
    assert await archived(format_, members_of(FILES, cut)) == await archived(format_, members_of(FILES))


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_archives_written_at_the_same_time_are_the_same(format_: str) -> None:
    made = await asyncio.gather(*(archived(format_, members_of(FILES)) for _ in range(4)))
    assert len(set(made)) == 1


async def test_the_bytes_of_a_zip_never_change() -> None:
    """A worker of the next release may have to redo what one of this release began."""
    data = await archived("zip", members_of(FILES))
    assert sha256(data).hexdigest() == "6e3da57197e5a86bf27e0739f740620c150ed60b417d2d5477cac012540cd3d5"


async def test_the_bytes_of_a_tar_never_change() -> None:
    assert (
        sha256(await plain_tar(members_of(FILES))).hexdigest()
        == "16c236212118faa16c978da05d4f465b0f71ef8b5dbd3f2dc5c525b519bc5215"
    )


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_chunks_are_few_and_bounded(format_: str) -> None:
    many = [member(f"{number:04d}", NOISE[number : number + 1_000]) for number in range(3_000)]
    sizes = [len(chunk) async for chunk in archive(format_, listing(many))]
    assert max(sizes) <= CHUNK_SIZE
    assert len(sizes) <= 12


@pytest.mark.parametrize("format_", FORMAT_NAMES)
@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ([b"abc"], "ends after 3 of its 4 bytes"),
        ([], "ends after 0 of its 4 bytes"),
        ([b"abcd", b"", b"e"], "is longer than its 4 bytes"),
        ([b"abcx"], "has SHA-256"),
    ],
)
async def test_a_member_that_is_not_as_promised_takes_the_place_of_the_end(
    format_: str, given_: list[bytes], words: str
) -> None:
    promised = replace(member("broken", b"abcd"), open=opening(given_))
    target = MemoryBackend("memory://here/")
    with pytest.raises(IntegrityError, match=words):
        async with aclosing(
            archive(format_, listing([member("before", NOISE), promised, member("after")]))
        ) as chunks:
            await target.write("bundle", chunks, Attributes())
    assert await target.stat("bundle") is None


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_a_member_that_is_missing_says_so_itself(format_: str) -> None:
    target = MemoryBackend("memory://here/")
    lost = replace(member("lost", b"abcd"), open=lambda: target.open("lost"))
    with pytest.raises(NotFound, match="lost"):
        await archived(format_, [member("before"), lost])


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_what_reading_raises_comes_out_unchanged(format_: str) -> None:
    trouble = Unavailable("the store went away")

    def chunks() -> Iterator[bytes]:
        yield b"ab"
        raise trouble

    with pytest.raises(Unavailable) as caught:
        await archived(format_, [replace(member("torn", b"abcd"), open=opening(chunks()))])
    assert caught.value is trouble


@pytest.mark.parametrize("format_", FORMAT_NAMES)
@pytest.mark.parametrize(
    "paths",
    [
        ["a", "a"],
        ["a", "A"],
        ["\u00e9", "e\u0301"],
        ["a", "a/b"],
        ["a/b", "A"],
        ["../a"],
        ["/a"],
        ["a//b"],
        ["a/./b"],
        ["a\\b"],
        ["C:a"],
        ["a\0"],
        ["a\n"],
        ["\ud800"],
        [""],
        ["a/"],
        ["nul.txt"],
        ["a."],
        ["a/b", "a/B"],
        ["a/b/c", "a/b"],
        ["a/b", "a/b/c"],
        ["a/b", "c/d", "a/e"],
        ["/".join(["x" * 99] * 10)],
    ],
)
async def test_paths_that_could_not_come_out_again_are_refused_before_the_first_byte(
    format_: str, paths: list[str]
) -> None:
    opened: list[str] = []

    def watched(one: Member) -> Member:
        def note() -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
            opened.append(one.path)
            return one.open()

        return replace(one, open=note)

    with pytest.raises(ValueError, match=r"^(?!.*\n)"):
        await anext(archive(format_, listing([watched(member(path)) for path in ["fine", *paths]])))
    assert opened == []


async def test_folders_are_remembered_for_one_payload_at_a_time() -> None:
    """A path of 900 bytes lies in hundreds of folders; a bundle may have any number of payloads with such paths."""

    async def most(payloads: int) -> int:
        paths = [f"{top}.zip/{at}/" + "a/" * 400 + "f" for top in range(payloads) for at in range(20)]
        tracemalloc.start()
        try:
            await listed(listing([member(path) for path in paths])())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    one = await most(1)
    assert one > 400 * 20 * 50, "each folder is known"
    assert await most(8) < 2 * one


async def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        await archived("zip", [replace(member("a"), size=-1)])


def test_names_are_limited_where_the_setting_ends() -> None:
    assert Limits(name=900).name == 900
    with pytest.raises(ValidationError):
        Limits(name=901)


@pytest.mark.parametrize("format_", FORMAT_NAMES)
@pytest.mark.parametrize("later", [["a"], ["a", "b", "c"], ["b", "a"]])
async def test_a_list_that_changes_is_no_archive(format_: str, later: list[str]) -> None:
    lists = [["a", "b"], later]

    async def members() -> AsyncGenerator[Member, None]:
        for path in lists.pop(0):
            yield member(path, path.encode())

    with pytest.raises(IntegrityError, match="changed"):
        async for _ in archive(format_, members):
            pass
    assert lists == []


@pytest.mark.parametrize("format_", FORMAT_NAMES)
async def test_who_stops_early_closes_the_member_that_is_open(format_: str) -> None:
    open_now: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[bytes], None]:
        open_now.append("big")
        try:
            yield blocks(listing_of_noise(), CHUNK_SIZE)
        finally:
            open_now.remove("big")

    async def listing_of_noise() -> AsyncGenerator[bytes, None]:
        while True:
            yield NOISE

    big = Member("big", 1 << 40, "", opened)
    async with aclosing(archive(format_, listing([big]))) as chunks:
        assert await anext(chunks)
        assert open_now == ["big"]
    assert open_now == []


async def test_formats_have_names() -> None:
    assert FORMATS.names() == FORMAT_NAMES
    assert [FORMATS.load(name).content_type for name in FORMAT_NAMES] == [
        "application/gzip",
        "application/zstd",
        "application/zip",
    ]
    with pytest.raises(UnknownName, match=r"tar\.gz, tar\.zst, zip"):
        await archived("rar", [])


async def test_a_gzip_header_says_nothing_of_time_or_machine() -> None:
    data = await archived("tar.gz", members_of(FILES))
    assert data[:10] == bytes.fromhex("1f8b080000000000 00ff")
    assert zlib.decompress(data, wbits=31) == await plain_tar(members_of(FILES))


async def test_a_zstd_frame_has_a_checksum_and_one_window_for_all_sizes() -> None:
    for files in (FILES, {"small": b""}):
        data = await archived("tar.zst", members_of(files))
        frame = zstandard.get_frame_parameters(data)
        assert (frame.has_checksum, frame.window_size) == (True, 2 << 20)
        assert frame.content_size == zstandard.CONTENTSIZE_UNKNOWN
        plain = zstandard.ZstdDecompressor().decompressobj()
        assert plain.decompress(data) == await plain_tar(members_of(files))
        assert (plain.eof, plain.unused_data) == (True, b"")


def test_pax_headers_stand_only_where_they_are_needed() -> None:
    plain = [headers("x" * 100, 0), headers("a/b", 8**11 - 1)]
    special = [headers("x" * 101, 0), headers("é", 0), headers("a", 8**11)]
    assert [len(header) for header in plain] == [512, 512]
    assert [len(header) for header in special] == [1_536] * 3
    for header, path, size in [
        (plain[1], "a/b", 8**11 - 1),
        (special[0], "x" * 101, 0),
        (special[1], "é", 0),
        (special[2], "a", 8**11),
    ]:
        with tarfile.open(fileobj=io.BytesIO(header + bytes(1_024))) as found:
            info = found.next()
        assert info is not None
        assert (info.name, info.size, info.mode, info.mtime) == (path, size, 0o644, 0)
        assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")


@pytest.mark.parametrize("length", [*range(84, 96), *range(890, 901)])
def test_a_pax_record_counts_its_own_length(length: int) -> None:
    path = "é" + "x" * (length - 2)
    with tarfile.open(fileobj=io.BytesIO(headers(path, 0) + bytes(1_024))) as found:
        assert found.getnames() == [path]


async def test_the_records_of_a_zip_lie_side_by_side_and_agree() -> None:
    data = await archived("zip", members_of(FILES))
    at = 0
    lines = b""
    for path, content in FILES.items():
        entry = Entry(path.encode(), len(content), zlib.crc32(content))
        header, trailer, begin = local_header(entry), descriptor(entry), at
        assert data[at : at + len(header)] == header
        at += len(header)
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        assert inflate.decompress(data[at:]) == content
        assert inflate.unused_data == data[at + entry.stored :]
        at += entry.stored
        assert data[at : at + len(trailer)] == trailer
        at += len(trailer)
        lines += central_header(entry, begin)
    assert data[at:] == lines + end_records(len(FILES), len(lines), at)


BIG = 0xFFFFFFFF
LARGEST_PLAIN = 4_294_639_629
"""The largest content that takes less than 2^32 - 1 bytes with its 65,533 block headers."""


@pytest.mark.parametrize("size", [LARGEST_PLAIN, LARGEST_PLAIN + 1, BIG, 1 << 40])
@pytest.mark.parametrize("offset", [0, BIG - 1, BIG, 1 << 41])
def test_zip64_records_stand_only_where_they_are_needed(size: int, offset: int) -> None:
    entry = Entry(b"name", size, 0x12345678)
    long = size > LARGEST_PLAIN
    assert entry.zip64 == long == (entry.stored >= BIG)
    local, central = local_header(entry), central_header(entry, offset)
    version = 45 if long else 20
    assert struct.unpack_from("<4sHHHHHLLLHH", local) == (
        *(b"PK\x03\x04", version, 0x0808, 8, 0, 33, 0),
        *((BIG, BIG, 4, 20) if long else (0, 0, 4, 0)),
    )
    assert local[30:] == b"name" + (struct.pack("<HHQQ", 1, 16, 0, 0) if long else b"")
    values = [size, entry.stored] if long else []
    values += [offset] if offset >= BIG else []
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    assert struct.unpack_from("<4sHHHHHHLLLHHHHHLL", central) == (
        *(b"PK\x01\x02", 0x032D, version, 0x0808, 8, 0, 33, 0x12345678),
        *((BIG, BIG) if long else (entry.stored, size)),
        *(4, len(extra), 0, 0, 0, 0o100644 << 16, min(offset, BIG)),
    )
    assert central[46:] == b"name" + extra
    assert descriptor(entry) == struct.pack(
        "<4sLQQ" if long else "<4sLLL", b"PK\x07\x08", 0x12345678, entry.stored, size
    )


@pytest.mark.parametrize(
    ("count", "size", "offset"),
    [(65_534, 9, BIG - 1), (65_535, 9, 9), (1, BIG, 9), (1, 9, BIG), (1 << 20, BIG + 5, 1 << 42)],
)
def test_the_end_of_a_zip_says_where_its_directory_is(count: int, size: int, offset: int) -> None:
    records = end_records(count, size, offset)
    few = min(count, 0xFFFF)
    assert records[-22:] == struct.pack(
        "<4sHHHHLLH", b"PK\x05\x06", 0, 0, few, few, min(size, BIG), min(offset, BIG), 0
    )
    if count < 0xFFFF and size < BIG and offset < BIG:
        assert len(records) == 22
        return
    assert records[:-22] == struct.pack(
        "<4sQHHLLQQQQ", b"PK\x06\x06", 44, 0x032D, 45, 0, 0, count, count, size, offset
    ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1)


async def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    digest, nothing = sha256().hexdigest(), opening([])
    path.write_bytes(
        await archived("zip", [Member(f"{number:x}", 0, digest, nothing) for number in range(66_000)])
    )
    with zipfile.ZipFile(path) as found:
        assert len(found.infolist()) == 66_000
        assert found.read("101cf") == b""
    assert "66000" in succeeds(program("unzip"), "-Z", "-h", str(path))


@pytest.mark.slow
async def test_members_and_archives_beyond_4_gib(tmp_path: Path) -> None:
    """A minute of hashing and reading, and 0.4 GB of disk: what is only zeros is left a hole."""
    path = tmp_path / "big.zip"
    size = 5 << 30
    zeros = bytes(CHUNK_SIZE)
    big = Member("big", size, ZERO_5_GIB, opening(zeros for _ in range(size // CHUNK_SIZE)))
    with path.open("wb") as file:
        async for chunk in archive("zip", listing([member("before", b"1"), big, member("after", b"2")])):
            for start in range(0, len(chunk), 4_096):
                page = chunk[start : start + 4_096]
                file.seek(len(page), 1) if page.count(0) == len(page) else file.write(page)
        file.truncate()
    with zipfile.ZipFile(path) as found:
        assert [(entry.filename, entry.file_size) for entry in found.infolist()] == [
            ("before", 1),
            ("big", size),
            ("after", 1),
        ]
        assert found.getinfo("after").header_offset > 5 << 30
        assert found.read("after") == b"2"
    succeeds(program("unzip"), "-tqq", str(path))


@settings(max_examples=40, deadline=None)
@given(BUNDLES)
def test_fuzz(bundle: Bundle) -> None:
    fuzz(bundle)
