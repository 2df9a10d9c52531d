"""What the RabbitMQ queue does beyond the suite of the port, on a broker that behaves. tests/faults/test_rabbitmq.py has the rest."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp.commands import Basic
from pydantic import SecretStr, ValidationError

from tests.conformance.queues import empty, outgoing, take, until
from tests.support.rabbitmq import Queues, RabbitBroker, rabbit_queues
from worker.queues.base import (
    REASON_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    Ack,
    Dead,
    OutgoingMessage,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueUnavailable,
    Retry,
)
from worker.queues.rabbitmq import RabbitQueue, RabbitQueueOptions
from worker.rabbitmq_topology import LADDER, Topology


@pytest.fixture
async def queues(rabbitmq: RabbitBroker) -> AsyncIterator[Queues]:
    async with rabbit_queues(rabbitmq) as queues:
        yield queues


@pytest.fixture
async def queue(queues: Queues) -> AsyncIterator[RabbitQueue]:
    queue = await connected(queues)
    yield queue
    await queue.aclose()


async def connected(queues: Queues, **changes: object) -> RabbitQueue:
    return await RabbitQueue.connect(RabbitQueueOptions(**queues.options(**changes)))


async def publish(queues: Queues, body: bytes, properties: Basic.Properties, to: str = "") -> None:
    await queues.channel.basic_publish(
        body, routing_key=to or queues.name, properties=properties, mandatory=True
    )


async def test_case_37_the_count_goes_on_through_every_way_back(queues: Queues, queue: RabbitQueue) -> None:
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    seen = [message]
    for way in (Retry(), Retry(0.05), None, Retry(), Retry(0.05)):
        if way is not None:
            assert await queue.settle(seen[-1], way)
        # None: the lease passes.
        seen += await take(queue)
    assert [each.receive_count for each in seen] == [1, 2, 3, 4, 5, 6]
    assert {(each.id, each.body, each.sent_at) for each in seen} == {(message.id, b"x", message.sent_at)}
    # A connection that ends counts as well, and the next worker goes on from there.
    await queue.aclose()
    other = await connected(queues)
    (again,) = await take(other)
    assert again.receive_count == 7
    await other.aclose()


async def test_case_37_the_broker_never_takes_a_message_away(queue: RabbitQueue) -> None:
    await queue.send(outgoing(b"stubborn"))
    for attempt in range(1, 26):
        (message,) = await take(queue)
        assert message.receive_count == attempt
        assert await queue.settle(message, Retry())
    assert (await queue.depth()).dead == 0


async def test_case_37_what_the_broker_buried_has_a_reason(queues: Queues, queue: RabbitQueue) -> None:
    await queue.aclose()
    await queues.channel.queue_delete(queues.name)
    arguments = {
        **Topology(queues.name, queues.dead).arguments()[queues.name],
        "x-delivery-limit": 1,
    }
    await queues.channel.queue_declare(queues.name, durable=True, arguments=arguments)
    used = await connected(queues, declare=False)
    await used.send([OutgoingMessage(b"poison", {"origin": "fetcher"})])
    for _ in range(2):
        (message,) = await take(used)
        await used.settle(message, Retry())
    letters = await used.open_dead_letters()
    (letter,) = await take(letters)
    assert letter.body == b"poison"
    assert dict(letter.attributes) == {
        "origin": "fetcher",
        REASON_ATTRIBUTE: "delivery_limit",
        SOURCE_ATTRIBUTE: queues.name,
    }
    await letters.aclose()
    await used.aclose()


async def test_what_nobody_took_is_given_back_uncounted_when_the_queue_is_closed(queues: Queues) -> None:
    first, second = await connected(queues), await connected(queues)
    await first.send(outgoing(b"1", b"2", b"3", b"4", b"5"))
    (taken,) = await first.receive(1, wait=1)
    await until(lambda: all_here(first, 5))
    await first.aclose()
    back = await take(second, 5)
    assert {each.id: each.receive_count for each in back}[taken.id] == 2
    assert sorted(each.receive_count for each in back) == [1, 1, 1, 1, 2]
    await second.aclose()


async def test_what_nobody_takes_is_given_back_while_others_could(queues: Queues) -> None:
    busy, free = await connected(queues), await connected(queues)
    await busy.send(outgoing(b"1", b"2", b"3"))
    (held,) = await take(busy)
    await until(lambda: all_here(busy, 3))

    async def keep() -> None:
        while True:
            assert await busy.extend([held]) == []
            await asyncio.sleep(busy.lease / 4)

    keeping = asyncio.create_task(keep())
    others = await take(free, 2)
    assert {each.receive_count for each in others} == {1}
    for message in others:
        await free.settle(message, Ack())
    # It takes part again as soon as somebody asks.
    await free.aclose()
    await busy.send(outgoing(b"4"))
    (fourth,) = await take(busy)
    assert fourth.body == b"4"
    keeping.cancel()
    assert await busy.settle(held, Ack()) is True
    await busy.aclose()


async def all_here(queue: RabbitQueue, count: int) -> bool:
    """The broker has delivered all of them to this process."""
    consumer = queue._consumer
    assert consumer is not None
    return consumer.waiting + consumer.in_flight == count


async def test_no_more_than_the_prefetch_is_hidden_from_others(queues: Queues) -> None:
    first, second = await connected(queues, prefetch=2, lease=20), await connected(queues, lease=20)
    await first.send(outgoing(b"1", b"2", b"3"))
    assert len(await take(first, 2)) == 2
    (third,) = await take(second)
    assert third.body == b"3"
    await first.aclose()
    await second.aclose()


async def test_a_short_delay_does_not_wait_for_a_long_one(queues: Queues) -> None:
    queue = await connected(queues, lease=20)
    await queue.send([OutgoingMessage(b"long", delay=1.5), OutgoingMessage(b"short", delay=0.05)])
    assert [message.body for message in await take(queue, 2)] == [b"short", b"long"]
    await queue.aclose()


@pytest.mark.parametrize(
    ("delay", "step", "expiration"),
    [
        (0.0001, 1, "1"),
        (0.5, 1, "500"),
        (1, 1, "1000"),
        (1.0001, 4, "1001"),
        (60, 64, "60000"),
        (43_200, 43_200, "43200000"),
        (10**9, 43_200, "43200000"),
    ],
)
def test_a_delay_has_its_step_of_the_ladder(delay: float, step: int, expiration: str) -> None:
    assert Topology("q", "d").after(delay) == (f"q.delay.{step}", expiration)


def test_no_delay_needs_no_ladder() -> None:
    assert Topology("q", "d").after(0) == ("q", None)
    assert Topology("d", None).after(5) == ("d", None)
    assert set(Topology("q", "d").others) == {"d", *(f"q.delay.{step}" for step in LADDER)}


async def test_a_message_of_another_publisher_is_carried_whole(queues: Queues, queue: RabbitQueue) -> None:
    headers: dict[str, Any] = {"text": "é", "number": 7, "bytes": bytearray(b"\xff\x00"), "list": ["a", 1]}
    when = 1_700_000_000
    properties = Basic.Properties(
        headers=headers,
        content_type="application/json",
        correlation_id="c",
        user_id="guest",
        expiration="60000",
        timestamp=datetime.fromtimestamp(when, UTC),
    )
    await publish(queues, b"{}", properties)
    (first,) = await take(queue)
    assert dict(first.attributes) == {"text": "é", "number": "7", "bytes": "/wA=", "list": '["a", 1]'}
    assert first.sent_at == when
    assert await queue.settle(first, Retry(0.05))
    (second,) = await take(queue)
    assert (second.id, second.attributes, second.sent_at) == (first.id, first.attributes, when)
    assert second.receive_count == first.receive_count + 1
    await queue.settle(second, Dead("malformed"))
    buried = await queues.channel.basic_get(queues.dead, no_ack=True)
    kept = buried.header.properties
    assert (kept.content_type, kept.correlation_id) == ("application/json", "c")


async def test_bytes_that_are_no_text_arrive_as_they_are(queue: RabbitQueue) -> None:
    body = bytes(range(256)) * 1000
    await queue.send([OutgoingMessage(body), OutgoingMessage(b"")])
    messages = await take(queue, 2)
    assert {message.body for message in messages} == {body, b""}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"CC": "elsewhere"}, "would route"),
        ({"x-death": "never"}, "the broker's own"),
        ({"x-transload-receives": "7"}, "the broker's own"),
        ({"n" * 256: ""}, "255"),
        ({"large": "x" * 130_000}, "120000"),
        ({"half": "\ud800"}, "surrogate"),
    ],
    ids=["CC", "x-death", "ours", "long name", "large", "surrogate"],
)
async def test_what_cannot_be_carried_is_refused_before_anything_is_sent(
    queue: RabbitQueue, attributes: dict[str, str], reason: str
) -> None:
    with pytest.raises(QueueError, match=reason):
        await queue.send([OutgoingMessage(b"good"), OutgoingMessage(b"bad", attributes)])
    assert await empty(queue)


async def test_as_many_attributes_as_fit_are_carried_and_survive_a_burial(queue: RabbitQueue) -> None:
    attributes = {f"attribute {index}": "v" * 1000 for index in range(100)}
    await queue.send([OutgoingMessage(b"x", attributes)])
    (message,) = await take(queue)
    assert dict(message.attributes) == attributes
    await queue.settle(message, Dead("poison", "d" * 50_000))
    letters = await queue.open_dead_letters()
    (letter,) = await take(letters)
    assert letter.attributes[REASON_ATTRIBUTE] == "poison"
    assert letter.attributes.items() >= attributes.items()
    await letters.aclose()


async def test_a_stalled_process_finds_its_leases_gone_before_any_timer_fires(queue: RabbitQueue) -> None:
    await queue.send(outgoing(b"a", b"b", b"c"))
    held = await take(queue, 3)
    time.sleep(queue.lease * 1.2)  # noqa: ASYNC251 - the whole event loop stands still
    ack = await queue.settle(held[0], Ack())
    dead = await queue.settle(held[1], Dead("poison"))
    assert (ack, dead, await queue.extend(held)) == (False, False, held)
    assert {each.receive_count for each in await take(queue, 3)} == {2}
    assert (await queue.depth()).dead == 0


async def test_of_two_settlements_of_one_message_one_counts(queue: RabbitQueue) -> None:
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    outcomes = await asyncio.gather(*(queue.settle(message, Dead("poison")) for _ in range(3)))
    assert sorted(outcomes) == [False, False, True]
    assert (await queue.depth()).dead == 1


async def test_a_settlement_that_is_cancelled_loses_nothing(queue: RabbitQueue) -> None:
    await queue.send(outgoing(*(str(index).encode() for index in range(8))))
    messages = await take(queue, 8)
    for turns, message in enumerate(messages):
        settling = asyncio.create_task(queue.settle(message, Dead("poison")))
        for _ in range(turns * 3):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
    letters = await queue.open_dead_letters()
    found: set[bytes] = set()
    async with asyncio.timeout(20):
        while len(found) < 8:
            for source in (queue, letters):
                found |= {message.body for message in await source.receive(10, wait=0.1)}
    await letters.aclose()


async def test_dead_letters_are_looked_at_and_given_back_in_order(queue: RabbitQueue) -> None:
    bodies = [str(index).encode() for index in range(5)]
    for body in bodies:
        await queue.send(outgoing(body))
        (message,) = await take(queue)
        await queue.settle(message, Dead("poison"))
    for _ in range(2):
        letters = await queue.open_dead_letters()
        seen = await take(letters, 5)
        assert [letter.body for letter in seen] == bodies
        for letter in seen:
            assert await letters.settle(letter, Retry(60)) is True
        await letters.aclose()


async def test_case_39_a_queue_that_is_missing_is_named(queues: Queues) -> None:
    with pytest.raises(QueueMissing, match=queues.name):
        await connected(queues, declare=False)
    queue = await connected(queues)
    await queues.channel.queue_delete(queues.name)
    with pytest.raises(QueueMissing, match=queues.name):
        await queue.receive(1, wait=1)
    with pytest.raises(QueueMissing, match=queues.name):
        await queue.send(outgoing(b"nobody"))
    with pytest.raises(QueueMissing, match=queues.name):
        await queue.depth()
    await queues.channel.queue_delete(queues.dead)
    with pytest.raises(QueueMissing, match=queues.dead):
        await queue.open_dead_letters()
    await queue.aclose()


async def test_case_39_a_refused_login_is_told_apart_and_names_no_secret(
    queues: Queues, rabbitmq: RabbitBroker
) -> None:
    host, port = rabbitmq.address
    for url in (f"amqp://guest:hunter2@{host}:{port}/", f"amqp://guest:guest@{host}:{port}/nowhere"):
        with pytest.raises(QueueDenied, match="permissions") as denied:
            await connected(queues, url=SecretStr(url))
        assert "hunter2" not in str(denied.value)


async def test_case_39_a_broker_that_is_not_there_is_unavailable(queues: Queues) -> None:
    with pytest.raises(QueueUnavailable, match="Connect call failed"):
        await connected(queues, url=SecretStr("amqp://guest:hunter2@127.0.0.1:1/"))


async def test_a_queue_made_otherwise_is_reported_and_can_be_used_as_it_is(queues: Queues) -> None:
    await (await connected(queues)).aclose()
    await queues.channel.queue_delete(queues.name)
    await queues.channel.queue_declare(queues.name, durable=True)
    with pytest.raises(QueueError, match=r"inequivalent arg.*declare to false"):
        await connected(queues)
    used = await connected(queues, declare=False)
    await used.send(outgoing(b"classic"))
    (first,) = await take(used)
    await used.settle(first, Retry())
    (second,) = await take(used)
    assert (first.receive_count, second.receive_count) == (1, 2)
    await used.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "http://guest:hunter2@localhost/",
        "amqp:///",
        "amqp://guest:hunter2/2@localhost/",
        "amqp://guest:x@localhost:hunter2",
    ],
)
def test_a_malformed_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValidationError, match="percent-encode") as refused:
        RabbitQueueOptions(url=SecretStr(url), queue="q")
    assert "hunter2" not in str(refused.value)
