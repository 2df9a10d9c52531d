"""One SQS queue and the queue of its dead letters: how they are, how they should be, and the requests between.

Called by worker/provision/wanted.py. A queue that is missing is made with all its attributes at once; of one that is there
only what the settings name is changed.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from worker.provision.calls import ask
from worker.provision.plan import NONE, ProvisionRefused, Step, compared
from worker.provision.settings import ProvisionedQueue

DEFAULT_RETENTION: Final = 345_600
"""Seconds SQS keeps messages of a queue that was made without saying:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html"""
DEFAULT_RECEIVES: Final = 1000
"""The worker itself gives up far earlier, and says why in the dead letter."""
MOST_SOURCES: Final = 10
"""Queues one RedriveAllowPolicy can name."""

_MISSING: Final = frozenset({"NonExistentQueue", "QueueDoesNotExist"})

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class QueueWanted:
    """A queue as it should be."""

    name: str
    wanted: ProvisionedQueue
    url: str | None = None
    """The URL by which the settings know it."""
    dead_name: str | None = None
    """Where its dead letters go, as the settings say."""
    buries: bool = False
    """Whether it has dead letters even if nothing says where they go."""


@dataclass(frozen=True, slots=True)
class _Redrive:
    """Where SQS moves a message, and after how many receives."""

    dead: str
    receives: int

    def __str__(self) -> str:
        return f"{self.dead} after {self.receives} receives"


@dataclass(frozen=True, slots=True)
class _There:
    name: str
    url: str | None
    facts: Facts

    @property
    def title(self) -> str:
        return f"queue {self.name}"

    @property
    def policy(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.facts.get("RedrivePolicy") or "{}")
        return found


async def plan_queue(client: Any, queue: QueueWanted) -> list[Step]:
    """Look at both, and say what there is to do, in the order to do it. Changes nothing.

    Raises `ProvisionError`, and `ProvisionRefused` where dead letters would not outlive the messages.
    """
    source = await _look(client, queue.name)
    named = queue.dead_name or _name_of(source.policy.get("deadLetterTargetArn", ""))
    if not named and queue.buries:
        stem = queue.name.removesuffix(".fifo")
        named = f"{stem}-dead{queue.name.removeprefix(stem)}"
    own = {**_own(queue.wanted), **_encryption(queue.wanted)}
    if not named:
        return _Planner(client, source, own, queue.url).steps()
    dead = await _look(client, named)
    _check_retention(queue, source, dead)
    letters = {
        "MessageRetentionPeriod": str(queue.wanted.dead_letter_retention),
        **_encryption(queue.wanted),
    }
    receives = queue.wanted.max_receive_count or int(source.policy.get("maxReceiveCount", DEFAULT_RECEIVES))
    return [
        *_Planner(client, dead, letters).steps(),
        *_Planner(client, source, own, queue.url, _Redrive(named, receives)).steps(),
        await _allowance(client, dead, source),
    ]


async def _look(client: Any, name: str) -> _There:
    title = f"queue {name}"
    found = await ask(client, title, "get_queue_url", _MISSING, QueueName=name)
    if found is None:
        return _There(name, None, {})
    return _There(name, found["QueueUrl"], await _facts(client, title, found["QueueUrl"]))


async def _facts(client: Any, title: str, url: str) -> Facts:
    answer = await ask(client, title, "get_queue_attributes", QueueUrl=url, AttributeNames=["All"])
    facts: Facts = (answer or {}).get("Attributes", {})
    return facts


def _check_retention(queue: QueueWanted, source: _There, dead: _There) -> None:
    kept = queue.wanted.retention or int(source.facts.get("MessageRetentionPeriod", DEFAULT_RETENTION))
    letters = queue.wanted.dead_letter_retention
    if letters <= kept:
        # What SQS moves keeps the age it has:
        # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
        raise ProvisionRefused(
            f"queue {queue.name} keeps messages for {kept} s and {dead.name} dead letters for {letters} s: they would expire "
            f"unseen; lower provision.queues.….retention of {queue.name}, or raise dead_letter_retention (at most 1209600)"
        )


def _own(wanted: ProvisionedQueue) -> dict[str, str]:
    given = {"VisibilityTimeout": wanted.visibility_timeout, "MessageRetentionPeriod": wanted.retention}
    return {name: str(value) for name, value in given.items() if value is not None}


def _encryption(wanted: ProvisionedQueue) -> dict[str, str]:
    if wanted.encryption == "aws:kms":
        return {"KmsMasterKeyId": wanted.kms_key_id or "alias/aws/sqs"}
    return {"SqsManagedSseEnabled": "true"} if wanted.encryption == "sqs" else {}


class _Planner:
    """The steps of one queue."""

    def __init__(
        self,
        client: Any,
        there: _There,
        attributes: Mapping[str, str],
        url: str | None = None,
        redrive: _Redrive | None = None,
    ) -> None:
        self._client = client
        self._there = there
        self._attributes = attributes
        self._url = url
        self._redrive = redrive

    def steps(self) -> list[Step]:
        there = self._there
        if there.url is None:
            moves = [f"dead letters to {self._redrive}"] if self._redrive else []
            new = ", ".join([*(f"{name} {value}" for name, value in self._attributes.items()), *moves])
            return [self._step("create_queue", NONE, new or "as SQS makes it", self._create)]
        found = [self._step("create_queue", there.url, self._known_as(there.url), None)]
        for name, value in self._attributes.items():
            change = partial(self._set, **self._exclusive(name, value))
            found.append(self._step(name, there.facts.get(name) or NONE, value, change))
        if self._redrive is not None:
            policy = there.policy
            old = (
                str(_Redrive(_name_of(policy["deadLetterTargetArn"]), int(policy["maxReceiveCount"])))
                if policy
                else NONE
            )
            found.append(self._step("RedrivePolicy", old, str(self._redrive), self._set_redrive))
        return found

    def _known_as(self, url: str) -> str:
        """The URL of the settings, where it is another queue's: of another account, or another region."""
        if self._url is None or self._url.rstrip("/").split("/")[-2:] == url.rstrip("/").split("/")[-2:]:
            return url
        return self._url

    async def _create(self) -> None:
        attributes = dict(self._attributes)
        if self._there.name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        if self._redrive is not None:
            attributes["RedrivePolicy"] = await self._redrive_policy(self._redrive)
        await self._ask("create_queue", QueueName=self._there.name, Attributes=attributes)

    async def _set_redrive(self) -> None:
        if self._redrive is not None:
            await self._set(RedrivePolicy=await self._redrive_policy(self._redrive))

    async def _redrive_policy(self, redrive: _Redrive) -> str:
        dead = await _look(self._client, redrive.dead)
        return json.dumps(
            {"deadLetterTargetArn": dead.facts["QueueArn"], "maxReceiveCount": redrive.receives}
        )

    async def _set(self, **attributes: str) -> None:
        await self._ask("set_queue_attributes", QueueUrl=self._there.url, Attributes=attributes)

    def _exclusive(self, name: str, value: str) -> dict[str, str]:
        """A queue is encrypted in one way: the other is ended with the same request."""
        if name == "SqsManagedSseEnabled" and self._there.facts.get("KmsMasterKeyId"):
            return {name: value, "KmsMasterKeyId": ""}
        if name == "KmsMasterKeyId":
            return {name: value, "SqsManagedSseEnabled": "false"}
        return {name: value}

    def _step(self, aspect: str, old: str, new: str, change: Callable[[], Awaitable[object]] | None) -> Step:
        return compared(self._there.title, aspect, old, new, change)

    async def _ask(self, operation: str, **request: Any) -> None:
        await ask(self._client, self._there.title, operation, **request)


