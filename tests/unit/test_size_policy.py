"""max_size: what is too large is refused, compressed or split, whether its size was known or had to be found out."""

import asyncio
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes, ValidationError

from backends.base import CHUNK_SIZE, single
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Part, Transform, Work, transformed
from handlers.transforms.decrypt import Decrypt
from handlers.transforms.encryption_format import room, sealed, sealed_size
from handlers.transforms.key_ring import KeyRing
from handlers.transforms.max_size import MaxSize
from handlers.transforms.names import Paths
from handlers.transforms.parts_list import LIMIT as LIST_LIMIT
from handlers.transforms.parts_list import MOST, PartsList, part_name
from handlers.transforms.registry import TRANSFORMS
from handlers.transforms.size_policy import Split
from tests.support.codecs import stream, unzstd, zstd
from worker.settings_places import RouteSettings, StepSettings
from worker.steps import steps_of

RING = KeyRing({"k": SecretBytes(bytes(range(32)))}, "k")
LIMIT = 100
KEY = "k/a.bin"
KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
OVER = pytest.mark.parametrize("over", ["reject", "compress", "split"])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def policy(over: str, limit: int = LIMIT, *names: str) -> tuple[Transform, ...]:
    """The steps of a route with these transforms and that `max_size`."""
    return steps_of(
        RouteSettings(
            name="r",
            transforms=tuple(_step(name) for name in names),
            max_size=MaxSize.model_validate({"bytes": limit, "over": over}),
        ),
        RING,
    )


def _step(name: str) -> StepSettings:
    transform: Any = TRANSFORMS.load(name)
    return StepSettings(name=name, options=transform.Options())


