"""The transform unzip: what it makes of the zips that people write, and of those that nobody should."""

import asyncio
import bz2
import io
import lzma
import resource
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from backends.errors import Unavailable
from handlers.errors import Refused
from handlers.transforms.base import Part, Work, transformed
from handlers.transforms.unzip import Unzip, UnzipOptions
from tests.fuzz.zips import ZIPS, fuzz
from tests.support import hostile_zips as zips
from tests.support.codecs import skippable
from tests.support.hostile_zips import DEFLATE, STREAMED, UTF_8, Item, archive, extra_field
from tests.support.unzipping import Taken, payload, unzip, work_in

TEXT = b"".join(b"line %d of a text\n" % number for number in range(3000))
UNTOLD = (1 << 32) - 1


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return work_in(tmp_path)


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def refusal(data: bytes, work: Work, taken: Taken | None = None, **told: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await unzip(data, work, taken=taken, **told)  # type: ignore[arg-type] # only strings are told here
    return caught.value


async def refused_unread(data: bytes, work: Work) -> Refused:
    """Refused before a byte was decoded, or a part was handed out."""
    taken = Taken()
    refused = await refusal(data, work, taken)
    assert taken.parts == []
    assert work.meter._made == 0
    return refused


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
async def test_files_come_out_in_order_with_path_and_type(work: Work, piece: int) -> None:
    items = [Item(b"b/x.json", b"{}", DEFLATE), Item(b"b/"), Item(b"a.TXT", TEXT, DEFLATE), Item(b"empty")]
    taken = await unzip(archive(items), work, piece=piece, path="", label="archive.zip")
    assert list(taken.files.items()) == [("b/x.json", b"{}"), ("a.TXT", TEXT), ("empty", b"")]
    assert [part.content_type for part in taken.parts] == ["application/json", "text/plain", None]
    assert [part.member for part in taken.parts] == ["b/x.json", "a.TXT", "empty"]
    assert {(part.depth, part.steps, part.notes) for part in taken.parts} == {(1, ("unzip",), ())}


class Unseekable(io.RawIOBase):
    """Where a writer cannot go back to its headers, and puts descriptors behind the content."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.written += bytes(data)  # type: ignore[call-overload] # zipfile gives bytes and views of them
        return len(bytes(data))  # type: ignore[call-overload] # as above


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("seekable", [False, True])
@pytest.mark.parametrize("method", [0, 8, 12, 14])
async def test_what_python_writes(work: Work, method: int, seekable: bool, zip64: bool) -> None:
    file = io.BytesIO() if seekable else Unseekable()
    contents = {"a.txt": TEXT, "é/ü.txt": b"", "dir/one byte": b"1"}
    with zipfile.ZipFile(file, "w", method) as written:
        written.mkdir("dir")
        for name, content in contents.items():
            with written.open(name, "w", force_zip64=zip64) as entry:
                entry.write(content)
    data = file.getvalue() if isinstance(file, io.BytesIO) else bytes(file.written)
    assert (await unzip(data, work)).files == contents


async def test_zstandard(work: Work) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    taken = await unzip(archive([Item(b"a", TEXT, zips.ZSTANDARD, packed=frame)]), work)
    assert taken.contents == [TEXT]


async def test_several_frames_of_zstandard(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    empty = zstandard.ZstdCompressor().compress(b"")
    packed = skippable(b"x") * 3 + frame + empty * 2 + skippable() + frame + skippable(b"y" * 9)
    taken = await unzip(archive([Item(b"a", TEXT * 2, zips.ZSTANDARD, packed=packed)]), work_in(tmp_path))
    assert taken.contents == [TEXT * 2]
    cut = archive([Item(b"a", TEXT * 2, zips.ZSTANDARD, packed=packed[:-1])])
    assert (await refusal(cut, work_in(tmp_path))).reason == "payload_corrupt"


@pytest.mark.parametrize("marked", [False, True])
async def test_lzma_with_and_without_an_end_mark(work: Work, marked: bool) -> None:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}]
    alone = lzma.compress(TEXT, lzma.FORMAT_ALONE, filters=filters)
    packed = b"\x09\x04\x05\x00" + alone[:5] + alone[13:]
    # Python's own end mark is there in any case; where bit 1 says nothing of it, liblzma takes it for the end all the same.
    item = Item(b"a", TEXT, zips.LZMA, packed=packed, flags=1 << 1 if marked else 0)
    assert (await unzip(archive([item]), work)).contents == [TEXT]


@pytest.mark.parametrize("signature", [b"", b"PK\x07\x08"])
@pytest.mark.parametrize("sizes", ["<3L", "<L2Q"])
async def test_every_form_of_data_descriptor(work: Work, signature: bytes, sizes: str) -> None:
    plain = Item(b"a", TEXT, DEFLATE).fields()
    descriptor = signature + pack(sizes, plain["crc"], plain["packed"], plain["size"])
    items = [Item(b"a", TEXT, DEFLATE, flags=STREAMED, descriptor=descriptor), Item(b"b", b"b")]
    assert (await unzip(archive(items), work)).contents == [TEXT, b"b"]


async def test_entries_may_lie_in_another_order_than_the_directory(work: Work) -> None:
    first, second = Item(b"a", TEXT, DEFLATE), Item(b"b", b"bb")
    straight = archive([first, second])
    start = len(zips.local_header(first)) + len(first.content)
    headers = zips.central_header(first, 0), zips.central_header(second, start)
    data = straight.replace(headers[0] + headers[1], headers[1] + headers[0])
    assert data != straight
    assert list((await unzip(data, work)).files) == ["b", "a"]


async def test_a_part_may_be_left_unread(work: Work) -> None:
    data = archive([Item(b"a", TEXT * 50, DEFLATE), Item(b"b", TEXT * 50, DEFLATE), Item(b"c", b"c")])
    async with aclosing(Unzip().apply(Part(payload(data, work)), work)) as parts:
        assert (await anext(parts)).path == "a"
        second = await anext(parts)
        assert await anext(second.chunks)
        assert isinstance(second.chunks, AsyncIterator)
        third = await anext(parts)
        assert [chunk async for chunk in third.chunks] == [b"c"]


@pytest.mark.parametrize(
    ("label", "content_type"),
    [
        ("report.DOCX", None),
        ("x", "application/vnd.openxmlformats-officedocument.wordprocessingml.document; charset=binary"),
        ("book.epub", "application/zip"),
        ("x.zip", "application/epub+zip"),
        ("app.jar", "application/octet-stream"),
    ],
)
async def test_documents_and_programs_stay_whole(work: Work, label: str, content_type: str | None) -> None:
    data = archive([Item(b"[Content_Types].xml", b"<x/>", DEFLATE)])
    taken = await unzip(data, work, label=label, content_type=content_type)
    assert taken.contents == [data]
    assert (taken.parts[0].notes, taken.parts[0].steps, taken.parts[0].depth) == ((), (), 0)
    apart = await unzip(data, work, label=label, content_type=content_type, options=UnzipOptions(whole=()))
    assert list(apart.files) == ["[Content_Types].xml"]


@pytest.mark.parametrize(
    "data", [b"", b"P", b"PL", b"plain text", b"PK is what it begins with", b"\x1f\x8b\x08"]
)
@pytest.mark.parametrize(
    ("label", "content_type"), [("a.zip", None), ("a", "application/zip"), ("a.txt", None)]
)
async def test_what_is_no_zip_goes_on_with_a_note_if_it_claims_to_be(
    work: Work, data: bytes, label: str, content_type: str | None
) -> None:
    claims = label != "a.txt"
    if claims and data == b"P":
        assert (
            await refusal(data, work, label=label, content_type=content_type or "")
        ).reason == "payload_corrupt"
        return
    taken = await unzip(data, work, label=label, content_type=content_type)
    assert taken.contents == [data]
    assert bool(taken.parts[0].notes) == claims
    assert taken.parts[0].steps == ()


@pytest.mark.parametrize(
    "name",
    [
        b"../x",
        b"a/../../x",
        b"/etc/passwd",
        b"C:/x",
        b"a\\..\\x",
        b"a//b",
        b"./../x",
        b"x/.",
        b"",
        b"..",
        b"../",
        b"/",
        b"a/../",
    ],
)
async def test_case_81_names_that_lead_elsewhere(work: Work, name: bytes) -> None:
    refused = await refused_unread(archive([Item(b"good", TEXT, DEFLATE), Item(name)]), work)
    assert refused.reason == "payload_unsafe"


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (zips.SYMLINK, "a symlink"),
        (zips.FIFO, "a FIFO"),
        (zips.DEVICE, "a device"),
        (0o06 << 28, "a device"),
        (0o14 << 28, "a socket"),
        (0o17 << 28, "unknown type"),
    ],
)
@pytest.mark.parametrize("item", [Item(b"link", b"/etc/passwd"), Item(b"link/")])
async def test_case_82_only_files_and_folders(work: Work, kind: int, named: str, item: Item) -> None:
    items = [Item(b"good", TEXT, DEFLATE), replace(item, attributes=kind | 0o777 << 16)]
    refused = await refused_unread(archive(items), work)
    assert refused.reason == "payload_unsafe"
    assert "'link" in refused.detail
    assert named in refused.detail


@pytest.mark.parametrize(
    "item",
    [
        Item(b"name", b"x", attributes=zips.FOLDER),
        Item(b"name", attributes=0x10),
        Item(b"name/", b"x"),
        Item(b"name/", packed=b"xyz", method=DEFLATE),
    ],
)
async def test_case_82_what_is_half_a_folder(work: Work, item: Item) -> None:
    assert (await refused_unread(archive([item]), work)).reason == "payload_unsafe"


async def test_case_83_overlapping_entries_are_refused_before_anything_is_decoded(work: Work) -> None:
    for data in (zips.overlapped(100, bytes(1 << 20)), zips.quoted(100, bytes(1 << 20))):
        # zipfile sees nothing wrong with it.
        with zipfile.ZipFile(io.BytesIO(data)) as read:
            assert len(read.read(read.infolist()[-1])) == 1 << 20
        refused = await refused_unread(data, work)
        assert refused.reason == "payload_unsafe"
        assert "overlap" in refused.detail


async def test_case_83_an_entry_in_the_directory(work: Work) -> None:
    data = archive([Item(b"a", b"a"), Item(b"b", b"b", central={"start": 80})])
    assert "overlap" in (await refused_unread(data, work)).detail
    far = archive(
        [Item(b"a", b"a", central={"start": UNTOLD, "extra": extra_field(1, pack("<Q", 2**64 - 1))})]
    )
    assert "overlap" in (await refused_unread(far, work)).detail


BOMB = bytes(20 << 20)
PACKED_BOMB = zips.deflated(BOMB, level=1)


@pytest.mark.parametrize(
    ("limits", "named"), [({}, "ratio"), ({"total": 19 << 20}, "total"), ({"entry": 1 << 20}, "entry")]
)
async def test_case_84_stated_too_much(tmp_path: Path, limits: dict[str, float], named: str) -> None:
    work = work_in(tmp_path, **limits)
    refused = await refused_unread(archive([Item(b"bomb", BOMB, DEFLATE, packed=PACKED_BOMB)]), work)
    assert refused.reason == "payload_limit"
    assert f"limits.{named}" in refused.detail
    assert "'bomb'" in refused.detail


@pytest.mark.parametrize("method", [DEFLATE, zips.BZIP2, zips.LZMA, zips.ZSTANDARD])
async def test_case_84_more_than_stated(tmp_path: Path, method: int) -> None:
    alone = lzma.compress(BOMB, lzma.FORMAT_ALONE, preset=0)
    packed = {
        DEFLATE: PACKED_BOMB,
        zips.BZIP2: bz2.compress(BOMB, 1),
        zips.LZMA: b"\x09\x04\x05\x00" + alone[:5] + alone[13:],
        zips.ZSTANDARD: zstandard.compress(BOMB),
    }[method]
    for stated in (10, 3 << 20):
        item = Item(b"bomb", b"x" * stated, method, packed=packed, flags=1 << 1 if method == zips.LZMA else 0)
        work = work_in(tmp_path)
        refused = await refusal(archive([item]), work)
        assert refused.reason == "payload_corrupt"
        assert work.meter._made <= stated


async def test_case_84_entries_add_up(tmp_path: Path) -> None:
    data = archive([Item(b"%d" % number, bytes(1 << 20), DEFLATE) for number in range(5)])
    refused = await refused_unread(data, work_in(tmp_path, total=4 << 20))
    assert "limits.total" in refused.detail
    assert "'4'" in refused.detail
    assert "limits.entries" in (await refused_unread(data, work_in(tmp_path, entries=4))).detail
    assert len((await unzip(data, work_in(tmp_path, entries=5, total=5 << 20))).parts) == 5


async def test_case_84_a_name_too_long(tmp_path: Path) -> None:
    refused = await refused_unread(archive([Item(b"x" * 101)]), work_in(tmp_path, name=100))
    assert (refused.reason, "limits.name" in refused.detail) == ("payload_limit", True)


async def test_case_84_the_spool_is_bounded_and_given_back(tmp_path: Path) -> None:
    inner = archive([Item(b"x", bytes(50_000))])
    outer = archive([Item(b"1.zip", inner), Item(b"2.zip", inner)])
    twice: Sequence[Unzip] = (Unzip(), Unzip())
    room = len(outer) + len(inner)

    async def sizes(limit: int) -> list[int]:
        work = work_in(tmp_path, spool=limit)
        try:
            async with aclosing(transformed(twice, Part(payload(outer, work)), work)) as parts:
                return [sum([len(chunk) async for chunk in part.chunks]) async for part in parts]
        finally:
            assert work.meter._spooled == 0

    # The outer one's file is there while one inner one's is.
    assert await sizes(room) == [50_000, 50_000]
    for limit in (room - 1, len(outer) - 1):
        with pytest.raises(Refused, match=r"limits\.spool"):
            await sizes(limit)
    assert left_in(tmp_path) == []


async def test_case_84_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """256 MiB of zeros that state their size truly, read by a process of its own."""
    script = """
import asyncio, pathlib, resource, sys, zlib
from struct import pack
from tests.support.hostile_zips import Item, archive
from tests.support.unzipping import Part, payload, work_in
from handlers.transforms.unzip import Unzip
from handlers.errors import Refused
async def main():
    compressor, packed, crc = zlib.compressobj(6, 8, -15), b"", 0
    for _ in range(256):
        packed += compressor.compress(bytes(1 << 20)); crc = zlib.crc32(bytes(1 << 20), crc)
    packed += compressor.flush()
    data = archive([Item(b"bomb", b"", 8, packed=packed, size=256 << 20, crc=crc)])
    work = work_in(pathlib.Path(sys.argv[1]), ratio=5000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    async for part in Unzip().apply(Part(payload(data, work)), work):
        async for chunk in part.chunks:
            size += len(chunk)
    print(size >> 20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    mebibytes, grown = map(int, done.stdout.split())
    assert mebibytes == 256
    assert grown < 32


async def test_case_85_zips_in_zips(tmp_path: Path) -> None:
    inner = archive([Item(b"x.txt", TEXT, DEFLATE)])
    outer = archive([Item(b"in/a.zip", inner), Item(b"b.txt", b"b")])

    async def found(work: Work) -> dict[str, tuple[int, list[bytes]]]:
        async with aclosing(transformed([Unzip(), Unzip()], Part(payload(outer, work)), work)) as parts:
            return {part.path: (part.depth, [chunk async for chunk in part.chunks]) async for part in parts}

    assert await found(work_in(tmp_path)) == {"in/a.zip/x.txt": (2, [TEXT]), "b.txt": (1, [b"b"])}
    with pytest.raises(Refused, match=r"limits\.nesting: 1.*in/a\.zip"):
        await found(work_in(tmp_path, nesting=1))


A, B = Item(b"a", TEXT, DEFLATE), Item(b"b", b"bb")
LOCAL_LIES: dict[str, int | bytes] = {
    "name": b"x",
    "flags": UTF_8,
    "method": 0,
    "crc": 1,
    "packed": 7,
    "size": 7,
    "signature": b"PK\x03\x05",
}


@pytest.mark.parametrize("lie", LOCAL_LIES)
@pytest.mark.parametrize("streamed", [0, STREAMED])
async def test_case_86_local_header_and_directory_disagree(work: Work, lie: str, streamed: int) -> None:
    said = {lie: LOCAL_LIES[lie] if lie != "flags" else UTF_8 | streamed}
    item = Item(b"a", TEXT, DEFLATE, flags=streamed, local=said)
    refused = await refused_unread(archive([B, item]), work)
    assert refused.reason == "payload_unsafe"
    assert "disagreement" in refused.detail


@pytest.mark.parametrize("descriptor", [b"", b"PK\x07\x08" + bytes(12), bytes(12), b"x"])
async def test_case_86_a_data_descriptor_that_lies(work: Work, descriptor: bytes) -> None:
    item = Item(b"a", TEXT, DEFLATE, flags=STREAMED, descriptor=descriptor)
    assert "disagreement" in (await refused_unread(archive([item, B]), work)).detail


@pytest.mark.parametrize(
    "data",
    [
        archive([A, Item(b"b", b"b", before=b"junk")]),
        archive([Item(b"a", b"a", after=b"junk"), B]),
        archive([A, Item(b"hidden", b"hidden", listed=False), B]),
        archive([Item(b"hidden", b"hidden", listed=False), A]),
        archive([A, B, Item(b"hidden", b"hidden", listed=False)]),
        archive([A, B], before_directory=b"junk"),
        archive([Item(b"hidden", b"hidden", listed=False)]),
        archive([A], after_directory=b"junk"),
        archive([A], after_directory=b"junk", zip64=True),
        archive([A], after_directory=b"PK\x05\x05\x00\x00", end={"size": 47, "start": 0}),
        archive([A], end={"start": 0}),
        archive([A], end={"size": 3}),
        archive([A, B], end={"size": 40, "entries": 1, "entries_here": 1}),
    ],
)
async def test_case_86_gaps_and_junk(work: Work, data: bytes) -> None:
    assert (await refused_unread(data, work)).reason == "payload_unsafe"


@pytest.mark.parametrize("entries", [0, 1, 3])
async def test_case_86_a_wrong_number_of_entries(work: Work, entries: int) -> None:
    data = archive([A, B], end={"entries": entries, "entries_here": entries})
    assert (await refused_unread(data, work)).reason in {"payload_unsafe", "payload_corrupt"}


async def test_case_86_bytes_after_the_end(work: Work) -> None:
    for after in (b"x", bytes(70_000), archive([B])):
        refused = await refused_unread(archive([A], after=after), work)
        assert refused.reason in {"payload_corrupt", "payload_unsafe"}


async def test_case_86_a_comment_is_a_comment_and_never_a_second_end(work: Work) -> None:
    assert (await unzip(archive([A], comment=b"c" * 65_535), work)).contents == [TEXT]
    refused = await refusal(archive([B], comment=archive([B])), work)
    assert (refused.reason, "ambiguous" in refused.detail) == ("payload_unsafe", True)


@pytest.mark.parametrize("names", [(b"a", b"a"), (b"a", b"a/b"), (b"a/b", b"a")])
async def test_case_86_duplicates(work: Work, names: tuple[bytes, bytes]) -> None:
    assert (
        await refused_unread(archive([Item(name, b"x") for name in names]), work)
    ).reason == "payload_unsafe"


@pytest.mark.parametrize("name", [b"a\x00.txt", b"a\nb", b"\x7f"])
async def test_case_86_control_characters(work: Work, name: bytes) -> None:
    assert (await refused_unread(archive([Item(name, b"x")]), work)).reason == "payload_unsafe"


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1, 0])
@pytest.mark.parametrize("big", [1, 30])
async def test_case_87_wrong_sizes(work: Work, size: int, big: int) -> None:
    item = Item(b"a", TEXT * big, DEFLATE, size=size * big)
    assert (await refusal(archive([item]), work)).reason == "payload_corrupt"


@pytest.mark.parametrize("data", [b"x", TEXT, TEXT * 30])
@pytest.mark.parametrize("method", [0, DEFLATE])
async def test_case_87_wrong_crc(work: Work, data: bytes, method: int) -> None:
    taken = Taken()
    refused = await refusal(archive([B, Item(b"a", data, method, crc=1)]), work, taken)
    assert refused.reason == "payload_corrupt"
    assert list(taken.files) == ["b"], "what came before it is whole, and it did not end"


PACKED = {
    DEFLATE: zips.deflated(TEXT),
    zips.BZIP2: bz2.compress(TEXT),
    zips.LZMA: b"\x09\x04"
    + pack("<H", 5)
    + (ALONE := lzma.compress(TEXT, lzma.FORMAT_ALONE))[:5]
    + ALONE[13:],
    zips.ZSTANDARD: zstandard.compress(TEXT),
}


@pytest.mark.parametrize("method", PACKED)
async def test_case_87_content_that_ends_elsewhere(tmp_path: Path, method: int) -> None:
    flags = 1 << 1 if method == zips.LZMA else 0
    packed = PACKED[method]
    for wrong in (packed + b"junk", packed + packed, packed[:-8], packed[:4], b"", b"\xff" * 50):
        item = Item(b"a", TEXT, method, packed=wrong, flags=flags)
        assert (await refusal(archive([item]), work_in(tmp_path))).reason in {
            "payload_corrupt",
            "payload_unsupported",
        }
    item = Item(b"a", TEXT, method, packed=packed, flags=flags)
    assert (await unzip(archive([item]), work_in(tmp_path))).contents == [TEXT]


async def test_case_87_sizes_wrapped_at_4_gib(work: Work) -> None:
    """As some writers do that know no zip64: the size modulo 2**32."""
    item = Item(b"a", b"x", packed=b"x" * 5, size=1, local={"packed": 1}, central={"packed": 1})
    assert (await refused_unread(archive([item, B]), work)).reason == "payload_unsafe"


WIDE = extra_field(1, pack("<3Q", len(TEXT), len(A.content), 0))


@pytest.mark.parametrize(
    "central",
    [
        {"size": UNTOLD, "packed": UNTOLD, "start": UNTOLD, "extra": WIDE},
        {"size": UNTOLD, "extra": extra_field(1, pack("<Q", len(TEXT)))},
        {"packed": UNTOLD, "extra": extra_field(1, pack("<Q", len(A.content)))},
        # More than is asked for, as long as it is true: Info-ZIP on macOS, old versions of Ant.
        {"size": UNTOLD, "packed": UNTOLD, "extra": WIDE},
        {"extra": WIDE},
        {"extra": extra_field(1, b"")},
        {"size": UNTOLD, "extra": extra_field(0x5455, b"\x01abcd") + WIDE + b"\x00"},
        {"disk": 0xFFFF, "extra": extra_field(1, pack("<L", 0))},
    ],
)
@pytest.mark.parametrize("end", [False, True])
async def test_case_87_zip64(work: Work, central: dict[str, int | bytes], end: bool) -> None:
    data = archive([Item(b"a", TEXT, DEFLATE, central=central), B], zip64=end)
    assert (await unzip(data, work)).contents == [TEXT, b"bb"]


@pytest.mark.parametrize(
    "central",
    [
        {"size": UNTOLD},
        {"size": UNTOLD, "extra": extra_field(1, b"")},
        {"size": UNTOLD, "extra": extra_field(1, pack("<Q", 7))},
        {"size": UNTOLD, "extra": extra_field(1, pack("<2Q", len(TEXT), 7))},
        {"size": UNTOLD, "extra": WIDE + WIDE},
        {"size": UNTOLD, "extra": extra_field(1, WIDE[4:] + bytes(6))},
        {"size": UNTOLD, "extra": b"\x01\x00\xff\xff"},
        {"extra": extra_field(1, pack("<Q", 7))},
        {"size": UNTOLD, "extra": extra_field(1, pack("<Q", 2**63))},
        {"start": UNTOLD, "extra": extra_field(1, pack("<Q", 2**64 - 1))},
        {"disk": 1},
        {"disk": 0xFFFF, "extra": extra_field(1, pack("<L", 1))},
    ],
)
async def test_case_87_zip64_fields_that_lie(work: Work, central: dict[str, int | bytes]) -> None:
    data = archive([Item(b"a", TEXT, DEFLATE, central=central), B])
    reasons = {"payload_corrupt", "payload_unsafe", "payload_unsupported", "payload_limit"}
    assert (await refused_unread(data, work)).reason in reasons


@pytest.mark.parametrize("said", [(len(TEXT), len(A.content)), (0, 0), (1, 1)])
async def test_case_87_zip64_in_the_local_header(work: Work, said: tuple[int, int]) -> None:
    local: dict[str, int | bytes] = {
        "size": UNTOLD,
        "packed": UNTOLD,
        "extra": extra_field(1, pack("<2Q", *said)),
    }
    data = archive([Item(b"a", TEXT, DEFLATE, local=local)])
    if said[0] == len(TEXT):
        assert (await unzip(data, work)).contents == [TEXT]
    else:
        assert "disagreement" in (await refused_unread(data, work)).detail


@pytest.mark.parametrize(
    "told",
    [
        {"end64": {"entries": 1, "entries_here": 1}},
        {"end64": {"entries": 3, "entries_here": 3}},
        {"end64": {"entries_here": 1}},
        {"end64": {"start": 0}},
        {"end64": {"size": 2**64 - 1}},
        {"end64": {"start": 2**64 - 1}},
        {"end64": {"length": 45}},
        {"end64": {"signature": 0x06064B51}},
        {"end64": {"disk": 1}},
        {"end": {"entries": 1}},
        {"end": {"size": 1}},
        {"locator": {"at": 0}},
        {"locator": {"at": 2**64 - 1}},
        {"locator": {"disks": 2}},
        {"locator": {"disk": 1}},
    ],
)
async def test_case_87_zip64_end_records_that_lie(work: Work, told: dict[str, dict[str, int]]) -> None:
    data = archive([A, B], zip64=True, **told)  # type: ignore[arg-type] # the names of three mappings
    assert (await refused_unread(data, work)).reason in {
        "payload_unsafe",
        "payload_unsupported",
        "payload_limit",
    }


async def test_case_87_a_missing_zip64_end_record(work: Work) -> None:
    assert "zip64" in (await refused_unread(archive([A], end={"start": UNTOLD}), work)).detail


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (Item(b"a", b"x", flags=zips.ENCRYPTED), "encrypted"),
        (Item(b"a", b"x", flags=zips.ENCRYPTED | zips.STRONG), "encrypted"),
        (Item(b"a", b"x", flags=zips.MASKED), "encrypted"),
        (Item(b"a", b"x", zips.AES), "encrypted"),
        (Item(b"a", b"x", flags=1 << 5), "patch"),
        (Item(b"a", b"x", zips.DEFLATE64), "Deflate64"),
        (Item(b"a", b"x", 1), "shrink"),
        (Item(b"a", b"x", 95), "XZ"),
        (Item(b"a", b"x", 77), "method 77"),
        (Item(b"a", b"x", central={"disk": 2}), "split"),
    ],
)
async def test_case_89_what_is_not_decoded_has_a_name(work: Work, item: Item, named: str) -> None:
    refused = await refused_unread(archive([B, item]), work)
    assert refused.reason == "payload_unsupported"
    assert named in refused.detail
    assert "'a'" in refused.detail


