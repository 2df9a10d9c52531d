"""The usage examples of the OC Fetcher's two storage documents, run with only their import lines changed.

Queues, buckets and folders are those of the test (LocalStack); what an example takes for granted (`recipe`, `stream1`) is given.
"""

import gzip
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket, s3_client
from tests.support.sqs import Queues, sqs_queues
from tests.support.storages import Recipe, files, run_example, stream
from worker.storage import (
    BundleRef,
    CompletionPending,
    FileStorage,
    PipelineStorage,
    StorageOptionsError,
    UnzipResourceDecorator,
)

QUEUE_URL = "https://sqs.eu-west-2.amazonaws.com/123456789012/bundle-completions"
COMPRESSED = gzip.compress(b"what was compressed")


@dataclass(slots=True)
class Aws:
    """A bucket and a queue of the test, and what reaches them as the documents have it: by variables."""

    bucket: str
    queues: Queues
    s3: Any

    async def keys(self) -> dict[str, bytes]:
        """What lies in the bucket."""
        listed = await self.s3.list_objects_v2(Bucket=self.bucket)
        return {each["Key"]: await self.body(each["Key"]) for each in listed.get("Contents", ())}

    async def body(self, key: str) -> bytes:
        answer = await self.s3.get_object(Bucket=self.bucket, Key=key)
        async with answer["Body"] as body:
            read: bytes = await body.read()
        return read

    async def notified(self) -> list[dict[str, Any]]:
        """The completions that lie in the queue, for good."""
        answer = await self.queues.client.receive_message(
            QueueUrl=self.queues.url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            VisibilityTimeout=600,
        )
        return [
            {**json.loads(each["Body"]), "attributes": sorted(each["MessageAttributes"])}
            for each in answer.get("Messages", ())
        ]

    def changes(self) -> dict[str, str]:
        return {QUEUE_URL: self.queues.url, **dict.fromkeys(BUCKETS, self.bucket)}


BUCKETS = ("my-data-bucket", "my-bundle-bucket", "my-fetcher-bucket", "my-bucket")


@pytest.fixture
async def aws(
    localstack: LocalStackEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Aws]:
    async with AsyncExitStack() as stack:
        bucket = await new_bucket(localstack)
        queues = await stack.enter_async_context(sqs_queues(localstack))
        for name, value in {
            "AWS_ACCESS_KEY_ID": localstack.access_key_id,
            "AWS_SECRET_ACCESS_KEY": localstack.secret_access_key,
            "AWS_REGION": localstack.region,
            "OC_S3_ENDPOINT_URL": localstack.endpoint_url,
            "OC_SQS_QUEUE_URL": queues.url,
            "TRANSLOAD_HOME": str(tmp_path / "home"),
        }.items():
            monkeypatch.setenv(name, value)
        yield Aws(bucket, queues, await stack.enter_async_context(s3_client(localstack)))


def given() -> dict[str, Any]:
    """The names that examples take for granted."""
    return {
        "BundleRef": BundleRef,
        "recipe": Recipe(),
        "stream1": stream(b"<p>1</p>"),
        "stream2": stream(b"[2]"),
        "data_stream": stream(b"{}"),
        "compressed_data": COMPRESSED,
        "config": SimpleNamespace(environment="test", aws=SimpleNamespace(region="us-east-1")),
    }


async def closed(scope: dict[str, Any]) -> None:
    """The examples close nothing."""
    for name in ("storage", "base_storage"):
        if name in scope:
            await scope[name].aclose()


ONE_BUNDLE = """
# Create bundle reference
bundle_ref = BundleRef(primary_url="https://example.com", resources_count=2)

# Start bundle and get context
bundle_context = await storage.start_bundle(bundle_ref, recipe)

# Add resources
await bundle_context.add_resource("https://example.com/page.html", "text/html", 200, stream1)
await bundle_context.add_resource("https://example.com/data.json", "application/json", 200, stream2)

# Complete bundle
await bundle_context.complete({"source": "us-fl"})
"""

FILE_STORAGE = """
from data_fetcher_core.storage import FileStorage

storage = FileStorage("/data/captures")
"""

SQS_NOTIFICATIONS = """
from data_fetcher_core.notifications import SqsPublisher
from data_fetcher_core.storage import PipelineStorage

# SQS Publisher Configuration
sqs_publisher = SqsPublisher(
    queue_url="https://sqs.eu-west-2.amazonaws.com/123456789012/bundle-completions",
    region="us-east-1"
)

# PipelineStorage with SQS notifications
storage = PipelineStorage(
    bucket_name="my-bucket",
    sqs_publisher=sqs_publisher
)
"""

