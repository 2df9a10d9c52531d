"""What `get` gives out: parts put together, ciphertext decrypted, and nothing that is not proven."""

import gzip
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import CHUNK_SIZE, Attributes, StorageBackend, single
from backends.errors import IntegrityError, NotFound, StorageError
from backends.memory import MemoryBackend, MemoryOptions
from handlers.errors import HandlerError
from handlers.transforms.key_ring import KeyOptions, KeyRingOptions
from handlers.transforms.parts_list import LIMIT
from tests.unit.test_size_policy import made, policy
from worker.objects import Address
from worker.reading_back import Content, content, located, missing

PLACE = Address("target", "main", None)
KEY = "k/a.bin"
NOTHING = Attributes()
DATA = os.urandom(250)
KEYS = KeyRingOptions(primary="k", keys={"k": KeyOptions.model_validate({"key": bytes(range(32)).hex()})})


@pytest.fixture
async def store() -> AsyncIterator[StorageBackend]:
    backend = await MemoryBackend.connect(MemoryOptions())
    yield backend
    await backend.aclose()


async def stored(store: StorageBackend, data: bytes = DATA, over: str = "split", *steps: str) -> None:
    """As a worker leaves it, in parts of 100 bytes."""
    found = await made(policy(over, 100, *steps), data)
    for key, each in found.objects.items():
        await put(store, key, each)


async def put(store: StorageBackend, key: str, data: bytes) -> None:
    await store.delete(key)
    await store.write(key, single(data), NOTHING)


async def taken(store: StorageBackend, key: str = KEY, **options: Any) -> tuple[bytes, Content]:
    """As `get` does it."""
    lying = key if options.get("raw") else await located(store, key)
    async with content(store, PLACE, lying, **options) as found:
        return b"".join([chunk async for chunk in found.chunks]), found


async def raw(store: StorageBackend, key: str) -> bytes:
    async with store.open(key) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("key", [KEY, f"{KEY}.parts.json"])
async def test_parts_are_put_together(store: StorageBackend, key: str) -> None:
    await stored(store)
    data, found = await taken(store, key)
    assert data == DATA
    assert (found.name, found.size, found.steps) == ("a.bin", 250, ("put together from 3 parts",))
    listed = await raw(store, f"{KEY}.parts.json")
    assert found.lying.facts().size == len(listed)
    assert (await taken(store, f"{KEY}.parts.json", raw=True))[0] == listed


async def test_a_part_is_an_object_like_any_other(store: StorageBackend) -> None:
    await stored(store)
    data, found = await taken(store, f"{KEY}.part-00002")
    assert (data, found.name, found.steps) == (DATA[100:200], "a.bin.part-00002", ())


async def test_the_object_itself_goes_first(store: StorageBackend) -> None:
    await stored(store)
    await put(store, KEY, b"whole")
    assert (await taken(store))[0] == b"whole"


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("how", ["flipped", "short", "long", "missing"])
async def test_damage_of_any_part_is_found(store: StorageBackend, part: int, how: str) -> None:
    await stored(store)
    key = f"{KEY}.part-{part:05d}"
    data = await raw(store, key)
    bad = {"flipped": bytes([data[0] ^ 1]) + data[1:], "short": data[:-1], "long": data + b"x"}
    if how == "missing":
        await store.delete(key)
    else:
        await put(store, key, bad[how])
    with pytest.raises(IntegrityError, match=f"main:{key} (has|is missing)"):
        await taken(store)


@pytest.mark.parametrize("damage", ["parts", "size", "sha256"])
async def test_damage_of_the_list_is_found(store: StorageBackend, damage: str) -> None:
    await stored(store)
    facts = json.loads(await raw(store, f"{KEY}.parts.json"))
    changed: dict[str, Any] = {"parts": facts["parts"][:2], "size": 249, "sha256": "0" * 64}
    await put(store, f"{KEY}.parts.json", json.dumps({**facts, damage: changed[damage]}).encode())
    with pytest.raises(IntegrityError, match=r"main:k/a\.bin"):
        await taken(store)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff", bytes(LIMIT + 1)], ids=["empty", "other", "bytes", "large"]
)
async def test_what_only_has_the_name_of_a_list(store: StorageBackend, data: bytes) -> None:
    key = "k/x.parts.json"
    await put(store, key, data)
    with pytest.raises(IntegrityError, match=r"is no list of parts.*--raw"):
        await taken(store, key)
    assert (await taken(store, key, raw=True))[0] == data


