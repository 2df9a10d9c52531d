"""What only the embedded queue promises: one file, several processes, crashes, damage, and a closed door behind it."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker.publishers.base import Notification, PublishError, PublishRefused
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import Ack, Dead, Message, OutgoingMessage, QueueError, QueueUnavailable, Retry
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue
from worker.queues.embedded_sql import SCHEMA
from worker.sqlite import Database, DatabaseError, DatabaseFull

CHILD = """
import asyncio, sys
from pathlib import Path
from worker.queues.base import OutgoingMessage
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue

async def main():
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=Path(sys.argv[1])))
    for index in range(int(sys.argv[2])):
        await queue.send([OutgoingMessage(f"{sys.argv[3]} {index}".encode())])
    print("sent", flush=True)
    sys.stdin.read()
    await queue.aclose()

asyncio.run(main())
"""


@contextmanager
def child(path: Path, count: int, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that sends, says so, and keeps the file open until it is killed."""
    command = [sys.executable, "-c", CHILD, str(path), str(count), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def sent(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        said = asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
        try:
            assert await said == "sent\n"
        except asyncio.CancelledError:
            process.kill()
            raise


def kill_after_sending(path: Path, count: int) -> None:
    with child(path, count, "doomed") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"


def tear(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 100)


def shorten(path: Path, left: float) -> None:
    os.truncate(path, int(path.stat().st_size * left))


def copy(path: Path, database: bytes, log: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(database)
    path.with_name(f"{path.name}-wal").write_bytes(log)


def flip_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(byte ^ 0xFF for byte in content[4096:8192])
    path.write_bytes(content)


def modes(directory: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def queue(path: Path) -> AsyncIterator[EmbeddedQueue]:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    yield queue
    await queue.aclose()


async def drain(queue: EmbeddedQueue) -> list[Message]:
    return list(await queue.receive(10_000, wait=0))


async def test_several_processes_share_a_new_file(path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(child(path, 20, f"child {index}")) for index in range(4)]
        for process in children:
            await sent(process)
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    messages = await drain(queue)
    assert {m.body for m in messages} == {f"child {c} {i}".encode() for c in range(4) for i in range(20)}
    await queue.aclose()


async def test_a_waiting_receive_sees_another_process_send(queue: EmbeddedQueue, path: Path) -> None:
    receiving = asyncio.create_task(_receive(queue))
    await asyncio.sleep(0)
    with child(path, 1, "other"):
        async with asyncio.timeout(20):
            (message,) = await receiving
    assert message.body == b"other 0"


async def test_a_killed_sender_leaves_all_it_was_told_is_sent(path: Path) -> None:
    await asyncio.to_thread(kill_after_sending, path, 30)
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    assert len(await drain(queue)) == 30
    await queue.aclose()


async def test_case_40_a_torn_tail_costs_only_what_was_torn(path: Path) -> None:
    await asyncio.to_thread(kill_after_sending, path, 10)
    await asyncio.to_thread(tear, path.with_name(f"{path.name}-wal"))
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    assert [m.body for m in await drain(queue)] == [f"doomed {index}".encode() for index in range(9)]
    await queue.aclose()


async def test_case_40_a_log_cut_anywhere_keeps_all_before_the_cut(path: Path) -> None:
    """A crash leaves of the log what was synced, and perhaps some of the rest: the file opens, and no message is half there."""
    await asyncio.to_thread(kill_after_sending, path, 12)
    log = path.with_name(f"{path.name}-wal")
    whole, database = await asyncio.to_thread(log.read_bytes), await asyncio.to_thread(path.read_bytes)
    found: list[int] = []
    for size in [*range(len(whole), 32, -len(whole) // 40), 32, 31, 0]:
        torn = path.parent / str(size) / path.name
        await asyncio.to_thread(copy, torn, database, whole[:size])
        queue = await EmbeddedQueue.connect(EmbeddedOptions(path=torn))
        bodies = [message.body for message in await drain(queue)]
        await queue.aclose()
        assert bodies == [f"doomed {index}".encode() for index in range(len(bodies))]
        found.append(len(bodies))
    assert found[0] == 12, "what was acknowledged and is whole is there"
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


@pytest.mark.parametrize("left", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
async def test_case_40_a_file_cut_short_is_whole_or_refused(path: Path, left: float) -> None:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    await queue.send([OutgoingMessage(str(index).encode() * 200) for index in range(200)])
    await queue.aclose()
    await asyncio.to_thread(shorten, path, left)
    if left == 0.0:
        # Nothing tells it from a new one.
        queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
        assert await drain(queue) == []
        await queue.aclose()
        return
    with pytest.raises(QueueError, match="damaged or not a database") as raised:
        await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    assert ".recover" in str(raised.value)
    assert not raised.value.retryable


async def test_looking_waits_for_no_writer(path: Path, tmp_path: Path) -> None:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path, busy_timeout=0.05))
    await queue.send([OutgoingMessage(b"x")])
    log = tmp_path / "completions.db"
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=log, busy_timeout=0.05))
    await publisher.publish([Notification("event", "r", b"body", {})])
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as one,
        closing(sqlite3.connect(log, isolation_level=None)) as other,
    ):
        for connection in (one, other):
            connection.execute("BEGIN IMMEDIATE")
        assert (await queue.depth()).visible == 1
        assert await publisher.count() == 1
        assert [stored.seq for stored in await publisher.read()] == [1]
        for connection in (one, other):
            connection.execute("ROLLBACK")
    await publisher.aclose()
    await queue.aclose()


async def test_a_look_that_fails_leaves_no_transaction(path: Path) -> None:
    database = await Database.open(path, SCHEMA)
    with pytest.raises(DatabaseError, match="no such table"):
        await database.read(lambda c: c.execute("SELECT * FROM nowhere"))
    assert await database.read(lambda c: c.execute("SELECT count(*) FROM messages").fetchone()[0]) == 0
    await database.run(lambda c: c.execute("DELETE FROM messages").rowcount)
    await database.aclose()
    with pytest.raises(DatabaseError, match="closed"):
        await database.read(lambda c: c.execute("SELECT 1"))


async def test_case_1_leases_outlive_the_process(path: Path) -> None:
    first = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    await first.send([OutgoingMessage(b"held"), OutgoingMessage(b"free")])
    (held,) = await first.receive(1, wait=0)
    await first.aclose()
    second = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    assert [m.body for m in await drain(second)] == [b"free"]
    assert await second.settle(held, Ack()) is True
    await second.aclose()


async def test_a_cancelled_receive_gives_back_what_it_took(queue: EmbeddedQueue) -> None:
    await queue.send([OutgoingMessage(str(index).encode()) for index in range(5)])
    for turns in range(40):
        receiving = asyncio.create_task(_receive(queue))
        for _ in range(turns):
            if not receiving.done():
                await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        if not receiving.cancelled():
            await asyncio.gather(*(queue.settle(message, Retry()) for message in receiving.result()))
    async with asyncio.timeout(10):
        while (await queue.depth()).visible < 5:  # noqa: ASYNC110 - other processes could change it: no event tells
            await asyncio.sleep(0.01)


async def test_what_a_cancelled_receive_took_does_not_count_as_received(
    queue: EmbeddedQueue, path: Path
) -> None:
    await queue.send([OutgoingMessage(b"once")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        # The transaction waits for this lock, so the cancellation certainly falls into it.
        other.execute("BEGIN IMMEDIATE")
        receiving = asyncio.create_task(_receive(queue))
        await asyncio.sleep(0.1)
        receiving.cancel()
        await asyncio.wait([receiving])
        assert receiving.cancelled()
        other.execute("ROLLBACK")
    (message,) = await queue.receive(1, wait=10)
    assert message.receive_count == 1


async def test_messages_come_in_the_order_they_became_due(queue: EmbeddedQueue) -> None:
    await queue.send([OutgoingMessage(str(index).encode()) for index in range(20)])
    taken = [message.body for _ in range(4) for message in await queue.receive(5, wait=0)]
    assert taken == [str(index).encode() for index in range(20)]


async def test_two_settlements_at_once_have_one_winner(queue: EmbeddedQueue) -> None:
    await queue.send([OutgoingMessage(b"x")])
    (message,) = await drain(queue)
    done = await asyncio.gather(
        queue.settle(message, Ack()), queue.settle(message, Dead("poison")), queue.settle(message, Retry())
    )
    assert sorted(done) == [False, False, True]
    depth = await queue.depth()
    assert depth.visible + depth.in_flight + depth.delayed + (depth.dead or 0) == (0 if done[0] else 1)


async def test_a_dead_letter_keeps_its_id(queue: EmbeddedQueue) -> None:
    await queue.send([OutgoingMessage(b"\xff\x00", {"a": "\ud800"})])
    (message,) = await drain(queue)
    await queue.settle(message, Dead("malformed"))
    letters = await queue.open_dead_letters()
    (letter,) = await letters.receive(1, wait=0)
    assert (letter.id, letter.body, letter.attributes["a"]) == (message.id, b"\xff\x00", "\ud800")
    await letters.aclose()


async def test_closing_ends_a_parked_receive_and_the_thread(path: Path) -> None:
    before = set(threading.enumerate())
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    receiving = asyncio.create_task(_receive(queue))
    await asyncio.sleep(0.05)
    await queue.aclose()
    with pytest.raises(QueueUnavailable):
        await receiving
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 5) if thread.name.startswith("sqlite") else None
        assert not (thread.name.startswith("sqlite") and thread.is_alive())


async def test_the_file_is_its_owners_alone(queue: EmbeddedQueue, path: Path) -> None:
    await queue.send([OutgoingMessage(b"x")])
    assert await asyncio.to_thread(modes, path.parent) == {0o600}


async def test_a_lock_held_too_long_is_unavailable_and_passes(path: Path) -> None:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path, busy_timeout=0.05))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable, match="locked"):
            await queue.send([OutgoingMessage(b"x")])
        other.execute("ROLLBACK")
    await queue.send([OutgoingMessage(b"x")])
    assert len(await drain(queue)) == 1
    await queue.aclose()


