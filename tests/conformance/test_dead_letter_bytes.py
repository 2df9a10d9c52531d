"""A dead letter holds the body that arrived, byte for byte, on every queue, also where there is room for nothing else."""

import hashlib
import secrets
from collections.abc import AsyncIterator

import pytest
import structlog

from tests.conformance.queues import Subject, take
from tests.conformance.test_queues import ADAPTERS
from tests.support.localstack import LocalStackEndpoint
from tests.support.sqs import sqs_queues
from worker.queues.base import (
    ATTEMPTS_ATTRIBUTE,
    DETAIL_ATTRIBUTE,
    OBITUARY,
    REASON_ATTRIBUTE,
    Ack,
    Dead,
    Message,
    OutgoingMessage,
    Queue,
)
from worker.queues.sqs import SqsQueue, SqsQueueOptions
from worker.queues.sqs_messages import message_of, request_for

DEAD = Dead("malformed", "not JSON", "Refused")
TEXT_ONLY = frozenset({"sqs"})
"""What carries XML's characters, and no empty body: others never reach a worker."""


async def letter_of(queue: Queue, message: Message) -> Message:
    assert await queue.settle(message, DEAD) is True
    letters = await queue.open_dead_letters()
    try:
        (letter,) = await take(letters)
        assert await letters.settle(letter, Ack()) is True
    finally:
        await letters.aclose()
    return letter


@pytest.fixture(params=sorted(set(ADAPTERS) - TEXT_ONLY))
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with ADAPTERS[request.param](request) as subject:
        yield subject


async def test_case_73_a_dead_letter_has_the_very_bytes(subject: Subject) -> None:
    bodies = [
        b"",
        b"\0",
        bytes(range(256)),
        b"\xff\xfe{\0}\0",
        b'\xef\xbb\xbf{"a": "\xc3"}\r\n',
        b'"\\ud800"',
        secrets.token_bytes(1 << 20),
    ]
    # One after the other: leases are short here.
    for n, body in enumerate(bodies):
        await subject.queue.send([OutgoingMessage(body, {"n": str(n)})])
        (message,) = await take(subject.queue)
        letter = await letter_of(subject.queue, message)
        assert hashlib.sha256(letter.body).digest() == hashlib.sha256(body).digest()
        assert letter.attributes["n"] == str(n)
        assert (letter.attributes[REASON_ATTRIBUTE], letter.attributes[DETAIL_ATTRIBUTE]) == (
            "malformed",
            "not JSON",
        )


# The client warns of a request as large as SQS takes.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_case_75_a_body_as_large_as_sqs_takes_is_buried_whole(localstack: LocalStackEndpoint) -> None:
    async with sqs_queues(localstack, lease=30) as queues:
        queue = await SqsQueue.connect(SqsQueueOptions(**queues.options()))
        largest = 1 << 20
        assert queue._limit == largest, "what AWS has since August 2025"
        for room in (0, 64, 400):
            body = b"\xf0\x9f\x98\x80" * ((largest - room) // 4)
            await queue.send([OutgoingMessage(body)])
            (message,) = await take(queue)
            with structlog.testing.capture_logs() as logged:
                letter = await letter_of(queue, message)
            assert letter.body == body
            kept = {name: letter.attributes[name] for name in OBITUARY if name in letter.attributes}
            if room == 0:
                assert kept == {}
                (line,) = logged
                assert (line["letter"], line["reason"]) == (letter.id, "malformed")
            else:
                assert not logged
                assert kept[REASON_ATTRIBUTE] == "malformed"
            if room == 400:
                assert kept.keys() == set(OBITUARY) - {ATTEMPTS_ATTRIBUTE}
        await queue.aclose()


def test_what_sqs_cannot_send_is_no_mystery() -> None:
    # A service that is not AWS's may let it in.
    raw = {"MessageId": "1", "Body": "\ud800", "ReceiptHandle": "h"}
    assert request_for(OutgoingMessage(message_of(raw).body), "url")["MessageBody"] == "\ud800"