@pytest.mark.parametrize(
    "data",
    [
        archive([A], end={"disk": 1}),
        archive([A], end={"disk": 1, "directory_disk": 1}),
        archive([A], end={"entries_here": 0}),
        b"PK\x07\x08" + archive([A]),
        b"PK00" + archive([A]),
    ],
)
async def test_case_89_split_archives(work: Work, data: bytes) -> None:
    refused = await refused_unread(data, work)
    assert (refused.reason, "split" in refused.detail) == ("payload_unsupported", True)


async def test_case_89_a_signed_directory(work: Work) -> None:
    signature = b"PK\x05\x05\x04\x00sign"
    size = len(zips.central_header(A, 0)) + len(signature)
    refused = await refused_unread(archive([A], after_directory=signature, end={"size": size}), work)
    assert (refused.reason, "signed" in refused.detail) == ("payload_unsupported", True)


@pytest.mark.parametrize(
    ("item", "path"),
    [
        (Item(b"\x81.txt", central={"made_by": 0x0014}), "ü.txt"),
        (Item("ü.txt".encode(), flags=UTF_8, central={"made_by": 0x0014}), "ü.txt"),
        (Item("ü.txt".encode(), central={"made_by": 0x031E}), "ü.txt"),
        (Item("ü.txt".encode(), central={"made_by": 0x0014}), "├╝.txt"),
        (Item(b"\x81.txt", central={"made_by": 0x031E}), "ü.txt"),
        (Item(b"_.txt", central={"extra": zips.unicode_path(b"_.txt", "ü.txt".encode())}), "ü.txt"),
        (Item(b"_.txt", central={"extra": zips.unicode_path(b"other", "ü.txt".encode())}), "_.txt"),
        (Item(b"_.txt", central={"extra": extra_field(0x7075, b"\x02")}), "_.txt"),
        (Item(b"a", flags=UTF_8, central={"extra": zips.unicode_path(b"a", b"a")}), "a"),
        (Item(b"./a/b"), "a/b"),
    ],
)
async def test_case_90_names_as_text(work: Work, item: Item, path: str) -> None:
    assert [part.path for part in (await unzip(archive([item]), work)).parts] == [path]


