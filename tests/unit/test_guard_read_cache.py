import asyncio
import errno
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import CHUNK_SIZE, Attributes, ObjectStat
from backends.errors import NotFound, PermissionDenied, Unavailable
from backends.guards import read_cache
from backends.guards.cache_directory import CacheDirectory, Filling
from backends.guards.read_cache import CacheOptions, ReadCache
from backends.memory import MemoryBackend, MemoryOptions
from backends.testing.material import put, some_bytes
from tests.support.failpoints import known
from tests.support.troubled import Troubled

BUDGET = 10 * CHUNK_SIZE


@pytest.fixture
async def store() -> Troubled:
    return await Troubled.empty()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


@asynccontextmanager
async def caching(store: Troubled, directory: Path, budget: int = BUDGET) -> AsyncIterator[ReadCache]:
    cache = await ReadCache.connect(store, CacheOptions(directory=directory, budget=budget))
    try:
        yield cache
        assert_books_balance(cache, directory)
    finally:
        await cache.aclose()


@pytest.fixture
async def cache(store: Troubled, directory: Path) -> AsyncIterator[ReadCache]:
    async with caching(store, directory) as cache:
        yield cache


async def read(cache: ReadCache, key: str) -> bytes:
    async with cache.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def assert_books_balance(cache: ReadCache, directory: Path) -> None:
    """Nobody uses anything, and what the cache believes to hold is what lies there."""
    assert not any(entry.users for entry in cache._entries.values())
    held = [path.stat().st_size for path in files(directory / "0")]
    assert not list(directory.rglob("*.part"))
    assert cache._used == sum(held) <= cache._budget
    assert len(held) == len(cache._entries)


async def test_what_was_read_once_is_not_read_again(cache: ReadCache, store: Troubled) -> None:
    data = some_bytes(3 * CHUNK_SIZE + 5)
    await put(store, "k", data)
    for _ in range(3):
        assert await read(cache, "k") == data
    assert store.calls["open"] == 1


async def test_other_content_under_the_key_is_seen_at_once(cache: ReadCache, store: Troubled) -> None:
    for content in (b"first", b"other", b"longer than both", b""):
        await store.delete("k")
        await put(store, "k", content)
        assert await read(cache, "k") == content
        assert await read(cache, "k") == content
    await store.delete("k")
    with pytest.raises(NotFound):
        await read(cache, "k")


