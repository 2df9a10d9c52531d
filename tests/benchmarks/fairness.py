"""`make bench-fairness`: how long a quiet recipe's messages take beside another recipe's flood, with the shares and without.

The quiet recipe sends a message of 10 kB every tenth of a second; its latency is from the send until the record of the message is
durable. It is measured alone, and then beside each flood, which is sent in the moment before. All on one worker with an embedded
queue, whose settings are the defaults but for what a flood needs; runs of one round see the same noise.

Its share, where k recipes are at work: k times the p99 it has alone, the time it took to find the message behind the flood, and the
time that one of the flood's own messages is in work, since a place is not taken away from who has it.
"""

import argparse
import asyncio
import gzip
import math
import shutil
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.crowd import Crowd, crowd
from worker import logs

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "fairness"
EVERY = 0.1
SLOW = 30.0
"""Seconds that a slow payload takes: 30 bytes, one a second."""
BOMB = gzip.compress(bytes(256 << 20), 1)
"""About 1 MB, of which the limits allow 16 MiB and a ratio of 200."""


async def _small(world: Crowd, messages: int) -> None:
    await world.send("loud", [str(number) for number in range(messages)], b"x" * 10_000)


async def _bombs(world: Crowd, messages: int) -> None:
    await world.send("loud", [str(number) for number in range(messages)], BOMB)


async def _poison(world: Crowd, messages: int) -> None:
    await world.send("loud", [str(number) for number in range(messages)], None)


async def _slow(world: Crowd, messages: int) -> None:
    world.staging.slow = {f"loud-{number}" for number in range(messages)}
    world.staging.seconds = SLOW
    await world.send("loud", [str(number) for number in range(messages)], b"x" * 30)


@dataclass(frozen=True)
class Flood:
    """What is sent before the quiet recipe begins."""

    name: str
    send: Callable[[Crowd, int], Awaitable[None]]
    messages: int
    settings: Mapping[str, Any]


FLOODS = (
    Flood("2,000 small messages", _small, 2_000, {}),
    Flood(
        "200 gzip bombs",
        _bombs,
        200,
        {"routes": {"all": {"transforms": ["gunzip"], "limits": {"total": 200 << 20}}}},
    ),
    Flood("1,000 without a payload", _poison, 1_000, {"worker": {"retry_base": 0.1, "max_attempts": 5}}),
    Flood("200 payloads at 1 byte/s", _slow, 200, {}),
)


@dataclass(frozen=True)
class Seen:
    """Seconds, of each message."""

    quiet: list[float]
    """From the send of one of the quiet recipe's until it was stored."""
    found: list[float]
    """The part of it before work on it began."""
    loud: list[float]
    """That one of the flood's was in work, each time."""


async def measure(folder: Path, flood: Flood | None, settings: Mapping[str, Any], messages: int) -> Seen:
    """One run."""
    sections = {**settings, "worker": {"drain_timeout": 0, **settings.get("worker", {})}}
    async with crowd(folder, **sections) as world:
        # The first message of a process opens connections and files.
        await world.send("warm", ["0"])
        while not world.done:  # noqa: ASYNC110 - what is stored sets no event
            await asyncio.sleep(0.01)
        if flood is not None:
            await flood.send(world, flood.messages)
        loop = asyncio.get_running_loop()
        sent: dict[str, float] = {}
        begun = loop.time()
        for number in range(messages):
            await asyncio.sleep(max(0.0, begun + number * EVERY - loop.time()))
            sent[f"quiet-{number}"] = loop.time()
            await world.send("quiet", [str(number)], b"x" * 10_000)
        while world.count("quiet") < messages:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        began = {key: at for key, at, _ in reversed(world.worked)}
        return Seen(
            [world.done[key] - at for key, at in sent.items()],
            [began[key] - at for key, at in sent.items()],
            [seconds for key, _, seconds in world.worked if key.startswith("loud-")],
        )


def quantile(seconds: list[float], share: float) -> float:
    """Of so many measurements the one that `share` of them do not exceed."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1]


def shown(seen: Seen, alone: Seen) -> str:
    """p50 and p99 in milliseconds, and how many times those of alone."""
    text = ""
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        took = quantile(seen.quiet, share)
        text += f"{name} {took * 1000:7,.0f} ({took / quantile(alone.quiet, share):6.1f})   "
    text += f"began after p99 {quantile(seen.found, 0.99) * 1000:7,.0f}"
    if seen.loud:
        unit = quantile(seen.loud, 0.99)
        share = 2 * quantile(alone.quiet, 0.99) + quantile(seen.found, 0.99) + unit
        text += f"   the flood's in work p99 {unit * 1000:7,.0f}"
        text += f"   together {share * 1000:7,.0f}"
    return text


def _fresh() -> Path:
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    return ROOT


def main() -> None:
    """Run each flood with the shares and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100, help="of the quiet recipe")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a flood's name")
    options = parser.parse_args()
    logs.configure("error", "auto", sys.stderr)
    ratios: dict[tuple[str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for flood in FLOODS:
            if options.only not in flood.name:
                continue
            alone = asyncio.run(measure(_fresh(), None, flood.settings, options.messages))
            print(f"{flood.name:28}  alone           {shown(alone, alone)}", flush=True)
            for fair in (False, True):
                worker = {**flood.settings.get("worker", {}), "fair": fair}
                settings = {**flood.settings, "worker": worker}
                seen = asyncio.run(measure(_fresh(), flood, settings, options.messages))
                how = "with shares" if fair else "without shares"
                print(f"{'':28}  {how:14}  {shown(seen, alone)}", flush=True)
                ratio = quantile(seen.quiet, 0.99) / quantile(alone.quiet, 0.99)
                ratios.setdefault((flood.name, fair), []).append(ratio)
    shutil.rmtree(ROOT, ignore_errors=True)
    print("\np99 beside the flood, in p99s alone (median of the rounds): without shares, with shares")
    for name in dict.fromkeys(name for name, _ in ratios):
        without, shared = (statistics.median(ratios[name, fair]) for fair in (False, True))
        print(f"{name:28}  {without:8.1f}  {shared:8.1f}")


if __name__ == "__main__":
    main()
