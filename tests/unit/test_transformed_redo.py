"""The path of a message whose route has transforms, when it is done again under other circumstances."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.base import Attributes, single
from backends.errors import Unavailable
from handlers.bundle_closed import BundleClosedHandler
from handlers.dispatch import Handlers
from handlers.errors import Refused
from handlers.layouts import ObjectLayout
from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from handlers.plan import StagingSource
from handlers.resource_fetched import ResourceFetchedHandler
from handlers.routes import Route, Routes, Target
from handlers.transforms.base import Part, Transform, Work
from handlers.transforms.names import entry_path
from tests.unit.test_several_targets import World, world
from worker.budget import Budget
from worker.pipeline import Pipeline
from worker.queues.base import Ack, Disposition, OutgoingMessage

__all__ = ["world"]

NAMES = ("one", "two", "spare")


class Upper:
    """One to one, and the key stays: as `decode`."""

    name = "upper"
    early = False

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:  # noqa: ARG002 - the port's
        async def upper() -> AsyncIterator[bytes]:
            async for chunk in part.chunks:
                yield chunk.upper()

        yield part.changed("upper", upper())


class Letters:
    """One to many: an entry for each letter."""

    name = "letters"
    early = False

    async def apply(self, part: Part, work: Work) -> AsyncGenerator[Part, None]:
        data = b"".join([chunk async for chunk in part.chunks])
        for letter in data.decode():
            made = part.changed("letters", single(letter.encode()))
            yield replace(made, path=entry_path(letter, work), member=letter)


def routed(world: World, *transforms: Transform) -> None:
    """From here on the route has these transforms."""
    targets = tuple(
        Target(name, ObjectLayout(), required=name != "spare", rank=rank) for rank, name in enumerate(NAMES)
    )
    routes = Routes((Route("default", targets, transforms=transforms),))
    source = StagingSource("staging", world.staging.location)
    world.pipeline = Pipeline(
        ledger=world.ledger,
        handlers=Handlers(ResourceFetchedHandler([source], routes), BundleClosedHandler(routes)),
        staging={"staging": world.staging},
        targets=world.targets,
        max_message_bytes=100_000,
        budget=Budget(1 << 30),
        spool=Path(),
        on_complete=lambda: None,
    )


async def process(world: World, message: str, payload: bytes) -> Disposition:
    """The one resource there is, with that payload."""
    await world.staging.write(message, single(payload), Attributes())
    command = ResourceFetched(
        id=message,
        bundle=Bundle(bid="test-a", recipe_id="r", resources_count=1),
        resource=Resource(url="https://example.com/x"),
        payload=Payload(location=f"{world.staging.location}{message}"),
    )
    await world.queue.send([OutgoingMessage(encode(command))])
    (delivery,) = await world.keeper.hold(await world.queue.receive(1, 1))
    return await world.pipeline.process(delivery)


async def lying(world: World) -> dict[str, list[str]]:
    """What the ledger says, by target: the names in the archive."""
    (resource,) = [resource async for resource in world.ledger.resources("test-a")]
    return {
        name: [found.member or "" for found in resource.objects if found.target == name] for name in NAMES
    }


async def test_another_archive_of_the_same_resource_is_a_conflict(world: World) -> None:
    """No entry of the two meets another in a key, so no store tells."""
    routed(world, Letters())
    assert await process(world, "m1", b"ab") == Ack()
    with pytest.raises(Refused, match="another payload") as raised:
        await process(world, "m2", b"cd")
    assert raised.value.reason == "conflict"
    assert await lying(world) == {name: ["a", "b"] for name in NAMES}
    assert await process(world, "m3", b"ab") == Ack()


async def test_what_a_transform_made_is_not_taken_for_the_payload_when_the_route_has_lost_it(
    world: World,
) -> None:
    routed(world, Upper())
    world.targets["two"].fault = Unavailable("two is down")
    with pytest.raises(Unavailable):
        await process(world, "m", b"text")
    world.targets["two"].fault = None
    routed(world)
    with pytest.raises(Refused, match="conflict"):
        await process(world, "m", b"text")
    assert await world.ledger.find("m") is None


async def test_a_best_effort_target_gets_a_whole_archive_later(world: World) -> None:
    routed(world, Letters())
    world.targets["spare"].fault = Unavailable("spare is down")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await process(world, "m", b"abc")
    assert await lying(world) == {"one": ["a", "b", "c"], "two": ["a", "b", "c"], "spare": []}
    await world.announce()
    world.targets["spare"].fault = None
    assert await process(world, "m", b"abc") == Ack()
    assert await lying(world) == {name: ["a", "b", "c"] for name in NAMES}
    assert await world.listed("spare") == 3
    assert await world.ledger.bundle_transfers("test-a") == []
