"""What only the file adapter promises: confinement, durability, and what a dead process leaves."""

import asyncio
import errno
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydantic import ValidationError

from backends.base import CHUNK_SIZE, Attributes, BackendOptions, Receipt, single
from backends.errors import (
    Conflict,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
)
from backends.file import FileBackend, FileOptions, _translate
from backends.file_tree import _NO_UNNAMED, is_temporary
from tests.support.programs import begin

NOTHING = Attributes()
BIG = bytes(3 * CHUNK_SIZE)

WRITER = """
import asyncio, sys
from pathlib import Path
from backends.base import CHUNK_SIZE, Attributes
from backends.file import FileBackend, FileOptions

async def endless():
    for _ in range(3):
        yield bytes(CHUNK_SIZE)
    print("half way", flush=True)
    await asyncio.Event().wait()

async def main():
    backend = await FileBackend.connect(FileOptions(root=Path(sys.argv[1])))
    backend._tree._has_unnamed = sys.argv[2] == "unnamed"
    await backend.write("dir/k", endless(), Attributes())

asyncio.run(main())
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "not yet" / "root"


@pytest.fixture
async def backend(root: Path) -> AsyncIterator[FileBackend]:
    backend = await FileBackend.connect(FileOptions(root=root))
    yield backend
    await backend.aclose()


@pytest.fixture
def named(backend: FileBackend) -> FileBackend:
    """As on a file system without O_TMPFILE: temporary files have names."""
    backend._tree._has_unnamed = False
    return backend


async def sliced(data: bytes) -> AsyncIterator[bytes]:
    """In pieces of `CHUNK_SIZE`: more than one is a write with a thread of its own, not one of many in a batch."""
    for at in range(0, len(data) or 1, CHUNK_SIZE):
        yield data[at : at + CHUNK_SIZE]


async def put(backend: FileBackend, key: str, data: bytes = b"x") -> Receipt:
    return await backend.write(key, sliced(data), NOTHING)


async def read(backend: FileBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def keys(backend: FileBackend) -> list[str]:
    return [found.key async for found in backend.list()]


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def allow(directory: Path, mode: int) -> None:
    directory.chmod(mode)


def vanish(directory: Path) -> None:
    directory.rmdir()


@contextmanager
def unprivileged() -> Iterator[None]:
    """For root, who is denied nothing: be somebody else."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    before, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (before, hard))


async def test_connect_creates_the_root_and_location_is_quoted(tmp_path: Path) -> None:
    root = tmp_path / "a b" / "100% ü"
    backend = await FileBackend.connect(FileOptions(root=root))
    assert root.is_dir()
    assert "a%20b/100%25%20%C3%BC/" in backend.location
    assert unquote(backend.location) == f"file://{root}/"
    await backend.aclose()


async def test_connect_says_when_the_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotFound, match="not a directory"):
            await FileBackend.connect(FileOptions(root=root))


