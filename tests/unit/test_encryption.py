"""Encryption: the same bytes on every redo, no key or nonce for two plaintexts, and nothing out of what was tampered with."""

import asyncio
import hashlib
import json
import subprocess
import sys
import tracemalloc
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretBytes

from backends.base import CHUNK_SIZE
from handlers.transforms import encryption_format
from handlers.transforms.base import Limits, Part
from handlers.transforms.decrypt import Decrypt
from handlers.transforms.encrypt import Encrypt
from handlers.transforms.key_ring import KeyRing
from tests.fuzz import encryption as fuzzing
from tests.fuzz.encryption import NEW, OLD, RING, decrypted, encrypted
from tests.support.tars import pieces, stream, work_of

CHUNK = 64 << 10
BATCH = 15 * CHUNK


def pattern(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def written(key: bytes, key_id: bytes, salt: bytes, chunks: list[bytes], size: int = 1024) -> list[bytes]:
    """A ciphertext by docs/encryption.md alone: its header, and its chunks."""
    start = b"\x93TLENC\r\n" + (84 + len(key_id)).to_bytes(2, "big") + b"\x01" + size.to_bytes(4, "big")
    start += bytes([len(key_id)]) + key_id + salt
    info = b"transload encryption v1: keys\0" + start
    both = HKDF(algorithm=SHA256(), length=96, salt=salt, info=info).derive(key)
    header = start + both[64:]
    header += zlib.crc32(header).to_bytes(4, "big")
    aead = AESSIV(both[:64])
    last = len(chunks) - 1
    return [
        header,
        *(
            aead.encrypt(data, [header, n.to_bytes(8, "big") + bytes([n == last])])
            for n, data in enumerate(chunks)
        ),
    ]


SALT = bytes(range(200, 232))
PLAIN = pattern(3 * 1024 + 100)
PIECES = written(NEW, b"new", SALT, list(pieces(PLAIN, 1024)))
SAMPLE = b"".join(PIECES)
"""Small chunks, so that every byte of several can be tried. The writer always takes 64 KiB; readers go by the header."""


@pytest.mark.parametrize(
    "size", [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, (3 << 20) + 5]
)
async def test_what_was_encrypted_comes_back(size: int) -> None:
    plain = pattern(size)
    for chunk in (4 << 20, 1 << 20, 70_000):
        data = await encrypted(plain, chunk=chunk)
        assert len(data) == size + 84 + 3 + 16 * max(1, -(-size // CHUNK))
        assert plain[:40] not in data or not size
        assert await decrypted(data, chunk=chunk) == (plain, None)
    small = pattern(min(size, 300))
    assert await decrypted(await encrypted(small, chunk=1), chunk=1) == (small, None)


async def test_the_part_is_named_and_typed() -> None:
    work = work_of(identity="b/1")
    part = Part(stream(b"x", 1, work), label="a.json", content_type="application/json")
    sealed = await anext(Encrypt(RING).apply(part, work))
    assert (sealed.label, sealed.content_type, sealed.key("k/a.json")) == (
        "a.json.enc",
        "application/octet-stream",
        "k/a.json.enc",
    )
    opened = await anext(Decrypt(RING).apply(sealed, work))
    assert (opened.label, opened.steps, opened.content_type) == ("a.json", ("encrypt", "decrypt"), None)
    assert b"".join([piece async for piece in opened.chunks]) == b"x"
    member = replace(part, chunks=stream(b"x", 1, work), path="in/a.json")
    assert (await anext(Encrypt(RING).apply(member, work))).key("k") == "k/in/a.json.enc"


async def test_chunks_are_small_enough_and_never_empty() -> None:
    work = work_of(identity="b/1")
    sealed = await anext(Encrypt(RING).apply(Part(stream(pattern(5 << 20), 5 << 20, work)), work))
    out = [piece async for piece in sealed.chunks]
    assert all(0 < len(piece) <= CHUNK_SIZE for piece in out)
    opened = await anext(Decrypt(RING).apply(Part(stream(b"".join(out), 5 << 20, work)), work))
    assert all([0 < len(piece) <= CHUNK_SIZE async for piece in opened.chunks])


async def test_the_same_part_gives_the_same_bytes_and_any_other_part_others() -> None:
    async def made(identity: str = "bundle/1", data: bytes = b"x" * 100, **differently: Any) -> bytes:
        work = work_of(identity=identity)
        part = replace(Part(stream(data, 7, work)), **differently)
        sealed = await anext(Encrypt(RING).apply(part, work))
        return b"".join([piece async for piece in sealed.chunks])

    assert await made() == await made()
    others = [
        await made(),
        await made("bundle/2"),
        await made(path="a"),
        await made(path="a", member="A"),
        await made(steps=("gunzip",)),
        await made(path="gunzip"),
    ]
    # Header and chunk: neither shows that it is the same plaintext.
    assert len({data[18 + 3 : 18 + 3 + 32] for data in others}) == len(others)
    assert len({data[-116:] for data in others}) == len(others)


async def test_a_payload_without_an_identity_is_not_encrypted() -> None:
    work = work_of()
    with pytest.raises(ValueError, match="identity"):
        await anext(Encrypt(RING).apply(Part(stream(b"x", 1, work)), work))


async def test_the_format_stays() -> None:
    """What was written once has to be read for ever: this digest may never change."""
    data = await encrypted(pattern(200_000))
    assert (
        hashlib.sha256(data).hexdigest() == "018c588da9a7a5f69f369dbac56a24dfe5f91ceaaa7daa63b82b6937f257a7cb"
    )


async def test_the_documents_suffice_to_write_it_and_to_read_it() -> None:
    assert await decrypted(SAMPLE) == (PLAIN, None)
    data = await encrypted(PLAIN, identity="bundle/é")
    info = b"transload encryption v1: salt\0" + json.dumps(["bundle/é", "", ""]).encode()
    salt = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(NEW)
    assert b"".join(written(NEW, b"new", salt, [PLAIN], CHUNK)) == data


async def test_case_94_every_byte_flipped() -> None:
    for at in range(len(SAMPLE)):
        flipped = SAMPLE[:at] + bytes([SAMPLE[at] ^ (1 << at % 8)]) + SAMPLE[at + 1 :]
        out, error = await decrypted(flipped, chunk=900)
        assert error is not None
        assert error.reason == "payload_corrupt"
        assert PLAIN.startswith(out)


async def test_case_94_cut_off_at_every_byte() -> None:
    for length in range(len(SAMPLE)):
        out, error = await decrypted(SAMPLE[:length], chunk=900)
        assert error is not None
        assert error.reason == "payload_corrupt"
        assert PLAIN.startswith(out)


@pytest.mark.parametrize(
    "at", [86, 87, 87 + 16, CHUNK, 87 + CHUNK + 16, 87 + CHUNK + 17, 87 + BATCH + 15 * 16, -17, -1]
)
async def test_case_94_large_payloads(at: int) -> None:
    """Cut, flipped, or with something behind: at the ends of chunks, and of what is decrypted in one go."""
    plain = pattern(BATCH + 3 * CHUNK)
    data = await encrypted(plain)
    at %= len(data)
    for changed in (data[:at], data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :], data + data[at:]):
        out, error = await decrypted(changed)
        assert error is not None
        assert error.reason == "payload_corrupt"
        assert plain.startswith(out)
        assert len(out) < len(plain)


async def test_case_94_chunks_out_of_order() -> None:
    header, *chunks = PIECES
    for count in range(1, len(chunks) + 1):
        for order in permutations(chunks, count):
            out, error = await decrypted(header + b"".join(order))
            if order == tuple(chunks):
                assert (out, error) == (PLAIN, None)
            else:
                assert error is not None
                assert (error.reason, out) == ("payload_corrupt", b"")


async def test_case_94_chunks_of_another_object() -> None:
    """Of the same key, the same place and the same plaintext."""
    header, *chunks = PIECES
    _, *others = written(NEW, b"new", bytes(32), list(pieces(PLAIN, 1024)))
    for n in range(len(chunks)):
        mixed = [*chunks[:n], others[n], *chunks[n + 1 :]]
        out, error = await decrypted(header + b"".join(mixed))
        assert error is not None
        assert (error.reason, out) == ("payload_corrupt", b"")
    assert f"chunk {len(chunks) - 1} " in str(error)


async def test_case_94_no_byte_of_a_chunk_before_it_is_authentic() -> None:
    """The first of two batches is given out; of the second, whose last chunk is damaged, nothing is."""
    plain = pattern(2 * BATCH)
    data = bytearray(await encrypted(plain))
    data[-1] ^= 1
    out, error = await decrypted(bytes(data))
    assert error is not None
    assert len(out) in range(BATCH, 2 * BATCH - CHUNK + 1)
    assert plain.startswith(out)


async def test_case_94_a_nonce_is_never_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is encrypted, and however often: under one key and nonce there is one plaintext."""
    plaintexts: defaultdict[tuple[bytes, bytes, bytes], set[bytes]] = defaultdict(set)

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key = key
            self._aead = AESSIV(key)

        def encrypt(self, data: bytes, associated: list[bytes]) -> bytes:
            header, place = associated
            plaintexts[self._key, header, place].add(bytes(data))
            return self._aead.encrypt(data, associated)

    monkeypatch.setattr(encryption_format, "AESSIV", Watched)
    for _ in range(2):
        for identity in range(40):
            for data in (b"", b"same", pattern(CHUNK), pattern(CHUNK + identity)):
                await encrypted(data, identity=f"{identity}/{len(data)}")
    assert {len(known) for known in plaintexts.values()} == {1}
    keys = {key for key, _, _ in plaintexts}
    # The empty one, "same", the two of 64 KiB of the first identity, which are one payload: then four each.
    assert len(keys) == 40 * 4 - 1
    assert len(plaintexts) == 40 * 4 - 1 + 39


async def test_case_94_misuse_is_resisted() -> None:
    """A source that changed between two tries makes two plaintexts of one part: what shows is which chunks are equal."""
    first, second = await encrypted(b"a" * CHUNK + b"b" * CHUNK), await encrypted(b"a" * CHUNK + b"c" * CHUNK)
    shared = 87 + CHUNK + 16
    assert first[:shared] == second[:shared]
    differences = bytes(x ^ y for x, y in zip(first[shared:], second[shared:], strict=True))
    # With a stream cipher under a nonce used twice this would be the plaintexts' own difference.
    assert differences.count(ord("b") ^ ord("c")) < CHUNK // 100


async def test_rotation() -> None:
    old_only = KeyRing(MappingProxyType({"old": SecretBytes(OLD)}), "old")
    new_only = KeyRing(MappingProxyType({"new": SecretBytes(NEW)}), "new")
    before, after = await encrypted(b"x", ring=old_only), await encrypted(b"x")
    assert await decrypted(before) == (b"x", None)
    assert await decrypted(after) == (b"x", None)
    out, error = await decrypted(before, ring=new_only)
    assert error is not None
    assert (out, error.reason) == (b"", "payload_unsupported")
    assert "'old'" in error.detail


async def test_another_key_under_the_same_id() -> None:
    swapped = KeyRing(MappingProxyType({"new": SecretBytes(OLD)}), "new")
    out, error = await decrypted(await encrypted(b"x"), ring=swapped)
    assert error is not None
    assert (out, error.reason) == (b"", "payload_corrupt")
    assert "'new' of the ring is not the one it names" in error.detail


@pytest.mark.parametrize("data", [b"", b"plain text", bytes(1000), b"\x93TLENC\r\n" + bytes(1000)])
async def test_what_is_not_encrypted_is_never_handed_on(data: bytes) -> None:
    out, error = await decrypted(data)
    assert error is not None
    assert (out, error.reason) == (b"", "payload_corrupt")


def rewritten(**fields: int) -> bytes:
    """The sample's header with other values and a right checksum."""
    header = bytearray(PIECES[0][:-4])
    header[10] = fields.get("version", 1)
    header[11:15] = fields.get("chunk", 1024).to_bytes(4, "big")
    header[15] = fields.get("name", 3)
    return bytes(header) + zlib.crc32(header).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 2}, "payload_unsupported"),
        ({"chunk": 0}, "payload_corrupt"),
        ({"chunk": 2048}, "payload_corrupt"),
        ({"chunk": 0xFFFFFFFF}, "payload_corrupt"),
        ({"name": 200}, "payload_corrupt"),
    ],
)
async def test_headers_that_somebody_made(fields: dict[str, int], reason: str) -> None:
    out, error = await decrypted(rewritten(**fields) + SAMPLE[len(PIECES[0]) :])
    assert error is not None
    assert (out, error.reason) == (b"", reason)
    assert await decrypted(rewritten() + SAMPLE[len(PIECES[0]) :]) == (PLAIN, None)