PIPELINE_STORAGE = """
from data_fetcher_core.notifications import SqsPublisher
from data_fetcher_core.storage import PipelineStorage

# SQS publisher is mandatory for PipelineStorage
sqs_publisher = SqsPublisher(
    queue_url="https://sqs.eu-west-2.amazonaws.com/123456789012/bundle-completions",
    region="us-east-1"
)

storage = PipelineStorage(
    bucket_name="my-data-bucket",
    sqs_publisher=sqs_publisher,
    prefix="captures/2024/"
)
"""

CALLBACKS = """
# Loader completion callback
class MyLoader:
    async def on_bundle_complete_hook(self, bundle_ref: BundleRef) -> None:
        called.append(("loader", bundle_ref))

# Locator completion callback
class MyLocator:
    async def on_bundle_complete_hook(self, bundle_ref: BundleRef) -> None:
        called.append(("locator", bundle_ref))

recipe.bundle_loader, recipe.bundle_locators = MyLoader(), [MyLocator()]
"""

UNZIP = """
from data_fetcher_core.storage import FileStorage, UnzipResourceDecorator

base_storage = FileStorage("/data/captures")
storage = UnzipResourceDecorator(base_storage)

# Automatically decompresses compressed files
async with storage.open_bundle("compressed_bundle", {}) as bundle:
    await bundle.write(compressed_data)
    # Decompressed data is stored
"""

BASIC_FILE = """
from data_fetcher_core.storage import FileStorage

# Basic file storage
storage = FileStorage("output/files")

async with storage.open_bundle("bundle_123", {"source": "us-fl"}) as bundle:
    await bundle.write(b"file content")
"""

S3_WITH_DECORATORS = """
from data_fetcher_core.storage import PipelineStorage, UnzipResourceDecorator

# S3 storage with decorators
base_storage = PipelineStorage("my-bucket", "prefix/")
storage = UnzipResourceDecorator(base_storage)

async with storage.open_bundle("bundle_123", {"source": "us-fl"}) as bundle:
    await bundle.write(compressed_data)
    # Data is decompressed and uploaded to S3
"""

BASIC_OPERATIONS = """
from data_fetcher_core.storage import PipelineStorage

# Create pipeline storage
storage = PipelineStorage("my-bucket", "data/")

# Open bundle for writing
async with storage.open_bundle("bundle-1", {"source": "example.com"}) as bundle:
    # Write resource to S3
    await bundle.write_resource(
        url="https://example.com/data",
        content_type="application/json",
        status_code=200,
        stream=data_stream
    )
"""


async def test_file_storage(tmp_path: Path) -> None:
    scope = await run_example(FILE_STORAGE + ONE_BUNDLE, given(), {"/data/captures": str(tmp_path)})
    bid = scope["bundle_ref"].bid
    there = files(tmp_path)
    assert [data for name, data in there.items() if not name.endswith(".meta")] == [b"[2]", b"<p>1</p>"]
    assert {name.partition("/")[0] for name in there} == {f"bundle_{bid}"}
    assert len(there) == 5, "two resources, a .meta beside each, and bundle.meta"
    assert [name for name, _ in scope["recipe"].heard] == ["loader", "first", "second"]
    await closed(scope)


@pytest.mark.parametrize(
    ("example", "prefix"),
    [(SQS_NOTIFICATIONS, ""), (PIPELINE_STORAGE, "captures/2024/")],
    ids=["sqs", "prefix"],
)
async def test_pipeline_storage(aws: Aws, example: str, prefix: str) -> None:
    names = {**given(), "called": []}
    scope = await run_example(CALLBACKS + example + ONE_BUNDLE, names, aws.changes())
    bid = scope["bundle_ref"].bid
    folder = f"{prefix}bundles/{bid}"
    there = await aws.keys()
    resources = sorted(key.removeprefix(f"{folder}/resources/") for key in there if "/resources/" in key)
    assert [name.partition("-")[0] for name in resources] == ["data", "page"]
    manifest = json.loads(there[f"{folder}/metadata.json"])
    assert (manifest["bid"], manifest["primary_url"], manifest["resources_count"]) == (
        bid,
        "https://example.com",
        2,
    )
    (told,) = await aws.notified()
    assert told["attributes"] == ["bundle_id", "completion_timestamp", "recipe_id"]
    assert (told["bundle_id"], told["recipe_id"], told["primary_url"], told["resources_count"]) == (
        bid,
        "fr",
        "https://example.com",
        2,
    )
    assert told["storage_key"] == f"{folder}/resources"
    assert told["completion_timestamp"].endswith("Z")
    assert told["metadata"] == {"source": "us-fl", "resources_count": 2}
    assert [(name, ref.storage_key) for name, ref in names["called"]] == [
        ("loader", f"{folder}/resources"),
        ("locator", f"{folder}/resources"),
    ]
    await closed(scope)


