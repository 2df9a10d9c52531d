"""One bundle as traces show it: from the producer through the queue and the worker to whoever takes its completion."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import pytest
import yaml

from backends.base import single
from tests.support.rabbitmq import rabbit_queues
from tests.support.spans import Spans, attributes, trace_of
from tests.support.sqs import Queues, sqs_queues
from worker.bootstrap import open_producer, open_service
from worker.producer import BundleRef
from worker.publishers.embedded import EmbeddedPublisher, EmbeddedPublisherOptions
from worker.queues.base import OutgoingMessage
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue
from worker.service import Service
from worker.settings import load_settings

BID = "test-traced"
PATIENCE = 60.0
SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Completion = tuple[bytes, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Ways:
    """Where messages come from and completions go, and how to take one there."""

    settings: dict[str, Any]
    take: Callable[[], Awaitable[Completion]]
    system: str
    names: dict[str, str]
    """Random names, and what they stand for."""


@asynccontextmanager
async def embedded(request: pytest.FixtureRequest) -> AsyncIterator[Ways]:
    home: Path = request.getfixturevalue("tmp_path")

    async def take() -> Completion:
        publisher = await EmbeddedPublisher.connect(EmbeddedPublisherOptions(path=home / "completions.db"))
        (stored,) = await publisher.read()
        await publisher.aclose()
        return stored.notification.body, stored.notification.attributes

    yield Ways({}, take, "embedded", {})


@asynccontextmanager
async def sqs(request: pytest.FixtureRequest) -> AsyncIterator[Ways]:
    endpoint = request.getfixturevalue("localstack")
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(sqs_queues(endpoint, lease=30))
        out: Queues = await stack.enter_async_context(sqs_queues(endpoint, lease=30))
        access = {
            "endpoint_url": endpoint.endpoint_url,
            "region": endpoint.region,
            "access_key_id": endpoint.access_key_id,
            "secret_access_key": endpoint.secret_access_key,
        }

        async def take() -> Completion:
            reply = await out.client.receive_message(
                QueueUrl=out.url, MessageAttributeNames=["All"], WaitTimeSeconds=5
            )
            (message,) = reply["Messages"]
            found = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
            return message["Body"].encode(), found

        names = {queue.url.rpartition("/")[2]: "resources", out.url.rpartition("/")[2]: "completions"}
        settings = {
            "queue": {"type": "sqs", "queue_url": queue.url, **access},
            "publisher": {"type": "sqs", "queue_url": out.url, **access},
        }
        yield Ways(settings, take, "aws_sqs", names)


@asynccontextmanager
async def rabbitmq(request: pytest.FixtureRequest) -> AsyncIterator[Ways]:
    broker = request.getfixturevalue("rabbitmq")
    async with rabbit_queues(broker) as queue, rabbit_queues(broker) as out:

        async def take() -> Completion:
            message = await out.channel.basic_get(out.name, no_ack=True)
            headers = message.header.properties.headers or {}
            # The broker adds some of its own.
            ours = {name: str(value) for name, value in headers.items() if not name.startswith("x-")}
            return message.body, ours

        settings = {
            "queue": {"type": "rabbitmq", "url": broker.url, "queue": queue.name},
            "publisher": {"type": "rabbitmq", "url": broker.url, "queue": out.name},
        }
        yield Ways(settings, take, "rabbitmq", {queue.name: "resources", out.name: "completions"})


QUEUES: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Ways]]] = {
    "embedded": embedded,
    "rabbitmq": rabbitmq,
    "sqs": sqs,
}


async def trace_a_bundle(
    ways: Ways, home: Path, spans: Spans, parent: Literal["link", "child"] = "link"
) -> Completion:
    """Two resources, and when they are stored the close: which message completes the bundle is then no question.

    A resource is two objects in a folder: its payload and its sidecar.
    """
    file = home / "t.yaml"
    # One message at a time, so that each is received alone.
    file.write_text(yaml.safe_dump({**ways.settings, "worker": {"concurrency": 1}}), encoding="utf-8")
    settings = load_settings(file=file, home=home, environ={})
    tracing = spans.tracing(settings, parent)

    async with open_producer(settings, tracing=tracing) as producer:
        bundle = await producer.start_bundle(BundleRef("https://example.com/", bid=BID), "fr")
        for name in ("a", "b"):
            url = f"https://user:geheim@example.com/{name}.html?sig=geheim"
            await bundle.add_resource(url, "text/html", 200, single(name.encode()))
        async with open_service(settings, admin=False, tracing=tracing) as service:
            work = asyncio.create_task(service.run())
            await acked(service, 2)
            await bundle.complete({})
            await acked(service, 3)
            service.stop()
            await work
    body, found = await ways.take()
    spans.consumed(found)
    return body, found


async def acked(service: Service, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while service.progress.acked < count:  # noqa: ASYNC110 - a service tells nobody when it has settled
            await asyncio.sleep(0.01)
    assert service.progress.dead == service.progress.retried == 0


@pytest.mark.parametrize("queue", QUEUES)
async def test_one_bundle_from_producer_to_completion(
    queue: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    spans = Spans()
    async with QUEUES[queue](request) as ways:
        body, found = await trace_a_bundle(ways, tmp_path, spans)
    assert spans.tree(ways.names) == dedent("""\
        start bundle
          PRODUCER send resources
          PRODUCER send resources
          PRODUCER send resources
        CLIENT receive resources -> send resources
        CONSUMER process resources -> send resources
          CLIENT read staging-main
          CLIENT write main
          CLIENT write main
          record
        CLIENT receive resources -> send resources
        CONSUMER process resources -> send resources
          CLIENT read staging-main
          CLIENT write main
          CLIENT write main
          record
        CLIENT receive resources -> send resources
        CONSUMER process resources -> send resources
          record
            finalize
              CLIENT write main
            PRODUCER publish completions
            CONSUMER use completion""")
    # In the body as well, which is frozen: every copy says the same.
    content = json.loads(body)
    assert found["traceparent"] == content["traceparent"]
    assert set(found) == {"bundle_id", "recipe_id", "completion_timestamp", "traceparent"}
    for span in spans.all:
        if "messaging.system" in attributes(span):
            assert attributes(span)["messaging.system"] == ways.system
        assert "geheim" not in span.to_json()


async def test_one_bundle_as_one_trace(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    spans = Spans()
    async with embedded(request) as ways:
        await trace_a_bundle(ways, tmp_path, spans, "child")
    assert spans.tree() == dedent("""\
        start bundle
          PRODUCER send resources
            CONSUMER process resources
              CLIENT read staging-main
              CLIENT write main
              CLIENT write main
              record
          PRODUCER send resources
            CONSUMER process resources
              CLIENT read staging-main
              CLIENT write main
              CLIENT write main
              record
          PRODUCER send resources
            CONSUMER process resources
              record
                finalize
                  CLIENT write main
                PRODUCER publish completions
                CONSUMER use completion
        CLIENT receive resources -> send resources
        CLIENT receive resources -> send resources
        CLIENT receive resources -> send resources""")
    assert len({trace_of(span) for span in spans.all if not span.name.startswith("receive")}) == 1


async def test_a_dead_letter_keeps_the_trace_it_came_with(tmp_path: Path) -> None:
    spans, settings = Spans(), load_settings(file=None, home=tmp_path, environ={})
    assert isinstance(settings.queue.options, EmbeddedOptions)
    queue = await EmbeddedQueue.connect(settings.queue.options)
    try:
        await queue.send([OutgoingMessage(b"garbage", {"traceparent": SENDER})])
        async with open_service(settings, admin=False, tracing=spans.tracing(settings)) as service:
            await service.run(until_idle=True)
        dead = await queue.open_dead_letters()
        (letter,) = await dead.receive(1, 0)
        await dead.aclose()
    finally:
        await queue.aclose()
    assert letter.attributes["traceparent"] == SENDER
    span = spans.one("process resources")
    assert attributes(span)["transload.outcome"] == "dead"
    assert attributes(span)["error.type"] == "Refused"
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [SENDER.split("-")[1]]
