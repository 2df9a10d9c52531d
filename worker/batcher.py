"""Gathers concurrent calls into batches: one commit, or one request of ten, for many callers.

Used by the ledger (group commit, grouped look-ups) and by queue adapters (batched deletes).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs `flush` over what was submitted meanwhile, at most `limit` items at a time.

    While one flush runs the next batch gathers, so batches grow with load and an idle caller waits for nobody
    (except `linger` seconds, where a fuller batch is worth a short wait). `flush` returns one result or exception per
    item, in order; an exception it raises goes to every caller of that batch.

    A caller that is cancelled leaves its item in the batch: whether it took effect is then unknown to that caller.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]],
        *,
        limit: int,
        parallel: int = 1,
        linger: float = 0.0,
        name: str = "batcher",
    ) -> None:
        """`parallel` is how many flushes may be under way at once."""
        self._flush = flush
        self._limit = limit
        self._parallel = parallel
        self._linger = linger
        self._name = name
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runners: set[asyncio.Task[None]] = set()
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Hand in one item and wait for its result. Raises what `flush` gave for it."""
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._runners) < self._parallel:
            runner = asyncio.create_task(self._run(), name=self._name)
            self._runners.add(runner)
        return await future

    async def aclose(self) -> None:
        """Refuse new items and wait until those already submitted are flushed."""
        self._closed = True
        while self._runners:
            await asyncio.wait(set(self._runners))

    async def _run(self) -> None:
        try:
            # One turn of the loop lets every caller that is ready now join the first batch.
            await asyncio.sleep(self._linger)
            while self._waiting:
                await self._flush_one_batch()
        finally:
            # Here and not in a done callback: between the last look at `_waiting` and this line nobody can submit, while
            # a callback runs a turn later, and what came in meanwhile would wait for ever.
            self._runners.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _flush_one_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
        try:
            results: Sequence[Result | BaseException] = await self._flush([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name}: {len(batch)} items, {len(results)} results")
        except BaseException as exc:
            # Whatever it was, nobody may wait for ever; a cancelled runner still ends.
            results = [exc if isinstance(exc, Exception) else asyncio.CancelledError()] * len(batch)
            if not isinstance(exc, Exception):
                raise
        finally:
            self._answer(batch, results)

    @staticmethod
    def _answer(
        batch: Sequence[tuple[Item, asyncio.Future[Result]]], results: Sequence[Result | BaseException]
    ) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
