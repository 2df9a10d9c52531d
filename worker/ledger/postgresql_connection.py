"""A connection to the ledger's server: how it is made, what it may take on both sides, how it is given up.

Used by worker/ledger/postgresql.py only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import asyncpg  # type: ignore[import-untyped] # it ships no type information
from sqlalchemy import URL, func, select

CONNECT_SECONDS = 5.0
GOODBYE_SECONDS = 2.0

LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
"""The settings of a session that bound what it may take."""


class ServerConnection(asyncpg.Connection):  # type: ignore[misc] # asyncpg is untyped
    """Hangs up when its time is over; whoever waits for it then sees a lost connection.

    A cancelled statement would have the driver ask the server to stop it, and wait for a server that does not answer.
    """

    expired = False
    _expiry: asyncio.TimerHandle | None = None

    def expire_in(self, seconds: float | None) -> None:
        """Hang up in so many seconds, instead of what was said before."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None if seconds is None else self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self.terminate()

    async def close(self, *, timeout: float | None = GOODBYE_SECONDS) -> None:  # noqa: ASYNC109 - the driver's own name
        """Say goodbye; a server that does not answer is left without."""
        self.expire_in(None)
        with suppress(TimeoutError):
            await super().close(timeout=timeout)


def connector(url: URL, *, pooler: bool, deadline: float) -> Callable[[], Awaitable[ServerConnection]]:
    """Gives a new connection at each call, which hangs up soon unless it is told to `expire_in` another time."""
    patience = min(CONNECT_SECONDS, deadline)

    async def connect() -> ServerConnection:
        connection: ServerConnection = await asyncpg.connect(
            url.render_as_string(hide_password=False),
            timeout=patience,
            connection_class=ServerConnection,
            # Without a cache the driver prepares statements without a name, which live as long as a transaction needs them.
            statement_cache_size=0 if pooler else 100,
            server_settings={"application_name": "transload"} | ({} if pooler else limits_for(deadline)),
        )
        # For what is asked of a new connection before its first transaction.
        connection.expire_in(patience)
        return connection

    return connect


def limits_for(deadline: float) -> dict[str, str]:
    """What ends on the server before or when the client hangs up, in milliseconds: no lock outlives its transaction by much.

    https://www.postgresql.org/docs/current/runtime-config-client.html
    """
    shares = (5 / 6, 1 / 3, 1)
    return {name: str(int(deadline * share * 1000)) for name, share in zip(LIMITS, shares, strict=True)}


def set_local(settings: Mapping[str, str]) -> Any:
    """The statement that sets them for the rest of the transaction."""
    return select(*(func.set_config(name, value, True) for name, value in settings.items()))
