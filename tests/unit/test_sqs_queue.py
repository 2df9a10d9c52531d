"""SqsQueue and SqsPublisher where AWS is stricter, or less lucky, than LocalStack."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.conformance.queues import StaleHandleConformance, Subject, outgoing, take
from tests.support.strict_sqs import ACCOUNT, Refusal, StrictSqs, strict_sqs
from worker.aws import size
from worker.publishers.base import Notification, PublishError, PublishRefused
from worker.publishers.sqs import SqsPublisher, SqsPublisherOptions
from worker.queues import sqs_in_flight
from worker.queues.base import (
    ATTEMPTS_ATTRIBUTE,
    DETAIL_ATTRIBUTE,
    ERROR_ATTRIBUTE,
    REASON_ATTRIBUTE,
    REDRIVES_ATTRIBUTE,
    SOURCE_ATTRIBUTE,
    TIME_ATTRIBUTE,
    Ack,
    Dead,
    Message,
    OutgoingMessage,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueUnavailable,
    Retry,
)
from worker.queues.sqs import SqsQueue, SqsQueueOptions
from worker.queues.sqs_dead_letters import letter_attributes
from worker.queues.sqs_in_flight import InFlight


def policy(receives: int) -> str:
    return json.dumps(
        {"deadLetterTargetArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:dead", "maxReceiveCount": receives}
    )


def connection(service: StrictSqs, queue: str = "main") -> dict[str, Any]:
    return {
        "queue_url": service.url(queue),
        "endpoint_url": service.endpoint_url,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": SecretStr("canary-secret"),
    }


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


@pytest.mark.parametrize(("receives", "returnable"), [(3, 0), (100, 0), (102, 2), (None, 3)])
async def test_case_28_what_a_redrive_policy_leaves_for_tries_is_kept_for_them(
    service: StrictSqs, receives: int | None, returnable: int
) -> None:
    service.settings["main"]["RedrivePolicy"] = None if receives is None else policy(receives)
    options = SqsQueueOptions(**connection(service), dead_letter_queue_url=service.url("dead"))
    queue = await SqsQueue.connect(options)
    await queue.send(outgoing(b"x"))
    seen = []
    for _ in range(3):
        (message,) = await queue.receive(1, 0)
        seen.append(message.returnable)
        await queue.settle(message, Retry(0, counted=False))
    assert sum(seen) == returnable
    assert seen == sorted(seen, reverse=True)
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


SOME_OF_THREE: list[dict[str, Any]] = [
    {},
    {"Successful": [], "Failed": []},
    {"Successful": [{"Id": "1", "MessageId": "m"}]},
    {"Successful": [{"Id": "1", "MessageId": "m"}, {"Id": "7"}, {}], "Failed": [{"Id": "8"}, {}]},
]


@pytest.mark.parametrize("answer", SOME_OF_THREE)
async def test_case_25_a_send_that_is_not_mentioned_was_not_accepted(
    service: StrictSqs, queue: SqsQueue, answer: dict[str, Any]
) -> None:
    service.answers["SendMessageBatch"] = [answer]
    with pytest.raises(QueueError):
        await queue.send(outgoing(b"a", b"b", b"c"))
    publisher = await SqsPublisher.connect(SqsPublisherOptions(**connection(service)))
    service.answers["SendMessageBatch"] = [answer]
    outcomes = await publisher.publish([Notification(f"e{index}", "fr", b"{}", {}) for index in range(3)])
    published = [outcome is None for outcome in outcomes]
    assert published == [False, len(answer.get("Successful", ())) > 0, False]
    assert all(outcome is None or outcome.retryable for outcome in outcomes)
    await publisher.aclose()


async def test_case_25_only_the_later_request_of_a_send_is_not_mentioned(
    service: StrictSqs, queue: SqsQueue
) -> None:
    everything = [{"Id": str(index), "MessageId": "m"} for index in range(12)]
    service.answers["SendMessageBatch"] = [{"Successful": everything[:10]}, {"Successful": everything[10:]}]
    await queue.send(outgoing(*[b"x"] * 12))
    service.answers["SendMessageBatch"] = [{"Successful": everything[:10]}, {"Successful": everything[:2]}]
    with pytest.raises(QueueUnavailable, match="does not mention 2"):
        await queue.send(outgoing(*[b"x"] * 12))


@pytest.mark.parametrize("answer", SOME_OF_THREE)
async def test_case_25_a_delete_or_change_that_is_not_mentioned_was_not_done(
    service: StrictSqs, queue: SqsQueue, answer: dict[str, Any]
) -> None:
    await queue.send(outgoing(b"a", b"b", b"c"))
    messages = await take(queue, 3)
    mentioned = len(answer.get("Successful", ())) > 0
    for operation, act in (
        ("ChangeMessageVisibilityBatch", lambda message: queue.extend([message])),
        ("DeleteMessageBatch", lambda message: queue.settle(message, Ack())),
    ):
        service.answers[operation] = [answer]
        results = await asyncio.gather(*map(act, messages), return_exceptions=True)
        assert [not isinstance(result, QueueUnavailable) for result in results] == [False, mentioned, False]
    assert len(service.queues["main"]) == 3


async def test_case_29_a_letter_that_is_not_mentioned_keeps_its_message(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"keep me"))
    (message,) = await take(queue)
    service.answers["SendMessage"] = [{}]
    with pytest.raises(QueueUnavailable, match="no dead letter"):
        await queue.settle(message, Dead("malformed"))
    assert [stored.id for stored in service.queues["main"]] == [message.id]
    assert await queue.settle(message, Dead("malformed")) is True
    assert (len(service.queues["dead"]), service.queues["main"]) == (1, [])


async def test_what_answers_anything_with_nothing_is_no_queue(service: StrictSqs, queue: SqsQueue) -> None:
    service.answers["GetQueueAttributes"] = [{}] * 3
    with pytest.raises(QueueUnavailable, match="endpoint_url"):
        await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    with pytest.raises(PublishError, match="endpoint_url"):
        await SqsPublisher.connect(SqsPublisherOptions(**connection(service)))
    with pytest.raises(QueueUnavailable, match="endpoint_url"):
        await queue.depth()


async def test_case_27_a_lost_reply_of_a_send_is_sent_again(service: StrictSqs, queue: SqsQueue) -> None:
    service.lost_replies["SendMessageBatch"] = 1
    await queue.send(outgoing(b"perhaps twice"))
    assert {stored.body for stored in service.queues["main"]} == {"perhaps twice"}


async def test_brief_throttling_passes_unnoticed(service: StrictSqs, queue: SqsQueue) -> None:
    service.refuse("SendMessageBatch", "RequestThrottled")
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
    service.refuse("ReceiveMessage", code, status, times=3)
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
    own = {f"a{index}": "v" for index in range(8)} | {"traceparent": "00-1", REDRIVES_ATTRIBUTE: "2"}
    await queue.send([OutgoingMessage(b"body", own)])
    (message,) = await take(queue)
    assert await queue.settle(message, Dead("malformed", "NUL \0 here " + "long " * 1000)) is True
    (letter,) = service.queues["dead"]
    assert letter.body == "body"
    kept = {name: value["StringValue"] for name, value in letter.attributes.items()}
    del own["a7"]
    assert kept == own | {REASON_ATTRIBUTE: "malformed"}
    assert service.queues["main"] == []


STORY = {
    REASON_ATTRIBUTE: "too_many_attempts",
    ERROR_ATTRIBUTE: "Unavailable",
    DETAIL_ATTRIBUTE: "ö" * 2000,
    TIME_ATTRIBUTE: "2026-01-01",
    ATTEMPTS_ATTRIBUTE: json.dumps(
        [{"at": "x", "error": "E", "detail": f"{index}" * 300} for index in range(10)]
    ),
}


def test_the_story_comes_after_the_reason_and_the_messages_own_attributes() -> None:
    own = {f"a{index}": "v" for index in range(6)} | {REASON_ATTRIBUTE: "an older one"}
    kept = letter_attributes(b"body", own, STORY, 1 << 20)
    assert list(kept) == [REASON_ATTRIBUTE, *sorted(own.keys() - STORY), *list(STORY)[1:4]]
    assert kept[REASON_ATTRIBUTE] == "too_many_attempts"


@given(st.integers(0, 5000))
@example(5000)
def test_a_letter_is_never_too_large_and_is_shortened_before_it_is_cut(room: int) -> None:
    body, own = b"x" * 10_000, {"origin": "fetcher", "traceparent": "00-1"}
    kept = letter_attributes(body, own, STORY, len(body) + room)
    assert size(body, kept) <= len(body) + room
    whole = [*own, *(name for name in STORY if name not in {DETAIL_ATTRIBUTE, ATTEMPTS_ATTRIBUTE})]
    assert {name for name in whole if name in kept and kept[name] != (own | STORY)[name]} == set()
    if room >= 100:
        assert kept.keys() >= {REASON_ATTRIBUTE, *own}
    if ATTEMPTS_ATTRIBUTE in kept:
        log = json.loads(kept[ATTEMPTS_ATTRIBUTE])
        assert log[-1]["detail"].startswith("9")
        assert len(log) < 2 or log[0]["detail"].startswith("0")
    if room == 5000:
        assert kept.keys() == {*own, *STORY}
        assert len(kept[DETAIL_ATTRIBUTE]) == 1000
        assert 2 <= len(json.loads(kept[ATTEMPTS_ATTRIBUTE])) < 10


async def test_case_28_a_body_that_fills_the_letter_is_buried_all_the_same(service: StrictSqs) -> None:
    limit = {"MaximumMessageSize": str(256 << 10)}
    service.settings = {"main": limit, "dead": limit}
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    await queue.send([OutgoingMessage(b"x" * (256 << 10))])
    (message,) = await take(queue)
    assert await queue.settle(message, Dead("malformed", "line 1")) is True
    assert (len(service.queues["dead"]), service.queues["main"]) == (1, [])
    await queue.aclose()


async def test_case_29_a_letter_that_is_refused_keeps_its_message(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"keep me"))
    (message,) = await take(queue)
    service.refusals["SendMessage"] = Refusal("KmsAccessDeniedException")
    with pytest.raises(QueueUnavailable, match="no dead letter"):
        await queue.settle(message, Dead("malformed"))
    assert service.asked("DeleteMessageBatch") == []
    assert [stored.id for stored in service.queues["main"]] == [message.id]
    service.refusals.clear()
    assert await queue.settle(message, Dead("malformed")) is True
    assert (len(service.queues["dead"]), service.queues["main"]) == (1, [])


@pytest.mark.parametrize(
    ("main", "dead", "warnings"),
    [
        ({}, {}, []),
        ({"MessageRetentionPeriod": "1209600"}, {}, ["may expire"]),
        ({}, {"MessageRetentionPeriod": "86400"}, ["may expire"]),
        ({}, {"MaximumMessageSize": "262144"}, ["cannot be buried"]),
        ({"MaximumMessageSize": "262144"}, {}, []),
        ({"RedrivePolicy": policy(5)}, {}, ["without a reason"]),
        ({"RedrivePolicy": policy(99)}, {"MessageRetentionPeriod": "60"}, ["may expire", "without a reason"]),
    ],
)
async def test_case_31_letters_that_would_expire_or_not_be_written_or_have_no_reason_are_warned_of(
    service: StrictSqs, main: dict[str, str], dead: dict[str, str], warnings: list[str]
) -> None:
    service.settings = {"main": main, "dead": dead}
    with capture_logs() as logs:
        queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    await queue.aclose()
    assert [log["log_level"] for log in logs] == ["warning"] * len(warnings)
    for log, words in zip(logs, warnings, strict=True):
        assert words in log["event"]


@pytest.mark.parametrize(("own", "source"), [({}, "main"), ({SOURCE_ATTRIBUTE: "older"}, "older")])
async def test_what_sqs_itself_moved_tells_where_it_died(
    service: StrictSqs, own: dict[str, str], source: str
) -> None:
    service.settings["main"] = {"RedrivePolicy": policy(1)}
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    await queue.send([OutgoingMessage(b"moved", own)])
    (message,) = await take(queue)
    assert await queue.settle(message, Retry(0)) is True
    assert await queue.receive(1, wait=0) == []
    letters = await queue.open_dead_letters()
    (letter,) = await take(letters)
    assert (letter.id, letter.attributes) == (message.id, {SOURCE_ATTRIBUTE: source})
    await letters.aclose()
    await queue.aclose()


async def test_letters_may_be_written_where_they_may_not_be_looked_at(service: StrictSqs) -> None:
    def closed(asked: dict[str, Any]) -> None:
        if asked["QueueUrl"] == service.url("dead"):
            raise Refusal("AccessDeniedException")

    service.faults["GetQueueAttributes"] = [closed, closed]
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service)))
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    assert await queue.settle(message, Dead("malformed")) is True
    assert len(service.queues["dead"]) == 1
    await queue.aclose()


async def test_a_retry_is_at_most_eleven_hours(service: StrictSqs, queue: SqsQueue) -> None:
    """Twelve would be refused, because the message has been held for a while."""
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    assert await queue.settle(message, Retry(delay=1e6)) is True
    operation, asked = service.requests[-1]
    assert (operation, asked["Entries"][0]["VisibilityTimeout"]) == ("ChangeMessageVisibilityBatch", 39_600)


async def test_case_22_what_would_be_held_past_twelve_hours_counts_as_lost(
    service: StrictSqs, queue: SqsQueue
) -> None:
    assert queue.longest_hold == 43_200
    await queue.send(outgoing(b"x", b"y"))
    kept, spent = await take(queue, 2)
    next(stored for stored in service.queues["main"] if stored.id == spent.id).taken_at -= 43_200 - 20
    assert await queue.extend([kept, spent]) == [spent]


async def test_case_22_shortly_before_twelve_hours_a_message_can_still_be_buried(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"x"))
    (message,) = await take(queue)
    service.queues["main"][0].taken_at -= 43_200 - 20
    assert await queue.extend([message]) == [message]
    assert await queue.settle(message, Dead("held_too_long")) is True
    assert (len(service.queues["dead"]), service.queues["main"]) == (1, [])


async def test_too_many_in_flight_is_unavailable_and_a_long_poll_waits(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"x", b"y"))
    (held,) = await queue.receive(1, wait=0)
    service.in_flight_limit = 1
    with pytest.raises(QueueUnavailable):
        await queue.receive(1, wait=0)
    waiting = asyncio.create_task(_receive(queue))
    await asyncio.sleep(0)
    assert await queue.settle(held, Retry(0)) is True
    assert len(await waiting) == 1


async def test_an_empty_long_poll_of_a_full_queue_is_no_empty_queue(
    service: StrictSqs, queue: SqsQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""
    monkeypatch.setattr(sqs_in_flight, "ENOUGH", 1)
    queue._in_flight._due = 0.0
    await queue.send(outgoing(b"x", b"y"))
    (held,) = await queue.receive(1, wait=0)
    service.in_flight_limit = 1
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match="about 1 messages in flight and SQS hands out none"):
            await queue.receive(1, wait=0.01)
    assert await queue.settle(held, Ack()) is True
    assert len(await queue.receive(1, wait=0.01)) == 1


async def test_a_queue_is_not_asked_how_full_it_is_after_every_poll() -> None:
    now, asked = 1000.0, 0
    answers: list[list[int] | QueueError] = [[5, 120_000], [0, 120_000], QueueUnavailable("down"), [9, 50]]

    async def counts() -> list[int]:
        nonlocal asked
        asked += 1
        answer = answers.pop(0)
        if isinstance(answer, QueueError):
            raise answer
        return answer

    full = InFlight("q", counts, lambda: now)
    await full.check()
    assert asked == 0
    now += 300
    with pytest.raises(QueueUnavailable):
        await full.check()
    await full.check()  # what waited has been taken
    await full.check()
    assert asked == 2
    now += 300
    await full.check()  # no answer is no news
    await full.check()
    await full.check()
    assert asked == 4


async def test_the_lease_may_be_the_options(service: StrictSqs) -> None:
    queue = await SqsQueue.connect(SqsQueueOptions(**connection(service), lease=77))
    await queue.send(outgoing(b"x"))
    await take(queue)
    asked = next(asked for operation, asked in service.requests if operation == "ReceiveMessage")
    assert (queue.lease, asked["VisibilityTimeout"]) == (77.0, 77)
    await queue.aclose()


async def test_a_message_is_held_as_long_as_we_believe_whatever_the_queue_has_now(
    service: StrictSqs, queue: SqsQueue
) -> None:
    await queue.send(outgoing(b"x"))
    service.lease = 0
    assert len(await queue.receive(1, wait=0)) == 1
    assert await queue.receive(1, wait=0) == []


async def test_published_outcomes_are_per_notification(service: StrictSqs) -> None:
    publisher = await SqsPublisher.connect(SqsPublisherOptions(**connection(service)))
    sent = [Notification(str(index), "fr", str(index).encode(), {"a": "b"}) for index in range(3)]
    service.fail_entries = {
        "0": {"SenderFault": True, "Code": "InvalidMessageContents", "Message": "never"},
        "1": {"SenderFault": False, "Code": "InternalError", "Message": "later"},
    }
    outcomes = await publisher.publish(sent)
    assert [type(outcome) for outcome in outcomes] == [PublishRefused, PublishError, type(None)]
    service.refuse("SendMessageBatch", "InvalidParameterValue")
    assert list(await publisher.publish(sent)) == [None, None, None]
    service.requests.clear()
    service.refuse("SendMessageBatch", "InternalFailure", 500, times=3)
    outcomes = await publisher.publish(sent * 5)
    assert all(isinstance(outcome, PublishError) and outcome.retryable for outcome in outcomes)
    # One request in three attempts: the rest is not tried against a queue that is down.
    assert len(service.requests) == 3
    await publisher.aclose()


async def _receive(queue: SqsQueue) -> Sequence[Message]:
    return await queue.receive(1, wait=15)