@pytest.mark.parametrize(
    "item",
    [
        Item(b"\x81.txt", flags=UTF_8),
        Item(b"a", flags=UTF_8, central={"extra": zips.unicode_path(b"a", b"b")}),
        Item(b"a", central={"extra": zips.unicode_path(b"a", b"\xff")}),
        Item(b"a", central={"extra": zips.unicode_path(b"a", b"../a")}),
        Item(b"a", central={"extra": zips.unicode_path(b"a", b"a") * 2}),
    ],
)
async def test_case_90_names_that_are_two_things(work: Work, item: Item) -> None:
    assert (await refused_unread(archive([item]), work)).reason in {"payload_corrupt", "payload_unsafe"}


async def test_case_90_names_that_some_store_cannot_tell_apart_or_hold(tmp_path: Path) -> None:
    names = ["README", "readme", "\u00fc", "u\u0308", "CON", "a.", "b/CON.txt", "x?y"]
    data = archive([Item(name.encode(), name.encode(), flags=UTF_8) for name in names])
    taken = await unzip(data, work_in(tmp_path))
    assert [part.member for part in taken.parts] == names
    assert taken.contents == [name.encode() for name in names]
    assert len({path.casefold() for path in taken.files}) == len(names)
    assert (await unzip(data, work_in(tmp_path))).files == taken.files


