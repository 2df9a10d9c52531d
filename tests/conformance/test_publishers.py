"""Every registered publisher runs the suite; what only one of them promises follows."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.conformance.publishers import PublisherConformance, Received, Subject, notification
from tests.support.localstack import LocalStackEndpoint
from tests.support.rabbitmq import Queues as RabbitQueues
from tests.support.rabbitmq import rabbit_queues
from tests.support.sqs import Queues, sqs_queues
from worker.publishers.base import PublishError, PublishRefused
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.publishers.rabbitmq import RabbitPublisher, RabbitPublisherOptions
from worker.publishers.registry import PUBLISHERS
from worker.publishers.sqs import SqsPublisher, SqsPublisherOptions


@asynccontextmanager
async def embedded(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    path: Path = request.getfixturevalue("tmp_path") / "completions.db"
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))

    async def read(_: int) -> list[Received]:
        return [Received(s.notification.body, s.notification.attributes) for s in await publisher.read()]

    first = notification(b"first")
    yield Subject(publisher, str(path), read, lambda: replace(first, body=b"second"), prepare=first)
    await publisher.aclose()


async def received(queues: Queues, count: int) -> list[Received]:
    found: list[Received] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            reply = await queues.client.receive_message(
                QueueUrl=queues.url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1,
                VisibilityTimeout=60,
                MessageAttributeNames=["All"],
            )
            for raw in reply.get("Messages", ()):
                attributes = raw.get("MessageAttributes", {})
                assert {value["DataType"] for value in attributes.values()} == {"String"}
                found.append(
                    Received(
                        raw["Body"].encode(),
                        {name: value["StringValue"] for name, value in attributes.items()},
                    )
                )
    return found


async def delivered(queues: RabbitQueues, count: int) -> list[Received]:
    found: list[Received] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            message = await queues.channel.basic_get(queues.name, no_ack=True)
            if message.delivery_tag:
                properties = message.header.properties
                assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
                headers = dict(properties.headers or {})
                headers.pop("x-delivery-count", None)  # the broker's own
                assert all(isinstance(value, str) for value in headers.values())
                found.append(Received(message.body, {name: str(value) for name, value in headers.items()}))
    return found


@asynccontextmanager
async def rabbitmq(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    broker = request.getfixturevalue("rabbitmq")
    async with rabbit_queues(broker) as queues:
        options = RabbitPublisherOptions(url=SecretStr(broker.url), queue=queues.name)
        publisher = await RabbitPublisher.connect(options)
        host, port = broker.address
        bad = notification(b"for whom?", CC="everybody")
        yield Subject(
            publisher,
            f"amqp://{host}:{port} queue {queues.name}",
            lambda count: delivered(queues, count),
            lambda: bad,
        )
        await publisher.aclose()


@asynccontextmanager
async def sqs(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with sqs_queues(request.getfixturevalue("localstack")) as queues:
        publisher = await SqsPublisher.connect(SqsPublisherOptions(**queues.options()))
        bad = notification(b"no \0 in XML")
        yield Subject(publisher, queues.url, lambda count: received(queues, count), lambda: bad)
        await publisher.aclose()


ADAPTERS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Subject]]] = {
    "embedded": embedded,
    "rabbitmq": rabbitmq,
    "sqs": sqs,
}


def test_every_registered_publisher_is_here() -> None:
    assert set(ADAPTERS) == set(PUBLISHERS.entries)
    for name in ADAPTERS:
        assert PUBLISHERS.load(name).Options.model_fields


class TestPublishers(PublisherConformance):
    @pytest.fixture(params=sorted(ADAPTERS))
    async def subject(self, request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
        async with ADAPTERS[request.param](request) as subject:
            yield subject


async def test_an_embedded_event_is_there_once_and_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "completions.db"
    publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))
    first, second = notification(b"one"), notification(b"two")
    assert list(await publisher.publish([first, second, first])) == [None, None, None]
    (refusal,) = await publisher.publish([replace(first, body=b"other")])
    assert isinstance(refusal, PublishRefused)
    await publisher.aclose()

    again = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=path))
    stored = await again.read()
    assert [one.notification for one in stored] == [first, second]
    assert [one.notification for one in await again.read(after=stored[0].seq)] == [second]
    assert [one.notification for one in await again.read(limit=1)] == [first]
    assert await again.count() == 2
    await again.aclose()


async def test_a_fifo_queue_gets_one_copy_of_an_event(localstack: LocalStackEndpoint) -> None:
    async with sqs_queues(localstack, fifo=True) as queues:
        publisher = await SqsPublisher.connect(SqsPublisherOptions(**queues.options()))
        sent = replace(notification(), group="recipe with spaces, ü")
        assert list(await publisher.publish([sent])) == [None]
        assert list(await publisher.publish([sent, notification(b"last")])) == [None, None]
        await publisher.aclose()
        assert sorted(one.body for one in await received(queues, 2)) == sorted([sent.body, b"last"])


async def test_a_missing_queue_is_told_at_connect_and_per_notification(
    localstack: LocalStackEndpoint,
) -> None:
    async with sqs_queues(localstack) as queues:
        publisher = await SqsPublisher.connect(SqsPublisherOptions(**queues.options()))
        await queues.client.delete_queue(QueueUrl=queues.url)
        outcomes = await publisher.publish([notification() for _ in range(12)])
        assert len(outcomes) == 12
        assert all(isinstance(outcome, PublishError) and outcome.retryable for outcome in outcomes)
        await publisher.aclose()
        with pytest.raises(PublishError, match="no such queue"):
            await SqsPublisher.connect(SqsPublisherOptions(**queues.options()))


async def test_large_notifications_are_split_over_requests(localstack: LocalStackEndpoint) -> None:
    async with sqs_queues(localstack) as queues:
        publisher = await SqsPublisher.connect(SqsPublisherOptions(**queues.options()))
        sent = [notification(str(index).encode() * 200_000) for index in range(8)]
        too_large = notification(b"x" * (2 << 20))
        outcomes = await publisher.publish([*sent[:4], too_large, *sent[4:]])
        assert isinstance(outcomes[4], PublishRefused)
        assert [outcome for index, outcome in enumerate(outcomes) if index != 4] == [None] * 8
        await publisher.aclose()
        assert {one.body for one in await received(queues, 8)} == {one.body for one in sent}
