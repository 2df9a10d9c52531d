"""The checksum a target of S3 asks for: sent with every request, of the whole at the end, and nothing lies there that has another."""

import base64
import hashlib
import random
import re
from collections.abc import AsyncIterator

import google_crc32c
import pytest

from backends.base import Attributes, Promise, single
from backends.checksums import Algorithm, running
from backends.errors import IntegrityError, Unsupported
from backends.s3 import S3Backend
from backends.s3_checksums import shown_by
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import fronted_backend, s3_client, s3_options, strict_backend
from tests.support.strict_s3 import strict_s3

PART = 5 << 20
SMALL = b"data"
LARGE = random.Random(9).randbytes(PART + 17)
NOTHING = Attributes("text/plain", {"a": "b"})
PUT = r"^PUT \S+/k "
CHOICES: tuple[Algorithm, ...] = ("crc32c", "crc64nvme", "md5")

both_sizes = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["put", "multipart"])
each_choice = pytest.mark.parametrize("choice", CHOICES)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


def hex_of(algorithm: Algorithm, data: bytes) -> str:
    checksum = running(algorithm)
    checksum.update(data)
    return checksum.digest().hex()


@both_sizes
@each_choice
async def test_the_store_tells_it_of_what_lies_there(
    localstack: LocalStackEndpoint, choice: Algorithm, data: bytes
) -> None:
    """LocalStack computes with botocore's and its own code, not with ours."""
    async with fronted_backend(localstack, part_size=PART, checksums=choice) as (backend, front):
        receipt = await backend.write("k", pieces(data), NOTHING)
        assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (await backend.write("k", pieces(data), NOTHING)).created is False
        stat = await backend.stat("k")
        assert stat is not None
        assert (stat.content_type, stat.metadata, stat.etag) == ("text/plain", {"a": "b"}, receipt.etag)
        async with s3_client(localstack) as client:
            head = await client.head_object(Bucket=backend.bucket, Key="k", ChecksumMode="ENABLED")
        if choice != "md5":
            assert shown_by(head) == {choice: hex_of(choice, data)}
        puts = [head.lower() for head in front.heads if head.startswith("PUT")]
        wanted = "content-md5: " if choice == "md5" else f"x-amz-checksum-{choice}: "
        assert puts
        assert all(wanted in head for head in puts)
        assert await backend.sweep(0.0) == 0


@both_sizes
@each_choice
async def test_case_66_a_bit_flipped_on_the_way_is_no_object(choice: Algorithm, data: bytes) -> None:
    async with strict_backend(part_size=PART, checksums=choice) as (backend, store):
        store.fail_next(PUT if data is SMALL else "partNumber=2", "corrupt", times=20)
        with pytest.raises(IntegrityError) as raised:
            await backend.write("k", pieces(data), NOTHING)
        assert raised.value.retryable
        assert (store.buckets["bucket"], store.uploads) == ({}, {})
        store.forgive()
        assert (await backend.write("k", pieces(data), NOTHING)).created
        assert store.buckets["bucket"]["k"].data == data


@both_sizes
@each_choice
async def test_case_66_a_bit_flipped_in_the_store_is_no_object(choice: Algorithm, data: bytes) -> None:
    """What was verified on its way is damaged before it lies there; the store tells what it has."""
    async with strict_backend(part_size=PART, checksums=choice) as (backend, store):
        store.fail_next(PUT if data is SMALL else "partNumber=2", "rot")
        with pytest.raises(IntegrityError) as raised:
            await backend.write("k", pieces(data), NOTHING)
        assert raised.value.retryable
        assert (store.buckets["bucket"], store.uploads) == ({}, {})
        assert (await backend.write("k", pieces(data), NOTHING)).created


async def test_with_a_kms_key_an_etag_is_no_md5() -> None:
    key = "arn:aws:kms:us-east-1:000000000000:key/1"
    async with strict_s3() as store:
        store.kms_keys[key] = "enabled"
        options = s3_options(
            LocalStackEndpoint(store.url), "bucket", checksums="md5", encryption="aws:kms", kms_key_id=key
        )
        backend = await S3Backend.connect(options)
        store.fail_next(PUT, "rot")
        assert (await backend.write("k", single(SMALL), NOTHING)).created
        await backend.aclose()


@pytest.mark.parametrize("choice", ["crc32c", "crc64nvme"])
async def test_a_store_that_does_not_know_the_checksum_takes_no_writes(choice: Algorithm) -> None:
    async with strict_s3() as store:
        store.checks = False
        with pytest.raises(Unsupported, match=f"does not verify {choice.upper()}.*checksums: {choice}"):
            await S3Backend.connect(s3_options(LocalStackEndpoint(store.url), "bucket", checksums=choice))
        assert store.uploads == {}


async def test_a_store_whose_etags_are_no_md5s_takes_no_writes_with_md5() -> None:
    """Each write would be done, found to be something else, and taken away again."""
    async with strict_s3() as store:
        store.tells_md5 = False
        endpoint = LocalStackEndpoint(store.url)
        with pytest.raises(Unsupported, match=r"ETags are no MD5s: .*checksums: md5"):
            await S3Backend.connect(s3_options(endpoint, "bucket", checksums="md5"))
        assert (store.uploads, store.buckets["bucket"]) == ({}, {})
        backend = await S3Backend.connect(s3_options(endpoint, "bucket", checksums="when_required"))
        assert (await backend.write("k", single(SMALL), NOTHING)).created
        await backend.aclose()