async def test_case_101_objects_without_bytes_do_not_pile_up(
    store: Troubled, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost nothing of the budget."""
    monkeypatch.setattr(read_cache, "_MOST", 3)
    async with caching(store, directory) as cache:
        for number in range(10):
            await put(store, f"k{number}", b"" if number % 2 else b"x")
            await read(cache, f"k{number}")
            assert len(cache._entries) <= 3
        opened = store.calls["open"]
        await read(cache, "k9")
        assert store.calls["open"] == opened, "the newest ones are kept"
    monkeypatch.setattr(read_cache, "_MOST", 2)
    async with caching(store, directory) as cache:
        assert len(cache._entries) <= 2, "also of those that an earlier process left"


async def test_readers_at_once_read_the_store_once(cache: ReadCache, store: Troubled) -> None:
    data = some_bytes(2 * CHUNK_SIZE)
    await put(store, "k", data)
    assert await asyncio.gather(*(read(cache, "k") for _ in range(10))) == [data] * 10
    assert store.calls["open"] == 1


async def test_a_failed_fill_is_its_readers_failure_only(cache: ReadCache, store: Troubled) -> None:
    await put(store, "k", b"data")
    store.break_after = 0
    store.trouble.append(Unavailable("once"))
    outcomes = await asyncio.gather(*(read(cache, "k") for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, bytes, bytes]
    assert store.calls["open"] == 2


async def test_the_longest_unused_goes_first(cache: ReadCache, store: Troubled) -> None:
    for key in "abcde":
        await put(store, key, some_bytes(2 * CHUNK_SIZE, ord(key)))
        await read(cache, key)
    await read(cache, "a")
    await put(store, "new", some_bytes(3 * CHUNK_SIZE))
    await read(cache, "new")
    store.calls.clear()
    for key in ("a", "d", "e", "new"):
        await read(cache, key)
    assert store.calls["open"] == 0
    await read(cache, "b")
    await read(cache, "c")
    assert store.calls["open"] == 2


async def test_what_exceeds_the_budget_passes_by(cache: ReadCache, store: Troubled, directory: Path) -> None:
    await put(store, "small", b"x")
    await read(cache, "small")
    await put(store, "huge", some_bytes(BUDGET + 1))
    assert await read(cache, "huge") == some_bytes(BUDGET + 1)
    assert [path.stat().st_size for path in files(directory)] == [1]


async def test_what_is_in_use_is_neither_dropped_nor_exceeded(
    cache: ReadCache, store: Troubled, directory: Path
) -> None:
    data = some_bytes(6 * CHUNK_SIZE)
    await put(store, "used", data)
    await put(store, "other", some_bytes(6 * CHUNK_SIZE, 2))
    async with cache.open("used") as chunks:
        first = await anext(chunks)
        assert await read(cache, "other") == some_bytes(6 * CHUNK_SIZE, 2)
        assert len(files(directory)) == 1
        # Dropped, but its bytes are still on the disk.
        await cache.delete("used")
        assert files(directory) == []
        await read(cache, "other")
        assert files(directory) == []
        assert first + b"".join([chunk async for chunk in chunks]) == data
    await read(cache, "other")
    assert len(files(directory)) == 1


@pytest.mark.parametrize("how", ["delete", "write"])
async def test_a_change_through_the_cache_drops_the_entry(
    cache: ReadCache, store: Troubled, directory: Path, how: str
) -> None:
    await put(store, "k", b"data")
    await read(cache, "k")
    assert len(files(directory)) == 1
    if how == "delete":
        assert await cache.delete("k")
    else:
        await put(cache, "k", b"data")
    assert files(directory) == []


async def test_an_object_that_changes_while_it_is_fetched_is_not_kept(
    cache: ReadCache, store: Troubled, directory: Path
) -> None:
    await put(store, "k", b"data")
    told = await store.stat("k")

    class Lagging(Troubled):
        """Tells of the object before the change, at first."""

        async def stat(self, key: str) -> ObjectStat | None:
            self.calls["stat"] += 1
            return told if self.calls["stat"] == 1 else await self.inner.stat(key)

    for content in (b"tada", b"longer than before", b"x"):
        await store.delete("k")
        await put(store, "k", content)
        cache.inner = Lagging(store)
        assert await read(cache, "k") == content
        assert files(directory) == []
    cache.inner = store


async def test_a_new_process_finds_what_the_last_one_left(store: Troubled, directory: Path) -> None:
    async with caching(store, directory) as cache:
        for key in "abc":
            await put(store, key, some_bytes(3 * CHUNK_SIZE, ord(key)))
            await read(cache, key)
        await read(cache, "a")
    store.calls.clear()
    async with caching(store, directory) as cache:
        for key in "abc":
            assert await read(cache, key) == some_bytes(3 * CHUNK_SIZE, ord(key))
    assert store.calls["open"] == 0
    async with caching(store, directory, budget=3 * CHUNK_SIZE) as cache:
        await read(cache, "c")
        assert store.calls["open"] == 0, "the last one used is the one that is kept"


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove", "link", "lock away"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_damaged_file_is_a_miss(
    store: Troubled, directory: Path, damage: str, *, restarted: bool
) -> None:
    data = some_bytes(2 * CHUNK_SIZE)
    await put(store, "k", data)
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(caching(store, directory))
        await read(cache, "k")
        if restarted:
            await stack.aclose()
        (file,) = files(directory)
        whole = file.read_bytes()
        if damage == "flip":
            file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif damage == "cut":
            file.write_bytes(whole[:-1])
        elif damage == "grow":
            file.write_bytes(whole + b"x")
        else:
            file.unlink()
            if damage == "link":
                file.symlink_to(__file__)
            elif damage == "lock away":
                file.mkdir()
        if restarted:
            cache = await stack.enter_async_context(caching(store, directory))
        assert await read(cache, "k") == data
        assert store.calls["open"] == 2
        if damage == "lock away":
            # Not ours to remove, and no file any more.
            file.rmdir()
        assert await read(cache, "k") == data


async def test_the_files_are_private(cache: ReadCache, store: Troubled, directory: Path) -> None:
    await put(store, "k", b"secret")
    await read(cache, "k")
    modes = {path.stat().st_mode & 0o777 for path in [directory, directory / "0"]}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in files(directory)} == {0o600}
    assert "k" not in files(directory)[0].name.split(".")


async def test_a_slot_that_was_open_to_others_is_closed(store: Troubled, directory: Path) -> None:
    (directory / "0").mkdir(parents=True, mode=0o777)
    async with caching(store, directory):
        assert (directory / "0").stat().st_mode & 0o777 == 0o700


async def test_caches_at_once_have_slots_of_their_own(
    cache: ReadCache, store: Troubled, directory: Path
) -> None:
    await put(store, "k", b"data")
    other = await ReadCache.connect(store, CacheOptions(directory=directory, budget=BUDGET))
    assert await read(cache, "k") == await read(other, "k") == b"data"
    assert [path.parent.name for path in files(directory)] == ["0", "1"]
    await other._close()


async def test_a_slot_of_another_store_is_no_hit(store: Troubled, directory: Path) -> None:
    await put(store, "k", b"data")
    async with caching(store, directory) as cache:
        await read(cache, "k")
    other = Troubled(await MemoryBackend.connect(MemoryOptions(name="other")))
    await put(other, "k", b"data")
    async with caching(other, directory) as cache:
        await read(cache, "k")
    assert other.calls["open"] == 1


async def test_a_directory_that_cannot_be_used_is_told_at_the_start(store: Troubled, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(Unavailable, match=r"file.*or no cache"):
        await ReadCache.connect(store, CacheOptions(directory=blocked, budget=1))
    (tmp_path / "0").symlink_to(tmp_path)
    with pytest.raises(Unavailable, match="or no cache"):
        await ReadCache.connect(store, CacheOptions(directory=tmp_path, budget=1))


async def test_a_refused_directory_is_told_as_such(
    store: Troubled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: CacheDirectory) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(CacheDirectory, "claim", refused)
    with pytest.raises(PermissionDenied, match="or no cache"):
        await ReadCache.connect(store, CacheOptions(directory=tmp_path, budget=1))


async def test_case_57_a_full_cache_disk_is_no_failure(
    cache: ReadCache, store: Troubled, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Filling, __: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = some_bytes(2 * CHUNK_SIZE)
    await put(store, "k", data)
    with monkeypatch.context() as patched:
        patched.setattr(Filling, "write", full)
        assert await read(cache, "k") == data
    assert files(directory) == []
    assert await read(cache, "k") == data
    assert len(files(directory)) == 1


async def test_cancelled_at_any_turn_nothing_is_left(
    cache: ReadCache, store: Troubled, directory: Path
) -> None:
    data = some_bytes(2 * CHUNK_SIZE)
    for turns in range(40):
        key = f"k{turns % 4}"
        await store.write(key, _once(data), Attributes())
        task = asyncio.create_task(read(cache, key))
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 2 else 0.0005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert_books_balance(cache, directory)
        await cache.delete(key)
        assert_books_balance(cache, directory)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_closed_cache_says_so(store: Troubled, directory: Path) -> None:
    await put(store, "k", b"data")
    async with caching(store, directory) as cache:
        pass
    await cache.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await read(cache, "k")


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from backends.base import Attributes, single
from backends.guards.read_cache import CacheOptions, ReadCache
from backends.memory import MemoryBackend, MemoryOptions

async def main():
    store = await MemoryBackend.connect(MemoryOptions())
    cache = await ReadCache.connect(store, CacheOptions(directory=Path(sys.argv[1]), budget=100))
    for number in range(4):
        await store.write(f"k{number}", single(str(number).encode() * 40), Attributes())
        async with cache.open(f"k{number}") as chunks:
            async for _ in chunks:
                pass

passed = 0
def hook(event, args):
    global passed
    if event == "transload.failpoint" and args[0] == sys.argv[2]:
        passed += 1
        if passed == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
asyncio.run(main())
"""


@pytest.mark.parametrize("name", known("backends/guards/*cache*.py"))
async def test_killed_anywhere_the_next_one_serves_the_truth(
    store: Troubled, directory: Path, name: str
) -> None:
    times = "1" if name.startswith(("cache.root", "cache.slot")) else "2"
    command = [sys.executable, "-c", CHILD, str(directory), name, times]
    child = await asyncio.to_thread(
        subprocess.run, command, cwd=Path(__file__).parents[2], check=False, timeout=60
    )
    assert child.returncode == -signal.SIGKILL
    for number in range(4):
        await put(store, f"k{number}", str(number).encode() * 40)
    async with caching(store, directory, budget=100) as cache:
        assert_books_balance(cache, directory)
        for number in range(4):
            assert await read(cache, f"k{number}") == str(number).encode() * 40


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "read", "two", "replace", "behind", "restart"]),
            st.sampled_from("abcd"),
            st.integers(0, 60),
        ),
        max_size=25,
    )
)
def test_it_serves_what_the_store_has_within_its_budget(steps: list[tuple[str, str, int]]) -> None:
    async def run(directory: Path) -> None:
        store = await Troubled.empty()
        truth: dict[str, bytes] = {}
        cache = await ReadCache.connect(store, CacheOptions(directory=directory, budget=100))
        for what, key, size in steps:
            if what == "restart":
                await cache.aclose()
                cache = await ReadCache.connect(store, CacheOptions(directory=directory, budget=100))
            elif what in {"replace", "behind"}:
                writer = cache if what == "replace" else store
                await writer.delete(key)
                truth[key] = some_bytes(size, size)
                await put(writer, key, truth[key])
            elif key in truth:
                outcomes = await asyncio.gather(*(read(cache, key) for _ in range(1 + (what == "two"))))
                assert set(outcomes) == {truth[key]}
            else:
                with pytest.raises(NotFound):
                    await read(cache, key)
            assert_books_balance(cache, directory)
        await cache.aclose()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


async def test_the_disk_never_holds_more_than_the_budget(
    cache: ReadCache, store: Troubled, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    write = Filling.write

    def watched(self: Filling, chunk: bytes) -> None:
        write(self, chunk)
        held.append(sum(_size(path) for path in files(directory)))

    monkeypatch.setattr(Filling, "write", watched)
    for number in range(12):
        await put(store, str(number), some_bytes((1 + number % 3) * CHUNK_SIZE, number))
    rounds = [str(number * 5 % 12) for number in range(36)]
    await asyncio.gather(*(read(cache, key) for key in rounds))
    assert 0 < max(held) <= BUDGET


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
