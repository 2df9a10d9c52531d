"""The directories under the SFTP backend: names, the way to them, and what lies there.

Called by `backends.sftp` and `backends.sftp_transfer` with a session each time. SFTP 3 opens, links and removes by path only
and follows symbolic links on the way, so every segment is looked at first (`lstat`). What that cannot see is a link that
somebody with write access to the root plants between the look and the request; a server that confines the user (OpenSSH's
`ChrootDirectory`) is the only fence against that.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import cast

import asyncssh

from backends.base import check_key
from backends.errors import InvalidKey, NotFound, Unavailable
from backends.failpoints import failpoint
from backends.sftp_errors import MISSING, REFUSED, translated
from backends.sftp_pool import Session

FILE, DIRECTORY = asyncssh.FILEXFER_TYPE_REGULAR, asyncssh.FILEXFER_TYPE_DIRECTORY
SEGMENT_LIMIT = 255
"""Bytes of one name: NAME_MAX of nearly every file system."""

_TEMP_HEAD, _TEMP_TAIL = ".transload-", ".part"
_PROBE_HEAD = f"{_TEMP_HEAD}probe-"


def is_temporary(name: str) -> bool:
    return name.startswith(_TEMP_HEAD) and name.endswith(_TEMP_TAIL)


class Tree:
    """Keys as paths below the root, which itself may be or lie behind a symbolic link."""

    def __init__(self, root: str, location: str) -> None:
        """`root` is absolute; `location` is its URL, ending in `/`."""
        self.root = root
        self.location = location
        self._base = root.rstrip("/").encode()
        self._token = secrets.token_hex(8)
        self._count = itertools.count()

    def check(self, key: str) -> str:
        """Return `key` if it names no temporary file and every segment fits, else raise `InvalidKey`."""
        for segment in check_key(key).split("/"):
            if is_temporary(segment):
                raise InvalidKey(f"{self.location}: {key!a} holds a name of temporary files")
            if len(segment.encode()) > SEGMENT_LIMIT:
                raise InvalidKey(f"{self.location}: {key!a} holds a name of more than {SEGMENT_LIMIT} bytes")
        return key

    def path(self, key: str) -> bytes:
        """Where the object lies on the server; of "" the root."""
        return self._base + b"/" + key.encode() if key else self._base or b"/"

    def temporary(self, key: str) -> bytes:
        """A path beside the object's that no other write uses."""
        parent, slash, _ = key.rpartition("/")
        return self.path(f"{parent}{slash}{_TEMP_HEAD}{self._token}-{next(self._count)}{_TEMP_TAIL}")

    def probe(self) -> bytes:
        """A path in the root that no other probe uses."""
        return self.path(f"{_PROBE_HEAD}{self._token}-{next(self._count)}{_TEMP_TAIL}")

    async def look(self, session: Session, key: str, *, wanted: bool = False) -> asyncssh.SFTPAttrs | None:
        """The facts of the regular file under `key`; None when nothing or a directory lies there. Else `InvalidKey`.

        Where a file is `wanted`, a directory is `InvalidKey` too.
        """
        *above, leaf = await self._walk(session, key)
        for facts in above:
            if facts is None or facts.type == FILE:
                return None
            self._insist(key, facts, DIRECTORY)
        if leaf is None or (leaf.type == DIRECTORY and not wanted):
            return None
        self._insist(key, leaf, FILE)
        return leaf

    async def make_parents(self, session: Session, key: str) -> None:
        """Create the directories above `key` that are missing. Raises `InvalidKey` when something else is in the way."""
        parent = key.rpartition("/")[0]
        if not parent:
            return
        segments = parent.split("/")
        for number, facts in enumerate(await self._walk(session, parent), 1):
            if facts is None:
                await self._make(session, "/".join(segments[:number]), key)
            else:
                self._insist(key, facts, DIRECTORY)

    async def _make(self, session: Session, directory: str, key: str) -> None:
        path = self.path(directory)
        with translated(f"make the directory {self.location}{directory}", missing=Unavailable):
            failpoint("sftp.mkdir.before")
            try:
                await session.ask(session.sftp.mkdir(path))
            except REFUSED:
                # Another writer was faster, or there is no room for it.
                facts = await self._facts(session, path)
                if facts is None:
                    raise
                self._insist(key, facts, DIRECTORY)
            failpoint("sftp.mkdir.after")

    async def _walk(self, session: Session, key: str) -> Sequence[asyncssh.SFTPAttrs | None]:
        """The facts of each segment's file or directory, in one round trip."""
        segments = key.split("/")
        paths = ["/".join(segments[: number + 1]) for number in range(len(segments))]
        with translated(f"look at {self.location}{key}"):
            return await asyncio.gather(*(self._facts(session, self.path(path)) for path in paths))

    @staticmethod
    async def _facts(session: Session, path: bytes) -> asyncssh.SFTPAttrs | None:
        try:
            return await session.ask(session.sftp.lstat(path))
        except MISSING:
            return None

    def _insist(self, key: str, facts: asyncssh.SFTPAttrs, kind: int) -> None:
        """Neither a link out of the root nor anything but directories and a regular file."""
        if facts.type != kind:
            wanted = "a directory" if kind == DIRECTORY else "a regular file"
            raise InvalidKey(f"{self.location}{key}: something on the way that should be {wanted} is not")

    async def files(
        self, session: Session, prefix: str
    ) -> AsyncGenerator[tuple[str, asyncssh.SFTPAttrs], None]:
        """Every regular file whose key starts with `prefix`, temporary ones too, in key order.

        Holds the entries of one directory per level. Symbolic links are no files.
        """
        *segments, leaf = prefix.split("/")
        if not {"", ".", ".."}.isdisjoint(segments) or "\0" in prefix or not _is_unicode(prefix):
            return
        if segments and not all(
            facts and facts.type == DIRECTORY for facts in await self._walk(session, "/".join(segments))
        ):
            return
        pending = await self._entries(session, "".join(f"{segment}/" for segment in segments), leaf)
        while pending:
            key, facts = pending.pop()
            if facts is None:
                pending += await self._entries(session, key, "")
            else:
                yield key, facts

    async def probes(self, session: Session) -> Sequence[tuple[str, asyncssh.SFTPAttrs]]:
        """What probes have left in the root."""
        return [(key, facts) for key, facts in await self._entries(session, "", _PROBE_HEAD) if facts]

    async def _entries(
        self, session: Session, base: str, leaf: str
    ) -> list[tuple[str, asyncssh.SFTPAttrs | None]]:
        """Directories (as `key/`, None) and files of `base`, last key first: `a-b`, `a/…` and `a.b` sort as keys do."""
        found: list[tuple[str, asyncssh.SFTPAttrs | None]] = []
        try:
            with translated(f"list {self.location}{base}"):
                scan = cast(
                    "AsyncGenerator[asyncssh.SFTPName, None]", session.sftp.scandir(self.path(base[:-1]))
                )
                async with aclosing(scan) as names:
                    while (entry := await session.ask(anext(names, None))) is not None:
                        name = _name(entry.filename)
                        if name is None or not name.startswith(leaf):
                            continue
                        if entry.attrs.type == DIRECTORY:
                            found.append((f"{base}{name}/", None))
                        elif entry.attrs.type == FILE:
                            found.append((f"{base}{name}", entry.attrs))
        except NotFound as exc:
            # Removed meanwhile; but without the root there is nothing that could be empty.
            if not base:
                raise Unavailable(f"{self.location} has vanished") from exc
        found.sort(key=itemgetter(0), reverse=True)
        return found


def _name(raw: bytes | str) -> str | None:
    """None for what no key names: the directory itself, the one above, and names that are not UTF-8."""
    try:
        name = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        return None
    # A slash could only come from a server that wants to lead us elsewhere.
    return None if name in {"", ".", ".."} or "/" in name else name


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
