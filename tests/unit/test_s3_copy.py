"""Copies inside one S3: proven, create-only, and without a byte of the payload passing through this process."""

import asyncio
import base64
import hashlib
import random
import re
import signal
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from backends.base import Attributes, ObjectStat, Promise, Receipt, single
from backends.errors import Conflict, IntegrityError, NotFound, Unavailable, Unsupported
from backends.s3 import S3Backend
from backends.s3_copy import CopiedParts, Original
from tests.support.localstack import LocalStackEndpoint
from tests.support.programs import begin
from tests.support.s3 import fronted_backend, new_bucket, s3_client, s3_options, strict_backend
from tests.support.strict_s3 import StrictS3, strict_s3

MIB = 1 << 20
PART = 5 * MIB
NOTHING = Attributes()
LARGE = random.Random(5).randbytes(2 * PART + 17)

CREATE = r"POST \S+\?uploads"
COPY = r"PUT \S+partNumber="
COMPLETE = r"POST \S+uploadId="
ABORT = r"DELETE \S+uploadId="
HEAD = r"HEAD \S+/source"

Strict = tuple[S3Backend, StrictS3]

COPIER = """
import asyncio, sys
from pathlib import Path
from backends.base import Attributes, Promise
from backends.s3 import S3Backend
from backends.s3_client import S3Options

async def main():
    options = S3Options.model_validate_json(sys.argv[1])
    backend = await S3Backend.connect(options)
    await backend.copy_from(backend, "source", "copy", Attributes(), Promise())

def kill(event, arguments):
    if event == "transload.failpoint" and arguments[0] == sys.argv[2]:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
asyncio.run(main())
"""


@pytest.fixture
async def strict() -> AsyncIterator[Strict]:
    async with strict_backend(part_size=PART) as pair:
        yield pair


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


def promised(data: bytes) -> Promise:
    return Promise(len(data), hashlib.sha256(data).hexdigest())


async def copied(backend: S3Backend, promise: Promise = Promise()) -> Receipt:  # noqa: B008 - it is frozen
    return await backend.copy_from(backend, "source", "copy", NOTHING, promise)


async def in_several_parts(backend: S3Backend, promise: Promise, original: Original | None = None) -> Receipt:
    """As an object of more than 5 GiB is copied."""
    head = await backend._bucket.head("source", ChecksumMode="ENABLED")
    parts = CopiedParts(
        original or Original.of(backend.bucket, "source", head),
        promise,
        concurrency=2,
        seconds=60,
        largest=PART,
        share=PART,
    )
    return await backend._upload("copy", parts, parts, NOTHING)


def lines(store: Any, pattern: str) -> list[str]:
    return [line for line in store.requests if re.search(pattern, line)]


def assert_untouched(store: StrictS3) -> None:
    assert (list(store.buckets["bucket"]), store.uploads) == (["source"], {})


async def test_a_copy_moves_no_payload_through_this_process(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, part_size=PART) as (backend, front):
        await backend.write("source", pieces(LARGE), NOTHING)
        front.carried = 0
        front.requests.clear()
        receipt = await copied(backend, promised(LARGE))
        assert (receipt.size, receipt.sha256, receipt.created) == (
            len(LARGE),
            hashlib.sha256(LARGE).hexdigest(),
            True,
        )
        assert front.carried < 4096
        assert lines(front, "^GET ") == []


async def test_a_copy_from_another_bucket(localstack: LocalStackEndpoint) -> None:
    bucket = await new_bucket(localstack)
    async with fronted_backend(localstack) as (backend, front):
        other = await S3Backend.connect(s3_options(localstack, bucket, endpoint_url=front.url))
        await other.write("a key/ü+%41", single(b"data"), NOTHING)
        receipt = await backend.copy_from(other, "a key/ü+%41", "k", NOTHING, Promise())
        await other.aclose()
        assert receipt.sha256 == hashlib.sha256(b"data").hexdigest()
        assert (await backend.stat("k")) is not None


async def test_another_endpoint_is_another_store(strict: Strict) -> None:
    backend, _ = strict
    async with strict_backend() as (other, _):
        await other.write("source", single(b"x"), NOTHING)
        with pytest.raises(Unsupported, match="inside the store"):
            await backend.copy_from(other, "source", "copy", NOTHING, Promise())


@pytest.mark.parametrize("fault", ["denied", "taken"])
async def test_what_our_own_credentials_see_otherwise_is_left_to_a_stream(strict: Strict, fault: Any) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    # The source's own look comes first.
    store.released.set()
    store.fail_next(HEAD, "hold")
    store.fail_next(HEAD, fault)
    with pytest.raises(Unsupported):
        await copied(backend)
    assert_untouched(store)


