"""When `transload run --until-empty` ends. worker/service.py asks it after every receive.

Jobs that somebody else starts for what a queue holds end this way: one that waited for messages in work elsewhere would stand idle
beside the last long transfer of a neighbour.
"""

import math
import time
from collections.abc import Callable


class Quiet:
    """How long the queue has given nothing to a worker with nothing in work. Without `patience` it never lasts long enough."""

    def __init__(self, patience: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`patience` in seconds. The quiet begins with the first receive that brings nothing."""
        self._patience = math.inf if patience is None else patience
        self._clock = clock
        self._began: float | None = None
        self._asked = clock()

    def ask(self, longest: float) -> float:
        """The queue is about to be asked: for so many seconds, at most `longest`, it may be waited for."""
        self._asked = self._clock()
        since = self._asked if self._began is None else self._began
        return max(0.0, min(longest, since + self._patience - self._asked))

    def heard(self, *, something: bool) -> bool:
        """It answered; with `something` there is work. Whether it has been quiet for long enough."""
        if something:
            self.disturb()
        elif self._began is None:
            self._began = self._asked
        return self._began is not None and self._clock() - self._began >= self._patience

    def disturb(self) -> None:
        """Nobody asked the queue for a while, or it did not answer: that says nothing about what it holds."""
        self._began = None