async def _allowance(client: Any, dead: _There, source: _There) -> Step:
    """The queue of dead letters says whose it takes, so that no other queue's are taken for ours."""

    async def allow() -> None:
        now, arn = await _look(client, dead.name), (await _look(client, source.name)).facts["QueueArn"]
        arns = sorted({*await _sources(client, now), arn})
        policy = {"redrivePermission": "byQueue", "sourceQueueArns": arns}
        await ask(
            client,
            dead.title,
            "set_queue_attributes",
            QueueUrl=now.url,
            Attributes={"RedriveAllowPolicy": json.dumps(policy)},
        )

    policy = json.loads(dead.facts.get("RedriveAllowPolicy") or "{}")
    permission = policy.get("redrivePermission", NONE)
    names = {_name_of(arn) for arn in await _sources(client, dead)}
    wanted = names | {source.name}
    old = f"of {', '.join(sorted(names))}" if permission == "byQueue" else permission
    # Somebody lets all queues in, or there are more than can be named.
    open_to_all = permission == "allowAll" or len(wanted) > MOST_SOURCES
    new = old if open_to_all else f"of {', '.join(sorted(wanted))}"
    return compared(dead.title, "RedriveAllowPolicy", old, new, None if permission == "denyAll" else allow)


async def _sources(client: Any, dead: _There) -> list[str]:
    """ARNs of the queues whose dead letters it takes: those it names, else those that name it."""
    if dead.url is None:
        return []
    policy = json.loads(dead.facts.get("RedriveAllowPolicy") or "{}")
    if policy.get("redrivePermission") == "byQueue":
        return list(policy.get("sourceQueueArns", ()))
    answer = await ask(client, dead.title, "list_dead_letter_source_queues", QueueUrl=dead.url)
    urls = (answer or {}).get("queueUrls", [])
    return [(await _facts(client, dead.title, url))["QueueArn"] for url in urls]


def _name_of(arn: str) -> str:
    return arn.rpartition(":")[2]