async def test_what_is_encrypted_is_decrypted(store: StorageBackend) -> None:
    await stored(store, DATA, "split", "encrypt")
    data, found = await taken(store, f"{KEY}.enc", keys=KEYS)
    assert data == DATA
    assert found.name == "a.bin"
    assert found.steps[1:] == ("decrypted with the key k",)
    small = b"small"
    large = os.urandom(CHUNK_SIZE + 3)
    for each in (b"", small, large):
        made_of = await made(policy("reject", 1 << 30, "encrypt"), each)
        await put(store, "k/b.enc", made_of.objects[f"{KEY}.enc"])
        data, found = await taken(store, "k/b.enc", keys=KEYS)
        assert (data, found.name) == (each, "b")
        assert found.lying.facts().size == made_of.parts[0].size
        assert (await taken(store, "k/b.enc", raw=True))[0] == made_of.objects[f"{KEY}.enc"]


@pytest.mark.parametrize(
    "keys", [None, KeyRingOptions(primary="other", keys={"other": KEYS.keys["k"]})], ids=["none", "other"]
)
async def test_a_key_that_is_missing_is_named(store: StorageBackend, keys: KeyRingOptions | None) -> None:
    await put_encrypted(store)
    with pytest.raises(StorageError, match=r"encrypted with the key 'k', .* encryption\.keys .*--raw"):
        await taken(store, "k/b.enc", keys=keys)


async def put_encrypted(store: StorageBackend, data: bytes = DATA) -> bytes:
    found = await made(policy("reject", 1 << 30, "encrypt"), data)
    await put(store, "k/b.enc", found.objects[f"{KEY}.enc"])
    return found.objects[f"{KEY}.enc"]


async def test_only_the_key_that_is_needed_is_loaded(store: StorageBackend, tmp_path: Path) -> None:
    await put_encrypted(store)
    absent = KeyOptions(key_file=tmp_path / "absent")
    both = KeyRingOptions(primary="gone", keys={**KEYS.keys, "gone": absent})
    assert (await taken(store, "k/b.enc", keys=both))[0] == DATA
    with pytest.raises(HandlerError, match="absent cannot be read"):
        await taken(store, "k/b.enc", keys=KeyRingOptions(primary="k", keys={"k": absent}))


@pytest.mark.parametrize("place", [0, 9, 30, -1])
async def test_no_plaintext_ends_well_that_is_not_authentic(store: StorageBackend, place: int) -> None:
    sealed = bytearray(await put_encrypted(store))
    sealed[place] ^= 1
    await put(store, "k/b.enc", bytes(sealed))
    with pytest.raises(IntegrityError, match=r"main:k/b\.enc"):
        await taken(store, "k/b.enc", keys=KEYS)


async def test_a_part_of_a_ciphertext_is_had_as_it_lies(store: StorageBackend) -> None:
    await stored(store, DATA, "split", "encrypt")
    part = f"{KEY}.enc.part-00001"
    with pytest.raises(IntegrityError, match="--raw gives it as it lies"):
        await taken(store, part, keys=KEYS)
    assert (await taken(store, part, raw=True))[0] == await raw(store, part)


async def test_nothing_goes_for_encrypted_by_its_name_alone(store: StorageBackend) -> None:
    await put(store, "k/b.enc", b"theirs")
    with pytest.raises(IntegrityError, match=r"does not begin like .*--raw"):
        await taken(store, "k/b.enc", keys=KEYS)


@pytest.mark.parametrize(
    ("name", "data"), [("a.bin.zst", None), ("a.bin.gz", gzip.compress(DATA)), ("a.bin", DATA)]
)
async def test_compression_stays_unless_it_is_asked_for(
    store: StorageBackend, name: str, data: bytes | None
) -> None:
    zeros = bytes(40_000_000)
    if data is None:
        found = await made(policy("compress", 100_000), zeros, chunk=CHUNK_SIZE)
        data = found.objects[f"{KEY}.zst"]
    await put(store, f"k/{name}", data)
    lying, found_there = await taken(store, f"k/{name}")
    assert (lying, found_there.name) == (data, name)
    plain, found_there = await taken(store, f"k/{name}", decompress=True)
    assert plain == (zeros if name.endswith("zst") else DATA)
    assert found_there.name == "a.bin"


async def test_damage_of_what_is_decompressed_is_found(store: StorageBackend) -> None:
    await put(store, "k/a.gz", gzip.compress(DATA)[:-1])
    with pytest.raises(IntegrityError, match=r"main:k/a\.gz: gzip"):
        await taken(store, "k/a.gz", decompress=True)


async def test_what_is_not_there(store: StorageBackend) -> None:
    with pytest.raises(NotFound):
        await taken(store, "k/none")
    with pytest.raises(NotFound):
        await taken(store, "k" * 1020)
    assert str(await missing(store, PLACE, "k/none", "; look")) == "there is no main:k/none; look"
    await stored(store)
    told = str(await missing(store, PLACE, KEY))
    assert "main:k/a.bin.parts.json" in told
    assert "`transload ls main:k/a.bin.part`" in told
