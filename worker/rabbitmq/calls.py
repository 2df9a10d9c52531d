"""One call to the broker: how long it is waited for, and what its failure comes down to. Everything in this room uses it."""

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
    PublishError,
)
from pamqp.exceptions import PAMQPException

_SDK_ERRORS = (AMQPError, OSError, RuntimeError, ValueError, EOFError, PAMQPException, StopAsyncIteration)
"""Everything a call may raise, besides cancellations that are not ours."""

_OUTWAITED = "delivery acknowledgement on channel"
"""How a broker that lost its patience ends a channel (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout): whatever
was asked on it at that moment is told so, and may be asked again on the next one."""

T = TypeVar("T")


class Trouble(enum.Enum):
    """What a failed call comes down to."""

    MISSING = "there is no such queue or exchange"
    DENIED = "access is denied"
    UNAVAILABLE = "no answer"
    REFUSED = "the request is refused"


class BrokerError(Exception):
    """A call to the broker failed. The message names no credential."""

    def __init__(self, trouble: Trouble, detail: str, *, silence: bool = False) -> None:
        """`detail` is one line for a person; `silence`: nothing was answered at all."""
        super().__init__(f"{trouble.value} ({detail})")
        self.trouble = trouble
        self.silence = silence


async def call(work: Awaitable[T], seconds: float, *, cancel: bool = False) -> T:
    """What `work` returns, which runs in a task of its own. Raises `BrokerError`.

    aiormq closes the channel of a request that is cancelled, and cancels its callers when a connection ends: the task
    keeps either from reaching the other side. With `cancel` the work ends with our waiting for it, else it goes on.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(_seen)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if cancel and not task.done():
            task.cancel()
    if not task.done():
        raise BrokerError(Trouble.UNAVAILABLE, f"nothing for {seconds:g} seconds", silence=True)
    try:
        return task.result()
    except asyncio.CancelledError as exc:
        raise BrokerError(Trouble.UNAVAILABLE, "the connection was closed") from exc
    except _SDK_ERRORS as exc:
        raise _translate(exc) from exc


def _translate(exc: BaseException) -> BrokerError:
    """What one of `_SDK_ERRORS` means."""
    trouble = Trouble.UNAVAILABLE
    if isinstance(exc, (ChannelNotFoundEntity, PublishError)):
        trouble = Trouble.MISSING
    elif isinstance(
        exc, (ChannelAccessRefused, ProbableAuthenticationError, AuthenticationError, ConnectionNotAllowed)
    ):
        trouble = Trouble.DENIED
    elif isinstance(exc, (ChannelPreconditionFailed, ChannelLockedResource)) and _OUTWAITED not in str(exc):
        trouble = Trouble.REFUSED
    return BrokerError(trouble, str(exc) or type(exc).__name__)


class Once(Generic[T]):
    """One attempt at a time; everybody who asks while it runs shares its outcome, a failure too."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """`make` starts an attempt."""
        self._make = make
        self._attempt: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the attempt under way comes to."""
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.create_task(self._make())
            self._attempt.add_done_callback(_seen)
        return await asyncio.shield(self._attempt)


async def hang_up(what: AbstractChannel | AbstractConnection, seconds: float) -> None:
    """Close a channel or a connection, whether it is still there or not."""
    with suppress(BrokerError):
        await call(what.close(), seconds, cancel=True)


def _seen(task: "asyncio.Future[Any]") -> None:
    """An outcome that nobody waits for any more is no fault of the program."""
    if not task.cancelled():
        task.exception()
