"""What every queue adapter promises. tests/conformance/test_queues.py runs it for each of them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from worker.attempts import Attempt
from worker.queues.base import (
    ATTEMPTS_ATTRIBUTE,
    ATTEMPTS_SHOWN,
    DETAIL_ATTRIBUTE,
    ERROR_ATTRIBUTE,
    FIRST_TIME_ATTRIBUTE,
    REASON_ATTRIBUTE,
    RECEIVE_COUNT_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    TIME_ATTRIBUTE,
    Ack,
    Dead,
    Message,
    OutgoingMessage,
    Queue,
    QueueMissing,
    QueueUnavailable,
    Retry,
)

PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A connected, empty queue with a lease of one to two seconds, and how to make its dead letters fail."""

    queue: Queue
    break_dead_letters: Callable[[], Awaitable[None]] | None = None
    takes_back: bool = True
    """Whether it can make a receive uncounted."""


async def take(queue: Queue, count: int = 1) -> list[Message]:
    """Receive exactly `count` messages, however few come at a time."""
    taken: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < count:
            taken += await queue.receive(count - len(taken), wait=2)
    return taken


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - a queue on a server has no event to wait for
            await asyncio.sleep(0.02)


async def empty(queue: Queue) -> bool:
    return (await queue.depth()).idle


def outgoing(*bodies: bytes) -> list[OutgoingMessage]:
    return [OutgoingMessage(body) for body in bodies]


