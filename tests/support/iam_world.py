"""Buckets and queues on LocalStack behind a front that enforces IAM, and settings whose parts ask in different names.

Used by tests/support/iam_jobs.py and the tests of docs/iam.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from structlog.testing import capture_logs
from structlog.typing import EventDict
from typer.testing import CliRunner

from backends.base import single
from tests.support.iam_front import ACCOUNT, IamFront, iam_front
from tests.support.iam_policies import Statement
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_client
from worker import bootstrap
from worker.cli import app
from worker.producer import BundleRef
from worker.settings import Settings, load_settings

ADMIN: Final = "admin"
"""Whoever prepares what a job is to meet: may do everything."""
PART: Final = 5 << 20
LARGE: Final = bytes(PART + 1000)
"""Two parts of the smallest size S3 takes."""
STAGING_PREFIX: Final = "in/coming"
TARGET_PREFIX: Final = "captures"
_LASTING: Final = {"MessageRetentionPeriod": "1209600"}


class JobFailed(Exception):
    """A job that did not work out, with all that was said about it."""


@dataclass(slots=True)
class World:
    """One test's."""

    endpoint: LocalStackEndpoint
    front: IamFront
    folder: Path
    s3: Any
    sqs: Any
    run: str = field(default_factory=lambda: secrets.token_hex(5))
    kms_key: str = "none"
    logs: list[EventDict] = field(default_factory=list)

    @property
    def values(self) -> dict[str, str]:
        """What the placeholders of docs/iam stand for."""
        return {
            "REGION": self.endpoint.region,
            "ACCOUNT": ACCOUNT,
            "QUEUE": self.name("resources"),
            "DEAD-LETTER-QUEUE": self.name("dead"),
            "COMPLETIONS-QUEUE": self.name("completions"),
            "STAGING-BUCKET": self.name("staging"),
            "STAGING-PREFIX": STAGING_PREFIX,
            "TARGET-BUCKET": self.name("lake"),
            "TARGET-PREFIX": TARGET_PREFIX,
            "S3-KEY": self.kms_key,
            "SQS-KEY": self.kms_key,
            "WRAPPING-KEY": self.kms_key,
            "SECRETS-KEY": self.kms_key,
            "ROLE": "storing",
            "SECRET": self.name("secret"),
        }

    @property
    def kms_arn(self) -> str:
        return f"arn:aws:kms:{self.endpoint.region}:{ACCOUNT}:key/{self.kms_key}"

    def name(self, of: str) -> str:
        return f"{of}-{self.run}"

    def url(self, queue: str) -> str:
        return f"{self.endpoint.endpoint_url}/{ACCOUNT}/{self.name(queue)}"

    def access(self, identity: str) -> dict[str, Any]:
        """Asks the front in that name."""
        return {
            "region": self.endpoint.region,
            "endpoint_url": self.front.url,
            "access_key_id": identity,
            "secret_access_key": "secret",
        }

    def content(self, identity: str, publisher: str | None = None) -> dict[str, Any]:
        """Settings as a file has them. Two targets: one that streams and archives, one that copies in the store."""
        access = self.access(identity)
        place = {"backend": "s3", "part_size": PART, **access}
        target = {**place, "bucket": self.name("lake")}
        return {
            "queue": {"type": "sqs", "queue_url": self.url("resources"), **access},
            "publisher": {
                "type": "sqs",
                "queue_url": self.url("completions"),
                **self.access(publisher or identity),
            },
            "staging": {
                "main": {**place, "bucket": self.name("staging"), "prefix": STAGING_PREFIX},
            },
            "targets": {
                "lake": {**target, "prefix": TARGET_PREFIX, "archive": "zip", "server_copy": False},
                "copies": {**target, "prefix": f"{TARGET_PREFIX}/copies"},
            },
            "worker": {"max_attempts": 2, "retry_base": 0.01, "retry_cap": 0.01},
        }

    def write(self, content: Mapping[str, Any]) -> Path:
        file = self.folder / "transload.yaml"
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    def settings(self, content: Mapping[str, Any]) -> Settings:
        return load_settings(file=self.write(content), home=self.folder / "home", environ={})

    async def make(self) -> None:
        """Two buckets; the queue with its dead letters; the queue of completions."""
        for bucket in ("staging", "lake"):
            await self.s3.create_bucket(Bucket=self.name(bucket))
        for queue in ("dead", "resources", "completions"):
            arn = f"arn:aws:sqs:{self.endpoint.region}:{ACCOUNT}:{self.name('dead')}"
            redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1000})
            attributes = {"resources": {"RedrivePolicy": redrive}, "dead": _LASTING}.get(queue, {})
            await self.sqs.create_queue(QueueName=self.name(queue), Attributes=attributes)

    async def stage(self, *payloads: bytes) -> str:
        """A bundle of those, staged and announced; its bid."""
        async with bootstrap.open_producer(self.settings(self.content(ADMIN))) as producer:
            bundle = await producer.start_bundle(BundleRef("https://example.org/"), "fr")
            for number, payload in enumerate(payloads):
                url = f"https://example.org/{number}.bin"
                await bundle.add_resource(url, "application/octet-stream", 200, single(payload))
            await bundle.complete({})
        return bundle.bid

    async def work(self, settings: Settings) -> None:
        """Run a worker until nothing is left to do. Raises `JobFailed` as soon as something was denied and told of."""
        with capture_logs() as logs:
            self.logs = logs
            try:
                async with bootstrap.open_service(settings, admin=False) as service:
                    working = asyncio.create_task(service.run(until_idle=True))
                    try:
                        while not working.done() and not self._told():
                            await asyncio.wait([working], timeout=0.02)
                        if working.done():
                            await working
                    finally:
                        working.cancel()
                        await asyncio.wait([working])
            except Exception as exc:
                raise JobFailed(f"{exc}\n{self._said()}") from exc
        if self.front.denied:
            raise JobFailed(self._said())

    def _told(self) -> bool:
        """Something was denied, and the log tells of it."""
        return any(ask.action.lower() in self._said().lower() for ask in self.front.denied)

    def _said(self) -> str:
        return "\n".join(f"{line['event']}: {line.get('error', '')}" for line in self.logs)

    async def command(self, content: Mapping[str, Any], *arguments: str) -> str:
        """Run `transload` in this process; what it printed. Raises `JobFailed` unless its exit status is 0."""
        file = self.write(content)
        whole = ["--config", str(file), "--home", str(self.folder / "home"), *arguments]
        done = await asyncio.to_thread(CliRunner().invoke, app, whole)
        if done.exit_code or self.front.denied:
            raise JobFailed(f"{arguments}: {done.stdout}\n{done.stderr}\n{done.exception}")
        return done.stdout

    async def depth(self, queue: str) -> int:
        answer = await self.sqs.get_queue_attributes(
            QueueUrl=self.url(queue), AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])


@asynccontextmanager
async def iam_world(endpoint: LocalStackEndpoint, folder: Path) -> AsyncIterator[World]:
    """A world in which only `ADMIN` may do anything yet, and nothing is made."""
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(iam_front(endpoint.endpoint_url))
        front.policies[ADMIN] = (Statement("Everything", True, ("*",), ("*",)),)
        s3 = await stack.enter_async_context(s3_client(endpoint))
        sqs = await stack.enter_async_context(s3_client(endpoint, "sqs"))
        yield World(endpoint, front, folder, s3, sqs)
