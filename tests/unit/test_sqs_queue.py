"""SqsQueue and SqsPublisher where AWS is stricter, or less lucky, than LocalStack."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conformance.queues import StaleHandleConformance, Subject, outgoing, take
from tests.support.strict_sqs import Refusal, StrictSqs, strict_sqs
from worker.publishers.base import Notification, PublishError, PublishRefused
from worker.publishers.sqs import SqsPublisher, SqsPublisherOptions
from worker.queues.base import (
    REASON_ATTRIBUTE,
    Ack,
    Dead,
    OutgoingMessage,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueUnavailable,
    Retry,
)
from worker.queues.sqs import SqsQueue, SqsQueueOptions


def connection(service: StrictSqs, queue: str = "main") -> dict[str, Any]:
    return {
        "queue_url": service.url(queue),
        "endpoint_url": service.endpoint_url,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": SecretStr("canary-secret"),
    }


def refuse(service: StrictSqs, operation: str, code: str, status: int = 400, times: int = 1) -> None:
    def raise_it(_: dict[str, Any]) -> None:
        raise Refusal(code, status)

    service.faults[operation] = [raise_it] * times


@pytest.fixture
async def service() -> AsyncIterator[StrictSqs]:
    async with strict_sqs(lease=30) as service:
        yield service


@pytest.fixture
async def queue(service: StrictSqs) -> AsyncIterator[SqsQueue]:
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    yield queue
    await queue.aclose()


class TestStaleHandles(StaleHandleConformance):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[Subject]:
        async with strict_sqs(lease=1) as service:
            queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
            yield Subject(queue)
            await queue.aclose()


async def test_cases_25_and_26_one_failed_delete_of_ten_fails_alone(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(*(str(index).encode() for index in range(10))))
    messages = await take(queue, 10)
    service.fail_entries[messages[3].handle] = {
        "SenderFault": False,
        "Code": "InternalError",
        "Message": "later",
    }
    settled = await asyncio.gather(*(queue.settle(m, Ack()) for m in messages), return_exceptions=True)
    assert isinstance(settled[3], QueueUnavailable)
    assert [one for index, one in enumerate(settled) if index != 3] == [True] * 9
    assert [stored.id for stored in service.queues["main"]] == [messages[3].id]
    assert len([1 for operation, _ in service.requests if operation == "DeleteMessageBatch"]) == 1


async def test_case_25_a_failed_entry_of_a_send_is_an_error(service: StrictSqs, queue: SqsQueue) -> None:
    service.fail_entries["b"] = {"SenderFault": False, "Code": "InternalError", "Message": "later"}
    with pytest.raises(QueueUnavailable):
        await queue.send(outgoing(b"a", b"b"))
    service.fail_entries["b"] = {"SenderFault": True, "Code": "InvalidMessageContents", "Message": "never"}
    with pytest.raises(QueueError) as raised:
        await queue.send(outgoing(b"b"))
    assert not raised.value.retryable


async def test_case_27_a_lost_reply_of_a_send_is_sent_again(service: StrictSqs, queue: SqsQueue) -> None:
    service.lose_reply.add("SendMessageBatch")
    await queue.send(outgoing(b"perhaps twice"))
    assert {stored.body for stored in service.queues["main"]} == {"perhaps twice"}


async def test_brief_throttling_passes_unnoticed(service: StrictSqs, queue: SqsQueue) -> None:
    refuse(service, "SendMessageBatch", "RequestThrottled")
    await queue.send(outgoing(b"x"))
    assert len(service.queues["main"]) == 1


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("RequestThrottled", 400, QueueUnavailable),
        ("InternalFailure", 500, QueueUnavailable),
        ("AccessDeniedException", 400, QueueDenied),
        ("InvalidClientTokenId", 403, QueueDenied),
        ("QueueDoesNotExist", 400, QueueMissing),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, QueueMissing),
        ("UnsupportedOperation", 400, QueueError),
    ],
)
async def test_case_39_failures_are_told_apart(
    service: StrictSqs, queue: SqsQueue, code: str, status: int, expected: type[QueueError]
) -> None:
    refuse(service, "ReceiveMessage", code, status, times=3)
    with pytest.raises(QueueError) as raised:
        await queue.receive(1, wait=0)
    assert type(raised.value) is expected
    assert "canary-secret" not in str(raised.value)


async def test_no_server_is_unavailable() -> None:
    async with strict_sqs() as service:
        options = SqsQueueOptions(**connection(service))
    with pytest.raises(QueueUnavailable):
        await SqsQueue.connect(options)


async def test_connecting_wants_a_queue_and_its_dead_letters(service: StrictSqs) -> None:
    with pytest.raises(QueueMissing, match="no such queue"):
        await SqsQueue.connect(SqsQueueOptions(**connection(service, "nowhere")))
    with pytest.raises(QueueMissing, match="dead_letter_queue_url"):
        await SqsQueue.connect(SqsQueueOptions(**connection(service, "dead")))
    del service.queues["dead"]
    with pytest.raises(QueueMissing, match="dead-letter queue"):
        await SqsQueue.connect(SqsQueueOptions(**connection(service)))


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"a\0b", b"\x0b", "￾".encode(), b"x" * (1 << 20 | 1)])
async def test_what_sqs_cannot_carry_is_refused_before_anything_is_sent(
    service: StrictSqs, queue: SqsQueue, body: bytes
) -> None:
    with pytest.raises(QueueError) as raised:
        await queue.send(outgoing(b"good", body))
    assert not raised.value.retryable
    assert service.queues["main"] == []


async def test_a_large_send_is_split_by_size(service: StrictSqs, queue: SqsQueue) -> None:
    await queue.send([OutgoingMessage(b"z" * 300_000) for _ in range(7)])
    sizes = [
        len(asked["Entries"]) for operation, asked in service.requests if operation == "SendMessageBatch"
    ]
    assert sizes == [3, 3, 1]


async def test_a_dead_letter_keeps_the_attributes_that_fit(service: StrictSqs, queue: SqsQueue) -> None:
    await queue.send([OutgoingMessage(b"body", {f"a{index}": "v" for index in range(10)})])
    (message,) = await take(queue)
    assert await queue.settle(message, Dead("malformed", "NUL \0 here " + "long " * 1000)) is True
    (letter,) = service.queues["dead"]
    assert letter.body == "body"
    assert len(letter.attributes) == 10
    assert letter.attributes[REASON_ATTRIBUTE]["StringValue"] == "malformed"
    assert service.queues["main"] == []


async def test_a_retry_is_at_most_twelve_hours(service: StrictSqs, queue: SqsQueue) -> None:
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    assert await queue.settle(message, Retry(delay=1e6)) is True
    operation, asked = service.requests[-1]
    assert (operation, asked["Entries"][0]["VisibilityTimeout"]) == ("ChangeMessageVisibilityBatch", 43_200)


async def test_case_22_a_message_held_for_twelve_hours_counts_as_lost(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"x", b"y"))
    kept, spent = await take(queue, 2)
    service.fail_entries[spent.handle] = {
        "SenderFault": True,
        "Code": "InvalidParameterValue",
        "Message": "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]",
    }
    assert await queue.extend([kept, spent]) == [spent]


async def test_the_lease_may_be_the_options(service: StrictSqs) -> None:
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service), lease=77))
    await queue.send(outgoing(b"x"))
    await take(queue)
    asked = next(asked for operation, asked in service.requests if operation == "ReceiveMessage")
    assert (queue.lease, asked["VisibilityTimeout"]) == (77.0, 77)
    await queue.aclose()


async def test_published_outcomes_are_per_notification(service: StrictSqs) -> None:
    publisher = await SqsPublisher.connect(SqsPublisherOptions(**connection(service)))
    sent = [Notification(str(index), "fr", str(index).encode(), {"a": "b"}) for index in range(3)]
    service.fail_entries = {
        "0": {"SenderFault": True, "Code": "InvalidMessageContents", "Message": "never"},
        "1": {"SenderFault": False, "Code": "InternalError", "Message": "later"},
    }
    outcomes = await publisher.publish(sent)
    assert [type(outcome) for outcome in outcomes] == [PublishRefused, PublishError, type(None)]
    refuse(service, "SendMessageBatch", "InvalidParameterValue")
    assert list(await publisher.publish(sent)) == [None, None, None]
    service.requests.clear()
    refuse(service, "SendMessageBatch", "InternalFailure", 500, times=3)
    outcomes = await publisher.publish(sent * 5)
    assert all(isinstance(outcome, PublishError) and outcome.retryable for outcome in outcomes)
    # One request in three attempts: the rest is not tried against a queue that is down.
    assert len(service.requests) == 3
    await publisher.aclose()
