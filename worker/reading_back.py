"""What `transload get` gives out of what lies in a store: parts put together, ciphertext decrypted, where asked decompressed.

Called by worker/cli_objects.py. Nothing is trusted before it is proven, and what turns out wrong raises in place of the end: whoever
takes the chunks must not take them for a whole before.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from backends.base import StorageBackend, check_key
from backends.errors import IntegrityError, InvalidKey, NotFound, StorageError
from handlers.errors import Refused
from handlers.transforms import encryption_magic
from handlers.transforms.base import Limits, Meter, Part, Transform, Work
from handlers.transforms.key_ring import KeyRingOptions, load_ring
from handlers.transforms.offload import offloaded
from handlers.transforms.parts_list import LIMIT, SUFFIX, PartsList
from handlers.transforms.peek import peek
from handlers.transforms.registry import TRANSFORMS
from worker.objects import Address, Copied

_HEADER = 512
"""Bytes that hold any header of `encrypt`."""
_BOUNDLESS = 1 << 62
_UNBOUNDED = Limits(ratio=_BOUNDLESS, total=_BOUNDLESS, entry=_BOUNDLESS)
"""Whoever asks for the content has seen what it is and where it goes. The memory of decoders stays bounded."""


@dataclass(slots=True)
class Content:
    """What is given out. `lying` is complete when `chunks` have been read."""

    chunks: AsyncIterator[bytes]
    name: str
    """For a file: the key's last segment, without the suffixes of what was undone."""
    lying: "Lying"
    size: int | None = None
    """Bytes to be read from the store, where known."""
    steps: tuple[str, ...] = ()
    """What was undone, as a person is told."""


class Lying:
    """Size and SHA-256 of the object that the ledger knows: the one of the key, or the list of its parts."""

    def __init__(self) -> None:
        self._size = 0
        self._digest = sha256()

    def add(self, data: bytes) -> None:
        self._size += len(data)
        self._digest.update(data)

    def facts(self) -> Copied:
        return Copied(self._size, self._digest.hexdigest())


async def located(backend: StorageBackend, key: str) -> str:
    """The key to read for `key`: that of the list of its parts, where there is only that. Raises `StorageError`."""
    listed = f"{key}{SUFFIX}"
    try:
        check_key(listed)
    except InvalidKey:
        return key
    if await backend.stat(key) is None and await backend.stat(listed) is not None:
        return listed
    return key


async def missing(backend: StorageBackend, place: Address, key: str, otherwise: str = "") -> NotFound:
    """The error for an object that is not there; it tells where its parts are, if it was split."""
    listed = await located(backend, key) if backend.features.reads else key
    if listed == key:
        return NotFound(f"there is no {place.of(key)}{otherwise}")
    return NotFound(
        f"{place.of(key)} lies in parts, listed in {place.of(listed)}; `transload ls {place.of(f'{key}.part')}` shows them all. "
        "Of each the ledger knows by itself: name the one you mean (to delete all, the list first)"
    )


@asynccontextmanager
async def content(
    backend: StorageBackend,
    place: Address,
    key: str,
    *,
    raw: bool = False,
    decompress: bool = False,
    keys: KeyRingOptions | None = None,
) -> AsyncGenerator[Content, None]:
    """What to give out for the object under `key`; with `raw` as it lies. `keys`: what the settings say of them.

    Entering and reading raise `StorageError`: `IntegrityError` for what is not what it should be; `KeyUnusable` where a key is
    there and cannot be used.
    """
    what = place.of(key)
    async with AsyncExitStack() as stack:
        try:
            found = await _opened(backend, place, key, stack, raw=raw)
            if not raw:
                found = await _decrypted(found, what, keys, stack)
            if decompress:
                found = await _decompressed(found, stack)
            yield found
        except Refused as exc:
            raise IntegrityError(f"{what}: {exc.detail}; --raw gives it as it lies") from exc


