"""What SQS keeps to itself: a queue that has as many messages in work as it may have. Used by worker/queues/sqs.py.

At about 120,000 a short poll is refused (OverLimit), but a long poll comes back empty, as if nothing waited:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from worker.queues.base import QueueError, QueueUnavailable

MOST = 120_000
"""Messages of one queue in work at once, FIFO or not."""
ENOUGH = MOST * 95 // 100
"""From here on an empty long poll is suspicious: the numbers are approximate."""
EVERY = 300.0
"""Seconds between two looks, as long as nothing is wrong; each is a request."""


class InFlight:
    """Asked after every long poll that brought nothing."""

    def __init__(
        self,
        queue: str,
        counts: Callable[[], Awaitable[Sequence[int]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`counts` gives how many are visible, and how many in flight."""
        self._queue = queue
        self._counts = counts
        self._clock = clock
        self._due = clock() + EVERY

    async def check(self) -> None:
        """Raises `QueueUnavailable` where messages wait and SQS hands none out; silent where that cannot be told."""
        if self._clock() < self._due:
            return
        try:
            visible, in_flight = await self._counts()
        except QueueError:
            return
        if visible and in_flight >= ENOUGH:
            # Looked at after every poll until it is over, or the worker would seem well in between.
            raise QueueUnavailable(
                f"queue {self._queue!r} has about {in_flight} messages in flight and SQS hands out none beyond {MOST}; "
                "wait for those in work, or lower worker.concurrency or the number of workers"
            )
        self._due = self._clock() + EVERY
