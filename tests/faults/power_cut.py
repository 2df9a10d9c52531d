"""Case 17: what a power cut leaves of a worker's disk, made from the record of everything the worker asked of it.

strace writes down every call that changes a file, with its bytes; `cuts` replays them on a model of a disk
that keeps the least it may: the bytes of a file as its last fsync found them, and a name only since the last fsync of its
directory. For every moment of interest it gives the files that are there after the cut, and a worker can be started on them.

Nothing but fsync and fdatasync makes anything durable here, so a missing or late one shows, whatever this machine's file
system would have forgiven. Not modelled: half-written sectors, and a disk that lies about a flush.
"""

import asyncio
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.faults.worlds import Load, Place, check
from tests.support.history import Report
from tests.support.strace import Traced

Value = TypeVar("Value")

_CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,splice,fallocate,truncate,ftruncate,"
    "fsync,fdatasync,link,linkat,symlink,symlinkat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir"
)
_HEX = r"(?:\\x[0-9a-f]{2})*"
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)(?:<(?P<made>[^>]*)>)?")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
_PLACE = re.compile(rf"(?:AT_FDCWD|(?P<number>\d+))<(?P<path>{_HEX})>")
_TEXT = re.compile(rf'"(?P<text>{_HEX})"')
_SYNCS = ("fsync", "fdatasync")


