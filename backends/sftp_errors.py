"""What an SFTP server answers, as this room's errors. Used by the modules of the SFTP backend only.

SFTP 3 knows nine codes (https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02#section-7), and OpenSSH folds errno
into five of them: ENOENT, ENOTDIR and ELOOP are `no such file`, EPERM and EACCES `permission denied`, ENAMETOOLONG and EINVAL
`bad message`, ENOSYS `unsupported`, everything else (EEXIST, ENOSPC, EIO, EROFS, EMFILE, …) `failure`. So `failure` says only
that it did not happen; where the reason matters, a look at what is there decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh

from backends.errors import InvalidKey, NotFound, PermissionDenied, StorageError, Unavailable, Unsupported

MISSING = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)
LOST = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)
"""Whether the request was carried out is unknown."""
REFUSED = (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists)
"""The name may be taken."""

_BAD_NAME = "Bad message"
"""OpenSSH's text for a name that its file system does not take. asyncssh uses the code for broken packets, with other texts."""
_BY_TYPE: tuple[tuple[type[Exception], type[StorageError]], ...] = (
    (asyncssh.SFTPPermissionDenied, PermissionDenied),
    (asyncssh.SFTPWriteProtect, PermissionDenied),
    (asyncssh.SFTPOpUnsupported, Unsupported),
    (asyncssh.SFTPInvalidFilename, InvalidKey),
    (asyncssh.SFTPLinkLoop, InvalidKey),
    (asyncssh.SFTPFileIsADirectory, InvalidKey),
)


@contextmanager
def translated(doing: str, missing: type[StorageError] = NotFound) -> Iterator[None]:
    """Make requests. `doing` says what and where: `write sftp://user@host/srv/key`."""
    try:
        yield
    except (asyncssh.Error, OSError) as exc:
        raise _translate(exc, doing, missing) from exc


def _translate(exc: Exception, doing: str, missing: type[StorageError]) -> StorageError:
    """The server's words are quoted, shortened and escaped: they are not ours."""
    said = f"SFTP could not {doing}: {type(exc).__name__} ({str(exc)[:120]!a})"
    if isinstance(exc, MISSING):
        return missing(said)
    if isinstance(exc, asyncssh.SFTPBadMessage) and exc.reason == _BAD_NAME:
        return InvalidKey(said)
    return next((kind for sdk, kind in _BY_TYPE if isinstance(exc, sdk)), Unavailable)(said)
