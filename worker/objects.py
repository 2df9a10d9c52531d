"""One object of a target or a staging source, looked at by hand: where it is, a copy on this disk.

Called by worker/cli_objects.py. What is deleted or copied here was asked for by a person; workers never come by.
"""

import asyncio
import errno
import os
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Literal

from backends.base import StorageBackend
from backends.errors import IntegrityError, StorageError
from backends.failpoints import failpoint
from worker import stores
from worker.belonging import Known
from worker.ledger.values import StoredObject
from worker.settings import Settings

STAGING: Final = "staging"
"""`staging:NAME:KEY` is a key of a staging source, unless a target has that name."""

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


class NoSuchPlace(ValueError):
    """The settings name no such target or staging source; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Address:
    """`TARGET:KEY`, or `staging:NAME:KEY`. Only the colons before the key count: a key may hold more."""

    kind: Literal["target", "staging"]
    name: str
    key: str | None
    """None where no colon followed the name."""

    @classmethod
    def parse(cls, text: str, settings: Settings) -> "Address":
        """Raises `NoSuchPlace`."""
        name, colon, rest = text.partition(":")
        if name == STAGING and name not in settings.targets:
            name, colon, rest = rest.partition(":")
            if name in settings.staging:
                return cls("staging", name, rest if colon else None)
            name = f"{STAGING}:{name}"
        elif name in settings.targets:
            return cls("target", name, rest if colon else None)
        known = ", ".join([*settings.targets, *(f"{STAGING}:{source}" for source in settings.staging)])
        raise NoSuchPlace(f"no place is named {name!r}; there are: {known}")

    @property
    def place(self) -> str:
        """As it is written before the key."""
        return self.name if self.kind == "target" else f"{STAGING}:{self.name}"

    def of(self, key: str) -> str:
        """The address of another key of the same place."""
        return f"{self.place}:{key}"

    def prefix(self, settings: Settings) -> str:
        """What keys begin with that are asked for: what follows the colon, or else the place's own prefix."""
        if self.key is not None:
            return self.key
        place = (settings.targets if self.kind == "target" else settings.staging)[self.name]
        return f"{place.prefix}/" if place.prefix else ""


@asynccontextmanager
async def opened(settings: Settings, address: Address) -> AsyncIterator[StorageBackend]:
    """That one place with its guards; the others may be down. Raises `StorageError`."""
    if address.kind == "target":
        only = {"targets": {address.name: settings.targets[address.name]}}
        places = stores.open_targets(settings.model_copy(update=only))
    else:
        sources = {STAGING: {address.name: settings.staging[address.name]}}
        places = stores.open_staging(settings.model_copy(update=sources))
    async with places as connected:
        yield connected[address.name]


@dataclass(frozen=True, slots=True)
class Copied:
    """What was read. `size` is bytes."""

    size: int
    sha256: str

    def check(self, what: str, stored: StoredObject | None) -> None:
        """Raises `IntegrityError` when it is not what the ledger recorded."""
        if stored is not None and (self.size, self.sha256) != (stored.size, stored.sha256):
            raise IntegrityError(
                f"{what} has {self.size} bytes with SHA-256 {self.sha256}; "
                f"the ledger recorded {stored.size} with {stored.sha256}"
            )


@dataclass(frozen=True, slots=True)
class Got:
    """What `get` did. `key` is the object it read, `copied` what it wrote."""

    key: str
    copied: Copied
    path: Path | None
    """None for standard output."""
    steps: tuple[str, ...]
    """What was undone on the way."""
    found: Known | None
    unknown: str
    """Why nothing is known where `found` is None."""


async def copy(chunks: AsyncIterator[bytes], file: BinaryIO, advance: Callable[[float], None]) -> Copied:
    """Write the chunks to `file`, one at a time. Raises what they raise, or `OSError` of the file."""
    digest, size = sha256(), 0

    def take(chunk: bytes) -> None:
        digest.update(chunk)
        file.write(chunk)

    async for chunk in chunks:
        await asyncio.to_thread(take, chunk)
        size += len(chunk)
        advance(len(chunk))
    await asyncio.to_thread(file.flush)
    return Copied(size, digest.hexdigest())


def destination(path: Path | None, key: str, *, force: bool) -> Path:
    """The file to write: `path`, or the key's last segment in the folder `path`, or in the working directory.

    Raises `FileExistsError` when it is there already, and with `force` when it is no plain file.
    """
    name = key.rpartition("/")[2]
    path = Path(name) if path is None else path / name if path.is_dir() else path
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; make it first, or choose another")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise FileExistsError(f"{path} is no plain file and is left alone; choose another, or -o -")
        if not force:
            raise FileExistsError(f"{path} is there already; choose another, or say --force")
    return path


class Download:
    """A file that appears under its name whole, or not at all. A killed process leaves `.transload-….part` beside it."""

    def __init__(self, path: Path, *, force: bool) -> None:
        """With `force`, what lies there is replaced."""
        self._path = path
        self._force = force
        self._part = path.with_name(f".transload-{secrets.token_hex(8)}.part")

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """The file to write to; it appears when the block ends well. Raises `OSError`."""
        try:
            with self._part.open("xb") as file:
                yield file
                self._flush(file)
            self._put_in_place()
        finally:
            self._discard()

    def _flush(self, file: BinaryIO) -> None:
        file.flush()
        failpoint("objects.flush.before")
        os.fsync(file.fileno())
        failpoint("objects.flush.after")

    def _put_in_place(self) -> None:
        failpoint("objects.commit.before")
        if self._force:
            self._part.replace(self._path)
        else:
            self._link()
        failpoint("objects.commit.after")

    def _link(self) -> None:
        """A link never replaces what somebody else has put there meanwhile."""
        try:
            failpoint("objects.link.before")
            os.link(self._part, self._path)
            failpoint("objects.link.after")
        except FileExistsError as exc:
            raise FileExistsError(f"{self._path} has appeared meanwhile; say --force to replace it") from exc
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            # A file system without links, where nothing better than the look before can be had.
            self._part.replace(self._path)

    def _discard(self) -> None:
        failpoint("objects.discard.before")
        self._part.unlink(missing_ok=True)
        failpoint("objects.discard.after")


async def remove(
    backend: StorageBackend, key: str, tell: Callable[[str, str | None], Awaitable[None]]
) -> bool:
    """Delete the object; whether it was there. Raises `StorageError`, or what `tell` raises, and then it is still there.

    `tell(action, detail)` writes down what is done: `removed` before the object goes, so that none goes unnoticed, and `kept` when
    it then could not be deleted.
    """
    if backend.features.reads and await backend.stat(key) is None:
        return False
    await tell("removed", None)
    try:
        failpoint("objects.delete.before")
        deleted = await backend.delete(key)
        failpoint("objects.delete.after")
    except StorageError as exc:
        await tell("kept", str(exc))
        raise
    return deleted
