"""One copy from directory to directory of one file system, for the threads: every method blocks. Called by `backends.file` only.

The kernel copies: by sharing the blocks where the file system can (FICLONE, ioctl_ficlonerange(2)), else by
copy_file_range(2). Neither is taken at its word: what was written is read again, which costs no network.
"""

import errno
import fcntl
import os

from backends.base import Promise, Receipt
from backends.errors import IntegrityError, NotFound, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.file_transfer import Upload
from backends.file_tree import Tree

_FICLONE = 0x40049409
"""From linux/fs.h; `fcntl` has no name for it before Python 3.13."""
_AT_ONCE = 64 << 20
"""Bytes the kernel copies in one call, so that a cancelled copy ends soon."""
_CANNOT = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EBADF}
)
"""What file systems and kernels answer that cannot do it, or not between these two files."""


class Copy:
    """Takes the object `key` of `tree` over into an upload."""

    def __init__(self, tree: Tree, key: str, upload: Upload, promise: Promise) -> None:
        self._tree = tree
        self._key = key
        self._upload = upload
        self._promise = promise

    def run(self) -> Receipt:
        """The whole of it. After an exception the upload is to be discarded.

        Raises `Unsupported` when the two are not on one file system, or that cannot copy.
        """
        source, size = self._open()
        try:
            before = os.fstat(source)
            if self._promise.size not in {None, size}:
                raise IntegrityError(f"{self._name} has {size} bytes; promised were {self._promise.size}")
            self._upload.start()
            if os.fstat(self._upload.fileno()).st_dev != before.st_dev:
                raise Unsupported(f"{self._name} lies on another file system than its copy is to lie on")
            failpoint("file.copy.before")
            self._fill(source, size)
            failpoint("file.copy.after")
            after = os.fstat(source)
            if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                raise Unavailable(f"{self._name} changed while it was copied")
        finally:
            os.close(source)
        self._upload.read_again()
        found = self._upload.size, self._upload.sha256
        if found[0] != size or self._promise.sha256 not in {None, found[1]}:
            raise IntegrityError(
                f"{self._name}: the copy has {found[0]} bytes of {size} and the SHA-256 {found[1]}; "
                f"promised was {self._promise.sha256 or 'none'}"
            )
        return self._upload.finish(())

    @property
    def _name(self) -> str:
        return f"{self._tree.root}: {self._key!r}"

    def _open(self) -> tuple[int, int]:
        try:
            return self._tree.open_object(self._key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
            raise NotFound(f"{self._tree.root}: no object {self._key!r}") from exc

    def _fill(self, source: int, size: int) -> None:
        file = self._upload.fileno()
        try:
            fcntl.ioctl(file, _FICLONE, source)
        except OSError as exc:
            if exc.errno not in _CANNOT:
                raise
        else:
            return
        missing = size
        while missing:
            self._upload.go_on()
            try:
                copied = os.copy_file_range(source, file, min(missing, _AT_ONCE))
            except OSError as exc:
                if exc.errno not in _CANNOT:
                    raise
                raise Unsupported(f"{self._name}: its file system cannot copy by itself") from exc
            if not copied:
                raise Unavailable(f"{self._name} was cut short while it was copied")
            missing -= copied