async def test_unzip_resource_decorator(tmp_path: Path) -> None:
    scope = await run_example(UNZIP, given(), {"/data/captures": str(tmp_path)})
    assert b"what was compressed" in files(tmp_path).values()
    assert COMPRESSED not in files(tmp_path).values()
    await closed(scope)


async def test_basic_file_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        await closed(await run_example(BASIC_FILE, given(), {}))
    there = files(tmp_path / "output/files")
    assert [data for name, data in there.items() if not name.endswith(".meta")] == [b"file content"]
    assert json.loads(there["bundle_custom-bundle_123/bundle.meta"])["metadata"]["source"] == "us-fl"


async def test_s3_storage_with_decorators(aws: Aws) -> None:
    """No publisher in the example: the variable that the documents require names the queue."""
    scope = await run_example(S3_WITH_DECORATORS, given(), aws.changes())
    there = await aws.keys()
    assert b"what was compressed" in there.values()
    assert {key.partition("/resources")[0] for key in there if "resources" in key} == {
        "prefix/bundles/custom-bundle_123"
    }
    (told,) = await aws.notified()
    assert (told["bundle_id"], told["recipe_id"]) == ("custom-bundle_123", "us-fl")
    await closed(scope)


async def test_basic_storage_operations(aws: Aws) -> None:
    scope = await run_example(BASIC_OPERATIONS, given(), aws.changes())
    (key,) = [key for key in await aws.keys() if "resources" in key]
    assert key.startswith("data/bundles/custom-bundle-1/resources/data-")
    head = await aws.s3.head_object(Bucket=aws.bucket, Key=key)
    assert head["ContentType"] == "application/json"
    assert head["Metadata"]["url"] == "https://example.com/data"
    assert len(await aws.notified()) == 1
    await closed(scope)


async def test_storage_builder(tmp_path: Path) -> None:
    example = """
from data_fetcher_core.storage import StorageBuilder

# FileStorage - no bundling
file_storage = StorageBuilder().file_storage("/data").build()
# Result: FileStorage (no decorators)

# PipelineStorage - direct S3 storage
pipeline_storage = StorageBuilder().pipeline_storage("bucket").build()
# Result: PipelineStorage
"""
    scope = await run_example(example, {}, {"/data": str(tmp_path)})
    assert type(scope["file_storage"]) is FileStorage
    assert type(scope["pipeline_storage"]) is PipelineStorage


CONFIGURED: dict[str, tuple[str, dict[str, object]]] = {
    "basic": ('bucket="my-fetcher-bucket", prefix="data/", region="us-east-1"', {"region": "us-east-1"}),
    "environment": (
        'bucket=f"oc-fetcher-{config.environment}", prefix="data/", region=config.aws.region',
        {"bucket": "oc-fetcher-test"},
    ),
    "encryption": (
        'bucket="my-bucket", encryption="aws:kms", kms_key_id="arn:aws:kms:us-east-1:123456789012:key/my-key"',
        {"encryption": "aws:kms", "kms_key_id": "arn:aws:kms:us-east-1:123456789012:key/my-key"},
    ),
    "multipart": (
        'bucket="my-bucket", multipart_threshold=100 * 1024 * 1024, multipart_chunksize=10 * 1024 * 1024',
        {"multipart_threshold": 100 << 20, "part_size": 10 << 20},
    ),
    "parallel": (
        'bucket="my-bucket", max_concurrent_uploads=10, upload_timeout=300',
        {"max_concurrency": 10, "request_timeout": 300.0},
    ),
}


@pytest.mark.parametrize("name", CONFIGURED)
async def test_what_is_configured_reaches_the_bucket(name: str) -> None:
    arguments, options = CONFIGURED[name]
    example = (
        f"from data_fetcher_core.storage import PipelineStorage\nstorage = PipelineStorage({arguments})\n"
    )
    scope = await run_example(example, given(), {})
    found = scope["storage"].storing.target.options.model_dump()
    assert {key: found[key] for key in options} == options


async def test_retry_logic() -> None:
    example = """
from data_fetcher_core.storage import PipelineStorage

# Configure retry logic
storage = PipelineStorage(
    bucket="my-bucket",
    max_retries=3,
    retry_delay=1,  # seconds
    exponential_backoff=True
)
"""
    scope = await run_example(example, given(), {})
    tries = scope["storage"].storing.worker
    assert (tries.max_attempts, tries.retry_base, tries.retry_cap) == (4, 1.0, 60.0)
    scope = await run_example(example.replace("True", "False"), given(), {})
    assert scope["storage"].storing.worker.retry_cap == 1.0


