"""`make bench`: 2,000 resources of 10 kB, file to file, beside a bare thread pool that writes the same files.

The peer reads every staged payload and writes payload, sidecar and manifest the way the file backend must (temporary file,
fsync, link, unlink, fsync of the directory), on as many threads, and keeps no queue, ledger, digest check or outbox. Rounds
alternate, so that both see the same noise; the figure is the ratio of the medians.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker import bootstrap, logs
from worker.local_files import bundle_of, find_files, publish
from worker.publishers.embedded import EmbeddedPublisher
from worker.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "throughput"
THREADS = 16


def make_payloads(folder: Path, resources: int, bundles: int, size: int) -> Sequence[Path]:
    """`bundles` folders that share `resources` random files."""
    source = random.Random(1)  # the same files in every run
    folders = []
    for bundle in range(bundles):
        here = folder / f"bundle-{bundle:03}"
        here.mkdir(parents=True)
        for number in range(resources // bundles):
            (here / f"payload-{number:05}.bin").write_bytes(source.randbytes(size))
        folders.append(here)
    return folders


async def stage(settings: Settings, folders: Sequence[Path]) -> None:
    """Fill staging and queue; not timed."""
    async with bootstrap.open_producer(settings) as producer:
        for folder in folders:
            bundle = bundle_of(find_files([folder]), "bench")
            await publish(producer, bundle, metadata={"source": "bench"}, staged=lambda _: None)


async def work(settings: Settings, bundles: int) -> float:
    """Seconds from a full queue until the last completion is published."""
    async with (
        bootstrap.open_service(settings, admin=False) as service,
        bootstrap.open_publisher(settings) as publisher,
    ):
        if not isinstance(publisher, EmbeddedPublisher):
            raise TypeError("the benchmark's settings are the embedded defaults")
        started = time.perf_counter()
        running = asyncio.create_task(service.run())
        while await publisher.count() < bundles and not running.done():
            await asyncio.wait([running], timeout=0.02)
        seconds = time.perf_counter() - started
        service.stop()
        await running
        return seconds


def write(final: Path, data: bytes) -> None:
    """What a file needs to be there, whole, after a power cut."""
    temporary = final.with_name(f".{final.name}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.link(temporary, final)
    temporary.unlink()
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def bare_pool(storage: Path, staging: Path, target: Path) -> float:
    """Seconds a thread pool needs to read the staged payloads and write the files the worker wrote into `storage`."""
    staged = {path.name: path for path in staging.rglob("*") if path.is_file()}
    jobs = []
    for written in sorted(path for path in storage.rglob("*") if path.is_file()):
        payload = staged.get(written.name)
        data = b"" if payload is not None else written.read_bytes()
        final = target / written.relative_to(storage)
        final.parent.mkdir(parents=True, exist_ok=True)
        jobs.append((final, payload, data))

    def one(job: tuple[Path, Path | None, bytes]) -> None:
        final, payload, data = job
        write(final, data if payload is None else payload.read_bytes())

    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(one, jobs):
            pass
    return time.perf_counter() - started


def main() -> None:
    """Run the rounds and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", type=int, default=2_000)
    parser.add_argument("--bundles", type=int, default=20)
    parser.add_argument("--size", type=int, default=10_000, help="bytes a resource")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--goal", type=float, default=0.4)
    options = parser.parse_args()
    logs.configure("warning", "auto", sys.stderr)
    ours, peers = [], []
    shutil.rmtree(ROOT, ignore_errors=True)
    for number in range(options.rounds):
        # A fresh folder a round: ext4 makes whoever creates files pay for those deleted a moment ago.
        root = ROOT / f"round-{number}"
        folders = make_payloads(root / "in", options.resources, options.bundles, options.size)
        settings = load_settings(file=None, home=root / "home", environ={})
        asyncio.run(stage(settings, folders))
        ours.append(options.resources / asyncio.run(work(settings, options.bundles)))
        home = settings.home
        peers.append(options.resources / bare_pool(home / "storage", home / "staging", root / "peer"))
        print(
            f"round {number + 1}: transload {ours[-1]:7,.0f} resources/s   bare pool {peers[-1]:7,.0f} resources/s"
            f"   ratio {ours[-1] / peers[-1]:.2f}",
            flush=True,
        )
    shutil.rmtree(ROOT, ignore_errors=True)
    ratio = statistics.median(ours) / statistics.median(peers)
    print(
        f"median: transload {statistics.median(ours):,.0f}, bare pool {statistics.median(peers):,.0f} resources/s; "
        f"ratio {ratio:.2f} (goal {options.goal})"
    )


if __name__ == "__main__":
    main()
