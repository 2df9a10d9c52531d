"""The main job on AWS's interfaces: messages and completions on SQS, staging and target on S3 (LocalStack)."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiobotocore.session import AioSession

from tests.support.cli import Transload
from tests.support.localstack import LocalStackEndpoint


class Aws:
    """Buckets and queues of one test, and a configuration that uses them."""

    def __init__(self, endpoint: LocalStackEndpoint, stack: AsyncExitStack) -> None:
        self.endpoint = endpoint
        self._stack = stack
        self.run = secrets.token_hex(6)

    async def client(self, service: str) -> Any:
        return await self._stack.enter_async_context(
            AioSession().create_client(
                service,
                region_name=self.endpoint.region,
                endpoint_url=self.endpoint.endpoint_url,
                aws_access_key_id=self.endpoint.access_key_id,
                aws_secret_access_key=self.endpoint.secret_access_key,
            )
        )

    async def config(self, folder: Path, lease: int = 15) -> Path:
        s3, sqs = await self.client("s3"), await self.client("sqs")
        for name in ("staging", "lake"):
            await s3.create_bucket(Bucket=f"{name}-{self.run}")
        urls: dict[str, str] = {}
        for name in ("dead", "resources", "completions"):
            attributes = {"VisibilityTimeout": str(lease)}
            if name == "resources":
                arn = await sqs.get_queue_attributes(QueueUrl=urls["dead"], AttributeNames=["QueueArn"])
                target = arn["Attributes"]["QueueArn"]
                attributes["RedrivePolicy"] = json.dumps(
                    {"deadLetterTargetArn": target, "maxReceiveCount": "20"}
                )
            made = await sqs.create_queue(QueueName=f"{name}-{self.run}", Attributes=attributes)
            urls[name] = made["QueueUrl"]
        access = {
            "region": self.endpoint.region,
            "endpoint_url": self.endpoint.endpoint_url,
            "access_key_id": self.endpoint.access_key_id,
            "secret_access_key": self.endpoint.secret_access_key,
        }
        file = folder / "transload.yaml"
        content = {
            "queue": {"type": "sqs", "queue_url": urls["resources"], **access},
            "staging": {"main": {"backend": "s3", "bucket": f"staging-{self.run}", **access}},
            "targets": {
                "lake": {"backend": "s3", "bucket": f"lake-{self.run}", "prefix": "captures/2024/", **access}
            },
            "publisher": {"type": "sqs", "queue_url": urls["completions"], **access},
        }
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return file

    async def completions(self) -> list[dict[str, Any]]:
        """Take what is there, for good: a message only looked at would come back and pass for a second completion."""
        sqs = await self.client("sqs")
        url = (await sqs.get_queue_url(QueueName=f"completions-{self.run}"))["QueueUrl"]
        answer = await sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=1
        )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        for message in messages:
            await sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return messages


@pytest.fixture
async def aws(localstack: LocalStackEndpoint) -> AsyncIterator[Aws]:
    async with AsyncExitStack() as stack:
        yield Aws(localstack, stack)


async def test_sqs_to_s3_to_sqs(aws: Aws, tmp_path: Path) -> None:
    transload = Transload(tmp_path / "home", await aws.config(tmp_path))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.html").write_text("<p>ö</p>", encoding="utf-8")
    (tmp_path / "in" / "daten ä.json").write_text("{}", encoding="utf-8")
    bid = (await asyncio.to_thread(transload.ok, "publish", tmp_path / "in", "--recipe", "fr")).strip()
    await asyncio.to_thread(transload.ok, "run", "--until-idle")

    (message,) = await aws.completions()
    body = json.loads(message["Body"])
    assert body["storage_key"] == f"captures/2024/bundles/{bid}/resources"
    assert body["resources_count"] == 2
    assert body["metadata"] == {"source": "transload publish", "run_id": bid, "resources_count": 2}
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert attributes == {
        "bundle_id": bid,
        "recipe_id": "fr",
        "completion_timestamp": body["completion_timestamp"],
    }
    assert {value["DataType"] for value in message["MessageAttributes"].values()} == {"String"}

    s3 = await aws.client("s3")
    manifest = await s3.get_object(Bucket=f"lake-{aws.run}", Key=body["manifest_key"])
    async with manifest["Body"] as stream:
        listed = json.loads(await stream.read())["resources"]
    assert len(listed) == 2
    for entry in listed:
        assert entry["key"].startswith(f"captures/2024/bundles/{bid}/resources/")
        head = await s3.head_object(Bucket=f"lake-{aws.run}", Key=entry["key"])
        assert head["ContentLength"] == entry["size"]
        assert "url" in head["Metadata"]
    verified = await asyncio.to_thread(transload.lines, "verify", bid)
    assert verified[0]["passed"]
    published_again = (
        await asyncio.to_thread(transload.ok, "publish", tmp_path / "in", "--recipe", "fr")
    ).strip()
    assert published_again == bid
    await asyncio.to_thread(transload.ok, "run", "--until-idle")
    assert await aws.completions() == []
