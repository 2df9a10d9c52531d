"""A fetcher that only drops objects: buckets that notify a queue, directly and through SNS (LocalStack), and a worker that stores them."""

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

from tests.docs.blocks import BLOCKS
from tests.support.localstack import LocalStackEndpoint
from tests.support.sqs import Queues, sqs_queues
from worker.bootstrap import open_ledger, open_service
from worker.settings import Settings, load_settings

PAGE = "docs/notifications.md"
KEYS = ("in/fr/red flower+1.jpg", "in/fr/straße/ä %2F&=?#.html", "in/de/b")


def documents(queue: str, bucket: str) -> list[str]:
    """The queue's policy and the bucket's notifications, as docs/notifications.md has them."""
    *_, region, account, name = queue.split(":")
    found = [block.text for block in BLOCKS if block.page == PAGE and block.language == "json"]
    for placeholder, value in (
        ("REGION", region),
        ("ACCOUNT", account),
        (":QUEUE", f":{name}"),
        ("BUCKET", bucket),
    ):
        found = [text.replace(placeholder, value) for text in found]
    return found


class Drops:
    """A bucket that notifies a queue of what appears below `in/`, and another bucket as the target."""

    def __init__(self, endpoint: LocalStackEndpoint, queues: Queues, stack: AsyncExitStack) -> None:
        self.endpoint, self.queues = endpoint, queues
        self._stack = stack
        name = secrets.token_hex(6)
        self.bucket, self.lake = f"drops-{name}", f"lake-{name}"
        self.access = {
            "region": endpoint.region,
            "endpoint_url": endpoint.endpoint_url,
            "access_key_id": endpoint.access_key_id,
            "secret_access_key": endpoint.secret_access_key,
        }

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

    async def wire(self, *, through_sns: bool) -> Any:
        """A client of S3, once everything is configured. Versions are kept where it goes through SNS."""
        s3 = await self.client("s3")
        for bucket in (self.bucket, self.lake):
            await s3.create_bucket(Bucket=bucket)
        facts = await self.queues.client.get_queue_attributes(
            QueueUrl=self.queues.url, AttributeNames=["QueueArn"]
        )
        arn = facts["Attributes"]["QueueArn"]
        policy, notifications = documents(arn, self.bucket)
        await self.queues.client.set_queue_attributes(QueueUrl=self.queues.url, Attributes={"Policy": policy})
        (rule,) = json.loads(notifications)["QueueConfigurations"]
        rule["Events"].append("s3:ObjectRemoved:*")
        kind = "Queue"
        if through_sns:
            sns = await self.client("sns")
            topic = (await sns.create_topic(Name=self.bucket))["TopicArn"]
            await sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
            rule["TopicArn"], kind = topic, "Topic"
            del rule["QueueArn"]
            versions = {"Status": "Enabled"}
            await s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=versions)
        await s3.put_bucket_notification_configuration(
            Bucket=self.bucket, NotificationConfiguration={f"{kind}Configurations": [rule]}
        )
        return s3

    def settings(self, folder: Path) -> Settings:
        content = {
            "queue": {"type": "sqs", **self.access, "queue_url": self.queues.url},
            "staging": {
                "drop": {
                    "backend": "s3",
                    "bucket": self.bucket,
                    "prefix": "in",
                    "notifications": {"bundle": "object", "recipe_id": "{folder}"},
                    **self.access,
                }
            },
            "targets": {"lake": {"backend": "s3", "bucket": self.lake, **self.access}},
            "worker": {"concurrency": 4},
        }
        file = folder / "transload.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_settings(file=file, home=folder / "home", environ={})

    async def waiting(self, messages: int) -> None:
        """Until the queue holds so many."""
        name = "ApproximateNumberOfMessages"
        async with asyncio.timeout(30):
            while True:
                facts = await self.queues.client.get_queue_attributes(
                    QueueUrl=self.queues.url, AttributeNames=[name]
                )
                if int(facts["Attributes"][name]) == messages:
                    return
                await asyncio.sleep(0.05)


@pytest.fixture
async def drops(localstack: LocalStackEndpoint) -> AsyncIterator[Drops]:
    async with sqs_queues(localstack, lease=15) as queues, AsyncExitStack() as stack:
        yield Drops(localstack, queues, stack)


@pytest.mark.parametrize("through_sns", [False, True])
async def test_what_is_dropped_is_a_bundle(drops: Drops, tmp_path: Path, through_sns: bool) -> None:
    s3 = await drops.wire(through_sns=through_sns)
    for key in KEYS:
        await s3.put_object(Bucket=drops.bucket, Key=key, Body=key.encode())
    await s3.put_object(Bucket=drops.bucket, Key="in/fr/", Body=b"")
    await s3.put_object(Bucket=drops.bucket, Key="elsewhere/a", Body=b"nobody is told")
    await s3.put_object(Bucket=drops.bucket, Key="in/gone", Body=b"")
    await s3.delete_object(Bucket=drops.bucket, Key="in/gone")
    # The test event, the mark of a folder, an object outside of any folder, and its removal come with them.
    await drops.waiting(len(KEYS) + 4)
    chosen = drops.settings(tmp_path)
    async with open_service(chosen, admin=False) as service:
        await service.run(until_idle=True)
        progress = service.progress
        settled = service._metrics.registry
    assert (progress.acked, progress.dead) == (len(KEYS) + 3, 1)
    labels = {"queue": drops.queues.url.rpartition("/")[2], "outcome": "ignored"}
    assert settled.get_sample_value("transload_messages_settled_total", labels) == 3

    async with open_ledger(chosen) as ledger:
        bundles = await ledger.bundles()
        stored = {each.url: each for bundle in bundles async for each in ledger.resources(bundle.bid)}
    assert set(stored) == {f"s3://{drops.bucket}/{key}" for key in KEYS}
    assert {bundle.state for bundle in bundles} == {"published"}
    assert sorted([bundle.recipe_id for bundle in bundles]) == ["de", "fr", "fr"]
    for key in KEYS:
        resource = stored[f"s3://{drops.bucket}/{key}"]
        answer = await s3.get_object(Bucket=drops.lake, Key=resource.objects[0].key)
        async with answer["Body"] as body:
            assert await body.read() == key.encode()
        head = await s3.head_object(Bucket=drops.bucket, Key=key)
        facts = resource.meta["s3"]
        assert f'"{facts["etag"]}"' == head["ETag"]
        assert facts.get("version_id") == head.get("VersionId")
    letters = await drops.queues.client.receive_message(
        QueueUrl=drops.queues.dead_url, MessageAttributeNames=["All"]
    )
    (letter,) = letters["Messages"]
    assert "gone" in json.dumps(letter["Body"])
    assert letter["MessageAttributes"]["dead_letter_reason"]["StringValue"] == "malformed"
