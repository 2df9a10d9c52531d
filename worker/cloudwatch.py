"""The process's metrics, sent to Amazon CloudWatch besides being shown at `/metrics`.

Run by worker/bootstrap.py as a task beside the service. Counters go as what was added since the last round, gauges as they
stand, histograms as statistic sets. Only what has the prefix `transload_` is sent, under its name without it, with the labels as
dimensions: worker/metrics.py sees to it that their values are few. Nothing here ever disturbs the worker: a round that fails
is logged, once until one succeeds, and what it would have added goes with the next.

Limits: https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import structlog
from aiobotocore.config import AioConfig
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from backends.aws_session import open_session
from worker.settings_process import CloudWatchSettings

MOST_DATA: Final = 1000
"""Most metrics of one request."""
MOST_BYTES: Final = 900_000
"""Of one request, which may have a million."""

_PREFIX: Final = "transload_"
_LAST_WORDS: Final = 5.0
"""Seconds for the last round, while the process ends."""
_UNITS: Final[Mapping[str, str]] = MappingProxyType({"_seconds": "Seconds", "_bytes": "Bytes"})
_MOST_DIMENSIONS: Final = 30
_LONGEST_DIMENSION: Final = 1024
_LARGEST: Final = 2.0**360
_KINDS: Final = frozenset({"counter", "gauge", "histogram"})

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels."""
Counted = tuple[float, ...]
"""What a series has counted: a counter's value, or the sum and the cumulated buckets of a histogram."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One datum, and what its series has counted once it is sent; None for a gauge."""

    series: Series
    datum: Mapping[str, Any]
    counted: Counted | None


