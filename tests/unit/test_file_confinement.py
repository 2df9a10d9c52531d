"""Case 95, where somebody changes staging or a target while it is used: nothing outside is read, written or opened."""

import asyncio
import ctypes
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from backends.base import CHUNK_SIZE, Attributes, Promise, single
from backends.errors import InvalidKey, NotFound, StorageError
from backends.file import FileBackend, FileOptions
from backends.file_tree import Tree

NOTHING = Attributes()
SECRET = b"secret"
ROUNDS = 150

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""https://man7.org/linux/man-pages/man2/rename.2.html"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "d").mkdir(parents=True)
    (tmp_path / "root" / "d" / "k").write_bytes(b"staged")
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "k").write_bytes(SECRET)
    return tmp_path / "outside"


@pytest.fixture
async def backend(root: Path) -> AsyncIterator[FileBackend]:
    backend = await FileBackend.connect(FileOptions(root=root))
    yield backend
    await backend.aclose()


async def read(backend: FileBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def swapping(directory: Path, outside: Path) -> Iterator[None]:
    """Meanwhile `directory` is itself and a link to `outside` by turns, as fast as it can be done."""
    link = directory.with_name("link")
    link.symlink_to(outside)
    stop = threading.Event()
    names = os.fsencode(directory), os.fsencode(link)
    libc = ctypes.CDLL(None, use_errno=True)

    def swap() -> None:
        # Now and then it rests, on either side.
        while not stop.wait(0.0002):
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
                raise OSError(ctypes.get_errno(), "renameat2")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def test_case_95_a_directory_swapped_for_a_link_gives_nothing_away(
    backend: FileBackend, root: Path, outside: Path
) -> None:
    staged = refused = 0
    with swapping(root / "d", outside):
        while staged + refused < ROUNDS or not (staged and refused):
            try:
                assert await read(backend, "d/k") == b"staged"
                staged += 1
            except (InvalidKey, NotFound):
                refused += 1


async def test_case_95_a_directory_swapped_for_a_link_takes_nothing_outside(
    backend: FileBackend, root: Path, outside: Path
) -> None:
    written = refused = number = 0
    with swapping(root / "d", outside):
        while number < ROUNDS or not (written and refused):
            number += 1
            try:
                await backend.write(f"d/{number}", single(b"x"), NOTHING)
                written += 1
            except StorageError:
                refused += 1
            try:
                await backend.delete("d/k")
            except StorageError:
                refused += 1
    assert names_in(outside) == ["k"]
    assert (outside / "k").read_bytes() == SECRET


async def test_case_95_what_was_looked_at_is_what_is_read(
    backend: FileBackend, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap comes exactly between the look and the reading."""
    look = Tree._open

    def then_swap(self: Tree, path: str, flags: int) -> int:
        descriptor = look(self, path, flags)
        if path == "d/k":
            (root / "d").rename(root / "aside")
            (root / "d").symlink_to(outside)
        return descriptor

    monkeypatch.setattr(Tree, "_open", then_swap)
    assert await read(backend, "d/k") == b"staged"
    monkeypatch.undo()
    with pytest.raises(InvalidKey):
        await read(backend, "d/k")


def opened() -> Iterator[str]:
    """What this process has open, by name; a file without one is called after its directory."""
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the whole list at once
        with suppress(FileNotFoundError):
            yield str(Path("/proc/self/fd", entry).readlink())


async def test_case_95_a_link_planted_while_a_write_is_under_way_leads_nowhere(
    backend: FileBackend, root: Path, outside: Path
) -> None:
    async def planting() -> AsyncIterator[bytes]:
        yield bytes(2 * CHUNK_SIZE)
        yield bytes(2 * CHUNK_SIZE)
        async with asyncio.timeout(10):
            while not any(name.startswith(f"{root}/d/") for name in opened()):  # noqa: ASYNC110 - a file's opening is no event
                await asyncio.sleep(0.01)
        (root / "d").rename(root / "aside")
        (root / "d").symlink_to(outside)
        yield b"end"

    receipt = await backend.write("d/new", planting(), NOTHING)
    assert names_in(outside) == ["k"]
    # It lies in the directory that was opened, wherever that is by now.
    assert (root / "aside" / "new").stat().st_size == receipt.size


async def test_case_95_a_copy_follows_no_link_on_either_side(
    backend: FileBackend, root: Path, outside: Path
) -> None:
    (root / "away").symlink_to(outside)
    (root / "leaf").symlink_to(outside / "k")
    for source, key in (("away/k", "new"), ("leaf", "new"), ("d/k", "away/new"), ("d/k", "leaf")):
        with pytest.raises(InvalidKey):
            await backend.copy_from(backend, source, key, NOTHING, Promise())
    assert names_in(outside) == ["k"]
    assert not (root / "new").exists()


async def test_case_95_a_root_that_is_a_link_is_as_safe(root: Path, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("root")
    (root / "away").symlink_to(outside)
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "link"))
    try:
        assert await read(backend, "d/k") == b"staged"
        with pytest.raises(InvalidKey):
            await read(backend, "away/k")
        with pytest.raises(InvalidKey):
            await backend.write("away/new", single(b"x"), NOTHING)
    finally:
        await backend.aclose()
    assert names_in(outside) == ["k"]


async def test_case_95_what_is_no_file_is_never_opened(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open a device may do something, to open a FIFO may wait for ever; finding out what it is does neither."""
    os.mkfifo(root / "fifo")
    (root / "dev").symlink_to("/dev")
    (root / "proc").symlink_to("/proc/self")
    opened: list[tuple[str, int]] = []
    real = os.open

    def watched(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append((path, flags))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", watched)
    async with asyncio.timeout(20):
        for key in ("fifo", "dev/null", "dev/tty", "proc/environ", "proc/root/etc/passwd", "proc/fd/0"):
            with pytest.raises((InvalidKey, NotFound)):
                await read(backend, key)
            assert all(flags & os.O_PATH for path, flags in opened if path.endswith(key)), key
    assert opened


async def test_case_95_a_socket_is_no_payload(backend: FileBackend, root: Path) -> None:
    server = await asyncio.start_unix_server(lambda *_: None, root / "s")
    try:
        with pytest.raises(InvalidKey, match="not a regular file"):
            await read(backend, "s")
    finally:
        server.close()
