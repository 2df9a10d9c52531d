"""Whether messages are worth taking while circuit breakers keep us from targets. Asked by worker/service.py before each receive.

A message whose target is left alone can only be given back: its receive count grows, on some queues towards a limit.
"""

from collections.abc import Sequence

from backends.guards.breaker import BreakerGuard


class Circuits:
    """The breakers that stand before the required targets of each enabled route."""

    def __init__(self, routes: Sequence[Sequence[BreakerGuard]]) -> None:
        """One sequence for each route; an empty one never keeps anything back."""
        self._routes = routes

    def admit(self, room: int) -> tuple[int, float]:
        """Of `room` messages, how many to take now; where none, in how many seconds to ask again.

        As long as one route is free, all: what is taken for the others is put off without being held against it. Where every
        route waits for a target that may be probed again, one message is the probe.
        """
        waits = [max((guard.retry_after for guard in route), default=0.0) for route in self._routes]
        probing = [any(guard.state != "closed" for guard in route) for route in self._routes]
        if any(not wait and not probe for wait, probe in zip(waits, probing, strict=True)) or not waits:
            return room, 0.0
        wait = min(waits)
        return (0, wait) if wait else (1, 0.0)
