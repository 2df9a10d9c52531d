"""What the RabbitMQ queue does beyond the suite of the port, on a broker that behaves. tests/faults/test_rabbitmq.py has the rest."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import decode, encode
from pamqp.commands import Basic
from pamqp.common import FieldValue
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from tests.conformance.queues import empty, outgoing, take, until
from tests.support.rabbitmq import Queues, RabbitBroker, rabbit_queues
from worker.queues.base import (
    REASON_ATTRIBUTE,
    REDRIVES_ATTRIBUTE,
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
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions
from worker.queues.rabbitmq_topology import LADDER, Topology


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
    with capture_logs() as logs:
        used = await connected(queues, declare=False)
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    (difference,) = warning["differences"]
    assert "x-delivery-limit" in difference
    assert queues.name in difference
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


async def test_case_37_a_limit_of_the_brokers_own_is_never_reached(
    queues: Queues, queue: RabbitQueue
) -> None:
    await queue.aclose()
    await queues.channel.queue_delete(queues.name)
    # As RabbitMQ 4 limits a queue that nobody gave a limit.
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 20}
    await queues.channel.queue_declare(queues.name, durable=True, arguments=arguments)
    used = await connected(queues, declare=False)
    await used.send([OutgoingMessage(b"stubborn", {"kind": "k"})])
    for attempt in range(1, 36):
        (message,) = await take(used)
        assert (message.receive_count, message.attributes) == (attempt, {"kind": "k"})
        assert await used.settle(message, Retry())
    await used.aclose()


async def test_queues_made_as_described_are_used_without_a_word(queues: Queues, queue: RabbitQueue) -> None:
    with capture_logs() as logs:
        await (await connected(queues, declare=False)).aclose()
    assert logs == []
    assert queue.name == queues.name


async def test_what_waited_too_long_here_is_given_back_instead_of_handed_out(queue: RabbitQueue) -> None:
    await queue.send(outgoing(b"1", b"2", b"3"))
    (first,) = await take(queue)
    await until(lambda: all_here(queue, 3))
    consumer = queue._consumer
    assert consumer is not None
    assert queue.longest_hold is not None
    old, young = consumer._buffer
    consumer._buffer[0] = (old[0], old[1] - queue.longest_hold)
    (third,) = await take(queue)
    assert third.body == b"3"
    assert young[0].body == b"3"
    (second,) = await take(queue)
    assert (second.body, second.receive_count) == (b"2", 1)
    assert await queue.extend([second]) == []
    for message in (second, third):
        assert await queue.settle(message, Ack()) is True
    await queue.settle(first, Ack())
    await until(lambda: empty(queue))


async def test_what_nobody_dated_has_an_age_once_it_was_put_off(queues: Queues, queue: RabbitQueue) -> None:
    await publish(queues, b"x", Basic.Properties())
    ages = []
    for _ in range(3):
        (message,) = await take(queue)
        ages.append(message.sent_at)
        assert await queue.settle(message, Retry(1, counted=False))
    assert ages[0] is None
    assert ages[1] is not None
    assert ages[2] == ages[1]


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


def table(*entries: bytes) -> bytes:
    return struct.pack(">I", len(b"".join(entries))) + b"".join(entries)


def entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def nested(levels: int) -> bytes:
    found = table()
    for _ in range(levels):
        found = table(entry(b"a", b"F" + found))
    return found


def raw(text: str) -> bytes:
    """A short string with bytes that are no UTF-8."""
    found = text.encode(errors="surrogateescape")
    return bytes([len(found)]) + found


TEXT = entry(b"kind", b"S" + struct.pack(">I", 1) + b"k")
NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("kind", "encoded", "properties", "key", "kept"),
    [
        ("timestamp", struct.pack(">Q", 1_700_000_000_000_000), {"timestamp": NOW}, "", {}),
        ("timestamp", struct.pack(">Q", 2**64 - 1), {"timestamp": NOW}, "", {}),
        ("table", table(TEXT, entry(b"\xff\xfe", b"t\x01")), {"headers": {"": 1}}, "", {"kind": "k"}),
        ("table", table(entry(b"deep", b"F" + nested(2000)), TEXT), {"headers": {"": 1}}, "", {"kind": "k"}),
        (
            "table",
            table(*(entry(b"t", b"T" + b"\xff" * 8), entry(b"d", b"D\2\0\0\0\7"), entry(b"v", b"V"), TEXT)),
            {"headers": {"": 1}},
            "",
            {"d": '"0.07"', "v": "null", "kind": "k"},
        ),
        ("shortstr", None, {"message_id": "\udcff" * 255, "reply_to": "x"}, "", {}),
        ("shortstr", None, {"message_id": "m"}, "\udcff", {}),
    ],
    ids=["microseconds", "far future", "name", "2000 levels", "one of many", "message id", "routing key"],
)
async def test_what_cannot_be_decoded_stops_nothing_and_can_be_buried(
    queues: Queues,
    queue: RabbitQueue,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    encoded: bytes | None,
    properties: dict[str, Any],
    key: str,
    kept: dict[str, str],
) -> None:
    await queue.send(outgoing(b"held"))
    (held,) = await take(queue)
    exchange = f"{queues.name}.exchange"
    await queues.channel.exchange_declare(exchange, exchange_type="fanout")
    await queues.channel.queue_bind(queues.name, exchange)
    with monkeypatch.context() as patch:
        patch.setitem(encode.METHODS, kind, raw if encoded is None else lambda _: encoded)
        await queues.channel.basic_publish(
            b"body", exchange=exchange, routing_key=key, properties=Basic.Properties(**properties)
        )
    await queues.channel.exchange_delete(exchange)
    (first,) = await take(queue)
    assert (first.body, dict(first.attributes), first.receive_count) == (b"body", kept, 1)
    assert await queue.extend([held, first]) == []
    assert await queue.settle(first, Retry())
    (second,) = await take(queue)
    assert (second.id, second.receive_count) == (first.id, 2)
    assert await queue.settle(second, Retry(0.05))
    (third,) = await take(queue)
    assert (third.id, third.receive_count, dict(third.attributes)) == (first.id, 3, kept)
    assert await queue.settle(third, Dead("malformed"))
    letters = await queue.open_dead_letters()
    (letter,) = await take(letters)
    assert (letter.body, letter.attributes[REASON_ATTRIBUTE]) == (b"body", "malformed")
    assert letter.attributes.items() >= kept.items()
    await letters.aclose()


async def test_a_header_nobody_can_read_stays_with_a_message_nobody_took(
    queues: Queues, queue: RabbitQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await queue.receive(1, wait=0.1) == []
    encoded = table(entry(b"\xff", b"S" + struct.pack(">I", 5) + b"value"))
    with monkeypatch.context() as patch:
        patch.setitem(encode.METHODS, "table", lambda _: encoded)
        await publish(queues, b"body", Basic.Properties(headers={"": 1}))
    await until(lambda: all_here(queue, 1))
    await queue.aclose()

    async def back() -> bool:
        return await queues.waiting(queues.name) == 1

    await until(back)
    # As another client sees it: the header is the one that was sent.
    seen: list[bytes] = []

    def note(value: bytes) -> tuple[int, FieldValue]:
        seen.append(value)
        return 4 + int.from_bytes(value[:4], "big"), {}

    monkeypatch.setitem(decode.METHODS, "table", note)
    await queues.channel.basic_get(queues.name, no_ack=True)
    assert any(encoded[4:] in value for value in seen)


async def test_headers_that_grow_too_large_as_text_do_not_keep_a_message_from_being_buried(
    queues: Queues, queue: RabbitQueue
) -> None:
    headers: dict[str, Any] = {f"{index:04}": True for index in range(10_000)}
    await publish(queues, b"body", Basic.Properties(headers=headers | {REDRIVES_ATTRIBUTE: "2"}))
    (message,) = await take(queue)
    assert len(message.attributes) == 10_001
    assert await queue.settle(message, Retry(0.05))
    (again,) = await take(queue)
    assert again.attributes == message.attributes
    assert await queue.settle(again, Dead("malformed"))
    letters = await queue.open_dead_letters()
    (letter,) = await take(letters)
    assert (letter.id, letter.body) == (message.id, b"body")
    # What it says of itself gave way, besides what keeps it from being redriven for ever.
    assert letter.attributes[REASON_ATTRIBUTE] == "malformed"
    assert letter.attributes[REDRIVES_ATTRIBUTE] == "2"
    assert "0000" not in letter.attributes
    await letters.aclose()


async def test_headers_that_leave_no_room_for_ours_give_way_to_them(
    queues: Queues, queue: RabbitQueue
) -> None:
    # aiormq sends a frame of more than 128 KiB as it is, and the broker minds from there on.
    await publish(queues, b"body", Basic.Properties(headers={"large": "x" * 125_000}))
    (message,) = await take(queue)
    assert await queue.settle(message, Retry(0.05))
    (again,) = await take(queue)
    assert (again.id, again.receive_count, dict(again.attributes)) == (message.id, 2, {})


async def test_headers_that_route_do_not_route_the_copies(queues: Queues, queue: RabbitQueue) -> None:
    await publish(
        queues, b"body", Basic.Properties(headers={"CC": [queues.name], "kind": "k"}), to=queues.dead
    )
    (message,) = await take(queue)
    assert dict(message.attributes) == {"kind": "k"}
    assert await queue.settle(message, Retry(0.05))
    (again,) = await take(queue)
    assert await queue.settle(again, Dead("poison"))
    await until(lambda: empty(queue))
    assert (await queue.depth()).dead == 2


async def test_numbers_in_headers_survive_a_copy(
    queues: Queues, queue: RabbitQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = table(
        entry(b"double", b"d" + struct.pack(">d", 1e300)),
        entry(b"x-transload-sent-ms", b"l" + struct.pack(">q", 2**63 - 1)),
        entry(b"x-transload-receives", b"l" + struct.pack(">q", 2**63 - 1)),
    )
    with monkeypatch.context() as patch:
        patch.setitem(encode.METHODS, "table", lambda _: encoded)
        await publish(queues, b"body", Basic.Properties(headers={"": 1}))
    (message,) = await take(queue)
    assert await queue.settle(message, Retry(0.05))
    (again,) = await take(queue)
    assert dict(again.attributes) == dict(message.attributes) == {"double": "1e+300"}
    assert (again.sent_at, again.receive_count) == (message.sent_at, message.receive_count)


async def test_messages_of_one_message_id_are_told_apart_through_every_copy(
    queues: Queues, queue: RabbitQueue
) -> None:
    for body in (b"1", b"2"):
        await publish(queues, body, Basic.Properties(message_id="batch\0\u202e"))
    first = await take(queue, 2)
    ids = {message.body: message.id for message in first}
    assert len(set(ids.values())) == 2
    assert all(id_.isalnum() and id_.isascii() for id_ in ids.values())
    for message in first:
        assert await queue.settle(message, Retry(0.05))
    second = await take(queue, 2)
    assert {message.body: message.id for message in second} == ids
    for message in second:
        assert await queue.settle(message, Dead("poison"))
    buried = [await queues.channel.basic_get(queues.dead, no_ack=True) for _ in ids]
    assert {each.header.properties.message_id for each in buried} == {"batch\0\u202e"}
    assert {each.body: (each.header.properties.headers or {})["x-transload-id"] for each in buried} == ids


async def test_an_id_that_cannot_be_ours_is_not_believed(queues: Queues, queue: RabbitQueue) -> None:
    forged: list[Any] = ["a\0b", "f" * 31, "F" * 32, "f" * 32 + "\n", 7, None]
    for number, each in enumerate(forged):
        await publish(queues, str(number).encode(), Basic.Properties(headers={"x-transload-id": each}))
    messages = await take(queue, len(forged))
    ids = {message.id for message in messages}
    assert len(ids) == len(forged)
    assert all(len(id_) == 32 and id_.isalnum() for id_ in ids)
    assert ids.isdisjoint(forged)
    assert not any(message.attributes for message in messages)


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
        ({"n" * 129: ""}, "128"),
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
