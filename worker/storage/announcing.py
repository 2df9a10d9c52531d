"""Announces one complete bundle: its recipe's hooks, then the notification. Called by worker/storage/own.py and bundle.py.

The relay does it, as in a worker: claim, manifest, publish, mark. The hooks are called where it publishes, so a hook that fails
is a notification that did not go out: the completion stays in the ledger, and everything is done again when somebody asks.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from worker.ledger.base import Ledger
from worker.ledger.values import BundleRecord, OutboxEntry
from worker.notification import event_id
from worker.publishers.base import Notification, Outlet, PublishError
from worker.storage.base import BundleRef
from worker.storage.parts import Parts

_PAUSE = 0.05
_GRACE = 2.0
"""Seconds to wait for another process's claim, beyond what one lasts."""

_MOST = 10_000
"""Completions of an earlier run that are looked at; there are as many as were under way when it ended."""

Hook = Callable[[BundleRef], Awaitable[object] | object]


class CompletionPending(Exception):
    """The bundle is complete and stored, and its completion is in the ledger, but could not be announced yet."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a recipe wants to be told of: its loader first, then its locators."""

    hooks: tuple[Hook, ...] = ()

    @classmethod
    def of(cls, recipe: object) -> "Hooks":
        """The `on_bundle_complete_hook` of `bundle_loader` (or `loader`), then of each of `bundle_locators` (or `locators`)."""
        return cls(tuple(_hooks(recipe)))

    async def call(self, ref: BundleRef) -> None:
        """One after the other. Raises what a hook raises."""
        for hook in self.hooks:
            result = hook(ref)
            if inspect.isawaitable(result):
                await result


async def announce(parts: Parts, bid: str, hooks: Hooks, *, patient: bool = True) -> BundleRecord:
    """Announce a complete bundle, unless it is out already; the bundle, as it was announced.

    While another process holds it, its outcome is waited for; with `patient=False` only looked at. Raises what a hook raised,
    and `CompletionPending`. The completion then stays pending.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (parts.claim_seconds + _GRACE if patient else 0.0)
    unparked = False
    while True:
        publisher = _AfterHooks(parts.publisher, hooks, parts.ledger)
        claimed = await parts.relay(publisher).announce_due(bid)
        bundle = await parts.ledger.bundle(bid)
        if bundle is None or bundle.state == "open":
            raise CompletionPending(f"bundle {bid} is not complete; nothing is to be announced")
        if bundle.state == "published":
            return bundle
        if publisher.failed is not None:
            raise publisher.failed
        entry = await _entry(parts.ledger, bid)
        if claimed:
            raise _pending(bid, entry.error if entry else None)
        if entry is not None and entry.state == "parked" and not unparked:
            # Who asks again wants it tried again.
            unparked = bool(await parts.ledger.retry_parked([event_id(bid)]))
        elif loop.time() >= deadline:
            raise _pending(bid, "another process is announcing it")
        else:
            await asyncio.sleep(_PAUSE)


async def pending(ledger: Ledger, recipe_id: str, *, patient: bool) -> tuple[Sequence[str], bool]:
    """The bids of a recipe's bundles that are complete and not announced, the oldest first; and whether that is not all of them.

    With `patient=False` without those that another process holds, alive or not, and those that are parked.
    """
    waiting = await ledger.outbox("pending", _MOST, recipe_id=recipe_id)
    if not patient:
        # The ledger's clock is this machine's.
        due = [entry.bid for entry in waiting if entry.due_at <= time.time() * 1000]
        return due, len(due) < len(waiting)
    parked = await ledger.outbox("parked", _MOST, recipe_id=recipe_id)
    return [entry.bid for entry in (*waiting, *parked)], False


def reference(bundle: BundleRecord) -> BundleRef:
    """The bundle as its hooks and its fetcher see it: with what it really came to."""
    storage_key = next((place.storage_key for place in bundle.targets if place.required), None)
    return BundleRef(bundle.primary_url, bundle.stored_count, bundle.bid, storage_key, dict(bundle.meta))


class _AfterHooks:
    """The outlet for the announcement of one bundle."""

    def __init__(self, publisher: Outlet, hooks: Hooks, ledger: Ledger) -> None:
        self._publisher = publisher
        self._hooks = hooks
        self._ledger = ledger
        self.failed: Exception | None = None

    async def publish(self, notifications: Sequence[Notification]) -> Sequence[PublishError | None]:
        return [await self._publish(notification) for notification in notifications]

    async def _publish(self, notification: Notification) -> PublishError | None:
        bid = notification.attributes["bundle_id"]
        bundle = await self._ledger.bundle(bid)
        if bundle is None:
            return PublishError(f"bundle {bid} is not in the ledger any more")
        try:
            await self._hooks.call(reference(bundle))
        except Exception as exc:  # noqa: BLE001 - whatever it is, whoever completes the bundle gets it
            exc.add_note(
                f"raised by a completion hook of bundle {bid}; its completion is pending: complete() or on_run_start announces it"
            )
            self.failed = exc
            return PublishError(f"a completion hook failed: {type(exc).__name__}: {exc}")
        (outcome,) = await self._publisher.publish([notification])
        if outcome is not None:
            self.failed = _pending(bid, str(outcome))
            self.failed.__cause__ = outcome
        return outcome


def _hooks(recipe: object) -> Iterator[Hook]:
    loader = getattr(recipe, "bundle_loader", None) or getattr(recipe, "loader", None)
    locators: Iterable[object] = (
        getattr(recipe, "bundle_locators", None) or getattr(recipe, "locators", None) or ()
    )
    for component in (loader, *locators):
        hook = getattr(component, "on_bundle_complete_hook", None)
        if hook is not None:
            yield hook


async def _entry(ledger: Ledger, bid: str) -> OutboxEntry | None:
    return next(iter(await ledger.outbox(None, 1, bid=bid)), None)


def _pending(bid: str, why: str | None) -> CompletionPending:
    return CompletionPending(
        f"bundle {bid} is complete and stored, but not announced yet: {why or 'the relay says why in its log'}; "
        "call complete() again, or on_run_start"
    )
