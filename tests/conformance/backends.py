"""What every storage backend promises, as tests. `test_backends.py` runs it for each registered name.

A subclass supplies the fixture `backend`: an empty store, connected. Third-party adapters run the same class.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest

from backends.base import CHUNK_SIZE, Attributes, Receipt, StorageBackend, single
from backends.errors import Conflict, InvalidKey, NotFound, Unsupported

T = TypeVar("T")

NOTHING = Attributes()
LARGE = 9 * CHUNK_SIZE + 12_345
"""More than one part of a multipart upload with the parts that adapters default to."""

KEYS = [
    "plain",
    "deep/er/and/deep.er",
    "with space",
    " leading and trailing ",
    "a+b=c",
    "100%",
    "%41",
    "%2F",
    "#fragment",
    "query?x=1&y=2",
    "quote'\"quote",
    "<angle>&amp;",
    "semi;colon,comma:colon@at!bang$dollar*star(paren)",
    "back\\slash",
    "~tilde",
    "-dash",
    ".hidden",
    "dots..in/..the/...middle",
    "grüße/日本語/😀",
    "composed \u00e9",
    "decomposed e\u0301",
    "n" * 255,
    "é" * 127 + "/" + "d" * 255 + "/leaf",
    "k/" * 511 + "ey",
]

UNUSABLE = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "../a",
    "n\0l",
    "\ud800",
    "x" * 1025,
    "é" * 513,
]


class SourceBroke(Exception):
    """Raised by a source; a backend must let it through as it is."""


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def odd_pieces(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of no one's favourite size, some of them empty."""
    sizes = [0, 1, 70_001, 0, 65_536, 3, CHUNK_SIZE + 7, 499_979]
    start = turn = 0
    yield b""
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1
    yield b""


async def fed(data: bytes) -> AsyncIterator[bytes]:
    for piece in odd_pieces(data):
        yield piece


