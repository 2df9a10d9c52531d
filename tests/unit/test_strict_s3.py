"""The S3 adapter on an S3 as strict as AWS, where LocalStack is too kind; and that S3 itself."""

import asyncio
import base64
import hashlib
import random
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from backends.base import Attributes, StorageBackend
from backends.errors import Conflict, IntegrityError, Unavailable
from backends.s3 import S3Backend
from backends.testing import BackendConformance, Truth
from backends.testing.material import KEYS
from tests.support.s3 import strict_backend
from tests.support.strict_s3 import StrictS3

MIB = 1 << 20
PART = 5 * MIB
NOTHING = Attributes()
LARGE = random.Random(3).randbytes(2 * PART + 17)
SMALL = b"small" * 100

PUT = r"^PUT \S+/k "
PUT_PART = r"PUT \S+partNumber="
COMPLETE = r"POST \S+uploadId="

Strict = tuple[S3Backend, StrictS3]


@pytest.fixture
async def strict() -> AsyncIterator[Strict]:
    async with strict_backend(part_size=PART) as pair:
        yield pair


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


class TestStrictS3(Truth):
    """What every backend promises, as far as the store has a part in it: the store is a fair one."""

    test_what_is_written_is_read_back = BackendConformance.test_what_is_written_is_read_back
    test_the_same_again_is_not_created = BackendConformance.test_the_same_again_is_not_created
    test_other_content = BackendConformance.test_case_60_other_content_is_a_conflict_and_the_old_stays
    test_missing_objects = BackendConformance.test_missing_objects
    test_delete = BackendConformance.test_delete_tells_whether_it_was_there
    test_list = BackendConformance.test_list_goes_by_string_prefix_in_key_order
    test_list_in_pages = BackendConformance.test_list_is_complete_beyond_a_page
    test_attributes = BackendConformance.test_attributes_come_back
    test_attributes_of_parts = BackendConformance.test_attributes_of_a_large_object_come_back
    test_a_sweep = BackendConformance.test_i6_what_killed_writers_left_is_swept_once_it_is_old

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        assert isinstance(backend, S3Backend)
        where = {"Bucket": "bucket", "Key": key}
        upload_id = (await backend._client.create_multipart_upload(**where))["UploadId"]
        await backend._client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=b"half")
        return 1

    @pytest.fixture
    async def backend(self) -> AsyncIterator[StorageBackend]:
        async with strict_backend() as (backend, _):
            yield backend


async def test_keys_are_kept_as_they_are(strict: Strict) -> None:
    backend, store = strict
    for key in KEYS:
        await backend.write(key, pieces(key.encode()), NOTHING)
    assert {key: there.data for key, there in store.buckets["bucket"].items()} == {
        k: k.encode() for k in KEYS
    }
    assert [stat.key async for stat in backend.list()] == sorted(KEYS)


async def test_case_60_of_many_writers_of_one_key_one_creates_it(strict: Strict) -> None:
    backend, store = strict
    receipts = await asyncio.gather(*(backend.write("k", pieces(LARGE), NOTHING) for _ in range(4)))
    assert sorted(receipt.created for receipt in receipts) == [False, False, False, True]
    assert len({receipt.sha256 for receipt in receipts}) == 1
    with pytest.raises(Conflict, match="other content"):
        await backend.write("k", pieces(LARGE[:-1]), NOTHING)
    assert store.uploads == {}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["put", "multipart"])
async def test_case_61_a_conflict_is_retryable_and_the_next_attempt_starts_over(
    strict: Strict, data: bytes
) -> None:
    backend, store = strict
    store.fail_next(PUT if data is SMALL else COMPLETE, "conflict", times=20)
    with pytest.raises(Unavailable, match="409") as raised:
        await backend.write("k", pieces(data), NOTHING)
    assert raised.value.retryable
    assert (store.buckets["bucket"], store.uploads) == ({}, {})
    store.forgive()
    assert (await backend.write("k", pieces(data), NOTHING)).created
    assert store.buckets["bucket"]["k"].data == data


async def test_case_62_an_error_document_in_a_200_is_a_failure(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(COMPLETE, "error in 200", times=20)
    with pytest.raises(Unavailable, match="InternalError"):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert (store.buckets["bucket"], store.uploads) == ({}, {})


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["put", "multipart"])
async def test_case_63_a_write_whose_reply_is_lost_has_happened(strict: Strict, data: bytes) -> None:
    backend, store = strict
    store.fail_next(PUT if data is SMALL else COMPLETE, "lost reply")
    receipt = await backend.write("k", pieces(data), NOTHING)
    assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.buckets["bucket"]["k"].data == data
    assert store.uploads == {}


