"""Metrics that go to CloudWatch: what a round holds, and that it arrives, on LocalStack."""

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiobotocore.session import get_session
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.testing import capture_logs

from backends.errors import MissingExtra
from backends.measured import Observation
from tests.support.localstack import LocalStackEndpoint
from tests.support.toxics import Proxy
from worker import bootstrap
from worker.cloudwatch import MOST_BYTES, MOST_DATA, Reading, Rounds, Sender, requests, sending
from worker.metrics import Metrics
from worker.settings import SettingsError, load_settings
from worker.settings_process import CloudWatchSettings
from worker.uploads import UploadLog

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def registry_of(*collectors: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


def sent(rounds: Rounds) -> dict[str, Any]:
    """Name and value, or statistics, of a round that arrives."""
    readings = rounds.read(NOW)
    rounds.sent(readings)
    return {
        each.datum["MetricName"]: each.datum.get("Value", each.datum.get("StatisticValues"))
        for each in readings
    }


def test_counters_go_as_what_was_added() -> None:
    counter = Counter("transload_things", "Things.", registry=None)
    rounds = Rounds(registry_of(counter))
    assert sent(rounds) == {}, "nothing has happened"
    counter.inc(3)
    assert sent(rounds) == {"things": 3.0}
    assert sent(rounds) == {}
    counter.inc()
    counter.inc()
    assert sent(rounds) == {"things": 2.0}


def test_what_did_not_arrive_goes_with_the_next_round() -> None:
    counter = Counter("transload_things", "Things.", registry=None)
    seconds = Histogram("transload_work_seconds", "Work.", buckets=(1.0, 2.0), registry=None)
    rounds = Rounds(registry_of(counter, seconds))
    counter.inc(3)
    seconds.observe(1.5)
    assert len(rounds.read(NOW)) == 2
    counter.inc(4)
    seconds.observe(0.5)
    expected = {"SampleCount": 2.0, "Sum": 2.0, "Minimum": 0.0, "Maximum": 2.0}
    assert sent(rounds) == {"things": 7.0, "work_seconds": expected}


def test_gauges_go_as_they_stand() -> None:
    gauge = Gauge("transload_waiting", "Waiting.", registry=None)
    rounds = Rounds(registry_of(gauge))
    assert [sent(rounds), sent(rounds)] == [{"waiting": 0.0}] * 2
    gauge.set(float("nan"))
    assert sent(rounds) == {}
    gauge.set(float("inf"))
    assert sent(rounds) == {}
    gauge.set(-2)
    assert sent(rounds) == {"waiting": -2.0}


@pytest.mark.parametrize(
    ("values", "least", "largest"),
    [((1.5,), 1.0, 2.0), ((0.5, 3.0), 0.0, 4.0), ((9.0,), 4.0, 9.0), ((1.5, 100.0), 1.0, 50.75)],
)
def test_histograms_go_as_statistics_of_what_was_added(
    values: Sequence[float], least: float, largest: float
) -> None:
    seconds = Histogram("transload_work_seconds", "Work.", buckets=(1.0, 2.0, 4.0), registry=None)
    rounds = Rounds(registry_of(seconds))
    seconds.observe(0.1)
    sent(rounds)
    for value in values:
        seconds.observe(value)
    (statistics,) = sent(rounds).values()
    assert statistics["Sum"] == pytest.approx(sum(values))
    assert statistics["SampleCount"] == len(values)
    assert (statistics["Minimum"], statistics["Maximum"]) == pytest.approx((least, largest))
    assert sent(rounds) == {}


def test_labels_are_dimensions_that_cloudwatch_takes() -> None:
    counter = Counter("transload_things", "Things.", ["b", "a"], registry=None)
    odd = ("", "  ", ":x", "é\n", "y" * 2000)
    for value in odd:
        counter.labels(a=value, b="b").inc()
    readings = Rounds(registry_of(counter)).read(NOW)
    assert [[each["Name"] for each in reading.datum["Dimensions"]] for reading in readings] == [
        ["a", "b"]
    ] * 5
    values = {reading.datum["Dimensions"][0]["Value"] for reading in readings}
    assert values == {"none", "?x", "??", "y" * 1024}


def test_units_and_what_is_not_ours() -> None:
    units = {each.datum["MetricName"]: each.datum["Unit"] for each in _busy().read(NOW)}
    assert units["transfer_bytes"] == units["transfer_memory_bytes"] == "Bytes"
    assert units["transfer_seconds"] == units["event_loop_lag_seconds"] == "Seconds"
    assert units["backend_requests"] == "Count"
    assert units["outbox_pending"] == "None"
    assert not {"build", "build_info"} & units.keys()
    assert not [name for name in units if name.startswith(("process", "python"))]


def _busy() -> Rounds:
    """Of a worker that has read and written."""
    metrics = Metrics()
    for op in ("open", "write"):
        metrics.observe_backend("lake", Observation(op, seconds=0.2, size=1000))
    return Rounds(metrics.registry)


def test_a_request_holds_no_more_than_cloudwatch_takes() -> None:
    def reading(number: int, label: str) -> Reading:
        datum = {"MetricName": f"m{number}", "Dimensions": [{"Name": "a", "Value": label}]}
        return Reading((f"m{number}", ()), datum, None)

    few = [reading(number, "x") for number in range(2 * MOST_DATA + 1)]
    assert [len(part) for part in requests(few)] == [MOST_DATA, MOST_DATA, 1]
    large = [reading(number, "x" * 1024) for number in range(MOST_DATA)]
    parts = list(requests(large))
    assert [each for part in parts for each in part] == large
    assert len(parts) > 1
    assert all(len(json.dumps([each.datum for each in part])) < MOST_BYTES for part in parts)
    assert list(requests([])) == []


# What arrives.


@asynccontextmanager
async def console(localstack: LocalStackEndpoint) -> AsyncIterator[Any]:
    async with get_session().create_client(
        "cloudwatch",
        region_name=localstack.region,
        endpoint_url=localstack.endpoint_url,
        aws_access_key_id=localstack.access_key_id,
        aws_secret_access_key=localstack.secret_access_key,
    ) as client:
        yield client


def settings(localstack: LocalStackEndpoint, **changes: Any) -> CloudWatchSettings:
    """A namespace of the test's own."""
    given = {
        "enabled": True,
        "namespace": f"test/{secrets.token_hex(6)}",
        "region": localstack.region,
        "endpoint_url": localstack.endpoint_url,
        "access_key_id": localstack.access_key_id,
        "secret_access_key": localstack.secret_access_key,
        **changes,
    }
    return CloudWatchSettings.model_validate(given)


async def total(
    localstack: LocalStackEndpoint, namespace: str, name: str, dimensions: Mapping[str, str] | None = None
) -> Mapping[str, float]:
    """What CloudWatch has of that metric; empty when it has nothing."""
    async with console(localstack) as client:
        reply = await client.get_metric_statistics(
            Namespace=namespace,
            MetricName=name,
            Dimensions=[{"Name": each, "Value": value} for each, value in (dimensions or {}).items()],
            StartTime=NOW - HOUR,
            EndTime=NOW + 2 * HOUR,
            Period=3600,
            Statistics=["Sum", "SampleCount", "Minimum", "Maximum"],
        )
    points = reply["Datapoints"]
    if not points:
        return {}
    return {
        "Sum": sum(point["Sum"] for point in points),
        "SampleCount": sum(point["SampleCount"] for point in points),
        "Maximum": max(point["Maximum"] for point in points),
    }


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nobody tells of another task's log lines
        await asyncio.sleep(0.02)


async def test_what_is_left_arrives_at_the_end(localstack: LocalStackEndpoint) -> None:
    metrics, chosen = Metrics(), settings(localstack, interval=3600)
    async with sending(chosen, metrics.registry):
        metrics.observe_backend("lake", Observation("write", seconds=0.2, size=1000))
        metrics.observe_backend("lake", Observation("write", seconds=0.4, size=500))
    lake = {"backend": "lake"}
    written = await total(localstack, chosen.namespace, "transfer_bytes", {**lake, "direction": "out"})
    assert written["Sum"] == 1500
    seconds = await total(localstack, chosen.namespace, "transfer_seconds", lake)
    assert seconds["SampleCount"] == 2
    assert seconds["Sum"] == pytest.approx(0.6)
    async with console(localstack) as client:
        listed = await client.list_metrics(Namespace=chosen.namespace)
    names = {each["MetricName"] for each in listed["Metrics"]}
    assert {"outbox_pending", "bundles", "event_loop_lag_seconds"} <= names


async def test_rounds_add_up(localstack: LocalStackEndpoint) -> None:
    metrics, chosen = Metrics(), settings(localstack, interval=1)
    async with sending(chosen, metrics.registry), asyncio.timeout(60):
        metrics.integrity_failures.inc(2)
        while not await total(localstack, chosen.namespace, "integrity_failures"):  # noqa: ASYNC110 - a server has no event
            await asyncio.sleep(0.1)
        metrics.integrity_failures.inc(5)
    assert (await total(localstack, chosen.namespace, "integrity_failures"))["Sum"] == 7


async def test_more_than_one_request_takes_arrives(localstack: LocalStackEndpoint) -> None:
    counter = Counter("transload_things", "Things.", ["number"], registry=None)
    for number in range(MOST_DATA + 5):
        counter.labels(number=str(number)).inc()
    chosen = settings(localstack, interval=1)
    # Within a round: the last one, at the end, has only so much time.
    async with sending(chosen, registry_of(counter)), asyncio.timeout(60):
        for number in (0, MOST_DATA + 4):
            things = {"number": str(number)}
            while not (found := await total(localstack, chosen.namespace, "things", things)):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
            assert found["Sum"] == 1


async def test_an_outage_is_logged_once_and_nothing_is_lost(
    localstack: LocalStackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, fail = 0, Sender._failed

    def counted(sender: Sender, exc: Exception) -> None:
        nonlocal failures
        failures += 1
        fail(sender, exc)

    monkeypatch.setattr(Sender, "_failed", counted)
    address = urlsplit(localstack.endpoint_url)
    assert address.hostname
    assert address.port
    async with Proxy.to(address.hostname, address.port) as proxy:
        metrics = Metrics()
        chosen = settings(localstack, interval=1, endpoint_url=f"http://127.0.0.1:{proxy.port}")
        await proxy.down()
        with capture_logs() as logs:
            async with sending(chosen, metrics.registry), asyncio.timeout(60):
                metrics.integrity_failures.inc(3)
                await until(lambda: failures == 2)
                await proxy.up()
                await until(lambda: len(logs) == 2)
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("warning", "metrics are not sent; counts are kept for later"),
        ("info", "metrics are sent again"),
    ]
    assert (await total(localstack, chosen.namespace, "integrity_failures"))["Sum"] == 3


async def test_a_server_that_never_answers_does_not_hold_up_the_end(
    localstack: LocalStackEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cloudwatch._LAST_WORDS", 0.2)
    address = urlsplit(localstack.endpoint_url)
    assert address.hostname
    assert address.port
    async with Proxy.to(address.hostname, address.port) as proxy:
        proxy.black_hole("requests", "replies")
        chosen = settings(localstack, interval=1, endpoint_url=f"http://127.0.0.1:{proxy.port}")
        # Less than the client would wait for an answer.
        async with asyncio.timeout(9), sending(chosen, Metrics().registry):
            await until(lambda: proxy.connections == 1)


async def test_whoever_cannot_ask_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with capture_logs() as logs:
        async with sending(CloudWatchSettings(enabled=True, profile="nobody"), Metrics().registry):
            async with asyncio.timeout(20):
                await until(lambda: bool(logs))
    assert [log["kind"] for log in logs] == ["ProfileNotFound"]


# The settings, under the names that OC Fetcher has.


def test_it_is_off_and_its_namespace_is_oc_fetchers(tmp_path: Path) -> None:
    """`cloudwatch_metrics` and `metrics_namespace="OCFetcher"` of OC Fetcher are `enabled` and `namespace` here."""
    chosen = load_settings(file=None, home=tmp_path, environ={}).cloudwatch
    assert (chosen.enabled, chosen.namespace, chosen.interval) == (False, "OCFetcher", 60.0)


@pytest.mark.parametrize("namespace", ["AWS/S3", "", ":x", "a b", "x" * 256])
def test_namespaces_that_cannot_be(tmp_path: Path, namespace: str) -> None:
    with pytest.raises(SettingsError, match="cloudwatch"):
        load_settings(
            file=None, home=tmp_path, environ={"TRANSLOAD_CLOUDWATCH__NAMESPACE": json.dumps(namespace)}
        )


async def test_a_missing_extra_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker.cloudwatch")
    monkeypatch.setitem(sys.modules, "aiobotocore.config", None)
    on = load_settings(file=None, home=tmp_path, environ={"TRANSLOAD_CLOUDWATCH__ENABLED": "true"})
    with pytest.raises(MissingExtra, match=r"aiobotocore.*pip install 'transload\[cloudwatch\]'"):
        async with bootstrap.open_service(on, admin=False):
            pass


# The log line of uploads.


def test_uploads_that_succeed_are_logged() -> None:
    log = UploadLog("lake")
    with capture_logs() as logs:
        for op in ("write", "copy_from", "stat", "delete", "open"):
            log(Observation(op, seconds=0.25, size=7, key="a/b"))
        log(Observation("write", outcome="Unavailable", key="a/c"))
    assert (
        logs
        == [
            {
                "event": "S3 upload completed",
                "bucket": "lake",
                "key": "a/b",
                "size": 7,
                "duration": 0.25,
                "log_level": "info",
            }
        ]
        * 2
    )
