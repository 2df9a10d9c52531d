"""Files on this machine as a bundle: the fetcher behind `transload publish` and `transload demo`.

A bundle without a bid of its own gets one derived from its files (paths, sizes, modification times), so publishing the same
files again announces the same bundle, which is known already.
"""

import asyncio
import json
import mimetypes
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import CHUNK_SIZE
from handlers.bids import derived_bid
from worker.producer import BundleRef, Producer, ProducerError

_STAGED_AT_ONCE = 16
_NOT_WORTH_FETCHING = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One regular file, as it was when it was found. Times are nanoseconds since the epoch, sizes bytes."""

    path: Path
    size: int
    modified_ns: int

    @property
    def url(self) -> str:
        """`file:///absolute/path`, percent-encoded."""
        return self.path.as_uri()


@dataclass(frozen=True, slots=True)
class LocalBundle:
    """Files to announce together."""

    files: tuple[LocalFile, ...]
    recipe_id: str
    primary_url: str
    bid: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def find_files(paths: Iterable[Path], *, leave_out: Path | None = None) -> Sequence[LocalFile]:
    """The files named, and all files below the folders named, in a stable order; each once. Not the folder `leave_out`.

    Raises `ProducerError` for a path that is not there or is neither file nor folder, and when nothing is found.
    """
    found: dict[Path, LocalFile] = {}
    for path in paths:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links and change the names
        if absolute.is_dir():
            for file in _below(absolute, leave_out):
                found.setdefault(file.path, file)
        elif absolute.is_file():
            found.setdefault(absolute, _local_file(absolute))
        else:
            raise ProducerError(f"{path} is not a file or folder; name what is to be published")
    if not found:
        raise ProducerError(f"no files in {', '.join(map(str, paths))}")
    return list(found.values())


def bundle_of(
    files: Sequence[LocalFile], recipe_id: str, *, bid: str | None = None, primary_url: str | None = None
) -> LocalBundle:
    """The files as one bundle. `primary_url` is by default the file's own URL, or that of the folder around all of them."""
    url = primary_url if primary_url is not None else _common_url(files)
    return LocalBundle(
        tuple(files), recipe_id, url, bid if bid is not None else _derived(files, recipe_id, url)
    )


def folders_of(root: Path, recipe_id: str, *, leave_out: Path | None = None) -> Iterator[LocalBundle]:
    """One bundle for every folder at or below `root` that holds files; hidden and generated folders are left out."""
    for folder, folders, names in os.walk(root.absolute()):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOT_WORTH_FETCHING
            and not _is_same(here / name, leave_out)
        )
        files = [_local_file(here / name) for name in sorted(names) if _is_plain_file(here / name)]
        if files:
            yield bundle_of(files, recipe_id, primary_url=here.as_uri() + "/")


async def publish(
    producer: Producer,
    bundle: LocalBundle,
    *,
    metadata: Mapping[str, Any],
    close: bool = True,
    staged: Callable[[LocalFile], None],
) -> None:
    """Stage and announce every file, then close the bundle. `staged` is called after each file.

    Raises `ProducerError` (a file changed while it was read, among others), `StorageError`, `QueueError` or `OSError`.
    """
    context = await producer.start_bundle(
        BundleRef(bundle.primary_url, len(bundle.files), bid=bundle.bid), bundle.recipe_id
    )
    waiting = iter(bundle.files)

    async def stage() -> None:
        for file in waiting:
            content_type = mimetypes.guess_type(file.path.name)[0]
            await context.add_resource(file.url, content_type, None, _read(file))
            staged(file)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_STAGED_AT_ONCE, len(bundle.files))):
                group.create_task(stage())
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    if close:
        await context.complete(metadata)


async def _read(file: LocalFile) -> AsyncIterator[bytes]:
    total = 0
    with await asyncio.to_thread(file.path.open, "rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, CHUNK_SIZE):
            total += len(chunk)
            yield chunk
            if len(chunk) < CHUNK_SIZE:
                break
    if total != file.size:
        raise ProducerError(f"{file.path} changed while it was read; publish it again when it is at rest")


def _below(folder: Path, leave_out: Path | None) -> Iterator[LocalFile]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_same(Path(where, name), leave_out))
        for name in sorted(names):
            if _is_plain_file(path := Path(where, name)):
                yield _local_file(path)


def _is_same(folder: Path, other: Path | None) -> bool:
    return other is not None and other.exists() and folder.samefile(other)


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _local_file(path: Path) -> LocalFile:
    facts = path.stat()
    return LocalFile(path, facts.st_size, facts.st_mtime_ns)


def _common_url(files: Sequence[LocalFile]) -> str:
    if len(files) == 1:
        return files[0].url
    return Path(os.path.commonpath([file.path.parent for file in files])).as_uri() + "/"


def _derived(files: Sequence[LocalFile], recipe_id: str, primary_url: str) -> str:
    newest = max(file.modified_ns for file in files) // 1_000_000
    facts = [recipe_id, primary_url, *sorted((file.url, file.size, file.modified_ns) for file in files)]
    return derived_bid(newest, json.dumps(facts).encode())