@pytest.mark.parametrize(
    "data",
    [
        archive([]),
        archive([], comment=b"nothing in it"),
        archive([], zip64=True),
        archive([Item(b"a/"), Item(b"a/b/", method=DEFLATE, packed=b"\x03\x00"), Item(b"./")]),
    ],
)
async def test_case_91_an_archive_without_files_gives_no_parts(work: Work, data: bytes) -> None:
    assert (await unzip(data, work)).parts == []


async def test_case_91_a_million_entries_are_refused_by_their_number(work: Work) -> None:
    data = archive([A], zip64=True, end64={"entries": 1_000_000, "entries_here": 1_000_000})
    refused = await refused_unread(data, work)
    assert "limits.entries" in refused.detail


async def test_case_91_a_huge_directory_is_refused_by_its_size(tmp_path: Path) -> None:
    items = [Item(b"%d" % number, central={"comment": bytes(65_535)}) for number in range(17)]
    refused = await refused_unread(archive(items), work_in(tmp_path, memory=1 << 20))
    assert "limits.memory" in refused.detail
    assert len((await unzip(archive(items), work_in(tmp_path, memory=2 << 20))).parts) == 17


async def test_case_91_very_many_folders(tmp_path: Path) -> None:
    data = archive([Item(b"%d/" % number + b"a/" * 200 + b"x") for number in range(10)])
    assert len((await unzip(data, work_in(tmp_path))).parts) == 10
    assert "limits.entries" in (await refused_unread(data, work_in(tmp_path, entries=1000))).detail


