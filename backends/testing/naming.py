"""Which keys may be used, that they stay apart, and that listings tell all of them. Part of `backends.testing.BackendConformance`."""

from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from backends.base import StorageBackend
from backends.errors import InvalidKey
from backends.testing.material import KEYS, NOTHING, UNUSABLE, each, put
from backends.testing.truth import Truth, needs


class Naming(Truth):
    """Tests."""

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
            lambda: _opened(backend, key),
            lambda: backend.stat(key),
            lambda: backend.delete(key),
        ]
        for call in calls:
            with pytest.raises(InvalidKey):
                await call()
        assert not touched
        assert await self.keys(backend) == []

    @pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:24]))
    async def test_usable_keys_are_kept_as_they_are(self, backend: StorageBackend, key: str) -> None:
        data = key.encode()
        if key in self.untold_keys:
            with pytest.raises(InvalidKey):
                await put(backend, key, data)
            assert await self.keys(backend) == []
            return
        assert (await put(backend, key, data)).key == key
        await self.assert_only(backend, key, data)
        await self.remove(backend, key)
        assert await self.keys(backend) == []

    async def test_case_77_keys_that_look_alike_are_different(self, backend: StorageBackend) -> None:
        keys = ["a%20b", "a b", "a+b", "A b", "%61 b", "a  b", "\u00e9", "e\u0301"]
        await each([put(backend, key, key.encode()) for key in keys])
        assert await each([self.content(backend, key) for key in keys]) == [key.encode() for key in keys]

    @needs("lists")
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
            assert await self.keys(backend, prefix) == sorted(
                key for key in keys if key.startswith(prefix)
            ), prefix
        assert [found.size async for found in backend.list("a/")] == [3, 5, 5]

    @needs("lists")
    async def test_list_is_complete_beyond_a_page(self, backend: StorageBackend) -> None:
        keys = [f"many/{number % 3}/{number:05d}" for number in range(self.many)]
        await each([put(backend, key, b"x") for key in keys])
        await put(backend, "more", b"x")
        assert await self.keys(backend, "many/") == sorted(keys)
        assert len(await self.keys(backend)) == self.many + 1


async def _opened(backend: StorageBackend, key: str) -> None:
    async with backend.open(key):
        pass