async def test_cloudwatch_integration() -> None:
    example = """
from data_fetcher_core.storage import PipelineStorage

# CloudWatch metrics
storage = PipelineStorage(
    bucket="my-bucket",
    cloudwatch_metrics=True,
    metrics_namespace="OCFetcher"
)
"""
    scope = await run_example(example, given(), {})
    cloudwatch = scope["storage"].storing.cloudwatch
    assert (cloudwatch.enabled, cloudwatch.namespace) == (True, "OCFetcher")


async def test_a_bucket_is_made_and_kept_as_the_arguments_say(aws: Aws) -> None:
    example = """
from data_fetcher_core.storage import PipelineStorage

storage = PipelineStorage(
    bucket="my-new-bucket",
    create_bucket=True,
    lifecycle_policy={
        "transitions": [
            {
                "days": 30,
                "storage_class": "STANDARD_IA"
            },
            {
                "days": 90,
                "storage_class": "GLACIER"
            }
        ],
        "expiration": {
            "days": 365
        }
    },
    encryption="AES256",
    versioning=True
)
"""
    name = f"new-{secrets.token_hex(6)}"
    scope = await run_example(example + ONE_BUNDLE, given(), {"my-new-bucket": name})
    versioning = await aws.s3.get_bucket_versioning(Bucket=name)
    assert versioning["Status"] == "Enabled"
    lifecycle = await aws.s3.get_bucket_lifecycle_configuration(Bucket=name)
    assert {each["StorageClass"] for rule in lifecycle["Rules"] for each in rule.get("Transitions", ())} == {
        "STANDARD_IA",
        "GLACIER",
    }
    assert len(await aws.notified()) == 1
    await closed(scope)


async def test_only_what_is_asked_for_is_changed_of_a_bucket_that_is_there(aws: Aws) -> None:
    async with PipelineStorage(aws.bucket, versioning=True, create_bucket=True):
        pass
    assert (await aws.s3.get_bucket_versioning(Bucket=aws.bucket))["Status"] == "Enabled"
    with pytest.raises(aws.s3.exceptions.ClientError, match="NoSuchLifecycleConfiguration"):
        await aws.s3.get_bucket_lifecycle_configuration(Bucket=aws.bucket)


async def test_a_public_bucket_wants_a_second_word() -> None:
    """The document's `bucket_policy="public-read"` lets everybody in."""
    example = """
from data_fetcher_core.storage import PipelineStorage

# Automatic bucket creation
storage = PipelineStorage(
    bucket="my-new-bucket",
    create_bucket=True,
    bucket_policy="public-read"
)
"""
    with pytest.raises(StorageOptionsError, match="allow_public"):
        await run_example(example, given(), {})


# What the seed's code got wrong on S3.


async def test_a_url_that_is_not_ascii_is_stored_and_told(aws: Aws) -> None:
    """[real] it failed in the object's metadata."""
    url = "https://example.com/añadir/größe.html?q=日本"
    async with PipelineStorage(aws.bucket, "a/") as storage:
        bundle = await storage.start_bundle(BundleRef(url), "fr")
        await bundle.add_resource(url, "text/html", 200, stream(b"x"))
        await bundle.complete({})
    there = await aws.keys()
    assert all("//" not in key and key.isascii() for key in there)
    manifest = json.loads(there[f"a/bundles/{bundle.bid}/metadata.json"])
    assert manifest["resources"][0]["url"] == url
    assert (await aws.notified())[0]["primary_url"] == url


async def test_a_queue_that_is_gone_keeps_the_completion_until_it_is_back(aws: Aws) -> None:
    async with UnzipResourceDecorator(PipelineStorage(aws.bucket)) as storage:
        bundle = await storage.start_bundle(BundleRef("u"), "fr")
        await bundle.add_resource("https://example.com/a", None, 200, stream(b"x"))
        name = aws.queues.url.rpartition("/")[2]
        await aws.queues.client.delete_queue(QueueUrl=aws.queues.url)
        with pytest.raises(CompletionPending, match="no such queue"):
            await bundle.complete({})
        await aws.queues.client.create_queue(QueueName=name)
        await storage.on_run_start(None, "fr")
        assert [told["bundle_id"] for told in await aws.notified()] == [bundle.bid]
        await bundle.complete({})
    assert bundle.bundle_ref.resources_count == 1
