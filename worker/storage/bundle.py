"""One bundle in a fetcher's own process: every resource is stored, and recorded, before `add_resource` returns.

Made by worker/storage/own.py. What a worker would receive is handed to the pipeline here.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from glob import escape
from itertools import count
from typing import Any

import structlog

from backends.base import Attributes
from backends.errors import StorageError
from handlers.errors import Refused
from handlers.messages import Payload
from handlers.naming import resource_name
from worker.attempts import Attempt
from worker.disposition import Failure, decide
from worker.ledger.values import BundleRecord, Search
from worker.producer import BundleMessages, ProducerError
from worker.queues.base import Retry
from worker.storage.announcing import Hooks, announce, reference
from worker.storage.base import BundleRef
from worker.storage.keeper import Keeper
from worker.storage.parts import Parts


class BundleStorageContext:
    """One bundle being fetched. Resources may be added concurrently."""

    def __init__(
        self,
        ref: BundleRef,
        messages: BundleMessages,
        hooks: Hooks,
        keeper: Keeper,
        staged: Callable[[], int],
    ) -> None:
        """Made by a storage. `staged` gives numbers that name payloads on their way."""
        self.bundle_ref = ref
        self._messages = messages
        self._hooks = hooks
        self._keeper = keeper
        self._staged = staged
        self._adding = 0
        self._closed = False
        self._log = structlog.get_logger("storage")

    @property
    def bid(self) -> str:
        """The bundle's id."""
        return self._messages.bundle.bid

    async def add_resource(
        self,
        url: str,
        content_type: str | None,
        status_code: int | None,
        stream: AsyncIterator[bytes],
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the stream. When this returns, the resource is durable and recorded.

        What may pass is tried again first. After an error nothing of it counts: the same call may be made again, or the bundle
        be completed without it. Raises the stream's own errors, `ProducerError` when the URL was added before with other bytes
        or cannot be stored, `Refused` with a reason for a payload that transforms refuse, a `StorageError` or a `LedgerError`.
        """
        if self._closed:
            raise ProducerError(f"bundle {self.bid} is closed; start another one for {url}")
        self._adding += 1
        try:
            await self._add(url, content_type, status_code, stream, meta)
        except Refused as exc:
            if exc.reason != "conflict":
                raise
            raise ProducerError(
                f"{url} is stored in bundle {self.bid} with other bytes; use another bid, or a URL of its own"
            ) from exc
        finally:
            self._adding -= 1

    async def complete(self, metadata: Mapping[str, Any]) -> None:
        """Close the bundle with what was stored for it, call the recipe's hooks, and announce it.

        May be called again after an error: what is done is not done again, except hooks. Raises `ProducerError` while resources
        are still being added, what a hook raises, `CompletionPending`, a `StorageError` or a `LedgerError`.
        """
        if self._adding:
            raise ProducerError(
                f"{self._adding} resources of bundle {self.bid} are still being added; await them before complete()"
            )
        # Before the work, as a producer: what is added while the count is settled would be late.
        self._closed = True
        parts = await self._keeper.parts()
        bundle = await parts.ledger.bundle(self.bid)
        if bundle is None or bundle.state == "open":
            await self._close(parts, bundle, metadata)
        bundle = await announce(parts, self.bid, self._hooks)
        self.bundle_ref = reference(bundle)

    async def _close(self, parts: Parts, bundle: BundleRecord | None, metadata: Mapping[str, Any]) -> None:
        stored = 0 if bundle is None else bundle.stored_count
        if self.bundle_ref.resources_count not in {None, stored}:
            self._log.warning(
                "another number of resources than was expected",
                bid=self.bid,
                stored=stored,
                expected=self.bundle_ref.resources_count,
            )
        try:
            body = self._messages.body(self._messages.closed(stored, metadata))
        except ProducerError:
            self._closed = False
            raise
        await self._process(parts, body)

    async def _add(
        self,
        url: str,
        content_type: str | None,
        status_code: int | None,
        stream: AsyncIterator[bytes],
        meta: Mapping[str, Any] | None,
    ) -> None:
        resource = self._messages.resource(url, content_type, status_code, meta)
        parts = await self._keeper.parts()
        key = f"{self._staged()}/{resource_name(url)}"
        location = parts.source.location_of(key)
        # What nobody could record is refused before anything is read.
        self._messages.foresee(resource, location)
        async with self._staging(parts, key, stream) as payload:
            message = self._messages.fetched(resource, payload)
            if await self._completed(parts) and await parts.ledger.find(message.id) is None:
                raise self._late(url)
            await self._process(parts, self._messages.body(message))
        # Who else has the bundle open, here or in another process, may have completed it meanwhile.
        if await self._completed(parts) and await _recorded_late(parts, self.bid, url):
            raise self._late(url)

    async def _completed(self, parts: Parts) -> bool:
        bundle = await parts.ledger.bundle(self.bid)
        return bundle is not None and bundle.state != "open"

    def _late(self, url: str) -> ProducerError:
        return ProducerError(
            f"bundle {self.bid} was completed before, without {url}; start another one for it"
        )

    @asynccontextmanager
    async def _staging(self, parts: Parts, key: str, stream: AsyncIterator[bytes]) -> AsyncIterator[Payload]:
        """The stream, in a file of its own for the time of the block: it can be read only once, and may have to be twice."""
        receipt = await parts.staging.write(key, stream, Attributes())
        try:
            yield Payload(location=parts.source.location_of(key), size=receipt.size, sha256=receipt.sha256)
        finally:
            try:
                await parts.staging.delete(key)
            except StorageError as exc:
                # It goes with the directory it is in.
                self._log.warning("a staged payload was not deleted", key=key, error=str(exc))

    async def _process(self, parts: Parts, body: bytes) -> None:
        """What a worker does with the message, as often as it would be received. Raises what its last try raised."""
        earlier: list[Attempt] = []
        for number in count(1):
            try:
                # The pipeline binds what its log lines carry, which is not the caller's to carry on.
                with structlog.contextvars.bound_contextvars(bid=self.bid):
                    await parts.pipeline.process(_Handed(body))
            except Exception as exc:
                failure = Failure.of(exc, time.time())
                fate = decide(failure, earlier, number, parts.retry, random.random)
                # A worker has a queue to wait in for as long as it takes; here somebody waits.
                if not isinstance(fate, Retry) or number >= parts.retry.max_attempts:
                    raise
                self._log.warning("tried again", bid=self.bid, attempt=number, error=str(exc))
                earlier.append(failure.attempt)
                delay = fate.delay
            else:
                return
            await asyncio.sleep(delay)


async def _recorded_late(parts: Parts, bid: str, url: str) -> bool:
    """Whether that resource is in the ledger, and in no completion."""
    found = parts.ledger.search(Search(bid=bid, url=escape(url)))
    return any([each.resource.late async for each in found])


class _Handed:
    """A message that nobody received: no lease, and nobody to tell."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.route = ""
        self.begun = False

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        yield
