"""The suite for Google Cloud Storage: all of it on the strict fake, on the emulator what that can prove; and what only GCS promises."""

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import google_crc32c
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr, ValidationError

from backends.base import CHUNK_SIZE, Attributes, Promise, StorageBackend, single
from backends.errors import (
    Conflict,
    IntegrityError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)
from backends.gcs import GcsBackend
from backends.gcs_options import GRAIN, GcsOptions
from backends.gcs_resources import DIGEST, Crc32c, crc32c_in
from backends.testing import BackendConformance
from backends.testing.material import NOTHING, some_bytes
from tests.support.gcs import CHUNK, GcsEmulator, gcs_backend, gcs_options, strict_backend
from tests.support.processes import free_port
from tests.support.strict_gcs import StrictGcs, strict_gcs
from tests.support.toxics import Proxy

LARGE = some_bytes(2 * CHUNK + 17, seed=5)
OTHER = LARGE[:-1] + b"?"
TWINS = ("08e7a054aeab2aa2", "8d0c330ee85ab2e3")
"""Two contents of one size and one CRC32C, in hex."""

INSERT = "POST .*uploadType=multipart"
BEGIN = "POST .*uploadType=resumable"
PUT = "PUT /session"
FIRST = r"PUT /session.* bytes 0-\d+/\*$"
LAST = r"PUT /session.* bytes \d+-\d+/\d+$"
ASKED = r"PUT /session.* bytes \*/"
CANCEL = "DELETE /session"
READ = "GET .*alt=media"
LOOK = r"GET \S+/o/\w+\?$"
NOTE = "PATCH "
REWRITE = "POST .*rewriteTo"

Strict = tuple[GcsBackend, StrictGcs]


class TestGcsBackend(BackendConformance):
    """Everything, on a store as strict as Google's."""

    @pytest.fixture
    async def backend(self) -> AsyncIterator[StorageBackend]:
        async with strict_backend() as (backend, _):
            yield backend

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        """A session with half an object in it: nobody can find it but by its URL, and it is no object."""
        assert isinstance(backend, GcsBackend)
        client, bucket = backend.bucket.client, backend.bucket.name
        url = client.url("upload/storage/v1", "b", bucket, "o", uploadType="resumable", name=key)
        session = (await client.call("POST", url, "abandon")).headers["Location"]
        extent = {"Content-Range": f"bytes 0-{GRAIN - 1}/*"}
        assert (await client.once("PUT", session, "abandon", bytes(GRAIN), extent)).status == 308
        return 0


UNPROVABLE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        [
            "test_the_same_again_is_not_created",
            "test_case_60_other_content_is_a_conflict_and_the_old_stays",
            "test_identical_writers_at_once_all_succeed",
            "test_of_different_writers_at_once_one_wins",
            "test_the_same_copy_again_is_not_created",
            "test_copies_at_once_are_one",
            "test_case_60_a_copy_onto_other_content_is_a_conflict",
        ],
        "the emulator ignores ifGenerationMatch and overwrites",
    )
    | {
        "test_a_copy_has_its_own_attributes": "the emulator's rewrite ignores the description it is given",
        "test_list_is_complete_beyond_a_page": "the emulator has no pages, and writes all it knows down with every change",
        "test_a_listing_of_ten_thousand": "as above",
        "test_six_gibibytes": "the emulator holds an object in memory, and reads and writes all of it for each chunk",
    }
)
"""Tests of the suite that say nothing on the emulator, and why; the strict fake passes them."""


class TestGcsEmulator(BackendConformance):
    """A store written by somebody else."""

    @pytest.fixture
    async def backend(self, gcs: GcsEmulator) -> AsyncIterator[StorageBackend]:
        async with gcs_backend(gcs.url, bucket=gcs.new_bucket()) as backend:
            yield backend


for _name in UNPROVABLE:
    setattr(TestGcsEmulator, _name, None)


def test_what_is_left_out_on_the_emulator_exists() -> None:
    assert [name for name in UNPROVABLE if not hasattr(BackendConformance, name)] == []


