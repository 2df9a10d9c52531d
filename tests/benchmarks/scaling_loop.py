"""Pods under a HorizontalPodAutoscaler that KEDA feeds with a queue's length, second by second. Called by scaling.py.

What is modelled, and where it is written down:

- KEDA's SQS scaler reports visible messages, and those in flight with `scaleOnInFlight`; with `useCachedMetrics` the value is that
  of the last poll (https://keda.sh/docs/latest/scalers/aws-sqs/, https://keda.sh/docs/latest/reference/scaledobject-spec/).
- The HPA looks every 15 s. It wants ceil(metric / target) pods unless metric / (target x pods) is within 10 % of 1. Scaling down
  takes the highest wish of the stabilization window; policies bound how many pods go or come in their period
  (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/).
- A ReplicaSet takes pods that are not ready first, then, where nodes and deletion costs are equal, the newest
  (https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/). Whether a pod is busy has no say.
- A worker that is stopped takes nothing more, finishes what it can within its drain timeout, and gives the rest back.

Left out: nodes that have to be started, SQS's numbers being approximate, and failures.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SYNC = 15
"""Seconds between two looks of the HPA."""
TOLERANCE = 0.1
STARTING = 20
"""Seconds until a new pod works."""


@dataclass(frozen=True, slots=True)
class Policy:
    """At most this many pods, or this share of them, within so many seconds."""

    pods: int
    share: float
    seconds: int

    def step(self, replicas: int) -> int:
        """The larger of the two, as `selectPolicy: Max` has it."""
        return max(self.pods, math.ceil(self.share * replicas))


@dataclass(frozen=True, slots=True)
class Scaler:
    """What a ScaledObject says."""

    target: int
    """Messages a pod: `queueLength`."""
    in_flight: bool
    """`scaleOnInFlight`."""
    window: int
    """`stabilizationWindowSeconds` of scaling down."""
    down: Policy
    up: Policy
    minimum: int
    maximum: int
    polling: int
    """Seconds for which a value is kept."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What a pod is."""

    concurrency: int
    drain_timeout: int


@dataclass(slots=True)
class Work:
    """A message that a pod holds. Times are seconds since the beginning."""

    service: float
    begun: int


@dataclass(slots=True)
class Pod:
    """One worker."""

    ready: int
    work: list[Work] = field(default_factory=list)
    stopped: int | None = None


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    stopped_busy: int = 0
    """Pods that were stopped while they held messages."""
    cut_off: int = 0
    """Those of them that had to give messages back."""
    given_back: int = 0
    thrown_away: float = 0.0
    """Seconds of work on what was given back."""
    done: int = 0
    finished: int = 0
    """When the last message was done."""
    pod_seconds: int = 0


class Cluster:
    """Runs until nothing is left to come, to do or to stop."""

    def __init__(self, scaler: Scaler, worker: Worker, replicas: int, chance: random.Random) -> None:
        """`replicas` pods are ready at the beginning."""
        self._scaler = scaler
        self._worker = worker
        self._chance = chance
        self._pods = [Pod(ready=0) for _ in range(replicas)]
        self._visible: deque[float] = deque()
        self._metric = 0
        self._wishes: deque[tuple[int, int]] = deque()
        self._changes: list[tuple[int, int]] = []
        self.outcome = Outcome()

    def run(self, arrivals: Sequence[tuple[int, float]], seconds: int) -> Outcome:
        """`arrivals` are (second, seconds of work), in order."""
        waiting = deque(arrivals)
        for now in range(seconds):
            self._finish(now)
            while waiting and waiting[0][0] <= now:
                self._visible.append(waiting.popleft()[1])
            self._receive(now)
            if now % self._scaler.polling == 0:
                in_flight = sum(len(pod.work) for pod in self._pods)
                self._metric = len(self._visible) + (in_flight if self._scaler.in_flight else 0)
            if now % SYNC == 0:
                self._scale(now)
            self.outcome.pod_seconds += len(self._pods)
        return self.outcome

    def _finish(self, now: int) -> None:
        for pod in self._pods:
            busy = [work for work in pod.work if work.begun + work.service > now]
            if done := len(pod.work) - len(busy):
                self.outcome.done += done
                self.outcome.finished = now
            pod.work = busy
            if pod.stopped is not None and busy and now - pod.stopped >= self._worker.drain_timeout:
                self.outcome.cut_off += 1
                self.outcome.given_back += len(busy)
                self.outcome.thrown_away += sum(now - work.begun for work in busy)
                self._visible.extend(work.service for work in busy)
                pod.work = []
        self._pods = [pod for pod in self._pods if pod.stopped is None or pod.work]

    def _receive(self, now: int) -> None:
        if not self._visible:
            return
        slots = [
            pod
            for pod in self._pods
            if pod.stopped is None and pod.ready <= now
            for _ in range(self._worker.concurrency - len(pod.work))
        ]
        # Every free slot polls; who gets the next message is chance.
        self._chance.shuffle(slots)
        while slots and self._visible:
            slots.pop().work.append(Work(self._visible.popleft(), now))

    def _scale(self, now: int) -> None:
        running = [pod for pod in self._pods if pod.stopped is None]
        current = len(running)
        wanted = self._stabilized(now, current, self._wish(current))
        wanted = max(self._scaler.minimum, min(self._scaler.maximum, self._permitted(now, current, wanted)))
        if wanted != current:
            self._changes.append((now, wanted - current))
        self._pods += [Pod(ready=now + STARTING) for _ in range(wanted - current)]
        newest_first = sorted(running, key=lambda pod: (pod.ready <= now, -pod.ready))
        for pod in newest_first[: max(0, current - wanted)]:
            pod.stopped = now
            self.outcome.stopped_busy += bool(pod.work)

    def _wish(self, current: int) -> int:
        if abs(self._metric / (self._scaler.target * current) - 1) <= TOLERANCE:
            return current
        return math.ceil(self._metric / self._scaler.target)

    def _stabilized(self, now: int, current: int, wish: int) -> int:
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - self._scaler.window:
            self._wishes.popleft()
        return max(wish, min(current, max(wished for _, wished in self._wishes)))

    def _permitted(self, now: int, current: int, wanted: int) -> int:
        policy = self._scaler.up if wanted > current else self._scaler.down
        direction = 1 if wanted > current else -1
        recent = sum(
            change
            for at, change in self._changes
            if at > now - policy.seconds and (change > 0) == (direction > 0)
        )
        before = current - recent
        bound = before + direction * policy.step(before)
        return min(wanted, bound) if direction > 0 else max(wanted, bound)
