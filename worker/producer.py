"""The fetcher's side: stage payloads, announce them, close the bundle.

    producer = Producer(queue=queue, staging=backend, source=source)
    bundle = await producer.start_bundle(BundleRef("https://example.com"), "fr")
    await bundle.add_resource("https://example.com/a.html", "text/html", 200, stream)
    await bundle.complete({"source": "http_api", "run_id": "run_123"})

Everything may be repeated after a crash: the same bid, URLs and bytes give the same staged objects and the same message ids,
which the worker knows as already recorded.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from backends.base import Attributes, Receipt, StorageBackend
from backends.errors import Conflict, StorageError
from handlers.bids import BidFactory
from handlers.errors import Refused
from handlers.messages import (
    DEFAULT_LIMIT,
    LARGEST,
    Bundle,
    BundleClosed,
    ClosedBundle,
    Command,
    Payload,
    Resource,
    ResourceFetched,
    decode,
    encode,
)
from handlers.naming import resource_id, resource_name
from handlers.plan import StagingSource
from worker.queues.base import OutgoingMessage, Queue
from worker.tracing import NO_CONTEXT, UNTRACED, TraceContext, Tracing


class ProducerError(Exception):
    """What the fetcher asked for cannot be announced. The message says what to change."""


class Recipe(Protocol):
    """Anything that names itself."""

    @property
    def recipe_id(self) -> str:
        """The recipe's id."""
        ...