@pytest.fixture
async def strict() -> AsyncIterator[Strict]:
    async with strict_backend() as pair:
        yield pair


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 300_000):
        yield data[start : start + 300_000]


async def read(backend: StorageBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


def lines(store: StrictGcs, pattern: str) -> list[str]:
    return [line for line in store.requests if re.search(pattern, line)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept(store: StrictGcs, key: str) -> bytes:
    return b"".join(store.objects[key].pieces())


def assert_nothing(store: StrictGcs) -> None:
    assert (store.objects, store.open_sessions) == ({}, 0)


def test_the_checksum_is_crc32c_as_the_store_writes_it() -> None:
    # The check value of https://reveng.sourceforge.io/crc-catalogue/17plus.htm#crc.cat.crc-32-iscsi, and an empty object's.
    running = Crc32c()
    assert running.told() == "AAAAAA=="
    running.update(b"1234")
    running.update(b"56789")
    assert running.told() == "4waSgw=="
    assert google_crc32c.implementation == "c"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"x-goog-hash": "crc32c=AAAAAA==,md5=x=="}, "AAAAAA=="),
        ({"x-goog-hash": "md5=x==, crc32c=AAAAAA=="}, "AAAAAA=="),
        ({"x-goog-hash": "md5=x=="}, None),
        ({}, None),
    ],
)
def test_the_checksum_of_a_download_is_found(headers: dict[str, str], found: str | None) -> None:
    assert crc32c_in(headers) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_size": GRAIN + 1},
        {"chunk_size": 0},
        {"credentials_json": "{}", "anonymous": True},
        {"credentials_json": "{}", "credentials_file": "key.json"},
        {"bucket": "Upper"},
        {"endpoint_url": "ftp://store"},
        {"endpoint_url": "http://user:secret@store"},
        {"bukket": "b"},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GcsOptions(**{"bucket": "bucket", **wrong})


@pytest.mark.parametrize("key", ["line\nfeed", "carriage\rreturn", ".well-known/acme-challenge/k"])
async def test_keys_that_gcs_refuses_are_refused_unasked(strict: Strict, key: str) -> None:
    backend, store = strict
    before = len(store.requests)
    with pytest.raises(InvalidKey):
        await backend.write(key, single(b"x"), NOTHING)
    with pytest.raises(InvalidKey):
        await backend.stat(key)
    assert len(store.requests) == before


async def test_a_large_object_is_one_session_with_the_condition_and_the_checksum(strict: Strict) -> None:
    backend, store = strict
    receipt = await backend.write("k", pieces(LARGE), Attributes("text/plain", {"url": "ü"}))
    assert (receipt.size, receipt.sha256, receipt.created) == (len(LARGE), sha256(LARGE), True)
    assert receipt.version == receipt.etag == store.objects["k"].resource["generation"]
    (begun,) = lines(store, BEGIN)
    assert "ifGenerationMatch=0" in begun
    assert [line.partition(" bytes ")[2] for line in lines(store, PUT)] == [
        f"0-{CHUNK - 1}/*",
        f"{CHUNK}-{2 * CHUNK - 1}/*",
        f"{2 * CHUNK}-{len(LARGE) - 1}/{len(LARGE)}",
    ]
    assert store.objects["k"].resource["metadata"][DIGEST] == receipt.sha256
    stat = await backend.stat("k")
    assert stat is not None
    assert (stat.content_type, dict(stat.metadata), stat.etag) == ("text/plain", {"url": "ü"}, receipt.etag)
    assert await read(backend, "k") == LARGE


@pytest.mark.parametrize(("size", "sessions"), [(CHUNK, 0), (CHUNK + 1, 1), (2 * CHUNK, 1)])
async def test_only_what_exceeds_a_chunk_takes_a_session(strict: Strict, size: int, sessions: int) -> None:
    backend, store = strict
    data = some_bytes(size)
    await backend.write("k", pieces(data), NOTHING)
    assert (len(lines(store, BEGIN)), len(lines(store, INSERT))) == (sessions, 1 - sessions)
    assert kept(store, "k") == data


