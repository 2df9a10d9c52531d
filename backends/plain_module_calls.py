"""Runs the functions of a plain module, within a deadline, and turns what they raise into this room's errors.

Used by backends/plain_module.py only.
"""

import asyncio
import contextvars
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.plain_module_loading import Module, ModuleOptions

_CLOSE_SECONDS = 2.0
_SECRET = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)
_LONGEST = 300


class Calls:
    """The calls of one backend."""

    def __init__(self, options: ModuleOptions, module: Module) -> None:
        self._timeout = options.timeout
        self._retry_on = frozenset(options.retry_on)
        self._secrets = [
            value
            for name, value in module.options.items()
            if isinstance(value, str) and value and _SECRET.search(name)
        ]
        self._gate = asyncio.Semaphore(options.threads)
        self._running: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def run(self, function: Callable[[], Any], where: str) -> Any:
        """What the function returns: a coroutine function on the event loop, any other in a thread.

        A thread cannot be stopped. A cancelled caller waits for it until the deadline; from there on it is left alone.
        """
        if self._closed:
            raise Unavailable(f"{where}: closed")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._gate.acquire()
        except TimeoutError as exc:
            raise Unavailable(f"{where}: all threads were busy for {self._timeout:g} seconds") from exc
        if inspect.iscoroutinefunction(function):
            call: asyncio.Future[Any] = asyncio.create_task(self._awaited(function, where))
        else:
            call = _in_thread(partial(self._called, function, where))
        self._running.add(call)
        call.add_done_callback(self._ended)
        try:
            await _over(call, deadline)
        finally:
            in_time = call.done()
            if not in_time:
                if isinstance(call, asyncio.Task):
                    # It may clean up, for as long as `aclose` would wait.
                    call.cancel()
                    deadline = asyncio.get_running_loop().time() + _CLOSE_SECONDS
                # A thread goes on, and keeps its place among those that may run at once.
                await _over_regardless(call, deadline)
        if not in_time:
            raise Unavailable(f"{where}: no answer within {self._timeout:g} seconds")
        return call.result()

    async def aclose(self) -> None:
        """Wait a moment for what is running; threads end with the process."""
        self._closed = True
        if self._running:
            await asyncio.wait(set(self._running), timeout=_CLOSE_SECONDS)

    @contextmanager
    def translated(self, where: str) -> Iterator[None]:
        """Around whatever is the module's. `SystemExit` would end the worker."""
        try:
            yield
        except StorageError:
            raise
        except (Exception, SystemExit) as exc:
            raise self._translate(exc, where) from exc

    def _called(self, function: Callable[[], Any], where: str) -> Any:
        with self.translated(where):
            return function()

    async def _awaited(self, function: Callable[[], Any], where: str) -> Any:
        with self.translated(where):
            return await function()

    def _ended(self, call: "asyncio.Future[Any]") -> None:
        self._running.discard(call)
        self._gate.release()
        if not call.cancelled():
            # Nobody may be left to ask for it.
            call.exception()

    def _translate(self, exc: BaseException, where: str) -> StorageError:
        text = str(exc)
        for secret in self._secrets:
            text = text.replace(secret, "**********")
        said = f"{where} raised {type(exc).__qualname__}: {text[:_LONGEST]}"
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(exc).__mro__}
        if isinstance(exc, ConnectionError | TimeoutError) or kinds & self._retry_on:
            return Unavailable(said)
        if isinstance(exc, PermissionError):
            return PermissionDenied(said)
        if (
            isinstance(exc, OSError)
            and exc.errno
            and not isinstance(exc, FileNotFoundError | NotADirectoryError)
        ):
            # A full or failing disk, no file descriptor left: later may be better, as for our own directory.
            return Unavailable(said)
        return StorageError(said)


async def _over(call: "asyncio.Future[Any]", deadline: float) -> None:
    """Return when the call is over, or the time."""
    rest = deadline - asyncio.get_running_loop().time()
    if not call.done() and rest > 0:
        await asyncio.wait([call], timeout=rest)


async def _over_regardless(call: "asyncio.Future[Any]", deadline: float) -> None:
    """As `_over`, however often the caller is cancelled meanwhile."""
    while not call.done() and deadline > asyncio.get_running_loop().time():
        with suppress(asyncio.CancelledError):
            await _over(call, deadline)


def _in_thread(function: Callable[[], Any]) -> "asyncio.Future[Any]":
    """A thread of its own, which does not keep the process from ending: the function may hang for ever."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, failure: BaseException | None) -> None:
        if future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)

    def work() -> None:
        result, failure = None, None
        try:
            result = context.run(function)
        except BaseException as exc:  # noqa: BLE001 - it goes to the one who waits
            failure = exc
        with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="module-backend", daemon=True).start()
    return future
