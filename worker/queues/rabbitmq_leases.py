"""The leases of what one channel delivered and worker/queues/rabbitmq_consumer.py handed out.

AMQP knows no visibility timeout. The lease is this process's promise: what is neither renewed nor settled in time is
rejected back to the queue by a timer. A process that is stopped, or cut off, loses the connection by its heartbeats.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aiormq.abc import DeliveredMessage


@dataclass(slots=True, eq=False)
class Held:
    """A delivery that was handed out. Times are the event loop's."""

    handle: str
    delivery: DeliveredMessage
    arrived: float
    until: float
    timer: asyncio.TimerHandle | None = None
    """The lease's clock; it stands while a settlement is under way."""

    @property
    def tag(self) -> int:
        """Its number on its channel."""
        return self.delivery.delivery_tag or 0


class Leases:
    """What is handed out, by handle."""

    def __init__(
        self, prefix: str, lease: float, longest_hold: float | None, on_lapse: Callable[[Held], None]
    ) -> None:
        """`prefix` makes the handles unique. `on_lapse` gets what was forgotten because its time was over. Seconds."""
        self._prefix = prefix
        self._lease = lease
        self._longest_hold = longest_hold
        self._on_lapse = on_lapse
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        """How many there are, those included that are being settled."""
        return len(self._held)

    def begin(self, delivery: DeliveredMessage, arrived: float) -> Held:
        """Hand out a delivery that came at `arrived`."""
        handle = f"{self._prefix}.{delivery.delivery_tag}"
        held = self._held[handle] = Held(handle, delivery, arrived, self._loop.time() + self._lease)
        self._arm(held)
        return held

    def find(self, handle: str) -> Held | None:
        """What is held under this handle; None when its lease is lost."""
        held = self._held.get(handle)
        if held is not None and held.timer is not None and held.until <= self._loop.time():
            # The process was stalled, and its timers come after whoever asks.
            self._lapse(held)
            return None
        return held

    def renew(self, handle: str, since: float) -> bool:
        """Have the lease count from `since`, unless a settlement is under way. False when it is lost."""
        held = self.find(handle)
        if held is None:
            return False
        if held.timer is not None:
            held.until = max(held.until, since + self._lease)
            self._arm(held)
        return True

    def claim(self, handle: str) -> Held | None:
        """Stop the lease's clock for a settlement; None when the lease is lost or another settlement is under way."""
        held = self.find(handle)
        if held is None or held.timer is None:
            return None
        held.timer.cancel()
        held.timer = None
        return held

    def release(self, held: Held) -> None:
        """Let the clock go on, after a settlement that came to nothing."""
        if self._held.get(held.handle) is held:
            self._arm(held)

    def drop(self, held: Held) -> None:
        """Forget what was claimed: it is settled, or its channel is at its end."""
        self._held.pop(held.handle, None)

    def clear(self) -> None:
        """Forget everything."""
        for held in self._held.values():
            if held.timer is not None:
                held.timer.cancel()
        self._held.clear()

    def _arm(self, held: Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
        if self._longest_hold is not None:
            # Past that the broker would close the channel, and every lease on it would be lost with this one.
            held.until = min(held.until, held.arrived + self._longest_hold)
        held.timer = self._loop.call_at(held.until, self._lapse, held)

    def _lapse(self, held: Held) -> None:
        if self._held.pop(held.handle, None) is held and held.timer is not None:
            held.timer.cancel()
            self._on_lapse(held)
