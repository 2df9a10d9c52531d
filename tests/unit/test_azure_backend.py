"""What only Azure promises, beyond the suite every backend passes (tests/conformance)."""

import asyncio
import hashlib
import random
import re
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential
from azure.storage.blob import (
    BlobProperties,
    ContainerSasPermissions,
    ContentSettings,
    generate_container_sas,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from backends.azure import AzureBackend
from backends.azure_blocks import MAX_BLOCK_SIZE, MAX_BLOCKS, BlockSource, block_id, block_length
from backends.azure_client import AzureOptions, service_for
from backends.azure_errors import translated
from backends.azure_metadata import DIGEST, METADATA_LIMIT, decode_metadata, metadata_for
from backends.base import Attributes, Promise, Receipt, single
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
from tests.support.azure import (
    azure_backend,
    azure_options,
    azure_service,
    fronted_azure,
    new_container,
    slow_copies,
)
from tests.support.azurite import AzuriteEndpoint
from tests.support.processes import free_port
from tests.support.s3_front import Front
from tests.support.toxics import Proxy

MIB = 1 << 20
NOTHING = Attributes()
LARGE = random.Random(7).randbytes(4 * MIB + 17)
"""Three blocks of the backends that tests/support/azure.py makes."""
SHA256 = hashlib.sha256(LARGE).hexdigest()
OTHER = LARGE[:-1] + b"?"

PUT = r"PUT [^?]+ "
BLOCK = r"PUT \S+comp=block&"
COMMIT = r"PUT \S+comp=blocklist"
HEX = "0" * 32

Fronted = tuple[AzureBackend, Front]


@pytest.fixture
async def fronted(azurite: AzuriteEndpoint) -> AsyncIterator[Fronted]:
    async with fronted_azure(azurite) as pair:
        yield pair


@pytest.fixture
async def backend(azurite: AzuriteEndpoint) -> AsyncIterator[AzureBackend]:
    async with azure_backend(azurite) as backend:
        yield backend


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def read(backend: AzureBackend, key: str) -> bytes:
    async with backend.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is the front's, which has no event for it
            await asyncio.sleep(0.01)


async def assert_no_trace(backend: AzureBackend, key: str) -> None:
    assert await backend.stat(key) is None
    assert [found async for found in backend.list()] == []
    assert await backend.sweep(0.0) == 0


def lines(front: Front, pattern: str) -> list[str]:
    return [line for line in front.requests if re.search(pattern, line)]


def is_receipt(receipt: Receipt, data: bytes = LARGE) -> bool:
    return (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())


# Blocks


@pytest.mark.parametrize("first", [MIB, 8 * MIB, 256 * MIB])
def test_case_65_fifty_thousand_blocks_hold_eight_tebibytes(first: int) -> None:
    lengths = [block_length(number, first) for number in range(1, MAX_BLOCKS + 1)]
    assert sum(lengths) >= 8 << 40
    assert max(lengths) <= MAX_BLOCK_SIZE
    assert lengths == sorted(lengths)
    assert set(lengths[:4_500]) == {first}


def test_there_is_no_block_fifty_thousand_and_one() -> None:
    with pytest.raises(StorageError, match="block_size"):
        block_length(MAX_BLOCKS + 1, MIB)


def test_block_ids_are_of_one_length_and_differ_between_writers() -> None:
    ids = [block_id(attempt, number) for attempt in ("a" * 16, "b" * 16) for number in (1, 50_000)]
    assert len(set(ids)) == 4
    assert {len(each) for each in ids} == {37}


async def test_a_large_object_is_blocks_with_checksums_and_a_conditional_commit(fronted: Fronted) -> None:
    backend, front = fronted
    assert is_receipt(await backend.write("k", pieces(LARGE), NOTHING))
    assert len(lines(front, BLOCK)) == 3
    heads = [head.lower() for head in front.heads if "comp=block&" in head]
    assert all("\r\ncontent-md5: " in head for head in heads)
    (commit,) = [head.lower() for head in front.heads if "comp=blocklist" in head]
    assert "\r\nif-none-match: *" in commit
    assert f"x-ms-blob-content-md5: {b64encode(hashlib.md5(LARGE).digest()).decode().lower()}" in commit  # noqa: S324 - the service's checksum
    assert await read(backend, "k") == LARGE


async def test_exactly_one_block_is_a_single_request(fronted: Fronted) -> None:
    backend, front = fronted
    begun = len(front.requests)
    await backend.write("k", pieces(LARGE[: 2 * MIB]), NOTHING)
    (head,) = front.heads[begun:]
    assert {"\r\ncontent-md5: ", "\r\nif-none-match: *"} == {
        each for each in ("\r\ncontent-md5: ", "\r\nif-none-match: *") if each in head.lower()
    }
    assert await read(backend, "k") == LARGE[: 2 * MIB]


async def test_a_large_object_that_is_there_is_not_sent_again(fronted: Fronted) -> None:
    backend, front = fronted
    first = await backend.write("k", pieces(LARGE), NOTHING)
    again = await backend.write("k", pieces(LARGE), NOTHING)
    assert (first.created, again.created, again.etag) == (True, False, first.etag)
    with pytest.raises(Conflict, match="other content"):
        await backend.write("k", pieces(OTHER), NOTHING)
    assert len(lines(front, BLOCK)) == 3
    assert await read(backend, "k") == LARGE


async def test_blocks_in_flight_are_bounded(azurite: AzuriteEndpoint) -> None:
    async with fronted_azure(azurite, block_size=MIB, max_concurrency=2) as (backend, front):
        taken = 0
        greedy = asyncio.Event()

        async def counted() -> AsyncIterator[bytes]:
            nonlocal taken
            for _ in range(12):
                taken += 1
                if taken > 3 + 1:
                    greedy.set()
                yield bytes(MIB)

        front.fail_next(BLOCK, "hold", times=2)
        task = asyncio.create_task(backend.write("k", counted(), NOTHING))
        await until(lambda: len(lines(front, BLOCK)) == 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(greedy.wait(), 0.3)
        front.released.set()
        assert (await task).size == 12 * MIB


# Failures of a write


async def test_i6_a_block_under_way_ends_before_a_cancelled_write_drops_the_others(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(BLOCK, "hold")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await front.held.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    task.cancel()
    front.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_no_trace(backend, "k")


async def test_a_cancelled_write_does_not_wait_long_for_a_silent_store(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, front = fronted
    monkeypatch.setattr("backends.azure_blocks._DROP_SECONDS", 0.2)
    half = asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield LARGE
        half.set()
        await asyncio.Event().wait()

    front.fail_next("GET .*comp=blocklist", "hold")
    task = asyncio.create_task(backend.write("k", halting(), NOTHING))
    await half.wait()
    task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
    assert any("a sweep has to remove" in note for note in raised.value.__notes__)
    front.released.set()
    assert await backend.sweep(0.0) == 1


@pytest.mark.parametrize(
    "broke", [NotFound("staging"), Conflict("staging"), Unavailable("staging")], ids=repr
)
async def test_i6_what_the_source_raises_comes_out_as_it_is_and_leaves_nothing(
    backend: AzureBackend, broke: StorageError
) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield LARGE
        raise broke

    with pytest.raises(StorageError) as raised:
        await backend.write("k", breaking(), NOTHING)
    assert raised.value is broke
    await assert_no_trace(backend, "k")


async def test_i5_a_write_cancelled_while_it_commits_is_whole_or_absent(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(COMMIT, "hold")
    task = asyncio.create_task(backend.write("k", pieces(LARGE), NOTHING))
    await front.held.wait()
    task.cancel()
    front.released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    if await backend.stat("k") is not None:
        assert await read(backend, "k") == LARGE
        assert await backend.delete("k")
    await assert_no_trace(backend, "k")


async def staged(backend: AzureBackend, key: str) -> int:
    """Blocks that lie uncommitted under the key, whoever staged them."""
    try:
        _, blocks = await backend.container.blob(key).get_block_list("uncommitted")
    except ResourceNotFoundError:
        return 0
    return len(blocks)


async def test_the_blocks_of_another_write_are_not_dropped_with_ours(backend: AzureBackend) -> None:
    half, go_on, stalled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def halting(reached: asyncio.Event) -> AsyncIterator[bytes]:
        async for piece in pieces(LARGE):
            yield piece
        reached.set()
        await go_on.wait()
        yield b"end"

    stays = asyncio.create_task(backend.write("k", halting(half), NOTHING))
    goes = asyncio.create_task(backend.write("k", halting(stalled), NOTHING))
    await asyncio.gather(half.wait(), stalled.wait())
    # What is still on its way cannot be seen by the one that drops.
    async with asyncio.timeout(30):
        while await staged(backend, "k") < 4:  # noqa: ASYNC110 - a server has no event
            await asyncio.sleep(0.05)
    goes.cancel()
    with suppress(asyncio.CancelledError):
        await goes
    go_on.set()
    assert is_receipt(await stays, LARGE + b"end")
    assert await read(backend, "k") == LARGE + b"end"


async def test_a_write_whose_blocks_were_swept_may_be_tried_again(backend: AzureBackend) -> None:
    half, go_on = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield LARGE
        yield LARGE
        half.set()
        await go_on.wait()

    task = asyncio.create_task(backend.write("k", halting(), NOTHING))
    await half.wait()
    assert await backend.sweep(0.0) == 1
    go_on.set()
    with pytest.raises(Unavailable, match="InvalidBlockList"):
        await task
    await assert_no_trace(backend, "k")
    assert (await backend.write("k", pieces(LARGE), NOTHING)).created


async def test_case_60_a_writer_that_comes_late_does_not_overwrite(
    azurite: AzuriteEndpoint, fronted: Fronted
) -> None:
    late, front = fronted
    # It has found the key free, and all of its blocks arrive after the other's commit.
    front.fail_next(BLOCK, "hold", times=3)
    task = asyncio.create_task(late.write("k", pieces(LARGE), NOTHING))
    await front.held.wait()
    async with azure_backend(azurite, container=late._options.container) as early:
        assert (await early.write("k", pieces(OTHER), NOTHING)).created
        front.released.set()
        with pytest.raises(Conflict, match="other content"):
            await task
        assert await read(early, "k") == OTHER


@pytest.mark.parametrize("size", [5, len(LARGE)], ids=["put", "commit"])
@pytest.mark.parametrize("retries", [0, 1])
async def test_case_63_a_write_whose_reply_is_lost_has_happened(
    azurite: AzuriteEndpoint, size: int, retries: int
) -> None:
    async with fronted_azure(azurite, retries=retries) as (backend, front):
        # The HTTP client itself repeats a PUT once where an idle connection turns out to be broken.
        front.fail_next(PUT if size == 5 else COMMIT, "lost reply", times=2)
        receipt = await backend.write("k", pieces(LARGE[:size]), NOTHING)
        assert is_receipt(receipt, LARGE[:size])
        assert await read(backend, "k") == LARGE[:size]
        assert await backend.sweep(0.0) == 0


async def test_a_commit_that_did_not_happen_is_a_failure(fronted: Fronted) -> None:
    backend, front = fronted
    front.fail_next(COMMIT, "slow down")
    with pytest.raises(Unavailable, match="503"):
        await backend.write("k", pieces(LARGE), NOTHING)
    await assert_no_trace(backend, "k")


@pytest.mark.parametrize("size", [5, len(LARGE)], ids=["put", "block"])
async def test_case_66_damage_on_the_way_is_noticed(fronted: Fronted, size: int) -> None:
    backend, front = fronted
    front.fail_next(PUT if size == 5 else BLOCK, "corrupt")
    with pytest.raises(StorageError) as raised:
        await backend.write("k", pieces(LARGE[:size]), NOTHING)
    assert raised.value.retryable
    await assert_no_trace(backend, "k")


async def test_case_71_a_signature_that_expires_between_blocks(azurite: AzuriteEndpoint) -> None:
    container = await new_container(azurite)
    expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    token = sas_token(azurite, container, expiry)

    async def slow() -> AsyncIterator[bytes]:
        yield LARGE
        while datetime.now(UTC) <= expiry:  # noqa: ASYNC110 - only the clock ends a signature
            await asyncio.sleep(0.05)
        yield LARGE

    options = {"container": container, "account_key": None, "sas_token": SecretStr(token)}
    async with azure_backend(azurite, **options) as backend:
        with pytest.raises(PermissionDenied) as raised:
            await backend.write("k", slow(), NOTHING)
    assert raised.value.retryable
    assert any("a sweep has to remove" in note for note in raised.value.__notes__)
    assert "sig=" not in repr(raised.value)
    async with azure_backend(azurite, container=container) as renewed:
        assert await renewed.stat("k") is None
        assert await renewed.sweep(0.0) == 1
        assert (await renewed.write("k", pieces(LARGE), NOTHING)).created


# Deadlines


@pytest.mark.parametrize("action", ["write", "write large", "read", "stat", "list", "delete", "health"])
async def test_case_64_a_half_open_connection_hits_the_deadline(
    azurite: AzuriteEndpoint, action: str
) -> None:
    address = urlsplit(azurite.account_url)
    assert address.hostname
    assert address.port
    container = await new_container(azurite)
    async with Proxy.to(address.hostname, address.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{address.path}"
        async with azure_backend(
            azurite, container=container, account_url=url, request_timeout=0.3, retries=0
        ) as backend:
            await backend.write("there", single(b"x"), NOTHING)

            async def listed() -> list[str]:
                return [found.key async for found in backend.list()]

            calls: dict[str, Callable[[], Any]] = {
                "write": lambda: backend.write("k", single(b"x"), NOTHING),
                "write large": lambda: backend.write("k", pieces(LARGE), NOTHING),
                "read": lambda: read(backend, "there"),
                "stat": lambda: backend.stat("there"),
                "list": listed,
                "delete": lambda: backend.delete("there"),
                "health": backend.health,
            }
            proxy.black_hole("requests")
            async with asyncio.timeout(20):
                with pytest.raises(Unavailable, match=r"within 0\.3 s"):
                    await calls[action]()


@pytest.mark.parametrize("direction", ["requests", "replies"])
async def test_case_64_a_byte_a_second_hits_the_deadline(azurite: AzuriteEndpoint, direction: Any) -> None:
    address = urlsplit(azurite.account_url)
    assert address.hostname
    assert address.port
    container = await new_container(azurite)
    async with azure_backend(azurite, container=container) as straight:
        await straight.write("there", single(bytes(1000)), NOTHING)
    async with Proxy.to(address.hostname, address.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{address.path}"
        async with azure_backend(
            azurite, container=container, account_url=url, request_timeout=0.5, retries=0
        ) as backend:
            proxy.slow(direction, rate=20)  # one at a time
            with pytest.raises(Unavailable, match=r"within 0\.5 s"):
                await read(backend, "there")
            with pytest.raises(Unavailable, match=r"within 0\.5 s"):
                await backend.write("k", single(bytes(1000)), NOTHING)


@pytest.mark.parametrize("direction", ["requests", "replies"])
async def test_case_64_a_request_without_an_answer_has_a_deadline_of_its_own(
    azurite: AzuriteEndpoint, direction: Any
) -> None:
    address = urlsplit(azurite.account_url)
    assert address.hostname
    assert address.port
    container = await new_container(azurite)
    async with Proxy.to(address.hostname, address.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}{address.path}"
        async with azure_backend(
            azurite, container=container, account_url=url, read_timeout=0.3, retries=0
        ) as backend:
            proxy.black_hole(direction)
            async with asyncio.timeout(20):
                with pytest.raises(Unavailable, match="ServiceResponseTimeoutError"):
                    await backend.stat("k")


async def test_case_64_a_connection_that_does_not_come_about_has_a_deadline(azurite: AzuriteEndpoint) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        # Nobody accepts: the queue of the system is full after the first one or two, and the next hear nothing.
        for _ in range(3):
            peer = waiting.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/devstoreaccount1"
        options = azure_options(azurite, "container", account_url=url, connect_timeout=0.3, retries=0)
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable, match="ServiceRequestTimeoutError"):
                await AzureBackend.connect(options)


# Reading


async def test_case_67_a_read_that_is_cut_goes_on_or_fails_but_never_ends_short(fronted: Fronted) -> None:
    backend, front = fronted
    data = LARGE + LARGE
    await backend.write("k", pieces(data), NOTHING)
    front.fail_next("GET", "cut")
    assert await read(backend, "k") == data
    front.fail_next("GET", "cut", times=40)
    with pytest.raises(Unavailable):
        await read(backend, "k")


@pytest.mark.parametrize("then", [b"", OTHER + OTHER], ids=["gone", "another"])
async def test_case_68_an_object_that_changes_while_it_is_read_is_never_spliced(
    backend: AzureBackend, then: bytes
) -> None:
    await backend.write("k", pieces(LARGE + LARGE), NOTHING)

    async def change_while_reading() -> None:
        async with backend.open("k") as chunks:
            await anext(chunks)
            assert await backend.delete("k")
            if then:
                await backend.write("k", pieces(then), NOTHING)
            async for _ in chunks:
                pass

    with pytest.raises(Unavailable, match="changed while it was read"):
        await change_while_reading()


async def test_a_compressed_blob_is_read_as_it_lies_there(backend: AzureBackend) -> None:
    await backend.container.blob("k").upload_blob(
        b"no gzip at all", content_settings=ContentSettings(content_encoding="gzip")
    )
    assert await read(backend, "k") == b"no gzip at all"


async def test_directories_of_a_hierarchical_namespace_are_no_objects(backend: AzureBackend) -> None:
    await backend.container.blob("dir").upload_blob(b"", metadata={"hdi_isfolder": "true"})
    await backend.write("dir/k", single(b"x"), NOTHING)
    assert [found.key async for found in backend.list()] == ["dir/k"]
    assert await backend.stat("dir") is None
    assert await backend.delete("dir") is False
    with pytest.raises(NotFound):
        await read(backend, "dir")
    with pytest.raises(Unavailable):
        await backend.write("dir", single(b"x"), NOTHING)


# Copies


def promised(data: bytes) -> Promise:
    return Promise(len(data), hashlib.sha256(data).hexdigest())


async def test_no_payload_passes_through_here_on_a_copy(azurite: AzuriteEndpoint) -> None:
    async with fronted_azure(azurite) as (source, front), azure_backend(azurite) as other:
        url = source._options.account_url
        async with azure_backend(azurite, account_url=url) as target:
            await source.write("k", pieces(LARGE), NOTHING)
            begun = len(front.requests)
            for created in (True, False):
                receipt = await target.copy_from(source, "k", "dir/copy", NOTHING, promised(LARGE))
                assert (is_receipt(receipt), receipt.created) == (True, created)
            assert not [line for line in front.requests[begun:] if line.startswith("GET")]
            assert all("content-length: 0" in head.lower() for head in front.heads[begun:] if "PUT" in head)
            assert await read(target, "dir/copy") == LARGE
            with pytest.raises(Unsupported, match="does not lie in the account"):
                await other.copy_from(source, "k", "copy", NOTHING, promised(LARGE))


async def test_a_blob_without_its_digest_is_left_to_a_stream(backend: AzureBackend) -> None:
    await backend.container.blob("foreign").upload_blob(b"data")
    with pytest.raises(Unsupported, match="digest"):
        await backend.copy_from(backend, "foreign", "copy", NOTHING, promised(b"data"))
    assert await backend.stat("copy") is None


async def test_a_digest_that_is_no_longer_of_these_bytes_proves_nothing(backend: AzureBackend) -> None:
    await backend.write("k", single(b"data"), NOTHING)
    kept = (await backend.container.blob("k").get_blob_properties()).metadata
    await backend.container.blob("k").upload_blob(b"DATA", metadata=kept, overwrite=True)
    with pytest.raises(Unsupported, match="digest"):
        await backend.copy_from(backend, "k", "copy", NOTHING, promised(b"data"))


async def test_case_68_a_source_that_changes_before_the_copy(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", single(b"data"), NOTHING)
    front.fail_next(r"PUT \S+/copy", "hold")
    task = asyncio.create_task(backend.copy_from(backend, "k", "copy", NOTHING, promised(b"data")))
    await front.held.wait()
    await backend.container.blob("k").upload_blob(b"DATA", overwrite=True)
    front.released.set()
    with pytest.raises(Unavailable):
        await task
    assert await backend.stat("copy") is None


@pytest.mark.parametrize("retries", [0, 1])
async def test_case_63_a_copy_whose_reply_is_lost_has_happened(
    azurite: AzuriteEndpoint, retries: int
) -> None:
    attributes = Attributes("text/html", {"url": "u"})
    async with fronted_azure(azurite, retries=retries) as (backend, front):
        await backend.write("k", pieces(LARGE), Attributes("text/plain"))
        front.fail_next(r"PUT \S+/copy", "lost reply", times=2)
        if not retries:
            with pytest.raises(Unavailable):
                await backend.copy_from(backend, "k", "copy", attributes, promised(LARGE))
        # The content type is set in a second step, which the copy that got lost did not reach.
        assert is_receipt(await backend.copy_from(backend, "k", "copy", attributes, promised(LARGE)))
        stat = await backend.stat("copy")
        assert stat is not None
        assert (stat.content_type, stat.metadata) == ("text/html", {"url": "u"})
        assert await read(backend, "copy") == LARGE
        copy = await backend.copy_from(backend, "copy", "again", NOTHING, promised(LARGE))
        assert copy.created, "the copy carries the digest as well"


async def test_copies_at_once_settle_on_one(fronted: Fronted) -> None:
    backend, front = fronted
    await backend.write("k", single(b"data"), Attributes("text/plain"))
    front.fail_next(r"PUT \S+/copy\?comp=properties", "hold")
    html = Attributes("text/html")
    slow = asyncio.create_task(backend.copy_from(backend, "k", "copy", html, promised(b"data")))
    await front.held.wait()
    receipt = await backend.copy_from(backend, "k", "copy", html, promised(b"data"))
    front.released.set()
    with pytest.raises(Unavailable, match="changed meanwhile"):
        await slow
    stat = await backend.stat("copy")
    assert stat is not None
    assert (stat.content_type, stat.etag) == ("text/html", receipt.etag)


async def test_a_pending_copy_is_waited_for_and_not_seen_meanwhile(azurite: AzuriteEndpoint) -> None:
    async with slow_copies(azurite) as slow, azure_backend(azurite, account_url=slow.url) as backend:
        await backend.write("k", single(b"data"), NOTHING)
        slow.pending = 2
        task = asyncio.create_task(backend.copy_from(backend, "k", "copy", NOTHING, promised(b"data")))
        await until(lambda: slow.asked == 2)
        slow.pending = 1
        assert await backend.stat("copy") is None
        assert slow.asked == 3
        slow.pending = 1
        with pytest.raises(NotFound):
            await read(backend, "copy")
        assert is_receipt(await task, b"data")
        assert await read(backend, "copy") == b"data"


async def test_a_pending_copy_is_taken_away_when_cancelled(azurite: AzuriteEndpoint) -> None:
    async with slow_copies(azurite) as slow, azure_backend(azurite, account_url=slow.url) as backend:
        await backend.write("k", single(b"data"), NOTHING)
        slow.pending = 1_000
        task = asyncio.create_task(backend.copy_from(backend, "k", "copy", NOTHING, promised(b"data")))
        await until(lambda: slow.asked == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert await backend.stat("copy") is None
        # Azurite knows of no copy that could be aborted; the service does.
        assert not hasattr(raised.value, "__notes__") or "sweep" in raised.value.__notes__[0]


# Sweeping


async def test_blocks_of_other_programs_are_not_swept(backend: AzureBackend) -> None:
    for key in ("theirs", "both"):
        await backend.container.blob(key).stage_block("x" * 37, b"half")
    await backend._upload("both").stage(1, await BlockSource(single(b"half")).take(4))
    assert await backend.sweep(0.0) == 0
    _, staged = await backend.container.blob("both").get_block_list("uncommitted")
    assert len(staged) == 2


async def test_what_a_killed_sweep_left_is_no_object_and_no_obstacle(backend: AzureBackend) -> None:
    settings = ContentSettings(content_type="application/x-transload-discarded")
    for key in ("small", "large", "other"):
        await backend.container.blob(key).upload_blob(b"", content_settings=settings)
    assert [found async for found in backend.list()] == []
    with pytest.raises(NotFound):
        await read(backend, "small")
    with pytest.raises(Unavailable, match="nothing lies there"):
        await backend.write("small", single(b"x"), NOTHING)
    assert (await backend.write("small", single(b"x"), NOTHING)).created
    assert (await backend.write("large", pieces(LARGE), NOTHING)).created
    assert await backend.sweep(3600.0) == 0
    assert await backend.sweep(0.0) == 1


@pytest.mark.parametrize("kind", ["application/x-transload-discarded", " Application/X-Transload-Discarded "])
@pytest.mark.parametrize("data", [b"", b"x", LARGE], ids=["empty", "small", "large"])
async def test_a_resource_cannot_have_itself_cleared_away(
    backend: AzureBackend, kind: str, data: bytes
) -> None:
    await backend.write("k", pieces(data), Attributes(kind))
    assert await backend.sweep(0.0) == 0
    assert await backend.stat("k") is not None
    assert [found.key async for found in backend.list()] == ["k"]
    assert await read(backend, "k") == data


async def test_blocks_stay_where_it_cannot_be_told_whether_blobs_can_be_deleted(
    azurite: AzuriteEndpoint,
) -> None:
    container = await new_container(azurite)
    token = SecretStr(sas_token(azurite, container, datetime.now(UTC) + timedelta(hours=1)))
    options = {"container": container, "account_key": None, "sas_token": token}
    broke = RuntimeError("the source broke")

    async def breaking() -> AsyncIterator[bytes]:
        yield LARGE
        raise broke

    async with (
        azure_backend(azurite, **options) as backend,
        azure_backend(azurite, container=container) as owner,
    ):
        with pytest.raises(RuntimeError) as raised:
            await backend.write("k", breaking(), NOTHING)
        assert raised.value is broke
        assert await backend.sweep(0.0) == 0
        assert await owner.sweep(0.0) == 1


# Names and attributes


NAMES = st.text(min_size=1, max_size=20) | st.text("_x25fd-A9", min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.text(max_size=40), max_size=5))
def test_names_of_metadata_are_identifiers_and_come_back(metadata: dict[str, str]) -> None:
    encodable = {
        n.encode(errors="replace").decode(): v.encode(errors="replace").decode() for n, v in metadata.items()
    }
    encoded = metadata_for(Attributes(None, metadata), HEX * 2, bytes(16))
    assert all(re.fullmatch(r"[a-z_][a-z0-9_]*", name) for name in encoded)
    assert all(value.isascii() and value.isprintable() and " " not in value for value in encoded.values())
    assert decode_metadata(encoded) == encodable


@pytest.mark.parametrize("name", ["url", "content_type", "status_code"])
def test_plain_names_stay_as_they_are(name: str) -> None:
    assert metadata_for(Attributes(None, {name: "x"}), "", b"")[name] == "x"


def test_metadata_is_cut_to_eight_kilobytes_with_the_digest() -> None:
    encoded = metadata_for(Attributes(None, {"a": "é" * 9000, "b": "short"}), HEX * 2, bytes(16))
    assert sum(map(len, encoded)) + sum(map(len, encoded.values())) <= 8192
    assert len(encoded["a"]) > METADATA_LIMIT - 20
    assert (encoded["b"], encoded[DIGEST]) == ("short", f"{HEX * 2}.{HEX}")


async def test_as_much_metadata_as_fits_comes_back(backend: AzureBackend) -> None:
    for key, data in (("small", b"x"), ("large", LARGE)):
        await backend.write(key, pieces(data), Attributes("text/plain", {"a": "x" * 9000, DIGEST: "mine"}))
        stat = await backend.stat(key)
        assert stat is not None
        assert stat.metadata[DIGEST] == "mine"
        assert stat.metadata["a"] == "x" * len(stat.metadata["a"])
        assert len(stat.metadata["a"]) > 8000


@pytest.mark.parametrize("key", ["a\\b", "line\nfeed", "delete\x7f", "dot.", "dot./k", "s/" * 254 + "k"])
async def test_keys_that_azure_would_change_are_refused(backend: AzureBackend, key: str) -> None:
    with pytest.raises(InvalidKey):
        await backend.write(key, single(b"x"), NOTHING)
    with pytest.raises(InvalidKey):
        await backend.stat(key)


async def test_keys_below_one_prefix_are_not_held_back(
    backend: AzureBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"\U0001f600/{number}" for number in range(3)]
    for key in keys:
        await backend.write(key, single(b"x"), NOTHING)
    seen: list[str] = []
    listing = backend.container.listing

    async def watched(prefix: str, *include: str) -> AsyncGenerator[BlobProperties, None]:
        async for found in listing(prefix, *include):
            seen.append(found.name)
            yield found

    monkeypatch.setattr(backend.container, "listing", watched)
    assert [found.key async for found in backend.list()] == keys
    seen.clear()
    async with aclosing(backend.container.objects("\U0001f600/")) as objects:
        await anext(objects)
        assert seen == keys[:1]


# Options and errors


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"account": "name", "account_url": "https://name.blob.core.windows.net"},
        {"account": "name", "account_key": "a", "sas_token": "b"},
        {"account": "name", "tenant_id": "t", "client_id": "c"},
        {"account": "name", "client_secret": "s"},
        {"account": "name", "client_secret": "s", "tenant_id": "t"},
        {"connection_string": "nonsense"},
        {"connection_string": "AccountName=name;AccountKey=a", "account_key": "b"},
        {"account_url": "http://127.0.0.1:10000/devstoreaccount1"},
        {"account_url": "https://user:secret@name.blob.core.windows.net"},
        {"account": "name", "container": "Not_Allowed"},
        {"account": "name", "unknown": "x"},
    ],
    ids=str,
)
def test_incomplete_or_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AzureOptions(**{"container": "container", **wrong})


@pytest.mark.parametrize(
    ("named", "account"),
    [
        ({"account": "name"}, "name"),
        ({"account_url": "https://name.blob.core.windows.net"}, "name"),
        ({"account_url": "http://127.0.0.1:10000/devstoreaccount1", "account_key": "a"}, "devstoreaccount1"),
        ({"connection_string": "AccountName=name;AccountKey=a=="}, "name"),
        (
            {
                "connection_string": "BlobEndpoint=https://name.blob.core.windows.net/;SharedAccessSignature=sig=x"
            },
            "name",
        ),
    ],
)
def test_the_location_names_the_account(named: dict[str, Any], account: str) -> None:
    options = AzureOptions(container="container", **named)
    assert AzureBackend.location_of(options) == f"azure://{account}/container/"


def sas_token(azurite: AzuriteEndpoint, container: str, expiry: datetime) -> str:
    return str(
        generate_container_sas(
            azurite.account,
            container,
            azurite.account_key,
            permission=ContainerSasPermissions(
                read=True, add=True, create=True, write=True, delete=True, list=True
            ),
            expiry=expiry,
        )
    )


@pytest.mark.parametrize("kind", ["connection_string", "sas_token", "?sas_token"])
async def test_every_credential_reads_writes_and_copies(azurite: AzuriteEndpoint, kind: str) -> None:
    container = await new_container(azurite)
    token = sas_token(azurite, container, datetime.now(UTC) + timedelta(hours=1))
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={azurite.account};AccountKey={azurite.account_key};"
        f"BlobEndpoint={azurite.account_url};"
    )
    kinds: dict[str, dict[str, Any]] = {
        "connection_string": {"connection_string": text, "account_url": None},
        "sas_token": {"sas_token": token},
        "?sas_token": {"sas_token": f"?{token}"},
    }
    async with azure_backend(azurite, container=container, account_key=None, **kinds[kind]) as backend:
        await backend.write("k", pieces(LARGE), NOTHING)
        assert await read(backend, "k") == LARGE
        assert (await backend.copy_from(backend, "k", "copy", NOTHING, promised(LARGE))).created
        assert [found.key async for found in backend.list()] == ["copy", "k"]


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ({"tenant_id": "tenant", "client_id": "client", "client_secret": "s"}, ClientSecretCredential),
        ({"client_id": "client"}, DefaultAzureCredential),
        ({}, DefaultAzureCredential),
    ],
    ids=["service principal", "managed identity", "default chain"],
)
async def test_without_a_key_a_token_is_fetched(named: dict[str, Any], kind: type[object]) -> None:
    service, credential = service_for(AzureOptions(container="container", account="name", **named))
    assert service.primary_endpoint == "https://name.blob.core.windows.net/"
    assert type(credential) is kind
    assert isinstance(credential, (ClientSecretCredential, DefaultAzureCredential))
    await service.close()
    await credential.close()


async def test_a_missing_container_is_named_with_the_command_that_makes_it(azurite: AzuriteEndpoint) -> None:
    with pytest.raises(
        NotFound, match="container no-such does not exist; create it with: az storage container create"
    ):
        await AzureBackend.connect(azure_options(azurite, "no-such"))


async def test_a_container_that_went_is_not_a_missing_object(
    azurite: AzuriteEndpoint, backend: AzureBackend
) -> None:
    async with azure_service(azurite) as service:
        await service.delete_container(backend._options.container)
    with pytest.raises(Unavailable, match="ContainerNotFound"):
        await backend.stat("k")
    with pytest.raises(Unavailable, match="ContainerNotFound"):
        await backend.write("k", single(b"x"), NOTHING)


async def test_a_wrong_key_is_refused_with_the_role_that_is_needed(azurite: AzuriteEndpoint) -> None:
    container = await new_container(azurite)
    wrong = SecretStr(b64encode(b"wrong").decode())
    with pytest.raises(PermissionDenied, match="Storage Blob Data Contributor"):
        await AzureBackend.connect(azure_options(azurite, container, account_key=wrong))
    with pytest.raises(StorageError, match=r"cannot be read|could not list"):
        await AzureBackend.connect(azure_options(azurite, container, account_key=SecretStr("no base64")))


async def test_case_99_nobody_listening_is_unavailable_and_no_secret_is_told(
    azurite: AzuriteEndpoint,
) -> None:
    canary = "canary-3f1c"
    options = azure_options(
        azurite,
        "container",
        account_url=f"http://127.0.0.1:{free_port()}/devstoreaccount1",
        account_key=None,
        sas_token=SecretStr(f"sv=2024-01-01&sig={canary}"),
        retries=0,
    )
    assert canary not in repr(options)
    with pytest.raises(Unavailable) as raised:
        await AzureBackend.connect(options)
    assert canary not in repr(raised.value) + repr(raised.value.__cause__)


def response_error(status: int, code: str) -> HttpResponseError:
    error = HttpResponseError("the text of the service")
    error.status_code = status
    error.error_code = code  # type: ignore[attr-defined] # the SDK sets it so
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (response_error(403, "AuthorizationPermissionMismatch"), PermissionDenied),
        (response_error(401, ""), PermissionDenied),
        (ClientAuthenticationError("no token"), PermissionDenied),
        (response_error(404, "BlobNotFound"), NotFound),
        (response_error(404, "ContainerNotFound"), Unavailable),
        (response_error(409, "BlobAlreadyExists"), Conflict),
        (response_error(409, "BlobImmutableDueToPolicy"), PermissionDenied),
        (response_error(403, "UnauthorizedBlobOverwrite"), Conflict),
        (response_error(412, "LeaseIdMissing"), Conflict),
        (response_error(400, "Md5Mismatch"), IntegrityError),
        (response_error(400, "MetadataTooLarge"), Unsupported),
        (response_error(404, "CannotVerifyCopySource"), NotFound),
        (response_error(403, "CannotVerifyCopySource"), Unsupported),
        (response_error(500, "InternalError"), Unavailable),
        (response_error(503, "ServerBusy"), Unavailable),
        (ServiceRequestError("no route"), Unavailable),
        (OSError(24, "Too many open files"), Unavailable),
        (TimeoutError(), Unavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else f"{value!r:.60}",
)
async def test_case_59_each_refusal_has_its_class(error: Exception, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError) as raised:
        async with translated("write azure://account/container/k", 1.0):
            raise error
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert "azure://account/container/k" in str(raised.value)
    assert "the text of the service" not in str(raised.value)