async def test_case_59_what_the_store_refuses_is_classed(strict: Strict) -> None:
    backend, store = strict
    await backend.write("there", single(b"x"), NOTHING)
    store.fail_next("/o/there", "denied")
    with pytest.raises(PermissionDenied, match="HTTP 403"):
        await backend.stat("there")
    store.fail_next(INSERT, "denied")
    with pytest.raises(PermissionDenied):
        await backend.write("k", single(b"x"), NOTHING)
    store.fail_next(LAST, "denied")
    with pytest.raises(PermissionDenied):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert (list(store.objects), store.open_sessions) == (["there"], 0)


@pytest.mark.parametrize("fault", ["unavailable", "too many requests", "throttled"])
async def test_what_passes_is_tried_again_and_then_unavailable(fault: Any) -> None:
    async with strict_backend(retries=1) as (backend, store):
        calls: list[Callable[[], Any]] = [
            lambda: backend.write("k", single(b"x"), NOTHING),
            lambda: backend.stat("k"),
            lambda: read(backend, "k"),
            lambda: anext(aiter(backend.list("k"))),
            lambda: backend.delete("k"),
        ]
        for call in calls:
            store.fail_next("k", fault, times=2)
            with pytest.raises(Unavailable):
                await call()
        store.fail_next("k", fault)
        await backend.write("k", single(b"x"), NOTHING)
        store.fail_next("k", fault)
        assert await read(backend, "k") == b"x"


async def test_case_60_a_key_taken_while_the_chunks_were_on_their_way_is_not_overwritten(
    strict: Strict,
) -> None:
    backend, store = strict

    async def overtaken(rival: bytes) -> AsyncIterator[bytes]:
        yield LARGE[:-1]
        await backend.write("k", single(rival), NOTHING)
        yield LARGE[-1:]

    with pytest.raises(Conflict, match="other content"):
        await backend.write("k", overtaken(b"rival"), NOTHING)
    assert (kept(store, "k"), store.open_sessions) == (b"rival", 0)
    assert await backend.delete("k")
    receipt = await backend.write("k", overtaken(LARGE), NOTHING)
    assert (receipt.created, receipt.sha256) == (False, sha256(LARGE))
    assert len(lines(store, LAST)) == 3


