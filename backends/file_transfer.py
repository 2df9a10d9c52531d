"""One write and one read of the file backend, step by step: every method blocks. Called by `backends.file`,
`backends.file_copy` and `backends.file_small`.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress

from backends.base import CHUNK_SIZE, Receipt
from backends.errors import Conflict, NotFound, Unavailable
from backends.failpoints import failpoint
from backends.file_tree import Tree


class _Stopped(Exception):
    """The writer was cancelled before its commit; nobody waits for this."""


class Upload:
    """One write, for the threads: `append` any number of times, then `finish`; `discard` when either failed."""

    def __init__(self, tree: Tree, key: str) -> None:
        self._tree = tree
        self._key = key
        self.parent, _, self._name = key.rpartition("/")
        self._temporary = ""  # while the file has no name
        self._directory = -1
        self._shared = False
        self._file = -1
        self._digest = hashlib.sha256()
        self.size = 0
        self._stopped = False

    @property
    def started(self) -> bool:
        return self._directory >= 0

    def stop(self) -> None:
        """Called from the event loop while `finish` runs: do not commit if that has not happened yet."""
        self._stopped = True

    def append(self, pieces: Sequence[bytes]) -> None:
        self.start()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._digest.update(data)
        self.size += len(data)
        rest = memoryview(data)
        failpoint("file.write.before")
        while rest:
            rest = rest[os.write(self._file, rest) :]
        failpoint("file.write.after")

    def start(self) -> None:
        """Begin, unless that has happened, in a directory of its own."""
        if self._directory < 0:
            self.begin(self._tree.directory(self.parent, create=True), shared=False)

    def begin(self, directory: int, *, shared: bool) -> None:
        """Create the file. The descriptor of its directory is this upload's to close, unless it is shared."""
        self._directory, self._shared = directory, shared
        unnamed = self._tree.create_unnamed(directory)
        if unnamed is None:
            self._temporary = self._tree.temporary()
            failpoint("file.create.before")
            self._file = self._tree.create(directory, self._temporary)
            failpoint("file.create.after")
        else:
            self._file = unnamed

    def fileno(self) -> int:
        """The descriptor of what will be the object, open for writing."""
        return self._file

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()

    def read_again(self) -> None:
        """Count and digest what the file holds, when somebody else than `append` has filled it."""
        self.size, self._digest = 0, hashlib.sha256()
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := os.read(file, CHUNK_SIZE):
                self._digest.update(piece)
                self.size += len(piece)
                self.go_on()
        finally:
            os.close(file)

    def finish(self, pieces: Sequence[bytes]) -> Receipt:
        self.append(pieces)
        self.sync()
        receipt = self.commit()
        self._tree.sync(self._directory, self.parent)
        self.leave()
        return receipt

    def sync(self) -> None:
        """Make the bytes durable. A failure is final: the page cache may have dropped what was not written."""
        failpoint("file.sync.before")
        os.fsync(self._file)
        failpoint("file.sync.after")

    def commit(self) -> Receipt:
        """Give the file its final name, or find an equal one there. Durable once the directory is synced.

        Also when the object was there before: its writer may have died between its commit and that.
        """
        self.go_on()
        created = self._link()
        self._close_file()
        if not created:
            self._compare()
        return Receipt(self._key, self.size, self.sha256, created=created)

    def discard(self) -> None:
        """Remove what is left of an unfinished write. What cannot be removed now is left to the sweep."""
        if self._temporary and self._directory >= 0:
            with suppress(OSError):
                failpoint("file.discard.before")
                os.unlink(self._temporary, dir_fd=self._directory)
                failpoint("file.discard.after")
        with suppress(OSError):
            self._close_file()
        self.leave()

    def _link(self) -> bool:
        """Give the file its final name. False when that is taken."""
        if not self._temporary:
            return self._tree.link_unnamed(self._directory, self._file, self._name)
        created = self._tree.link(self._directory, self._temporary, self._name)
        # A sweep that thought this write dead may have been faster.
        with suppress(FileNotFoundError):
            failpoint("file.unlink_temporary.before")
            os.unlink(self._temporary, dir_fd=self._directory)
            failpoint("file.unlink_temporary.after")
        return created

    def _compare(self) -> None:
        """Return when the object under the key equals what was written, having made it durable; else `Conflict`."""
        file, size = self._tree.open_object(self._key)
        try:
            digest = hashlib.sha256()
            while size == self.size and (piece := os.read(file, CHUNK_SIZE)):
                digest.update(piece)
                self.go_on()
            if size != self.size or digest.digest() != self._digest.digest():
                raise Conflict(f"{self._tree.root}: another object lies under {self._key!r}")
            failpoint("file.sync_found.before")
            os.fsync(file)
            failpoint("file.sync_found.after")
        finally:
            os.close(file)

    def go_on(self) -> None:
        if self._stopped:
            raise _Stopped

    def _close_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def leave(self) -> None:
        """Let go of the directory; a shared one is closed by whoever shares it."""
        directory, self._directory = self._directory, -1
        if directory >= 0 and not self._shared:
            os.close(directory)


class Reader:
    """One read, for the threads: `open` gives the first chunk, `read` the next ones while `remaining`."""

    def __init__(self, tree: Tree, key: str) -> None:
        self._tree = tree
        self._key = key
        self._file = -1
        self.remaining = 0

    def open(self) -> bytes:
        try:
            self._file, self.remaining = self._tree.open_object(self._key)
        except (IsADirectoryError, NotADirectoryError) as exc:
            raise NotFound(f"{self._tree.root}: no object {self._key!r}") from exc
        return self.read()

    def read(self) -> bytes:
        data = os.read(self._file, min(CHUNK_SIZE, self.remaining)) if self.remaining else b""
        if self.remaining and not data:
            raise Unavailable(f"{self._tree.root}: {self._key!r} was cut short while it was read")
        self.remaining -= len(data)
        if not self.remaining:
            self.close()
        return data

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
