"""The suite on Ceph's S3, the one server of these tests that checks signatures and policies; and what it refuses.

It ignores conditions on CompleteMultipartUpload and knows no checksums, and is configured so: what it cannot prove with
that, several writers of one large object and copies inside the store, is proven on LocalStack and on tests/support/strict_s3.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from backends.base import Attributes, Promise, StorageBackend, single
from backends.errors import Conflict, IntegrityError, PermissionDenied, Unsupported
from backends.s3 import S3Backend
from backends.testing import BackendConformance
from backends.testing.material import LARGE, put, some_bytes
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket, s3_client, s3_options
from tests.support.s3_front import front_of

NOTHING = Attributes()
LIMITS = {"conditional_writes": "put", "checksums": "when_required"}


@asynccontextmanager
async def on_radosgw(radosgw: LocalStackEndpoint, **changes: Any) -> AsyncIterator[S3Backend]:
    bucket = await new_bucket(radosgw)
    backend = await S3Backend.connect(s3_options(radosgw, bucket, **{**LIMITS, **changes}))
    try:
        yield backend
    finally:
        await backend.aclose()


class TestS3OnRadosgw(BackendConformance):
    huge = 256 << 20
    """Its store lies in memory."""

    untold_metadata = ("Upper-Case_and.more",)
    """radosgw makes a dash of an underscore in a name."""

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        assert isinstance(backend, S3Backend)
        where = {"Bucket": backend.bucket, "Key": key}
        upload_id = (await backend._client.create_multipart_upload(**where))["UploadId"]
        await backend._client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=b"half")
        return 1

    @pytest.fixture
    async def backend(self, radosgw: LocalStackEndpoint) -> AsyncIterator[StorageBackend]:
        async with on_radosgw(radosgw) as backend:
            yield backend


@pytest.mark.parametrize("conditional", ["put", "never"])
@pytest.mark.parametrize("size", [4, LARGE])
async def test_case_60_without_conditions_a_look_keeps_the_old(
    radosgw: LocalStackEndpoint, conditional: str, size: int
) -> None:
    async with on_radosgw(radosgw, conditional_writes=conditional) as backend:
        assert not backend.features.create_only
        data, other = some_bytes(size), some_bytes(size, seed=2)
        assert (await put(backend, "k", data)).created
        assert not (await put(backend, "k", data)).created
        with pytest.raises(Conflict):
            await put(backend, "k", other)
        async with backend.open("k") as chunks:
            assert b"".join([chunk async for chunk in chunks]) == data
        assert await backend.sweep(0.0) == 0


async def test_a_small_object_is_created_once_for_all(radosgw: LocalStackEndpoint) -> None:
    async with on_radosgw(radosgw) as backend:
        outcomes = await asyncio.gather(
            *(put(backend, "k", bytes([number])) for number in range(6)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 5


async def test_a_copy_that_the_store_cannot_prove_leaves_nothing(radosgw: LocalStackEndpoint) -> None:
    async with on_radosgw(radosgw, checksums="when_supported") as backend:
        await put(backend, "k", b"data")
        with pytest.raises(Unsupported, match="no SHA-256"):
            await backend.copy_from(backend, "k", "copy", NOTHING, Promise())
        assert [found.key async for found in backend.list()] == ["k"]
        assert await backend.sweep(0.0) == 0


async def test_case_105_a_store_without_encryption_is_refused(radosgw: LocalStackEndpoint) -> None:
    bucket = await new_bucket(radosgw)
    with pytest.raises(Unsupported, match="asks for encryption: AES256"):
        await S3Backend.connect(s3_options(radosgw, bucket, encryption="AES256", **LIMITS))


@pytest.mark.parametrize(
    "wrong",
    [{"secret_access_key": SecretStr("wrong")}, {"access_key_id": "NOBODY"}],
    ids=["secret", "access key"],
)
async def test_wrong_keys_are_denied(radosgw: LocalStackEndpoint, wrong: dict[str, Any]) -> None:
    bucket = await new_bucket(radosgw)
    with pytest.raises(PermissionDenied) as raised:
        await S3Backend.connect(s3_options(radosgw, bucket, **LIMITS, **wrong))
    assert "wrong" not in str(raised.value)


@pytest.mark.parametrize("size", [4, LARGE], ids=["put", "multipart"])
async def test_what_a_policy_denies_is_denied_and_leaves_nothing(
    radosgw: LocalStackEndpoint, size: int
) -> None:
    async with on_radosgw(radosgw) as backend:
        await put(backend, "there", b"x")
        await deny(radosgw, backend.bucket, "s3:PutObject", "s3:DeleteObject")
        with pytest.raises(PermissionDenied) as raised:
            await put(backend, "k", some_bytes(size))
        assert raised.value.retryable
        with pytest.raises(PermissionDenied):
            await backend.delete("there")
        assert [found.key async for found in backend.list()] == ["there"]
        await deny(radosgw, backend.bucket, "s3:GetObject")
        with pytest.raises(PermissionDenied):
            async with backend.open("there"):
                pass
        with pytest.raises(PermissionDenied):
            await backend.stat("there")


async def deny(radosgw: LocalStackEndpoint, bucket: str, *actions: str) -> None:
    """Replace the bucket's policy by one that denies these actions on its objects to everybody."""
    resource = f"arn:aws:s3:::{bucket}/*"
    statement = {"Effect": "Deny", "Principal": "*", "Action": list(actions), "Resource": resource}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    async with s3_client(radosgw) as client:
        await client.put_bucket_policy(Bucket=bucket, Policy=policy)


async def test_case_66_what_is_damaged_on_the_way_is_refused_by_its_signature(
    radosgw: LocalStackEndpoint,
) -> None:
    async with (
        front_of(radosgw.endpoint_url) as front,
        on_radosgw(radosgw, endpoint_url=front.url) as backend,
    ):
        for data, pattern in ((b"data", r"^PUT \S+/k"), (some_bytes(LARGE), r"PUT \S+partNumber=")):
            front.fail_next(pattern, "corrupt", times=20)
            with pytest.raises(IntegrityError):
                await backend.write("k", single(data), NOTHING)
            front.forgive()
            assert [found.key async for found in backend.list()] == []
            assert await backend.sweep(0.0) == 0
