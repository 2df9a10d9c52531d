"""A file without a name, for payloads that have to be read from their end. Used by handlers/transforms/unzip.py.

The kernel deletes it with its last descriptor: a process that is killed leaves nothing behind.
"""

import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from backends.base import CHUNK_SIZE
from backends.cancellation import to_the_end
from backends.errors import Unavailable
from handlers.transforms.base import Turn, Work
from handlers.transforms.offload import INLINE, offloaded

Result = TypeVar("Result")


class Spool:
    """What was written to the file, to be read from anywhere. Its methods block, except `run`; they raise `Unavailable`."""

    def __init__(self, turn: Turn) -> None:
        """Made by `spooled`."""
        self._turn = turn
        self._file: IO[bytes] | None = None
        self.size = 0

    def open(self, directory: Path) -> None:
        try:
            # Where the file system knows no O_TMPFILE, it has a name for a moment.
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - `spooled` closes it
        except OSError as exc:
            raise _translate(exc) from exc

    def append(self, chunks: list[bytes]) -> None:
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                self.size += len(chunk)
        except OSError as exc:
            raise _translate(exc) from exc

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there, fewer only at the end of the file."""
        pieces: list[bytes] = []
        try:
            while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
                pieces.append(piece)
                offset, size = offset + len(piece), size - len(piece)
        except OSError as exc:
            raise _translate(exc) from exc
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work`, which reads the file, returns: on a thread where it may have to wait for the disk.

        A caller who is cancelled waits for the thread: the file must not be closed, and its number given to another, below it.
        """
        # Whoever is cancelled does not wait for a turn.
        async with self._turn() if self.size > INLINE else nullcontext():
            return await to_the_end(offloaded(self.size, work))

    @property
    def _descriptor(self) -> int:
        if self._file is None:
            raise ValueError("a spool is read and written between open and close")
        return self._file.fileno()


@asynccontextmanager
async def spooled(chunks: AsyncIterator[bytes], work: Work, path: str) -> AsyncGenerator[Spool, None]:
    """All of `chunks` in a file, as long as the context lasts; `path` is what refusals call it.

    Raises `Refused("payload_limit")` where the files of one payload outgrow `Limits.spool`, `Unavailable` where the disk does
    not take it.
    """
    spool = Spool(work.turn)
    counted = 0
    try:
        await to_the_end(offloaded(CHUNK_SIZE, partial(spool.open, work.spool)))
        held: list[bytes] = []
        size = 0
        async for chunk in chunks:
            work.meter.spooled(len(chunk), path)
            counted += len(chunk)
            held.append(chunk)
            size += len(chunk)
            if size >= CHUNK_SIZE:
                await to_the_end(offloaded(size, partial(spool.append, held)))
                held, size = [], 0
        await to_the_end(offloaded(size, partial(spool.append, held)))
        yield spool
    finally:
        work.meter.spooled(-counted, path)
        # Freeing the blocks of a large file takes a while.
        await to_the_end(offloaded(counted, spool.close))


def _translate(exc: OSError) -> Unavailable:
    return Unavailable(f"the spool directory fails: {exc.strerror or exc}")
