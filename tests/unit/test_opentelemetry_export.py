"""Spans that reach a collector, by OTLP as it is spoken; collectors that do not answer; and the settings of all that."""

import asyncio
import gzip
import importlib.metadata
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import capture_logs

from backends.base import single
from worker import opentelemetry_export
from worker.bootstrap import open_producer, open_service
from worker.opentelemetry_export import exporting
from worker.producer import BundleRef
from worker.settings import SettingsError, load_settings
from worker.settings_process import TracingSettings

PATIENCE = 30.0


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP, or answers with another status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status = 200
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for _, _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(gzip.decompress(body))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, request))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Nothing to standard error."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def silent() -> Iterator[str]:
    """The URL of something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for happens on other threads
            await asyncio.sleep(0.01)


async def test_a_bundles_spans_reach_the_collector(collector: Collector, tmp_path: Path) -> None:
    environ = {
        "TRANSLOAD_TRACING__ENABLED": "true",
        "TRANSLOAD_TRACING__ENDPOINT": f"{collector.url}/",
        "TRANSLOAD_TRACING__SERVICE_NAME": "archive",
        "TRANSLOAD_TRACING__HEADERS__X-API-KEY_ENV": "COLLECTOR_KEY",
        "COLLECTOR_KEY": "geheim",
    }
    settings = load_settings(file=None, home=tmp_path, environ=environ)
    async with open_producer(settings) as producer:
        bundle = await producer.start_bundle(BundleRef("https://example.com/", bid="test-sent"), "fr")
        await bundle.add_resource("https://example.com/a", None, 200, single(b"a"))
        await bundle.complete({})
    async with open_service(settings, admin=False) as service:
        await service.run(until_idle=True)

    assert {path for path, _, _ in collector.requests} == {"/v1/traces"}
    for _, headers, request in collector.requests:
        assert headers["content-type"] == "application/x-protobuf"
        assert headers["x-api-key"] == "geheim"
        (resource,) = request.resource_spans
        facts = {each.key: each.value.string_value for each in resource.resource.attributes}
        assert facts["service.name"] == "archive"
        assert facts["service.version"]
    names = {span.name for span in collector.spans}
    assert names >= {"send resources", "receive resources", "process resources", "write main", "record"}
    assert names >= {"finalize", "publish completions"}
    sent = {span.span_id for span in collector.spans if span.name == "send resources"}
    linked = [
        link.span_id for span in collector.spans if span.name == "process resources" for link in span.links
    ]
    assert sorted(linked) == sorted(sent)


async def test_a_collector_that_is_away_is_told_once_and_its_return(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opentelemetry_export, "_ROUND_MS", 10)
    collector.status = 403
    with capture_logs() as logs, caplog.at_level(logging.DEBUG):
        async with exporting(TracingSettings(endpoint=collector.url)) as provider:
            tracer = provider.get_tracer("test")
            for count in (1, 2):
                tracer.start_span("lost").end()
                await until(lambda count=count: len(collector.requests) == count)  # type: ignore[misc]
            await until(lambda: len(logs) == 1)
            collector.status = 200
            tracer.start_span("sent").end()
            await until(lambda: len(logs) == 2)
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("warning", "traces are not sent; spans are dropped meanwhile"),
        ("info", "traces are sent again"),
    ]
    assert "403" in logs[0]["error"]
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_a_collector_that_is_away_neither_stops_nor_slows_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry_export, "_ROUND_MS", 10)
    monkeypatch.setattr(opentelemetry_export, "_LAST_WORDS", 0.1)
    with silent() as url:
        environ = {"TRANSLOAD_TRACING__ENABLED": "true", "TRANSLOAD_TRACING__ENDPOINT": url}
        settings = load_settings(file=None, home=tmp_path, environ=environ)
        with capture_logs() as logs:
            # Less than one request would wait for its answer.
            async with asyncio.timeout(PATIENCE):
                async with open_producer(settings) as producer:
                    bundle = await producer.start_bundle(BundleRef("https://example.com/"), "fr")
                    await bundle.complete({})
                async with open_service(settings, admin=False) as service:
                    await service.run(until_idle=True)
    assert service.progress.acked == 1
    said = [log for log in logs if log["event"] == "the last spans were not sent in time"]
    assert len(said) == 2


async def test_the_end_does_not_wait_for_a_silent_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opentelemetry_export, "_LAST_WORDS", 0.05)
    with silent() as url:
        async with exporting(TracingSettings(endpoint=url)) as provider:
            provider.get_tracer("test").start_span("lost").end()
            began = time.monotonic()
        assert time.monotonic() - began < opentelemetry_export._REQUEST


async def test_spans_beyond_what_may_wait_are_dropped_without_a_wait(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry_export, "_WAITING", 10)
    monkeypatch.setattr(opentelemetry_export, "_BATCH", 10)
    monkeypatch.setattr(opentelemetry_export, "_LAST_WORDS", 0.05)
    with silent() as url:
        async with exporting(TracingSettings(endpoint=url)) as provider:
            tracer = provider.get_tracer("test")
            for _ in range(1000):
                tracer.start_span("one").end()
    assert collector.requests == []


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        ({}, None, "transload"),
        ({"OTEL_SERVICE_NAME": "fetchers"}, None, "fetchers"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, None, "ours"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours", "OTEL_SERVICE_NAME": "f"}, None, "f"),
        ({"OTEL_SERVICE_NAME": "fetchers"}, "archive", "archive"),
        ({"OTEL_SERVICE_NAME": ""}, None, "transload"),
    ],
)
async def test_the_services_name_is_ours_then_opentelemetrys(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], own: str | None, expected: str
) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    async with exporting(TracingSettings(service_name=own)) as provider:
        assert provider.resource.attributes["service.name"] == expected


async def test_attributes_of_the_resource_are_opentelemetrys(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=transload-1,service.version=0")
    # Where to, and how many, is said by the settings.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with exporting(TracingSettings(endpoint=collector.url)) as provider:
        provider.get_tracer("test").start_span("one").end()
    (_, _, request), *_ = collector.requests
    sent = {each.key: each.value.string_value for each in request.resource_spans[0].resource.attributes}
    assert sent["k8s.pod.name"] == "transload-1"
    assert sent["service.version"] == importlib.metadata.version("transload"), (
        "which one it is we know better"
    )


def test_it_is_off_and_samples_everything(tmp_path: Path) -> None:
    chosen = load_settings(file=None, home=tmp_path, environ={}).tracing
    assert (chosen.enabled, chosen.endpoint, chosen.sample_ratio) == (False, "http://127.0.0.1:4318", 1.0)
    assert (chosen.parent, chosen.service_name, dict(chosen.headers)) == ("link", None, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ENDPOINT", "collector:4318"),
        ("ENDPOINT", "grpc://collector:4317"),
        ("ENDPOINT", "http://user:geheim@collector:4318"),
        ("ENDPOINT", "http://collector:99999"),
        ("ENDPOINT", "http://collector?token=geheim"),
        ("SAMPLE_RATIO", "1.5"),
        ("PARENT", "sibling"),
        ("SERVICE_NAME", "''"),
        ("HEADERS__X-KEY", '"geheim\\nHost: x"'),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SettingsError, match="tracing") as caught:
        load_settings(file=None, home=tmp_path, environ={f"TRANSLOAD_TRACING__{key}": value})
    assert "geheim" not in str(caught.value)


def test_headers_are_secrets(tmp_path: Path) -> None:
    environ = {"TRANSLOAD_TRACING__HEADERS__X-KEY": "geheim"}
    settings = load_settings(file=None, home=tmp_path, environ=environ)
    assert "geheim" not in str(settings.redacted())
    assert "geheim" not in repr(settings)
