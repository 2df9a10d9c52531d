"""The intake pauses while the ledger takes no writes, and resumes unaided."""

import asyncio

import pytest

from worker import intake_gate
from worker.health import Health
from worker.intake_gate import IntakeGate
from worker.ledger.base import LedgerUnavailable
from worker.ledger.sql import SqlLedger


class Ledger(SqlLedger):
    """Only its `probe` is asked for here."""

    def __init__(self) -> None:
        self.down = True
        self.probes = asyncio.Semaphore(0)

    async def probe(self) -> None:
        self.probes.release()
        if self.down:
            raise LedgerUnavailable("down")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_gate, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(intake_gate, "_LONGEST_PAUSE", 0.002)


async def test_case_41_and_53_it_opens_when_the_ledger_takes_writes_again() -> None:
    ledger, health = Ledger(), Health()
    health.schema_current = health.queue_reachable = True
    owed = []

    async def pay() -> None:
        owed.append("paid")

    gate = IntakeGate(ledger, health, lambda: 0.0, pay)
    running = asyncio.create_task(gate.run())
    await gate.passed()
    gate.close("database is full")
    gate.close("database is full")
    assert not gate.is_open
    assert (health.paused, health.ready().reasons) == (True, ("the ledger takes no writes",))
    for _ in range(3):
        await asyncio.wait_for(ledger.probes.acquire(), 5)
    assert not gate.is_open
    assert owed == []
    ledger.down = False
    await asyncio.wait_for(gate.passed(), 5)
    assert owed == ["paid"]
    assert not health.paused
    assert health.ready().ok
    gate.close("again")
    await asyncio.wait_for(gate.passed(), 5)
    running.cancel()
    await asyncio.wait([running])


async def test_it_stays_closed_until_what_comes_first_is_done() -> None:
    ledger = Ledger()
    ledger.down = False
    asked = 0

    async def refuse_twice() -> None:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise LedgerUnavailable("down once more")

    gate = IntakeGate(ledger, Health(), lambda: 0.0, refuse_twice)
    running = asyncio.create_task(gate.run())
    gate.close("down")
    await asyncio.wait_for(gate.passed(), 5)
    assert asked == 3
    running.cancel()
    await asyncio.wait([running])