async def test_another_object_of_that_name_is_left_to_a_stream(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b"theirs"), NOTHING)

    class Elsewhere(S3Backend):
        """The source's credentials lead to another tenant's bucket of the same name."""

        async def stat(self, key: str) -> ObjectStat | None:
            there = await super().stat(key)
            return there and replace(there, etag="0" * 32)

    other = await Elsewhere.connect(s3_options(LocalStackEndpoint(store.url), "bucket"))
    with pytest.raises(Unsupported):
        await backend.copy_from(other, "source", "copy", NOTHING, Promise())
    await other.aclose()
    assert_untouched(store)


async def test_a_store_without_checksums_says_that_it_cannot_copy() -> None:
    async with strict_backend(checksums="when_required") as (backend, store):
        assert not backend.features.server_copy
        await backend.write("source", single(b"x"), NOTHING)
        with pytest.raises(Unsupported):
            await copied(backend)
        assert_untouched(store)


async def test_a_store_that_tells_no_checksum_of_the_copy_keeps_nothing(
    strict: Strict, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    monkeypatch.setattr("tests.support.strict_s3._checksum", lambda _algorithm, _data: None)
    with pytest.raises(Unsupported, match="no SHA-256"):
        await copied(backend)
    assert_untouched(store)


async def test_case_67_a_copy_of_something_else_than_promised_never_has_a_name(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b"data"), NOTHING)
    for wrong in (Promise(5), Promise(4, "0" * 64)):
        with pytest.raises(IntegrityError, match="promised w"):
            await copied(backend, wrong)
    assert lines(store, COMPLETE) == []
    assert_untouched(store)


async def test_an_empty_object_is_proven_too(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b""), NOTHING)
    with pytest.raises(IntegrityError):
        await copied(backend, Promise(0, "0" * 64))
    assert_untouched(store)
    assert (await copied(backend, promised(b""))).created


@pytest.mark.parametrize("several", [False, True], ids=["one part", "several"])
async def test_case_68_a_source_that_changes_meanwhile_fails_the_copy(strict: Strict, several: bool) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    store.requests.clear()
    store.fail_next(CREATE, "hold")
    task = asyncio.create_task(in_several_parts(backend, promised(LARGE)) if several else copied(backend))
    await store.held.wait()
    there = store.buckets["bucket"]["source"]
    store.buckets["bucket"]["source"] = replace(there, data=there.data[::-1], etag='"another"')
    store.released.set()
    with pytest.raises(Unavailable, match="changed or went"):
        await task
    assert_untouched(store)


