"""`make bench-tracing`: what tracing costs a worker, beside the same work untraced.

Rounds take turns, so that both see the same noise; the figures are medians. CPU is the worker's whole process, with the thread that
sends; the collector is a process of its own, which takes every request and keeps nothing. Of each round it is said how many spans
arrived: a cheap figure whose spans were dropped would be none.
"""

import argparse
import asyncio
import gzip
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.benchmarks.throughput import make_payloads, stage, work
from worker import logs
from worker.settings import load_settings

ROOT = Path(__file__).resolve().parents[2] / ".bench" / "tracing"
_PROCESSES = multiprocessing.get_context("spawn")


def collect(port: Any, spans: "Synchronized[int]") -> None:
    """A collector, in its own process: tells its port, counts what comes."""

    class Collector(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            request = ExportTraceServiceRequest.FromString(body)
            with spans.get_lock():
                spans.value += sum(
                    len(scope.spans) for found in request.resource_spans for scope in found.scope_spans
                )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Nothing to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextmanager
def collector() -> "Iterator[tuple[str, Synchronized[int]]]":
    """Its URL, and how many spans it has been sent."""
    port, spans = _PROCESSES.Queue(), _PROCESSES.Value("q", 0)
    process = _PROCESSES.Process(target=collect, args=(port, spans), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}", spans
    finally:
        process.terminate()
        process.join()


def measured(root: Path, options: argparse.Namespace, environ: dict[str, str]) -> tuple[float, float]:
    """Resources a second, and milliseconds of CPU a resource."""
    # A fresh folder a round: ext4 makes whoever creates files pay for those deleted a moment ago.
    folders = make_payloads(root / "in", options.resources, options.bundles, options.size)
    untraced = load_settings(file=None, home=root / "home", environ={})
    asyncio.run(stage(untraced, folders))
    settings = load_settings(file=None, home=root / "home", environ=environ)
    began = time.process_time()
    seconds = asyncio.run(work(settings, options.bundles))
    cpu = time.process_time() - began
    return options.resources / seconds, 1000 * cpu / options.resources


def main() -> None:
    """Run the rounds and print what it costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", type=int, default=1_000)
    parser.add_argument("--bundles", type=int, default=10)
    parser.add_argument("--size", type=int, default=10_000, help="bytes a resource")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sample-ratio", type=float, default=1.0, help="tracing.sample_ratio")
    options = parser.parse_args()
    logs.configure("warning", "auto", sys.stderr)
    shutil.rmtree(ROOT, ignore_errors=True)
    rows: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with collector() as (url, spans):
        on = {
            "TRANSLOAD_TRACING__ENABLED": "true",
            "TRANSLOAD_TRACING__ENDPOINT": url,
            "TRANSLOAD_TRACING__SAMPLE_RATIO": str(options.sample_ratio),
        }
        for number in range(options.rounds):
            before = spans.value
            found = {}
            # Whoever is first in one round is second in the next.
            for traced in (number % 2 == 1, number % 2 == 0):
                root = ROOT / f"round-{number}-{traced}"
                found[traced] = measured(root, options, on if traced else {})
            rows.append((found[False], found[True]))
            (plain, plain_cpu), (rate, cpu) = rows[-1]
            print(
                f"round {number + 1}: untraced {plain:6,.0f}/s {plain_cpu:.2f} ms CPU   traced {rate:6,.0f}/s {cpu:.2f} ms CPU   "
                f"ratio {rate / plain:.2f}, CPU +{cpu - plain_cpu:.2f} ms a resource; {spans.value - before} spans arrived",
                flush=True,
            )
    shutil.rmtree(ROOT, ignore_errors=True)
    print(
        f"median: {statistics.median(traced[0] / plain[0] for plain, traced in rows):.2f} of the untraced rate, CPU "
        f"+{statistics.median(traced[1] - plain[1] for plain, traced in rows):.2f} ms a resource "
        f"({statistics.median(traced[1] / plain[1] for plain, traced in rows):.2f} times)"
    )


if __name__ == "__main__":
    main()