async def test_case_91_many_tiny_entries(tmp_path: Path) -> None:
    items = [Item(b"%05d/%d.txt" % (number % 100, number), b"%d" % number) for number in range(5_000)]
    taken = await unzip(archive(items), work_in(tmp_path))
    assert taken.contents == [item.data for item in items]


@pytest.mark.parametrize("method", [zips.LZMA, zips.ZSTANDARD])
async def test_case_92_memory_of_a_decoder(tmp_path: Path, method: int) -> None:
    if method == zips.LZMA:
        alone = lzma.compress(
            TEXT, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 25}]
        )
        packed = b"\x09\x04\x05\x00" + alone[:5] + alone[13:]
    else:
        wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=25)
        stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        packed = stream.compress(TEXT) + stream.flush()
    data = archive([Item(b"a", TEXT, method, packed=packed, flags=1 << 1 if method == zips.LZMA else 0)])
    assert (await unzip(data, work_in(tmp_path, memory=1 << 25))).contents == [TEXT]
    refused = await refusal(data, work_in(tmp_path, memory=(1 << 25) - 1))
    assert (refused.reason, "limits.memory" in refused.detail) == ("payload_limit", True)


def sample() -> bytes:
    return archive(
        [
            Item(b"a.txt", TEXT[:300], DEFLATE),
            Item(b"dir/"),
            Item(b"b", b"stored", flags=STREAMED),
            Item(b"c", TEXT[:200], DEFLATE, flags=STREAMED),
        ],
        comment=b"!",
    )


