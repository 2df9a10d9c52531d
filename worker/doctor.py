"""Looks at everything the settings name, as a worker would meet it, and says what is wrong. Behind `transload doctor`.

Everything is looked at beside everything else, each part for so many seconds at most: one that is broken, or does not answer,
keeps nothing else from being looked at. What a worker makes when it starts (embedded files, folders, declared queues) is made.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

from sqlalchemy import select

from backends.base import Attributes, StorageBackend, single
from backends.errors import MissingExtra, NotFound, PermissionDenied, StorageError, Unavailable
from backends.wrapper import bare
from worker import bootstrap
from worker.ledger.base import LedgerError, LedgerUnavailable
from worker.ledger.schema import HEAD, now_ms
from worker.objects import Address, opened
from worker.publishers.base import PublishError
from worker.queues.base import QueueDenied, QueueError, QueueUnavailable
from worker.secret_values import hiding
from worker.settings import Settings

SKEW_LIMIT: Final = 60.0
"""Seconds our clock may be off. Requests to AWS are refused from 15 minutes on, and ages are told wrongly long before."""

_DELETE_SECONDS: Final = 5.0
_NETWORK: Final = "see that it runs, and look at its address and the network"
_RIGHTS: Final = "look at the credentials, and at what they allow"
_REMEDIES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (MissingExtra, "install what it says"),
    (NotFound, "make it, or correct its name"),
    (PermissionDenied, _RIGHTS),
    (QueueDenied, _RIGHTS),
    (Unavailable, _NETWORK),
    (QueueUnavailable, _NETWORK),
    (LedgerUnavailable, "see that the database runs, and look at ledger.url"),
)
_FORESEEN: Final = (StorageError, QueueError, LedgerError, PublishError, OSError)


class State(Enum):
    """How bad it is. Only problems are counted."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` is empty where nothing is to be done, or the text says it."""

    part: str
    """`ledger`, `queue`, `publisher`, `staging main`, `target main`."""
    check: str
    state: State
    text: str
    remedy: str = ""


class Look:
    """Gathers what is found out about one part. `check` is what is being looked at, should it fail."""

    def __init__(self, part: str, clean: Callable[[str], str]) -> None:
        """`clean` takes secrets out of a text."""
        self.part = part
        self.check = "reachable"
        self.findings: list[Finding] = []
        self._clean = clean

    def ok(self, text: str) -> None:
        self._add(State.OK, text, "")

    def note(self, text: str, remedy: str = "") -> None:
        self._add(State.NOTE, text, remedy)

    def problem(self, text: str, remedy: str = "") -> None:
        self._add(State.PROBLEM, text, remedy)

    def failed(self, exc: Exception) -> None:
        """What an error means, and what is to be done about it."""
        remedy = next((words for kind, words in _REMEDIES if isinstance(exc, kind)), "")
        self.problem(str(exc) or type(exc).__name__, remedy)

    def clock(self, theirs: float, ours: float) -> None:
        """Compare two clocks: seconds since the epoch."""
        self.check = "clock"
        skew = ours - theirs
        if abs(skew) > SKEW_LIMIT:
            ahead = "ahead of" if skew > 0 else "behind"
            self.problem(f"our clock is {abs(skew):.0f} s {ahead} its clock", "set both by NTP")
        else:
            self.ok(f"our clock is within {max(1.0, abs(skew)):.0f} s of its clock")

    def _add(self, state: State, text: str, remedy: str) -> None:
        self.findings.append(Finding(self.part, self.check, state, self._clean(text), remedy))


async def examine(settings: Settings, *, write: bool = False, seconds: float = 15.0) -> Sequence[Finding]:
    """All findings, part by part in the order of the settings. Raises nothing foreseen.

    `write`: try a real write, read and delete in each place, and a commit in the ledger. `seconds`: for each part.
    """
    clean = hiding(settings)
    parts: list[tuple[str, Callable[[Look], Awaitable[None]]]] = [
        ("ledger", partial(_ledger, settings, write=write)),
        ("queue", partial(_queue, settings)),
        ("publisher", partial(_publisher, settings)),
        *(
            (f"staging {name}", partial(_place, settings, Address("staging", name, None), write=write))
            for name in settings.staging
        ),
        *(
            (f"target {name}", partial(_place, settings, Address("target", name, None), write=write))
            for name in settings.targets
        ),
    ]
    looked = await asyncio.gather(*(_look(Look(part, clean), work, seconds) for part, work in parts))
    return [finding for findings in looked for finding in findings]


