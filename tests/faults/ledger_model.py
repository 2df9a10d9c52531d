"""What the ledger ought to hold, in plain dicts: the model that test_ledger_machine.py compares the real one with.

Written from docs/architecture.md and the ports, not from the code: a bundle is complete when its distinct stored resources
reach its count, whether that came with the messages or with `bundle.closed`, in any order.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from worker.attempts import CRASHED
from worker.ledger.values import BundleState, Entry, OutboxState, Recorded

Try = tuple[str, bool]
"""How a try ended: the error's class, and whether it was an outage."""


@dataclass(slots=True)
class ModelBundle:
    """One bundle. `stored` and `late` map resource ids to sizes."""

    declared: int | None = None
    """The first count that a message named."""
    closed: int | None = None
    """The count that closed it: the last word."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    state: BundleState = "open"
    outbox: OutboxState | None = None
    due: bool = False
    owner: int | None = None
    """The claim that may change the outbox row."""
    replays: int = 0
    staged: bool = True

    @property
    def count(self) -> int | None:
        return self.declared if self.closed is None else self.closed

    @property
    def claimable(self) -> bool:
        return self.outbox == "pending" and self.due

    @property
    def retirable(self) -> bool:
        return self.state == self.outbox == "published"

    def hear(self, entry: Entry) -> None:
        """A message concerns it while it is open."""
        if entry.close is not None and self.closed is None:
            self.closed, self.metadata = entry.close.resources_count, entry.close.metadata
        elif self.declared is None:
            self.declared = entry.resources_count

    def store(self, entry: Entry) -> bool:
        """Its resource is durable; whether it is a new one."""
        if entry.resource is None or entry.resource.resource_id in {**self.stored, **self.late}:
            return False
        in_time = self.state == "open"
        (self.stored if in_time else self.late)[entry.resource.resource_id] = entry.resource.objects[0].size
        self.staged = True
        return True

    def due_anew(self) -> None:
        self.outbox, self.due, self.owner = "pending", True, None

    def claim(self, owner: int) -> None:
        self.due, self.owner = False, owner

    def publish(self) -> None:
        self.state = self.outbox = "published"


@dataclass(slots=True)
class Model:
    """Everything that is known of messages, bundles and tries."""

    messages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Message id -> what it stands for, and its bundle."""
    bundles: dict[str, ModelBundle] = field(default_factory=dict)
    tries: dict[str, list[Try | None]] = field(default_factory=dict)
    """Message id -> how each try ended; None for one that never did."""

    def record(self, entries: Sequence[Entry]) -> list[Recorded]:
        """One transaction, and what it answers."""
        accepted = [entry for entry in entries if self._begins(entry)]
        concerned = {entry.bid: self.bundles.setdefault(entry.bid, ModelBundle()) for entry in accepted}
        was_open = {bid for bid, bundle in concerned.items() if bundle.state == "open"}
        new = set()
        for entry in accepted:
            if entry.bid in was_open:
                concerned[entry.bid].hear(entry)
            if concerned[entry.bid].store(entry) and entry.resource is not None:
                new.add((entry.bid, entry.resource.resource_id))
        completed = {bid for bid in was_open if _reached(concerned[bid])}
        for bid in completed:
            concerned[bid].state = "complete"
            concerned[bid].due_anew()
        last = {entry.bid: entry for entry in accepted if entry.bid in completed}
        return [
            Recorded(
                completed=last.get(entry.bid) is entry,
                late=any(entry is each for each in accepted)
                and entry.bid not in was_open
                and entry.resource is not None
                and (entry.bid, entry.resource.resource_id) in new,
            )
            if self.messages[entry.message_id][0] == entry.fingerprint
            else Recorded(conflict=True)
            for entry in entries
        ]

    def due(self) -> list[str]:
        return [bid for bid, bundle in self.bundles.items() if bundle.claimable]

    def pending(self) -> list[str]:
        return [bid for bid, bundle in self.bundles.items() if bundle.outbox == "pending"]

    def published(self) -> list[str]:
        """Announced once, and perhaps on its way again."""
        return [bid for bid, bundle in self.bundles.items() if bundle.state == "published"]

    def parked(self) -> list[str]:
        return [bid for bid, bundle in self.bundles.items() if bundle.outbox == "parked"]

    def retirable(self) -> list[str]:
        return [bid for bid, bundle in self.bundles.items() if bundle.retirable]

    def owned(self, bid: str, owner: int) -> ModelBundle | None:
        """The bundle, if that claim may change its outbox row."""
        bundle = self.bundles.get(bid)
        return bundle if bundle and bundle.outbox == "pending" and bundle.owner == owner else None

    def forget(self, bids: Iterable[str]) -> None:
        for bid in bids:
            del self.bundles[bid]
            self.messages = {id_: known for id_, known in self.messages.items() if known[1] != bid}

    def begin(self, message_id: str) -> None:
        self.tries.setdefault(message_id, []).append(None)

    def fail(self, message_id: str, ended: Try) -> None:
        tries = self.tries.setdefault(message_id, [])
        if tries and tries[-1] is None:
            tries.pop()
        tries.append(ended)

    def withdraw(self, message_id: str) -> None:
        tries = self.tries.setdefault(message_id, [])
        if tries and tries[-1] is None:
            tries.pop()

    def told(self, message_id: str) -> list[Try]:
        """The tries as the ledger ought to tell them."""
        return [(CRASHED, False) if ended is None else ended for ended in self.tries.get(message_id, [])]

    def _begins(self, entry: Entry) -> bool:
        """Whether its id was never seen: whoever comes later with it adds nothing."""
        if entry.message_id in self.messages:
            return False
        self.messages[entry.message_id] = (entry.fingerprint, entry.bid)
        return True


def _reached(bundle: ModelBundle) -> bool:
    return bundle.count is not None and len(bundle.stored) >= bundle.count
