"""What the options of the S3 adapter do: transfer, retries, deadlines, encryption, storage class."""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from backends.base import Attributes, Promise, single
from backends.errors import PermissionDenied, StorageError, Unavailable, Unsupported
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import fronted_backend, s3_client, s3_options, strict_backend
from tests.support.strict_s3 import StrictS3, strict_s3

MIB = 1 << 20
PART = 5 * MIB
NOTHING = Attributes()
LARGE = random.Random(6).randbytes(PART + 17)

PUT = r"^PUT \S+/k "
PUT_PART = r"PUT \S+partNumber="
ABORT = r"DELETE \S+uploadId="
KEY = "arn:aws:kms:us-east-1:000000000000:key/1"


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def read(backend: S3Backend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def lines(store: Any, pattern: str) -> list[str]:
    return [line for line in store.requests if re.search(pattern, line)]


def options(**given: Any) -> S3Options:
    return S3Options(**{"bucket": "bucket", **given})


@pytest.mark.parametrize(
    ("other", "value", "ours"),
    [
        ("multipart_chunksize", 10 * MIB, "part_size"),
        ("max_concurrent_uploads", 10, "max_concurrency"),
        ("upload_timeout", 300, "request_timeout"),
    ],
)
def test_some_options_have_a_second_name(other: str, value: int, ours: str) -> None:
    assert getattr(options(**{other: value}), ours) == value
    with pytest.raises(ValidationError, match=other):
        options(**{other: value, ours: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"kms_key_id": KEY},
        {"kms_key_id": KEY, "encryption": "AES256"},
        {"encryption": "rot13"},
        {"storage_class": "standard"},
        {"multipart_threshold": 1 << 30},
        {"max_retries": -1},
        {"upload_timeout": 0},
        {"conditional_writes": "sometimes"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**wrong)


async def test_multipart_threshold_bounds_what_is_one_put() -> None:
    async with strict_backend(part_size=PART, multipart_threshold=2 * PART) as (backend, store):
        await backend.write("k", pieces(bytes(2 * PART)), NOTHING)
        assert lines(store, "partNumber") == []
        data = random.Random(2).randbytes(2 * PART + 1)
        receipt = await backend.write("larger", pieces(data), NOTHING)
        assert len(lines(store, PUT_PART)) == 3
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert store.buckets["bucket"]["larger"].data == data


async def test_a_threshold_below_the_size_of_a_part() -> None:
    async with strict_backend(part_size=PART, multipart_threshold=1) as (backend, store):
        await backend.write("k", single(b"x"), NOTHING)
        assert lines(store, "partNumber") == []
        await backend.write("larger", pieces(bytes(PART + 1)), NOTHING)
        assert len(lines(store, PUT_PART)) == 2
        assert store.buckets["bucket"]["larger"].data == bytes(PART + 1)


async def test_the_buffer_that_is_told_follows_the_options() -> None:
    async with strict_backend(part_size=PART) as (backend, _):
        assert backend.write_buffer == 6 * PART
    async with strict_backend(part_size=PART, max_concurrency=1, multipart_threshold=3 * PART) as (
        backend,
        _,
    ):
        assert backend.write_buffer == 7 * PART


@pytest.mark.parametrize("retries", [0, 1])
async def test_max_retries_counts_for_both_clients(retries: int) -> None:
    async with strict_backend(max_retries=retries) as (backend, store):
        for call, pattern in (
            (lambda: backend.write("k", single(b"x"), NOTHING), PUT),
            (lambda: backend.stat("k"), r"^HEAD \S+/k "),
        ):
            store.fail_next(pattern, "slow down", times=10)
            with pytest.raises(Unavailable):
                await call()
            store.forgive()
            assert len(lines(store, pattern)) == retries + 1


@pytest.mark.parametrize(
    "held", [PUT, PUT_PART, r"^HEAD \S+/k ", r"^GET \S+/k ", r"list-type", r"\?uploads "]
)
async def test_case_64_upload_timeout_ends_whatever_does_not(held: str) -> None:
    async with strict_backend(part_size=PART, upload_timeout=0.5) as (backend, store):
        store.fail_next(held, "hold", times=9)

        async def calls() -> None:
            await backend.stat("k")
            await backend.write("k", single(b"x"), NOTHING)
            await backend.write("large", pieces(LARGE), NOTHING)
            await read(backend, "k")
            async for _ in backend.list():
                pass
            await backend.sweep(0.0)

        with pytest.raises(Unavailable, match="TimeoutError"):
            async with asyncio.timeout(10):
                await calls()
        assert len(lines(store, ABORT)) == (1 if held == PUT_PART else 0)


@asynccontextmanager
async def with_key() -> AsyncIterator[tuple[S3Backend, StrictS3]]:
    """A backend whose key works, and its store."""
    async with strict_s3() as store:
        store.kms_keys[KEY] = "enabled"
        endpoint = LocalStackEndpoint(store.url)
        backend = await S3Backend.connect(
            s3_options(endpoint, "bucket", part_size=PART, encryption="aws:kms", kms_key_id=KEY)
        )
        try:
            yield backend, store
        finally:
            await backend.aclose()


async def encrypted(backend: S3Backend) -> list[str]:
    """Write in each of the three ways; the keys."""
    await backend.write("k", single(b"x"), NOTHING)
    await backend.write("large", pieces(LARGE), NOTHING)
    await backend.copy_from(backend, "k", "copy", NOTHING, Promise())
    return ["k", "large", "copy"]


@pytest.mark.parametrize("encryption", ["AES256", "aws:kms"])
async def test_everything_is_encrypted_as_configured(localstack: LocalStackEndpoint, encryption: str) -> None:
    wanted = {"encryption": encryption, "storage_class": "STANDARD_IA"}
    if encryption == "aws:kms":
        async with s3_client(localstack, "kms") as kms:
            wanted["kms_key_id"] = (await kms.create_key())["KeyMetadata"]["Arn"]
    async with fronted_backend(localstack, part_size=PART, **wanted) as (backend, _):
        assert await backend.sweep(0.0) == 0, "the probe is gone"
        async with s3_client(localstack) as client:
            for key in await encrypted(backend):
                head = await client.head_object(Bucket=backend.bucket, Key=key)
                assert head["ServerSideEncryption"] == encryption
                assert head.get("SSEKMSKeyId") == wanted.get("kms_key_id")
                assert head["StorageClass"] == "STANDARD_IA"


async def test_without_options_the_bucket_decides(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, part_size=PART) as (backend, front):
        await encrypted(backend)
    assert not any("server-side-encryption" in head or "storage-class" in head for head in front.heads)


@pytest.mark.parametrize("state", ["disabled", "denied", "missing"])
async def test_case_105_a_key_that_may_not_be_used_stops_the_start(state: str) -> None:
    async with strict_s3() as store:
        store.kms_keys[KEY] = state
        wanted = s3_options(LocalStackEndpoint(store.url), "bucket", encryption="aws:kms", kms_key_id=KEY)
        with pytest.raises(PermissionDenied, match="begin the upload"):
            await S3Backend.connect(wanted)
        assert store.uploads == {}


@pytest.mark.parametrize("state", ["disabled", "denied"])
async def test_case_105_a_key_lost_later_fails_every_write_and_nothing_lies_there_in_the_clear(
    state: str,
) -> None:
    async with with_key() as (backend, store):
        await backend.write("source", single(b"x"), NOTHING)
        store.kms_keys[KEY] = state
        for call in (
            backend.write("k", single(b"x"), NOTHING),
            backend.write("large", pieces(LARGE), NOTHING),
            backend.copy_from(backend, "source", "copy", NOTHING, Promise()),
        ):
            with pytest.raises(PermissionDenied) as raised:
                await call
            assert raised.value.retryable
        assert (list(store.buckets["bucket"]), store.uploads) == (["source"], {})
        store.kms_keys[KEY] = "enabled"
        assert (await backend.write("large", pieces(LARGE), NOTHING)).created


async def test_case_105_a_key_lost_between_two_parts_fails_the_write() -> None:
    async with with_key() as (backend, store):

        async def losing() -> AsyncIterator[bytes]:
            yield bytes(PART + 1)
            async with asyncio.timeout(10):
                while not lines(store, PUT_PART):  # noqa: ASYNC110 - the store has no event for it
                    await asyncio.sleep(0.01)
            store.kms_keys[KEY] = "disabled"
            yield bytes(2 * PART)

        with pytest.raises(PermissionDenied, match=r"KMS\.DisabledException"):
            await backend.write("k", losing(), NOTHING)
        assert (store.buckets["bucket"], store.uploads) == ({}, {})


async def test_case_105_a_store_that_ignores_encryption_takes_no_writes() -> None:
    async with strict_s3() as store:
        store.encrypts = False
        wanted = s3_options(LocalStackEndpoint(store.url), "bucket", encryption="AES256")
        with pytest.raises(Unsupported, match="does not encrypt with AES256"):
            await S3Backend.connect(wanted)
        assert (store.buckets["bucket"], store.uploads) == ({}, {})


async def test_a_storage_class_that_does_not_exist_is_said(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, storage_class="COLD_CELLAR") as (backend, _):
        with pytest.raises(StorageError, match="InvalidStorageClass") as raised:
            await backend.write("k", single(b"x"), NOTHING)
        assert not raised.value.retryable