class Made:
    """What came of a payload, by key, in order."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.objects: dict[str, bytes] = {}
        self.largest = 0
        """Bytes of a chunk."""

    def whole(self, key: str = KEY) -> bytes:
        """As whoever follows the list puts it together."""
        listed = PartsList.decode(self.objects[f"{key}.parts.json"])
        found = [self.objects[f"{key}.{part.name}"] for part in listed.parts]
        assert [(part.size, part.sha256) for part in listed.parts] == [
            (len(each), sha256(each)) for each in found
        ]
        data = b"".join(found)
        assert (listed.size, listed.sha256) == (len(data), sha256(data))
        return data


async def made(
    steps: Sequence[Transform],
    data: bytes,
    *,
    chunk: int = 37,
    known: bool = True,
    limits: Limits | None = None,
    spool: str | None = None,
) -> Made:
    """As handlers/execute.py carries it out."""
    paths, meter, found = Paths(), Meter(limits or Limits()), Made()
    work = Work(meter, Path(spool or tempfile.gettempdir()), "bundle/resource", settle=paths.settle)
    size = len(data) if known else None
    part = Part(stream(data, chunk, meter), label="a.bin", content_type="text/x", size=size)
    async for each in transformed(steps, part, work):
        settled = paths.settle(each)
        chunks = [chunk async for chunk in each.chunks]
        found.parts.append(settled)
        found.largest = max([found.largest, *map(len, chunks)])
        found.objects[settled.key(KEY)] = b"".join(chunks)
    return found


def zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@KNOWN
@OVER
@pytest.mark.parametrize("limit", [1, LIMIT, CHUNK_SIZE, CHUNK_SIZE + 70_000])
async def test_up_to_the_limit_nothing_is_done(known: bool, over: str, limit: int) -> None:
    for length in {0, 1, limit - 1, limit}:
        data = os.urandom(length)
        found = await made(policy(over, limit), data, chunk=65_536, known=known)
        assert found.objects == {KEY: data}
        assert found.parts[0].steps == ()


@KNOWN
@pytest.mark.parametrize("length", [LIMIT + 1, 5 * LIMIT])
async def test_reject_names_the_limit_and_the_payload(known: bool, length: int) -> None:
    with pytest.raises(Refused) as raised:
        await made(policy("reject"), bytes(length), known=known)
    assert raised.value.reason == "payload_limit"
    assert raised.value.detail == "max_size (max_size.bytes: 100) is exceeded at 'the payload'"


async def test_what_is_rejected_is_not_read_on() -> None:
    read: list[int] = []

    async def endless() -> Any:
        while True:
            read.append(60)
            yield bytes(60)

    work = Work(Meter(Limits()), Path())
    (reject,) = policy("reject")
    async for part in reject.apply(Part(endless()), work):
        with pytest.raises(Refused):
            _ = [chunk async for chunk in part.chunks]
    assert sum(read) == 120


@KNOWN
async def test_compress_takes_what_is_too_large(known: bool) -> None:
    for length in (LIMIT + 1, 100_000):
        found = await made(policy("compress"), bytes(length), known=known, chunk=10_000)
        ((key, data),) = found.objects.items()
        assert (key, found.parts[0].content_type) == (f"{KEY}.zst", "application/zstd")
        assert (unzstd(data), found.parts[0].steps) == (bytes(length), ("compress",))


@KNOWN
async def test_what_is_still_too_large_is_refused(known: bool) -> None:
    with pytest.raises(Refused, match=r"payload_limit: max_size .* though it was compressed"):
        await made(policy("compress"), os.urandom(LIMIT + 1), known=known)
    with pytest.raises(Refused, match=r"payload_limit: max_size .* at 'the payload'$"):
        await made(policy("compress"), zstd(os.urandom(LIMIT)), known=known)


@KNOWN
@pytest.mark.parametrize("length", [LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1])
@pytest.mark.parametrize("chunk", [1, LIMIT, 3 * LIMIT])
async def test_split_makes_parts_and_their_list_last(known: bool, length: int, chunk: int) -> None:
    data = os.urandom(length)
    found = await made(policy("split"), data, known=known, chunk=chunk)
    count = -(-length // LIMIT)
    names = [f"part-{number:05d}" for number in range(1, count + 1)]
    assert list(found.objects) == [*(f"{KEY}.{name}" for name in names), f"{KEY}.parts.json"]
    assert [part.member for part in found.parts] == [*names, "parts.json"]
    assert found.whole() == data
    assert [len(each) for each in found.objects.values()][:-1] == [
        min(LIMIT, length - start) for start in range(0, length, LIMIT)
    ]
    types = [part.content_type for part in found.parts]
    assert types == ["application/octet-stream"] * count + ["application/json"]
    assert PartsList.decode(found.objects[f"{KEY}.parts.json"]).content_type == "text/x"


@given(
    st.integers(1, 300),
    st.binary(max_size=1200),
    st.integers(1, 1300),
    st.booleans(),
)
def test_parts_are_the_payload_again(limit: int, data: bytes, chunk: int, known: bool) -> None:
    run = partial(made, (Split(limit),), data, chunk=chunk, known=known)
    found = asyncio.run(run())
    if len(data) <= limit:
        assert found.objects == {KEY: data}
    else:
        assert found.whole() == data
        assert max(map(len, list(found.objects.values())[:-1])) == limit
    assert asyncio.run(run(chunk=chunk + 1)).objects == found.objects


@KNOWN
async def test_the_file_for_unknown_sizes_is_bounded(known: bool, tmp_path: Path) -> None:
    """More than 1 MiB has to lie somewhere until it is known to be too large, and no more than that."""
    limit = 2 * CHUNK_SIZE
    data = os.urandom(limit + CHUNK_SIZE + 5)
    run = partial(made, policy("split", limit), data, known=known, chunk=CHUNK_SIZE, spool=str(tmp_path))
    found = await run(limits=Limits(spool=limit + CHUNK_SIZE))
    assert found.whole() == data
    assert found.largest == CHUNK_SIZE
    if known:
        assert (await run(limits=Limits(spool=1))).objects == found.objects
    else:
        with pytest.raises(Refused, match=r"limits\.spool"):
            await run(limits=Limits(spool=limit))
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - nothing else waits for it


async def test_spooled_payloads_come_out_whole() -> None:
    limit = 2 * CHUNK_SIZE
    for length in (limit - 1, limit, limit + 1):
        data = b"words " * (length // 6) + bytes(length % 6)
        found = await made(policy("compress", limit), data, known=False, chunk=300_000)
        if length <= limit:
            assert found.objects == {KEY: data}
        else:
            assert {key: unzstd(data) for key, data in found.objects.items()} == {f"{KEY}.zst": data}


@pytest.mark.parametrize(("step", "packed"), [("unzip", zipped), ("untar", tarred)])
async def test_each_entry_is_held_to_it(step: str, packed: Callable[[Mapping[str, bytes]], bytes]) -> None:
    names = {"d/fits": LIMIT, "d/large": LIMIT + 1, "empty": 0}
    files = {name: os.urandom(length) for name, length in names.items()}
    archive = packed(files)
    found = await made(policy("split", LIMIT, step), archive)
    assert {key.removeprefix(f"{KEY}/") for key in found.objects} == {
        "d/fits", "d/large.part-00001", "d/large.part-00002", "d/large.parts.json", "empty",
    }  # fmt: skip
    assert found.whole(f"{KEY}/d/large") == files["d/large"]
    assert [part.member for part in found.parts if "large" in part.path] == [
        "d/large.part-00001", "d/large.part-00002", "d/large.parts.json",
    ]  # fmt: skip
    with pytest.raises(Refused, match=r"max_size .* is exceeded at 'd/large'"):
        await made(policy("reject", LIMIT, step), archive)


async def test_entries_with_the_names_of_parts() -> None:
    """Those that come later get another name; one that came before is refused, or no list could name its own."""
    large = os.urandom(LIMIT + 1)
    found = await made(
        policy("split", LIMIT, "unzip"),
        zipped({"a": large, "a.part-00001": b"x", "A.PARTS.JSON": b"y", "b": b""}),
    )
    assert found.whole(f"{KEY}/a") == large
    others = {part.member: found.objects[part.key(KEY)] for part in found.parts if "~" in part.path}
    assert others == {"a.part-00001": b"x", "A.PARTS.JSON": b"y"}
    with pytest.raises(Refused, match=r"payload_unsafe: collision: 'a' has to be split"):
        await made(policy("split", LIMIT, "unzip"), zipped({"a.parts.json": b"x", "a": large}))


async def test_an_entry_that_is_split_keeps_its_name_from_others() -> None:
    """`gunzip` makes two of one name: both are split, and neither gets a part of the other."""
    one, two = os.urandom(LIMIT + 1), os.urandom(LIMIT + 2)
    archive = zipped({"a.zst": zstd(one), "a": two})
    found = await made(policy("split", LIMIT, "unzip", "unzstd"), archive)
    lists = [key.removesuffix(".parts.json") for key in found.objects if key.endswith(".parts.json")]
    assert [found.whole(key) for key in lists] == [one, two]
    assert lists[0] == f"{KEY}/a"


async def test_parts_count_as_entries() -> None:
    with pytest.raises(Refused, match=r"limits\.entries"):
        await made(policy("split", 1), b"abcd", limits=Limits(entries=3))


def test_a_list_of_the_most_parts_can_be_read() -> None:
    part = {"name": part_name(MOST), "size": 1 << 40, "sha256": "0" * 64}
    assert len(json.dumps(part)) + 2 <= LIST_LIMIT // MOST


@pytest.mark.parametrize("count", [1, 256, 257, 1000])
def test_a_list_comes_in_pieces(count: int) -> None:
    """Neither the event loop nor a chunk's size knows how many parts there are."""
    parts = [{"name": part_name(number), "size": 2, "sha256": "0" * 64} for number in range(1, count + 1)]
    whole = {"size": 2 * count, "sha256": "0" * 64, "content_type": 'té/"x"', "parts": parts}
    listed = PartsList.model_validate(whole)
    pieces = list(listed.encode())
    assert max(map(len, pieces)) < 1 << 16
    assert json.loads(b"".join(pieces)) == {"version": 1, **whole}
    assert PartsList.decode(b"".join(pieces)) == listed


