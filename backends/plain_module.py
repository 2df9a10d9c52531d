"""The backend for a plain Python module with `save`, `get` and `delete`, as vCon servers load them. Called through the port only.

    default_options = {"path": "/data"}

    def save(key, opts, payload): ...     # required
    def get(key, opts): ...               # the payload, or None when there is none
    def delete(key, opts): ...            # True when there was something to delete

The functions may be `async`; others run in threads. `opts` is the module's `default_options` with the configured ones over
them, a new dict each time. A `save` that takes a third argument (or a keyword `payload`) gets the bytes there; one that takes
two finds them as `opts["payload"]`. The module is named by configuration, never by a message.

How this adapter differs:

- A payload is held whole; one larger than `max_size` is `Unsupported`, before anything is saved.
- `save` is as atomic and as durable as the module makes it. With `get`, what lies there is compared before a save, so that
  nothing is replaced, and after it, so that a `save` that swallows its error is found out. Between the look and the save
  only writers of this process are kept away: two processes may both find the key free, and then the later save wins.
- Without `get` nothing can be compared: a second save replaces the first.
- What `get` returns is `bytes`, or text, or anything that JSON can say. The last is compared as a document and read as
  compact JSON, which need not be the bytes that were saved.
- A thread cannot be stopped: a cancelled caller waits for it until `timeout`. After that it is left alone, and may still do
  what it was about to.
- Nothing is known of what killed writers leave, so `sweep` removes nothing.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

from backends.base import (
    CHUNK_SIZE,
    Attributes,
    BackendOptions,
    Features,
    ObjectStat,
    Promise,
    Receipt,
    StorageBackend,
    check_key,
)
from backends.errors import Conflict, IntegrityError, NotFound, StorageError, Unavailable, Unsupported
from backends.failpoints import failpoint
from backends.plain_module_calls import Calls
from backends.plain_module_loading import Module, ModuleOptions, load

_PROBE = "transload-health-check"


class ModuleBackend:
    """Payloads handed to a module's functions. See the module's docstring for what differs from the port."""

    Options: ClassVar[type[BackendOptions]] = ModuleOptions

    def __init__(self, options: ModuleOptions, module: Module) -> None:
        """Use `connect`, which loads the module."""
        self._options = options
        self._module = module
        self._calls = Calls(options, module)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def connect(cls, options: BackendOptions) -> Self:
        """Import the module. Whether its store answers is seen by `health`."""
        options = _checked(options)
        return cls(options, load(options))

    @classmethod
    def location_of(cls, options: BackendOptions) -> str:
        """`module://`, the import path, `/`."""
        return f"module://{_checked(options).module}/"

    @classmethod
    def features_of(cls, options: BackendOptions) -> Features:
        """What the functions that are there can do; the module is imported to see them."""
        options = _checked(options)
        return _features(options, load(options))

    @property
    def features(self) -> Features:
        """What the functions that are there can do."""
        return _features(self._options, self._module)

    @property
    def location(self) -> str:
        """`module://`, the import path, `/`."""
        return self.location_of(self._options)

    @property
    def write_buffer(self) -> int:
        """The payload while it is put together and as a whole, and what `get` gave back."""
        return 3 * self._options.max_size

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """What `get` returns, whole, in pieces."""
        data = await self._read(key)
        if data is None:
            raise NotFound(f"{self.location}: no object {key!r}")
        async with aclosing(_pieces(data)) as chunks:
            yield chunks

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:  # noqa: ARG002 - the form has no place for them
        """One `save`, unless an equal payload lies there."""
        check_key(key)
        payload = await self._gathered(key, chunks)
        digest = hashlib.sha256(payload).hexdigest()
        if not self.features.create_only:
            await self._save(key, payload)
            return Receipt(key, len(payload), digest)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            created = await self._save_compared(key, payload)
        return Receipt(key, len(payload), digest, created=created)

    async def _gathered(self, key: str, chunks: AsyncIterator[bytes]) -> bytes:
        gathered = bytearray()
        async for chunk in chunks:
            if len(gathered) + len(chunk) > self._options.max_size:
                raise Unsupported(
                    f"{self.location}: the payload of {key!r} exceeds max_size ({self._options.max_size} bytes)"
                )
            gathered += chunk
        return bytes(gathered)

    async def _save_compared(self, key: str, payload: bytes) -> bool:
        """False when the payload lay there already."""
        there = await self._get(key)
        if there is not None:
            if not await asyncio.to_thread(_equal, there, payload):
                raise Conflict(f"{self.location}: another object lies under {key!r}; it was left as it is")
            return False
        await self._save(key, payload)
        there = await self._get(key)
        if there is None:
            raise Unavailable(f"{self.location}: `save` returned, yet `get` finds nothing under {key!r}")
        if not await asyncio.to_thread(_equal, there, payload):
            raise IntegrityError(f"{self.location}: `get` does not return what was saved under {key!r}")
        return True

    async def _save(self, key: str, payload: bytes) -> None:
        save, options = self._module.save, dict(self._module.options)
        if self._module.payload == "third":
            call = partial(save, self._name(key), options, payload)
        elif self._module.payload == "keyword":
            call = partial(save, self._name(key), options, payload=payload)
        else:
            call = partial(save, self._name(key), options | {"payload": payload})
        where = f"{self.location}: save of {key!r}"
        with self._calls.translated(where):
            failpoint("module.save.before")
            await self._calls.run(call, where)
            failpoint("module.save.after")

    async def _get(self, key: str) -> Any:
        if self._module.get is None:
            raise Unsupported(f"{self.location}: the module has no `get`")
        call = partial(self._module.get, self._name(key), dict(self._module.options))
        return await self._calls.run(call, f"{self.location}: get of {key!r}")

    async def _read(self, key: str) -> bytes | None:
        found = await self._get(check_key(key))
        if found is None:
            return None
        try:
            return await asyncio.to_thread(_encoded, found)
        except (TypeError, ValueError, RecursionError) as exc:
            raise StorageError(
                f"{self.location}: get of {key!r} returned a {type(found).__qualname__}, neither bytes nor JSON"
            ) from exc

    async def stat(self, key: str) -> ObjectStat | None:
        """The size of what `get` returns."""
        data = await self._read(key)
        return None if data is None else ObjectStat(key, len(data))

    def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        """Never: the form has no function for it."""
        raise Unsupported(f"{self.location}{prefix} cannot be listed: such modules have no function for it")

    async def delete(self, key: str) -> bool:
        """What the module's `delete` says."""
        check_key(key)
        if self._module.delete is None:
            raise Unsupported(f"{self.location}: the module has no `delete`")
        call = partial(self._module.delete, self._name(key), dict(self._module.options))
        where = f"{self.location}: delete of {key!r}"
        with self._calls.translated(where):
            failpoint("module.delete.before")
            deleted = await self._calls.run(call, where)
            failpoint("module.delete.after")
        return bool(deleted)

    async def copy_from(
        self,
        source: StorageBackend,
        source_key: str,
        key: str,
        attributes: Attributes,  # noqa: ARG002 - refused whatever they are
        promise: Promise,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Never: `features.server_copy` is off."""
        raise Unsupported(f"{self.location} cannot copy {source.location}{source_key} to {key!r} by itself")

    async def sweep(self, older_than: float, prefix: str = "") -> int:  # noqa: ARG002 - there is nothing to look at
        """Nothing is known of what is left."""
        return 0

    async def health(self) -> None:
        """Where there is a `get`: that it answers, asked for something nobody has saved."""
        if self._module.get is not None:
            await self._get(_PROBE)

    async def aclose(self) -> None:
        """Wait a moment for calls in progress."""
        await self._calls.aclose()

    def _name(self, key: str) -> str:
        return key.replace("%", "%25").replace("/", "%2F") if self._options.flat_keys else key


def _checked(options: BackendOptions) -> ModuleOptions:
    if not isinstance(options, ModuleOptions):
        raise TypeError(f"ModuleBackend takes ModuleOptions, not {type(options).__name__}")
    return options


def _features(options: ModuleOptions, module: Module) -> Features:
    return Features(
        attributes=False,
        reads=module.get is not None,
        lists=False,
        deletes=module.delete is not None,
        create_only=module.get is not None and options.compare,
    )


def _encoded(found: Any) -> bytes:
    if isinstance(found, bytes | bytearray | memoryview):
        return bytes(found)
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def _equal(found: Any, payload: bytes) -> bool:
    """Whether `get` returned the payload: the bytes, or the document they are."""
    if isinstance(found, bytes | bytearray | memoryview | str):
        return _encoded(found) == payload
    try:
        # Compared as text, because to Python 1, 1.0 and True are equal.
        return json.dumps(found, sort_keys=True) == json.dumps(json.loads(payload), sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), CHUNK_SIZE):
        yield data[start : start + CHUNK_SIZE]