async def test_case_53_a_full_database_is_unavailable_and_recovers(path: Path) -> None:
    database = await Database.open(path, SCHEMA)
    await database.run(lambda c: c.execute("CREATE TABLE filler (x)").rowcount)

    def fill(connection: sqlite3.Connection) -> Any:
        connection.execute("PRAGMA max_page_count = 8")
        return connection.execute("INSERT INTO filler VALUES (zeroblob(1000000))").rowcount

    with pytest.raises(DatabaseFull, match="free some space"):
        await database.run(fill)
    assert await database.run(lambda c: c.execute("SELECT count(*) FROM filler").fetchone()[0]) == 0
    await database.aclose()


async def test_a_transaction_that_raises_leaves_nothing(path: Path) -> None:
    database = await Database.open(path, SCHEMA)

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        raise LookupError("midway")

    with pytest.raises(LookupError):
        await database.run(half)
    with pytest.raises(DatabaseError, match="no such table"):
        await database.run(lambda c: c.execute("SELECT * FROM half"))
    await database.aclose()
    await database.aclose()


@pytest.mark.parametrize("damage", ["not a database", "a flipped page"])
async def test_case_54_damage_is_told_with_the_file_and_the_remedy(path: Path, damage: str) -> None:
    if damage == "not a database":
        await asyncio.to_thread(path.write_bytes, b"This is no database at all. " * 200)
    else:
        queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path))
        await queue.send([OutgoingMessage(b"x" * 500) for _ in range(100)])
        await queue.aclose()
        await asyncio.to_thread(flip_page, path)
    with pytest.raises(QueueError, match="damaged or not a database") as raised:
        await EmbeddedQueue.connect(EmbeddedOptions(path=path))
    assert str(path) in str(raised.value)
    assert ".recover" in str(raised.value)
    assert not raised.value.retryable


