"""What only S3 promises, beyond the suite every backend passes (tests/conformance)."""

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from backends.base import Attributes, single
from backends.errors import Conflict, InvalidKey, NotFound, StorageError, Unavailable
from backends.header_metadata import encode_metadata
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from backends.s3_metadata import METADATA_LIMIT
from backends.s3_multipart import MAX_PART_SIZE, MAX_PARTS
from backends.s3_parts import part_length
from tests.support.localstack import LocalStackEndpoint
from tests.support.processes import free_port
from tests.support.s3 import fronted_backend, s3_client, s3_options
from tests.support.s3_front import Front

MIB = 1 << 20
PART = 5 * MIB
NOTHING = Attributes()
LARGE = random.Random(7).randbytes(2 * PART + 17)
OTHER = LARGE[:-1] + b"?"

CREATE = r"POST \S+\?uploads"
PUT_PART = r"PUT \S+partNumber="
COMPLETE = r"POST \S+uploadId="
ABORT = r"DELETE \S+uploadId="

Fronted = tuple[S3Backend, Front]


@pytest.fixture
async def fronted(localstack: LocalStackEndpoint) -> AsyncIterator[Fronted]:
    async with fronted_backend(localstack, part_size=PART) as pair:
        yield pair


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def read(backend: S3Backend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is the front's, which has no event for it
            await asyncio.sleep(0.01)


async def assert_no_trace(backend: S3Backend, key: str) -> None:
    assert await backend.stat(key) is None
    assert await backend.sweep(0.0) == 0


def lines(front: Front, pattern: str) -> list[str]:
    return [line for line in front.requests if re.search(pattern, line)]


@pytest.mark.parametrize("first", [5 * MIB, 8 * MIB, 512 * MIB])
def test_case_65_ten_thousand_parts_hold_five_tebibytes(first: int) -> None:
    lengths = [part_length(number, first) for number in range(1, MAX_PARTS + 1)]
    assert sum(lengths) >= 5 << 40
    assert max(lengths) <= MAX_PART_SIZE
    assert lengths == sorted(lengths)
    assert set(lengths[:900]) == {first}


def test_there_is_no_part_ten_thousand_and_one() -> None:
    with pytest.raises(StorageError, match="part_size"):
        part_length(MAX_PARTS + 1, PART)


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=5))
def test_metadata_is_ascii_in_lower_case_and_comes_back(metadata: dict[str, str]) -> None:
    encodable = {
        n.encode(errors="replace").decode(): v.encode(errors="replace").decode() for n, v in metadata.items()
    }
    encoded = encode_metadata(metadata, limit=1 << 20)
    assert all(name.isascii() and name == name.lower() and " " not in name for name in encoded)
    assert all(value.isascii() and value.isprintable() and " " not in value for value in encoded.values())
    assert {unquote(name): unquote(value) for name, value in encoded.items()} == encodable


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=30), st.text("aé😀 ", max_size=1500), max_size=8),
    st.integers(0, METADATA_LIMIT),
)
def test_metadata_is_cut_to_the_limit_at_whole_characters(metadata: dict[str, str], limit: int) -> None:
    encoded = encode_metadata(metadata, limit)
    assert sum(map(len, encoded)) + sum(map(len, encoded.values())) <= limit
    for name, value in encoded.items():
        assert metadata[name].startswith(unquote(value, errors="strict"))