class Rounds:
    """What is to be sent of a registry, round by round."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._sent: dict[Series, Counted] = {}

    def read(self, now: datetime) -> Sequence[Reading]:
        """What is to be sent now. A series that has counted nothing since it was last sent is left out."""
        found = [
            reading
            for metric in self._registry.collect()
            if metric.name.startswith(_PREFIX) and metric.type in _KINDS
            for reading in self._readings(metric)
        ]
        return [
            Reading(each.series, {**each.datum, "Timestamp": now, "StorageResolution": 60}, each.counted)
            for each in found
        ]

    def sent(self, readings: Sequence[Reading]) -> None:
        """These have arrived: what they counted is not sent again."""
        self._sent |= {each.series: each.counted for each in readings if each.counted is not None}

    def _readings(self, metric: Metric) -> Iterator[Reading]:
        if metric.type == "histogram":
            yield from self._histogram(metric)
            return
        for sample in metric.samples:
            if sample.name.endswith("_created") or not abs(sample.value) <= _LARGEST:
                continue
            series = _series(metric, sample)
            if metric.type == "gauge":
                yield Reading(series, _datum(metric, series, Value=sample.value), None)
            elif added := sample.value - self._sent.get(series, (0.0,))[0]:
                yield Reading(series, _datum(metric, series, Value=added), (sample.value,))

    def _histogram(self, metric: Metric) -> Iterator[Reading]:
        bounds: dict[Series, list[tuple[float, float]]] = {}
        sums: dict[Series, float] = {}
        for sample in metric.samples:
            series = _series(metric, sample)
            if sample.name.endswith("_bucket"):
                bounds.setdefault(series, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_sum"):
                sums[series] = sample.value
        for series, buckets in bounds.items():
            counted = (sums[series], *(count for _, count in buckets))
            before = self._sent.get(series, (0.0,) * len(counted))
            added = [now - then for now, then in zip(counted, before, strict=True)]
            if added[-1]:
                limits = [bound for bound, _ in buckets]
                yield Reading(
                    series, _datum(metric, series, StatisticValues=_statistics(limits, added)), counted
                )


class Sender:
    """Sends rounds. A client is made when the first one is due: whoever cannot be asked for credentials delays no start."""

    def __init__(self, settings: CloudWatchSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._rounds = Rounds(registry)
        self._stopping = asyncio.Event()
        self._failing = False
        self._log = structlog.get_logger("cloudwatch")

    def stop(self) -> None:
        """Send what there is, and return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """A round every interval until `stop`, and one more."""
        while True:
            last = self._stopping.is_set()
            try:
                async with _client(self._settings) as client:
                    await self._send_with(client)
                    return
            except Exception as exc:  # noqa: BLE001 - whatever keeps metrics from being sent must not end the worker
                self._failed(exc)
            if last:
                return
            await self._pause()

    async def _send_with(self, client: Any) -> None:
        while True:
            await self._pause()
            # Asked before the round: one that was under way when `stop` came does not have everything.
            last = self._stopping.is_set()
            try:
                await self._round(client)
            except Exception as exc:  # noqa: BLE001 - as above
                self._failed(exc)
            else:
                self._succeeded()
            if last:
                return

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._settings.interval):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _round(self, client: Any) -> None:
        for part in requests(self._rounds.read(datetime.now(UTC))):
            await client.put_metric_data(
                Namespace=self._settings.namespace, MetricData=[each.datum for each in part]
            )
            # A request whose answer is lost may have arrived: then its counts are there twice, rather than never.
            self._rounds.sent(part)

    def _failed(self, exc: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._log.warning(
                "metrics are not sent; counts are kept for later", kind=type(exc).__name__, error=str(exc)
            )

    def _succeeded(self) -> None:
        if self._failing:
            self._failing = False
            self._log.info("metrics are sent again")


@asynccontextmanager
async def sending(settings: CloudWatchSettings, registry: CollectorRegistry) -> AsyncIterator[None]:
    """Send the registry's metrics while the block runs, and what is left, within seconds, when it ends."""
    sender = Sender(settings, registry)
    task = asyncio.create_task(sender.run(), name="cloudwatch")
    try:
        yield
    finally:
        sender.stop()
        await asyncio.wait([task], timeout=_LAST_WORDS)
        task.cancel()
        await asyncio.wait([task])


def requests(readings: Sequence[Reading]) -> Iterator[Sequence[Reading]]:
    """Cut into what one request takes."""
    part: list[Reading] = []
    size = 0
    for reading in readings:
        weight = _weight(reading.datum)
        if part and (len(part) == MOST_DATA or size + weight > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(reading)
        size += weight
    if part:
        yield part


@asynccontextmanager
async def _client(settings: CloudWatchSettings) -> AsyncIterator[Any]:
    config = AioConfig(
        connect_timeout=5,
        read_timeout=10,
        max_pool_connections=2,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    async with open_session(settings).create_client(
        "cloudwatch", region_name=settings.region, endpoint_url=settings.endpoint_url, config=config
    ) as client:
        yield client


def _series(metric: Metric, sample: Sample) -> Series:
    return metric.name, tuple((name, value) for name, value in sorted(sample.labels.items()) if name != "le")


def _datum(metric: Metric, series: Series, **values: Any) -> dict[str, Any]:
    dimensions = [{"Name": name, "Value": _dimension(value)} for name, value in series[1][:_MOST_DIMENSIONS]]
    return {
        "MetricName": metric.name.removeprefix(_PREFIX),
        "Dimensions": dimensions,
        "Unit": _unit(metric),
        **values,
    }


def _unit(metric: Metric) -> str:
    named = next((unit for ending, unit in _UNITS.items() if metric.name.endswith(ending)), None)
    return named or ("Count" if metric.type == "counter" else "None")


def _dimension(value: str) -> str:
    """What CloudWatch takes: printable ASCII, not blank, no colon first."""
    plain = "".join(each if " " <= each <= "~" else "?" for each in value)[:_LONGEST_DIMENSION]
    return plain.replace(":", "?", 1) if plain.startswith(":") else plain if plain.strip() else "none"


def _statistics(bounds: Sequence[float], added: Sequence[float]) -> dict[str, float]:
    """Sum and count are exact. Least and largest are the bounds of the buckets they fell into, and never beyond the mean.

    `bounds` are the buckets' upper ones, `added` the sum and their cumulated counts.
    """
    total, counts = added[0], added[1:]
    filled = [at for at, count in enumerate(counts) if count > (counts[at - 1] if at else 0.0)]
    low = bounds[filled[0] - 1] if filled[0] else 0.0
    high = bounds[filled[-1]]
    if math.isinf(high):
        high = bounds[filled[-1] - 1]
    mean = total / counts[-1]
    return {"SampleCount": counts[-1], "Sum": total, "Minimum": min(low, mean), "Maximum": max(high, mean)}


def _weight(datum: Mapping[str, Any]) -> int:
    """Bytes of a datum in a request, in whatever protocol, and rather too many."""
    texts = len(datum["MetricName"]) + sum(
        3 * (len(each["Name"]) + len(each["Value"])) + 120 for each in datum["Dimensions"]
    )
    return 500 + texts
