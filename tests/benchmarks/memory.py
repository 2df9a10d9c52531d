"""`make bench-memory`: peak memory of the worker with one payload of 4 GiB: as it is, embedded and through S3 on LocalStack; as a
gzip and as a zip of 10,000 files that are decoded on their way to S3.

The worker is a process of its own; the figure is the kernel's high-water mark of its resident memory (VmHWM), which needs
no sampling. The producer's is printed beside it.
"""

import argparse
import asyncio
import gzip
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from tests.e2e.test_aws import Aws
from tests.support.cli import Transload
from tests.support.localstack import LocalStack, LocalStackEndpoint

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "memory"
LIMIT_MIB = 256
MEMBERS = 10_000


def make_payload(path: Path, size: int) -> None:
    """`size` bytes that no layer can compress away."""
    block = secrets.token_bytes(64 << 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        written = 0
        while written < size:
            written += file.write(block[: size - written])


def text(size: int) -> Iterator[bytes]:
    """`size` bytes of JSON lines in pieces; gzip makes about a quarter of them."""
    rows = b"".join(
        json.dumps(
            {"id": number, "token": secrets.token_hex(12), "text": "the quick brown fox " * 3}
        ).encode()
        + b"\n"
        for number in range(8_000)
    )
    left = size
    while left > 0:
        piece = rows[:left]
        left -= len(piece)
        yield piece


def make_gzip(path: Path, size: int) -> None:
    """One member that decodes to `size` bytes."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in text(size):
            file.write(piece)


def make_zip(path: Path, size: int) -> None:
    """Files of `size` bytes in all."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(MEMBERS):
            with archive.open(f"{number % 100:02}/{number:05}.jsonl", "w") as file:
                for piece in text(size // MEMBERS):
                    file.write(piece)


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
    environ = (
        os.environ | {"TRANSLOAD_ADMIN__PORT": "0", "TRANSLOAD_LOGS__LEVEL": "warning"} | transload.environ
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, env=environ
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stderr.split()[-1]) / 1024, time.monotonic() - started, done.stdout


def measure(label: str, transload: Transload, payload: Path, size: int, objects: int = 1) -> bool:
    """Publish, run, verify; print one row. `size` bytes are stored, in so many objects."""
    produced, _, bid = peak_mib(transload, "publish", payload, "--recipe", "bench")
    worked, seconds, _ = peak_mib(transload, "run", "--until-idle")
    _, _, verified = peak_mib(transload, "verify", bid.strip(), "--json")
    found = json.loads(verified)
    passed = found["passed"] and (found["objects"], found["size"]) == (objects, size)
    rate = size / (1 << 20) / seconds
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


async def through_s3(endpoint: LocalStackEndpoint, folder: Path, transforms: str = "") -> Transload:
    """A configuration with buckets and queues of its own."""
    await asyncio.to_thread(folder.mkdir)
    environ = {"TRANSLOAD_ROUTES__DEFAULT__TRANSFORMS": f"[{transforms}]"} if transforms else {}
    async with AsyncExitStack() as stack:
        config = await Aws(endpoint, stack).config(folder, lease=60)
        return Transload(folder / "home", config, environ)


def main() -> int:
    """Print the rows; exit status 1 when a peak is above the limit or a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=4096, help="size of the payload")
    parser.add_argument("--only", choices=["embedded", "s3", "gunzip", "unzip"], help="measure only that")
    options = parser.parse_args()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    size = options.mib << 20
    wanted = {options.only} if options.only else {"embedded", "s3", "gunzip", "unzip"}
    good = True
    payload = ROOT / "payload.bin"
    if wanted & {"embedded", "s3"}:
        make_payload(payload, size)
    if "embedded" in wanted:
        good &= measure("embedded (file to file)", Transload(ROOT / "home"), payload, size)
        shutil.rmtree(ROOT / "home")
    if wanted == {"embedded"}:
        return ended(options.mib, good)
    with localstack() as endpoint:
        if "s3" in wanted:
            plain = asyncio.run(through_s3(endpoint, ROOT / "s3"))
            good &= measure("SQS, S3 to S3 (LocalStack)", plain, payload, size)
            payload.unlink()
        if "gunzip" in wanted:
            make_gzip(ROOT / "payload.gz", size)
            decoding = asyncio.run(through_s3(endpoint, ROOT / "gunzip", "gunzip"))
            good &= measure("gunzip to S3", decoding, ROOT / "payload.gz", size)
        if "unzip" in wanted:
            make_zip(ROOT / "payload.zip", size)
            taking_apart = asyncio.run(through_s3(endpoint, ROOT / "unzip", "unzip"))
            stored = size // MEMBERS * MEMBERS
            good &= measure(
                f"unzip {MEMBERS:,} files to S3", taking_apart, ROOT / "payload.zip", stored, MEMBERS
            )
    return ended(options.mib, good)


def ended(mib: int, good: bool) -> int:
    """Clear away, and the verdict."""
    shutil.rmtree(ROOT, ignore_errors=True)
    print(f"payloads of {mib} MiB; limit {LIMIT_MIB} MiB: {'kept' if good else 'NOT KEPT'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
