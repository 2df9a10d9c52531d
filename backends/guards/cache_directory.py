"""The directory under the read cache, for its threads: every method blocks. Called by backends/guards/read_cache.py only.

A directory is shared by claiming numbered slots in it: each process (and each target) locks the first that is free, and the
kernel lets go of the lock however the process ends. A slot holds whole objects, named by digests of what they are, and
unfinished ones (`….part`), which the next owner removes. Nothing is synced: what a crash tore does not have the digest in
its name, and so is no hit.
"""

import fcntl
import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from backends.failpoints import failpoint

_NAME = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{64})\.([0-9a-f]{64})\.[0-9a-f]{16}")
_PART = ".part"
_SLOT = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A whole object on disk. `key` and `etag` are digests of the real ones; `used_at` is in nanoseconds."""

    name: str
    key: str
    etag: str
    sha256: str
    size: int
    used_at: int = 0


@dataclass(slots=True)
class Filling:
    """An object on its way in."""

    name: str
    descriptor: int
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        rest = memoryview(chunk)
        failpoint("cache.write.before")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        failpoint("cache.write.after")
        self.size += len(chunk)


class CacheDirectory:
    """One slot of a cache's directory."""

    def __init__(self, root: Path) -> None:
        """Touches nothing: `claim` does."""
        self._root = root
        self._slot = -1

    def claim(self) -> list[CachedFile]:
        """Take the first free slot and tell what it holds, the longest unused first. Removes what no reader can use."""
        failpoint("cache.root.before")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        failpoint("cache.root.after")
        for number in itertools.count():
            slot = self._root / str(number)
            failpoint("cache.slot.before")
            slot.mkdir(mode=0o700, exist_ok=True)
            failpoint("cache.slot.after")
            descriptor = os.open(slot, _SLOT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(descriptor, 0o700)
            except BlockingIOError:
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                self._slot = descriptor
                break
        return self._scan()

    def _scan(self) -> list[CachedFile]:
        found: dict[str, CachedFile] = {}
        useless: list[str] = []
        with os.scandir(self._slot) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    key, etag, sha256 = match.groups()
                    file = CachedFile(
                        entry.name, key, etag, sha256, status.st_size, used_at=status.st_mtime_ns
                    )
                    older = found.get(file.key)
                    if older is None or older.used_at < file.used_at:
                        found[file.key] = file
                        useless += [older.name] if older else []
                    else:
                        useless.append(file.name)
                elif entry.name.endswith(_PART) or entry.is_symlink():
                    useless.append(entry.name)
        for name in useless:
            self._unlink(name)
        return sorted(found.values(), key=attrgetter("used_at"))

    def create(self) -> Filling:
        """A new, empty, unfinished object."""
        name = secrets.token_hex(8) + _PART
        failpoint("cache.create.before")
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=self._slot)
        failpoint("cache.create.after")
        return Filling(name, descriptor)

    def commit(self, filling: Filling, key: str, etag: str) -> CachedFile:
        """Give the object its final name. Its descriptor stays open."""
        sha256 = filling.digest.hexdigest()
        name = f"{key}.{etag}.{sha256}.{filling.name.removesuffix(_PART)}"
        failpoint("cache.commit.before")
        os.rename(filling.name, name, src_dir_fd=self._slot, dst_dir_fd=self._slot)
        failpoint("cache.commit.after")
        return CachedFile(name, key, etag, sha256, filling.size)

    def discard(self, filling: Filling) -> None:
        """Give up an unfinished object."""
        os.close(filling.descriptor)
        self._unlink(filling.name)

    def open(self, file: CachedFile) -> int | None:
        """A descriptor of the object, read through and found whole; None when it is gone or damaged."""
        try:
            descriptor = os.open(file.name, _READ, dir_fd=self._slot)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(descriptor).st_size == file.size:
                with os.fdopen(descriptor, "rb", closefd=False) as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if digest == file.sha256:
                    # The next owner of the slot takes this for when it was used last.
                    os.utime(descriptor)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def remove(self, files: Iterable[CachedFile]) -> None:
        """Missing ones are fine. Whoever has one open keeps its bytes."""
        for file in files:
            self._unlink(file.name)

    def release(self) -> None:
        """Let others have the slot, with what it holds. Twice is harmless."""
        slot, self._slot = self._slot, -1
        if slot >= 0:
            os.close(slot)

    def _unlink(self, name: str) -> None:
        failpoint("cache.remove.before")
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._slot)
        failpoint("cache.remove.after")