async def test_a_key_taken_before_costs_no_upload(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", pieces(LARGE), NOTHING)
    store.requests.clear()
    assert not (await backend.write("k", pieces(LARGE), NOTHING)).created
    with pytest.raises(Conflict):
        await backend.write("k", pieces(OTHER), NOTHING)
    assert lines(store, "POST|PUT|alt=media") == []


async def test_without_a_noted_digest_the_bytes_are_compared(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(NOTE, "denied")
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created
    assert DIGEST not in store.objects["k"].resource["metadata"]
    store.requests.clear()
    assert not (await backend.write("k", pieces(LARGE), NOTHING)).created
    assert len(lines(store, READ)) == 1
    assert await read(backend, "k") == LARGE


@pytest.mark.parametrize("noted", [True, False])
async def test_case_60_other_content_with_the_same_checksum_is_a_conflict(
    strict: Strict, noted: bool
) -> None:
    old, new = (bytes.fromhex(text) for text in TWINS)
    assert google_crc32c.value(old) == google_crc32c.value(new)
    backend, store = strict
    await backend.write("k", single(old), NOTHING)
    if not noted:
        del store.objects["k"].resource["metadata"][DIGEST]
    with pytest.raises(Conflict):
        await backend.write("k", single(new), NOTHING)
    assert kept(store, "k") == old


async def test_a_note_is_never_what_a_caller_says(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(NOTE, "denied")
    forged = Attributes(None, {DIGEST: sha256(OTHER)})
    for key, data in (("large", LARGE), ("small", b"x")):
        assert (await backend.write(key, pieces(data), forged)).created
        stat = await backend.stat(key)
        assert stat is not None
        assert dict(stat.metadata) == dict(forged.metadata)
    with pytest.raises(Unsupported, match="proven"):
        await backend.copy_from(backend, "large", "copy", NOTHING, Promise())
    assert store.objects["small"].resource["metadata"][DIGEST] == sha256(b"x")


async def test_a_note_that_differs_is_checked_against_the_bytes(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", single(b"data"), NOTHING)
    store.objects["k"].resource["metadata"][DIGEST] = "0" * 64
    assert not (await backend.write("k", single(b"data"), NOTHING)).created


@pytest.mark.parametrize(
    ("times", "asked", "looked"), [(1, 0, 0), (2, 1, 0), (8, 6, 1)], ids=["once", "twice", "every attempt"]
)
async def test_case_63_a_last_chunk_whose_reply_is_lost_has_arrived(
    strict: Strict, times: int, asked: int, looked: int
) -> None:
    """The first time aiohttp sends it again by itself, then the session is asked, at last the object is looked at."""
    backend, store = strict
    store.fail_next(f"{LAST}|{ASKED}", "lost reply", times)
    receipt = await backend.write("k", pieces(LARGE), NOTHING)
    assert (receipt.size, receipt.sha256, receipt.created) == (len(LARGE), sha256(LARGE), True)
    assert len(lines(store, ASKED)) == asked
    # One look comes before every large write.
    assert len(lines(store, LOOK)) == 1 + looked
    assert (kept(store, "k"), len(lines(store, BEGIN))) == (LARGE, 1)


async def test_case_63_a_session_forgotten_after_its_end_is_resolved_by_a_look(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(LAST, "lost reply", times=2)
    store.fail_next(ASKED, "gone")
    receipt = await backend.write("k", pieces(LARGE), NOTHING)
    assert (receipt.sha256, receipt.created) == (sha256(LARGE), True)


async def test_case_63_a_single_request_whose_reply_is_lost_has_happened(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(INSERT, "lost reply")
    receipt = await backend.write("k", single(b"data"), NOTHING)
    assert (receipt.sha256, receipt.version) == (sha256(b"data"), store.objects["k"].resource["generation"])


async def test_case_63_a_lost_reply_about_something_else_is_a_conflict(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(LAST, "gone")

    async def overtaken() -> AsyncIterator[bytes]:
        yield LARGE[:-1]
        await backend.write("k", single(b"rival"), NOTHING)
        yield LARGE[-1:]

    with pytest.raises(Conflict):
        await backend.write("k", overtaken(), NOTHING)
    assert kept(store, "k") == b"rival"


@pytest.mark.parametrize("moment", [FIRST, LAST], ids=["first chunk", "last chunk"])
async def test_a_session_that_is_gone_starts_over_with_the_next_delivery(strict: Strict, moment: str) -> None:
    backend, store = strict
    store.fail_next(moment, "gone")
    with pytest.raises(Unavailable, match="410"):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert_nothing(store)
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created
    assert len(lines(store, BEGIN)) == 2


@pytest.mark.parametrize(
    "broke", [NotFound("staging"), Conflict("staging"), Unavailable("staging")], ids=repr
)
async def test_what_the_source_raises_comes_out_as_it_is(strict: Strict, broke: StorageError) -> None:
    backend, store = strict

    async def breaking() -> AsyncIterator[bytes]:
        yield LARGE
        raise broke

    with pytest.raises(StorageError) as raised:
        await backend.write("k", breaking(), NOTHING)
    assert raised.value is broke
    assert_nothing(store)


@pytest.mark.parametrize("body", [b"<Error/>", b"", b"[]", b"[" * 100_000, b'{"kind": "storage#object"}'])
@pytest.mark.parametrize("call", ["write", "upload", "stat", "list", "copy"])
async def test_case_62_a_success_without_its_document_is_none(call: str, body: bytes) -> None:
    async with strict_backend() as (backend, store):
        await backend.write("there", single(b"x"), NOTHING)
        answers = {
            "write": INSERT,
            "upload": f"{LAST}|{LOOK}",
            "stat": LOOK,
            "list": "prefix=",
            "copy": REWRITE,
        }
        store.fail_next(answers[call], "no document", times=3)
        store.document = (
            b'{"items": [{}]}' if call == "list" and body in {b"", b'{"kind": "storage#object"}'} else body
        )
        calls: dict[str, Callable[[], Any]] = {
            "write": lambda: backend.write("k", single(b"x"), NOTHING),
            "upload": lambda: backend.write("k", pieces(LARGE), NOTHING),
            "stat": lambda: backend.stat("k"),
            "list": lambda: anext(aiter(backend.list())),
            "copy": lambda: backend.copy_from(backend, "there", "k", NOTHING, Promise()),
        }
        with pytest.raises(Unavailable):
            await calls[call]()


@pytest.mark.parametrize("moment", [BEGIN, FIRST], ids=["begin", "first chunk"])
async def test_a_refusal_before_the_last_chunk_is_worth_another_try(strict: Strict, moment: str) -> None:
    backend, store = strict
    store.fail_next(moment, "taken")
    with pytest.raises(Unavailable, match=r"412.*anew"):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert_nothing(store)
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created


@pytest.mark.parametrize("fault", ["unavailable", "partial", "lost reply"])
@pytest.mark.parametrize("moment", [FIRST, LAST], ids=["first chunk", "last chunk"])
async def test_a_chunk_goes_on_from_what_has_arrived(fault: Any, moment: str) -> None:
    data = some_bytes(2 * CHUNK)
    async with strict_backend() as (backend, store):
        store.fail_next(moment, fault, times=2 if fault == "lost reply" else 1)
        receipt = await backend.write("k", pieces(data), NOTHING)
        assert (receipt.sha256, kept(store, "k")) == (sha256(data), data)
        assert len(lines(store, BEGIN)) == len(lines(store, ASKED)) == 1
        if fault == "partial":
            assert any(
                f" bytes {GRAIN}-" in line or f" bytes {CHUNK + GRAIN}-" in line for line in store.requests
            )


async def test_a_last_chunk_that_arrived_without_its_end_is_ended(strict: Strict) -> None:
    """All bytes are there, but the request that brought them failed: an empty one with the size ends the upload."""
    backend, store = strict
    data = some_bytes(CHUNK + GRAIN)
    store.fail_next(LAST, "partial")
    assert (await backend.write("k", pieces(data), NOTHING)).sha256 == sha256(data)
    assert kept(store, "k") == data
    assert len(lines(store, LAST)) == 1


async def test_a_store_that_stays_away_in_the_middle_leaves_nothing() -> None:
    async with strict_backend(retries=1) as (backend, store):
        store.fail_next(PUT, "unavailable", times=2)
        with pytest.raises(Unavailable):
            await backend.write("k", pieces(LARGE), NOTHING)
        assert_nothing(store)


@pytest.mark.parametrize("moment", [BEGIN, FIRST, LAST], ids=["begin", "first chunk", "last chunk"])
async def test_i6_nothing_is_left_when_cancelled_while_a_request_is_under_way(
    strict: Strict, moment: str
) -> None:
    backend, store = strict
    store.fail_next(moment, "hold")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await store.held.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # A session whose URL never came back is cancelled by nobody; it holds nothing.
    assert len(lines(store, CANCEL)) == (0 if moment == BEGIN else 1)
    assert_nothing(store)
    connector = backend.bucket.client._session.connector
    assert connector is not None
    assert not connector._acquired


async def test_a_cancelled_write_does_not_wait_for_a_silent_store(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(FIRST, "hold")
    store.fail_next(CANCEL, "unavailable")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await store.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(lines(store, CANCEL)) == 1


@pytest.mark.parametrize("toxic", ["black hole", "a byte a second"])
@pytest.mark.parametrize("call", ["write", "upload", "read", "stat"])
async def test_case_64_silence_and_trickles_end_at_a_deadline(toxic: str, call: str) -> None:
    async with strict_gcs() as store:
        host, _, port = store.url.removeprefix("http://").partition(":")
        async with (
            Proxy.to(host, int(port)) as proxy,
            gcs_backend(f"http://{host}:{proxy.port}", request_timeout=0.3, retries=1) as backend,
        ):
            await backend.write("there", single(LARGE[:CHUNK_SIZE]), NOTHING)
            if toxic == "black hole":
                proxy.black_hole()
            else:
                proxy.slow(rate=1.0)
            calls: dict[str, Callable[[], Any]] = {
                "write": lambda: backend.write("k", single(b"x"), NOTHING),
                "upload": lambda: backend.write("k", pieces(LARGE), NOTHING),
                "read": lambda: read(backend, "there"),
                "stat": lambda: backend.stat("there"),
            }
            async with asyncio.timeout(10):
                with pytest.raises(Unavailable, match="TimeoutError"):
                    await calls[call]()
            assert list(store.objects) == ["there"]


async def test_case_64_a_read_that_dries_up_ends_at_a_deadline() -> None:
    async with strict_gcs() as store:
        host, _, port = store.url.removeprefix("http://").partition(":")
        async with (
            Proxy.to(host, int(port)) as proxy,
            gcs_backend(f"http://{host}:{proxy.port}", request_timeout=0.5) as backend,
        ):
            data = some_bytes(40 << 20)
            await backend.write("k", pieces(data), NOTHING)
            async with backend.open("k") as chunks:
                first = await anext(chunks)
                proxy.slow("replies", rate=1.0)
                async with asyncio.timeout(10):
                    with pytest.raises(Unavailable, match="TimeoutError"):
                        async for _ in chunks:
                            pass
            assert data.startswith(first)


async def test_case_64_a_slow_reader_is_no_failure() -> None:
    data = some_bytes(12 << 20)
    async with strict_backend(request_timeout=0.3) as (backend, _):
        await backend.write("k", pieces(data), NOTHING)
        async with backend.open("k") as chunks:
            first = await anext(chunks)
            await asyncio.sleep(0.5)
            assert first + b"".join([chunk async for chunk in chunks]) == data


@pytest.mark.parametrize("moment", [INSERT, FIRST, LAST], ids=["single request", "first chunk", "last chunk"])
async def test_case_66_a_corrupted_part_never_becomes_an_object(strict: Strict, moment: str) -> None:
    backend, store = strict
    data = b"data" if moment == INSERT else LARGE
    if moment == INSERT:
        # The last byte of the request belongs to its frame, so that the damage goes into the description.
        store.fail_next(moment, "corrupt")
        with pytest.raises(StorageError):
            await backend.write("k", pieces(data), NOTHING)
    else:
        store.fail_next(moment, "corrupt")
        with pytest.raises(IntegrityError):
            await backend.write("k", pieces(data), NOTHING)
    assert_nothing(store)
    assert lines(store, "DELETE .*/o/") == []
    assert (await backend.write("k", pieces(data), NOTHING)).created


async def test_case_66_a_store_that_ignores_the_checksum_is_found_out_and_the_object_removed(
    strict: Strict,
) -> None:
    backend, store = strict
    store.verifies = False
    store.fail_next(FIRST, "corrupt")
    with pytest.raises(IntegrityError, match="removed"):
        await backend.write("k", pieces(LARGE), NOTHING)
    assert_nothing(store)


async def test_case_66_a_corrupted_read_is_no_success(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", pieces(LARGE), NOTHING)
    store.fail_next(READ, "rot")
    with pytest.raises(IntegrityError):
        await read(backend, "k")
    assert await read(backend, "k") == LARGE


async def test_case_67_a_read_that_is_cut_fails_and_never_ends_short(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", pieces(LARGE), NOTHING)
    store.fail_next(READ, "cut")
    with pytest.raises(Unavailable):
        await read(backend, "k")
    assert await read(backend, "k") == LARGE


async def test_what_is_stored_compressed_is_read_as_it_is_stored(strict: Strict) -> None:
    backend, store = strict
    stored = gzip.compress(LARGE)
    await backend.write("k", pieces(stored), NOTHING)
    store.objects["k"].resource["contentEncoding"] = "gzip"
    assert await read(backend, "k") == stored


async def test_case_68_a_copy_is_of_one_generation_of_its_source(strict: Strict) -> None:
    backend, store = strict
    store.step = CHUNK
    await backend.write("k", pieces(LARGE), NOTHING)
    store.fail_next(f"{REWRITE}.*rewriteToken", "hold")
    copying = asyncio.create_task(backend.copy_from(backend, "k", "copy", NOTHING, Promise()))
    await store.held.wait()
    assert await backend.delete("k")
    await backend.write("k", pieces(OTHER), NOTHING)
    store.released.set()
    with pytest.raises(NotFound):
        await copying
    assert list(store.objects) == ["k"]


async def test_a_long_copy_is_asked_for_until_it_is_done(strict: Strict) -> None:
    backend, store = strict
    store.step = CHUNK
    await backend.write("k", pieces(LARGE), NOTHING)
    store.requests.clear()
    store.fail_next(REWRITE, "unavailable")
    receipt = await backend.copy_from(backend, "k", "copy", NOTHING, Promise(len(LARGE), sha256(LARGE)))
    assert (receipt.sha256, receipt.created, kept(store, "copy")) == (sha256(LARGE), True, LARGE)
    rewrites = lines(store, REWRITE)
    assert len(rewrites) == 4
    assert all("ifGenerationMatch=0" in line and "sourceGeneration=" in line for line in rewrites)
    assert lines(store, READ) == []
    assert store.objects["copy"].resource["metadata"][DIGEST] == receipt.sha256


async def test_case_63_a_copy_whose_reply_is_lost_has_happened(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", single(b"data"), NOTHING)
    store.fail_next(REWRITE, "lost reply")
    receipt = await backend.copy_from(backend, "k", "copy", NOTHING, Promise(4, sha256(b"data")))
    assert (receipt.size, receipt.sha256) == (4, sha256(b"data"))
    assert kept(store, "copy") == b"data"


async def test_case_66_a_copy_with_another_checksum_is_removed(
    strict: Strict, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, store = strict
    await backend.write("k", single(b"data"), NOTHING)
    create = StrictGcs._create

    def rotten(
        self: StrictGcs, described: dict[str, Any], file: IO[bytes], size: int, _: str
    ) -> dict[str, Any]:
        return create(self, described, file, size, "AAAAAA==")

    monkeypatch.setattr(StrictGcs, "_create", rotten)
    with pytest.raises(IntegrityError, match="removed"):
        await backend.copy_from(backend, "k", "copy", NOTHING, Promise())
    assert list(store.objects) == ["k"]


async def test_a_copy_that_cannot_be_proven_is_left_to_a_stream(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", single(b"data"), NOTHING)
    del store.objects["k"].resource["metadata"][DIGEST]
    with pytest.raises(Unsupported, match="proven"):
        await backend.copy_from(backend, "k", "copy", NOTHING, Promise(4, sha256(b"data")))
    assert list(store.objects) == ["k"]


async def test_a_copy_as_somebody_else_is_left_to_a_stream(strict: Strict) -> None:
    backend, store = strict
    await backend.write("k", single(b"data"), NOTHING)
    async with gcs_backend(store.url, project="another") as other:
        with pytest.raises(Unsupported, match="same store"):
            await other.copy_from(backend, "k", "copy", NOTHING, Promise())
    assert list(store.objects) == ["k"]


def service_account(store: StrictGcs) -> str:
    """The contents of a key file whose tokens come from the fake."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "worker@test.iam.gserviceaccount.com",
            "token_uri": f"{store.url}/token",
            "private_key": pem.decode(),
        }
    )


@pytest.mark.parametrize("form", ["credentials_json", "credentials_file"])
async def test_case_71_credentials_that_expire_in_the_middle_are_renewed(form: str, tmp_path: Path) -> None:
    async with strict_gcs() as store:
        store.token = "somebody else's"
        key = service_account(store)
        path = tmp_path / "key.json"
        path.write_text(key, encoding="utf-8")
        secret = {form: SecretStr(key) if form == "credentials_json" else path}
        async with gcs_backend(store.url, anonymous=False, **secret) as backend:
            assert store.issued == 1

            async def outlasting() -> AsyncIterator[bytes]:
                yield LARGE[:-1]
                store.token = "expired"
                yield LARGE[-1:]

            assert (await backend.write("k", outlasting(), NOTHING)).created
            assert (store.issued, len(lines(store, BEGIN))) == (2, 1)
            store.token = "expired again"
            assert await read(backend, "k") == LARGE
            store.token = "and again"
            assert await asyncio.gather(*(backend.delete(key) for key in ("a", "b", "c"))) == [False] * 3
            assert store.issued == 4


async def test_credentials_that_are_not_accepted_are_a_permission(tmp_path: Path) -> None:
    async with strict_gcs() as store:
        path = tmp_path / "key.json"
        path.write_text(service_account(store), encoding="utf-8")
        store.fail_next("/o", "denied")
        with pytest.raises(PermissionDenied, match="objectUser"):
            await GcsBackend.connect(gcs_options(store.url, anonymous=False, credentials_file=path))


@pytest.mark.parametrize("text", ["no json", "{}", '{"private_key": "canary-3f1c"}', "[]"])
async def test_case_99_credentials_that_cannot_be_used_are_not_told(text: str) -> None:
    options = gcs_options("http://127.0.0.1:1", anonymous=False, credentials_json=SecretStr(text))
    assert "canary" not in repr(options)
    with pytest.raises(PermissionDenied, match="application-default login") as raised:
        await GcsBackend.connect(options)
    assert "canary" not in f"{raised.value!r} {raised.value.__cause__!r}"


async def test_case_99_the_url_of_a_session_is_not_told(strict: Strict) -> None:
    backend, store = strict
    store.fail_next(PUT, "lost reply", times=99)
    store.fail_next(CANCEL, "lost reply")
    with pytest.raises(Unavailable) as raised:
        await backend.write("k", pieces(LARGE), NOTHING)
    told = [raised.value, raised.value.__cause__, *getattr(raised.value, "__notes__", [])]
    assert "upload_id" not in repr(told)


async def test_without_credentials_connecting_says_how_to_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(PermissionDenied, match="gcloud auth application-default login"):
        await GcsBackend.connect(gcs_options("http://127.0.0.1:1", anonymous=False))


async def test_the_application_default_credentials_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with strict_gcs() as store:
        store.token = "somebody else's"
        path = tmp_path / "key.json"
        path.write_text(service_account(store), encoding="utf-8")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        async with gcs_backend(store.url, anonymous=False) as backend:
            assert (await backend.write("k", single(b"x"), NOTHING)).created


async def test_a_missing_bucket_is_named_with_the_command_that_makes_it(strict: Strict) -> None:
    _, store = strict
    with pytest.raises(NotFound, match="bucket missing does not exist; create it with: gcloud storage"):
        await GcsBackend.connect(gcs_options(store.url, bucket="missing"))


async def test_health_names_what_the_credentials_lack(strict: Strict) -> None:
    backend, store = strict
    store.permissions = {"storage.objects.get"}
    with pytest.raises(PermissionDenied, match=r"lack storage\.objects\.create"):
        await backend.health()


async def test_nobody_listening_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="open bucket"):
        await GcsBackend.connect(gcs_options(f"http://127.0.0.1:{free_port()}", retries=0))


async def test_a_closed_backend_says_so(strict: Strict) -> None:
    backend, _ = strict
    await backend.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await backend.stat("k")
