"""Checksums that a message promises: how they are written, and that nothing is stored that does not have them."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import CHUNK_SIZE, Promise, Receipt, StorageBackend, single
from backends.checksums import Algorithm, in_base64, running
from backends.errors import IntegrityError, Unsupported
from backends.file import FileBackend, FileOptions
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import Refused
from handlers.execute import execute
from handlers.messages import ResourceFetched, decode, encode, json_schema
from handlers.plan import StorePlan
from handlers.transforms.gunzip import Gunzip
from handlers.transforms.untar import Untar
from tests.unit.test_execute import NOTHING, World, contents, sha256

ALGORITHMS: tuple[Algorithm, ...] = ("crc32c", "crc64nvme", "md5")
SMALL = b"data"
LARGE = b"more data" * CHUNK_SIZE


def of(algorithm: Algorithm, data: bytes) -> bytes:
    checksum = running(algorithm)
    checksum.update(data)
    return checksum.digest()


def message(checksums: object, **payload: object) -> bytes:
    return json.dumps(
        {
            "type": "resource.fetched",
            "version": 1,
            "id": "m",
            "bundle": {"bid": "test-a", "recipe_id": "r"},
            "resource": {"url": "https://example.com/page.html"},
            "payload": {"location": "s3://staging/x", "checksums": checksums, **payload},
        }
    ).encode()


def fetched(checksums: object, **payload: object) -> ResourceFetched:
    command = decode(message(checksums, **payload))
    assert isinstance(command, ResourceFetched)
    return command


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_base64_as_stores_tell_it_or_in_hex(algorithm: Algorithm) -> None:
    digest = of(algorithm, SMALL)
    for text in (in_base64(digest), digest.hex(), digest.hex().upper()):
        command = fetched({algorithm: text})
        assert command.payload.promised == {algorithm: digest.hex()}
        assert decode(encode(command)) == command


def test_any_of_them_none_of_them_and_some_that_nobody_knows() -> None:
    everything = {algorithm: of(algorithm, SMALL).hex() for algorithm in ALGORITHMS}
    assert fetched(everything).payload.promised == everything
    for nothing in (None, {}, {"md5": None}, {"sha512": "…", "crc32": 5}):
        assert fetched(nothing).payload.promised == {}


@pytest.mark.parametrize(
    ("checksums", "expected"),
    [
        ({"crc32c": "hunter2canary"}, "payload.checksums.crc32c: a crc32c is 4 bytes in base64, or 8 hex"),
        ({"crc64nvme": 5}, "payload.checksums.crc64nvme: Input should be a valid string"),
        ({"md5": "6b3c=-2"}, "payload.checksums.md5: a md5 with '-' in it is made of the checksums of parts"),
        ({"md5": "a" * 65}, "payload.checksums.md5: String should have at most 64"),
        ("6b3c", "payload.checksums: "),
    ],
)
def test_what_is_no_checksum_is_malformed(checksums: object, expected: str) -> None:
    with pytest.raises(Refused) as caught:
        decode(message(checksums))
    assert caught.value.reason == "malformed"
    assert expected in caught.value.detail
    assert "hunter2canary" not in caught.value.detail


def test_the_schema_names_them() -> None:
    assert set(json_schema()["$defs"]["Checksums"]["properties"]) == set(ALGORITHMS)


def test_without_a_sha256_they_say_which_payload_it_is() -> None:
    one, other = ({"crc32c": of("crc32c", data).hex()} for data in (b"one", b"other"))
    assert fetched(one).fingerprint != fetched(other).fingerprint
    assert fetched(one).fingerprint != fetched(None).fingerprint
    assert fetched({}).fingerprint == fetched(None).fingerprint
    promised = {"sha256": sha256(b"one")}
    assert fetched(one, **promised).fingerprint == fetched(None, **promised).fingerprint


@pytest.fixture(params=["file", "memory"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        backends: list[StorageBackend] = [await MemoryBackend.connect(MemoryOptions()) for _ in range(3)]
    else:
        backends = [await FileBackend.connect(FileOptions(root=tmp_path / name)) for name in "abc"]
    yield World(*backends)
    for backend in backends:
        await backend.aclose()


def promising(world: World, checksums: Mapping[Algorithm, str], **more: Any) -> StorePlan:
    plan = world.plan(size=None, digest=None)
    return replace(plan, source=replace(plan.source, checksums=checksums), **more)


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_what_has_them_all_is_stored(world: World, data: bytes) -> None:
    await world.stage(data)
    plan = promising(world, {algorithm: of(algorithm, data).hex() for algorithm in ALGORITHMS})
    receipts = await world.run(plan)
    assert [(receipt.size, receipt.sha256) for receipt in receipts] == [(len(data), sha256(data))] * 2


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_case_67_what_lacks_one_of_them_leaves_nothing(
    world: World, algorithm: Algorithm, data: bytes
) -> None:
    await world.stage(data)
    checksums = {each: of(each, data).hex() for each in ALGORITHMS}
    checksums[algorithm] = of(algorithm, data + b"!").hex()
    with pytest.raises(IntegrityError, match=f"{algorithm} .* was promised") as raised:
        await world.run(promising(world, checksums))
    assert raised.value.retryable
    assert await world.nothing_is_left()


@pytest.mark.parametrize("transform", [Gunzip(), Untar()], ids=["streaming", "early"])
async def test_they_are_those_of_the_payload_before_its_transforms(
    world: World, transform: Any, tmp_path: Path
) -> None:
    await world.stage(SMALL)
    right = promising(world, {"md5": of("md5", SMALL).hex()}, transforms=(transform,))
    assert len((await execute(right, world.staging, world.targets, None, tmp_path)).placements) == 2
    for target in world.targets.values():
        for key in await contents(target):
            await target.delete(key)
    wrong = promising(world, {"md5": of("md5", LARGE).hex()}, transforms=(transform,))
    with pytest.raises(IntegrityError):
        await execute(wrong, world.staging, world.targets, None, tmp_path)
    assert await world.nothing_is_left()


class Copying(MemoryBackend):
    """Copies inside the store whatever it is asked to, and can prove one kind of checksum."""

    asked: Promise | None = None
    shows = True

    @property
    def features(self) -> Any:
        return replace(super().features, server_copy=True, copy_proves=frozenset({"md5"}))

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Any, promise: Promise
    ) -> Receipt:
        self.asked = promise
        if not self.shows:
            raise Unsupported("no such checksum")
        async with source.open(source_key) as chunks:
            return await self.write(key, chunks, attributes)


@pytest.mark.parametrize(("algorithm", "shows"), [("md5", True), ("md5", False), ("crc32c", True)])
async def test_a_store_copies_only_what_it_can_prove_and_the_rest_is_read(
    algorithm: Algorithm, shows: bool
) -> None:
    first, second, third = [await Copying.connect(MemoryOptions()) for _ in range(3)]
    world = World(first, second, third)
    second.shows = third.shows = shows
    await first.write("x", single(LARGE), NOTHING)
    checksums = {algorithm: of(algorithm, LARGE).hex()}
    await world.run(promising(world, checksums))
    assert second.asked == (Promise(checksums=checksums) if algorithm == "md5" else None)
    wrong = promising(world, {algorithm: of(algorithm, SMALL).hex()})
    if second.asked is None or not shows:
        for target in (second, third):
            for key in await contents(target):
                await target.delete(key)
        with pytest.raises(IntegrityError):
            await world.run(wrong)
        assert await world.nothing_is_left()