async def test_a_part_that_nobody_reads_is_in_the_list_all_the_same() -> None:
    data = os.urandom(250)
    work = Work(Meter(Limits()), Path())
    contents = b""
    async for part in Split(LIMIT).apply(Part(stream(data, 30, work.meter)), work):
        if part.content_type == "application/json":
            contents = b"".join([chunk async for chunk in part.chunks])
        else:
            await anext(part.chunks)
    assert PartsList.decode(contents).sha256 == sha256(data)


@KNOWN
async def test_what_is_encrypted_is_split_afterwards(known: bool) -> None:
    data = os.urandom(500)
    found = await made(policy("split", LIMIT, "encrypt"), data, known=known)
    assert max(map(len, list(found.objects.values())[:-1])) == LIMIT
    assert await decrypted(found.whole(f"{KEY}.enc")) == data


@KNOWN
async def test_compression_comes_before_encryption_and_counts_with_it(known: bool) -> None:
    """A payload that fits only as long as it is plain is compressed."""
    header = len(sealed("k", bytes(32), ())[0])
    limit = header + 16 + LIMIT
    for length, suffix in ((LIMIT, ".enc"), (LIMIT + 1, ".zst.enc"), (limit, ".zst.enc")):
        found = await made(policy("compress", limit, "encrypt"), bytes(length), known=known)
        ((key, data),) = found.objects.items()
        assert (key, len(data) <= limit) == (f"{KEY}{suffix}", True)
        plain = await decrypted(data)
        assert (unzstd(plain) if "zst" in suffix else plain) == bytes(length)
    with pytest.raises(Refused, match="max_size"):
        await made(policy("compress", limit, "encrypt"), os.urandom(LIMIT + 1), known=known)
    with pytest.raises(Refused, match="max_size"):
        await made(policy("reject", limit, "encrypt"), bytes(LIMIT + 1), known=known)


