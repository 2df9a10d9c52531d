"""Keeps the parts of one storage open for as long as its event loop runs. Used by worker/storage/own.py.

The OC Fetcher's examples close nothing. So the parts are held open by a task of their own: it closes them when it is told to,
when the storage is forgotten, or when `asyncio.run` cancels what is left in the end.
"""

import asyncio
import weakref
from contextlib import suppress
from typing import Any

from worker.settings_in_process import StorageOptionsError, Storing
from worker.storage.parts import Parts, open_parts


class Keeper:
    """Opens at the first use, and again after it was closed or its event loop has ended."""

    def __init__(self, storing: Storing) -> None:
        self._storing = storing
        self._holding: _Holding | None = None
        self._forgotten: weakref.finalize[Any, Any] | None = None

    async def parts(self) -> Parts:
        """The parts, opened. Raises what `open_parts` raises; the next call then tries again.

        Raises `StorageOptionsError` when another event loop uses them.
        """
        holding = self._holding
        if holding is None or holding.over:
            holding = self._holding = _Holding(self._storing)
            # It also holds on to the event, and that to the task, which its loop knows only weakly.
            if self._forgotten is not None:
                # It would hold on to the loop before.
                self._forgotten.detach()
            self._forgotten = weakref.finalize(self, _close, holding.loop, holding.closing)
            # Loops have ended by then, and with them what was open.
            self._forgotten.atexit = False
        if holding.loop is not asyncio.get_running_loop():
            raise StorageOptionsError("the storage is in use by another event loop; make one for each")
        # Whoever is cancelled while it opens does not keep others from it.
        return await asyncio.shield(holding.ready)

    async def aclose(self) -> None:
        """Close what is open. The next use opens it again."""
        holding, self._holding = self._holding, None
        if holding is not None and holding.loop is asyncio.get_running_loop():
            holding.closing.set()
            await asyncio.wait([holding.task])
            with suppress(asyncio.CancelledError):
                holding.task.result()


class _Holding:
    """One time that the parts are open."""

    def __init__(self, storing: Storing) -> None:
        self.loop = asyncio.get_running_loop()
        self.closing = asyncio.Event()
        self.ready: asyncio.Future[Parts] = self.loop.create_future()
        # Whoever waited may be gone; then nobody has to hear of it.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self.task = self.loop.create_task(_hold(storing, self.ready, self.closing), name="storage")

    @property
    def over(self) -> bool:
        """Nothing is open, nor will be."""
        if self.task.done() or self.closing.is_set() or self.loop.is_closed():
            return True
        return self.ready.done() and (self.ready.cancelled() or self.ready.exception() is not None)


async def _hold(storing: Storing, ready: asyncio.Future[Parts], closing: asyncio.Event) -> None:
    """Knows nothing of the storage, which is forgotten when nobody else knows it."""
    try:
        async with open_parts(storing) as parts:
            ready.set_result(parts)
            await closing.wait()
    except Exception as exc:
        if ready.done():
            raise
        ready.set_exception(exc)
    finally:
        ready.cancel()


def _close(loop: asyncio.AbstractEventLoop, closing: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(closing.set)
