"""A write happens whole, once, or not at all: under broken sources, cancellation and company. Part of `backends.testing.BackendConformance`."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from backends.base import CHUNK_SIZE, Receipt, StorageBackend
from backends.errors import Conflict, IntegrityError, NotFound, Unavailable
from backends.testing.material import (
    EARLY,
    LARGE,
    NOTHING,
    SourceBroke,
    cancelled_after,
    each,
    fed,
    moments,
    odd_pieces,
    put,
    some_bytes,
)
from backends.testing.truth import Truth, needs


class Atomicity(Truth):
    """Tests."""

    @pytest.mark.parametrize("size", [0, 5, LARGE])
    @needs("create_only")
    async def test_the_same_again_is_not_created(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        first = await put(backend, "k", data)
        second = await backend.write("k", fed(data), NOTHING)
        assert (first.created, second.created) == (True, False)
        assert (second.key, second.size, second.sha256) == (first.key, first.size, first.sha256)
        # What is known of the object is known by the same name, whoever tells.
        assert second.etag in {None, first.etag}
        if backend.features.reads:
            stat = await backend.stat("k")
            assert stat is not None
            assert first.etag in {None, stat.etag}
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
    @needs("create_only")
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
        await self.assert_nothing_left(backend, "dir/k")
        assert (await put(backend, "dir/k", b"now")).created

    @pytest.mark.parametrize(
        "kind",
        [FileNotFoundError, TimeoutError, RuntimeError, Conflict, IntegrityError, NotFound, Unavailable],
    )
    async def test_a_source_may_raise_what_a_store_raises(
        self, backend: StorageBackend, kind: type[Exception]
    ) -> None:
        broke = kind("not the backend's")

        async def breaking() -> AsyncIterator[bytes]:
            yield some_bytes(CHUNK_SIZE)
            yield some_bytes(CHUNK_SIZE)
            raise broke

        with pytest.raises(kind) as raised:
            await backend.write("k", breaking(), NOTHING)
        assert raised.value is broke
        await self.assert_nothing_left(backend, "k")

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
        await self.assert_nothing_left(backend, "dir/k")
        assert (await put(backend, "dir/k", b"now")).created

    @pytest.mark.parametrize("size", [10, LARGE])
    async def test_cancelled_at_any_turn_the_object_is_whole_or_absent(
        self, backend: StorageBackend, size: int
    ) -> None:
        data = some_bytes(size)
        for turns in moments():
            key = f"k{turns}"
            task = asyncio.create_task(backend.write(key, fed(data), NOTHING))
            finished = await cancelled_after(turns, task)
            if await self.exists(backend, key):
                assert await self.content(backend, key) == data
            if turns < EARLY:
                assert await backend.sweep(0.0) == 0
            if finished:
                break
        # A request that was cancelled on its way may be carried out after the clean-up: for the sweep, and for nobody else.
        await backend.sweep(0.0)
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
        assert not await self.exists(backend, "k")
        assert await self.keys(backend) == []
        with pytest.raises(NotFound):
            await self.content(backend, "k")
        go_on.set()
        assert (await task).created
        assert await self.content(backend, "k") == some_bytes(LARGE) + b"then the rest"

    @pytest.mark.parametrize("size", [10, LARGE])
    @needs("create_only")
    async def test_identical_writers_at_once_all_succeed(self, backend: StorageBackend, size: int) -> None:
        data = some_bytes(size)
        receipts = await self.at_once(backend, [data] * 6)
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        assert sum(receipt.created for receipt in receipts if isinstance(receipt, Receipt)) == 1
        await self.assert_only(backend, "dir/k", data)

    @pytest.mark.parametrize("size", [10, LARGE])
    @needs("create_only")
    async def test_of_different_writers_at_once_one_wins(self, backend: StorageBackend, size: int) -> None:
        contents = [some_bytes(size, seed) for seed in range(6)]
        outcomes = await self.at_once(backend, contents)
        won = [content for content, got in zip(contents, outcomes, strict=True) if isinstance(got, Receipt)]
        assert len(won) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 5
        await self.assert_only(backend, "dir/k", won[0])

    @needs("reads")
    async def test_many_writers_fed_by_readers_of_the_same_store(self, backend: StorageBackend) -> None:
        """A store that has its connections counted must not keep one for a writer that waits for a reader's."""
        data = some_bytes(CHUNK_SIZE + 1)
        await put(backend, "from", data)

        async def copy(number: int) -> Receipt:
            async with backend.open("from") as chunks:
                return await backend.write(f"to/{number}", chunks, NOTHING)

        async with asyncio.timeout(120):
            receipts = await each([copy(number) for number in range(30)], at_once=30)
        assert all(receipt.created and receipt.size == len(data) for receipt in receipts)
        assert await self.content(backend, "to/29") == data

    async def test_many_writers_into_new_directories(self, backend: StorageBackend) -> None:
        keys = [f"new/{number % 7}/{number % 3}/{number}" for number in range(60)]
        receipts = await each([put(backend, key, key.encode()) for key in keys])
        assert all(receipt.created for receipt in receipts)
        assert await self.keys(backend) == sorted(keys)
