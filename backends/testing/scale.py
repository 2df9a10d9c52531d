"""Many objects and a very large one. Part of `backends.testing.BackendConformance`; marked `slow`, run by `make conformance`."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from backends.base import CHUNK_SIZE, StorageBackend
from backends.testing.material import NOTHING, each, put, some_bytes
from backends.testing.truth import Truth, needs


class Scale(Truth):
    """The figures are those of the project's promise to its users."""

    huge = 6 << 30
    """Bytes: more than any store takes in one request."""

    async def test_fifty_writes_at_once(self, backend: StorageBackend) -> None:
        contents = {f"at/once/{number}": some_bytes(300_000 + number, number) for number in range(50)}
        receipts = await each([put(backend, key, data) for key, data in contents.items()], at_once=50)
        assert all(receipt.created for receipt in receipts)
        assert await self.keys(backend) == sorted(contents)
        for key, data in contents.items():
            assert await self.content(backend, key) == data

    @pytest.mark.slow
    @needs("lists")
    async def test_a_listing_of_ten_thousand(self, backend: StorageBackend) -> None:
        keys = [f"ten/{number % 7}/{number:05d}" for number in range(10_000)]
        await self.fill(backend, keys)
        assert [found.key async for found in backend.list("ten/")] == sorted(keys)

    @pytest.mark.slow
    @needs("reads")
    async def test_six_gibibytes(self, backend: StorageBackend) -> None:
        chunk, written, seen = some_bytes(CHUNK_SIZE), sha256(), sha256()

        async def chunks() -> AsyncIterator[bytes]:
            for number in range(self.huge // CHUNK_SIZE):
                piece = number.to_bytes(8, "big") + chunk[8:]
                await asyncio.to_thread(written.update, piece)
                yield piece

        receipt = await backend.write("huge", chunks(), NOTHING)
        assert (receipt.size, receipt.sha256) == (self.huge, written.hexdigest())
        async with backend.open("huge") as read:
            async for piece in read:
                await asyncio.to_thread(seen.update, piece)
        assert seen.hexdigest() == receipt.sha256
        await self.remove(backend, "huge")
