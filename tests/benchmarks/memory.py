"""`make bench-memory`: peak memory of the worker with one payload of 4 GiB, embedded and through S3 on LocalStack.

The worker is a process of its own; the figure is the kernel's high-water mark of its resident memory (VmHWM), which needs
no sampling. The producer's is printed beside it.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from tests.e2e.test_aws import Aws
from tests.support.cli import Transload
from tests.support.localstack import LocalStack, LocalStackEndpoint

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "memory"
LIMIT_MIB = 256


def make_payload(path: Path, size: int) -> None:
    """`size` bytes that no layer can compress away."""
    block = secrets.token_bytes(64 << 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        written = 0
        while written < size:
            written += file.write(block[: size - written])


def peak_mib(transload: Transload, *arguments: str | Path) -> tuple[float, float, str]:
    """Run a command; peak resident MiB, seconds, and its stdout."""
    started = time.monotonic()
    command = transload.command(*arguments)
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); "
        "sys.exit(done.returncode)"
    )
    environ = os.environ | {"TRANSLOAD_ADMIN__PORT": "0", "TRANSLOAD_LOGS__LEVEL": "warning"}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environ
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stderr.split()[-1]) / 1024, time.monotonic() - started, done.stdout


def measure(label: str, transload: Transload, payload: Path) -> bool:
    """Publish, run, verify; print one row."""
    produced, _, bid = peak_mib(transload, "publish", payload, "--recipe", "bench")
    worked, seconds, _ = peak_mib(transload, "run", "--until-idle")
    _, _, verified = peak_mib(transload, "verify", bid.strip(), "--json")
    passed = bool(json.loads(verified)["passed"]) and json.loads(verified)["objects"] == 1
    rate = payload.stat().st_size / (1 << 20) / seconds
    print(
        f"{label:28s} worker peak {worked:5.0f} MiB   producer peak {produced:5.0f} MiB   {rate:5.0f} MiB/s   "
        f"digest {'matches' if passed else 'DIFFERS'}",
        flush=True,
    )
    return passed and worked < LIMIT_MIB


@contextmanager
def localstack() -> Iterator[LocalStackEndpoint]:
    """A LocalStack for the time of the block."""
    server = LocalStack()
    try:
        yield LocalStackEndpoint(server.start().endpoint_url)
    finally:
        server.stop()


async def through_s3(endpoint: LocalStackEndpoint, folder: Path) -> Transload:
    """A configuration with buckets and queues of its own."""
    async with AsyncExitStack() as stack:
        return Transload(folder / "home", await Aws(endpoint, stack).config(folder, lease=60))


def main() -> int:
    """Print both rows; exit status 1 when a peak is above the limit or a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=4096, help="size of the payload")
    parser.add_argument("--only", choices=["embedded", "s3"], help="measure one of the two")
    options = parser.parse_args()
    shutil.rmtree(ROOT, ignore_errors=True)
    payload = ROOT / "payload.bin"
    make_payload(payload, options.mib << 20)
    good = True
    if options.only != "s3":
        good &= measure("embedded (file to file)", Transload(ROOT / "home"), payload)
        shutil.rmtree(ROOT / "home")
    if options.only != "embedded":
        with localstack() as endpoint:
            good &= measure("SQS, S3 to S3 (LocalStack)", asyncio.run(through_s3(endpoint, ROOT)), payload)
    shutil.rmtree(ROOT, ignore_errors=True)
    print(f"one payload of {options.mib} MiB; limit {LIMIT_MIB} MiB: {'kept' if good else 'NOT KEPT'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
