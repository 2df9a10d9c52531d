"""What the probes of a running worker say while a transfer takes ten minutes: nothing is wrong with it."""

from tests.unit.test_service import World, ended, fetched, until
from tests.unit.test_service import world as world  # noqa: PLC0414 - a fixture

SLOTS = 4


async def test_a_transfer_of_ten_minutes_is_alive_and_ready(world: World) -> None:
    world.target.gate.clear()
    service = world.service()
    await world.queue.send([fetched(f"test-{number}") for number in range(SLOTS)])
    running = world.start(service)
    await until(lambda: world.health.busy)
    for _ in range(10):
        world.clock.now += 60
        world.health.tick()
        assert world.health.live().ok, "the pool is full: nothing is to be received"
        assert world.health.ready().ok, "busy is no reason to be killed first"
    world.target.gate.set()
    await until(lambda: service.progress.acked == SLOTS)
    # From here on it has to ask the queue again.
    await until(lambda: not world.health.busy)
    world.clock.now += 60
    world.health.tick()
    assert world.health.live().reasons == ("nothing was asked of the queue for 60.0 s",)
    service.stop()
    await ended(running)
