"""Files as bundles: which are found, what they are called, that the same files are the same bundle."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.base import CHUNK_SIZE
from backends.memory import MemoryBackend, MemoryOptions
from handlers.bids import is_bid
from handlers.messages import BundleClosed, Command, ResourceFetched, decode
from handlers.plan import StagingSource
from worker.local_files import LocalFile, bundle_of, find_files, folders_of, publish
from worker.producer import Producer, ProducerError
from worker.queues.memory import MemoryOptions as QueueOptions
from worker.queues.memory import MemoryQueue

SECOND = 1_700_000_000


def put(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (SECOND, SECOND))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a b.html", ".hidden", "sub/c.json", ".git/x", "node_modules/y", "out/z"):
        put(tmp_path / "tree" / name)
    (tmp_path / "tree/link").symlink_to(tmp_path / "tree/b.txt")
    (tmp_path / "tree/empty").mkdir()
    os.mkfifo(tmp_path / "tree/pipe")
    return tmp_path / "tree"


class Sink:
    """A producer, and everything it announced."""

    def __init__(self, queue: MemoryQueue, staging: MemoryBackend) -> None:
        self.queue, self.staging = queue, staging
        self.producer = Producer(
            queue=queue, staging=staging, source=StagingSource("staging", staging.location)
        )

    async def sent(self) -> list[Command]:
        commands = []
        while messages := await self.queue.receive(10, 0):
            commands += [decode(message.body) for message in messages]
        return commands


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    queue = await MemoryQueue.connect(QueueOptions())
    yield Sink(queue, await MemoryBackend.connect(MemoryOptions()))
    await queue.aclose()


def names(files: list[LocalFile] | tuple[LocalFile, ...]) -> list[str]:
    return [file.path.name for file in files]


def test_a_folder_is_searched_in_a_stable_order(tree: Path) -> None:
    found = list(find_files([tree]))
    assert names(found) == [".hidden", "a b.html", "b.txt", "x", "y", "z", "c.json"]
    assert found == list(find_files([tree]))
    assert found[1].url == f"file://{tree}/a%20b.html"
    assert (found[1].size, found[1].modified_ns) == (7, SECOND * 10**9)


def test_each_file_is_found_once(tree: Path) -> None:
    found = list(find_files([tree / "b.txt", tree / "sub", tree / "sub/../b.txt", tree / "sub/c.json"]))
    assert names(found) == ["b.txt", "c.json"]


@pytest.mark.parametrize("name", ["missing", "pipe", "empty"])
def test_what_is_no_file_is_told(tree: Path, name: str) -> None:
    with pytest.raises(ProducerError, match=name):
        find_files([tree / name])


def test_the_same_files_are_the_same_bundle(tree: Path) -> None:
    files = find_files([tree])
    bid = bundle_of(files, "r").bid
    assert is_bid(bid)
    assert bundle_of(list(reversed(files)), "r").bid == bid
    assert bundle_of(files, "other").bid != bid
    assert bundle_of(files[1:], "r", primary_url=bundle_of(files, "r").primary_url).bid != bid
    os.utime(tree / "b.txt", (SECOND, SECOND + 1))
    assert bundle_of(find_files([tree]), "r").bid != bid


def test_what_is_given_is_kept(tree: Path) -> None:
    bundle = bundle_of(find_files([tree]), "r", bid="test-a", primary_url="https://example.com")
    assert (bundle.bid, bundle.primary_url, bundle.size) == ("test-a", "https://example.com", 49)


def test_the_primary_url_is_the_file_or_the_folder_around(tree: Path) -> None:
    assert bundle_of(find_files([tree / "b.txt"]), "r").primary_url == f"file://{tree}/b.txt"
    both = find_files([tree / "sub/c.json", tree / "b.txt"])
    assert bundle_of(both, "r").primary_url == f"file://{tree}/"


def test_one_bundle_a_folder_without_the_generated_ones(tree: Path) -> None:
    bundles = list(folders_of(tree, "r", leave_out=tree / "out"))
    assert [bundle.primary_url for bundle in bundles] == [f"file://{tree}/", f"file://{tree}/sub/"]
    assert names(bundles[0].files) == [".hidden", "a b.html", "b.txt"]


async def test_publishing_announces_every_file_and_closes(tree: Path, sink: Sink) -> None:
    large = put(tree / "large.bin", b"x" * (2 * CHUNK_SIZE))
    put(tree / "nothing.txt", b"")
    staged: list[LocalFile] = []
    bundle = bundle_of(find_files([tree]), "r")
    await publish(sink.producer, bundle, metadata={"m": 1}, staged=staged.append)
    *fetched, closed = await sink.sent()
    assert sorted(names(staged)) == sorted(names(bundle.files))
    assert isinstance(closed, BundleClosed)
    assert (closed.bundle.resources_count, closed.bundle.metadata) == (9, {"m": 1})
    by_url = {each.resource.url: each for each in fetched if isinstance(each, ResourceFetched)}
    assert by_url[large.as_uri()].payload.size == 2 * CHUNK_SIZE
    assert by_url[(tree / "sub/c.json").as_uri()].resource.content_type == "application/json"


async def test_publishing_again_announces_the_same(tree: Path, sink: Sink) -> None:
    runs = []
    for _ in range(2):
        bundle = bundle_of(find_files([tree]), "r")
        await publish(sink.producer, bundle, metadata={}, staged=lambda _: None)
        runs.append(sorted(await sink.sent(), key=lambda command: command.id))
    assert runs[0] == runs[1]


async def test_without_closing_the_bundle_stays_open(tree: Path, sink: Sink) -> None:
    await publish(
        sink.producer, bundle_of(find_files([tree]), "r"), metadata={}, close=False, staged=lambda _: None
    )
    assert {type(command) for command in await sink.sent()} == {ResourceFetched}


@pytest.mark.parametrize("change", [b"", b"short", b"longer content", b"x" * (CHUNK_SIZE + 7)])
async def test_case_68_a_file_that_changes_meanwhile_is_not_announced(
    tree: Path, sink: Sink, change: bytes
) -> None:
    bundle = bundle_of(find_files([tree / "b.txt"]), "r")
    (tree / "b.txt").write_bytes(change)
    with pytest.raises(ProducerError, match=r"b\.txt changed while it was read"):
        await publish(sink.producer, bundle, metadata={}, staged=lambda _: None)
    assert await sink.sent() == []


async def test_a_file_that_is_gone_is_told(tree: Path, sink: Sink) -> None:
    bundle = bundle_of(find_files([tree / "b.txt"]), "r")
    (tree / "b.txt").unlink()
    with pytest.raises(OSError, match="No such file"):
        await publish(sink.producer, bundle, metadata={}, staged=lambda _: None)