def test_only_the_longest_values_are_cut() -> None:
    encoded = encode_metadata(
        {"a": "x" * 5000, "b": "short", "c": "y" * 3000, "d": "z" * 600}, METADATA_LIMIT
    )
    assert (encoded["b"], encoded["d"]) == ("short", "z" * 600)
    assert len(encoded["a"]) == len(encoded["c"]) == (METADATA_LIMIT - 4 - 5 - 600) // 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_key_id": "AKIA"},
        {"secret_access_key": "s"},
        {"session_token": "t"},
        {"part_size": MIB},
        {"buckt": "b"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_incomplete_or_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        S3Options(**{"bucket": "bucket", **wrong})


@pytest.mark.parametrize(
    ("options", "by_path"),
    [
        ({}, False),
        ({"endpoint_url": "http://store"}, True),
        ({"endpoint_url": "http://store", "path_style": False}, False),
        ({"bucket": "dotted.name"}, True),
    ],
)
def test_path_style_follows_the_endpoint_unless_said(options: dict[str, Any], by_path: bool) -> None:
    assert S3Options(**{"bucket": "bucket", **options}).by_path is by_path


async def test_i6_nothing_is_left_when_the_source_breaks_between_parts(fronted: Fronted) -> None:
    backend, front = fronted
    broke = RuntimeError("the source broke")

    async def breaking() -> AsyncIterator[bytes]:
        async for piece in pieces(LARGE):
            yield piece
        await until(lambda: len(lines(front, PUT_PART)) > 0)
        raise broke

    with pytest.raises(RuntimeError) as raised:
        await backend.write("k", breaking(), NOTHING)
    assert raised.value is broke
    assert len(lines(front, ABORT)) == 1
    await assert_no_trace(backend, "k")


@pytest.mark.parametrize("moment", [CREATE, PUT_PART, COMPLETE], ids=["create", "part", "complete"])
async def test_i6_nothing_is_left_when_cancelled_while_a_request_is_under_way(
    fronted: Fronted, moment: str
) -> None:
    backend, front = fronted
    front.fail_next(moment, "hold")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await front.held.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    if moment == CREATE:
        front.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(lines(front, ABORT)) == 1
    await assert_no_trace(backend, "k")


async def test_parts_in_flight_are_bounded(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, part_size=PART, max_concurrency=2) as (backend, front):
        taken = 0
        greedy = asyncio.Event()

        async def counted() -> AsyncIterator[bytes]:
            nonlocal taken
            for _ in range(30):
                taken += 1
                if taken > 3 * 5 + 1:
                    greedy.set()
                yield bytes(MIB)

        front.fail_next(PUT_PART, "hold", times=2)
        task = asyncio.create_task(backend.write("k", counted(), NOTHING))
        await until(lambda: len(lines(front, PUT_PART)) == 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(greedy.wait(), 0.3)
        assert len(lines(front, PUT_PART)) == 2
        front.released.set()
        assert (await task).size == 30 * MIB


async def test_a_large_object_is_written_in_parts_with_checksums(fronted: Fronted) -> None:
    backend, front = fronted
    receipt = await backend.write("k", pieces(LARGE), NOTHING)
    assert (receipt.size, receipt.sha256, receipt.created) == (
        len(LARGE),
        hashlib.sha256(LARGE).hexdigest(),
        True,
    )
    assert len(lines(front, PUT_PART)) == 3
    heads = [head.lower() for head in front.heads if "partNumber=" in head]
    assert all("x-amz-checksum-crc32" in head for head in heads)
    complete = next(head.lower() for head in front.heads if head.startswith("POST") and "uploadId=" in head)
    assert "if-none-match: *" in complete
    assert await read(backend, "k") == LARGE


async def test_exactly_one_part_is_a_single_put(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", single(LARGE[:PART]), NOTHING)
    assert lines(front, CREATE) == []
    assert any("x-amz-checksum-sha256" in head.lower() for head in front.heads if head.startswith("PUT"))
    assert await read(backend, "k") == LARGE[:PART]


async def test_a_store_without_checksum_headers_gets_none(localstack: LocalStackEndpoint) -> None:
    async with fronted_backend(localstack, part_size=PART, checksums="when_required") as (backend, front):
        await backend.write("large", pieces(LARGE), NOTHING)
        await backend.write("small", single(b"x"), NOTHING)
        assert await read(backend, "large") == LARGE
    assert not any(
        "x-amz-checksum" in head.lower() or "x-amz-sdk-checksum" in head.lower() for head in front.heads
    )
    signed = [head.lower() for head in front.heads if head.startswith("PUT")]
    assert len(signed) == 4
    assert not any("unsigned-payload" in head for head in signed)


async def test_case_60_the_same_again_after_a_lost_receipt_and_other_content(fronted: Fronted) -> None:
    backend, _ = fronted
    first = await backend.write("k", pieces(LARGE), NOTHING)
    again = await backend.write("k", pieces(LARGE), NOTHING)
    assert (first.created, again.created) == (True, False)
    assert (again.sha256, again.etag) == (first.sha256, first.etag)
    with pytest.raises(Conflict, match="other content"):
        await backend.write("k", pieces(OTHER), NOTHING)
    assert await read(backend, "k") == LARGE
    assert await backend.sweep(0.0) == 0


@pytest.mark.parametrize("times", [1, 4], ids=["once", "every attempt"])
async def test_case_63_a_complete_whose_reply_is_lost_has_happened(fronted: Fronted, times: int) -> None:
    backend, front = fronted
    front.fail_next(COMPLETE, "lost reply", times)
    receipt = await backend.write("k", pieces(LARGE), NOTHING)
    assert (receipt.size, receipt.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert await read(backend, "k") == LARGE
    assert await backend.sweep(0.0) == 0


async def test_case_61_a_conflicting_operation_at_complete_is_retryable_and_starts_over(
    fronted: Fronted,
) -> None:
    backend, front = fronted
    front.fail_next(COMPLETE, "conflict", times=4)
    with pytest.raises(Unavailable, match="409") as raised:
        await backend.write("k", pieces(LARGE), NOTHING)
    assert raised.value.retryable
    await assert_no_trace(backend, "k")
    front.forgive()
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created
    assert len(lines(front, CREATE)) == 2


async def test_case_62_an_error_document_in_a_200_is_a_failure(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(COMPLETE, "error in 200", times=4)
    with pytest.raises(Unavailable, match="InternalError"):
        await backend.write("k", pieces(LARGE), NOTHING)
    await assert_no_trace(backend, "k")


async def test_a_part_that_fails_for_good_fails_the_write(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(r"partNumber=2", "slow down", times=4)
    with pytest.raises(Unavailable, match="part 2"):
        await backend.write("k", pieces(LARGE), NOTHING)
    await assert_no_trace(backend, "k")


async def test_a_store_that_throttles_is_unavailable_everywhere(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next("k", "slow down", times=12)
    for call in (backend.write("k", single(b"x"), NOTHING), backend.stat("k"), read(backend, "k")):
        with pytest.raises(Unavailable):
            await call
    front.forgive()
    assert await backend.stat("k") is None


async def test_case_67_a_read_that_is_cut_goes_on_or_fails_but_never_ends_short(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", pieces(LARGE), NOTHING)
    front.fail_next("GET", "cut")
    assert await read(backend, "k") == LARGE
    front.fail_next("GET", "cut", times=40)
    with pytest.raises(Unavailable):
        await read(backend, "k")


async def test_sweep_keeps_the_young_and_other_prefixes(
    localstack: LocalStackEndpoint, fronted: Fronted
) -> None:
    backend, _ = fronted
    bucket = backend.location.removeprefix("s3://").rstrip("/")
    async with s3_client(localstack) as client:
        for key in ("a/1", "a/2", "b/1"):
            await client.create_multipart_upload(Bucket=bucket, Key=key)
    assert await backend.sweep(3600.0) == 0
    assert await backend.sweep(0.0, prefix="a/") == 2
    assert await backend.sweep(0.0) == 1


async def test_names_of_metadata_survive(fronted: Fronted) -> None:
    backend, _ = fronted
    metadata = {"Recipe-ID": "fr", "content-type": "x", "größe": "", "a b": " spaced  out ", "50%": "%41"}
    for key, data in (("small", b"x"), ("large", LARGE)):
        await backend.write(key, pieces(data), Attributes("text/plain", metadata))
        stat = await backend.stat(key)
        assert stat is not None
        assert (stat.content_type, dict(stat.metadata)) == ("text/plain", metadata)


@pytest.mark.parametrize("key", ["line\nfeed", "bell\x07", "delete\x7f"])
async def test_control_characters_in_keys_are_refused(fronted: Fronted, key: str) -> None:
    backend, _ = fronted
    with pytest.raises(InvalidKey, match="control character"):
        await backend.write(key, single(b"x"), NOTHING)
    with pytest.raises(InvalidKey, match="control character"):
        await backend.stat(key)


async def test_a_missing_bucket_is_named_with_the_command_that_makes_it(
    localstack: LocalStackEndpoint,
) -> None:
    with pytest.raises(
        NotFound,
        match="bucket no-such-bucket-here does not exist; create it with: transload provision, or aws s3api",
    ):
        await S3Backend.connect(s3_options(localstack, "no-such-bucket-here"))


async def test_case_99_nobody_listening_is_unavailable_and_no_secret_is_told(
    localstack: LocalStackEndpoint,
) -> None:
    canary = "canary-3f1c"
    options = s3_options(
        localstack,
        "bucket",
        endpoint_url=f"http://127.0.0.1:{free_port()}",
        secret_access_key=SecretStr(canary),
    )
    assert canary not in repr(options)
    with pytest.raises(Unavailable) as raised:
        await S3Backend.connect(options)
    assert canary not in repr(raised.value) + repr(raised.value.__cause__)


async def test_an_unknown_profile_is_a_storage_error(localstack: LocalStackEndpoint) -> None:
    options = S3Options(bucket="bucket", endpoint_url=localstack.endpoint_url, profile="no-such-profile")
    with pytest.raises(StorageError, match="ProfileNotFound"):
        await S3Backend.connect(options)


async def test_both_clients_sign_with_the_profile(
    localstack: LocalStackEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[mine]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = s\naws_session_token = tok\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e")
    async with fronted_backend(localstack, profile="mine", access_key_id=None, secret_access_key=None) as (
        backend,
        front,
    ):
        await backend.write("k", single(b"x"), NOTHING)
        assert await read(backend, "k") == b"x"
        assert await backend.stat("k") is not None
    assert {head.split(" ", 1)[0] for head in front.heads} >= {"PUT", "GET", "HEAD"}
    assert all("Credential=AKIAPROFILE/" in head for head in front.heads)
    assert all("\r\nx-amz-security-token: tok" in head.lower() for head in front.heads)