async def decrypted(data: bytes) -> bytes:
    work = Work(Meter(Limits()), Path())
    parts = Decrypt(RING).apply(Part(single(data)), work)
    return b"".join([chunk async for part in parts async for chunk in part.chunks])


@given(st.integers(0, 1 << 20), st.text("abc", min_size=1, max_size=64))
def test_room_is_what_fits_once_encrypted(limit: int, key_id: str) -> None:
    header = len(sealed(key_id, bytes(32), ())[0])
    most = room(limit, key_id)
    assert sealed_size(most + 1, header) > limit
    assert most == -1 or sealed_size(most, header) <= limit


async def test_sealed_size_is_that_of_what_is_encrypted() -> None:
    for length in (0, 1, 65_535, 65_536, 65_537, 200_000):
        found = await made(policy("reject", 1 << 30, "encrypt"), bytes(length))
        assert found.parts[0].size == len(found.objects[f"{KEY}.enc"])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"size": 9},
        {"parts": []},
        {"parts": [{"name": "part-00002", "size": 3, "sha256": "0" * 64}]},
        {"parts": [{"name": "../part-00001", "size": 3, "sha256": "0" * 64}]},
        {"parts": [{"name": "part-00001", "size": 3, "sha256": "x"}]},
    ],
)
def test_a_list_names_its_parts_only(change: Mapping[str, Any]) -> None:
    good = PartsList.model_validate(
        {
            "size": 3,
            "sha256": "0" * 64,
            "content_type": None,
            "parts": [{"name": "part-00001", "size": 3, "sha256": "0" * 64}],
        }
    )
    assert PartsList.decode(b"".join(good.encode())) == good
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's, or ours
        PartsList.decode(json.dumps({**good.model_dump(), **change}).encode())


def test_a_size_is_at_least_one_byte() -> None:
    with pytest.raises(ValidationError):
        MaxSize(bytes=0)
