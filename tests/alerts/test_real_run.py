"""Real workers, scraped by a real Prometheus with the rules loaded: one whose event loop is wedged, and one that is well."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.alerts.rules import alerts, hurried
from tests.dashboard.panels import ROWS, asked
from tests.support.cli import Transload
from tests.support.processes import free_port
from tests.support.prometheus import scraping
from tests.support.workers import workers
from worker.bootstrap import open_producer, open_queue
from worker.producer import BundleRef
from worker.queues.base import OutgoingMessage
from worker.settings import load_settings

HURRY = 300
"""Half an hour is 6 seconds, five minutes are one."""
WEDGE = "ledger.record.before=sleep:600"
"""On the event loop, with a message in work."""


@pytest.mark.usefixtures("prometheus")
async def test_consumer_stalled_fires_when_the_consumer_is_wedged_and_not_otherwise(tmp_path: Path) -> None:
    ports = {"well": free_port(), "wedged": free_port()}
    with (
        scraping(tmp_path / "prometheus", ports, hurried(tmp_path, HURRY)) as server,
        workers(Transload(tmp_path / "well"), tmp_path / "logs-of-well") as one,
        workers(Transload(tmp_path / "wedged"), tmp_path / "logs-of-wedged") as other,
    ):
        for name in ports:
            await publish(tmp_path / name)
        well = one.start("run", environ={"TRANSLOAD_ADMIN__PORT": str(ports["well"])})
        wedged = other.start("run", environ={"TRANSLOAD_ADMIN__PORT": str(ports["wedged"])}, failpoints=WEDGE)

        server.until(lambda: server.firing("ConsumerStalled"))
        assert server.firing("ConsumerStalled") == {"wedged"}
        # /livez sees it too, and the lag grows though the loop that measures it stands still.
        server.until(lambda: server.query('transload_live{instance="wedged"} == 0'))
        assert server.query('transload_event_loop_lag_seconds{instance="wedged"} > 9')
        assert server.query('transload_messages_in_flight{instance="wedged"} > 0')

        assert well.alive
        assert server.query('transload_live{instance="well"} == 1')
        server.until(
            lambda: server.query('transload_messages_settled_total{instance="well", outcome="ack"} > 3')
        )
        server.until(lambda: server.query('transload_messages_in_flight{instance="well"} == 0'))
        assert not server.query(
            'max_over_time(ALERTS{alertname="ConsumerStalled", alertstate="firing", instance="well"}[1h])'
        )

        unanswered = {
            panel.title
            for row in ROWS
            for panel in row.panels
            for query in panel.queries
            if not server.query(asked(query, window="5s"))
        }
        assert unanswered == {"Calls that did not end well", "Circuit breakers"}, "nothing failed here"

        # A process that is stopped altogether answers no scrape.
        wedged.stop()
        server.until(lambda: server.firing("TargetDown"))
        assert server.firing("TargetDown") == {"wedged"}

        assert {rule["name"]: rule["health"] for rule in server.rules()} == dict.fromkeys(alerts(), "ok")


async def publish(home: Path) -> None:
    """A bundle of three resources, and a message that is none."""
    settings = load_settings(file=None, home=home, environ={})
    async with open_producer(settings) as producer:
        bundle = await producer.start_bundle(BundleRef("https://example.com/"), "fr")
        for name in ("a", "b", "c"):
            url = f"https://example.com/{name}.html"
            await bundle.add_resource(url, "text/html", 200, once(name.encode() * 1000))
        await bundle.complete({})
    async with open_queue(settings) as queue:
        await queue.send([OutgoingMessage(b"{")])


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data
