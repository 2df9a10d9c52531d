"""Bytes and attributes come back as they were written. Part of `backends.testing.BackendConformance`."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, cast

import pytest

from backends.base import CHUNK_SIZE, Attributes, ObjectStat, StorageBackend, single
from backends.errors import NotFound, Unavailable
from backends.testing.material import (
    LARGE,
    NOTHING,
    SourceBroke,
    cancelled_after,
    each,
    fed,
    moments,
    put,
    some_bytes,
)
from backends.testing.truth import Truth, needs


class Reading(Truth):
    """Tests."""

    @needs("reads")
    @pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, LARGE])
    async def test_what_is_written_is_read_back(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        receipt = await backend.write("some/key.bin", fed(data), NOTHING)
        assert (receipt.key, receipt.size, receipt.created) == ("some/key.bin", size, True)
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert await self.content(backend, "some/key.bin") == data
        stat = await backend.stat("some/key.bin")
        assert stat is not None
        assert (stat.key, stat.size) == ("some/key.bin", size)

    async def test_one_huge_piece_is_written_whole(self, backend: StorageBackend) -> None:
        data = some_bytes(LARGE)
        await put(backend, "huge", data)
        assert await self.content(backend, "huge") == data

    @needs("reads")
    async def test_a_source_without_any_piece_makes_an_empty_object(self, backend: StorageBackend) -> None:
        async def nothing() -> AsyncIterator[bytes]:
            pieces: tuple[bytes, ...] = ()
            for piece in pieces:
                yield piece

        receipt = await backend.write("empty", nothing(), NOTHING)
        assert (receipt.size, receipt.created) == (0, True)
        async with backend.open("empty") as chunks:
            assert [chunk async for chunk in chunks] == []
        assert await self.keys(backend) == ["empty"]

    @needs("reads")
    async def test_chunks_are_bounded_and_never_empty(self, backend: StorageBackend) -> None:
        await put(backend, "k", some_bytes(LARGE))
        async with backend.open("k") as chunks:
            sizes = [len(chunk) async for chunk in chunks]
        assert sum(sizes) == LARGE
        assert max(sizes) <= CHUNK_SIZE
        assert min(sizes) > 0

    @needs("reads")
    async def test_a_reader_may_leave_early(self, backend: StorageBackend) -> None:
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        async with backend.open("k") as chunks:
            first = await anext(chunks)
        assert data.startswith(first)
        async with backend.open("k"):
            pass
        assert await self.content(backend, "k") == data

    @needs("reads")
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

    @needs("reads")
    async def test_cancelled_at_any_turn_a_read_is_no_more_than_that(self, backend: StorageBackend) -> None:
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: self.content(backend, "k"),
            lambda: backend.stat("k"),
            lambda: self.keys(backend),
        ]
        for call in calls:
            for turns in moments():
                if await cancelled_after(turns, asyncio.create_task(call())):
                    break
        assert await each([self.content(backend, "k") for _ in range(5)]) == [data] * 5

    @needs("reads", "deletes")
    async def test_an_object_removed_while_it_is_read_is_read_whole_or_not_to_the_end(
        self, backend: StorageBackend
    ) -> None:
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        read = b""
        with suppress(NotFound, Unavailable):
            async with backend.open("k") as chunks:
                async for chunk in chunks:
                    if not read:
                        assert await backend.delete("k") is True
                    read += chunk
            assert read == data
        assert data.startswith(read)
        assert not await self.exists(backend, "k")

    @needs("reads", "deletes")
    async def test_of_many_who_delete_none_fails(self, backend: StorageBackend) -> None:
        await put(backend, "d/k", b"x")
        assert any(await each([backend.delete("d/k") for _ in range(8)]))
        assert not await self.exists(backend, "d/k")

    @needs("lists")
    async def test_a_listing_may_be_left_early(self, backend: StorageBackend) -> None:
        keys = [f"{number % 3}/{number:02d}" for number in range(12)]
        await each([put(backend, key, b"x") for key in keys])
        for _ in range(5):
            async with aclosing(cast("AsyncGenerator[ObjectStat, None]", backend.list())) as found:
                assert (await anext(found)).key == min(keys)
        assert await self.keys(backend) == sorted(keys)

    @needs("reads")
    async def test_reading_in_parallel(self, backend: StorageBackend) -> None:
        data = some_bytes(3 * CHUNK_SIZE)
        await put(backend, "k", data)
        assert await each([self.content(backend, "k") for _ in range(5)]) == [data] * 5

    @needs("reads", "deletes")
    async def test_missing_objects(self, backend: StorageBackend) -> None:
        await put(backend, "there/too", b"x")
        for key in ("missing", "there/missing", "there", "no/such/place"):
            assert not await self.exists(backend, key)
            assert await backend.delete(key) is False
            with pytest.raises(NotFound):
                async with backend.open(key):
                    pytest.fail("NotFound comes on entering")
        assert await self.keys(backend) == ["there/too"]

    @needs("deletes")
    async def test_delete_tells_whether_it_was_there(self, backend: StorageBackend) -> None:
        await put(backend, "d/k", b"x")
        assert await backend.delete("d/k") is True
        assert await backend.delete("d/k") is False
        assert not await self.exists(backend, "d/k")
        assert (await put(backend, "d/k", b"other")).created

    @needs("reads")
    async def test_attributes_come_back(self, backend: StorageBackend) -> None:
        long = "long " * 600
        metadata = {
            "url": "https://example.org/ü?q=%20&x=1",
            "title": "日本語 😀",
            "plain": "x y",
            "empty": "",
            "lines": "one\r\nx-two: 2\ttab",
            " edges ": " kept ",
            "Upper-Case_and.more": "x",
            "größe: 50 %/=": "y",
            "long": long,
        }
        await backend.write("k", single(b"x"), Attributes("text/html; charset=utf-8", metadata))
        stat = await backend.stat("k")
        assert stat is not None
        if backend.features.attributes:
            assert stat.content_type == "text/html; charset=utf-8"
            kept = dict(stat.metadata)
            cut = kept.pop("long")
            told = {name: value for name, value in metadata.items() if name != "long"}
            expected = {name: value for name, value in told.items() if name not in self.untold_metadata}
            assert {name: kept.get(name) for name in expected} == expected
            assert self.untold_metadata or kept == told
            assert cut
            assert long.startswith(cut)
        else:
            assert (stat.content_type, dict(stat.metadata)) == (None, {})
        assert await self.content(backend, "k") == b"x"

    @needs("reads")
    async def test_attributes_of_a_large_object_come_back(self, backend: StorageBackend) -> None:
        await backend.write("k", fed(some_bytes(LARGE)), Attributes("image/png", {"name": "grün"}))
        stat = await backend.stat("k")
        assert stat is not None
        expected = ("image/png", {"name": "grün"}) if backend.features.attributes else (None, {})
        assert (stat.content_type, dict(stat.metadata)) == expected