async def test_connect_takes_its_own_options_only(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        await FileBackend.connect(BackendOptions())
    with pytest.raises(ValidationError):
        FileOptions(root=tmp_path, threads=0)


async def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to("volume")
    backend = await FileBackend.connect(FileOptions(root=tmp_path / "link"))
    await put(backend, "d/k")
    assert await read(backend, "d/k") == b"x"
    assert (tmp_path / "volume/d/k").read_bytes() == b"x"
    await backend.aclose()


async def test_case_95_a_linked_directory_leads_nowhere(
    backend: FileBackend, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "away").symlink_to(outside)
    (root / "inside").mkdir()
    (root / "inside" / "there").write_bytes(b"")
    (root / "around").symlink_to("inside")
    for key in ("away/new", "away/new/deep/er", "away/secret", "around/there", "around/new"):
        with pytest.raises(InvalidKey):
            await put(backend, key, b"secret")
    for key in ("away/secret", "around/there"):
        with pytest.raises(InvalidKey):
            await read(backend, key)
        with pytest.raises(InvalidKey):
            await backend.stat(key)
        with pytest.raises(InvalidKey):
            await backend.delete(key)
    assert await keys(backend) == ["inside/there"]
    assert [found.key async for found in backend.list("away/")] == []
    assert await backend.sweep(0.0) == 0
    assert files_below(outside) == ["secret"]
    assert files_below(root / "inside") == ["there"]


async def test_case_95_a_linked_leaf_is_no_object(backend: FileBackend, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "leaf").symlink_to(tmp_path / "secret")
    (root / "dangling").symlink_to(tmp_path / "new")
    for key in ("leaf", "dangling"):
        for call in (
            put(backend, key, b"secret"),
            read(backend, key),
            backend.stat(key),
            backend.delete(key),
        ):
            with pytest.raises(InvalidKey):
                await call
    assert await keys(backend) == []
    assert files_below(root) == ["dangling", "leaf"]
    assert not (tmp_path / "new").exists()


async def test_a_fifo_is_refused_at_once(backend: FileBackend, root: Path) -> None:
    os.mkfifo(root / "fifo")
    for call in (read(backend, "fifo"), put(backend, "fifo"), backend.stat("fifo")):
        with pytest.raises(InvalidKey):
            await call
    assert await keys(backend) == []


async def test_a_file_where_a_directory_is_needed(backend: FileBackend, root: Path) -> None:
    await put(backend, "a", b"file")
    await put(backend, "d/k", b"file")
    for key in ("a/b", "a/b/c", "d"):
        with pytest.raises(InvalidKey):
            await put(backend, key)
        with pytest.raises(NotFound):
            await read(backend, key)
        assert await backend.stat(key) is None
        assert await backend.delete(key) is False
    assert files_below(root) == ["a", "d/k"]


async def test_case_59_a_segment_longer_than_the_file_system_takes(backend: FileBackend, root: Path) -> None:
    for key in ("n" * 256, "d/" + "n" * 256, "n" * 256 + "/k"):
        with pytest.raises(InvalidKey):
            await put(backend, key)
        with pytest.raises(InvalidKey):
            await read(backend, key)
    assert files_below(root) == []


async def test_files_that_no_key_names_are_not_listed(backend: FileBackend, root: Path) -> None:
    await put(backend, "k")
    (root / os.fsdecode(b"latin-\xfc")).write_bytes(b"")
    assert await keys(backend) == ["k"]
    assert [found async for found in backend.list("nul\0/")] == []
    assert [found async for found in backend.list("\ud800/")] == []


async def test_temporary_names_are_hidden_and_no_keys(backend: FileBackend, root: Path) -> None:
    name = ".transload-0123-4.part"
    (root / "d").mkdir()
    (root / "d" / name).write_bytes(b"half")
    assert await keys(backend) == []
    for call in (
        put(backend, f"d/{name}"),
        read(backend, f"d/{name}"),
        backend.stat(f"d/{name}"),
        backend.delete(f"d/{name}"),
    ):
        with pytest.raises(InvalidKey):
            await call
    assert (root / "d" / name).read_bytes() == b"half"


async def test_i6_sweep_takes_old_temporary_files_only(backend: FileBackend, root: Path) -> None:
    await put(backend, "d/k")
    old, new = root / "d" / ".transload-dead-0.part", root / ".transload-live-1.part"
    for path in (old, new, root / "d" / ".transload-not-ours", root / "other.part"):
        path.write_bytes(b"half")
    for name in files_below(root):
        if name != new.name:
            os.utime(root / name, (1_000_000, 1_000_000))
    assert await backend.sweep(3600.0) == 1
    assert files_below(root) == [".transload-live-1.part", "d/.transload-not-ours", "d/k", "other.part"]
    assert await backend.sweep(0.0) == 1
    assert not new.exists()


async def test_a_write_whose_temporary_file_is_swept_fails_and_may_be_repeated(
    named: FileBackend, root: Path
) -> None:
    async def swept_away() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(CHUNK_SIZE)
        (temporary,) = files_below(root)
        (root / temporary).unlink()

    with pytest.raises(Unavailable):
        await named.write("k", swept_away(), NOTHING)
    assert files_below(root) == []
    assert (await put(named, "k", BIG)).created


@pytest.mark.parametrize("code", sorted(_NO_UNNAMED), ids=errno.errorcode.get)
async def test_without_unnamed_files_there_are_named_ones(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refused: list[int] = []
    seen: list[list[str]] = []
    real = os.open

    def without(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(flags)
            raise OSError(code, os.strerror(code))
        return real(path, flags, *args, **kwargs)

    async def looking() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(CHUNK_SIZE)
        seen.append(files_below(root))

    monkeypatch.setattr(os, "open", without)
    assert (await backend.write("d/k", looking(), NOTHING)).created
    assert (await backend.write("d/l", looking(), NOTHING)).created
    assert len(refused) == 1, "asked once"
    for names in seen:
        assert [name for name in names if is_temporary(name.rpartition("/")[2])]
    assert files_below(root) == ["d/k", "d/l"]


async def test_another_error_of_an_unnamed_file_is_no_reason_to_name_it(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(Unavailable):
            await put(backend, "d/k")
    assert backend._tree._has_unnamed
    assert files_below(root) == []


@pytest.mark.parametrize(("kind", "left_behind"), [("unnamed", 0), ("named", 1)])
async def test_cases_3_and_5_a_killed_process_leaves_no_object_and_its_rest_is_swept(
    backend: FileBackend, root: Path, kind: str, left_behind: int
) -> None:
    child = await begin("-c", WRITER, str(root), kind)
    async with asyncio.timeout(30):
        assert await child.stdout.readline() == b"half way\n"
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
    left = files_below(root)
    assert len(left) == left_behind
    assert all(name.startswith("dir/.transload-") for name in left)
    assert await backend.stat("dir/k") is None
    assert await keys(backend) == []
    assert await backend.sweep(3600.0) == 0
    assert await backend.sweep(0.0) == left_behind
    assert files_below(root) == []
    assert (await put(backend, "dir/k", BIG)).created


@pytest.mark.parametrize("data", [b"small", BIG], ids=["small", "big"])
async def test_case_58_a_failed_fsync_fails_the_write_and_is_not_repeated(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    calls = 0

    def broken_disk(_: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken_disk)
        with pytest.raises(Unavailable):
            await put(backend, "d/k", data)
    assert calls == 1
    assert files_below(root) == []
    assert (await put(backend, "d/k", data)).created


@pytest.mark.parametrize("unnamed", [True, False])
async def test_what_is_synced_and_in_which_order(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    backend._tree._has_unnamed = unnamed
    synced: list[str] = []
    real = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root)))
        real(descriptor)

    async def synced_by(key: str) -> list[str]:
        synced.clear()
        await put(backend, key)
        return ["new" if name.endswith((" (deleted)", ".part")) else name for name in synced]

    monkeypatch.setattr(os, "fsync", noting)
    assert await synced_by("a/b/first") == ["new", "a/b", "a", "."]
    assert await synced_by("a/b/second") == ["new", "a/b"]
    assert await synced_by("a/c/third") == ["new", "a/c", "a"]
    # Its first writer may have died between the commit and this.
    assert await synced_by("a/b/first") == ["new", "a/b/first", "a/b"]
    assert await synced_by("top") == ["new", "."]
    synced.clear()
    assert await backend.delete("a/c/third")
    assert synced == ["a/c"]
    vanish(root / "a/c")
    assert await synced_by("a/c/third") == ["new", "a/c", "a"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Disk:
    """Notes every fsync and link as it begins and ends, by inode; `hold` makes one wait before it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int, str]] = []
        self.hold: Callable[[int], None] = lambda _: None
        self._fsync, self._link = os.fsync, os.link
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "link", self.link)

    def fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        self.events.append(("sync", inode, ""))
        self.hold(inode)
        self._fsync(descriptor)
        self.events.append(("synced", inode, ""))

    def link(self, source: str, name: str, *, dst_dir_fd: int, **how: Any) -> None:
        self._link(source, name, dst_dir_fd=dst_dir_fd, **how)
        inode = os.stat(name, dir_fd=dst_dir_fd, follow_symlinks=False).st_ino
        self.events.append(("linked", inode, name))

    def written(self, name: str) -> None:
        """Called when the write of `name` has returned: was everything on the disk by then, in order?"""
        linked = next(at for at, event in enumerate(self.events) if event[2] == name)
        self.events.append(("written", self.events[linked][1], name))

    def durable(self, name: str, directory: int) -> bool:
        linked = next(at for at, event in enumerate(self.events) if event[0] == "linked" and event[2] == name)
        inode = self.events[linked][1]
        written = self.events.index(("written", inode, name))
        began = [at for at in range(linked, written) if self.events[at] == ("sync", directory, "")]
        # fsyncs of one directory do not overlap here, so an end belongs to the beginning before it.
        ended = [at for at in range(linked, written) if self.events[at] == ("synced", directory, "")]
        content = ("synced", inode, "") in self.events[:linked]
        return content and bool(began) and any(at > began[0] for at in ended)

    def links(self) -> int:
        return sum(event[0] == "linked" for event in self.events)

    def syncs(self, inode: int) -> int:
        return self.events.count(("sync", inode, ""))


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize(("size", "most"), [(10, 4), (len(BIG), 2)], ids=["small", "big"])
async def test_i1_writers_of_one_directory_share_fsyncs_that_began_after_their_links(
    backend: FileBackend,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    unnamed: bool,
    size: int,
    most: int,
) -> None:
    """The first fsync is held up until everybody else needs one. Small writes share batches of up to 16 besides."""
    backend._tree._has_unnamed = unnamed
    await put(backend, "d/first")
    directory = (root / "d").stat().st_ino
    disk = Disk(monkeypatch)
    names = [f"k{number}" for number in range(12)]

    def all_wait() -> bool:
        return disk.links() == len(names) and (size == 10 or backend._tree._turns["d"].asked == len(names))

    async def write(name: str) -> None:
        await put(backend, f"d/{name}", name.encode().ljust(size))
        disk.written(name)

    disk.hold = lambda inode: until(all_wait) if inode == directory else None
    await asyncio.gather(*map(write, names))
    assert [name for name in names if not disk.durable(name, directory)] == []
    assert 1 <= disk.syncs(directory) <= most
    assert not backend._tree._turns


async def test_i1_one_after_the_other_each_has_its_own_fsync(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(backend, "d/first")
    directory = (root / "d").stat().st_ino
    disk = Disk(monkeypatch)
    for name in ("a", "b", "c"):
        await put(backend, f"d/{name}")
        disk.written(name)
        assert disk.durable(name, directory)
    assert disk.syncs(directory) == 3


async def test_case_58_a_failed_fsync_of_a_directory_is_shared_with_nobody(
    backend: FileBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have been good for everybody; whose it was fails, those who waited behind it ask the disk themselves."""
    await put(backend, "d/first")
    directory = (root / "d").stat().st_ino
    names = [f"k{number}" for number in range(8)]
    failed = threading.Event()

    def broken_once(inode: int) -> None:
        if inode != directory or failed.is_set():
            return
        if backend._tree._turns["d"].asked == len(names):
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        until(lambda: backend._tree._turns["d"].asked == len(names))

    async def write(name: str) -> None:
        await put(backend, f"d/{name}", BIG)
        disk.written(name)

    disk = Disk(monkeypatch)
    disk.hold = broken_once
    outcomes = await asyncio.gather(*map(write, names), return_exceptions=True)
    (broken,) = (at for at, outcome in enumerate(outcomes) if isinstance(outcome, Unavailable))
    assert outcomes.count(None) == len(names) - 1
    for name in names[:broken] + names[broken + 1 :]:
        assert disk.durable(name, directory)
    before = disk.syncs(directory)
    again = await put(backend, f"d/{names[broken]}", BIG)
    assert not again.created, "the object is there; whether for good, only now"
    assert disk.syncs(directory) == before + 1


async def test_a_file_too_large_for_the_process_leaves_nothing(backend: FileBackend, root: Path) -> None:
    with limited(resource.RLIMIT_FSIZE, CHUNK_SIZE + 1000), pytest.raises(Unavailable):
        await put(backend, "d/k", BIG)
    assert files_below(root) == []
    assert (await put(backend, "d/k", BIG)).created


async def test_case_59_out_of_descriptors_is_unavailable_and_passes(backend: FileBackend) -> None:
    await put(backend, "d/k")
    with limited(resource.RLIMIT_NOFILE, 3):
        for call in (put(backend, "d/l"), read(backend, "d/k"), backend.stat("d/k"), backend.health()):
            with pytest.raises(Unavailable):
                await call
    assert (await put(backend, "d/l")).created


async def test_no_descriptor_is_left_open(backend: FileBackend, root: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield BIG
        yield BIG
        raise ZeroDivisionError

    (root / "link").symlink_to("nowhere")
    await put(backend, "d/k")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the count matters
    await put(backend, "d/k")
    for key, kind in (("d/k", Conflict), ("link", InvalidKey), ("d/k/x", InvalidKey), ("d", InvalidKey)):
        with pytest.raises(kind):
            await put(backend, key, BIG)
    with pytest.raises(ZeroDivisionError):
        await backend.write("new/k", broken(), NOTHING)
    for key in ("d", "link/x", "none", "d/none"):
        with pytest.raises(StorageError):
            await read(backend, key)
    await put(backend, "d/big", BIG)
    async with backend.open("d/big") as chunks:
        await anext(chunks)
    await keys(backend)
    await backend.health()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - only the count matters


async def test_case_67_a_file_cut_short_while_it_is_read(backend: FileBackend, root: Path) -> None:
    await put(backend, "k", BIG)
    async with backend.open("k") as chunks:
        await anext(chunks)
        os.truncate(root / "k", CHUNK_SIZE + 1)
        await anext(chunks)
        with pytest.raises(Unavailable, match="cut short"):
            await anext(chunks)


async def test_a_vanished_root_is_not_made_again(backend: FileBackend, root: Path) -> None:
    vanish(root)
    for call in (
        put(backend, "k"),
        put(backend, "d/k"),
        read(backend, "k"),
        backend.stat("k"),
        backend.health(),
    ):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(Unavailable):
        await keys(backend)
    assert files_below(root.parent) == []
    assert not list(os.scandir(root.parent))


async def test_case_59_what_the_system_denies_is_denied() -> None:
    # Not tmp_path: only its owner may pass through that.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        allow(root, 0o755)
        backend = await FileBackend.connect(FileOptions(root=root))
        await put(backend, "closed")
        (root / "closed").chmod(0)
        allow(root, 0o555)
        with unprivileged():
            for call in (put(backend, "k"), put(backend, "d/k"), read(backend, "closed"), backend.health()):
                with pytest.raises(PermissionDenied):
                    await call
            with pytest.raises(PermissionDenied):
                await backend.delete("closed")
        allow(root, 0o755)
        assert files_below(root) == ["closed"]
        await backend.aclose()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EIO, Unavailable),
        (errno.EROFS, Unavailable),
        (errno.EMFILE, Unavailable),
        (errno.ESTALE, Unavailable),
        (errno.EACCES, PermissionDenied),
        (errno.EPERM, PermissionDenied),
        (errno.ENAMETOOLONG, InvalidKey),
        (errno.ENOTDIR, InvalidKey),
        (errno.EISDIR, InvalidKey),
        (errno.ELOOP, InvalidKey),
        (errno.ENOENT, NotFound),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else value.__name__,
)
def test_cases_57_to_59_every_error_of_the_system_has_a_meaning(code: int, kind: type[StorageError]) -> None:
    error = _translate(OSError(code, os.strerror(code)), "file:///srv/: 'k'", NotFound)
    assert type(error) is kind
    assert str(error) == f"file:///srv/: 'k': {os.strerror(code)}"


async def test_a_closed_backend_is_unavailable(backend: FileBackend) -> None:
    await backend.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await put(backend, "k")


async def test_cancelled_while_all_threads_are_busy(root: Path) -> None:
    backend = await FileBackend.connect(FileOptions(root=root, threads=1))
    fifo = root.parent / "gate"
    os.mkfifo(fifo)
    busy = asyncio.wrap_future(backend._submit(fifo.read_bytes))
    writing = asyncio.create_task(put(backend, "k"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    fifo.write_bytes(b"go")
    assert await busy == b"go"
    assert files_below(root) == []
    assert (await put(backend, "k")).created
    await backend.aclose()


async def test_a_closed_backend_refuses_every_write(root: Path) -> None:
    backend = await FileBackend.connect(FileOptions(root=root))
    await backend.aclose()
    for number in range(8):
        with pytest.raises(Unavailable):
            async with asyncio.timeout(5):
                await backend.write(f"after/{number}", single(b"late"), Attributes())