@dataclass(frozen=True, slots=True)
class BundleRef:
    """What a fetcher knows of its bundle. `resources_count` may be a guess: the bundle is closed with the true one."""

    primary_url: str
    resources_count: int | None = None
    bid: str | None = None
    storage_key: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ProducerError` for unknown or missing keys."""
        try:
            return cls(**values)
        except TypeError as exc:
            raise ProducerError(f"not a bundle reference: {exc}") from exc

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for people who keep references between runs."""
        return {
            "primary_url": self.primary_url,
            "resources_count": self.resources_count,
            "bid": self.bid,
            "storage_key": self.storage_key,
            "meta": dict(self.meta),
        }


class Producer:
    """Stages and announces. Takes connected parts; whoever made them closes them."""

    def __init__(
        self,
        *,
        queue: Queue,
        staging: StorageBackend,
        source: StagingSource,
        new_bid: BidFactory | None = None,
        max_message_bytes: int = DEFAULT_LIMIT,
        tracing: Tracing = UNTRACED,
    ) -> None:
        """`max_message_bytes` is the worker's limit: what it would refuse is not announced. `source` is the worker's view of `staging`: the locations announced are spelled by it."""
        self._queue = queue
        self._staging = staging
        self._source = source
        self._limit = max_message_bytes
        self._tracing = tracing
        self._new_bid = BidFactory() if new_bid is None else new_bid

    async def start_bundle(self, bundle_ref: BundleRef, recipe: str | Recipe) -> "BundleStorageContext":
        """Begin a bundle. Without a bid in `bundle_ref` it gets a new one. Nothing is sent yet.

        Raises `ProducerError` when bid or recipe cannot be announced.
        """
        ref = bundle_ref if bundle_ref.bid is not None else replace(bundle_ref, bid=self._new_bid())
        messages = BundleMessages(ref, recipe, self._limit)
        return BundleStorageContext(
            ref,
            messages,
            self._queue,
            self._staging,
            self._source,
            self._tracing,
            self._tracing.begin_bundle(messages.bundle),
        )


class BundleMessages:
    """What is said of one bundle, each message held to what a worker takes. Also for worker/storage, which sends none."""

    def __init__(self, ref: BundleRef, recipe: str | Recipe, max_message_bytes: int = DEFAULT_LIMIT) -> None:
        """`ref` has a bid. Raises `ProducerError` when bid or recipe cannot be announced."""
        self._limit = max_message_bytes
        try:
            self.bundle = Bundle(
                bid=ref.bid or "",
                recipe_id=recipe if isinstance(recipe, str) else recipe.recipe_id,
                primary_url=ref.primary_url,
                meta=dict(ref.meta),
            )
        except ValidationError as exc:
            raise ProducerError(_reason(exc)) from exc

    def resource(
        self, url: str, content_type: str | None, status_code: int | None, meta: Mapping[str, Any] | None
    ) -> Resource:
        """The resource, as messages tell it. Raises `ProducerError`."""
        try:
            return Resource(
                url=url, content_type=content_type, status_code=status_code, meta=dict(meta or {})
            )
        except ValidationError as exc:
            raise ProducerError(_reason(exc)) from exc

    def foresee(self, resource: Resource, location: str) -> None:
        """Raises `ProducerError` when no message about it could be sent once it is staged there."""
        # Its size is not known yet: no other one takes more digits.
        self.body(self.fetched(resource, Payload(location=location, size=LARGEST, sha256="0" * 64)))

    def fetched(self, resource: Resource, payload: Payload) -> ResourceFetched:
        """That the resource is staged."""
        return ResourceFetched(
            id=f"{self.bundle.bid}/{resource_id(resource.url)}",
            bundle=self.bundle,
            resource=resource,
            payload=payload,
        )

    def closed(self, resources_count: int, metadata: Mapping[str, Any]) -> BundleClosed:
        """That nothing more will come."""
        bundle = ClosedBundle(
            bid=self.bundle.bid,
            recipe_id=self.bundle.recipe_id,
            primary_url=self.bundle.primary_url,
            meta=self.bundle.meta,
            resources_count=resources_count,
            metadata=dict(metadata),
        )
        return BundleClosed(id=f"{self.bundle.bid}/closed", bundle=bundle)

    def body(self, command: Command) -> bytes:
        """The message's bytes, if a worker would take them. Raises `ProducerError`."""
        try:
            body = encode(command)
            decode(body, self._limit)
        except (PydanticSerializationError, Refused) as exc:
            raise ProducerError(f"the worker would refuse message {command.id!r}: {exc}") from exc
        return body


class BundleStorageContext:
    """One bundle being fetched. Resources may be added concurrently."""

    def __init__(
        self,
        ref: BundleRef,
        messages: BundleMessages,
        queue: Queue,
        staging: StorageBackend,
        source: StagingSource,
        tracing: Tracing = UNTRACED,
        trace: TraceContext = NO_CONTEXT,
    ) -> None:
        """Made by `Producer.start_bundle`."""
        self.bundle_ref = ref
        self._messages = messages
        self._queue = queue
        self._staging = staging
        self._source = source
        self._tracing = tracing
        self._trace = trace
        self._adding = 0
        self._unannounced: set[str] = set()
        self._closed = False

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
        """Stage the stream and announce it. When this returns, payload and message are durable.

        Raises `ProducerError` when the URL was added before with other bytes, the stream's own errors, a `StorageError`
        or a `QueueError`. After any of them the same call may be made again.
        """
        if self._closed:
            raise ProducerError(f"bundle {self.bid} is closed; start another one for {url}")
        self._adding += 1
        try:
            resource = self._messages.resource(url, content_type, status_code, meta)
            key = self._folder + resource_name(url)
            location = self._source.location_of(key)
            # What nobody could send is refused before anything is staged.
            self._messages.foresee(resource, location)
            receipt = await self._stage(url, key, stream, Attributes(content_type))
            payload = Payload(location=location, size=receipt.size, sha256=receipt.sha256)
            await self._send(self._messages.fetched(resource, payload))
            self._unannounced.discard(url)
        except Conflict as exc:
            raise ProducerError(
                f"{url} is staged for bundle {self.bid} with other bytes; use another bid, or a URL of its own"
            ) from exc
        finally:
            self._adding -= 1

    async def complete(self, metadata: Mapping[str, Any]) -> None:
        """Close the bundle with the number of distinct URLs staged for it, by this context and those before it.

        May be called again after an error. Raises `ProducerError` while resources are still being added, a `StorageError`
        or a `QueueError`.
        """
        if self._adding:
            raise ProducerError(
                f"{self._adding} resources of bundle {self.bid} are still being added; await them before complete()"
            )
        if self._unannounced:
            raise ProducerError(
                f"bundle {self.bid}: staged but not announced: {', '.join(sorted(self._unannounced))}; "
                "add them again before complete()"
            )
        # Before the work: what is added while the count is on its way, or after a send that may have been accepted,
        # would be late. A complete() that failed may be called again all the same.
        self._closed = True
        try:
            await self._send(self._messages.closed(await self._staged(), metadata))
        except (ProducerError, StorageError):
            self._closed = False
            raise

    async def _stage(
        self, url: str, key: str, stream: AsyncIterator[bytes], attributes: Attributes
    ) -> Receipt:
        """Write the stream, remembering until it is announced that something may lie there."""
        known = url in self._unannounced
        self._unannounced.add(url)
        try:
            return await self._staging.write(key, stream, attributes)
        except Exception:
            if not known:
                self._unannounced.discard(url)
            raise

    @property
    def _folder(self) -> str:
        return f"{self._source.prefix}/{self.bid}/" if self._source.prefix else f"{self.bid}/"

    async def _staged(self) -> int:
        """One key a URL, so the keys under the bundle's folder are its resources, whoever staged them."""
        count = 0
        async for _ in self._staging.list(self._folder):
            count += 1
        return count

    async def _send(self, command: Command) -> None:
        body = self._messages.body(command)
        message = OutgoingMessage(body, group=self.bid, deduplication_id=command.id)
        await self._tracing.send(self._queue, message, command, self._trace)


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
