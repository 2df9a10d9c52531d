"""A worker that has everything to say at its end, and nobody who listens, is gone within the chart's margin after the drain."""

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.faults.slow_worlds import Changes, needed, slow_world, told, until
from tests.faults.worlds import Combination
from tests.support.services import ROOT
from worker.cloudwatch import _LAST_WORDS as METRICS
from worker.opentelemetry_export import _LAST_WORDS as TRACES

MARGIN: int = yaml.safe_load((ROOT / "helm/transload/values.yaml").read_text(encoding="utf-8"))[
    "drainMarginSeconds"
]
DRAIN = 0.5


@pytest.mark.slow
@pytest.mark.parametrize("queue", ["embedded", "sqs", "rabbitmq"])
async def test_the_margin_covers_the_last_traces_and_metrics(
    request: pytest.FixtureRequest, tmp_path: Path, queue: str
) -> None:
    combination = Combination(queue)
    with ExitStack() as stack:
        # They accept connections, and never say a word.
        collector, cloudwatch = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)
        )
        settings: Changes = {
            "queue": {"lease": 600},
            # One at a time: of a poll that was cancelled LocalStack lets the server's half go on, and it would take the message.
            "worker": {"drain_timeout": DRAIN, "concurrency": 1, "look_ahead": 0},
            "tracing": {"enabled": True, "endpoint": f"http://127.0.0.1:{collector}"},
            "cloudwatch": {
                "enabled": True,
                "endpoint_url": f"http://127.0.0.1:{cloudwatch}",
                "region": "us-east-1",
                "access_key_id": "x",
                "secret_access_key": "x",
            },
        }
        async with slow_world(combination, needed(request, combination), tmp_path, changes=settings) as world:
            world.staging.held = {"test-bundle/slow"}
            await world.put("test-bundle", "slow")
            worker = world.start()
            await until(lambda: "test-bundle/slow" in world.staging.halfway)
            began = asyncio.get_running_loop().time()
            worker.terminate()
            assert await worker.ended(DRAIN + MARGIN) == 0, worker.tail()
            took = asyncio.get_running_loop().time() - began
            # Or nothing would have been waited for.
            assert took > TRACES + METRICS, worker.tail()
            assert [line["messages"] for line in told(worker, "given back")] == [1]
            assert told(worker, "the last spans were not sent in time")
            print(f"{queue}: gone {took - DRAIN:.1f} s after the drain, of {MARGIN}")
            world.staging.released.set()
            other = world.start()
            await world.announced()
            other.kill()
