"""The OC Fetcher's `BundleResourcesDecorator`: all resources of a bundle in one zip besides, in the fetcher's own process."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket, s3_client
from tests.support.sqs import sqs_queues
from tests.support.storages import Recipe, files, run_example, stream
from worker.storage import (
    BundleRef,
    BundleResourcesDecorator,
    FileStorage,
    PipelineStorage,
    SqsPublisher,
    StorageBuilder,
    UnzipResourceDecorator,
    create_storage_stack,
)

COMPLEX_STACK = """
from data_fetcher_core.storage import FileStorage, create_storage_stack

# Complex storage stack with all decorators
base_storage = FileStorage("output/complex")
storage = create_storage_stack(
    base_storage=base_storage,
    unzip_resources=True,
    bundle_resources=True
)
"""

CUSTOM_BUNDLING = """
from data_fetcher_core.storage import PipelineStorage, BundleResourcesDecorator

# Custom S3 configuration with resource bundling
base_storage = PipelineStorage(
    bucket="my-bundle-bucket",
    prefix="bundles/",
    region="us-east-1"
)
storage = BundleResourcesDecorator(base_storage)
"""


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Its files, each checked."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


async def test_the_complex_storage_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = await run_example(COMPLEX_STACK, {}, {})
    recipe = Recipe()
    async with scope["storage"] as storage:
        bundle = await storage.start_bundle(BundleRef("u", bid="test-all"), recipe)
        await bundle.add_resource("https://example.com/a.gz", None, 200, stream(gzip.compress(b"one")))
        await bundle.add_resource("https://example.com/b", None, 200, stream(b"two"))
        await bundle.complete({})
    there = files(tmp_path / "output/complex")
    (archive,) = [data for name, data in there.items() if name.endswith(".zip")]
    assert sorted(unpacked(archive).values()) == [b"one", b"two"]
    manifest = json.loads(there["bundle_test-all/bundle.meta"])
    assert (manifest["archive"]["format"], manifest["archive"]["size"]) == ("zip", len(archive))
    assert manifest["resources_count"] == 2
    assert len(recipe.heard) == 3


async def test_custom_s3_configuration_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OC_SQS_QUEUE_URL", raising=False)
    scope = await run_example(CUSTOM_BUNDLING, {}, {})
    target = scope["storage"].storing.target.model_dump()
    assert (target["archive"], target["prefix"], target["backend"]) == ("zip", "bundles", "s3")
    underneath = scope["base_storage"].storing.target.model_dump()
    assert underneath["archive"] is None, "it stays as it was"


async def test_an_archive_lies_in_the_bucket_before_the_notification(
    localstack: LocalStackEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", localstack.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", localstack.secret_access_key)
    bucket = await new_bucket(localstack)
    async with sqs_queues(localstack) as queues, s3_client(localstack) as s3:
        publisher = SqsPublisher(queues.url, region=localstack.region)
        base = PipelineStorage(
            bucket, "data/", publisher, localstack.region, localstack.endpoint_url, state_dir=tmp_path
        )
        async with BundleResourcesDecorator(base) as storage:
            bundle = await storage.start_bundle(BundleRef("u", bid="test-zip"), "fr")
            for name in "ab":
                await bundle.add_resource(f"https://example.com/{name}", None, 200, stream(name.encode()))
            await bundle.complete({})
        answer = await queues.client.receive_message(QueueUrl=queues.url)
        assert json.loads(answer["Messages"][0]["Body"])["bundle_id"] == "test-zip"
        got = await s3.get_object(Bucket=bucket, Key="data/bundles/test-zip/resources.zip")
        async with got["Body"] as body:
            assert sorted(unpacked(await body.read()).values()) == [b"a", b"b"]


def test_the_order_of_decorators_is_all_the_same(tmp_path: Path) -> None:
    base = FileStorage(tmp_path)
    one = BundleResourcesDecorator(UnzipResourceDecorator(base)).storing
    other = UnzipResourceDecorator(BundleResourcesDecorator(base)).storing
    built = StorageBuilder().file_storage(tmp_path).unzip_resources().bundle_resources().build().storing
    assert one == other == built == create_storage_stack(base, True, True).storing
