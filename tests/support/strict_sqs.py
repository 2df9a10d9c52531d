"""A small SQS that is as strict as AWS where LocalStack is kind: stale handles, partial failures, lost replies, throttling.

It speaks the JSON 1.0 protocol (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html)
for one queue and its dead letters, on loopback, unsigned.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]
ACCOUNT = "000000000000"
LIMIT = 1 << 20


class Refusal(Exception):
    """A request SQS refuses with this code and status."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


@dataclass(slots=True)
class Stored:
    """One message. `handle` is that of the last receive."""

    body: str
    attributes: Json
    sent_at: float
    visible_at: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    handle: str | None = None
    received: int = 0


@dataclass(slots=True)
class StrictSqs:
    """The service. Faults are one-shot: each entry of `faults` is used up by the next request of its operation."""

    lease: int = 1
    endpoint_url: str = ""
    queues: dict[str, list[Stored]] = field(default_factory=lambda: {"main": [], "dead": []})
    requests: list[tuple[str, Json]] = field(default_factory=list)
    faults: dict[str, list[Callable[[Json], None]]] = field(default_factory=dict)
    lose_reply: set[str] = field(default_factory=set)
    """Operations whose next reply is lost after they were carried out."""
    fail_entries: dict[str, Json] = field(default_factory=dict)
    """Body or receipt handle of a batch entry, and the failure it meets."""

    def url(self, name: str = "main") -> str:
        return f"{self.endpoint_url}/{ACCOUNT}/{name}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].removeprefix("AmazonSQS.")
        asked: Json = await request.json()
        self.requests.append((operation, asked))
        try:
            if self.faults.get(operation):
                self.faults[operation].pop(0)(asked)
            reply = getattr(self, f"_{operation}")(asked)
        except Refusal as exc:
            return web.json_response(
                {"__type": f"com.amazonaws.sqs#{exc.code}", "message": exc.code}, status=exc.status
            )
        if operation in self.lose_reply:
            self.lose_reply.discard(operation)
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(reply)

    def _queue(self, asked: Json) -> list[Stored]:
        name = asked["QueueUrl"].rsplit("/", 1)[-1]
        if name not in self.queues:
            raise Refusal("QueueDoesNotExist")
        return self.queues[name]

    def _GetQueueUrl(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        self._queue({"QueueUrl": asked["QueueName"]})
        return {"QueueUrl": self.url(asked["QueueName"])}

    def _GetQueueAttributes(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        queue, now = self._queue(asked), time.monotonic()
        name = asked["QueueUrl"].rsplit("/", 1)[-1]
        hidden = [m for m in queue if m.visible_at > now]
        facts = {
            "QueueArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}",
            "VisibilityTimeout": str(self.lease),
            "MaximumMessageSize": str(LIMIT),
            "ApproximateNumberOfMessages": str(len(queue) - len(hidden)),
            "ApproximateNumberOfMessagesNotVisible": str(sum(m.handle is not None for m in hidden)),
            "ApproximateNumberOfMessagesDelayed": str(sum(m.handle is None for m in hidden)),
        }
        if name == "main":
            target = f"arn:aws:sqs:us-east-1:{ACCOUNT}:dead"
            facts["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": 100})
        return {"Attributes": facts}

    def _ReceiveMessage(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        now = time.monotonic()
        found = [m for m in self._queue(asked) if m.visible_at <= now][: asked["MaxNumberOfMessages"]]
        for message in found:
            message.visible_at = now + asked.get("VisibilityTimeout", self.lease)
            message.handle = uuid.uuid4().hex
            message.received += 1
        return {
            "Messages": [
                {
                    "MessageId": m.id,
                    "Body": m.body,
                    "ReceiptHandle": m.handle,
                    "MessageAttributes": m.attributes,
                    "Attributes": {
                        "ApproximateReceiveCount": str(m.received),
                        "SentTimestamp": str(int(m.sent_at * 1000)),
                    },
                }
                for m in found
            ]
        }

    def _SendMessage(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        queue = self._queue(asked)
        if len(asked.get("MessageAttributes", {})) > 10:
            raise Refusal("InvalidParameterValue")
        due = time.monotonic() + asked.get("DelaySeconds", 0)
        message = Stored(asked["MessageBody"], asked.get("MessageAttributes", {}), time.time(), due)
        queue.append(message)
        return {"MessageId": message.id, "MD5OfMessageBody": ""}

    def _SendMessageBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        if sum(len(entry["MessageBody"].encode()) for entry in asked["Entries"]) > LIMIT:
            raise Refusal("BatchRequestTooLong")
        return self._batch(asked, "MessageBody", self._SendMessage)

    def _DeleteMessageBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        return self._batch(asked, "ReceiptHandle", lambda one: self._queue(one).remove(self._held(one)))

    def _ChangeMessageVisibilityBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        def change(one: Json) -> None:
            self._held(one).visible_at = time.monotonic() + one["VisibilityTimeout"]

        return self._batch(asked, "ReceiptHandle", change)

    def _held(self, asked: Json) -> Stored:
        now = time.monotonic()
        for message in self._queue(asked):
            if message.handle == asked["ReceiptHandle"] and message.visible_at > now:
                return message
        raise Refusal("ReceiptHandleIsInvalid")

    def _batch(self, asked: Json, key: str, act: Callable[[Json], object]) -> Json:
        self._queue(asked)
        if not 1 <= len(asked["Entries"]) <= 10:
            raise Refusal("TooManyEntriesInBatchRequest")
        reply: Json = {"Successful": [], "Failed": []}
        for entry in asked["Entries"]:
            if failure := self.fail_entries.pop(entry[key], None):
                reply["Failed"].append({"Id": entry["Id"], **failure})
                continue
            try:
                act(asked | entry)
            except Refusal as exc:
                reply["Failed"].append(
                    {"Id": entry["Id"], "SenderFault": True, "Code": exc.code, "Message": exc.code}
                )
            else:
                reply["Successful"].append({"Id": entry["Id"]})
        return reply


@asynccontextmanager
async def strict_sqs(lease: int = 1) -> AsyncIterator[StrictSqs]:
    service = StrictSqs(lease=lease)
    application = web.Application(client_max_size=8 << 20)
    application.router.add_post("/{path:.*}", service.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service.endpoint_url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield service
    finally:
        await runner.cleanup()
