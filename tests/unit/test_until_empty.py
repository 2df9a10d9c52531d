"""`transload run --until-empty`: when a Job ends, and what it does not wait for."""

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.test_service import World, closed, ended, fetched, until
from tests.unit.test_service import world as world  # noqa: PLC0414 - a fixture
from worker import service as service_module
from worker import turns as turns_module
from worker.admin import AdminError
from worker.cli import app
from worker.publishers.base import PublishError
from worker.queues.base import Message, Retry
from worker.quiet import Quiet
from worker.service import Service

PATIENCE = 0.1
LONGEST = 20.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_it_is_quiet_from_the_beginning_of_the_first_receive_that_brings_nothing() -> None:
    clock = Clock()
    quiet = Quiet(30.0, clock)
    assert quiet.ask(LONGEST) == 20
    clock.now += 20
    assert not quiet.heard(something=False)
    assert quiet.ask(LONGEST) == 10
    clock.now += 10
    assert quiet.heard(something=False)


@pytest.mark.parametrize("disturbed", ["a message", "an outage"])
def test_whatever_happens_begins_the_quiet_anew(disturbed: str) -> None:
    clock = Clock()
    quiet = Quiet(30.0, clock)
    quiet.ask(LONGEST)
    clock.now += 29
    assert not quiet.heard(something=False)
    quiet.ask(LONGEST)
    if disturbed == "a message":
        assert not quiet.heard(something=True)
    else:
        quiet.disturb()
    clock.now += 29
    assert quiet.ask(LONGEST) == 20
    assert not quiet.heard(something=False)
    clock.now += 29
    assert not quiet.heard(something=False)
    clock.now += 1
    assert quiet.heard(something=False)


def test_without_patience_it_is_never_quiet_enough() -> None:
    clock = Clock()
    quiet = Quiet(None, clock)
    assert quiet.ask(LONGEST) == LONGEST
    clock.now += 10**9
    assert not quiet.heard(something=False)


def start(world: World, service: Service, patience: float = PATIENCE) -> asyncio.Task[None]:
    task = asyncio.create_task(service.run(until_empty=patience))
    world.tasks.append(task)
    return task


async def test_a_queue_that_never_has_a_message_ends_it(world: World) -> None:
    service = world.service()
    await ended(start(world, service))
    assert service.progress.acked == 0


async def test_it_does_what_there_is_and_announces_it(world: World) -> None:
    await world.queue.send([fetched("test-a"), closed("test-b")])
    service = world.service()
    await ended(start(world, service))
    assert service.progress.acked == 2
    assert await world.states() == {"test-a": "published", "test-b": "published"}


async def test_work_that_lasts_longer_than_the_quiet_is_not_cut_off(world: World) -> None:
    world.target.gate.clear()
    await world.queue.send([fetched("test-a")])
    service = world.service()
    running = start(world, service)
    await until(world.target.entered.is_set)
    asked = world.queue.receives
    await until(lambda: world.queue.receives >= asked + 4)
    assert not running.done()
    world.target.gate.set()
    await ended(running)
    assert service.progress.acked == 1
    assert await world.states() == {"test-a": "published"}


async def test_a_completion_under_way_is_not_cut_off(world: World) -> None:
    """A relay may write an archive for longer than a drain may last."""
    world.publisher.gate.clear()
    await world.queue.send([closed("test-a")])
    service = world.service()
    running = start(world, service)
    await until(lambda: world.publisher.calls == 1 and service.progress.acked == 1)
    asked = world.queue.receives
    await until(lambda: world.queue.receives >= asked + 4)
    assert not running.done()
    world.publisher.gate.set()
    await ended(running)
    assert await world.states() == {"test-a": "published"}
    assert world.publisher.calls == 1


