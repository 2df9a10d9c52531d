"""The members of an archive are looked at twice: once before the first byte, once while it is written.

Called by handlers/bundling/archive.py.
"""

import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from hashlib import blake2b
from pathlib import Path

from backends.errors import IntegrityError
from handlers.bundling.base import Member
from handlers.errors import Refused
from handlers.transforms.base import Limits, Meter, Work
from handlers.transforms.names import entry_path

_LIMITS = Limits(name=900)
"""As far as `limits.name` can be set: what no configuration of ours would take out of the archive does not go in."""


async def listed(members: AsyncIterator[Member]) -> bytes:
    """What `relisted` has to find again.

    Holds a digest of each path at the top, and of each path and each folder in the folder there that comes at the moment, about
    0.1 kB each. Raises `ValueError` for paths that `entry_path` refuses or would change, for two that some file system would
    not tell apart, and for a folder at the top whose files do not come one after the other.
    """
    seen, taken = blake2b(), _Taken()
    async for member in members:
        if member.size < 0:
            raise ValueError(f"{member.path[:200]!a} cannot have {member.size} bytes")
        check_path(member.path)
        taken.add(member.path)
        seen.update(_line(member))
    return seen.digest()


async def relisted(members: AsyncIterator[Member], expected: bytes) -> AsyncGenerator[Member, None]:
    """The same members; raises `IntegrityError` in place of an end when they are not those that `listed` saw."""
    seen = blake2b()
    async for member in members:
        seen.update(_line(member))
        yield member
    if seen.digest() != expected:
        raise IntegrityError("the bundle's members changed while they were being archived")


def _line(member: Member) -> bytes:
    return f"{member.path}\0{member.size}\0{member.sha256}\0".encode()


def check_path(path: str) -> None:
    """Raises `ValueError` unless our own unzip would give the path back as it is."""
    try:
        found = entry_path(path, Work(Meter(_LIMITS), Path()))
    except Refused as exc:
        raise ValueError(f"no archive may hold {path[:200]!a}: {exc}") from exc
    if found != path:
        raise ValueError(f"{path[:200]!a} would come out of the archive as {found[:200]!a}")


class _Taken:
    """Paths that are taken, as digests.

    Below a folder at the top they are kept for as long as its files come: those of one payload may be in hundreds of folders
    each, and an archive may be of any number of payloads.
    """

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._folders: set[bytes] = set()
        """Of both, those at the top."""
        self._folder = b""
        """The one that files come for."""
        self._files_below: set[bytes] = set()
        self._folders_below: set[bytes] = set()

    def add(self, path: str) -> None:
        # As handlers/transforms/names.py: neither case nor normal form sets two files apart everywhere.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
        top, *below = folded.split("/")
        if not (self._take_below(_mark(top), below, path) if below else self._take(_mark(top))):
            raise ValueError(f"another member of the archive is in the way of {path[:200]!a}")

    def _take(self, file: bytes) -> bool:
        """Whether nothing is in the way of a file at the top."""
        if file in self._files or file in self._folders:
            return False
        self._files.add(file)
        return True

    def _take_below(self, top: bytes, segments: list[str], path: str) -> bool:
        if top in self._files:
            return False
        if top != self._folder:
            if top in self._folders:
                raise ValueError(f"what lies in one folder has to come together: {path[:200]!a} does not")
            self._folders.add(top)
            self._folder, self._files_below, self._folders_below = top, set(), set()
        *folders, file = (_mark("/".join(segments[:end])) for end in range(1, len(segments) + 1))
        if (
            file in self._files_below
            or file in self._folders_below
            or not self._files_below.isdisjoint(folders)
        ):
            return False
        self._files_below.add(file)
        self._folders_below.update(folders)
        return True


def _mark(path: str) -> bytes:
    return blake2b(path.encode(), digest_size=16).digest()
