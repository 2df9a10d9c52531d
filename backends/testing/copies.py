"""Copies inside the store. Part of `backends.testing.BackendConformance`."""

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import replace

import pytest

from backends.base import Attributes, Promise, StorageBackend, single
from backends.checksums import Algorithm, running
from backends.errors import Conflict, IntegrityError, InvalidKey, NotFound, Unsupported
from backends.memory import MemoryBackend, MemoryOptions
from backends.testing.material import EARLY, LARGE, NOTHING, cancelled_after, each, moments, put, some_bytes
from backends.testing.truth import Truth
from backends.wrapper import Wrapper


def promised(data: bytes) -> Promise:
    """Size and digest of `data`."""
    return Promise(len(data), hashlib.sha256(data).hexdigest())


def checksum_of(algorithm: Algorithm, data: bytes) -> str:
    """In hex."""
    checksum = running(algorithm)
    checksum.update(data)
    return checksum.digest().hex()


class Copies(Truth):
    """Where `features.server_copy` is off, every one of them is a test that the copy is refused and nothing written."""

    async def refused(self, backend: StorageBackend) -> bool:
        """True, after a look that it is refused, where copying is not a feature."""
        if backend.features.server_copy:
            return False
        await put(backend, "k", b"x")
        with pytest.raises(Unsupported):
            await backend.copy_from(backend, "k", "copy", NOTHING, promised(b"x"))
        assert await self.keys(backend) == ["k"]
        self.tell("refused")
        return True

    @pytest.mark.parametrize("size", [0, 1, LARGE])
    async def test_a_copy_is_proven(self, backend: StorageBackend, size: int) -> None:
        if await self.refused(backend):
            return
        data = some_bytes(size)
        await put(backend, "k", data)
        receipt = await backend.copy_from(Wrapper(backend), "k", "dir/copy", NOTHING, promised(data))
        assert (receipt.key, receipt.size, receipt.created) == ("dir/copy", size, True)
        assert receipt.sha256 == promised(data).sha256
        assert await self.content(backend, "dir/copy") == data
        assert await self.content(backend, "k") == data

    async def test_a_copy_has_its_own_attributes(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        await backend.write("k", single(b"x"), Attributes("text/plain", {"url": "old"}))
        await backend.copy_from(backend, "k", "copy", Attributes("text/html", {"url": "nëw"}), promised(b"x"))
        stat = await backend.stat("copy")
        assert stat is not None
        if backend.features.attributes:
            assert (stat.content_type, dict(stat.metadata)) == ("text/html", {"url": "nëw"})

    async def test_the_same_copy_again_is_not_created(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        data = some_bytes(1000)
        await put(backend, "k", data)
        first = await backend.copy_from(backend, "k", "copy", NOTHING, promised(data))
        again = await backend.copy_from(backend, "k", "copy", NOTHING, promised(data))
        assert (first.created, again.created) == (True, False)
        assert (again.size, again.sha256) == (first.size, first.sha256)

    async def test_case_60_a_copy_onto_other_content_is_a_conflict(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        await put(backend, "k", b"new!")
        await put(backend, "copy", b"old.")
        with pytest.raises(Conflict):
            await backend.copy_from(backend, "k", "copy", NOTHING, promised(b"new!"))
        assert await self.content(backend, "copy") == b"old."

    @pytest.mark.parametrize(
        "wrong",
        [Promise(5, None), Promise(4, "0" * 64), Promise(None, "0" * 64)],
        ids=["size", "digest", "digest alone"],
    )
    async def test_case_67_a_copy_of_something_else_than_promised_leaves_nothing(
        self, backend: StorageBackend, wrong: Promise
    ) -> None:
        if await self.refused(backend):
            return
        await put(backend, "k", b"data")
        # A store that cannot tell a wrong digest from a right one has to leave it to a stream that reads the bytes.
        with pytest.raises((IntegrityError, Unsupported)):
            await backend.copy_from(backend, "k", "copy", NOTHING, wrong)
        assert await self.keys(backend) == ["k"]
        assert await backend.sweep(0.0) == 0

    async def test_case_67_of_other_checksums_a_copy_proves_what_it_says_it_can(
        self, backend: StorageBackend
    ) -> None:
        if await self.refused(backend):
            return
        data = b"data"
        await put(backend, "k", data)
        proven = set()
        for algorithm in sorted(backend.features.copy_proves):
            told = promised(data)
            wrong = replace(told, checksums={algorithm: checksum_of(algorithm, b"DATA")})
            with pytest.raises((IntegrityError, Unsupported)):
                await backend.copy_from(backend, "k", "copy", NOTHING, wrong)
            assert await self.keys(backend) == ["k"]
            right = replace(told, checksums={algorithm: checksum_of(algorithm, data)})
            # Not every store shows every one of each object.
            with suppress(Unsupported):
                await backend.copy_from(backend, "k", "copy", NOTHING, right)
                proven.add(algorithm)
                assert await self.content(backend, "copy") == data
                await backend.delete("copy")
        assert bool(proven) == bool(backend.features.copy_proves)

    async def test_copies_at_once_are_one(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        receipts = await each(
            [backend.copy_from(backend, "k", "dir/copy", NOTHING, promised(data)) for _ in range(6)]
        )
        assert sum(receipt.created for receipt in receipts) == 1
        assert await self.content(backend, "dir/copy") == data
        assert await self.keys(backend) == ["dir/copy", "k"]
        assert await backend.sweep(0.0) == 0

    async def test_cancelled_at_any_turn_a_copy_is_whole_or_absent(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        data = some_bytes(LARGE)
        await put(backend, "k", data)
        for turns in moments():
            key = f"copy{turns}"
            task = asyncio.create_task(backend.copy_from(backend, "k", key, NOTHING, promised(data)))
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

    async def test_a_copy_without_a_promise_is_proven_or_refused(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        await put(backend, "k", b"data")
        try:
            receipt = await backend.copy_from(backend, "k", "copy", NOTHING, Promise())
        except Unsupported:
            assert await self.keys(backend) == ["k"]
        else:
            assert (receipt.size, receipt.sha256) == (4, promised(b"data").sha256)

    async def test_a_copy_of_nothing(self, backend: StorageBackend) -> None:
        if await self.refused(backend):
            return
        with pytest.raises(NotFound):
            await backend.copy_from(backend, "missing", "copy", NOTHING, Promise())
        with pytest.raises(InvalidKey):
            await backend.copy_from(backend, "../x", "copy", NOTHING, Promise())
        with pytest.raises(InvalidKey):
            await backend.copy_from(backend, "x", "a//b", NOTHING, Promise())
        assert await self.keys(backend) == []

    async def test_a_copy_out_of_another_store_is_refused(self, backend: StorageBackend) -> None:
        other = await MemoryBackend.connect(MemoryOptions())
        await put(other, "k", b"x")
        with pytest.raises(Unsupported):
            await backend.copy_from(other, "k", "copy", NOTHING, promised(b"x"))
        assert await self.keys(backend) == []