@both_sizes
async def test_a_store_that_forgets_it_later_does_not_get_away_with_it(data: bytes) -> None:
    async with strict_backend(part_size=PART, checksums="crc32c") as (backend, store):
        store.checks = False
        with pytest.raises((IntegrityError, Unsupported)):
            await backend.write("k", pieces(data), NOTHING)
        assert (store.buckets["bucket"], store.uploads) == ({}, {})


async def test_what_cannot_be_removed_is_named() -> None:
    async with strict_backend(checksums="crc32c", max_retries=0) as (backend, store):
        store.fail_next(PUT, "rot")
        store.fail_next("^DELETE ", "denied")
        with pytest.raises(IntegrityError, match=r"remove it .*AccessDenied"):
            await backend.write("k", single(SMALL), NOTHING)


@both_sizes
@each_choice
async def test_case_63_a_lost_answer_is_found_to_have_been_a_success(choice: Algorithm, data: bytes) -> None:
    async with strict_backend(part_size=PART, checksums=choice) as (backend, store):
        store.fail_next(PUT if data is SMALL else r"^POST \S+uploadId=", "lost reply")
        receipt = await backend.write("k", pieces(data), NOTHING)
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert (store.buckets["bucket"]["k"].data, store.uploads) == (data, {})


@pytest.mark.parametrize("conditional", ["always", "never"])
@each_choice
async def test_what_lies_there_is_left_as_it_is(choice: Algorithm, conditional: str) -> None:
    async with strict_backend(checksums=choice, conditional_writes=conditional) as (backend, store):
        assert (await backend.write("k", single(SMALL), NOTHING)).created
        assert not (await backend.write("k", single(SMALL), NOTHING)).created
        with pytest.raises(Exception, match="other content"):
            await backend.write("k", single(b"other"), NOTHING)
        assert store.buckets["bucket"]["k"].data == SMALL


def promise(data: bytes, algorithm: Algorithm, told: str | None = None) -> Promise:
    checksums = {algorithm: hex_of(algorithm, data) if told is None else told}
    return Promise(len(data), hashlib.sha256(data).hexdigest(), checksums)


@both_sizes
@pytest.mark.parametrize("choice", ["crc32c", "crc64nvme"])
async def test_a_copy_of_what_the_store_shows_to_be_promised(
    localstack: LocalStackEndpoint, choice: Algorithm, data: bytes
) -> None:
    async with fronted_backend(localstack, part_size=PART, checksums=choice) as (backend, front):
        await backend.write("k", pieces(data), NOTHING)
        before = front.carried
        receipt = await backend.copy_from(backend, "k", "copy", NOTHING, promise(data, choice))
        assert receipt.sha256 == hashlib.sha256(data).hexdigest()
        assert front.carried - before < 4096


@pytest.mark.parametrize("size", [0, 4])
async def test_a_copy_is_refused_where_the_store_shows_no_such_checksum(size: int) -> None:
    async with strict_backend() as (backend, store):
        data = bytes(size)
        await backend.write("k", single(data), NOTHING)
        with pytest.raises(Unsupported, match="no crc64nvme"):
            await backend.copy_from(backend, "k", "copy", NOTHING, promise(data, "crc64nvme"))
        assert list(store.buckets["bucket"]) == ["k"]


async def test_a_copy_of_something_else_than_promised_is_none() -> None:
    async with strict_backend(checksums="crc32c") as (backend, store):
        await backend.write("k", single(SMALL), NOTHING)
        with pytest.raises(IntegrityError, match="crc32c"):
            await backend.copy_from(backend, "k", "copy", NOTHING, promise(SMALL, "crc32c", "00000000"))
        lone = Promise(4, None, {"crc32c": hex_of("crc32c", SMALL)})
        with pytest.raises(Unsupported, match="without a promised SHA-256"):
            await backend.copy_from(backend, "k", "copy", NOTHING, lone)
        assert list(store.buckets["bucket"]) == ["k"]


async def test_an_etag_that_is_the_promised_md5_shows_it() -> None:
    async with strict_backend() as (backend, store):
        await backend.write("k", single(SMALL), NOTHING)
        await backend.copy_from(backend, "k", "copy", NOTHING, promise(SMALL, "md5"))
        with pytest.raises(Unsupported, match="no md5"):
            await backend.copy_from(backend, "k", "other", NOTHING, promise(b"DATA", "md5"))
        assert sorted(store.buckets["bucket"]) == ["copy", "k"]


async def test_the_crc32c_that_is_sent_is_that_of_another_library() -> None:
    async with strict_backend(checksums="crc32c") as (backend, store):
        await backend.write("k", single(SMALL), NOTHING)
        sent = re.search(r"x-amz-checksum-crc32c: (\S+)", store.heads[-1], re.IGNORECASE)
        assert sent is not None
        assert base64.b64decode(sent[1]) == google_crc32c.value(SMALL).to_bytes(4, "big")