class QueueConformance:
    """Needs a fixture `subject`."""

    @pytest.fixture
    def queue(self, subject: Subject) -> Queue:
        return subject.queue

    @pytest.mark.parametrize(
        "body", [b"x", '{"name": "Grüße 漢字 🎈 \u202e"}'.encode(), b"\t\r\n \"'<&>\\ %00", b"y" * 200_000]
    )
    async def test_a_message_arrives_as_it_was_sent(self, queue: Queue, body: bytes) -> None:
        await queue.send([OutgoingMessage(body, {"kind": "résumé", "n": "1"})])
        (message,) = await take(queue)
        assert message.body == body
        assert dict(message.attributes) == {"kind": "résumé", "n": "1"}
        assert message.receive_count == 1
        assert message.sent_at is not None
        assert abs(message.sent_at - datetime.now().astimezone().timestamp()) < 60

    async def test_what_is_not_settled_comes_back_with_a_higher_count(self, queue: Queue) -> None:
        await queue.send(outgoing(b"again"))
        (first,) = await take(queue)
        (second,) = await take(queue)
        assert (second.id, second.body, second.receive_count) == (first.id, b"again", 2)
        assert second.handle != first.handle

    async def test_a_received_message_is_hidden_from_others(self, queue: Queue) -> None:
        await queue.send(outgoing(b"mine"))
        await take(queue)
        assert await queue.receive(10, wait=0) == []

    async def test_case_21_extending_keeps_a_message_hidden_past_its_lease(self, queue: Queue) -> None:
        await queue.send(outgoing(b"long"))
        (message,) = await take(queue)
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * queue.lease
        while loop.time() < end:
            assert await queue.extend([message]) == []
            assert await queue.receive(1, wait=0) == []
            await asyncio.sleep(queue.lease / 5)
        assert await queue.settle(message, Ack()) is True
        await until(lambda: empty(queue))

    async def test_an_extension_counts_from_now(self, queue: Queue) -> None:
        await queue.send(outgoing(b"kept", b"dropped"))
        kept, dropped = await take(queue, 2)
        while not (back := await queue.receive(1, wait=0)):
            assert await queue.extend([kept]) == []
            await asyncio.sleep(0.02)
        assert [message.id for message in back] == [dropped.id]

    async def test_an_acknowledged_message_is_gone(self, queue: Queue) -> None:
        await queue.send(outgoing(b"done"))
        (message,) = await take(queue)
        assert await queue.settle(message, Ack()) is True
        await until(lambda: empty(queue))
        assert await queue.receive(1, wait=queue.lease + 1) == []

    async def test_acknowledging_twice_harms_nobody(self, queue: Queue) -> None:
        await queue.send(outgoing(b"one", b"two"))
        one, two = await take(queue, 2)
        assert await queue.settle(one, Ack()) is True
        assert await queue.settle(one, Ack()) in {True, False}
        assert (await queue.depth()).in_flight == 1
        assert await queue.settle(two, Ack()) is True

    async def test_a_retry_without_delay_comes_back_at_once(self, queue: Queue) -> None:
        await queue.send(outgoing(b"retry"))
        (message,) = await take(queue)
        assert await queue.extend([message]) == []
        assert await queue.settle(message, Retry()) is True
        (again,) = await queue.receive(1, wait=queue.lease / 2 if queue.lease > 4 else 1)
        assert (again.id, again.receive_count) == (message.id, 2)

    @pytest.mark.parametrize("delay", [0.0, 0.5])
    async def test_what_is_given_back_uncounted_is_as_if_it_had_not_been_received(
        self, subject: Subject, delay: float
    ) -> None:
        queue = subject.queue
        await queue.send([OutgoingMessage(b"not yet", {"kind": "résumé"})])
        (message,) = await take(queue)
        assert await queue.settle(message, Retry(delay, counted=False)) is True
        assert (await queue.depth()).idle is False
        (again,) = await take(queue)
        counted = 1 if subject.takes_back else 2
        assert (again.id, again.body, again.receive_count) == (message.id, b"not yet", counted)
        assert (again.attributes, again.sent_at) == (message.attributes, message.sent_at)
        assert await queue.settle(again, Retry(0)) is True
        (last,) = await take(queue)
        assert last.receive_count == counted + 1

    async def test_a_retry_comes_back_after_its_delay(self, queue: Queue) -> None:
        await queue.send(outgoing(b"later"))
        (message,) = await take(queue)
        loop = asyncio.get_running_loop()
        before = loop.time()
        delay = queue.lease + 1
        assert await queue.settle(message, Retry(delay=delay)) is True
        (again,) = await take(queue)
        # Services count whole seconds, and their clocks need not tick with ours.
        assert loop.time() - before >= delay - 1
        assert again.id == message.id

    async def test_a_waiting_retry_is_not_lost_from_the_depth(self, queue: Queue) -> None:
        await queue.send(outgoing(b"later"))
        (message,) = await take(queue)
        await queue.settle(message, Retry(delay=30))
        depth = await queue.depth()
        assert (depth.visible, depth.in_flight + depth.delayed) == (0, 1)

    async def test_a_delayed_message_waits(self, queue: Queue) -> None:
        await queue.send([OutgoingMessage(b"later", delay=1), OutgoingMessage(b"now")])
        (first,) = await take(queue)
        assert first.body == b"now"
        assert (await queue.depth()).delayed == 1
        await queue.settle(first, Ack())
        (second,) = await take(queue)
        assert second.body == b"later"

    async def test_case_28_a_dead_letter_tells_its_story(self, queue: Queue) -> None:
        began = datetime(2026, 2, 3, 4, 5, 6, 7000, tzinfo=UTC)
        tries = [
            Attempt((began + timedelta(minutes=n)).timestamp(), "Unavailable", f"no answer {n}")
            for n in range(30)
        ]
        tries[-1] = replace(tries[-1], error="IntegrityError", detail="page.html: ends too early")
        own = {"origin": "fetcher", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        await queue.send([OutgoingMessage(b'{"broken": ', own)])
        (message,) = await take(queue)
        dead = Dead("too_many_attempts", "page.html: ends too early", "IntegrityError", tries)
        assert await queue.settle(message, dead) is True
        await until(lambda: empty(queue))
        letters = await queue.open_dead_letters()
        try:
            (letter,) = await take(letters)
            assert letter.body == b'{"broken": '
            attributes = dict(letter.attributes)
            when = datetime.fromisoformat(attributes.pop(TIME_ATTRIBUTE))
            assert when.utcoffset() is not None
            assert abs((datetime.now().astimezone() - when).total_seconds()) < 60
            log = json.loads(attributes.pop(ATTEMPTS_ATTRIBUTE))
            assert [line["detail"] for line in log] == [
                each.detail for each in (tries[0], *tries[1 - ATTEMPTS_SHOWN :])
            ]
            assert log[-1] == {
                "at": "2026-02-03T04:34:06.007+00:00",
                "error": "IntegrityError",
                "detail": "page.html: ends too early",
            }
            assert attributes == own | {
                REASON_ATTRIBUTE: "too_many_attempts",
                ERROR_ATTRIBUTE: "IntegrityError",
                DETAIL_ATTRIBUTE: "page.html: ends too early",
                FIRST_TIME_ATTRIBUTE: "2026-02-03T04:05:06.007+00:00",
                SOURCE_ATTRIBUTE: queue.name,
                RECEIVE_COUNT_ATTRIBUTE: "1",
            }
            assert await letters.settle(letter, Ack()) is True
        finally:
            await letters.aclose()

    async def test_case_28_a_message_dead_at_the_first_look_says_so(self, queue: Queue) -> None:
        await queue.send(outgoing(b"no json"))
        (message,) = await take(queue)
        assert await queue.settle(message, Dead("malformed", "line 1")) is True
        letters = await queue.open_dead_letters()
        try:
            (letter,) = await take(letters)
            attributes = dict(letter.attributes)
            assert attributes.pop(TIME_ATTRIBUTE) == attributes.pop(FIRST_TIME_ATTRIBUTE)
            assert attributes == {
                REASON_ATTRIBUTE: "malformed",
                DETAIL_ATTRIBUTE: "line 1",
                SOURCE_ATTRIBUTE: queue.name,
                RECEIVE_COUNT_ATTRIBUTE: "1",
            }
        finally:
            await letters.aclose()

    async def test_the_depth_counts_dead_letters(self, queue: Queue) -> None:
        await queue.send(outgoing(b"a", b"b"))
        for message in await take(queue, 2):
            await queue.settle(message, Dead("poison"))

        async def both() -> bool:
            return (await queue.depth()).dead == 2

        await until(both)

    async def test_dead_letters_have_no_dead_letters(self, queue: Queue) -> None:
        await queue.send(outgoing(b"dead"))
        (message,) = await take(queue)
        await queue.settle(message, Dead("poison"))
        letters = await queue.open_dead_letters()
        try:
            assert (await letters.depth()).dead is None
            (letter,) = await take(letters)
            with pytest.raises(QueueMissing):
                await letters.settle(letter, Dead("poison"))
            with pytest.raises(QueueMissing):
                await letters.open_dead_letters()
        finally:
            await letters.aclose()

    async def test_more_than_a_batch_can_be_sent_and_taken(self, queue: Queue) -> None:
        bodies = {f"message {index}".encode() for index in range(25)}
        await queue.send(outgoing(*bodies))
        messages = await take(queue, 25)
        assert {message.body for message in messages} == bodies
        assert all(await asyncio.gather(*(queue.settle(message, Ack()) for message in messages)))
        await until(lambda: empty(queue))

    async def test_sending_nothing_sends_nothing(self, queue: Queue) -> None:
        await queue.send([])
        assert await empty(queue)

    async def test_no_message_is_with_two_receivers_at_once(self, queue: Queue) -> None:
        await queue.send(outgoing(*(str(index).encode() for index in range(40))))
        seen: list[Message] = []

        async def receiver() -> None:
            while len(seen) < 40:
                messages = await queue.receive(3, wait=1)
                seen.extend(messages)
                await asyncio.gather(*(queue.settle(message, Ack()) for message in messages))

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(receiver() for _ in range(8)))
        assert len({message.id for message in seen}) == len(seen) == 40
        assert {message.receive_count for message in seen} == {1}

    async def test_a_receive_takes_no_more_than_its_limit(self, queue: Queue) -> None:
        await queue.send(outgoing(b"1", b"2", b"3", b"4"))
        assert 1 <= len(await queue.receive(3, wait=1)) <= 3

    async def test_the_depth_tells_waiting_from_taken(self, queue: Queue) -> None:
        await queue.send(outgoing(b"1", b"2", b"3"))
        assert (await queue.depth()).visible == 3
        await take(queue)
        depth = await queue.depth()
        assert (depth.visible, depth.in_flight, depth.delayed, depth.idle) == (2, 1, 0, False)

    async def test_an_empty_queue_is_waited_for_and_found_empty(self, queue: Queue) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await queue.receive(1, wait=1) == []
        assert loop.time() - before >= 0.9

    async def test_a_waiting_receive_gets_what_is_sent_meanwhile(self, queue: Queue) -> None:
        waiting = asyncio.create_task(_receive(queue, wait=15))
        await asyncio.sleep(0)
        await queue.send(outgoing(b"hello"))
        async with asyncio.timeout(10):
            (message,) = await waiting
        assert message.body == b"hello"

    async def test_a_waiting_receive_can_be_cancelled(self, queue: Queue) -> None:
        waiting = asyncio.create_task(_receive(queue, wait=20))
        for _ in range(5):
            await asyncio.sleep(0.01)
        waiting.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await waiting

    async def test_a_cancelled_receive_loses_nothing(self, queue: Queue) -> None:
        await queue.send(outgoing(*(str(index).encode() for index in range(5))))
        for turns in range(6):
            receiving = asyncio.create_task(_receive(queue, wait=1))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            receiving.cancel()
            await asyncio.wait([receiving])
        bodies: set[bytes] = set()
        async with asyncio.timeout(PATIENCE):
            while len(bodies) < 5:
                for message in await queue.receive(10, wait=1):
                    bodies.add(message.body)
                    await queue.settle(message, Ack())

    async def test_closing_twice_is_harmless_and_ends_the_queue(self, queue: Queue) -> None:
        await queue.aclose()
        await queue.aclose()
        with pytest.raises(QueueUnavailable):
            await queue.receive(1, wait=0)
        with pytest.raises(QueueUnavailable):
            await queue.send(outgoing(b"late"))

    async def test_case_29_without_its_dead_letter_the_message_stays(self, subject: Subject) -> None:
        queue = subject.queue
        if subject.break_dead_letters is None:
            # One store holds both: what can be seen is that neither is ever without the message.
            await self._watch_a_burial(queue)
            return
        await queue.send(outgoing(b"keep me"))
        (message,) = await take(queue)
        await subject.break_dead_letters()
        with pytest.raises(QueueUnavailable):
            await queue.settle(message, Dead("poison"))
        (again,) = await take(queue)
        assert (again.id, again.body) == (message.id, b"keep me")

    async def _watch_a_burial(self, queue: Queue) -> None:
        await queue.send(outgoing(b"keep me"))
        (message,) = await take(queue)
        burial = asyncio.create_task(queue.settle(message, Dead("poison")))
        while not burial.done():
            depth = await queue.depth()
            assert depth.in_flight + (depth.dead or 0) == 1
            await asyncio.sleep(0)
        assert await burial is True
        assert (await queue.depth()).dead == 1