async def test_the_quiet_does_not_begin_before_the_work_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that has to be tried again, or its completion, may come a moment after the work."""
    world.target.gate.clear()
    await world.queue.send([fetched("test-a")])
    service = world.service()
    receive, asked = world.queue.receive, 0

    async def long_poll(limit: int, wait: float) -> Sequence[Message]:
        nonlocal asked
        asked += 1
        if asked != 2:
            return await receive(limit, wait)
        over = time.monotonic() + PATIENCE
        await until(world.target.entered.is_set)
        world.target.gate.set()
        await until(lambda: service.progress.acked == 1 and not service._has_work())
        await until(lambda: time.monotonic() >= over)
        return ()

    monkeypatch.setattr(world.queue, "receive", long_poll)
    await ended(start(world, service))
    assert asked > 2


async def test_what_another_worker_holds_is_not_waited_for(world: World) -> None:
    await world.queue.send([closed("test-a")])
    (held,) = await world.queue.receive(1, 0)
    service = world.service()
    await ended(start(world, service))
    assert service.progress.acked == 0
    assert (await world.queue.depth()).in_flight == 1
    await world.queue.settle(held, Retry(0))
    await ended(start(world, world.service()))
    assert await world.states() == {"test-a": "published"}


async def test_a_message_that_comes_later_is_left_to_the_next_job(world: World) -> None:
    await world.queue.send([closed("test-a", delay=3600)])
    service = world.service()
    await ended(start(world, service))
    assert service.progress.acked == 0
    assert (await world.queue.depth()).delayed == 1


async def test_what_it_has_put_off_itself_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "_PATIENCE", 0.01)
    world.target.gate.clear()
    await world.queue.send([fetched(f"test-{number}") for number in range(4)])
    service = world.service()
    monkeypatch.setattr(service._turns, "_most_away", 1)
    running = start(world, service, patience=0.05)
    # Of four places one recipe has three.
    await until(lambda: service._turns.away == 1)
    world.target.gate.set()
    await ended(running)
    assert service.progress.acked == 4


async def test_a_completion_that_cannot_go_out_does_not_keep_it(world: World) -> None:
    """It stays in the outbox, for which KEDA starts the next Job."""
    world.publisher.error = PublishError("no answer")
    await world.queue.send([closed("test-a")])
    service = world.service()
    service._relay._retry = type(service._relay._retry)(base=3600.0, cap=3600.0)
    await ended(start(world, service))
    assert service.progress.acked == 1
    assert await world.ledger.pending() == 1


async def test_a_queue_that_cannot_be_asked_is_not_empty(world: World) -> None:
    world.queue.down = True
    service = world.service()
    running = start(world, service)
    await until(lambda: world.queue.receives > 20)
    assert not running.done()
    await world.queue.send([closed("test-a")])
    world.queue.down = False
    await ended(running)
    assert service.progress.acked == 1


async def test_an_outage_begins_the_quiet_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_LONGEST_POLL", 0.02)
    running = start(world, world.service(), patience=0.3)
    await until(lambda: world.queue.receives > 2)
    world.queue.down = True
    # Longer than the patience.
    await asyncio.sleep(0.4)
    asked = world.queue.receives
    world.queue.down = False
    await ended(running)
    assert world.queue.receives > asked + 3, "and not at the first look after it"


def test_the_command_ends_with_status_0(tmp_path: Path) -> None:
    environ = {"TRANSLOAD_HOME": str(tmp_path), "TRANSLOAD_ADMIN__PORT": "0"}
    done = CliRunner().invoke(app, ["run", "--until-empty", "1"], env=environ)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "0 messages done" in done.stderr


def test_a_job_has_probes_and_metrics(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        environ = {"TRANSLOAD_HOME": str(tmp_path), "TRANSLOAD_ADMIN__PORT": str(port)}
        done = CliRunner().invoke(app, ["run", "--until-empty", "1"], env=environ)
    assert isinstance(done.exception, AdminError), "it wants the port"


@pytest.mark.parametrize(
    "arguments", [["--until-empty", "0"], ["--until-empty", "soon"], ["--until-empty", "5", "--until-idle"]]
)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["run", *arguments], env={"TRANSLOAD_HOME": str(tmp_path)})
    assert done.exit_code == 2
    assert "--until-empty" in done.output
