"""What all of Transload's storages can do. worker/storage/storages.py says where they store, decorators.py how."""

import asyncio
from collections.abc import Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self

import structlog

from worker.producer import BundleMessages, Recipe
from worker.settings_in_process import Storing
from worker.storage.announcing import Hooks, announce, pending
from worker.storage.base import BundleRef
from worker.storage.bundle import BundleStorageContext
from worker.storage.keeper import Keeper
from worker.storage.stream import BundleStream, Opening, bundle_ref_of, recipe_id_of

_AT_ONCE = 8
"""Completions of an earlier run that are announced side by side."""
_REMEMBERED = 10_000
"""Recipes whose earlier completions were looked for; beyond that, they are looked for once more."""


class OwnStorage:
    """Any number of bundles at the same time, in one event loop. Other processes may use the same place at the same time.

    Nothing is opened before it is used. What is open is closed by `aclose`, by leaving `async with`, when the storage is
    forgotten, or when `asyncio.run` ends.
    """

    def __init__(self, storing: Storing) -> None:
        """Asks nobody yet."""
        self.storing = storing
        self._keeper = Keeper(storing)
        self._staged = count().__next__
        self._recovered: set[str] = set()
        self._log = structlog.get_logger("storage")

    async def start_bundle(self, bundle_ref: BundleRef, recipe: Recipe | str) -> BundleStorageContext:
        """Begin a bundle. `recipe` names itself, and may have a loader and locators with `on_bundle_complete_hook`.

        With the first bundle of a recipe its completions are announced that an earlier run left. What goes wrong with those is
        only logged: `on_run_start` raises it.

        Raises `ProducerError` when the reference or the recipe cannot be, `StorageOptionsError`, and what opening raises.
        """
        messages = BundleMessages(bundle_ref, recipe)
        await self._keeper.parts()
        if messages.bundle.recipe_id not in self._recovered:
            for bid, error in (await self._recover(recipe, patient=False)).items():
                self._log.error("a completion is still pending", bid=bid, error=str(error))
        return BundleStorageContext(bundle_ref, messages, Hooks.of(recipe), self._keeper, self._staged)

    async def on_run_start(self, context: object, recipe: Recipe | str) -> None:  # noqa: ARG002 - the seed's hook has it
        """Announce what earlier runs of the recipe completed and did not announce, hooks first. `context` is not looked at.

        All are tried. Raises an `ExceptionGroup` of what kept some from being announced; they stay pending.
        """
        failed = await self._recover(recipe, patient=True)
        if failed:
            raise ExceptionGroup(f"{len(failed)} completions are still pending", list(failed.values()))

    def open_bundle(self, bundle_id: str, metadata: Mapping[str, Any] | None = None) -> Opening:
        """A bundle that is written to like a file: `async with storage.open_bundle(…) as bundle`, or awaited.

        Leaving the block completes it, with `metadata`; an error in the block leaves it unannounced. Of `metadata`, `recipe_id`
        (or `source`) names the recipe, `url` the resource that `write` makes, `content_type` and `status_code` what it is.
        """

        async def opened() -> BundleStream:
            facts = dict(metadata or {})
            ref = bundle_ref_of(bundle_id, facts)
            context = await self.start_bundle(ref, recipe_id_of(facts))
            return BundleStream(context, str(facts.get("url") or bundle_id), facts)

        return Opening(opened)

    async def close_bundle(self, stream: BundleStream) -> None:
        """As `stream.close()`."""
        await stream.close()

    async def aclose(self) -> None:
        """Release connections and files. Using the storage again opens them again."""
        await self._keeper.aclose()

    async def __aenter__(self) -> Self:
        await self._keeper.parts()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _recover(self, recipe: Recipe | str, *, patient: bool) -> dict[str, Exception]:
        """Announce the recipe's pending completions; what went wrong, by bid."""
        recipe_id = recipe if isinstance(recipe, str) else recipe.recipe_id
        if len(self._recovered) >= _REMEMBERED:
            self._recovered.clear()
        self._recovered.add(recipe_id)
        try:
            parts = await self._keeper.parts()
            bids, held = await pending(parts.ledger, recipe_id, patient=patient)
        except BaseException:
            # Whoever comes next looks for them.
            self._recovered.discard(recipe_id)
            raise
        if held:
            # What a dead process holds is free in a moment: the next bundle looks again.
            self._recovered.discard(recipe_id)
        hooks, gate = Hooks.of(recipe), asyncio.Semaphore(_AT_ONCE)
        failed: dict[str, Exception] = {}

        async def one(bid: str) -> None:
            async with gate:
                try:
                    await announce(parts, bid, hooks, patient=patient)
                except Exception as exc:  # noqa: BLE001 - one bundle's trouble is not its neighbours'
                    failed[bid] = exc
                else:
                    self._log.info("a completion of an earlier run is announced", bid=bid)

        async with asyncio.TaskGroup() as group:
            for bid in bids:
                group.create_task(one(bid))
        return failed
