"""A message is counted against for what it did itself; one that kills its process is given up, its neighbours are not."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from worker.attempt_log import AttemptLog
from worker.attempts import CRASHED
from worker.disposition import CrashedTooOften, Failure
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import migrate, open_database
from worker.ledger.sql import SqlLedger
from worker.queues.base import Message

MAX_CRASHES = 3


class Ledger(SqlLedger):
    down = False

    async def withdraw(self, queue: str, message_id: str) -> None:
        if self.down:
            raise LedgerUnavailable("down")
        await super().withdraw(queue, message_id)


def received(times: int, name: str = "m") -> Message:
    return Message(id=name, body=b"", handle=f"{name}.{times}", receive_count=times)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    database = open_database(f"sqlite:///{tmp_path}/ledger.db")
    await migrate(database)
    ledger = Ledger(database)
    yield ledger
    await ledger.aclose()


@pytest.fixture
def log(ledger: Ledger) -> AttemptLog:
    return AttemptLog(ledger, "q", MAX_CRASHES)


async def errors(log: AttemptLog, name: str = "m") -> list[str]:
    return [attempt.error for attempt in await log.earlier(received(2, name))]


async def crash(log: AttemptLog, message: Message) -> None:
    """A try of a process that then dies: it begins, and nothing more is heard of it."""
    async with log.trying(message, await log.earlier(message)):
        # What the body of the context would still do is cut off by leaving no trace of its end.
        pass


async def test_the_first_try_costs_the_ledger_nothing(log: AttemptLog, ledger: Ledger) -> None:
    message = received(1)
    assert await log.earlier(message) == ()
    async with log.trying(message, ()):
        pass
    assert await ledger.attempts("q", "m") == []


async def test_a_failure_is_noted_whether_its_beginning_was_or_not(log: AttemptLog) -> None:
    await log.failed(received(1), Failure.of(ValueError("first"), 0.0))
    message = received(2)
    async with log.trying(message, await log.earlier(message)):
        await log.failed(message, Failure.of(KeyError("second"), 0.0))
    assert await errors(log) == ["ValueError", "KeyError"]


async def test_case_18_tries_that_never_end_are_crashes_and_are_bounded(log: AttemptLog) -> None:
    for receive in range(2, 2 + MAX_CRASHES):
        await crash(log, received(receive))
    assert await errors(log) == [CRASHED] * MAX_CRASHES
    message = received(9)
    with pytest.raises(CrashedTooOften, match="3 tries"):
        async with log.trying(message, await log.earlier(message)):
            pytest.fail("another try began")


async def test_case_18_suspects_are_tried_one_at_a_time(log: AttemptLog) -> None:
    """So only the one that kills the process goes on being counted."""
    for name in ("poison", "neighbour"):
        for receive in (2, 3):
            await crash(log, received(receive, name))
    poison, neighbour = received(4, "poison"), received(4, "neighbour")
    entered = asyncio.Event()

    async def wait_for_its_turn() -> None:
        async with log.trying(neighbour, await log.earlier(neighbour)):
            entered.set()

    async with log.trying(poison, await log.earlier(poison)):
        waiting = asyncio.create_task(wait_for_its_turn())
        await asyncio.sleep(0.05)
        assert not entered.is_set()
        assert await errors(log, "neighbour") == [CRASHED] * 2, "waiting is no try"
        assert await errors(log, "poison") == [CRASHED] * 3
    await waiting
    assert entered.is_set()


async def test_one_crash_makes_no_suspect(log: AttemptLog) -> None:
    for name in ("a", "b"):
        await crash(log, received(2, name))
    first, second = received(3, "a"), received(3, "b")
    async with (
        asyncio.timeout(5),
        log.trying(first, await log.earlier(first)),
        log.trying(second, await log.earlier(second)),
    ):
        pass


async def test_case_14_what_a_drain_gives_back_is_not_counted(log: AttemptLog) -> None:
    message = received(2)
    with pytest.raises(asyncio.CancelledError):
        async with log.trying(message, ()):
            raise asyncio.CancelledError
    assert await errors(log) == []


async def test_case_41_an_outage_of_the_ledger_is_no_crash(log: AttemptLog, ledger: Ledger) -> None:
    message = received(2)
    ledger.down = True
    with pytest.raises(asyncio.CancelledError):
        async with log.trying(message, ()):
            raise asyncio.CancelledError
    assert await errors(log) == [CRASHED]
    with pytest.raises(LedgerUnavailable):
        await log.pay_owed()
    ledger.down = False
    await log.pay_owed()
    assert await errors(log) == []
    await log.pay_owed()
