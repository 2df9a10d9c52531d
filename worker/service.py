"""The running worker: intake, heartbeats, relay, gauges, and the two stops.

Built by worker/bootstrap.py, run by `transload run` and `transload demo`.

`stop_taking` ends the intake; what is in work is finished. `stop_working` then gives back whatever is not finished by the
deadline. Both happen in `run` when `stop` is called.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from worker.attempt_log import AttemptLog
from worker.circuits import Circuits
from worker.delivery import LeaseKeeper
from worker.disposition import RetryPolicy
from worker.health import TICK, Health
from worker.housekeeping import Housekeeping
from worker.intake import Intake
from worker.intake_gate import IntakeGate
from worker.ledger.base import Ledger, LedgerError
from worker.metrics import Metrics
from worker.pipeline import Pipeline
from worker.queues.base import REDRIVES_ATTRIBUTE, Message, Queue, QueueError
from worker.quiet import Quiet
from worker.redaction import redact
from worker.relay import Relay
from worker.secret_values import Hide
from worker.settling import Settler
from worker.shares import Shares
from worker.tracing import UNTRACED, Tracing
from worker.turns import Turns
from worker.uncaught import traceback_of

_GAUGES_EVERY = 5.0
_GAUGES_SHARE = 100
"""Seconds between refreshes, at least so many times what one takes."""
_PAUSE_AFTER_QUEUE_ERROR = 2.0
_LONGEST_POLL = 20.0
_LONGEST_PAUSE = 1.0
"""Seconds between looks at circuit breakers that keep the intake closed."""
_SHORT_POLL = 0.05
_IDLE_PAUSE = 0.1
_LAST_WORDS = 5.0
"""Seconds beyond the drain deadline, at most, in which messages are given back and completions sent."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """`concurrency`: messages worked on at once. `drain_timeout`: seconds between SIGTERM and giving back.

    `look_ahead`: messages received beyond those; `max_message_bytes`: the largest body.
    `fair`: recipes share; `limits`: messages of a route worked on at once.
    """

    concurrency: int = 64
    drain_timeout: float = 25.0
    look_ahead: int = 0
    max_message_bytes: int = 262_144
    fair: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)


class Service:
    """One worker process's work. `run` returns when it was told to stop, or was idle and asked to end then."""

    def __init__(
        self,
        *,
        queue: Queue,
        pipeline: Pipeline,
        relay: Relay,
        ledger: Ledger,
        housekeeping: Housekeeping | None,
        settings: ServiceSettings,
        retry: RetryPolicy,
        random: Callable[[], float],
        metrics: Metrics,
        health: Health,
        circuits: Circuits,
        tracing: Tracing = UNTRACED,
        hide: Hide = redact,
    ) -> None:
        """Takes connected parts; whoever made them closes them after `run`. Without `housekeeping` nothing is swept."""
        self._queue = queue
        self._relay = relay
        self._ledger = ledger
        self._housekeeping = housekeeping
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._circuits = circuits
        self._tracing = tracing
        self._leases = LeaseKeeper(queue, metrics)
        attempts = AttemptLog(
            ledger,
            queue.name,
            retry.max_attempts,
            on_silence=lambda why: self._gate.close(why),  # noqa: PLW0108 - each of the two knows the other
        )
        self._gate = IntakeGate(ledger, health, random, attempts.pay_owed)
        self._turns = Turns(
            Shares(settings.concurrency, settings.limits, fair=settings.fair),
            pipeline.owner,
            put_off=settings.look_ahead > 0,
            ready=self._gate.passed,
            random=random,
            metrics=metrics,
        )
        metrics.messages_in_flight.set_function(lambda: self._turns.in_work)
        self._intake = Intake(settings.concurrency, settings.look_ahead, settings.max_message_bytes)
        self._settler = Settler(
            queue=queue.name,
            pipeline=pipeline,
            attempts=attempts,
            turns=self._turns,
            retry=retry,
            random=random,
            metrics=metrics,
            on_silence=self._gate.close,
            tracing=tracing,
            hide=hide,
        )
        self._stopping = asyncio.Event()
        self._in_work: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._log = structlog.get_logger("service")
        self.progress = self._settler.progress

    def stop(self) -> None:
        """Take nothing more; finish or give back what is in work; return from `run`."""
        self._stopping.set()

    async def run(self, *, until_idle: bool = False, until_empty: float | None = None) -> None:
        """Work until `stop` is called.

        Or, with `until_idle`, until queue and outbox are empty; with `until_empty`, until the queue has given nothing for so many
        seconds while nothing was in work here.

        Raises what nobody foresaw in one of the background tasks: a worker without heartbeat or relay must not go on.
        """
        relay = asyncio.create_task(self._relay.run(), name="relay")
        background = [
            relay,
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._tick(), name="health"),
            asyncio.create_task(self._refresh_gauges(), name="gauges"),
            asyncio.create_task(self._gate.run(), name="intake-gate"),
            asyncio.create_task(self._ledger.watch(self._relay.wake), name="outbox-watch"),
        ]
        if self._housekeeping is not None and not until_idle:
            background.append(asyncio.create_task(self._housekeeping.run(), name="housekeeping"))
        intake = asyncio.create_task(self._take(Quiet(until_empty), until_idle=until_idle), name="intake")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({intake, stop, *background}, return_when=asyncio.FIRST_COMPLETED)
            self._health.draining = True
            await _ended(intake)
            # What is not worked on yet need not wait for the end of what is.
            self._turns.close()
            await self._drain(relay)
        finally:
            stop.cancel()
            for task in (intake, *background, *self._in_work):
                task.cancel()
            await asyncio.wait({intake, stop, *background, *self._in_work})
        for task in (intake, *background):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _take(self, quiet: Quiet, *, until_idle: bool) -> None:
        """Receive while there is room."""
        while not self._stopping.is_set():
            room = await self._intake.next(self._freed, self._health)
            # In this order: what frees the room may be what closes the gate.
            if not self._gate.is_open:
                quiet.disturb()
                await self._gate.passed()
            room, pause = self._circuits.admit(room)
            if pause:
                # The intake is well: it waits for targets.
                self._health.received()
                quiet.disturb()
                await _within(min(pause, _LONGEST_PAUSE), self._stopping.wait())
                continue
            # A receive that began beside work says nothing of the time after that.
            busy = self._has_work()
            wait = quiet.ask(_SHORT_POLL if until_idle else _LONGEST_POLL)
            try:
                messages = await self._receive(room, wait)
                if until_idle and not messages and await self._is_idle():
                    return
            except LedgerError as exc:
                self._gate.close(str(exc))
                continue
            except QueueError as exc:
                quiet.disturb()
                self._health.received()
                self._health.queue_reachable = False
                self._log.warning("cannot receive", kind=type(exc).__name__, error=str(exc))
                await _within(_PAUSE_AFTER_QUEUE_ERROR, self._stopping.wait())
                continue
            if quiet.heard(something=bool(messages) or busy or self._has_work()):
                return
            await self._start(messages)
            if until_idle and not messages:
                await _within(_IDLE_PAUSE, self._stopping.wait())

    def _has_work(self) -> bool:
        return bool(self._in_work or self._relay.in_hand or self._turns.away)

    async def _receive(self, room: int, wait: float) -> Sequence[Message]:
        messages = await self._tracing.receive(self._queue, room, wait)
        self._health.queue_reachable = True
        self._health.received()
        self._metrics.messages_received.labels(queue=self._queue.name).inc(len(messages))
        now = time.time()
        for message in messages:
            if REDRIVES_ATTRIBUTE in message.attributes:
                self._metrics.messages_redriven.labels(queue=self._queue.name).inc()
            if message.sent_at is not None:
                self._metrics.message_queue_age_seconds.observe(max(0.0, now - message.sent_at))
        return messages

    async def _start(self, messages: Sequence[Message]) -> None:
        for delivery in await self._leases.hold(messages):
            task = asyncio.create_task(self._settler.handle(delivery), name=f"message-{delivery.message.id}")
            self._in_work.add(task)
            self._intake.add(delivery.message)
            task.add_done_callback(partial(self._finished, delivery.message))

    def _finished(self, message: Message, task: asyncio.Task[None]) -> None:
        self._in_work.discard(task)
        self._intake.remove(message)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a delivery was left to its lease", exception=traceback_of(error))

    async def _is_idle(self) -> bool:
        """Nothing waits, is in work or comes back, and every completion is out. Looked at twice: queues approximate."""
        for _ in range(2):
            if self._in_work or not (await self._queue.depth()).idle or await self._ledger.pending():
                return False
            await asyncio.sleep(0.05)
        return True

    async def _drain(self, relay: asyncio.Task[None]) -> None:
        """Finish what is in work and announce what is due; by the deadline give back what is not finished."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.drain_timeout
        if self._in_work:
            self._log.info("draining", in_work=self._turns.in_work, seconds=self._settings.drain_timeout)
            await asyncio.wait(self._in_work, timeout=self._settings.drain_timeout)
        # One allowance for everything that is still to be said.
        deadline = max(deadline, loop.time() + _LAST_WORDS)
        self._relay.stop()
        if self._in_work:
            self._log.info("given back", messages=len(self._in_work))
            for task in self._in_work:
                task.cancel()
            await asyncio.wait(self._in_work, timeout=_LAST_WORDS)
        await asyncio.wait([relay], timeout=max(0.0, deadline - loop.time()))
        if relay.done():
            await self._announce_rest(deadline)
        else:
            self._left("out of time")

    async def _announce_rest(self, deadline: float) -> None:
        """Publish what is due before leaving, so that completions need not wait for the next worker."""
        try:
            async with asyncio.timeout_at(deadline):
                while await self._relay.announce_due():
                    pass
        except (LedgerError, TimeoutError) as exc:
            self._left(str(exc) or "out of time")

    def _left(self, why: str) -> None:
        """Whatever was being published may go out once more, from there."""
        self._log.warning("completions left for the next worker", error=why)

    async def _tick(self) -> None:
        """Tell the health thread that the event loop turns, and how late."""
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._health.tick(max(0.0, loop.time() - expected))

    async def _refresh_gauges(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._metrics.refresh(await self._ledger.summary())
            except LedgerError as exc:
                self._log.warning("gauges not refreshed", error=str(exc))
                await self._see_whether_it_takes_writes()
            # Counting bundles takes the longer the more there are; it must not keep the ledger busy.
            await asyncio.sleep(max(_GAUGES_EVERY, _GAUGES_SHARE * (loop.time() - began)))

    async def _see_whether_it_takes_writes(self) -> None:
        """An idle worker learns of an outage here."""
        try:
            await self._ledger.probe()
        except LedgerError as exc:
            self._gate.close(str(exc))


async def _within(seconds: float, waiting: Coroutine[Any, Any, Any]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
