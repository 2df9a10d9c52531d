"""The limits of SQS, S3 and RabbitMQ, written down once more as their vendors have them: what relies on another number fails here."""

import re

import pytest

from backends import s3_metadata, s3_multipart
from backends.base import Promise
from backends.s3_copy import CopiedParts, Original
from tests.docs.blocks import ROOT
from worker import aws
from worker.queues import rabbitmq_topology, sqs, sqs_in_flight

MIB, GIB = 1 << 20, 1 << 30


def test_sqs() -> None:
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""
    assert (aws.BATCH, aws.ATTRIBUTES) == (10, 10)
    assert (sqs.LONGEST_POLL, sqs.LONGEST_HOLD) == (20, 12 * 3600)
    assert sqs_in_flight.MOST == 120_000


def test_a_batch_is_of_ten_and_of_what_the_queue_takes_together() -> None:
    assert aws.packed([1] * 25, MIB) == [range(10), range(10, 20), range(20, 25)]
    assert aws.packed([MIB // 2, MIB // 2, 1], MIB) == [range(2), range(2, 3)]
    # Alone it is refused alone.
    assert aws.packed([1, MIB + 1, 1], MIB) == [range(1), range(1, 2), range(2, 3)]


def test_what_counts_for_a_message_are_its_attributes_too() -> None:
    attributes = {"name": "value"}
    assert aws.size(b"body", attributes) == len("body" + "name" + "String" + "value")
    assert aws.objection(b"x" * (MIB - 15), attributes, MIB) is None
    assert aws.objection(b"x" * (MIB - 14), attributes, MIB)
    assert aws.objection(b"x", {str(number): "v" for number in range(10)}, MIB) is None
    assert aws.objection(b"x", {str(number): "v" for number in range(11)}, MIB)


def test_nobody_starts_a_move_task() -> None:
    """There is one for a queue at a time, and it counts no redrive: `transload dlq redrive` sends and deletes."""
    rooms = [path for room in ("backends", "handlers", "worker") for path in (ROOT / room).rglob("*.py")]
    assert [
        path for path in rooms if re.search("move_?task", path.read_text(encoding="utf-8"), re.IGNORECASE)
    ] == []


def test_s3() -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
    assert s3_metadata.METADATA_LIMIT == 2 * 1024
    assert (s3_multipart.MAX_PARTS, s3_multipart.MAX_PART_SIZE) == (10_000, 5 * GIB)


@pytest.mark.parametrize(("size", "parts"), [(5 * GIB, 1), (5 * GIB + 1, 6), (5 << 40, 5120)])
def test_a_copy_of_more_than_five_gibibytes_is_of_several_parts(size: int, parts: int) -> None:
    original = Original("bucket", "key", size, '"etag"', ("CRC64NVME", "AAAAAAAAAAA="))
    copied = CopiedParts(original, Promise(size, "0" * 64), concurrency=1, seconds=1.0)
    assert -(-size // copied._share) == parts
    assert copied._share <= 5 * GIB
    assert copied._several == (parts > 1)


def test_rabbitmq_never_drops_a_delivery_by_its_own_count() -> None:
    """https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling: 20 by default, and dropped without an exchange for it."""
    assert rabbitmq_topology.DELIVERY_LIMIT > 20
