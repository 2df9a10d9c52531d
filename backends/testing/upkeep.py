"""Leftovers of killed writers, health, and the end of a backend. Part of `backends.testing.BackendConformance`."""

import asyncio
from collections.abc import AsyncIterator

from backends.base import StorageBackend
from backends.testing.material import (
    LARGE,
    NOTHING,
    each,
    put,
    some_bytes,
)
from backends.testing.truth import Truth


class Upkeep(Truth):
    """Tests."""

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
        await self.assert_nothing_left(backend, "anything")

    async def test_closing_twice_is_harmless(self, backend: StorageBackend) -> None:
        await put(backend, "k", b"x")
        await backend.aclose()
        await backend.aclose()
