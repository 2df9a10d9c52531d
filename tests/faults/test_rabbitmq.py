"""RabbitMQ that breaks: connections reset and silent, a broker killed, alarmed and impatient, a process that stands still."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conformance.publishers import notification
from tests.conformance.queues import empty, outgoing, take, until
from tests.support.programs import begin
from tests.support.rabbitmq import STRANGER, OwnBroker, Queues, RabbitBroker, rabbit_queues
from tests.support.toxics import Proxy
from worker.publishers.base import PublishError, PublishRefused
from worker.publishers.rabbitmq import RabbitPublisher, RabbitPublisherOptions
from worker.queues.base import (
    Ack,
    Dead,
    Message,
    OutgoingMessage,
    Queue,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueUnavailable,
    Retry,
)
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions

CONSUMER_TIMEOUT = 1.5
PATIENCE = 30.0

HOLDER = """
import asyncio, sys
from worker.queues.base import Ack, QueueError
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions

async def main(url, name):
    queue = await RabbitQueue.connect(RabbitQueueOptions(url=url, queue=name, lease=2))
    messages = []
    while not messages:
        messages = await queue.receive(1, 2)
    print("taken", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    try:
        print(await queue.settle(messages[0], Ack()), await queue.extend(messages) == messages, flush=True)
    except QueueError as exc:
        print(type(exc).__name__, flush=True)
    await queue.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def queues(rabbitmq: RabbitBroker) -> AsyncIterator[Queues]:
    async with rabbit_queues(rabbitmq) as queues:
        yield queues


@pytest.fixture
async def proxy(rabbitmq: RabbitBroker) -> AsyncIterator[Proxy]:
    async with Proxy.to(*rabbitmq.address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def own() -> Iterator[OwnBroker]:
    with OwnBroker.create(
        f"consumer_timeout = {CONSUMER_TIMEOUT * 1000:.0f}\nmax_message_size = 50000",
        "{channel_tick_interval, 200}",
    ) as broker:
        yield broker


@pytest.fixture
async def frail(own: OwnBroker) -> AsyncIterator[Queues]:
    """Names on a broker of this module's own."""
    async with rabbit_queues(own) as queues:
        yield queues


async def connected(queues: Queues, **changes: object) -> RabbitQueue:
    return await RabbitQueue.connect(RabbitQueueOptions(**queues.options(**changes)))


async def publisher_to(queues: Queues, **changes: object) -> RabbitPublisher:
    options = {"url": SecretStr(queues.url), "queue": queues.name, "timeout": 1.0} | changes
    return await RabbitPublisher.connect(RabbitPublisherOptions(**options))


async def resumed(queue: Queue, count: int = 1) -> list[Message]:
    """Receive `count` messages however often the queue says that it is not available just now."""
    taken: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            try:
                taken += await queue.receive(count - len(taken), wait=1)
            except QueueUnavailable:
                await asyncio.sleep(0.02)
    return taken


async def lost(queue: Queue, message: Message) -> bool:
    try:
        return list(await queue.extend([message])) == [message]
    except QueueUnavailable:
        return False


async def test_case_32_a_handle_of_a_lost_channel_settles_nothing_on_the_next(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    url = SecretStr(rabbitmq.through(proxy.port))
    queue = await connected(queues, url=url, lease=20)
    await queue.send(outgoing(b"a", b"b"))
    old = await take(queue, 2)
    proxy.reset()
    fresh = await resumed(queue, 2)
    # The same two delivery tags, of other messages perhaps.
    assert {each.handle.rpartition(".")[2] for each in fresh} == {"1", "2"}
    assert {each.id for each in fresh} == {each.id for each in old}
    assert {each.receive_count for each in fresh} == {2}
    for message in old:
        for disposition in (Ack(), Retry(), Retry(5), Dead("poison")):
            assert await queue.settle(message, disposition) is False
    assert await queue.extend([*old, *fresh]) == old
    depth = await queue.depth()
    assert (depth.visible, depth.in_flight, depth.delayed, depth.dead) == (0, 2, 0, 0)
    for message in fresh:
        assert await queue.settle(message, Ack()) is True
    await until(lambda: empty(queue))
    await queue.aclose()


@pytest.mark.parametrize("disposition", [Ack(), Retry(0), Retry(0.1), Dead("poison")])
async def test_case_32_a_reset_under_a_settlement_loses_nothing(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy, disposition: Ack | Retry | Dead
) -> None:
    queue = await connected(queues, url=SecretStr(rabbitmq.through(proxy.port)), lease=20)
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    proxy.reset()
    # Nobody has told the process yet. Whatever it believes, the message is somewhere.
    with suppress(QueueUnavailable):
        await queue.settle(message, disposition)
    letters = await queue.open_dead_letters()
    found: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while not found:
            for source in (queue, letters):
                try:
                    found += await source.receive(1, wait=0.2)
                except QueueUnavailable:
                    await asyncio.sleep(0.02)
    assert {each.body for each in found} == {b"x"}
    await letters.aclose()
    await queue.aclose()


async def test_case_33_a_consumer_resumes_after_the_broker_lost_patience(frail: Queues) -> None:
    queue = await connected(frail, lease=20, consumer_timeout=None)
    await queue.send(outgoing(b"slow"))
    (slow,) = await take(queue)
    await until(lambda: lost(queue, slow))
    assert await queue.settle(slow, Ack()) is False
    receives = [1]

    async def settled() -> bool:
        # On a slow machine the broker loses its patience again before this is through.
        with suppress(QueueUnavailable):
            for again in await queue.receive(1, wait=1):
                assert again.id == slow.id
                receives.append(again.receive_count)
                await queue.settle(again, Ack())
            return len(receives) > 1 and await empty(queue)
        return False

    await until(settled)
    assert receives == sorted(set(receives))
    await queue.aclose()


async def test_case_33_a_message_held_too_long_does_not_take_the_others_with_it(frail: Queues) -> None:
    queue = await connected(frail, lease=20, consumer_timeout=CONSUMER_TIMEOUT)
    assert queue.longest_hold is not None
    assert queue.longest_hold < CONSUMER_TIMEOUT
    await queue.send(outgoing(b"slow"))
    (slow,) = await take(queue)
    loop = asyncio.get_running_loop()
    taken_at = loop.time()
    while loop.time() < taken_at + 1:
        assert await queue.extend([slow]) == []
        await asyncio.sleep(0.1)
    await queue.send(outgoing(b"quick"))
    (quick,) = await take(queue)
    await until(lambda: lost(queue, slow))
    assert await queue.extend([quick, slow]) == [slow]
    assert await queue.settle(quick, Ack()) is True
    (again,) = await resumed(queue)
    assert again.id == slow.id
    await queue.aclose()


async def test_case_34_nothing_confirmed_is_lost_by_a_killed_broker(frail: Queues, own: OwnBroker) -> None:
    queue = await connected(frail, lease=20, consumer_timeout=None, timeout=2)
    publisher = await publisher_to(frail)
    await queue.send([OutgoingMessage(b"later", delay=3)])
    await queue.send(outgoing(*(f"held {index}".encode() for index in range(5))))
    held = await take(queue, 5)
    confirmed = {b"later", *(each.body for each in held)}

    async def send_until_it_fails() -> None:
        number = 0
        while True:
            body = f"sent {number}".encode()
            number += 1
            await queue.send(outgoing(body))
            confirmed.add(body)

    sending = asyncio.create_task(send_until_it_fails())

    async def under_way() -> bool:
        return len(confirmed) > 100

    await until(under_way)
    await asyncio.to_thread(own.kill)
    with pytest.raises(QueueUnavailable):
        await sending
    with pytest.raises(QueueUnavailable):
        await queue.receive(1, wait=1)
    with pytest.raises(QueueUnavailable):
        await queue.depth()
    (outcome,) = await publisher.publish([notification()])
    assert isinstance(outcome, PublishError)
    assert outcome.retryable
    await asyncio.to_thread(own.start)
    assert [await queue.settle(message, Ack()) for message in held] == [False] * 5
    found: set[bytes] = set()
    async with asyncio.timeout(PATIENCE):
        while not found >= confirmed:
            for message in await resumed(queue):
                found.add(message.body)
                await queue.settle(message, Ack())
    (outcome,) = await publisher.publish([notification()])
    assert outcome is None
    await publisher.aclose()
    await queue.aclose()


async def test_case_35_what_no_queue_takes_is_not_published(queues: Queues) -> None:
    publisher = await publisher_to(queues)
    await queues.channel.queue_delete(queues.name)
    twin = notification()
    # Three of one id at once, because aiormq alone would call the first of them accepted.
    outcomes = await publisher.publish([twin, twin, notification(), twin])
    assert all(isinstance(outcome, PublishError) and outcome.retryable for outcome in outcomes)
    assert all("no such queue" in str(outcome) for outcome in outcomes)
    await publisher.aclose()
    assert await (await publisher_to(queues)).publish([twin]) == [None]


async def test_case_35_what_the_broker_nacks_is_not_published(queues: Queues) -> None:
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    await queues.channel.queue_declare(queues.name, durable=True, arguments=arguments)
    publisher = await publisher_to(queues)
    # A quorum queue notices late that it is full, and takes one or two more.
    outcomes = [(await publisher.publish([notification()]))[0] for _ in range(6)]
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert refused
    assert all("Basic.Nack" in str(outcome) and outcome.retryable for outcome in refused)
    assert await queues.waiting(queues.name) == outcomes.count(None)
    await publisher.aclose()


async def test_case_35_what_is_not_confirmed_in_time_is_not_published(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    url = SecretStr(rabbitmq.through(proxy.port))
    queue = await connected(queues, url=url, timeout=1)
    publisher = await publisher_to(queues, url=url)
    proxy.black_hole("replies")
    outcomes, sending = await asyncio.gather(
        publisher.publish([notification(), notification()]),
        asyncio.gather(queue.send(outgoing(b"x")), return_exceptions=True),
    )
    assert all(isinstance(outcome, PublishError) and outcome.retryable for outcome in outcomes)
    assert isinstance(sending[0], QueueUnavailable)
    proxy.heal()
    assert await publisher.publish([notification()]) == [None]
    await queue.send(outgoing(b"x"))
    await queue.aclose()
    await publisher.aclose()


async def test_case_35_an_exchange_routes_or_says_so(queues: Queues) -> None:
    exchange = f"{queues.name}.exchange"
    await queues.channel.exchange_declare(exchange, exchange_type="topic", durable=True)
    try:
        options = {"queue": None, "exchange": exchange, "routing_key": "done.fr"}
        publisher = await publisher_to(queues, **options)
        (outcome,) = await publisher.publish([notification()])
        assert isinstance(outcome, PublishError)
        await queues.channel.queue_declare(queues.name, durable=True)
        await queues.channel.queue_bind(queues.name, exchange, "done.*")
        assert await publisher.publish([notification()]) == [None]
        assert await queues.waiting(queues.name) == 1
        await publisher.aclose()
    finally:
        await queues.channel.exchange_delete(exchange)
    with pytest.raises(PublishError, match="no exchange"):
        await publisher_to(queues, **options)


async def test_one_notification_too_large_for_the_broker_fails_alone(frail: Queues) -> None:
    queue = await connected(frail)
    publisher = await publisher_to(frail, queue=frail.dead)
    sent = [notification(f"{index}".encode()) for index in range(20)]
    large = notification(b"x" * 60_000)
    outcomes = await publisher.publish([*sent[:10], large, *sent[10:]])
    assert isinstance(outcomes[10], PublishRefused)
    assert [outcome for index, outcome in enumerate(outcomes) if index != 10] == [None] * 20
    await publisher.aclose()
    with pytest.raises(QueueError, match="larger than") as refused:
        await queue.send([OutgoingMessage(b"x" * 60_000), *outgoing(*(b"small" for _ in range(5)))])
    assert not refused.value.retryable
    await queue.aclose()


async def test_case_38_an_alarm_stops_publishing_and_nothing_else(frail: Queues, own: OwnBroker) -> None:
    queue = await connected(frail, timeout=1, lease=20, consumer_timeout=None)
    publisher = await publisher_to(frail, queue=frail.dead)
    await queue.send(outgoing(b"1"))
    await asyncio.to_thread(own.alarm, raised=True)
    try:
        (message,) = await take(queue)
        with pytest.raises(QueueUnavailable, match="alarm"):
            await queue.settle(message, Dead("poison"))
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match="alarm"):
                await queue.send(outgoing(b"blocked"))
            (outcome,) = await publisher.publish([notification()])
            assert isinstance(outcome, PublishError)
            assert "alarm" in str(outcome)
    finally:
        await asyncio.to_thread(own.alarm, raised=False)
    assert (await publisher.publish([notification()])) == [None]
    await queue.send(outgoing(b"3"))
    await publisher.aclose()
    await queue.aclose()


async def test_case_38_an_alarm_does_not_hold_up_acknowledgements(frail: Queues, own: OwnBroker) -> None:
    queue = await connected(frail, timeout=1, lease=20, consumer_timeout=None)
    await queue.send(outgoing(b"1", b"2"))
    await asyncio.to_thread(own.alarm, raised=True)
    try:
        for message in await take(queue, 2):
            assert await queue.extend([message]) == []
            assert await queue.settle(message, Ack()) is True
        await until(lambda: empty(queue))
    finally:
        await asyncio.to_thread(own.alarm, raised=False)
    await queue.aclose()


async def test_case_39_a_user_without_permissions_is_denied(frail: Queues, own: OwnBroker) -> None:
    await (await connected(frail)).aclose()
    host, port = own.address
    url = SecretStr(f"amqp://{STRANGER}:{STRANGER}@{host}:{port}/")
    with pytest.raises(QueueDenied, match="permissions"):
        await connected(frail, url=url)
    # Whether a queue is there anybody may ask, so this comes out later.
    queue = await connected(frail, url=url, declare=False)
    with pytest.raises(QueueDenied, match="permissions"):
        await queue.receive(1, wait=1)
    with pytest.raises(QueueDenied, match="permissions"):
        await queue.send(outgoing(b"x"))
    await queue.aclose()
    publisher = await publisher_to(frail, url=url)
    (outcome,) = await publisher.publish([notification()])
    assert isinstance(outcome, PublishError)
    assert "permissions" in str(outcome)
    await publisher.aclose()


async def test_case_39_a_queue_deleted_under_its_consumer_is_missing_and_resumes_when_it_is_back(
    queues: Queues,
) -> None:
    queue = await connected(queues)
    waiting = asyncio.create_task(queue.receive(1, wait=1))

    async def consumes() -> bool:
        return await queues.consumers() == 1

    await until(consumes)
    await queues.channel.queue_delete(queues.name)
    with pytest.raises(QueueUnavailable, match="cancelled the consumer"):
        await waiting
    for _ in range(3):
        with pytest.raises(QueueMissing):
            await queue.receive(1, wait=1)
    await (await connected(queues)).aclose()
    await queue.send(outgoing(b"back"))
    (message,) = await resumed(queue)
    assert message.body == b"back"
    await queue.aclose()


async def test_a_connection_without_its_consumer_is_noticed_and_repaired(queues: Queues) -> None:
    queue = await connected(queues)
    assert await queue.receive(1, wait=0.1) == []
    assert await queues.consumers() == 1
    # As a robust connection that forgot to consume again: the connection lives, the broker has nobody to deliver to.
    consumer = queue._consumer
    assert consumer is not None
    assert consumer._tag is not None
    await consumer._channel.basic_cancel(consumer._tag)
    assert await queues.consumers() == 0
    # Once may be a queue that has no leader just now.
    assert await queue.receive(1, wait=0.1) == []
    assert consumer.ended is None
    for _ in range(2):
        assert await queue.receive(1, wait=0.1) == []
    assert consumer.ended is not None
    assert await queues.consumers() == 1
    await queue.send(outgoing(b"anybody there?"))
    (message,) = await take(queue)
    assert message.body == b"anybody there?"
    await queue.aclose()


async def test_a_lost_consumer_is_repaired_under_the_messages_that_are_held(queues: Queues) -> None:
    queue = await connected(queues)
    await queue.send(outgoing(b"held"))
    (held,) = await take(queue)

    async def keep() -> None:
        while True:
            assert await queue.extend([held]) == []
            await asyncio.sleep(queue.lease / 4)

    keeping = asyncio.create_task(keep())
    consumer = queue._consumer
    assert consumer is not None
    assert consumer._tag is not None
    await consumer._channel.basic_cancel(consumer._tag)
    await queue.send(outgoing(b"next"))
    (following,) = await take(queue)
    assert following.body == b"next"
    keeping.cancel()
    for message in (held, following):
        assert await queue.settle(message, Ack()) is True
    await queue.aclose()


async def test_a_consumer_that_is_not_fed_is_replaced_although_others_consume(queues: Queues) -> None:
    queue = await connected(queues)
    other = await connected(queues, prefetch=1, lease=20)
    await other.send(outgoing(b"1"))
    await take(other)
    assert await queue.receive(1, wait=0.1) == []
    consumer = queue._consumer
    assert consumer is not None
    assert consumer._tag is not None
    await consumer._channel.basic_cancel(consumer._tag)
    # The other consumer has its hands full, so this one stays.
    await other.send(outgoing(b"2"))
    (message,) = await resumed(queue)
    assert message.body == b"2"
    await queue.aclose()
    await other.aclose()


async def test_case_64_a_silent_connection_renews_no_lease_and_is_replaced(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    queue = await connected(queues, url=SecretStr(rabbitmq.through(proxy.port)), timeout=1, lease=2)
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    proxy.black_hole()
    with pytest.raises(QueueUnavailable):
        await queue.extend([message])
    with pytest.raises(QueueUnavailable):
        await queue.receive(1, wait=1)
    proxy.heal()
    (again,) = await resumed(queue)
    assert (again.id, again.receive_count) == (message.id, 2)
    assert await queue.settle(message, Ack()) is False
    await queue.aclose()


async def test_case_21_leases_on_a_slow_line_are_renewed_together(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    url = SecretStr(rabbitmq.through(proxy.port))
    queue = await connected(queues, url=url, lease=2, prefetch=200, timeout=5)
    await queue.send(outgoing(*(b"x" for _ in range(100))))
    held = await take(queue, 100)
    # One answer for each of them would take eight seconds.
    proxy.slow("replies", latency=0.08)
    outcomes = await asyncio.gather(*(queue.extend([message]) for message in held))
    proxy.heal()
    assert outcomes == [[]] * 100
    assert (await queue.depth()).in_flight == 100
    await queue.aclose()


async def test_a_subscription_nobody_waits_for_any_more_does_not_outlive_its_end(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    queue = await connected(queues, url=SecretStr(rabbitmq.through(proxy.port)), lease=20)
    assert await queue.receive(1, wait=0) == []
    consumer = queue._consumer
    assert consumer is not None
    await consumer.unsubscribe()
    proxy.slow("replies", latency=0.2)
    subscribing = asyncio.create_task(consumer.subscribe())
    while consumer._tag is None:  # noqa: ASYNC110 - a turn of the loop or two
        await asyncio.sleep(0)
    # It says how much it wants, and after an answer that it wants it.
    subscribing.cancel()
    await asyncio.wait([subscribing])
    await consumer.unsubscribe()
    proxy.heal()
    # What was still to be said is said now.
    await consumer._channel.basic_qos(prefetch_count=1)
    assert await queues.consumers() == 0
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    assert message.body == b"x"
    await queue.aclose()


async def test_publishing_has_an_end_whatever_it_waits_for(frail: Queues) -> None:
    queue = await connected(frail, timeout=0.5)
    # As behind many that are too large, each of which has the broker close a channel.
    async with asyncio.timeout(PATIENCE), queue._outlet._one_apart:
        with pytest.raises(QueueUnavailable, match="not published within"):
            await queue.send([OutgoingMessage(b"x" * 60_000)])
    with pytest.raises(QueueError, match="larger than"):
        await queue.send([OutgoingMessage(b"x" * 60_000)])
    await queue.aclose()


async def test_closing_does_not_wait_for_a_silent_broker(
    queues: Queues, rabbitmq: RabbitBroker, proxy: Proxy
) -> None:
    queue = await connected(queues, url=SecretStr(rabbitmq.through(proxy.port)), timeout=1)
    await queue.send(outgoing(b"x", b"y"))
    await take(queue)
    proxy.black_hole()
    async with asyncio.timeout(PATIENCE):
        await queue.aclose()
    proxy.heal()


async def test_case_23_a_stopped_process_loses_its_messages_and_settles_nothing_when_it_wakes(
    queues: Queues,
) -> None:
    queue = await connected(queues, lease=2)
    await queue.send(outgoing(b"mine"))
    child = await begin("-c", HOLDER, queues.url, queues.name)
    try:
        assert await child.stdout.readline() == b"taken\n"
        os.kill(child.pid, signal.SIGSTOP)
        # Of the stopped process the broker learns by the heartbeats that fail to come.
        (message,) = await resumed(queue)
        assert message.receive_count == 2
        os.kill(child.pid, signal.SIGCONT)
        child.stdin.write(b"go on\n")
        assert await child.stdout.readline() == b"False True\n"
        assert await queue.extend([message]) == []
        assert await queue.settle(message, Ack()) is True
        await until(lambda: empty(queue))
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    await queue.aclose()
