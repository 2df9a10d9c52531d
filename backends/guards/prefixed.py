"""All keys of a target under one prefix of its store. Put around a backend by backends/guards/stack.py."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field

from backends.base import Attributes, ObjectStat, Promise, Receipt, StorageBackend, check_key
from backends.errors import InvalidKey
from backends.wrapper import Wrapper


def _usable(prefix: str) -> str:
    """Without slashes at its ends, so that neither `` nor `a/` makes a key with `//`."""
    bare = prefix.strip("/")
    try:
        return check_key(bare) if bare else bare
    except InvalidKey as exc:
        raise ValueError(str(exc)) from exc


Prefix = Annotated[
    str,
    AfterValidator(_usable),
    Field(description="Prefix of every key, whole segments (`raw/html`); slashes at its ends do not matter."),
]


class Prefixed(Wrapper):
    """The part of a store under `prefix/`. Keys may be shorter by as much; the store's messages tell them whole."""

    def __init__(self, inner: StorageBackend, prefix: str) -> None:
        """`prefix` is non-empty and a usable key by itself."""
        super().__init__(inner)
        self._prefix = f"{check_key(prefix)}/"

    def inner_key(self, key: str) -> str:
        """The prefix, and the key if it can be used. Raises `InvalidKey`."""
        return self._prefix + check_key(key)

    @property
    def location(self) -> str:
        """The store's and the prefix; percent-quoted in a file URL, as the store's part is."""
        is_file = urlsplit(self.inner.location).scheme == "file"
        return self.inner.location + (quote(self._prefix) if is_file else self._prefix)

    def open(self, key: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self.inner.open(self.inner_key(key))

    async def write(self, key: str, chunks: AsyncIterator[bytes], attributes: Attributes) -> Receipt:
        return replace(await self.inner.write(self.inner_key(key), chunks, attributes), key=key)

    async def stat(self, key: str) -> ObjectStat | None:
        found = await self.inner.stat(self.inner_key(key))
        return found and replace(found, key=key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectStat]:
        async for found in self.inner.list(self._prefix + prefix):
            yield replace(found, key=found.key.removeprefix(self._prefix))

    async def delete(self, key: str) -> bool:
        return await self.inner.delete(self.inner_key(key))

    async def copy_from(
        self, source: StorageBackend, source_key: str, key: str, attributes: Attributes, promise: Promise
    ) -> Receipt:
        receipt = await self.inner.copy_from(source, source_key, self.inner_key(key), attributes, promise)
        return replace(receipt, key=key)

    async def sweep(self, older_than: float, prefix: str = "") -> int:
        return await self.inner.sweep(older_than, self._prefix + prefix)
