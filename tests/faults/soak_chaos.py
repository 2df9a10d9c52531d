"""What the soak does to its workers, and what it sees of the one it spares. Used by tests/faults/soak.py."""

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.workers import Usage, Worker, Workers

RSS_BOUND = 16 << 20
"""Bytes the median of the last quarter may lie above that of the second: what an allocator's moods come to, no leak."""
FD_BOUND = 4
THREAD_BOUND = 6
"""The event loop's own pool grows only when many ask at once, which may happen late."""
_EVERY = 1.0
"""Seconds between two samples."""

Violation = Callable[[str], None]


async def haunt(
    pool: Workers, slot: int, seed: int, stop: asyncio.Event, deeds: Counter[str], violation: Violation
) -> None:
    """Keep one worker running, and every few seconds kill it, end it, or hold it up. It runs when this returns."""
    draw = random.Random(f"{seed}/slot/{slot}")
    worker = pool.start("run")
    while True:
        pause, deed = draw.uniform(0.5, 6.0), draw.choice(["kill", "kill", "term", "stall"])
        stall, rest = draw.choice([0.3, 1.5, 3.0, 4.5]), draw.uniform(0.0, 1.0)
        if await _told(stop, pause):
            return
        if not worker.alive:
            violation(f"{worker.log.name}: it ended by itself with status {worker.wait()}")
            worker = pool.start("run")
            continue
        deeds[deed] += 1
        if deed == "stall":
            await asyncio.to_thread(worker.stop)
            await _told(stop, stall)
            worker.cont()
            continue
        await (_end(worker, violation) if deed == "term" else asyncio.to_thread(worker.kill))
        await _told(stop, rest)
        worker = pool.start("run")


async def _end(worker: Worker, violation: Violation) -> None:
    try:
        await asyncio.to_thread(worker.until, lambda: worker.drains)
        worker.terminate()
        if status := await worker.ended():
            violation(f"{worker.log.name}: it left with status {status} after SIGTERM")
    except AssertionError as exc:
        violation(f"{worker.log.name}: {exc}")
        worker.kill()


async def end_all(workers: Sequence[Worker], violation: Violation) -> None:
    """SIGTERM to each; all have to leave in order."""
    await asyncio.gather(*(_end(worker, violation) for worker in workers))


@dataclass(slots=True)
class Samples:
    """What the spared worker held, second by second."""

    taken: list[Usage] = field(default_factory=list)

    async def take(self, worker: Worker, stop: asyncio.Event) -> None:
        """Until told to stop, or until the worker has ended."""
        while worker.alive and not await _told(stop, _EVERY):
            self.taken.append(worker.usage())

    def judge(self, violation: Violation) -> list[tuple[str, str, str, str]]:
        """Case 109: memory, descriptors and threads stay flat under the load. Rows of the table: what, the second quarter, the last quarter, the bound."""
        quarter = len(self.taken) // 4
        if quarter < 4:
            violation(f"the spared worker was seen {len(self.taken)} times only")
            return []
        early, late = self.taken[quarter : 2 * quarter], self.taken[-quarter:]
        rows = []
        measures: list[tuple[str, Callable[[Usage], int], int, int, str]] = [
            ("RSS", lambda usage: usage.rss, RSS_BOUND, 1 << 20, " MiB"),
            ("fds", lambda usage: usage.fds, FD_BOUND, 1, ""),
            ("threads", lambda usage: usage.threads, THREAD_BOUND, 1, ""),
        ]
        for name, of, bound, unit, label in measures:
            before, after = (statistics.median(map(of, part)) for part in (early, late))
            if after - before > bound:
                violation(f"{name} of the spared worker grew from {before:.0f} to {after:.0f}")
            rows.append(
                (
                    name,
                    f"{before / unit:.0f}{label}",
                    f"{after / unit:.0f}{label}",
                    f"+{bound // unit}{label}",
                )
            )
        return rows


async def _told(stop: asyncio.Event, seconds: float) -> bool:
    """Whether it was told to stop within so many seconds."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True
