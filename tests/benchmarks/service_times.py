"""How long a real worker holds each message of a mixed load: what the simulation of scaling draws from.

`python -m tests.benchmarks.service_times > tests/benchmarks/service_times.json` measures anew (a minute): four messages in
work at once, payloads of very different sizes, and a target whose guard passes 10 MB/s, so that the transfers share one bandwidth.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from worker import bootstrap, logs
from worker.delivery import Delivery
from worker.local_files import bundle_of, find_files, publish
from worker.settings import load_settings

CONCURRENCY = 4
MESSAGES = 200
BANDWIDTH = 10_000_000
"""Bytes a second that the target takes."""
MEDIAN = 2_000_000
"""Bytes of a payload; the sizes are log-normal, and none is above five times that."""
SPREAD = 0.8

SETTINGS = f"""
worker: {{concurrency: {CONCURRENCY}}}
targets:
  main: {{backend: file, server_copy: false, rate_limit: {{bytes: {BANDWIDTH}, burst: 0}}}}
"""


async def measure(folder: Path) -> list[float]:
    """Seconds from the receive of each message to its answer, in the order of the answers."""
    source = random.Random(1)
    (folder / "in").mkdir()
    for number in range(MESSAGES):
        size = min(int(source.lognormvariate(0, SPREAD) * MEDIAN), 5 * MEDIAN)
        (folder / "in" / f"{number:03}.bin").write_bytes(source.randbytes(size))
    (folder / "transload.yaml").write_text(SETTINGS, encoding="utf-8")
    settings = load_settings(file=folder / "transload.yaml", home=folder / "home", environ={})
    async with bootstrap.open_producer(settings) as producer:
        bundle = bundle_of(find_files([folder / "in"]), "timings")
        await publish(producer, bundle, metadata={}, staged=lambda _: None)
    seconds: list[float] = []
    async with bootstrap.open_service(settings, admin=False) as service:
        handle = service._settler.handle

        async def timed(delivery: Delivery) -> None:
            started = time.monotonic()
            await handle(delivery)
            seconds.append(round(time.monotonic() - started, 3))

        service._settler.handle = timed  # type: ignore[method-assign] # the one place all messages pass
        await service.run(until_idle=True)
    return seconds


def main() -> None:
    """Print what was measured as JSON."""
    logs.configure("warning", "auto", sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(Path(folder)))
    # The closing of the bundle is a message, too, and moves nothing.
    facts = {
        "concurrency": CONCURRENCY,
        "bytes_a_second": BANDWIDTH,
        "median_bytes": MEDIAN,
        "seconds": sorted(seconds)[1:],
    }
    json.dump(facts, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