class StaleHandleConformance:
    """What a handle is worth once its lease has passed. Needs a fixture `subject`."""

    @pytest.fixture
    def queue(self, subject: Subject) -> Queue:
        return subject.queue

    async def _lapsed(self, queue: Queue, count: int = 1) -> list[Message]:
        await queue.send(outgoing(*(str(index).encode() for index in range(count))))
        messages = await take(queue, count)

        async def visible() -> bool:
            return (await queue.depth()).visible == count

        await until(visible)
        return messages

    @pytest.mark.parametrize(
        "disposition", [Ack(), Retry(), Retry(5), Retry(1, counted=False), Dead("poison")]
    )
    async def test_case_24_a_stale_handle_settles_nothing(
        self, queue: Queue, disposition: Ack | Retry | Dead
    ) -> None:
        (stale,) = await self._lapsed(queue)
        assert await queue.settle(stale, disposition) is False
        depth = await queue.depth()
        assert (depth.visible, depth.in_flight, depth.delayed, depth.dead) == (1, 0, 0, 0)

    @pytest.mark.parametrize("disposition", [Ack(), Retry(), Retry(5), Dead("poison")])
    async def test_the_first_owner_cannot_disturb_the_second(
        self, queue: Queue, disposition: Ack | Retry | Dead
    ) -> None:
        (stale,) = await self._lapsed(queue)
        (fresh,) = await take(queue)
        assert await queue.settle(stale, disposition) is False
        assert await queue.extend([stale]) == [stale]
        depth = await queue.depth()
        assert (depth.visible, depth.in_flight, depth.dead) == (0, 1, 0)
        assert await queue.settle(fresh, Ack()) is True

    async def test_extending_names_exactly_the_lost(self, queue: Queue) -> None:
        (stale,) = await self._lapsed(queue)
        (fresh,) = await take(queue)
        await queue.send(outgoing(b"other"))
        (other,) = await take(queue)
        assert await queue.extend([other, stale, fresh]) == [stale]

    async def test_an_acknowledged_handle_is_stale(self, queue: Queue) -> None:
        await queue.send(outgoing(b"done"))
        (message,) = await take(queue)
        assert await queue.settle(message, Ack()) is True
        assert await queue.extend([message]) == [message]
        assert await queue.settle(message, Ack()) is False


async def _receive(queue: Queue, wait: float) -> Sequence[Message]:
    return await queue.receive(10, wait)
