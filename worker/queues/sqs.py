"""Amazon SQS as the queue; standard and FIFO.

How it differs from the port's ideal: a standard queue may answer a delete with a stale handle as if it had worked, so
True from `settle` is its word and no proof; a message is never held longer than 12 hours, after which `extend` reports
it lost; `depth` is approximate; bodies are XML-safe text. `wait` and delays count in whole seconds, rounded up.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, ClassVar, Self, cast

from pydantic import Field

from backends.failpoints import failpoint
from worker.aws import (
    BATCH,
    SDK_ERRORS,
    SMALLEST_LIMIT,
    SqsOptions,
    objection,
    open_client,
    packed,
    queue_facts,
    size,
)
from worker.batcher import Batcher
from worker.queues.base import (
    Dead,
    Depth,
    Disposition,
    Message,
    OutgoingMessage,
    Queue,
    QueueDenied,
    QueueError,
    QueueMissing,
    QueueOptions,
    QueueUnavailable,
    Retry,
    obituary,
)
from worker.queues.sqs_dead_letters import DeadLetters, letter_attributes, locate, tell_reason, to_spare
from worker.queues.sqs_in_flight import InFlight
from worker.queues.sqs_messages import MOVED_FROM, message_of, request_for
from worker.queues.sqs_replies import failed, no_queue, outcomes, successful, translate, unmentioned

LONGEST_POLL = 20
LONGEST_HOLD = 43_200
LONGEST_RETRY = LONGEST_HOLD - 3600
"""Seconds; `Retry` shortens a longer delay to it. The time a message was worked on counts as held, too."""
BURIAL = 60
"""Seconds a message stays hidden, at most, while its dead letter is written."""


class SqsQueueOptions(SqsOptions, QueueOptions):
    """The queue, its lease, and where its dead letters go."""

    lease: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST_HOLD,
        description="Seconds; default: the queue's own VisibilityTimeout.",
    )
    dead_letter_queue_url: str | None = Field(
        default=None,
        description="Where dead letters go; default: the target of the queue's RedrivePolicy.",
    )

    @property
    def queue_name(self) -> str:
        """The last part of its URL."""
        return self.queue_url.rstrip("/").rpartition("/")[2]


class SqsQueue:
    """One SQS queue. Deletes and visibility changes of concurrent calls share requests of ten."""

    Options: ClassVar[type[QueueOptions]] = SqsQueueOptions

    def __init__(
        self,
        options: SqsQueueOptions,
        client: Any,
        closing: AsyncExitStack,
        facts: Mapping[str, str],
        dead: DeadLetters | None,
    ) -> None:
        """`connect` and `open_dead_letters` construct. `facts` are the queue's own attributes."""
        self._options = options
        self._client = client
        self._closing = closing
        self._url = options.queue_url
        self._name = facts["QueueArn"].rsplit(":", 1)[-1]
        self._lease = options.lease or int(facts["VisibilityTimeout"])
        if not self._lease:
            raise QueueError(
                f"queue {self._name!r} has a visibility timeout of 0; raise it, or set queue.lease"
            )
        self._limit = max(int(facts.get("MaximumMessageSize", 0)), SMALLEST_LIMIT)
        self._dead = dead
        self._to_spare = to_spare(facts)
        self._in_flight = InFlight(
            self._name,
            partial(
                self._counts,
                self._url,
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ),
        )
        self._closed = False
        self._deletes: Batcher[str, bool] = Batcher(
            self._delete, limit=BATCH, parallel=16, linger=0.005, name=f"deletes of {self._name}"
        )
        self._changes: Batcher[tuple[str, int], bool] = Batcher(
            self._change, limit=BATCH, parallel=16, linger=0.005, name=f"visibility changes of {self._name}"
        )

    @classmethod
    async def connect(cls, options: QueueOptions) -> Self:
        """As the port says. `QueueMissing` also when no dead-letter queue is to be found.

        Warns when dead letters might expire unseen, or be written by SQS itself without a reason.
        """
        return await cls._open(cast("SqsQueueOptions", options), dead_letters=False)

    @classmethod
    async def _open(cls, options: SqsQueueOptions, *, dead_letters: bool) -> Self:
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(open_client(options))
                facts = await queue_facts(client, options.queue_url)
                configured = options.dead_letter_queue_url
                dead = None if dead_letters else await locate(client, options.queue_url, configured, facts)
            # The SDK reports a malformed region, URL or endpoint as ValueError.
            except (*SDK_ERRORS, ValueError) as exc:
                raise translate(exc, options.queue_url) from exc
            except KeyError as exc:
                raise no_queue(options.queue_url) from exc
            return cls(options, client, stack.pop_all(), facts, dead)

    @property
    def name(self) -> str:
        """The last part of the queue's ARN."""
        return self._name

    @property
    def lease(self) -> float:
        """Seconds, from the options or from the queue itself."""
        return self._lease

    @property
    def longest_hold(self) -> float | None:
        """12 hours from the receive: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html."""
        return LONGEST_HOLD

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As the port says; one long poll of at most ten messages and 20 seconds.

        `QueueUnavailable` also where SQS hands out nothing because too much is in flight.
        """
        self._ensure_open()
        wanted = ["ApproximateReceiveCount", "SentTimestamp"]
        if self._dead is None:
            wanted.append(MOVED_FROM)
        failpoint("sqs.receive.before")
        reply = await self._call(
            "receive_message",
            self._url,
            MaxNumberOfMessages=max(1, min(limit, BATCH)),
            WaitTimeSeconds=max(0, min(math.ceil(wait), LONGEST_POLL)),
            # Always: the queue's own may have been changed since we read it.
            VisibilityTimeout=self._lease,
            MessageSystemAttributeNames=wanted,
            MessageAttributeNames=["All"],
        )
        failpoint("sqs.receive.after")
        messages = [message_of(raw, self._to_spare) for raw in reply.get("Messages", ())]
        if not messages and wait > 0:
            await self._in_flight.check()
        return messages

    async def extend(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As the port says. A message that would be held for more than 12 hours counts as lost."""
        self._ensure_open()
        answers = await asyncio.gather(
            *(self._changes.submit((message.handle, self._lease)) for message in messages),
            return_exceptions=True,
        )
        lost: list[Message] = []
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if not answer:
                lost.append(message)
        return lost

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        """As the port says; `Retry` waits 11 hours at most, and SQS counts every receive, towards its RedrivePolicy."""
        self._ensure_open()
        if isinstance(disposition, Retry):
            delay = min(math.ceil(max(disposition.delay, 0.0)), LONGEST_RETRY)
            return await self._changes.submit((message.handle, delay))
        if isinstance(disposition, Dead):
            if self._dead is None:
                raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
            # A stale owner must not write a dead letter for a message that another one holds now. A whole lease more would
            # be refused, as if it were stale, when the message has been held for almost as long as it may be.
            if not await self._changes.submit((message.handle, max(1, min(self._lease // 2, BURIAL)))):
                return False
            await self._bury(message, disposition, self._dead)
        return await self._deletes.submit(message.handle)

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """As the port says. Raises `QueueError`, before anything is sent, for what SQS cannot carry."""
        self._ensure_open()
        for message in messages:
            if why := objection(message.body, message.attributes, self._limit):
                raise QueueError(f"queue {self._name!r}: {why}")
        entries = [
            {"Id": str(index)} | request_for(message, self._url) for index, message in enumerate(messages)
        ]
        for span in packed([size(m.body, m.attributes) for m in messages], self._limit):
            failpoint("sqs.send.before")
            reply = await self._call("send_message_batch", self._url, Entries=entries[span.start : span.stop])
            failpoint("sqs.send.after")
            for failure in reply.get("Failed", ()):
                raise failed(failure, self._name)
            if unsaid := {str(index) for index in span} - successful(reply):
                raise unmentioned(len(unsaid), self._name)

    async def depth(self) -> Depth:
        """SQS's approximation, a minute old at worst."""
        self._ensure_open()
        visible, in_flight, delayed = await self._counts(
            self._url,
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        )
        return Depth(visible, in_flight, delayed, dead=await self._dead_depth())

    async def open_dead_letters(self) -> Queue:
        """The dead-letter queue, through a client of its own."""
        if self._dead is None:
            raise QueueMissing(f"queue {self._name!r} holds dead letters; it has none of its own")
        changes = {"queue_url": self._dead.url, "dead_letter_queue_url": None}
        return await self._open(self._options.model_copy(update=changes), dead_letters=True)

    async def aclose(self) -> None:
        """As the port says."""
        if self._closed:
            return
        self._closed = True
        await self._deletes.aclose()
        await self._changes.aclose()
        await self._closing.aclose()

    async def _bury(self, message: Message, dead: Dead, letters: DeadLetters) -> None:
        story = obituary(message, dead, self._name)
        attributes = letter_attributes(message.body, message.attributes, story, letters.limit)
        # Its id makes a repeated burial one letter on a FIFO queue.
        letter = OutgoingMessage(message.body, attributes, group=message.id, deduplication_id=message.id)
        try:
            failpoint("sqs.bury.before")
            reply = await self._call("send_message", letters.url, **request_for(letter, letters.url))
            failpoint("sqs.bury.after")
            if not reply.get("MessageId"):
                raise unmentioned(1, self._name)
        except QueueError as exc:
            raise QueueUnavailable(
                f"queue {self._name!r}: no dead letter could be written to {letters.url}: {exc}"
            ) from exc
        tell_reason(self._name, message, story, attributes, reply["MessageId"])

    async def _dead_depth(self) -> int | None:
        if self._dead is None:
            return None
        try:
            return (await self._counts(self._dead.url, "ApproximateNumberOfMessages"))[0]
        except (QueueMissing, QueueDenied):
            return None

    async def _counts(self, url: str, *names: str) -> list[int]:
        reply = await self._call("get_queue_attributes", url, AttributeNames=list(names))
        try:
            return [int(reply["Attributes"][name]) for name in names]
        except KeyError as exc:
            raise no_queue(url) from exc

    async def _delete(self, handles: Sequence[str]) -> Sequence[bool | BaseException]:
        entries = [{"Id": str(index), "ReceiptHandle": handle} for index, handle in enumerate(handles)]
        failpoint("sqs.delete.before")
        reply = await self._call("delete_message_batch", self._url, Entries=entries)
        failpoint("sqs.delete.after")
        return outcomes(reply, len(entries), self._name)

    async def _change(self, wishes: Sequence[tuple[str, int]]) -> Sequence[bool | BaseException]:
        entries = [
            {"Id": str(index), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
            for index, (handle, seconds) in enumerate(wishes)
        ]
        failpoint("sqs.change.before")
        reply = await self._call("change_message_visibility_batch", self._url, Entries=entries)
        failpoint("sqs.change.after")
        return outcomes(reply, len(entries), self._name)

    async def _call(self, operation: str, url: str, **request: Any) -> Mapping[str, Any]:
        try:
            return cast("Mapping[str, Any]", await getattr(self._client, operation)(QueueUrl=url, **request))
        except SDK_ERRORS as exc:
            raise translate(exc, url) from exc

    def _ensure_open(self) -> None:
        if self._closed:
            raise QueueUnavailable(f"queue {self._name!r} is closed")
