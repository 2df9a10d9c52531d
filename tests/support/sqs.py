"""Queues on LocalStack for one test each: random names, short leases, gone afterwards."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from tests.support.localstack import LocalStackEndpoint
from worker.aws import SqsOptions, open_client


@dataclass(frozen=True, slots=True)
class Queues:
    """A queue, its dead-letter queue, and a client to look behind the adapters' backs."""

    url: str
    dead_url: str
    endpoint: LocalStackEndpoint
    client: Any

    def options(self) -> dict[str, Any]:
        """The connection part of every SQS adapter's options."""
        return connection(self.endpoint) | {"queue_url": self.url}


def connection(endpoint: LocalStackEndpoint) -> dict[str, Any]:
    return {
        "endpoint_url": endpoint.endpoint_url,
        "region": endpoint.region,
        "access_key_id": endpoint.access_key_id,
        "secret_access_key": SecretStr(endpoint.secret_access_key),
    }


@asynccontextmanager
async def sqs_queues(
    endpoint: LocalStackEndpoint, *, lease: int = 1, fifo: bool = False
) -> AsyncIterator[Queues]:
    """A queue whose RedrivePolicy names a dead-letter queue; `lease` is its VisibilityTimeout in seconds."""
    name = f"t-{secrets.token_hex(6)}"
    suffix = ".fifo" if fifo else ""
    kind = {"FifoQueue": "true"} if fifo else {}
    async with open_client(SqsOptions(queue_url="none yet", **connection(endpoint))) as client:
        dead = await client.create_queue(
            QueueName=f"{name}-dead{suffix}", Attributes={"VisibilityTimeout": str(lease), **kind}
        )
        dead_url = dead["QueueUrl"]
        facts = await client.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])
        policy = {"deadLetterTargetArn": facts["Attributes"]["QueueArn"], "maxReceiveCount": 100}
        main = await client.create_queue(
            QueueName=f"{name}{suffix}",
            Attributes={"VisibilityTimeout": str(lease), "RedrivePolicy": json.dumps(policy), **kind},
        )
        try:
            yield Queues(main["QueueUrl"], dead_url, endpoint, client)
        finally:
            for url in (main["QueueUrl"], dead_url):
                try:
                    await client.delete_queue(QueueUrl=url)
                except client.exceptions.QueueDoesNotExist:
                    # The test deleted it to see what happens.
                    continue
