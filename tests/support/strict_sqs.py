"""A small SQS that is as strict as AWS where LocalStack is kind, and as unlucky as AWS can be.

Strict: stale handles, twelve hours at most, messages in flight. Unlucky: throttling, refusals, partial failures of every
batch operation, lost replies.

It speaks the JSON 1.0 protocol (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html)
for one queue and its dead letters, on loopback, unsigned. Several processes may use it.
"""

import asyncio
import inspect
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]
ACCOUNT = "000000000000"
LIMIT = 1 << 20
DAY = 86_400


class Refusal(Exception):
    """A request SQS refuses with this code and status."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


@dataclass(slots=True)
class Stored:
    """One message. `handle` is that of the last receive, `taken_at` its time."""

    body: str
    attributes: Json
    sent_at: float
    visible_at: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    handle: str | None = None
    taken_at: float = 0.0
    received: int = 0
    moved_from: str | None = None
    """The ARN of the queue whose RedrivePolicy moved it here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry of a batch. `code` is None when it was carried out."""

    operation: str
    subject: str
    """The receipt handle, or the body of what was sent."""
    code: str | None


@dataclass(slots=True)
class StrictSqs:
    """The service. Faults are one-shot: each entry of `faults` is used up by the next request of its operation."""

    lease: int = 1
    longest_hold: float = 43_200.0
    in_flight_limit: int = 120_000
    endpoint_url: str = ""
    queues: dict[str, list[Stored]] = field(default_factory=lambda: {"main": [], "dead": []})
    settings: dict[str, Json] = field(default_factory=lambda: {"main": {}, "dead": {}})
    """Attributes of a queue that differ from the usual; None: the attribute is not there."""
    requests: list[tuple[str, Json]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    faults: dict[str, list[Callable[[Json], None]]] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """Operations that are refused until the entry is taken out."""
    lost_replies: dict[str, int] = field(default_factory=dict)
    """Operations, and how many of their next replies are lost after they were carried out."""
    answers: dict[str, list[Json]] = field(default_factory=dict)
    """Operations, and what their next requests are answered instead of being carried out: as by a proxy, with status 200."""
    fail_entries: dict[str, Json] = field(default_factory=dict)
    """Body or receipt handle of a batch entry, and the failure it meets, once."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, name: str = "main") -> str:
        return f"{self.endpoint_url}/{ACCOUNT}/{name}"

    def put(self, *bodies: bytes) -> None:
        """Messages from nowhere."""
        self.queues["main"] += [Stored(body.decode(), {}, time.time(), time.monotonic()) for body in bodies]
        self._wake()

    def refuse(self, operation: str, code: str, status: int = 400, times: int = 1) -> None:
        """Let the next requests of that operation fail."""

        def raise_it(_: Json) -> None:
            raise Refusal(code, status)

        self.faults[operation] = [raise_it] * times

    def asked(self, operation: str) -> list[Json]:
        """The requests of one operation so far."""
        return [asked for name, asked in self.requests if name == operation]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].removeprefix("AmazonSQS.")
        asked: Json = await request.json()
        self.requests.append((operation, asked))
        try:
            if refusal := self.refusals.get(operation):
                raise refusal
            if self.faults.get(operation):
                self.faults[operation].pop(0)(asked)
            if self.answers.get(operation):
                return web.json_response(self.answers[operation].pop(0))
            reply = getattr(self, f"_{operation}")(asked)
            if inspect.isawaitable(reply):
                reply = await reply
        except Refusal as exc:
            return web.json_response(
                {"__type": f"com.amazonaws.sqs#{exc.code}", "message": exc.code}, status=exc.status
            )
        if self.lost_replies.get(operation):
            self.lost_replies[operation] -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(reply)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

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
        facts: Json = {
            "QueueArn": f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}",
            "VisibilityTimeout": str(self.lease),
            "MaximumMessageSize": str(LIMIT),
            "MessageRetentionPeriod": str(4 * DAY if name == "main" else 14 * DAY),
            "ApproximateNumberOfMessages": str(len(queue) - len(hidden)),
            "ApproximateNumberOfMessagesNotVisible": str(sum(m.handle is not None for m in hidden)),
            "ApproximateNumberOfMessagesDelayed": str(sum(m.handle is None for m in hidden)),
        }
        if name == "main":
            target = f"arn:aws:sqs:us-east-1:{ACCOUNT}:dead"
            facts["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": target, "maxReceiveCount": 100})
        facts |= self.settings[name]
        return {"Attributes": {key: value for key, value in facts.items() if value is not None}}

    async def _ReceiveMessage(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        deadline = time.monotonic() + asked.get("WaitTimeSeconds", 0)
        while True:
            changed, now = self._changed, time.monotonic()
            queue = self._queue(asked)
            self._move_worn_out(asked, now)
            room = self.in_flight_limit - sum(m.visible_at > now and m.handle is not None for m in queue)
            # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html#API_ReceiveMessage_Errors:
            # a long poll over the limit comes back empty, a short one is refused.
            if room <= 0 and not asked.get("WaitTimeSeconds"):
                raise Refusal("OverLimit", 403)
            found = [m for m in queue if m.visible_at <= now][
                : min(asked["MaxNumberOfMessages"], max(room, 0))
            ]
            if found or now >= deadline:
                return {"Messages": [self._taken(m, now, asked) for m in found]}
            next_due = min([deadline, *(m.visible_at for m in queue if m.visible_at > now)])
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), next_due - now)

    def _move_worn_out(self, asked: Json, now: float) -> None:
        """What would be received more often than the RedrivePolicy allows goes to the dead letters as it is."""
        facts, queue = self._GetQueueAttributes(asked)["Attributes"], self._queue(asked)
        if "RedrivePolicy" not in facts:
            return
        most = json.loads(facts["RedrivePolicy"])["maxReceiveCount"]
        for message in [m for m in queue if m.visible_at <= now and m.received >= most]:
            queue.remove(message)
            message.moved_from = facts["QueueArn"]
            self.queues["dead"].append(message)

    def _taken(self, message: Stored, now: float, asked: Json) -> Json:
        message.visible_at = now + asked.get("VisibilityTimeout", self.lease)
        message.handle = uuid.uuid4().hex
        message.taken_at = now
        message.received += 1
        moved = {"DeadLetterQueueSourceArn": message.moved_from} if message.moved_from else {}
        facts = moved | {
            "ApproximateReceiveCount": str(message.received),
            "SentTimestamp": str(int(message.sent_at * 1000)),
        }
        wanted = asked.get("MessageSystemAttributeNames", ())
        return {
            "MessageId": message.id,
            "Body": message.body,
            "ReceiptHandle": message.handle,
            "MessageAttributes": message.attributes,
            "Attributes": {name: value for name, value in facts.items() if name in wanted},
        }

    def _SendMessage(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        queue, name = self._queue(asked), asked["QueueUrl"].rsplit("/", 1)[-1]
        attributes = asked.get("MessageAttributes", {})
        if len(attributes) > 10:
            raise Refusal("InvalidParameterValue")
        weight = sum(len(f"{n}{v['DataType']}{v['StringValue']}".encode()) for n, v in attributes.items())
        if len(asked["MessageBody"].encode()) + weight > int(
            self.settings[name].get("MaximumMessageSize", LIMIT)
        ):
            raise Refusal("InvalidParameterValue")
        due = time.monotonic() + asked.get("DelaySeconds", 0)
        message = Stored(asked["MessageBody"], attributes, time.time(), due)
        queue.append(message)
        self._wake()
        return {"MessageId": message.id, "MD5OfMessageBody": ""}

    def _SendMessageBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        if sum(len(entry["MessageBody"].encode()) for entry in asked["Entries"]) > LIMIT:
            raise Refusal("BatchRequestTooLong")
        return self._batch("SendMessage", asked, "MessageBody", self._SendMessage)

    def _DeleteMessageBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        return self._batch(
            "DeleteMessage", asked, "ReceiptHandle", lambda one: self._queue(one).remove(self._held(one))
        )

    def _ChangeMessageVisibilityBatch(self, asked: Json) -> Json:  # noqa: N802 - named as the operation
        return self._batch("ChangeMessageVisibility", asked, "ReceiptHandle", self._change)

    def _change(self, asked: Json) -> None:
        message, until = self._held(asked), time.monotonic() + asked["VisibilityTimeout"]
        if until > message.taken_at + self.longest_hold:
            raise Refusal("InvalidParameterValue")
        message.visible_at = until
        self._wake()

    def _held(self, asked: Json) -> Stored:
        now = time.monotonic()
        for message in self._queue(asked):
            if message.handle == asked["ReceiptHandle"] and message.visible_at > now:
                return message
        raise Refusal("ReceiptHandleIsInvalid")

    def _batch(self, operation: str, asked: Json, key: str, act: Callable[[Json], object]) -> Json:
        self._queue(asked)
        if not 1 <= len(asked["Entries"]) <= 10:
            raise Refusal("TooManyEntriesInBatchRequest")
        reply: Json = {"Successful": [], "Failed": []}
        for entry in asked["Entries"]:
            failure: Json | None = self.fail_entries.pop(entry[key], None)
            if failure is None:
                try:
                    act(asked | entry)
                except Refusal as exc:
                    failure = {"SenderFault": True, "Code": exc.code, "Message": exc.code}
            if failure is None:
                reply["Successful"].append({"Id": entry["Id"]})
            else:
                reply["Failed"].append({"Id": entry["Id"], **failure})
            self.outcomes.append(Outcome(operation, entry[key], None if failure is None else failure["Code"]))
        return reply


@asynccontextmanager
async def strict_sqs(lease: int = 1) -> AsyncIterator[StrictSqs]:
    service = StrictSqs(lease=lease)
    application = web.Application(client_max_size=8 << 20)
    application.router.add_post("/{path:.*}", service.handle)
    # A long poll of a process that was killed must not hold up the end.
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        service.endpoint_url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield service
    finally:
        await runner.cleanup()