async def test_case_55_a_newer_schema_is_refused(path: Path) -> None:
    await (await EmbeddedQueue.connect(EmbeddedOptions(path=path))).aclose()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(QueueError, match="newer release"):
        await EmbeddedQueue.connect(EmbeddedOptions(path=path))


async def test_another_adapters_file_is_refused(path: Path) -> None:
    await (await EmbeddedQueue.connect(EmbeddedOptions(path=path))).aclose()
    with pytest.raises(PublishRefused, match="give another path"):
        await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))


async def test_a_completion_waits_while_its_file_may_not_be_written(path: Path) -> None:
    """SQLite answers SQLITE_READONLY, as on a file system that was remounted so after an error, until it is mended."""
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))
    sent = [Notification("event", "r", b"body", {})]
    publisher._database._connection.execute("PRAGMA query_only = 1")
    (outcome,) = await publisher.publish(sent)
    assert isinstance(outcome, PublishError)
    assert "may not be written" in str(outcome)
    assert outcome.retryable
    publisher._database._connection.execute("PRAGMA query_only = 0")
    assert list(await publisher.publish(sent)) == [None]
    await publisher.aclose()


async def test_a_directory_in_its_place_is_an_error(path: Path) -> None:
    await asyncio.to_thread(path.mkdir)
    with pytest.raises(QueueUnavailable, match=r"queue\.db"):
        await EmbeddedQueue.connect(EmbeddedOptions(path=path))


def test_a_queue_cannot_be_its_own_dead_letters(path: Path) -> None:
    with pytest.raises(ValidationError):
        EmbeddedOptions(path=path, queue="a", dead_letter_queue="a")


async def _receive(queue: EmbeddedQueue) -> list[Message]:
    return list(await queue.receive(10, wait=20))