async def test_the_source_decides_whether_the_end_is_one() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 10
        raise OSError("the connection is gone")

    sealed = await anext(Encrypt(RING).apply(Part(broken()), work_of(identity="b")))
    with pytest.raises(OSError, match="gone"):
        [piece async for piece in sealed.chunks]


async def test_memory_is_bounded() -> None:
    size = 32 << 20

    async def plain() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield bytes(1 << 20)

    work = work_of(Limits(total=1), identity="b")
    tracemalloc.start()
    sealed = await anext(Encrypt(RING).apply(Part(plain()), work))
    opened = await anext(Decrypt(RING).apply(sealed, work))
    total = 0
    async for piece in opened.chunks:
        total += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < 16 << 20


@given(fuzzing.CHANGED)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fuzz(changed: tuple[bytes, bytes]) -> None:
    fuzzing.whole(*changed)


@given(st.binary(max_size=300))
@settings(max_examples=40, deadline=None)
def test_fuzz_of_any_bytes(data: bytes) -> None:
    fuzzing.fuzz(data)


async def test_the_program_in_the_documents_reads_it(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "encryption.md").read_text(encoding="utf-8")
    program = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "key").write_text(NEW.hex(), encoding="utf-8")
    for size in (0, 100, 3 * CHUNK):
        (tmp_path / "data").write_bytes(await encrypted(pattern(size)))
        command = [sys.executable, "-c", program, str(tmp_path / "key"), str(tmp_path / "data")]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
        assert done.stdout == pattern(size)
