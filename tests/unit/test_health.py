import pytest

from worker.health import Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_health(clock: Clock) -> Health:
    return Health(loop_stall=10, receive_stall=60, clock=clock)


def pass_time(health: Health, clock: Clock, seconds: float) -> None:
    """The loop keeps turning meanwhile."""
    clock.now += seconds
    health.tick()


def test_live_while_the_loop_turns_and_the_queue_is_asked() -> None:
    clock = Clock()
    health = make_health(clock)
    assert health.live().ok
    pass_time(health, clock, 59)
    assert health.live().ok
    health.received()
    pass_time(health, clock, 59)
    assert health.live().ok


def test_a_loop_that_stops_is_not_live_whatever_else_holds() -> None:
    clock = Clock()
    health = make_health(clock)
    health.busy = True
    clock.now += 10
    verdict = health.live()
    assert not verdict.ok
    assert verdict.reasons == ("the event loop has not turned for 10.0 s",)
    health.tick()
    assert health.live().ok


def test_the_lag_is_that_of_the_last_turn_and_grows_while_the_loop_does_not_turn() -> None:
    clock = Clock()
    health = make_health(clock)
    assert health.lag == 0.0
    clock.now += 0.5
    health.tick(0.2)
    assert health.lag == 0.2
    clock.now += 0.6
    assert health.lag == 0.2
    clock.now += 9.4
    assert health.lag == 9.5
    health.tick()
    assert health.lag == 0.0


def test_not_receiving_is_not_live_without_a_reason() -> None:
    clock = Clock()
    health = make_health(clock)
    pass_time(health, clock, 60)
    assert health.live().reasons == ("nothing was asked of the queue for 60.0 s",)


@pytest.mark.parametrize("reason", ["busy", "paused", "draining"])
def test_not_receiving_is_fine_with_a_reason(reason: str) -> None:
    clock = Clock()
    health = make_health(clock)
    setattr(health, reason, True)
    pass_time(health, clock, 3600)
    assert health.live().ok


@pytest.mark.parametrize("reason", ["busy", "paused"])
def test_when_the_reason_ends_the_wait_begins_anew(reason: str) -> None:
    clock = Clock()
    health = make_health(clock)
    setattr(health, reason, True)
    pass_time(health, clock, 3600)
    setattr(health, reason, False)
    assert health.live().ok
    pass_time(health, clock, 60)
    assert not health.live().ok


def test_ready_is_schema_queue_and_not_draining_and_never_busy() -> None:
    health = Health()
    assert health.ready().reasons == ("the ledger's schema is not current", "the queue does not answer")
    health.schema_current = health.queue_reachable = True
    assert health.ready().ok
    health.busy = health.paused = True
    assert health.ready().ok
    health.draining = True
    assert health.ready().reasons == ("draining",)
