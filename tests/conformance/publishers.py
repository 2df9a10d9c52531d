"""What every publisher promises. tests/conformance/test_publishers.py runs it for each of them."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from worker.publishers.base import Notification, Publisher, PublishError, PublishRefused


@dataclass(frozen=True, slots=True)
class Received:
    """What the other side has."""

    body: bytes
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Subject:
    """A connected publisher, and a reader of at least `count` notifications from the other side."""

    publisher: Publisher
    destination: str
    read: Callable[[int], Awaitable[list[Received]]]
    bad: Callable[[], Notification]
    """A notification that this destination refuses for good, after `setup` has published what it needs."""
    prepare: Notification | None = None


def notification(body: bytes = b'{"bundle_id": "b"}', **attributes: str) -> Notification:
    return Notification(secrets.token_hex(8), "fr", body, attributes or {"bundle_id": "b"})


class PublisherConformance:
    """Needs a fixture `subject`."""

    async def test_body_and_attributes_go_out_as_they_are(self, subject: Subject) -> None:
        body = '{"a":1,  "ü": "漢字 🎈",\n"b" :[ ]}'.encode()
        sent = notification(
            body, bundle_id="17571960", recipe_id="fr", primary_url="https://example.com/ü?a=1&b=2"
        )
        assert list(await subject.publisher.publish([sent])) == [None]
        (received,) = await subject.read(1)
        assert received.body == body
        assert dict(received.attributes) == dict(sent.attributes)

    async def test_more_than_a_batch_is_published(self, subject: Subject) -> None:
        sent = [notification(f'{{"n": {index}}}'.encode()) for index in range(25)]
        assert list(await subject.publisher.publish(sent)) == [None] * 25
        assert {received.body for received in await subject.read(25)} == {one.body for one in sent}

    async def test_publishing_nothing_is_nothing(self, subject: Subject) -> None:
        assert list(await subject.publisher.publish([])) == []

    async def test_publishing_again_succeeds(self, subject: Subject) -> None:
        sent = notification()
        assert list(await subject.publisher.publish([sent])) == [None]
        assert list(await subject.publisher.publish([sent, sent])) == [None, None]
        assert {received.body for received in await subject.read(1)} == {sent.body}

    async def test_one_bad_notification_fails_alone(self, subject: Subject) -> None:
        if subject.prepare:
            assert list(await subject.publisher.publish([subject.prepare])) == [None]
        good = [notification(f'{{"n": {index}}}'.encode()) for index in range(11)]
        outcomes = await subject.publisher.publish([*good[:4], subject.bad(), *good[4:]])
        assert isinstance(outcomes[4], PublishRefused)
        assert [outcome for index, outcome in enumerate(outcomes) if index != 4] == [None] * 11
        bodies = {received.body for received in await subject.read(11 + bool(subject.prepare))}
        assert bodies >= {one.body for one in good}
        assert subject.bad().body not in bodies

    async def test_concurrent_calls_publish_all(self, subject: Subject) -> None:
        sent = [notification(f'{{"n": {index}}}'.encode()) for index in range(20)]
        outcomes = await asyncio.gather(*(subject.publisher.publish([one]) for one in sent))
        assert [list(outcome) for outcome in outcomes] == [[None]] * 20
        assert {received.body for received in await subject.read(20)} == {one.body for one in sent}

    async def test_the_destination_is_named(self, subject: Subject) -> None:
        assert subject.publisher.destination == subject.destination

    async def test_closing_twice_is_harmless_and_ends_the_publisher(self, subject: Subject) -> None:
        await subject.publisher.aclose()
        await subject.publisher.aclose()
        (outcome,) = await subject.publisher.publish([notification()])
        assert isinstance(outcome, PublishError)
        assert outcome.retryable
