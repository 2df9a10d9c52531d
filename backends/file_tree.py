"""The directories under the file backend, for its threads: every method blocks.

Called by `backends.file`, `backends.file_small` and `backends.file_transfer` only.
"""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from threading import Lock

from backends.base import ObjectStat
from backends.errors import InvalidKey, Unavailable, Unsupported
from backends.failpoints import failpoint

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _DIRECTORY | os.O_NOFOLLOW
# O_PATH: a planted FIFO or device is found without being opened, which may wait, or do something.
_FIND = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_UNNAMED = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC

_TEMP_HEAD, _TEMP_TAIL = ".transload-", ".part"
_REMEMBERED = 10_000

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL})
"""What file systems without O_TMPFILE answer; kernels older than it take the flag for O_DIRECTORY."""


def is_temporary(name: str) -> bool:
    return name.startswith(_TEMP_HEAD) and name.endswith(_TEMP_TAIL)


@dataclass(slots=True)
class _Turn:
    """The fsyncs of one directory, while anybody waits for one."""

    lock: Lock = field(default_factory=Lock)
    users: int = 0
    asked: int = 0
    done: int = 0


class Tree:
    """Confined to the root and durable where it says so.

    Whatever is opened is asked where it lies before it is used, and used through that descriptor only: a link planted
    meanwhile leads nobody astray. This costs one call where opening segment by segment costs two for each.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._token = secrets.token_hex(8)
        self._count = itertools.count()
        self._real = ""
        self._durable: set[str] = set()
        self._has_unnamed = True
        self._turns: dict[str, _Turn] = {}
        self._turns_lock = Lock()

    def prepare(self) -> None:
        """Create the root, each new directory entry made durable, and learn the root's real path."""
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        for path in reversed(missing):
            failpoint("file.root.before")
            path.mkdir(exist_ok=True)
            parent = os.open(path.parent, _DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
            failpoint("file.root.after")
        directory = os.open(self.root, _DIRECTORY)
        try:
            self._real = _whereabouts(directory).rstrip("/")
        except FileNotFoundError as exc:
            raise Unsupported("the file backend needs Linux with /proc mounted") from exc
        finally:
            os.close(directory)

    def directory(self, parent: str, *, create: bool = False) -> int:
        """A descriptor of the directory `parent` ("" is the root), which the caller closes."""
        try:
            return self._open(parent, _DIRECTORY)
        except FileNotFoundError:
            if not create:
                raise
        directory = self._open("", _DIRECTORY)
        path = ""
        for segment in parent.split("/"):
            path = f"{path}/{segment}" if path else segment
            try:
                below = self._open_or_make(directory, segment, path)
            finally:
                os.close(directory)
            directory = below
        return directory

    def _open_or_make(self, directory: int, segment: str, path: str) -> int:
        with suppress(FileNotFoundError):
            return os.open(segment, _BELOW, dir_fd=directory)
        # One of that name may have been durable once, and removed since.
        self._durable.discard(path)
        failpoint("file.mkdir.before")
        with suppress(FileExistsError):
            os.mkdir(segment, dir_fd=directory)
        failpoint("file.mkdir.after")
        return os.open(segment, _BELOW, dir_fd=directory)

    def _open(self, path: str, flags: int) -> int:
        """Open what lies at `path` below the root, and there only."""
        full = f"{self._real}/{path}" if path else self._real or "/"
        try:
            descriptor = os.open(full, flags)
        except FileNotFoundError as exc:
            if not self.root.is_dir():
                raise Unavailable(f"{self.root} has vanished; is its volume mounted?") from exc
            raise
        try:
            found = _whereabouts(descriptor)
            if found == f"{full} (deleted)":
                raise FileNotFoundError(errno.ENOENT, "Removed meanwhile")
            if found != full:
                raise InvalidKey(f"{path!r} below {self.root} leads through a symbolic link")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_object(self, key: str) -> tuple[int, int]:
        """Descriptor and size of a regular file. A directory there is EISDIR, anything else `InvalidKey`."""
        found = self._open(key, _FIND)
        try:
            status = os.fstat(found)
            if stat.S_ISREG(status.st_mode):
                # The very file that was looked at, whatever has the name by now.
                return os.open(f"/proc/self/fd/{found}", _READ), status.st_size
        finally:
            os.close(found)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        raise InvalidKey(f"{key!r} below {self.root} is not a regular file")

    def stat_object(self, directory: int, name: str) -> os.stat_result | None:
        """The facts of the regular file `name`; None when nothing or a directory lies there, else `InvalidKey`."""
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISREG(status.st_mode):
            return status
        if stat.S_ISDIR(status.st_mode):
            return None
        raise InvalidKey(f"{name!r} below {self.root} is not a regular file")

    def temporary(self) -> str:
        """A name no other write uses."""
        return f"{_TEMP_HEAD}{self._token}-{next(self._count)}{_TEMP_TAIL}"

    def sync(self, directory: int, parent: str) -> None:
        """Make the entries of `parent` durable and, once per directory, those that lead to it from the root.

        Whoever made a directory may not have come this far yet, so everyone who first writes into it makes sure.
        """
        self._sync_entries(directory, parent)
        above = os.dup(directory) if parent and parent not in self._durable else -1
        synced: list[str] = []
        try:
            while parent and parent not in self._durable:
                up = os.open("..", _DIRECTORY, dir_fd=above)
                os.close(above)
                above = up
                failpoint("file.sync_above.before")
                os.fsync(above)
                failpoint("file.sync_above.after")
                synced.append(parent)
                parent = parent.rpartition("/")[0]
        finally:
            if above >= 0:
                os.close(above)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable.update(synced)

    def _sync_entries(self, directory: int, parent: str) -> None:
        """Fsync the directory, or wait for one that began after this call: writers of one directory share them.

        A failure is not shared: each descriptor was opened before it and reports it by itself.
        """
        with self._turns_lock:
            turn = self._turns.setdefault(parent, _Turn())
            turn.users += 1
            turn.asked += 1
            ticket = turn.asked
        try:
            with turn.lock:
                if turn.done < ticket:
                    asked = turn.asked
                    failpoint("file.sync_directory.before")
                    os.fsync(directory)
                    failpoint("file.sync_directory.after")
                    turn.done = asked
        finally:
            with self._turns_lock:
                turn.users -= 1
                if not turn.users:
                    del self._turns[parent]

    def create_unnamed(self, directory: int) -> int | None:
        """A descriptor of a file without a name, which vanishes with the process; None where there are none."""
        if not self._has_unnamed:
            return None
        try:
            return os.open(".", _UNNAMED, 0o666, dir_fd=directory)
        except OSError as exc:
            if exc.errno not in _NO_UNNAMED:
                raise
        self._has_unnamed = False
        return None

    def create(self, directory: int, temporary: str) -> int:
        """A descriptor to write a new file with; the umask decides who may read it."""
        return os.open(temporary, _CREATE, 0o666, dir_fd=directory)

    def link_unnamed(self, directory: int, file: int, name: str) -> bool:
        """The commit of an unnamed file. False when the name is taken. See open(2), O_TMPFILE."""
        failpoint("file.link.before")
        try:
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=directory, follow_symlinks=True)
        except FileExistsError:
            return False
        failpoint("file.link.after")
        return True

    def link(self, directory: int, temporary: str, name: str) -> bool:
        """The commit. False when the name is taken."""
        failpoint("file.link_named.before")
        try:
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as exc:
            if exc.errno in _NO_LINKS:
                raise Unsupported(f"{self.root}: its file system has no hard links; choose another") from exc
            raise
        failpoint("file.link_named.after")
        return True

    def status(self, key: str) -> ObjectStat | None:
        parent, _, name = key.rpartition("/")
        try:
            directory = self.directory(parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            found = self.stat_object(directory, name)
        finally:
            os.close(directory)
        return found and ObjectStat(key=key, size=found.st_size)

    def remove(self, key: str) -> bool:
        parent, _, name = key.rpartition("/")
        try:
            directory = self.directory(parent)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            if self.stat_object(directory, name) is None:
                return False
            failpoint("file.unlink.before")
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return False
            failpoint("file.unlink.after")
            failpoint("file.sync_unlink.before")
            os.fsync(directory)
            failpoint("file.sync_unlink.after")
        finally:
            os.close(directory)
        return True

    def files(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every regular file whose key starts with `prefix`, temporary ones too, in key order.

        Holds no descriptor between two items, and in memory the entries of one directory per level.
        """
        *segments, leaf = prefix.split("/")
        if not {"", ".", ".."}.isdisjoint(segments) or "\0" in prefix or not _is_unicode(prefix):
            return
        pending = self._entries("".join(f"{segment}/" for segment in segments), leaf)
        while pending:
            key, status = pending.pop()
            if status is None:
                pending += self._entries(key, "")
            else:
                yield key, status

    def _entries(self, base: str, leaf: str) -> list[tuple[str, os.stat_result | None]]:
        """Directories (as `key/`, None) and files of `base`, last key first: `a-b`, `a/…` and `a.b` sort as keys do."""
        found: list[tuple[str, os.stat_result | None]] = []
        try:
            directory = self.directory(base[:-1])
        except (FileNotFoundError, NotADirectoryError, InvalidKey):
            return found
        except PermissionError:
            # The one directory that an ext4 volume brings and that is never ours.
            if base == "lost+found/":
                return found
            raise
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.name.startswith(leaf) or not _is_unicode(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found.append((f"{base}{entry.name}/", None))
                    elif entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            found.append((f"{base}{entry.name}", entry.stat(follow_symlinks=False)))
        finally:
            os.close(directory)
        found.sort(key=itemgetter(0), reverse=True)
        return found

    def swept(self, before: float, prefix: str) -> Iterator[bool]:
        """For every file under `prefix` in turn: was it a temporary file last written before `before`, and removed?

        Those of the root are looked at too: the probe writes there.
        """
        for key, status in itertools.chain(self.files(prefix), self._entries("", _TEMP_HEAD)):
            parent, _, name = key.rpartition("/")
            stale = status is not None and is_temporary(name) and status.st_mtime <= before
            if stale:
                directory = self.directory(parent)
                try:
                    failpoint("file.sweep.before")
                    os.unlink(name, dir_fd=directory)
                    failpoint("file.sweep.after")
                except FileNotFoundError:
                    stale = False
                finally:
                    os.close(directory)
            yield stale

    def probe(self) -> None:
        """Create, link and remove a file in the root."""
        directory = self.directory("")
        first, second = self.temporary(), self.temporary()
        try:
            os.close(self.create(directory, first))
            self.link(directory, first, second)
        finally:
            for name in (first, second):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            os.close(directory)


def _whereabouts(descriptor: int) -> str:
    """The real path of what is open; ` (deleted)` is appended when it has none any more."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - a Path costs more than the call, on every open


def _is_unicode(name: str) -> bool:
    """False for what `os.scandir` could only decode with surrogates: no key names such a file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