async def _opened(
    backend: StorageBackend, place: Address, key: str, stack: AsyncExitStack, *, raw: bool
) -> Content:
    name, lying = key.rpartition("/")[2], Lying()
    chunks = _noted(await stack.enter_async_context(backend.open(key)), lying)
    if raw or not key.endswith(SUFFIX):
        return Content(chunks, name, lying)
    listed = await _list(chunks, place.of(key))
    count = len(listed.parts)
    parts = await stack.enter_async_context(
        aclosing(_together(backend, place, key.removesuffix(SUFFIX), listed))
    )
    steps = (f"put together from {count} parts",)
    return Content(parts, name.removesuffix(SUFFIX), lying, listed.size, steps)


async def _noted(chunks: AsyncIterator[bytes], lying: Lying) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        await offloaded(len(chunk), partial(lying.add, chunk))
        yield chunk


async def _list(chunks: AsyncIterator[bytes], what: str) -> PartsList:
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) > LIMIT:
            raise IntegrityError(
                f"{what} is no list of parts: it has more than {LIMIT} bytes; --raw gives it as it lies"
            )
    try:
        return PartsList.decode(bytes(held))
    except ValueError as exc:
        reason = " ".join(str(exc).split())[:300]
        raise IntegrityError(
            f"{what} is no list of parts, or is damaged; --raw gives it as it lies ({reason})"
        ) from exc


async def _together(
    backend: StorageBackend, place: Address, key: str, listed: PartsList
) -> AsyncGenerator[bytes, None]:
    """The parts, one after the other, each held to what the list says of it, and the whole as well."""
    whole = Lying()
    for part in listed.parts:
        part_key, read = f"{key}.{part.name}", Lying()
        try:
            async with backend.open(part_key) as chunks:
                async for chunk in _noted(_noted(chunks, read), whole):
                    yield chunk
        except NotFound as exc:
            raise IntegrityError(
                f"{place.of(part_key)} is missing; {place.of(key)} cannot be put together"
            ) from exc
        _check(place.of(part_key), read.facts(), part.size, part.sha256)
    _check(place.of(key), whole.facts(), listed.size, listed.sha256)


def _check(what: str, read: Copied, size: int, digest: str) -> None:
    if (read.size, read.sha256) != (size, digest):
        raise IntegrityError(
            f"{what} has {read.size} bytes with SHA-256 {read.sha256}; the list of parts says {size} with {digest}"
        )


async def _decrypted(
    found: Content, what: str, keys: KeyRingOptions | None, stack: AsyncExitStack
) -> Content:
    head, chunks = await peek(found.chunks, _HEADER)
    found.chunks = chunks
    if not head.startswith(encryption_magic.MAGIC):
        if found.name.endswith(encryption_magic.SUFFIX):
            # It may be anybody's that was put in the place of ours.
            raise IntegrityError(
                f"{what} does not begin like what `encrypt` writes, though it is called so; --raw gives it as it lies"
            )
        return found
    decrypt: Any = TRANSFORMS.load("decrypt")
    # Its format needs the package that was just found to be there.
    from handlers.transforms.encryption_format import START, header_length, parse  # noqa: PLC0415

    key_id = parse(head[: header_length(head[:START])]).key_id
    if keys is None or key_id not in keys.keys:
        raise StorageError(
            f"{what} is encrypted with the key {key_id!a}, which is not among encryption.keys of the settings; "
            "add it there, or take it as it lies with --raw"
        )
    # The others may be out of reach here, and are not needed.
    ring = await load_ring(keys.model_copy(update={"keys": {key_id: keys.keys[key_id]}, "primary": key_id}))
    return await _undone(found, decrypt(ring), f"decrypted with the key {key_id}", stack)


async def _decompressed(found: Content, stack: AsyncExitStack) -> Content:
    """By zstd or gzip, which `compress` writes; anything else is left as it is."""
    for name in ("unzstd", "gunzip"):
        step: Any = TRANSFORMS.load(name)
        unpack = step()
        head, found.chunks = await peek(found.chunks, unpack.look)
        if unpack.begins(head):
            return await _undone(found, unpack, "decompressed", stack)
    return found


async def _undone(found: Content, step: Transform, told: str, stack: AsyncExitStack) -> Content:
    part = Part(found.chunks, label=found.name)
    meter = Meter(_UNBOUNDED)
    meter.read(1)
    parts = await stack.enter_async_context(aclosing(step.apply(part, Work(meter, Path()))))
    made = await anext(parts)
    return replace(found, chunks=made.chunks, name=made.label, steps=(*found.steps, told))
