"""Every registered queue runs the suite."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conformance.queues import QueueConformance, StaleHandleConformance, Subject
from tests.support.rabbitmq import rabbit_queues
from tests.support.sqs import sqs_queues
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue
from worker.queues.memory import MemoryOptions, MemoryQueue
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions
from worker.queues.registry import QUEUES
from worker.queues.sqs import SqsQueue, SqsQueueOptions

LEASE = 1.0


@asynccontextmanager
async def memory(_: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    queue = await MemoryQueue.connect(MemoryOptions(lease=LEASE))
    yield Subject(queue)
    await queue.aclose()


@asynccontextmanager
async def embedded(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    path: Path = request.getfixturevalue("tmp_path") / "deep" / "queue.db"
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=path, lease=LEASE))
    yield Subject(queue)
    await queue.aclose()


@asynccontextmanager
async def rabbitmq(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with rabbit_queues(request.getfixturevalue("rabbitmq")) as queues:
        queue = await RabbitQueue.connect(RabbitQueueOptions(**queues.options(lease=LEASE)))

        async def break_dead_letters() -> None:
            await queues.channel.queue_delete(queues.dead)

        yield Subject(queue, break_dead_letters)
        await queue.aclose()


@asynccontextmanager
async def sqs(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with sqs_queues(request.getfixturevalue("localstack"), lease=2) as queues:
        queue = await SqsQueue.connect(SqsQueueOptions(**queues.options()))
        break_dead_letters = partial(queues.client.delete_queue, QueueUrl=queues.dead_url)
        yield Subject(queue, break_dead_letters, takes_back=False)
        await queue.aclose()


ADAPTERS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Subject]]] = {
    "embedded": embedded,
    "memory": memory,
    "rabbitmq": rabbitmq,
    "sqs": sqs,
}

KIND_TO_STALE_HANDLES = {
    "sqs": "LocalStack deletes with an old handle; tests/unit/test_sqs_queue.py has a strict one"
}


def test_every_registered_queue_is_here() -> None:
    assert set(ADAPTERS) == set(QUEUES.entries)
    for name in ADAPTERS:
        assert QUEUES.load(name).Options.model_fields


class TestQueues(QueueConformance):
    @pytest.fixture(params=sorted(ADAPTERS))
    async def subject(self, request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
        async with ADAPTERS[request.param](request) as subject:
            yield subject


class TestStaleHandles(StaleHandleConformance):
    @pytest.fixture(params=sorted(set(ADAPTERS) - set(KIND_TO_STALE_HANDLES)))
    async def subject(self, request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
        async with ADAPTERS[request.param](request) as subject:
            yield subject