def recording(log: Path) -> tuple[str, ...]:
    """strace's options for such a record."""
    return ("-y", "-xx", "-s", str(64 << 20), "-o", str(log), "-e", f"trace={_CALLS}")


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left when the power goes off while the worker waits for `during`."""

    during: str
    files: Mapping[Path, bytes]
    directories: frozenset[Path]

    def restore(self) -> None:
        """Put it onto the disk, where nothing is."""
        for directory in sorted(self.directories):
            directory.mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            path.write_bytes(data)


@dataclass(slots=True)
class _File:
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


class Disk:
    """A directory tree twice: as the worker sees it, and as a cut would leave it."""

    def __init__(self, root: Path) -> None:
        """Everything that lies below `root` now is durable."""
        self._root = str(root)
        self._names: dict[str, _File] = {}
        self._directories = {self._root}
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                self._directories.add(str(path))
            else:
                data = path.read_bytes()
                self._names[str(path)] = _File(bytearray(data), data)
        self._kept_names = dict(self._names)
        self._kept_directories = set(self._directories)
        self._unnamed: dict[str, _File] = {}
        self._open: dict[int, str] = {}
        self._positions: dict[int, int] = {}

    def below(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")

    def cut(self, during: str) -> Cut:
        directories = {each for each in self._kept_directories if self._led_to(each)}
        return Cut(
            during,
            {
                Path(path): file.durable
                for path, file in self._kept_names.items()
                if path.rpartition("/")[0] in directories
            },
            frozenset(map(Path, directories)),
        )

    def _led_to(self, directory: str) -> bool:
        while directory != self._root:
            if directory not in self._kept_directories:
                return False
            directory = directory.rpartition("/")[0]
        return True

    def opened(self, number: int, path: str, *, unnamed: bool, created: bool) -> None:
        self._open[number], self._positions[number] = path, 0
        if unnamed:
            self._unnamed[path] = _File()
        elif created and path not in self._directories:
            self._names.setdefault(path, _File())

    def file(self, path: str) -> _File | None:
        return self._unnamed.get(path) or self._names.get(path)

    def write(self, number: int, path: str, data: bytes, offset: int | None) -> None:
        file = self.file(path)
        if file is None:
            raise AssertionError(f"a write to {path}, which is not known")
        start = self._positions[number] if offset is None else offset
        file.now.extend(bytes(max(0, start - len(file.now))))
        file.now[start : start + len(data)] = data
        if offset is None:
            self._positions[number] = start + len(data)

    def truncate(self, path: str, size: int) -> None:
        file = self.file(path)
        assert file is not None, path
        del file.now[size:]
        file.now.extend(bytes(size - len(file.now)))

    def link(self, number: int, path: str) -> None:
        self._names[path] = self._unnamed[self._open[number]]

    def make(self, path: str) -> None:
        self._directories.add(path)

    def remove(self, path: str) -> None:
        del self._names[path]

    def synced(self, path: str) -> None:
        """An fsync of that file or directory."""
        if path in self._directories:
            self._kept_names = _renewed(self._kept_names, self._names, path)
            kept, now = dict.fromkeys(self._kept_directories), dict.fromkeys(self._directories)
            self._kept_directories = {*_renewed(kept, now, path), self._root}
        elif (file := self.file(path)) is not None:
            file.durable = bytes(file.now)


def _renewed(kept: Mapping[str, Value], now: Mapping[str, Value], directory: str) -> dict[str, Value]:
    """`kept`, with the entries of that one directory as they are now."""
    others = {path: value for path, value in kept.items() if path.rpartition("/")[0] != directory}
    return others | {path: value for path, value in now.items() if path.rpartition("/")[0] == directory}


async def recorded(place: Place, folder: Path, deaf: str = "") -> list[Cut]:
    """Let a worker do all it has to do, and tell what a cut would have left: during every sync, and after the end.

    Syncs of paths that hold the text `deaf` go unheard: a worker that had forgotten them.
    """
    disk, log = Disk(place.settings.home), folder / "strace.log"
    transload = place.transload
    traced = Traced(transload.home, transload.config, transload.environ, options=recording(log))
    done = await asyncio.to_thread(traced.run, "run", "--until-idle")
    assert done.returncode == 0, done.stderr
    return list(cuts(log, disk, deaf))


async def survived(place: Place, load: Load, cut: Cut) -> Report:
    """Start a worker on what the cut left, and look at what it comes to."""
    shutil.rmtree(place.settings.home)
    cut.restore()
    done = await asyncio.to_thread(place.transload.run, "run", "--until-idle")
    assert done.returncode == 0, done.stderr
    return await check(place, load, [])


def cuts(log: Path, disk: Disk, deaf: str = "") -> Iterator[Cut]:
    """A cut during every fsync and fdatasync of the record, and one after the end."""
    begun: dict[str, str] = {}
    for line in log.read_text(encoding="ascii").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if (start := _BEGUN.fullmatch(rest)) is not None:
            begun[pid] = f"{start['name']}({start['arguments']}"
            continue
        if (resumed := _RESUMED.fullmatch(rest)) is not None:
            rest = begun.pop(pid) + resumed["rest"]
        if (call := _WHOLE.match(rest)) is not None and int(call["result"]) >= 0:
            yield from _replayed(call, disk, deaf)
    yield disk.cut("the end")


def _replayed(call: "re.Match[str]", disk: Disk, deaf: str) -> Iterator[Cut]:
    """Carry out one call that succeeded."""
    name, arguments = call["name"], call["arguments"]
    place = _PLACE.match(arguments)
    texts = [_decoded(text["text"]) for text in _TEXT.finditer(arguments)]
    if name in {"open", "openat", "creat"}:
        path = _path(call["made"] or "")
        if disk.below(path):
            created = name == "creat" or "O_CREAT" in arguments
            disk.opened(int(call["result"]), path, unnamed="O_TMPFILE" in arguments, created=created)
    elif name in {"write", "pwrite64", "ftruncate", *_SYNCS}:
        assert place is not None, arguments
        path = _path(place["path"])
        if disk.below(path):
            number, last = int(place["number"]), arguments.rpartition(", ")[2]
            if name in _SYNCS:
                yield disk.cut(f"{name} of {path}")
                if not deaf or deaf not in path:
                    disk.synced(path)
            elif name == "ftruncate":
                disk.truncate(path, int(last))
            else:
                disk.write(number, path, texts[0], int(last) if name == "pwrite64" else None)
    else:
        _named(name, arguments, disk)


def _named(name: str, arguments: str, disk: Disk) -> None:
    """Calls that change names. Each place is a directory's descriptor and a path that starts there."""
    paths = list(_paths(arguments))
    if not any(disk.below(path) for path in paths):
        return
    if name in {"mkdir", "mkdirat"}:
        disk.make(paths[0])
    elif name in {"unlink", "unlinkat"}:
        disk.remove(paths[0])
    elif name == "linkat" and paths[0].startswith("/proc/self/fd/"):
        disk.link(int(paths[0].rpartition("/")[2]), paths[1])
    else:
        raise AssertionError(f"{name} of {paths} is not modelled")


def _paths(arguments: str) -> Iterator[str]:
    base = ""
    for found in re.finditer(rf"{_PLACE.pattern}|{_TEXT.pattern}", arguments):
        if found["text"] is None:
            base = _path(found["path"])
        else:
            path = _path(found["text"])
            yield path if path.startswith("/") else f"{base}/{path}"


def _path(text: str) -> str:
    return _decoded(text).decode()


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