async def test_truncated_anywhere_is_a_failure(tmp_path: Path) -> None:
    data = sample()
    for size in range(1, len(data)):
        assert (await refusal(data[:size], work_in(tmp_path), label="a.zip")).reason == "payload_corrupt"
    # Without a claim fewer than four bytes could be anything; they are all there.
    assert (await unzip(data[:3], work_in(tmp_path))).contents == [data[:3]]


async def test_damaged_anywhere_is_a_failure_or_changes_nothing(tmp_path: Path) -> None:
    """Nothing covers what is listed here, and nothing that comes out depends on it."""
    data = sample()
    whole = (await unzip(data, work_in(tmp_path))).files
    harmless: set[int] = {len(data) - 1}  # the archive's comment
    at = data.find(b"PK\x03\x04")
    while at != -1:
        harmless |= {at + 4, at + 5, *range(at + 10, at + 14)}  # version needed, time
        at = data.find(b"PK\x03\x04", at + 1)
    at = data.find(b"PK\x01\x02")
    while at != -1:
        # version made by (not its system: that tells how names are written), version needed, time, attributes
        harmless |= {at + 4, at + 5, at + 6, at + 7, *range(at + 12, at + 16), *range(at + 36, at + 42)}
        at = data.find(b"PK\x01\x02", at + 1)
    changed: set[int] = set()
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= flip
            taken = Taken()
            try:
                await unzip(bytes(damaged), work_in(tmp_path), taken=taken)
            except Refused:
                continue
            if place < 4:
                assert taken.contents == [bytes(damaged)], "no zip any more, and so left alone"
                continue
            assert taken.files == whole
            changed.add(place)
    assert changed <= harmless | _after_the_last_bit(data), sorted(changed - harmless)