@pytest.mark.parametrize("fault", ["slow down", "internal error"])
async def test_brief_trouble_passes_unnoticed(strict: Strict, fault: Any) -> None:
    backend, store = strict
    store.fail_next(PUT_PART, fault)
    store.fail_next(COMPLETE, fault)
    store.fail_next(PUT, fault)
    assert (await backend.write("large", pieces(LARGE), NOTHING)).created
    assert (await backend.write("k", pieces(SMALL), NOTHING)).created


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["put", "multipart"])
async def test_case_66_what_is_damaged_on_the_way_never_gets_a_name(data: bytes, checksums: str) -> None:
    async with strict_backend(part_size=PART, checksums=checksums) as (backend, store):
        store.fail_next(PUT if data is SMALL else r"partNumber=2", "corrupt", times=20)
        with pytest.raises(IntegrityError) as raised:
            await backend.write("k", pieces(data), NOTHING)
        assert raised.value.retryable
        assert (store.buckets["bucket"], store.uploads) == ({}, {})
        store.forgive()
        assert (await backend.write("k", pieces(data), NOTHING)).created
        assert store.buckets["bucket"]["k"].data == data


async def test_an_invalid_part_fails_the_write_and_leaves_nothing(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(COMPLETE, "invalid part")
    with pytest.raises(Unavailable, match="InvalidPart"):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert (store.buckets["bucket"], store.uploads) == ({}, {})


async def begun(backend: S3Backend, sizes: tuple[int, ...]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """An open upload of parts of these sizes, and how a Complete names them."""
    client = backend._client
    where = {"Bucket": "bucket", "Key": "k"}
    where["UploadId"] = (await client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32"))["UploadId"]
    parts: list[dict[str, Any]] = []
    for number, size in enumerate(sizes, 1):
        crc = base64.b64encode(zlib.crc32(bytes(size)).to_bytes(4, "big")).decode()
        answer = await client.upload_part(**where, PartNumber=number, Body=bytes(size), ChecksumCRC32=crc)
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc})
    return where, parts


@pytest.mark.parametrize(
    ("sizes", "change", "code"),
    [
        ((PART, 1), lambda parts: parts[::-1], "InvalidPartOrder"),
        ((PART, 1), lambda parts: [parts[0], parts[1] | {"PartNumber": 3}], "InvalidPart"),
        ((PART, 1), lambda parts: [parts[0], parts[1] | {"ETag": parts[0]["ETag"]}], "InvalidPart"),
        ((PART, 1), lambda parts: [parts[0], parts[1] | {"ChecksumCRC32": "AAAAAA=="}], "InvalidPart"),
        (
            (PART, 1),
            lambda parts: [{n: v for n, v in p.items() if n != "ChecksumCRC32"} for p in parts],
            "InvalidPart",
        ),
        ((PART - 1, 1), lambda parts: parts, "EntityTooSmall"),
    ],
    ids=["order", "number", "etag", "checksum", "no checksum", "size"],
)
async def test_a_complete_has_to_name_the_parts_as_they_are(
    strict: Strict, sizes: tuple[int, ...], change: Any, code: str
) -> None:
    backend, store = strict
    where, parts = await begun(backend, sizes)
    with pytest.raises(ClientError) as raised:
        await backend._client.complete_multipart_upload(**where, MultipartUpload={"Parts": change(parts)})
    assert raised.value.response["Error"]["Code"] == code
    assert store.buckets["bucket"] == {}


async def test_a_finished_upload_is_gone(strict: Strict) -> None:
    backend, store = strict
    where, parts = await begun(backend, (PART, 1))
    done = await backend._client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert done["ETag"].endswith('-2"')
    assert len(store.buckets["bucket"]["k"].data) == PART + 1
    for call in (
        backend._client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts}),
        backend._client.abort_multipart_upload(**where),
        backend._client.upload_part(**where, PartNumber=1, Body=b"x"),
    ):
        with pytest.raises(ClientError) as raised:
            await call
        assert raised.value.response["Error"]["Code"] == "NoSuchUpload"


async def test_metadata_ends_at_two_kilobytes(strict: Strict) -> None:
    backend, _ = strict
    with pytest.raises(ClientError) as raised:
        await backend._client.put_object(
            Bucket="bucket", Key="k", Body=b"", Metadata={"a": "x" * 1024, "b": "y" * 1023}
        )
    assert raised.value.response["Error"]["Code"] == "MetadataTooLarge"
