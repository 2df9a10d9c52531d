"""How a finished temporary file gets its final name on an SFTP server, and the proof that this never replaces anything.

Called by `backends.sftp` and `backends.sftp_transfer`. `posix-rename@openssh.com` is not among the ways: it replaces.
"""

from contextlib import suppress
from enum import Enum

import asyncssh

from backends.errors import NotFound, Unsupported
from backends.failpoints import failpoint
from backends.sftp_errors import MISSING, REFUSED, translated
from backends.sftp_pool import Session
from backends.sftp_tree import Tree


class Commit(Enum):
    """The ways, the better one first."""

    LINK = "hardlink@openssh.com"
    """link(2), which the kernel refuses where the name is taken. The temporary name is removed afterwards."""
    RENAME = "SSH_FXP_RENAME"
    """The server refuses it where the name is taken (the draft, section 6.5). OpenSSH does so with link(2) and unlink(2);
    servers that look first and then rename leave a gap for two writers at the same moment."""


async def give_name(session: Session, how: Commit, temporary: bytes, path: bytes) -> bool:
    """One request. False when the server refuses, which it does where the name is taken. Raises what asyncssh raises."""
    give = session.sftp.link if how is Commit.LINK else session.sftp.rename
    failpoint("sftp.commit.before")
    try:
        await session.ask(give(temporary, path))
    except REFUSED:
        return False
    failpoint("sftp.commit.after")
    return True


async def choose(session: Session, tree: Tree) -> Commit:
    """The first way that works here. Raises `NotFound` without a root, `Unsupported` when no way is safe."""
    try:
        for how in Commit:
            if await works(session, tree, how):
                return how
    except NotFound as exc:
        raise NotFound(
            f"{tree.location} is no directory on the server; create it with: sftp … <<< 'mkdir {tree.root}'"
        ) from exc
    raise Unsupported(
        f"{tree.location}: the server offers neither hard links nor a rename that refuses to replace, so a write could overwrite"
    )


async def works(session: Session, tree: Tree, how: Commit) -> bool:
    """Try it with two empty files in the root: refused while the name is taken, done once it is free."""
    first, second = tree.probe(), tree.probe()
    try:
        with translated(f"create a file in {tree.location}"):
            await _touch(session, first)
            await _touch(session, second)
        with (
            translated(f"probe {tree.location}"),
            suppress(asyncssh.SFTPOpUnsupported, asyncssh.SFTPPermissionDenied),
        ):
            if await give_name(session, how, first, second):
                return False
            await remove(session, second)
            return await give_name(session, how, first, second)
        return False
    finally:
        # What cannot be removed now is left to the sweep.
        with suppress(asyncssh.Error, OSError):
            await remove(session, first)
            await remove(session, second)


async def server_time(session: Session, tree: Tree) -> int:
    """Seconds since the epoch, as the server stamps files at this moment."""
    path = tree.probe()
    try:
        with translated(f"create a file in {tree.location}"):
            return await _touch(session, path)
    finally:
        with suppress(asyncssh.Error, OSError):
            await remove(session, path)


async def _touch(session: Session, path: bytes) -> int:
    """Create an empty file; returns its modification time."""
    failpoint("sftp.touch.before")
    file = await session.ask(session.sftp.open(path, "xb"))
    failpoint("sftp.touch.after")
    try:
        return (await session.ask(file.stat())).mtime or 0
    finally:
        await session.ask(file.close())


async def remove(session: Session, path: bytes) -> bool:
    """False when it was gone already."""
    failpoint("sftp.remove.before")
    try:
        await session.ask(session.sftp.remove(path))
    except MISSING:
        return False
    failpoint("sftp.remove.after")
    return True