def _after_the_last_bit(data: bytes) -> set[int]:
    """Deflate ends within a byte, whose other bits mean nothing: where those bytes are."""
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        entries = [entry for entry in read.infolist() if entry.compress_type == DEFLATE]
    return {entry.header_offset + 30 + len(entry.filename) + entry.compress_size - 1 for entry in entries}


async def test_a_spool_that_cannot_be_had_is_an_outage(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await unzip(archive([A]), work_in(tmp_path / "missing"))


async def test_a_full_disk_is_an_outage(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = archive([Item(b"a", bytes(1 << 20))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(Unavailable):
            await unzip(data, work_in(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(tmp_path) == []


async def test_the_source_fails_and_nothing_stays_behind(tmp_path: Path) -> None:
    work = work_in(tmp_path)

    async def failing() -> AsyncIterator[bytes]:
        yield archive([A])
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        async for _ in Unzip().apply(Part(failing()), work):
            pass
    assert work.meter._spooled == 0


async def test_cancelled_in_the_middle_of_an_entry(tmp_path: Path) -> None:
    work = work_in(tmp_path, ratio=2000)
    data = archive([Item(b"a", bytes(32 << 20), DEFLATE)])
    read = 0
    begun = asyncio.Event()

    async def go() -> None:
        nonlocal read
        async with aclosing(Unzip().apply(Part(payload(data, work)), work)) as parts:
            async for part in parts:
                async for chunk in part.chunks:
                    read += len(chunk)
                    begun.set()

    task = asyncio.create_task(go())
    task.add_done_callback(lambda _: begun.set())
    await begun.wait()
    # The next piece is being decoded on its thread now.
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < read < 32 << 20
    assert work.meter._spooled == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ZIPS)
def test_fuzz(data: bytes) -> None:
    fuzz(data)
