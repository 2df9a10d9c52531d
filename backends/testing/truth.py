"""How the suite looks at what a backend has really stored, and what an adapter's test class may override.

By default it asks the backend. A backend that cannot read, list or delete is looked at behind its back: its test class
overrides `keys`, `content`, `exists` or `remove` with what the store itself tells.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest

from backends.base import Receipt, StorageBackend, single
from backends.errors import Unsupported
from backends.testing.material import NOTHING, odd_pieces

OUTCOME = "conformance"
"""Name of the property (pytest's `record_property`) of a test that passed without the promise being kept: `refused` where the
backend raised `Unsupported`, as it says in its `Features`; `not offered` where there is no call that could be refused."""

SelfT = TypeVar("SelfT", bound="Truth")
P = ParamSpec("P")


class Truth:
    """What every part of the suite builds on."""

    _record: Callable[[str, object], None]

    many = 1_050
    """Objects in the test of long listings: more than a page of any store."""

    untold_keys: Sequence[str] = ()
    """Keys out of `material.KEYS` that this store refuses with `InvalidKey`, which the adapter's docstring says and explains."""

    @pytest.fixture(autouse=True)
    def _telling(self, record_property: Callable[[str, object], None]) -> None:
        self._record = record_property

    def tell(self, outcome: str) -> None:
        """Note in the test's report how it came to pass, other than by the promise being kept: see `OUTCOME`."""
        self._record(OUTCOME, outcome)

    untold_metadata: Sequence[str] = ()
    """Names of metadata out of `test_attributes_come_back` that this store changes by itself, which the test class explains."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:  # noqa: ARG002 - for those that override it
        """Leave behind what a writer of `key` leaves that is killed in the middle; how many leftovers that are.

        To be overridden for a store where something can be left.
        """
        return 0

    async def keys(self, backend: StorageBackend, prefix: str = "") -> list[str]:
        """The keys that are there, in order."""
        return [found.key async for found in backend.list(prefix)]

    async def content(self, backend: StorageBackend, key: str) -> bytes:
        """The bytes of an object. Raises `NotFound`."""
        async with backend.open(key) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def exists(self, backend: StorageBackend, key: str) -> bool:
        """Whether an object lies there."""
        return await backend.stat(key) is not None

    async def remove(self, backend: StorageBackend, key: str) -> None:
        """Take an object away."""
        assert await backend.delete(key)

    async def fill(self, backend: StorageBackend, keys: Sequence[str]) -> None:
        """Store an object of one byte under every key. To be overridden where the store has a faster way than `write`."""
        gate = asyncio.Semaphore(32)

        async def one(key: str) -> None:
            async with gate:
                await backend.write(key, single(b"x"), NOTHING)

        await asyncio.gather(*(one(key) for key in keys))

    async def assert_only(self, backend: StorageBackend, key: str, data: bytes) -> None:
        """`key` is the only object, holds `data`, and no unfinished write lies beside it."""
        assert await self.keys(backend) == [key]
        assert await self.content(backend, key) == data
        assert await backend.sweep(0.0) == 0

    async def assert_nothing_left(self, backend: StorageBackend, key: str) -> None:
        """The store is empty, temporaries included."""
        assert await self.keys(backend) == []
        assert not await self.exists(backend, key)
        assert await backend.sweep(0.0) == 0

    async def at_once(
        self, backend: StorageBackend, contents: list[bytes], key: str = "dir/k"
    ) -> list[Receipt | BaseException]:
        """Write every content under one key; none ends before all have begun."""
        begun = asyncio.Barrier(len(contents))

        async def waiting(data: bytes) -> AsyncIterator[bytes]:
            for piece in odd_pieces(data):
                yield piece
            await begun.wait()

        return await asyncio.gather(
            *(backend.write(key, waiting(data), NOTHING) for data in contents), return_exceptions=True
        )


def needs(
    *features: str,
) -> Callable[
    [Callable[Concatenate[SelfT, StorageBackend, P], Coroutine[Any, Any, None]]],
    Callable[Concatenate[SelfT, StorageBackend, P], Coroutine[Any, Any, None]],
]:
    """For a test of something a backend may lack: there, the test is that it is refused as `Unsupported`, nothing else."""

    def decorate(
        test: Callable[Concatenate[SelfT, StorageBackend, P], Coroutine[Any, Any, None]],
    ) -> Callable[Concatenate[SelfT, StorageBackend, P], Coroutine[Any, Any, None]]:
        async def run(self: SelfT, backend: StorageBackend, *args: P.args, **kwargs: P.kwargs) -> None:
            missing = [feature for feature in features if not getattr(backend.features, feature)]
            if not missing:
                await test(self, backend, *args, **kwargs)
                return
            refusals = [await assert_refused(backend, feature) for feature in missing]
            self.tell("refused" if any(refusals) else "not offered")

        functools.update_wrapper(run, test)
        return run  # type: ignore[return-value] # pytest passes by name, which the type does not promise

    return decorate


async def assert_refused(backend: StorageBackend, feature: str) -> int:
    """Every call that belongs to the missing feature raises `Unsupported`. How many calls that are."""

    async def opened() -> None:
        async with backend.open("k"):
            pass

    async def walked() -> None:
        async for _ in backend.list():
            pass

    calls: dict[str, Sequence[Callable[[], Awaitable[object]]]] = {
        "reads": [opened, lambda: backend.stat("k")],
        "lists": [walked],
        "deletes": [lambda: backend.delete("k")],
    }
    belonging = calls.get(feature, ())
    for call in belonging:
        with pytest.raises(Unsupported):
            await call()
    return len(belonging)
