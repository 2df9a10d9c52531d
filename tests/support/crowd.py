"""Several recipes before one worker: an embedded queue, a directory to write to, and staging whose payloads take as long as one likes.

Used by tests/faults/test_fairness.py and tests/benchmarks/fairness.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from tests.support.slow_staging import BUCKET, SlowStaging, slow_staging
from worker import bootstrap
from worker.pipeline import Delivery
from worker.queues.base import Ack, Disposition, OutgoingMessage, Queue
from worker.service import Service
from worker.settings import load_settings

ACCESS = {"region": "us-east-1", "access_key_id": "test", "secret_access_key": "test"}


@dataclass(slots=True)
class Crowd:
    """What is sent, and what becomes of it. A message is called `RECIPE-NAME`, and is a bundle of its own."""

    queue: Queue
    staging: SlowStaging
    service: Service
    begun: list[str] = field(default_factory=list)
    """In the order in which work on them began, each time."""
    done: dict[str, float] = field(default_factory=dict)
    """When each was stored, by the event loop's clock."""
    worked: list[tuple[str, float, float]] = field(default_factory=list)
    """Of each try its message, when it began, and the seconds until its outcome was known."""

    async def send(
        self, recipe: str, names: Sequence[str], payload: bytes | None = b"payload", *, held: bool = False
    ) -> None:
        """Stage and announce; None: the payload is not there. `held`: it stops half way until `staging.released`."""
        keys = [f"{recipe}-{name}" for name in names]
        if payload is not None:
            self.staging.payloads |= dict.fromkeys(keys, payload)
        if held:
            self.staging.held |= set(keys)
        await self.queue.send([OutgoingMessage(fetched(recipe, key, payload)) for key in keys])

    def count(self, recipe: str) -> int:
        """How many of the recipe's are stored."""
        return sum(key.startswith(f"{recipe}-") for key in self.done)

    def started(self, recipe: str) -> int:
        """How many times work on one of the recipe's began."""
        return sum(key.startswith(f"{recipe}-") for key in self.begun)


def fetched(recipe: str, key: str, payload: bytes | None) -> bytes:
    """The message."""
    return encode(
        ResourceFetched(
            id=key,
            bundle=Bundle(bid=f"test-{key}", recipe_id=recipe, resources_count=1),
            resource=Resource(url=f"https://example.com/{key}"),
            payload=Payload(location=f"s3://{BUCKET}/{key}", size=None if payload is None else len(payload)),
        )
    )


@asynccontextmanager
async def crowd(folder: Path, **sections: Mapping[str, Any]) -> AsyncIterator[Crowd]:
    """A worker at work; `sections` go over those of its settings."""
    async with slow_staging() as staging:
        content = {
            "queue": {"type": "embedded"},
            "staging": {"main": {"backend": "s3", "bucket": BUCKET, "endpoint_url": staging.url, **ACCESS}},
            **sections,
        }
        file = folder / "transload.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        settings = load_settings(file=file, home=folder / "home", environ={})
        async with (
            bootstrap.open_service(settings, admin=False) as service,
            bootstrap.open_queue(settings) as queue,
        ):
            seen = Crowd(queue, staging, service)
            _watch(service, seen)
            running = asyncio.create_task(service.run())
            try:
                yield seen
            finally:
                staging.released.set()
                service.stop()
                await running


def _watch(service: Service, seen: Crowd) -> None:
    pipeline = service._settler._pipeline
    process = pipeline.process

    async def watched(delivery: Delivery) -> Disposition:
        key = delivery.body.partition(b"https://example.com/")[2].partition(b'"')[0].decode()
        clock = asyncio.get_running_loop().time
        seen.begun.append(key)
        began = clock()
        try:
            disposition = await process(delivery)
        finally:
            seen.worked.append((key, began, clock() - began))
        if isinstance(disposition, Ack):
            seen.done[key] = clock()
        return disposition

    pipeline.process = watched  # type: ignore[method-assign] # the one place all messages pass