async def read(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def listed(backend: StorageBackend, prefix: str = "") -> list[str]:
    return [found.key async for found in backend.list(prefix)]


async def put(backend: StorageBackend, key: str, data: bytes) -> Receipt:
    return await backend.write(key, single(data), NOTHING)


async def each(calls: list[Coroutine[None, None, T]], at_once: int = 32) -> list[T]:
    gate = asyncio.Semaphore(at_once)

    async def gated(call: Coroutine[None, None, T]) -> T:
        async with gate:
            return await call

    return await asyncio.gather(*(gated(call) for call in calls))


async def assert_nothing_left(backend: StorageBackend, key: str) -> None:
    assert await listed(backend) == []
    assert await backend.stat(key) is None
    assert await backend.sweep(0.0) == 0


class BackendConformance:
    many = 1_050
    """Objects in the test of long listings: more than a page of any store."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:  # noqa: ARG002 - for those that override it
        """Leave behind what a writer of `key` leaves that is killed in the middle; how many leftovers that are.

        To be overridden for a store where something can be left.
        """
        return 0

    @pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, LARGE])
    async def test_what_is_written_is_read_back(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        receipt = await backend.write("some/key.bin", fed(data), NOTHING)
        assert (receipt.key, receipt.size, receipt.created) == ("some/key.bin", size, True)
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert await read(backend, "some/key.bin") == data
        stat = await backend.stat("some/key.bin")
        assert stat is not None
        assert (stat.key, stat.size) == ("some/key.bin", size)

    async def test_one_huge_piece_is_written_whole(self, backend: StorageBackend) -> None:
        data = some_bytes(LARGE)
        await put(backend, "huge", data)
        assert await read(backend, "huge") == data

    async def test_a_source_without_any_piece_makes_an_empty_object(self, backend: StorageBackend) -> None:
        async def nothing() -> AsyncIterator[bytes]:
            pieces: tuple[bytes, ...] = ()
            for piece in pieces:
                yield piece

        receipt = await backend.write("empty", nothing(), NOTHING)
        assert (receipt.size, receipt.created) == (0, True)
        async with backend.open("empty") as chunks:
            assert [chunk async for chunk in chunks] == []
        assert await listed(backend) == ["empty"]

    async def test_chunks_are_bounded_and_never_empty(self, backend: StorageBackend) -> None:
        await put(backend, "k", some_bytes(LARGE))
        async with backend.open("k") as chunks:
            sizes = [len(chunk) async for chunk in chunks]
        assert sum(sizes) == LARGE
        assert max(sizes) <= CHUNK_SIZE
        assert min(sizes) > 0

    async def test_a_reader_may_leave_early(self, backend: StorageBackend) -> None:
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        async with backend.open("k") as chunks:
            first = await anext(chunks)
        assert data.startswith(first)
        async with backend.open("k"):
            pass
        assert await read(backend, "k") == data

    async def test_what_the_reader_raises_comes_out(self, backend: StorageBackend) -> None:
        await put(backend, "k", some_bytes(LARGE))
        broke = SourceBroke()

        async def leave() -> None:
            async with backend.open("k") as chunks:
                await anext(chunks)
                raise broke

        with pytest.raises(SourceBroke) as raised:
            await leave()
        assert raised.value is broke

    async def test_reading_in_parallel(self, backend: StorageBackend) -> None:
        data = some_bytes(3 * CHUNK_SIZE)
        await put(backend, "k", data)
        assert await each([read(backend, "k") for _ in range(5)]) == [data] * 5

    @pytest.mark.parametrize("size", [0, 5, LARGE])
    async def test_the_same_again_is_not_created(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        first = await put(backend, "k", data)
        second = await backend.write("k", fed(data), NOTHING)
        assert (first.created, second.created) == (True, False)
        assert (second.key, second.size, second.sha256) == (first.key, first.size, first.sha256)
        await self.assert_only(backend, "k", data)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"some bytes", b"same size!"),
            (b"short", b"longer than before"),
            (b"", b"x"),
            (b"x", b""),
            (b"short", some_bytes(LARGE)),
            (some_bytes(LARGE), some_bytes(LARGE - 1) + b"?"),
        ],
        ids=["same size", "longer", "old empty", "new empty", "new large", "both large"],
    )
    async def test_case_60_other_content_is_a_conflict_and_the_old_stays(
        self, backend: StorageBackend, old: bytes, new: bytes
    ) -> None:
        await put(backend, "k", old)
        with pytest.raises(Conflict):
            await backend.write("k", fed(new), NOTHING)
        await self.assert_only(backend, "k", old)

    @pytest.mark.parametrize("before", [0, 1, CHUNK_SIZE, LARGE], ids=["start", "early", "middle", "end"])
    async def test_i5_a_broken_source_leaves_nothing(self, backend: StorageBackend, before: int) -> None:
        broke = SourceBroke()

        async def breaking() -> AsyncIterator[bytes]:
            for piece in odd_pieces(some_bytes(before)):
                yield piece
            raise broke

        with pytest.raises(SourceBroke) as raised:
            await backend.write("dir/k", breaking(), NOTHING)
        assert raised.value is broke
        await assert_nothing_left(backend, "dir/k")
        assert (await put(backend, "dir/k", b"now")).created

    async def test_a_source_may_raise_an_os_error_of_its_own(self, backend: StorageBackend) -> None:
        broke = FileNotFoundError("not the backend's")

        async def breaking() -> AsyncIterator[bytes]:
            yield some_bytes(CHUNK_SIZE)
            yield some_bytes(CHUNK_SIZE)
            raise broke

        with pytest.raises(FileNotFoundError) as raised:
            await backend.write("k", breaking(), NOTHING)
        assert raised.value is broke
        await assert_nothing_left(backend, "k")

    @pytest.mark.parametrize(
        "before", [0, 1, CHUNK_SIZE + 1, LARGE], ids=["start", "early", "middle", "late"]
    )
    async def test_i5_a_cancelled_write_leaves_nothing(self, backend: StorageBackend, before: int) -> None:
        stalled = asyncio.Event()

        async def stalling() -> AsyncIterator[bytes]:
            for piece in odd_pieces(some_bytes(before)):
                yield piece
            stalled.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(backend.write("dir/k", stalling(), NOTHING))
        await stalled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_nothing_left(backend, "dir/k")
        assert (await put(backend, "dir/k", b"now")).created

    @pytest.mark.parametrize("size", [10, LARGE])
    async def test_cancelled_at_any_turn_the_object_is_whole_or_absent(
        self, backend: StorageBackend, size: int
    ) -> None:
        data = some_bytes(size)
        for turns in range(12):
            key = f"k{turns}"
            task = asyncio.create_task(backend.write(key, fed(data), NOTHING))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if await backend.stat(key) is not None:
                assert await read(backend, key) == data
        assert await backend.sweep(0.0) == 0

    async def test_i5_a_reader_sees_nothing_of_a_write_in_progress(self, backend: StorageBackend) -> None:
        half, go_on = asyncio.Event(), asyncio.Event()

        async def halting() -> AsyncIterator[bytes]:
            yield some_bytes(LARGE)
            yield b"then "
            half.set()
            await go_on.wait()
            yield b"the rest"

        task = asyncio.create_task(backend.write("k", halting(), NOTHING))
        await half.wait()
        assert await backend.stat("k") is None
        assert await listed(backend) == []
        with pytest.raises(NotFound):
            await read(backend, "k")
        go_on.set()
        assert (await task).created
        assert await read(backend, "k") == some_bytes(LARGE) + b"then the rest"

    @pytest.mark.parametrize("size", [10, LARGE])
    async def test_identical_writers_at_once_all_succeed(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        receipts = await self.at_once(backend, [data] * 6)
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        assert sum(receipt.created for receipt in receipts if isinstance(receipt, Receipt)) == 1
        await self.assert_only(backend, "dir/k", data)

    @pytest.mark.parametrize("size", [10, LARGE])
    async def test_of_different_writers_at_once_one_wins(self, backend: StorageBackend, size: int) -> None:
        contents = [some_bytes(size, seed) for seed in range(6)]
        outcomes = await self.at_once(backend, contents)
        won = [content for content, got in zip(contents, outcomes, strict=True) if isinstance(got, Receipt)]
        assert len(won) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 5
        await self.assert_only(backend, "dir/k", won[0])

    async def test_many_writers_into_new_directories(self, backend: StorageBackend) -> None:
        keys = [f"new/{number % 7}/{number % 3}/{number}" for number in range(60)]
        receipts = await each([put(backend, key, key.encode()) for key in keys])
        assert all(receipt.created for receipt in receipts)
        assert await listed(backend) == sorted(keys)

    @pytest.mark.parametrize("key", UNUSABLE, ids=ascii)
    async def test_unusable_keys_are_refused_before_anything_is_read(
        self, backend: StorageBackend, key: str
    ) -> None:
        touched = False

        async def touchy() -> AsyncIterator[bytes]:
            nonlocal touched
            touched = True
            yield b"x"

        calls: list[Callable[[], Coroutine[None, None, object]]] = [
            lambda: backend.write(key, touchy(), NOTHING),
            lambda: read(backend, key),
            lambda: backend.stat(key),
            lambda: backend.delete(key),
        ]
        for call in calls:
            with pytest.raises(InvalidKey):
                await call()
        assert not touched
        assert await listed(backend) == []

    @pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:24]))
    async def test_usable_keys_are_kept_as_they_are(self, backend: StorageBackend, key: str) -> None:
        data = key.encode()
        assert (await put(backend, key, data)).key == key
        await self.assert_only(backend, key, data)
        assert await backend.delete(key)
        assert await listed(backend) == []

    async def test_case_77_keys_that_look_alike_are_different(self, backend: StorageBackend) -> None:
        keys = ["a%20b", "a b", "a+b", "A b", "%61 b", "a  b", "\u00e9", "e\u0301"]
        await each([put(backend, key, key.encode()) for key in keys])
        assert await each([read(backend, key) for key in keys]) == [key.encode() for key in keys]

    async def test_missing_objects(self, backend: StorageBackend) -> None:
        await put(backend, "there/too", b"x")
        for key in ("missing", "there/missing", "there", "no/such/place"):
            assert await backend.stat(key) is None
            assert await backend.delete(key) is False
            with pytest.raises(NotFound):
                async with backend.open(key):
                    pytest.fail("NotFound comes on entering")
        assert await listed(backend) == ["there/too"]

    async def test_delete_tells_whether_it_was_there(self, backend: StorageBackend) -> None:
        await put(backend, "d/k", b"x")
        assert await backend.delete("d/k") is True
        assert await backend.delete("d/k") is False
        assert await backend.stat("d/k") is None
        assert (await put(backend, "d/k", b"other")).created

    async def test_list_goes_by_string_prefix_in_key_order(self, backend: StorageBackend) -> None:
        keys = ["a b", "a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a0", "ab", "abc/d", "b", "é/x", "😀", "\uffee"]
        await each([put(backend, key, key.encode()) for key in reversed(keys)])
        for prefix in (
            "",
            "a",
            "a/",
            "a/b",
            "ab",
            "a/c/d",
            "a/c/",
            "é",
            "zz",
            "a/b/",
            "/",
            "../",
            "./a",
            "a//",
        ):
            assert await listed(backend, prefix) == sorted(key for key in keys if key.startswith(prefix)), (
                prefix
            )
        assert [found.size async for found in backend.list("a/")] == [3, 5, 5]

    async def test_list_is_complete_beyond_a_page(self, backend: StorageBackend) -> None:
        keys = [f"many/{number % 3}/{number:05d}" for number in range(self.many)]
        await each([put(backend, key, b"x") for key in keys])
        await put(backend, "more", b"x")
        assert await listed(backend, "many/") == sorted(keys)
        assert len(await listed(backend)) == self.many + 1

    async def test_attributes_come_back(self, backend: StorageBackend) -> None:
        long = "long " * 600
        metadata = {
            "url": "https://example.org/ü?q=%20&x=1",
            "title": "日本語 😀",
            "plain": "x y",
            "long": long,
        }
        await backend.write("k", single(b"x"), Attributes("text/html; charset=utf-8", metadata))
        stat = await backend.stat("k")
        assert stat is not None
        if backend.features.attributes:
            assert stat.content_type == "text/html; charset=utf-8"
            kept = dict(stat.metadata)
            cut = kept.pop("long")
            assert kept == {name: value for name, value in metadata.items() if name != "long"}
            assert cut
            assert long.startswith(cut)
        else:
            assert (stat.content_type, dict(stat.metadata)) == (None, {})
        assert await read(backend, "k") == b"x"

    async def test_attributes_of_a_large_object_come_back(self, backend: StorageBackend) -> None:
        await backend.write("k", fed(some_bytes(LARGE)), Attributes("image/png", {"name": "grün"}))
        stat = await backend.stat("k")
        assert stat is not None
        expected = ("image/png", {"name": "grün"}) if backend.features.attributes else (None, {})
        assert (stat.content_type, dict(stat.metadata)) == expected

    async def test_server_copy_is_refused_where_it_is_not_a_feature(self, backend: StorageBackend) -> None:
        await put(backend, "k", b"x")
        if backend.features.server_copy:
            receipt = await backend.copy_from(backend, "k", "copy")
            assert (receipt.key, receipt.size, receipt.created) == ("copy", 1, True)
            assert await read(backend, "copy") == b"x"
        else:
            with pytest.raises(Unsupported):
                await backend.copy_from(backend, "k", "copy")
            assert await listed(backend) == ["k"]

    async def test_i6_what_killed_writers_left_is_swept_once_it_is_old(self, backend: StorageBackend) -> None:
        await put(backend, "dir/done", b"whole")
        left = sum([await self.abandoned(backend, key) for key in ("dir/k", "dir/done", "k")])
        assert await backend.sweep(3600.0) == 0, "it may still be under way"
        assert await backend.sweep(0.0) == left
        assert await backend.sweep(0.0) == 0
        await self.assert_only(backend, "dir/done", b"whole")
        assert (await put(backend, "dir/k", b"now")).created

    async def test_a_sweep_keeps_to_its_prefix(self, backend: StorageBackend) -> None:
        left = [await self.abandoned(backend, key) for key in ("ours/deep/k", "ours-not/k", "theirs/k")]
        assert await backend.sweep(0.0, "ours/") == left[0]
        assert await backend.sweep(0.0, "nothing/") == 0
        assert await backend.sweep(0.0) == sum(left[1:])

    async def test_sweeps_at_once_do_not_trouble_each_other(self, backend: StorageBackend) -> None:
        left = sum([await self.abandoned(backend, f"dir/{number}") for number in range(20)])
        assert sum(await each([backend.sweep(0.0) for _ in range(3)])) >= left, (
            "a store may tell both that it was theirs"
        )
        assert await backend.sweep(0.0) == 0

    async def test_a_sweep_keeps_a_write_under_way(self, backend: StorageBackend) -> None:
        half, go_on = asyncio.Event(), asyncio.Event()

        async def halting() -> AsyncIterator[bytes]:
            yield some_bytes(LARGE)
            half.set()
            await go_on.wait()
            yield some_bytes(LARGE)

        task = asyncio.create_task(backend.write("k", halting(), NOTHING))
        await half.wait()
        assert await backend.sweep(3600.0) == 0
        go_on.set()
        assert (await task).created
        await self.assert_only(backend, "k", 2 * some_bytes(LARGE))

    async def test_the_buffer_of_a_write_is_told_in_bytes(self, backend: StorageBackend) -> None:
        assert 0 <= backend.write_buffer < 1 << 30

    async def test_location_ends_in_a_slash_and_names_a_scheme(self, backend: StorageBackend) -> None:
        scheme, _, rest = backend.location.partition("://")
        assert scheme
        assert rest.endswith("/")

    async def test_health_leaves_no_trace(self, backend: StorageBackend) -> None:
        await backend.health()
        await assert_nothing_left(backend, "anything")

    async def test_closing_twice_is_harmless(self, backend: StorageBackend) -> None:
        await put(backend, "k", b"x")
        await backend.aclose()
        await backend.aclose()

    @staticmethod
    async def assert_only(backend: StorageBackend, key: str, data: bytes) -> None:
        """`key` is the only object, holds `data`, and no unfinished write lies beside it."""
        assert await listed(backend) == [key]
        assert await read(backend, key) == data
        assert await backend.sweep(0.0) == 0

    @staticmethod
    async def at_once(backend: StorageBackend, contents: list[bytes]) -> list[Receipt | BaseException]:
        """Write every content under one key; none ends before all have begun."""
        begun = asyncio.Barrier(len(contents))

        async def waiting(data: bytes) -> AsyncIterator[bytes]:
            for piece in odd_pieces(data):
                yield piece
            await begun.wait()

        return await asyncio.gather(
            *(backend.write("dir/k", waiting(data), NOTHING) for data in contents), return_exceptions=True
        )