async def _look(look: Look, work: Callable[[Look], Awaitable[None]], seconds: float) -> list[Finding]:
    try:
        async with asyncio.timeout(seconds):
            await work(look)
    except TimeoutError:
        look.problem(f"no answer within {seconds:g} s", f"{_NETWORK}; or raise --timeout")
    except _FORESEEN as exc:
        look.failed(exc)
    except Exception as exc:  # noqa: BLE001 - an adapter that is broken is a finding, and the others are looked at
        look.problem(f"{type(exc).__name__}: {exc}", "this is an error of the adapter: tell whoever wrote it")
    return look.findings


async def _ledger(settings: Settings, look: Look, *, write: bool) -> None:
    async with bootstrap.open_ledger(settings) as ledger:
        summary = await ledger.summary()
        look.ok(f"{summary.resources:,} resources")
        look.check = "schema"
        look.ok(f"as this release has it ({HEAD})")
        if write:
            look.check = "writable"
            await ledger.probe()
            look.ok("a transaction was committed")
        if summary.outbox_parked:
            look.check = "completions"
            look.note(f"{summary.outbox_parked} are parked", "transload outbox ls --state parked")
    look.check = "clock"
    database = bootstrap.open_ledger_database(settings)
    try:
        if database.dialect == "postgresql":
            theirs = await database.read(lambda conn: conn.execute(select(now_ms())).scalar_one())
            look.clock(theirs / 1000, time.time())
    finally:
        await database.aclose()


async def _queue(settings: Settings, look: Look) -> None:
    async with bootstrap.open_queue(settings) as queue:
        depth = await queue.depth()
        look.ok(f"{queue.name}: {depth.visible} waiting, {depth.in_flight} in work, {depth.delayed} delayed")
        look.check = "dead letters"
        letters = await queue.open_dead_letters()
        await letters.aclose()
        if depth.dead:
            look.note(f"{letters.name}: {depth.dead}", "transload dlq ls")
        else:
            look.ok(f"{letters.name} is there")
    if settings.queue.type == "sqs":
        # Its packages are of an extra.
        from worker import doctor_aws  # noqa: PLC0415

        await doctor_aws.look_at_queue(settings.queue.options, look)


async def _publisher(settings: Settings, look: Look) -> None:
    async with bootstrap.open_publisher(settings) as publisher:
        look.ok(publisher.destination)


async def _place(settings: Settings, address: Address, look: Look, *, write: bool) -> None:
    is_target = address.kind == "target"
    place = (settings.targets if is_target else settings.staging)[address.name]
    async with opened(settings, address) as backend:
        await backend.health()
        look.ok(f"{place.backend}: {backend.location}")
        _features(look, backend, is_target=is_target)
        if write:
            await _probe(look, backend, address.prefix(settings), is_target=is_target)
        if place.backend == "s3":
            # Its packages are of an extra.
            from worker import doctor_aws  # noqa: PLC0415

            await doctor_aws.look_at_bucket(bare(backend, "")[0], look)


def _features(look: Look, backend: StorageBackend, *, is_target: bool) -> None:
    look.check = "features"
    features = backend.features
    if not is_target and not features.reads:
        look.problem(
            "it cannot be read, and staging has to be", "give this source another backend or options"
        )
    if is_target and not features.create_only:
        look.note(
            "it cannot keep a write from replacing other content; keys that are not ours are not safe there"
        )


async def _probe(look: Look, backend: StorageBackend, prefix: str, *, is_target: bool) -> None:
    """Write, read and delete one small object under a key that no layout builds."""
    look.check = "writable"
    if not backend.features.deletes:
        look.note("not tried: what is written there cannot be deleted")
        return
    key = f"{prefix}.transload-doctor-{secrets.token_hex(8)}"
    content = secrets.token_hex(32).encode()
    try:
        await backend.write(key, single(content), Attributes("text/plain"))
    except PermissionDenied as exc:
        if is_target:
            raise
        look.note(f"a fetcher may not write with these credentials; a worker need not: {exc}")
        return
    except Unavailable:
        # The answer may have got lost, and the object be there.
        with suppress(StorageError, TimeoutError):
            await _delete(backend, key)
        raise
    try:
        if backend.features.reads:
            look.check = "readable"
            async with backend.open(key) as chunks:
                if b"".join([chunk async for chunk in chunks]) != content:
                    look.problem(f"{key} does not read back as it was written", "look at the store itself")
    finally:
        await _clear(look, backend, key)
    look.check = "writable"
    look.ok(f"an object was written{', read' if backend.features.reads else ''} and deleted")


async def _clear(look: Look, backend: StorageBackend, key: str) -> None:
    check = look.check
    try:
        await _delete(backend, key)
    except (StorageError, TimeoutError) as exc:
        look.check = "deletable"
        look.problem(f"{key} was written and could not be deleted: {exc}", "delete it by hand")
    finally:
        look.check = check


async def _delete(backend: StorageBackend, key: str) -> None:
    async with asyncio.timeout(_DELETE_SECONDS):
        await backend.delete(key)
