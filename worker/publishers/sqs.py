"""Completions on Amazon SQS; standard and FIFO (deduplicated by event id, ordered by group)."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self, cast

from backends.failpoints import failpoint
from worker.aws import (
    SDK_ERRORS,
    SMALLEST_LIMIT,
    SqsOptions,
    Trouble,
    classify,
    classify_code,
    denial_of,
    fifo_token,
    objection,
    open_client,
    packed,
    short_code,
    size,
    typed,
)
from worker.publishers.base import Notification, PublisherOptions, PublishError, PublishRefused


class SqsPublisherOptions(SqsOptions, PublisherOptions):
    """The queue notifications go to."""

    @property
    def destination_name(self) -> str:
        """The last part of its URL."""
        return self.queue_url.rstrip("/").rpartition("/")[2]


class SqsPublisher:
    """Sends each notification's body and, as String attributes, exactly its attributes."""

    Options: ClassVar[type[PublisherOptions]] = SqsPublisherOptions

    def __init__(self, url: str, client: Any, closing: AsyncExitStack, limit: int) -> None:
        """`connect` constructs. `limit` is how many bytes the queue takes in one request."""
        self._url = url
        self._client = client
        self._closing = closing
        self._limit = limit
        self._closed = False

    @classmethod
    async def connect(cls, options: PublisherOptions) -> Self:
        """As the port says; reads the queue's attributes, which needs sqs:GetQueueAttributes."""
        options = cast("SqsPublisherOptions", options)
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(open_client(options))
                reply = await client.get_queue_attributes(QueueUrl=options.queue_url, AttributeNames=["All"])
            # The SDK reports a malformed region, URL or endpoint as ValueError.
            except (*SDK_ERRORS, ValueError) as exc:
                raise _translate(exc, options.queue_url) from exc
            facts = reply.get("Attributes")
            if not facts:
                raise PublishError(
                    f"{options.queue_url}: the answer is not that of a queue; correct endpoint_url"
                )
            limit = max(int(facts.get("MaximumMessageSize", 0)), SMALLEST_LIMIT)
            return cls(options.queue_url, client, stack.pop_all(), limit)

    @property
    def destination(self) -> str:
        """The queue's URL."""
        return self._url

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        """As the port says; in order, in requests of ten."""
        outcomes: list[PublishError | None] = [
            PublishRefused(f"event {n.event_id!r}: {why}")
            if (why := objection(n.body, n.attributes, self._limit))
            else None
            for n in notifications
        ]
        if self._closed:
            return [PublishError(f"{self._url} is closed")] * len(notifications)
        sendable = [index for index, outcome in enumerate(outcomes) if outcome is None]
        sizes = [size(notifications[index].body, notifications[index].attributes) for index in sendable]
        down: PublishError | None = None
        for span in packed(sizes, self._limit):
            batch = [notifications[sendable[position]] for position in span]
            results: Sequence[PublishError | None] = [down] * len(batch)
            if down is None:
                results = await self._send(batch)
                # An unreachable queue is not asked again and again for one call's sake.
                down = next((result for result in results if isinstance(result, _Down)), None)
            for position, result in zip(span, results, strict=True):
                outcomes[sendable[position]] = result
        return outcomes

    async def aclose(self) -> None:
        """As the port says."""
        if not self._closed:
            self._closed = True
            await self._closing.aclose()

    async def _send(self, batch: Sequence[Notification]) -> list[PublishError | None]:
        try:
            failpoint("sqs_publisher.send.before")
            reply = await self._client.send_message_batch(
                QueueUrl=self._url, Entries=[self._entry(str(index), n) for index, n in enumerate(batch)]
            )
            failpoint("sqs_publisher.send.after")
        except SDK_ERRORS as exc:
            if len(batch) > 1 and classify(exc) is Trouble.REFUSED:
                # Some faults of one entry refuse the whole request; alone, each gets its own answer.
                return [result for notification in batch for result in await self._send([notification])]
            return [_translate(exc, self._url)] * len(batch)
        accepted = {entry.get("Id") for entry in reply.get("Successful", ())}
        failures = {failure.get("Id"): failure for failure in reply.get("Failed", ())}
        return [
            None
            if (id_ := str(index)) in accepted and id_ not in failures
            else self._failure(notification, failures.get(id_))
            for index, notification in enumerate(batch)
        ]

    def _failure(self, notification: Notification, failure: Mapping[str, Any] | None) -> PublishError:
        what = f"event {notification.event_id!r} to {self._url}"
        if failure is None:
            # A proxy, or a wrong endpoint, may answer 200 to anything.
            return PublishError(f"{what}: the reply does not mention it; look at endpoint_url")
        final = failure.get("SenderFault") and classify_code(short_code(failure), 400) is Trouble.REFUSED
        kind = PublishRefused if final else PublishError
        return kind(f"{what}: {failure.get('Code')}: {failure.get('Message', '')}")

    def _entry(self, id_: str, notification: Notification) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "Id": id_,
            "MessageBody": notification.body.decode(),
            "MessageAttributes": typed(notification.attributes),
        }
        if self._url.endswith(".fifo"):
            entry["MessageGroupId"] = fifo_token(notification.group)
            entry["MessageDeduplicationId"] = fifo_token(notification.event_id)
        return entry


class _Down(PublishError):
    """The queue did not answer, is not there, or refuses us: the next request would fare no better."""


def _translate(exc: BaseException, url: str) -> PublishError:
    trouble = classify(exc)
    if trouble is Trouble.REFUSED:
        return PublishRefused(f"{url}: {trouble.value} ({exc})")
    hint = {
        Trouble.MISSING: "; create it, or correct queue_url and region",
        Trouble.DENIED: f"; {denial_of(exc, url)}",
    }.get(trouble, "")
    return _Down(f"{url}: {trouble.value} ({exc}){hint}")
