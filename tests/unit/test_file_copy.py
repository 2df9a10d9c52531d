"""Copies from directory to directory: by the kernel, read again, and given their name like any other write."""

import asyncio
import errno
import fcntl
import hashlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends import file_copy
from backends.base import CHUNK_SIZE, Attributes, Promise, Receipt, single
from backends.errors import Conflict, IntegrityError, InvalidKey, NotFound, Unavailable, Unsupported
from backends.file import FileBackend, FileOptions
from tests.support.programs import begin

NOTHING = Attributes()
DATA = os.urandom(3 * CHUNK_SIZE + 7)

COPIER = """
import asyncio, os, signal, sys
from pathlib import Path
from backends.base import Attributes, Promise
from backends.file import FileBackend, FileOptions

async def main():
    backend = await FileBackend.connect(FileOptions(root=Path(sys.argv[1])))
    backend._tree._has_unnamed = sys.argv[2] == "unnamed"
    await backend.copy_from(backend, "source", "copy", Attributes(), Promise())

def kill(event, arguments):
    if event == "transload.failpoint" and arguments[0] == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
asyncio.run(main())
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FileBackend]:
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "root"))
    await backend.write("source", single(DATA), NOTHING)
    yield backend
    await backend.aclose()


async def copied(
    target: FileBackend, source: FileBackend | None = None, sha256: str | None = None
) -> Receipt:
    return await target.copy_from(source or target, "source", "copy", NOTHING, Promise(sha256=sha256))


async def keys(backend: FileBackend) -> list[str]:
    return [stat.key async for stat in backend.list()]


async def assert_untouched(backend: FileBackend) -> None:
    assert await keys(backend) == ["source"]
    assert await backend.sweep(0.0) == 0


async def test_a_copy_from_another_directory_is_a_file_of_its_own(
    backend: FileBackend, tmp_path: Path
) -> None:
    other = await FileBackend.connect(FileOptions(root=tmp_path / "other"))
    receipt = await copied(other, backend)
    assert (receipt.size, receipt.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    copy, source = tmp_path / "other/copy", tmp_path / "root/source"
    assert copy.read_bytes() == DATA
    assert copy.stat().st_ino != source.stat().st_ino
    await other.aclose()


async def test_no_byte_of_a_copy_is_written_by_this_process(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_file: int, data: memoryview) -> int:
        pytest.fail(f"{len(data)} bytes were written")

    monkeypatch.setattr(os, "write", refused)
    assert (await copied(backend)).created


async def test_where_blocks_can_be_shared_nothing_else_is_done(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def shared(file: int, request: int, source: int) -> None:
        asked.append(request)
        os.sendfile(file, source, 0, len(DATA))

    def refused(*_: object) -> int:
        pytest.fail("it was copied after all")

    monkeypatch.setattr(fcntl, "ioctl", shared)
    monkeypatch.setattr(os, "copy_file_range", refused)
    assert (await copied(backend)).sha256 == hashlib.sha256(DATA).hexdigest()
    assert asked == [0x40049409]


async def test_what_was_written_is_read_again(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupting(_source: int, target: int, count: int) -> int:
        return os.write(target, bytes(count))

    monkeypatch.setattr(os, "copy_file_range", corrupting)
    monkeypatch.setattr(fcntl, "ioctl", cannot)
    with pytest.raises(IntegrityError, match="SHA-256"):
        await copied(backend, sha256=hashlib.sha256(DATA).hexdigest())
    await assert_untouched(backend)


def cannot(*_: object) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("named", [True, False])
async def test_a_file_system_that_cannot_copy_leaves_it_to_a_stream(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    backend._tree._has_unnamed = not named
    monkeypatch.setattr(fcntl, "ioctl", cannot)
    monkeypatch.setattr(os, "copy_file_range", cannot)
    with pytest.raises(Unsupported, match="cannot copy by itself"):
        await copied(backend)
    await assert_untouched(backend)


async def test_case_59_another_file_system_is_another_store(backend: FileBackend) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        other = await FileBackend.connect(FileOptions(root=Path(folder)))
        with pytest.raises(Unsupported, match="another file system"):
            await copied(other, backend)
        assert await keys(other) == []
        await other.aclose()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_cases_57_and_58_a_copy_that_does_not_fit_leaves_nothing(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.copy_file_range

    def filling(source: int, target: int, count: int) -> int:
        if os.fstat(target).st_size:
            raise OSError(code, os.strerror(code))
        return real(source, target, count // 2)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", cannot)
        patch.setattr(os, "copy_file_range", filling)
        with pytest.raises(Unavailable, match=os.strerror(code)):
            await copied(backend)
    await assert_untouched(backend)
    assert (await copied(backend)).created


@pytest.mark.parametrize("change", ["longer", "same length", "shorter"])
async def test_case_68_a_source_that_changes_meanwhile_fails_the_copy(
    backend: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    real = os.copy_file_range
    path = tmp_path / "root/source"

    def changing(source: int, target: int, count: int) -> int:
        if change == "shorter":
            os.truncate(path, 10)
        done = real(source, target, min(count, CHUNK_SIZE))
        if change == "longer":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "same length":
            with path.open("r+b") as file:
                file.write(b"other")
            os.utime(path, ns=(1, 1))
        return done

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", cannot)
        patch.setattr(os, "copy_file_range", changing)
        with pytest.raises(Unavailable, match=r"changed while|cut short"):
            await copied(backend)
    await assert_untouched(backend)


async def test_case_60_a_copy_never_replaces(backend: FileBackend) -> None:
    await backend.write("copy", single(DATA[::-1]), NOTHING)
    with pytest.raises(Conflict):
        await copied(backend)
    async with backend.open("copy") as chunks:
        assert b"".join([chunk async for chunk in chunks]) == DATA[::-1]


async def test_case_95_a_copy_follows_no_link(backend: FileBackend, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root/link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidKey):
        await backend.copy_from(backend, "link", "copy", NOTHING, Promise())
    await backend.delete("source")
    (tmp_path / "root/folder").mkdir()
    with pytest.raises(NotFound):
        await backend.copy_from(backend, "folder", "copy", NOTHING, Promise())


async def test_i5_a_cancelled_copy_leaves_nothing(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = os.copy_file_range
    copied_bytes = 0

    def slowly(source: int, target: int, count: int) -> int:
        nonlocal copied_bytes
        loop.call_soon_threadsafe(begun.set)
        copied_bytes += real(source, target, min(count, 1))
        return 1

    monkeypatch.setattr(fcntl, "ioctl", cannot)
    monkeypatch.setattr(os, "copy_file_range", slowly)
    task = asyncio.create_task(copied(backend))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert copied_bytes < len(DATA)
    await assert_untouched(backend)


@pytest.mark.parametrize(
    ("kind", "failpoint", "left", "swept"),
    [
        ("unnamed", "file.copy.before", ["source"], 0),
        ("unnamed", "file.copy.after", ["source"], 0),
        ("named", "file.copy.after", ["source"], 1),
        ("unnamed", "file.link.after", ["copy", "source"], 0),
    ],
)
async def test_what_a_killed_copy_leaves_is_swept(
    backend: FileBackend, tmp_path: Path, kind: str, failpoint: str, left: list[str], swept: int
) -> None:
    child = await begin("-c", COPIER, str(tmp_path / "root"), kind, failpoint)
    async with asyncio.timeout(30):
        assert await child.wait() == -signal.SIGKILL
    assert (await keys(backend), await backend.sweep(0.0)) == (left, swept)
    assert (await copied(backend)).created is ("copy" not in left)


async def test_a_large_copy_is_made_in_several_calls(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_copy, "_AT_ONCE", CHUNK_SIZE)
    monkeypatch.setattr(fcntl, "ioctl", cannot)
    assert (await copied(backend, sha256=hashlib.sha256(DATA).hexdigest())).size == len(DATA)
