"""Untar: every dialect is read right, whatever is ambiguous, harmful or damaged is refused by name, nothing comes out short."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import unicodedata
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from handlers.errors import Refused
from handlers.transforms.base import Limits, Part, Work
from handlers.transforms.untar import Untar
from tests.fuzz import tars as fuzzing
from tests.support.tars import (
    BLOCK,
    END,
    GNU,
    V7,
    Seen,
    header,
    member,
    padded,
    pax,
    stream,
    untar,
    work_of,
)

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def made_by_python(files: dict[str, bytes], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def contents(seen: list[Seen]) -> dict[str, bytes]:
    return {one.path: one.data for one in seen}


async def refused(data: bytes, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await untar(data, **options)
    return caught.value


async def drained(chunks: AsyncIterator[bytes], work: Work) -> tuple[int, Refused | None]:
    """How many bytes come out, none of which is kept, and what ended it."""
    made = 0
    try:
        async for part in Untar().apply(Part(chunks), work):
            async for chunk in part.chunks:
                made += len(chunk)
    except Refused as exc:
        return made, exc
    return made, None


FILES = {
    "empty": b"",
    "one": b"1",
    "a/block": b"b" * 512,
    "a/less": b"l" * 511,
    "a/more": b"m" * 513,
    "b/c/large": bytes(range(256)) * 9000,
    "b/" + "n" * 96: b"name that fills the field",
}
LONG = {
    "ü/日本.txt": b"not ASCII",
    "/".join(["d" * 60] * 5) + "/file": b"longer than the field",
    "n" * 150: b"longer than a name",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chunk", [1, 100, 512, 700, 1 << 20])
async def test_every_dialect_comes_out_as_it_went_in(form: str, chunk: int) -> None:
    files = FILES if form == "ustar" else FILES | LONG
    if chunk < 100:
        files = {name: data[:600] for name, data in files.items()}
    seen = await untar(made_by_python(files, FORMATS[form]), chunk=chunk)
    assert contents(seen) == files
    assert [one.member for one in seen] == list(files)
    assert all(one.part.depth == 1 and one.part.steps == ("untar",) and not one.part.notes for one in seen)
    assert [one.part.label for one in seen] == [name.rpartition("/")[2] for name in files]


async def test_chunks_are_small_enough_and_never_empty() -> None:
    data = member(b"a", b"x" * (3 << 20)) + member(b"b") + END
    work = work_of()
    parts = Untar().apply(Part(stream(data, 5 << 20, work)), work)
    sizes = [[len(chunk) async for chunk in part.chunks] async for part in parts]
    assert sizes == [[1 << 20] * 3, []]


async def test_version_7_is_known_by_its_header() -> None:
    archive = (
        member(b"folder/", magic=V7, kind=b"\0") + member(b"folder/a", b"old", magic=V7, kind=b"\0") + END
    )
    assert contents(await untar(archive)) == {"folder/a": b"old"}
    # One wrong number, and it is not a tar: it goes on as it was.
    broken = archive[:148] + b"000001\0 " + archive[156:]
    assert (await untar(broken))[0].data == broken


async def test_prefixes_of_posix_and_of_xstar() -> None:
    times = b"00000000000 00000000000 "
    star = member(b"c", b"2", prefix=b"a/x", end=times + b"\0" * 8 + b"tar\0")
    assert contents(await untar(member(b"c", b"1", prefix=b"a/b") + star + END)) == {
        "a/b/c": b"1",
        "a/x/c": b"2",
    }


async def test_the_prefix_of_gnu_holds_something_else() -> None:
    archive = member(b"c", b"1", magic=GNU, prefix=b"00000000000\0") + END
    assert contents(await untar(archive)) == {"c": b"1"}


async def test_sizes_to_base_256() -> None:
    archive = member(b"a", b"abc", size=b"\x80" + bytes(10) + b"\x03", magic=GNU) + END
    assert contents(await untar(archive)) == {"a": b"abc"}


async def test_checksums_over_signed_bytes() -> None:
    archive = member("ü".encode(), b"abc", signed=True) + END
    assert contents(await untar(archive)) == {"ü": b"abc"}


async def test_extended_headers_override() -> None:
    archive = (
        pax((b"comment", b"git"), (b"mtime", b"1"), kind=b"g")
        + pax((b"path", b"long/name"), (b"mtime", b"-1.5"), (b"linkpath", b"nowhere"))
        + member(b"short", b"1")
        + member(b"plain", b"2")
        + member(b"././@LongLink", b"gnu/name\0", kind=b"L", magic=GNU)
        + member(b"././@LongLink", b"target\0", kind=b"K", magic=GNU)
        + member(b"cut", b"3", magic=GNU)
        + END
    )
    assert contents(await untar(archive)) == {"long/name": b"1", "plain": b"2", "gnu/name": b"3"}


async def test_a_global_path_holds_for_all_that_have_none() -> None:
    archive = (
        pax((b"path", b"everywhere"), kind=b"g")
        + pax((b"path", b"here"))
        + member(b"b", b"1")
        + member(b"a", b"2")
        + END
    )
    assert contents(await untar(archive)) == {"here": b"1", "everywhere": b"2"}


async def test_a_size_that_only_the_extended_header_can_hold() -> None:
    """8 GiB and more do not fit into eleven octal digits. The file here is cut off, which shows that the size was taken."""
    archive = pax((b"size", b"%d" % (8 << 30))) + header(b"a", 0) + b"x" * 700
    assert "it ends 8589933892 bytes before the end of 'a'" in str(await refused(archive))


async def test_a_leading_dot_is_no_segment() -> None:
    archive = member(b"./", kind=b"5") + member(b"./a/", kind=b"5") + member(b"./a/b", b"1") + END
    seen = await untar(archive)
    assert [(one.path, one.member, one.data) for one in seen] == [("a/b", "./a/b", b"1")]


async def test_what_is_not_read_is_skipped_and_cannot_be_read_later() -> None:
    data = member(b"a", b"a" * 3000) + member(b"b", b"b" * 700) + member(b"c", b"c") + END
    work = work_of()
    parts = Untar().apply(Part(stream(data, 512, work)), work)
    first, _ = await anext(parts), await anext(parts)
    third = await anext(parts)
    assert b"".join([chunk async for chunk in third.chunks]) == b"c"
    assert await anext(parts, None) is None
    with pytest.raises(RuntimeError, match="'a' is read after"):
        await anext(first.chunks)


async def test_the_payload_is_read_to_its_end() -> None:
    """There its own size and digest are checked, and whoever checks them has to be asked."""
    data = member(b"a", b"1") + END

    async def proven() -> AsyncIterator[bytes]:
        yield data
        raise OSError("another digest was promised")

    parts = Untar().apply(Part(proven()), work_of())
    assert [chunk async for chunk in (await anext(parts)).chunks] == [b"1"]
    with pytest.raises(OSError, match="another digest"):
        await anext(parts)


async def test_what_is_no_tar_goes_on_as_it_was_with_a_note_where_it_claimed_to_be_one() -> None:
    for data in (b"", b"text", b"PK\3\4" + b"x" * 4000, bytes(600)):
        for label, content_type in (("", None), ("data.json", "application/json")):
            (seen,) = await untar(data, label=label, content_type=content_type)
            assert (seen.data, seen.path, seen.part.notes, seen.part.steps) == (data, "", (), ())
        for label, content_type in (("X.TAR", None), ("x.tgz", None), ("", "application/x-tar; v=1")):
            (seen,) = await untar(data, label=label, content_type=content_type)
            assert seen.data == data
            assert seen.part.notes == ("claims to be a tar and does not begin like one",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"../a", "traversal"),
        (b"a/../../b", "traversal"),
        (b"/etc/passwd", "traversal"),
        (b"././a", "traversal"),
        (b"C:a", "traversal"),
        (b"a\\b", "traversal"),
        (b"a//b", "traversal"),
        (b"", "traversal"),
        (b"a\nb", "control"),
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"5"])
async def test_case_81_names_that_lead_away(name: bytes, reason: str, kind: bytes) -> None:
    for entry in (member(name, kind=kind), pax((b"path", name or b"/x")) + member(name, kind=kind)):
        error = await refused(member(b"first") + entry + END)
        assert error.reason == "payload_unsafe"
        assert reason in error.detail


@pytest.mark.parametrize(
    ("kind", "reason", "what"),
    [
        (b"1", "payload_unsafe", "hard link"),
        (b"2", "payload_unsafe", "symbolic link"),
        (b"3", "payload_unsafe", "character device"),
        (b"4", "payload_unsafe", "block device"),
        (b"6", "payload_unsafe", "FIFO"),
        (b"7", "payload_unsupported", "contiguous file"),
        (b"S", "payload_unsupported", "sparse file"),
        (b"M", "payload_unsupported", "multi-volume"),
        (b"V", "payload_unsupported", "volume label"),
        (b"D", "payload_unsupported", "incremental"),
        (b"Z", "payload_unsupported", "unknown type b'Z'"),
    ],
)
async def test_case_82_only_files_and_directories(kind: bytes, reason: str, what: str) -> None:
    error = await refused(member(b"harmless") + member(b"some/entry", kind=kind) + END)
    assert error.reason == reason
    assert what in error.detail
    assert "'some/entry'" in error.detail


@pytest.mark.parametrize("key", [b"GNU.sparse.major", b"GNU.sparse.map", b"SCHILY.realsize"])
async def test_case_82_sparse_files_of_pax(key: bytes) -> None:
    error = await refused(pax((key, b"1")) + member(b"a") + END)
    assert (error.reason, "'a' is a sparse file" in error.detail) == ("payload_unsupported", True)


@pytest.mark.parametrize(
    ("limits", "limit", "entry"),
    [
        ({"entry": 2999}, "entry", "b"),
        ({"total": 3999}, "total", "b"),
        ({"entries": 2}, "entries", "c"),
        ({"name": 1}, "name", "long"),
    ],
)
async def test_case_84_limits_are_named_with_the_entry(
    limits: dict[str, Any], limit: str, entry: str
) -> None:
    archive = member(b"a", b"x" * 1000) + member(b"b", b"y" * 3000) + member(b"c") + member(b"long") + END
    error = await refused(archive, limits=Limits(**limits))
    assert error.reason == "payload_limit"
    assert error.detail.startswith(f"{limit} ")
    assert f"at '{entry}'" in error.detail


async def test_case_84_directories_count_as_entries() -> None:
    archive = b"".join(member(b"%d/" % n, kind=b"5") for n in range(3)) + END
    assert await untar(archive, limits=Limits(entries=3)) == []
    assert "entries" in (await refused(archive, limits=Limits(entries=2))).detail


async def test_case_84_a_bomb_of_zeros_stops_within_the_cap_and_a_buffer() -> None:
    """1 GiB of zeros: the archive that a gzip of 1 MB would hold. What is read stays at the cap and one chunk."""
    head, read = member(b"zeros", size=1 << 30), 0
    work = work_of(Limits(total=20 << 20))

    async def bomb() -> AsyncIterator[bytes]:
        nonlocal read
        yield head
        while True:
            read += 1 << 20
            yield bytes(1 << 20)

    work.meter.read(1 << 20)
    tracemalloc.start()
    made, error = await drained(bomb(), work)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "total" in str(error)
    assert made <= 20 << 20
    assert read <= 21 << 20
    assert peak < 8 << 20


async def test_case_84_folders_count_as_entries() -> None:
    """Each of few paths may be in many folders, all of which have to be remembered."""
    deep = (
        b"".join(member(b"/".join([b"%d" % number, *[b"d"] * 40, b"f"]), b"") for number in range(20)) + END
    )
    assert len(await untar(deep)) == 20
    error = await refused(deep, limits=Limits(entries=500))
    assert error.reason == "payload_limit"
    assert "limits.entries" in error.detail


async def test_case_85_formats_inside_one_another() -> None:
    inner = member(b"a", b"1") + END
    packed = gzip.compress(inner)
    (seen,) = await untar(packed, limits=Limits(nesting=2), label="x.tar.gz")
    assert (seen.path, seen.part.depth, seen.part.steps) == ("a", 2, ("gunzip", "untar"))
    error = await refused(packed, limits=Limits(nesting=1), label="x.tar.gz")
    assert error.reason == "payload_limit"
    assert "nesting" in error.detail
    assert "'x.tar'" in error.detail
    error = await refused(inner, limits=Limits(nesting=1), depth=1, path="x.tar", label="x.tar")
    assert "nesting" in error.detail
    assert "'x.tar'" in error.detail


@pytest.mark.parametrize(
    ("archive", "what"),
    [
        (member(b"name\0hidden"), "goes on after a NUL"),
        (member(b"a", prefix=b"b\0c"), "goes on after a NUL"),
        (member(b"l", b"name\0hidden\0", kind=b"L", magic=GNU) + member(b"a"), "goes on after a NUL"),
        (pax((b"path", b"name\0hidden")) + member(b"a"), "control character"),
    ],
)
async def test_case_86_nothing_hides_behind_a_nul(archive: bytes, what: str) -> None:
    error = await refused(member(b"first") + archive + END)
    assert (error.reason, what in error.detail) == ("payload_unsafe", True)


@pytest.mark.parametrize(
    "archive",
    [
        # The size that one reader skips by is another's beginning of a hidden header.
        pax((b"size", b"512")) + member(b"a", size=0) + header(b"hidden"),
        pax((b"size", b"0")) + member(b"a", header(b"hidden")),
        pax((b"path", b"a"), (b"path", b"b")) + member(b"c"),
        pax((b"path", b"a")) + pax((b"path", b"b")) + member(b"c"),
        pax((b"path", b"a")) + member(b"l", b"b\0", kind=b"L", magic=GNU) + member(b"c"),
        member(b"l", b"b\0", kind=b"L", magic=GNU) * 2 + member(b"c"),
        pax((b"path", b"a")) + pax((b"path", b"b"), kind=b"g") + member(b"c"),
        pax((b"path", b"")) + member(b"c"),
        pax((b"size", b""), kind=b"g") + member(b"c"),
        member(b"folder", b"content", kind=b"5"),
        member(b"folder/", b"content"),
        member(b"folder/", b"content", magic=V7),
        member(b"folder/"),
        pax((b"path", b"folder/")) + member(b"a"),
        member(b"a", b"1") + member(b"a", b"2"),
        member(b"a", b"1") + member(b"./a", b"2"),
        member(b"a", b"1") + member(b"a/b", b"2"),
    ],
)
async def test_case_86_what_readers_could_read_in_two_ways(archive: bytes) -> None:
    assert (await refused(member(b"first") + archive + END)).reason == "payload_unsafe"


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,
        b"\xff" + bytes(11),
        b"\xc0" + bytes(11),
        b"-0000000001\0",
        b"0000000009\0\0",
        b"1 1" + bytes(9),
    ],
)
async def test_case_91_sizes_that_are_negative_or_no_numbers(size: bytes) -> None:
    assert (await refused(member(b"first") + member(b"a", size=size) + END)).reason == "payload_corrupt"


@pytest.mark.parametrize("size", [b"-1", b"1.5", b"0x10", b"9" * 21, b" 1", b"\xb2"])
async def test_case_91_sizes_of_pax_that_are_no_numbers(size: bytes) -> None:
    error = await refused(pax((b"size", size)) + member(b"a") + END)
    assert (error.reason, "size" in error.detail) == ("payload_corrupt", True)


async def test_case_87_a_huge_size_is_refused_before_it_is_read() -> None:
    for entry in (
        member(b"a", size=b"\x80" + b"\xff" * 11, magic=GNU),
        pax((b"size", b"9" * 20)) + member(b"a"),
    ):
        error = await refused(entry)
        assert (error.reason, error.detail.startswith("entry ")) == ("payload_limit", True)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"12 path=a",
        b"9999 path=a\n",
        b"0 path=a\n",
        b"-9 path=a\n",
        b"10 path\xffa\n\n",
        b"9 path=a\n6 x=yz\n",
        b"4 =\n",
        b" path=a\n",
        b"99999999999999999999 path=a\n",
        b"9 path=a\n\0\0\0",
    ],
)
async def test_damaged_records(data: bytes) -> None:
    error = await refused(member(b"x", data, kind=b"x") + member(b"a") + END)
    assert (error.reason, "extended header" in error.detail) == ("payload_corrupt", True)


async def test_the_refusal_of_a_header_says_where_it_is() -> None:
    assert "(header at byte 1024)" in str(await refused(member(b"a", b"1") + b"?" * 512 + END))


async def test_case_90_names_that_some_file_system_cannot_tell_apart() -> None:
    composed, apart = unicodedata.normalize("NFC", "é.txt"), unicodedata.normalize("NFD", "é.txt")
    names = ["a.txt", "A.TXT", composed, apart, "CON", "x.", "LPT1.log"]
    archive = b"".join(member(name.encode(), b"%d" % n) for n, name in enumerate(names)) + END
    seen = await untar(archive)
    assert [one.member for one in seen] == names
    assert len({unicodedata.normalize("NFC", one.path).casefold() for one in seen}) == len(names)
    assert {"CON", "x.", "LPT1.log"}.isdisjoint(one.path for one in seen)
    assert [one.path for one in await untar(archive)] == [one.path for one in seen]


async def test_case_90_names_that_are_not_utf8() -> None:
    archive = (
        member("é".encode("latin-1"), b"1")
        + pax((b"hdrcharset", b"BINARY"), (b"path", "ü".encode("latin-1")))
        + member(b"u", b"2")
        + END
    )
    seen = await untar(archive)
    assert contents(seen) == {"é": b"1", "ü": b"2"}
    assert all(one.part.notes == ("its name is not UTF-8 and was read as Latin-1",) for one in seen)
    # The same letter in UTF-8 would be another entry of that name.
    assert "duplicate" in str(await refused(archive[:-1024] + member("é".encode()) + END))
    assert "not UTF-8" in str(await refused(pax((b"path", b"\xe9")) + member(b"a") + END))


async def test_case_91_nothing_and_next_to_nothing() -> None:
    assert await untar(member(b"only/", kind=b"5") + member(b"only/folders/", kind=b"5") + END) == []
    assert contents(await untar(member(b"empty") + END)) == {"empty": b""}
    # An archive without entries is zeros and has no magic.
    (seen,) = await untar(bytes(10_240), label="x.tar")
    assert len(seen.data) == 10_240
    assert seen.part.notes


async def test_case_91_a_huge_extended_header() -> None:
    for kind in (b"x", b"g", b"L", b"K"):
        error = await refused(member(b"first") + header(b"x", (1 << 20) + 1, kind) + bytes(4096))
        assert error.reason == "payload_limit"
        assert "1048576 are allowed" in error.detail
    comment = pax((b"comment", b"c" * ((1 << 20) - 40)))
    assert contents(await untar(comment + member(b"a", b"1") + END)) == {"a": b"1"}


async def test_case_91_a_million_tiny_entries_stop_at_the_limit() -> None:
    served = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal served
        while True:
            yield member(b"%d" % served, b"x")
            served += 1

    made, error = await drained(endless(), work_of(Limits(entries=3000)))
    assert "entries" in str(error)
    assert made == 3000
    assert served <= 3001


SAMPLE = (
    pax((b"comment", b"of all"), kind=b"g")
    + pax((b"path", "ä/name".encode()))
    + member(b"a", b"first" * 120)
    + member(b"l", b"long/name\0", kind=b"L", magic=GNU)
    + member(b"b", b"second", magic=GNU)
    + END
)


async def parts_before_failure(data: bytes) -> tuple[list[Seen], Refused | None]:
    """The parts that came to their end, and what ended it all."""
    seen: list[Seen] = []
    work = work_of()
    try:
        async for part in Untar().apply(Part(stream(data, 1000, work)), work):
            content = b"".join([chunk async for chunk in part.chunks])
            seen.append(Seen(part.path, part.member, content, part))
    except Refused as exc:
        return seen, exc
    return seen, None


async def test_cut_off_at_every_byte() -> None:
    whole = contents(await untar(SAMPLE))
    assert whole == {"ä/name": b"first" * 120, "long/name": b"second"}
    for length in range(len(SAMPLE)):
        seen, error = await parts_before_failure(SAMPLE[:length])
        if length < BLOCK:
            # Too short to be known for a tar: on it goes as it was.
            assert [one.data for one in seen] == [SAMPLE[:length]]
            assert error is None
            continue
        assert error is not None
        assert error.reason == "payload_corrupt"
        assert all(whole[one.path] == one.data for one in seen)


async def test_every_byte_flipped() -> None:
    """Headers carry a checksum, paddings and the end are zeros, records have a form. Nothing covers the rest:

    - the content of files: it comes out as it is, of the same length;
    - what extended headers say: a path, a key, a comment may be another one and still be right.
    """
    said = [(512, 512 + 18), (1536, 1536 + 17), (4096, 4096 + 10)]
    content = [(2560, 2560 + 600), (5120, 5120 + 6)]
    whole = await untar(SAMPLE)
    undetected = set()
    for at in range(len(SAMPLE)):
        flip = (0x01, 0x80, 0xFF)[at % 3]
        data = SAMPLE[:at] + bytes([SAMPLE[at] ^ flip]) + SAMPLE[at + 1 :]
        seen, error = await parts_before_failure(data)
        if error is None and at not in range(257, 262):
            undetected.add(at)
            assert [len(one.data) for one in seen] == [len(one.data) for one in whole]
        elif error is None:
            # Without the magic, and with a checksum that is wrong, it is no tar: on it goes as it was.
            assert [one.data for one in seen] == [data]
    assert undetected <= {at for start, end in said + content for at in range(start, end)}
    assert undetected >= {at for start, end in content for at in range(start, end)}


@pytest.mark.parametrize("blocks", [0, 1, 18, 2047])
async def test_the_last_record_may_be_filled_up(blocks: int) -> None:
    assert contents(await untar(member(b"a", b"1") + END + bytes(blocks * BLOCK))) == {"a": b"1"}


@pytest.mark.parametrize(
    "after",
    [
        b"",
        bytes(BLOCK),
        bytes(BLOCK) + member(b"b"),
        END + b"x",
        END + b"\0",
        END + member(b"b") + END,
        END + bytes(600) + b"x" + bytes(423),
        END + bytes((1 << 20) + BLOCK),
        pax((b"path", b"b")) + END,
    ],
)
async def test_an_end_that_is_missing_or_is_none(after: bytes) -> None:
    assert (await refused(member(b"a", b"1") + after)).reason == "payload_corrupt"


async def test_padding_is_zeros() -> None:
    archive = bytearray(member(b"a", b"1") + END)
    archive[BLOCK + 1] = 1
    assert "padding after 'a'" in str(await refused(bytes(archive)))


async def test_an_archive_in_an_archive_lies_below_its_name() -> None:
    work = work_of(Limits(nesting=2))
    (inner,) = await untar(member(b"in.tar", member(b"a/b", b"1") + END) + END, work=work)
    (seen,) = await untar(inner.data, work=work, path=inner.path, label="in.tar", depth=1)
    assert (seen.path, seen.part.key("key"), seen.part.label) == ("in.tar/a/b", "key/in.tar/a/b", "b")


def packed_by_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": packed_by_zstd,
}


@pytest.mark.parametrize("kind", PACKED)
async def test_a_compressed_archive_is_taken_apart_too(kind: str) -> None:
    data = made_by_python(FILES, tarfile.PAX_FORMAT)
    assert contents(await untar(PACKED[kind](data), chunk=300)) == FILES


@pytest.mark.parametrize("kind", PACKED)
async def test_what_is_compressed_and_no_archive_goes_on_as_it_was(kind: str) -> None:
    for inside in (b"", b"text" * 9000, bytes(4096)):
        packed = PACKED[kind](inside)
        (seen,) = await untar(packed, label="a.json.gz", chunk=700)
        assert (seen.data, seen.part.label, seen.part.steps, seen.part.depth) == (packed, "a.json.gz", (), 0)
        assert seen.part.notes == ()
        (seen,) = await untar(packed, label="a.tar.gz", chunk=700)
        assert (seen.data, len(seen.part.notes)) == (packed, 1)


async def test_looking_into_it_counts_for_nothing() -> None:
    """What is decoded to see whether a tar is inside is decoded once more, and only that counts."""
    data = member(b"a", b"x" * 4000) + END
    limits = Limits(total=len(data) + 4000, entries=2)
    (seen,) = await untar(gzip.compress(data), limits=limits)
    assert len(seen.data) == 4000
    with pytest.raises(Refused, match="total"):
        await untar(gzip.compress(data), limits=Limits(total=len(data) + 3999, entries=2))
    # And no limit keeps it from seeing that there is none.
    packed = gzip.compress(bytes(1 << 20))
    (seen,) = await untar(packed, limits=Limits(total=10, entry=10), depth=2)
    assert seen.data == packed


@pytest.mark.parametrize("kind", PACKED)
async def test_a_compressed_archive_that_is_cut_off_anywhere(kind: str) -> None:
    packed = PACKED[kind](member(b"a", b"1") + END)
    # bzip2 is known by ten bytes.
    for length in range(10, len(packed)):
        assert (await refused(packed[:length])).reason == "payload_corrupt"


async def test_a_beginning_that_tells_nothing_is_not_called_damaged() -> None:
    """An empty frame, and two mebibytes that zstd skips: nothing is decoded yet, and what is inside is not known."""
    skipped = b"\x50\x2a\x4d\x18" + (2 << 20).to_bytes(4, "little") + bytes(2 << 20)
    packed = zstandard.compress(b"") + skipped + zstandard.compress(b"text")
    (seen,) = await untar(packed, label="x.tar.zst")
    assert seen.data == packed
    assert seen.part.notes


@given(fuzzing.ARCHIVES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fuzz(data: bytes) -> None:
    fuzzing.fuzz(data)


@given(fuzzing.FILES)
@settings(max_examples=30, deadline=None)
def test_fuzz_of_whole_archives(files: list[tuple[str, bytes]]) -> None:
    fuzzing.whole(files)


def test_blocks_are_padded() -> None:
    assert len(padded(b"x")) == BLOCK