@pytest.mark.parametrize("times", [1, 4], ids=["once", "every attempt"])
async def test_case_63_a_copy_whose_reply_is_lost_has_happened(strict: Strict, times: int) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    store.requests.clear()
    store.fail_next(COMPLETE, "lost reply", times)
    receipt = await copied(backend)
    assert (receipt.size, receipt.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert store.buckets["bucket"]["copy"].data == LARGE
    assert lines(store, "^GET ") == [], "the store's checksum tells"


async def test_case_60_a_copy_never_replaces(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    await backend.write("copy", pieces(LARGE[::-1]), NOTHING)
    with pytest.raises(Conflict, match="other content"):
        await copied(backend)
    assert store.buckets["bucket"]["copy"].data == LARGE[::-1]
    assert store.uploads == {}


async def test_case_60_copies_at_once_create_it_once(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    receipts = await asyncio.gather(*(copied(backend) for _ in range(4)))
    assert sorted(receipt.created for receipt in receipts) == [False, False, False, True]
    assert store.uploads == {}


async def test_case_61_a_conflicting_operation_is_retryable(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    store.fail_next(COMPLETE, "conflict", times=4)
    with pytest.raises(Unavailable, match="409"):
        await copied(backend)
    assert_untouched(store)


async def test_case_62_an_error_in_a_200_is_no_copy(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    store.fail_next(COPY, "error in 200", times=4)
    with pytest.raises(Unavailable, match="InternalError"):
        await copied(backend)
    assert_untouched(store)


@pytest.mark.parametrize("moment", [CREATE, COPY, COMPLETE], ids=["create", "copy", "complete"])
async def test_i6_a_cancelled_copy_leaves_nothing(strict: Strict, moment: str) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    store.fail_next(moment, "hold")
    task = asyncio.create_task(copied(backend))
    await store.held.wait()
    task.cancel()
    if moment == CREATE:
        store.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(lines(store, ABORT)) == 1
    assert_untouched(store)


async def test_case_68_a_source_that_goes_meanwhile_fails_the_copy(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", single(b"x"), NOTHING)
    store.fail_next(CREATE, "hold")
    task = asyncio.create_task(copied(backend))
    await store.held.wait()
    del store.buckets["bucket"]["source"]
    store.released.set()
    with pytest.raises(Unavailable, match="changed or went"):
        await task
    assert (store.buckets["bucket"], store.uploads) == ({}, {})
    with pytest.raises(NotFound):
        await copied(backend)


async def test_several_parts_are_held_to_the_checksum_of_the_whole(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    store.requests.clear()
    receipt = await in_several_parts(backend, promised(LARGE))
    assert (receipt.size, receipt.sha256, receipt.created) == (
        len(LARGE),
        hashlib.sha256(LARGE).hexdigest(),
        True,
    )
    assert len(lines(store, COPY)) == 3
    assert store.buckets["bucket"]["copy"].data == LARGE
    crc32 = base64.b64encode(zlib.crc32(LARGE).to_bytes(4, "big")).decode()
    complete = next(head for head in store.heads[::-1] if re.search(COMPLETE, head))
    assert f"x-amz-checksum-crc32: {crc32}" in complete.lower().replace(crc32.lower(), crc32)


async def test_several_parts_with_another_checksum_never_have_a_name(strict: Strict) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    head = await backend._bucket.head("source", ChecksumMode="ENABLED")
    wrong = replace(Original.of("bucket", "source", head), checksum=("CRC32", "AAAAAA=="))
    with pytest.raises(IntegrityError, match="BadDigest"):
        await in_several_parts(backend, promised(LARGE), wrong)
    assert_untouched(store)


async def test_several_parts_on_localstack(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, part_size=PART) as (backend, _):
        await backend.write("source", pieces(LARGE), NOTHING)
        receipt = await in_several_parts(backend, promised(LARGE))
        assert receipt.created
        async with backend.open("copy") as chunks:
            assert b"".join([chunk async for chunk in chunks]) == LARGE


@pytest.mark.parametrize("promise", [promised(LARGE), Promise(len(LARGE))], ids=["no checksum", "no promise"])
async def test_what_cannot_be_proven_is_not_begun(strict: Strict, promise: Promise) -> None:
    backend, store = strict
    await backend.write("source", pieces(LARGE), NOTHING)
    if promise.sha256 is not None:
        there = store.buckets["bucket"]["source"]
        store.buckets["bucket"]["source"] = replace(
            there, checksums={"x-amz-checksum-crc32": "AAAAAA==-3", "x-amz-checksum-type": "COMPOSITE"}
        )
    store.requests.clear()
    with pytest.raises(Unsupported, match="too large to be copied"):
        await in_several_parts(backend, promise)
    assert lines(store, CREATE) == []


@pytest.mark.parametrize(
    ("failpoint", "left"),
    [
        ("s3.copy.before", (["source"], 1)),
        ("s3.copy.after", (["source"], 1)),
        ("s3.complete.after", (["source", "copy"], 0)),
    ],
)
async def test_what_a_killed_copy_leaves_is_swept(failpoint: str, left: tuple[list[str], int]) -> None:
    async with strict_s3() as store:
        options = s3_options(LocalStackEndpoint(store.url), "bucket")
        backend = await S3Backend.connect(options)
        await backend.write("source", single(b"x"), NOTHING)
        child = await begin("-c", COPIER, options.model_dump_json(), failpoint)
        async with asyncio.timeout(30):
            assert await child.wait() == -signal.SIGKILL
        assert (list(store.buckets["bucket"]), await backend.sweep(0.0)) == left
        assert (await copied(backend)).created is (failpoint != "s3.complete.after")
        await backend.aclose()


@pytest.mark.slow
async def test_a_gibibyte_is_copied_without_a_byte_of_it_passing_through(
    localstack: LocalStackEndpoint,
) -> None:
    size = 1 << 30
    chunk = random.Random(1).randbytes(MIB)
    digest = hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(size // MIB):
            piece = number.to_bytes(8, "big") + chunk[8:]
            await asyncio.to_thread(digest.update, piece)
            yield piece

    async with fronted_backend(localstack) as (backend, front):
        written = await backend.write("source", chunks(), NOTHING)
        front.carried = 0
        front.requests.clear()
        receipt = await copied(backend, Promise(size, digest.hexdigest()))
        assert (receipt.size, receipt.sha256, receipt.created) == (size, written.sha256, True)
        assert front.carried < 4096
        assert lines(front, "^GET ") == []
        stat = await backend.stat("copy")
        assert stat is not None
        assert stat.size == size
        async with s3_client(localstack) as client:
            for key in ("source", "copy"):
                await client.delete_object(Bucket=backend.bucket, Key=key)
