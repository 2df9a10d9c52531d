"""The connections of one PostgreSQL target: a pool on which statements run, each a transaction, each within a deadline.

Used by backends/postgres*.py. asyncpg and its errors stay in this file.
"""

import asyncio
import ssl
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

import asyncpg  # type: ignore[import-untyped] # it ships no type information; everything of it stays in this file
from pydantic import Field, SecretStr

from backends.addresses import is_here
from backends.base import BackendOptions
from backends.errors import (
    Conflict,
    IntegrityError,
    PermissionDenied,
    StorageError,
    Unavailable,
    Unsupported,
)

T = TypeVar("T")

SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]

CLEANUP_SECONDS = 10.0
"""What a statement of the cleaning up after a failure may take; the rest is left to a sweep."""
_CLOSE_SECONDS = 2.0


class PostgresOptions(BackendOptions):
    """A schema of a database, and how to reach it."""

    host: str = Field(min_length=1, description="Name or address of the server, or the pooler before it.")
    port: int = Field(default=5432, ge=1, le=65535, description="Its TCP port.")
    database: str = Field(min_length=1, description="Database; it must exist, with encoding UTF8.")
    user: str = Field(min_length=1, description="Role to log in as.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    sslmode: SslMode | None = Field(
        default=None,
        description="As libpq has it; only the last checks that it is `host` who answers. By default `verify-full`, and for a "
        "server on this machine `prefer`.",
    )
    sslrootcert: Path | None = Field(
        default=None,
        description="Certificates of the authorities that are trusted, for `verify-…`, instead of the system's.",
    )
    schema_name: str = Field(
        default="transload",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Schema the tables `objects` and `chunks` lie in.",
    )
    create_tables: bool = Field(default=False, description="Create schema and tables when they are missing.")
    chunk_size: int = Field(
        default=1 << 20,
        ge=64 << 10,
        le=16 << 20,
        description="Bytes of a row; a write needs about six times this in memory.",
    )
    pooler: bool = Field(
        default=False,
        description="`host` is a pooler in transaction mode (PgBouncer): no prepared statement is kept.",
    )
    max_connections: int = Field(
        default=8, ge=1, description="Connections at most; more calls wait for a free one."
    )
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds one statement may take, the transfer of its one chunk and the wait for a connection included.",
    )

    @property
    def mode(self) -> SslMode:
        """The effective `sslmode`."""
        return self.sslmode or ("prefer" if is_here(self.host) else "verify-full")

    def unverified(self) -> str | None:
        """See `BackendOptions`."""
        if self.mode == "verify-full" or is_here(self.host):
            return None
        return f"it is not verified that {self.host} answers (sslmode: {self.mode})"

    @property
    def location(self) -> str:
        """`postgresql://host:port/database/schema/`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{host}:{self.port}/{self.database}/{self.schema_name}/"


class Database:
    """A pool of connections to one schema. `open` makes one."""

    def __init__(self, options: PostgresOptions, pool: Any) -> None:
        """`pool` is closed by `aclose`."""
        self._options = options
        self._pool = pool
        self.schema = f'"{options.schema_name}"'
        self.location = options.location

    @classmethod
    async def open(cls, options: PostgresOptions) -> "Database":
        """Nothing is connected yet."""
        query: dict[str, str] = {"sslmode": options.mode}
        if options.sslrootcert is not None:
            query["sslrootcert"] = str(options.sslrootcert)
        settings = {"application_name": "transload"}
        if not options.pooler:
            # A pooler in transaction mode hands the setting to whoever comes next.
            settings["statement_timeout"] = _milliseconds(options.timeout)
        with translated(options.location, "open"):
            pool = await asyncpg.create_pool(
                f"postgresql://?{urlencode(query)}",
                host=options.host,
                port=options.port,
                database=options.database,
                user=options.user,
                password=options.password.get_secret_value() if options.password else None,
                timeout=options.connect_timeout,
                ssl=_system_tls(options.mode) if options.sslrootcert is None else None,
                min_size=0,
                max_size=options.max_connections,
                statement_cache_size=0 if options.pooler else 100,
                server_settings=settings,
                # Statements leave nothing behind in a session, so resetting it would be a round trip for nothing.
                reset=_leave,
            )
        return cls(options, pool)

    @property
    def place(self) -> tuple[str, int, str, str]:
        """Equal for databases within which one statement can copy."""
        return self._options.host, self._options.port, self._options.database, self._options.user

    def translating(self, doing: str) -> AbstractContextManager[None]:
        """Around a statement and its failpoints, which may raise what the driver raises."""
        return translated(self.location, doing)

    async def run(
        self, statement: str, *values: object, source: str = "", seconds: float | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """The rows of one statement, which is one transaction. `source` is another schema it names.

        Raises `Unavailable` when that takes longer than `seconds` (by default `timeout`). A statement that is cancelled or
        late may still happen on the server; nobody is told.
        """
        text = statement.replace("{schema}", self.schema).replace("{source}", source)
        limit = self._options.timeout if seconds is None else min(seconds, self._options.timeout)
        with translated(self.location, statement.split(maxsplit=1)[0]):
            connection = await self._pool.acquire(timeout=limit)
            try:
                rows: Sequence[Mapping[str, Any]] = await _within(
                    limit, connection, self._fetch(connection, text, values)
                )
            finally:
                await self._pool.release(connection)
        return rows

    async def read(
        self, statement: str, *values: object, seconds: float | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """`run`, for a statement that changes nothing."""
        return await self.run(statement, *values, seconds=seconds)

    async def script(self, statements: str) -> None:
        """Several statements as one transaction."""
        with translated(self.location, "create tables"):
            connection = await self._pool.acquire(timeout=self._options.timeout)
            try:
                script = connection.execute(statements.replace("{schema}", self.schema))
                await _within(self._options.timeout, connection, script)
            finally:
                await self._pool.release(connection)

    async def _fetch(self, connection: Any, text: str, values: Sequence[object]) -> Any:
        if not self._options.pooler:
            return await connection.fetch(text, *values)
        # Preparing and executing are two requests, which only a transaction keeps on one connection of the server's. Should
        # the pooler lose us in between, the server must not hold our locks for long.
        async with connection.transaction():
            limit = _milliseconds(self._options.timeout)
            await connection.execute(
                f"SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}"
            )
            return await connection.fetch(text, *values)

    async def aclose(self) -> None:
        """Say goodbye to the server; one that does not answer is left without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pool.close()


def _system_tls(mode: SslMode) -> ssl.SSLContext | None:
    """For `verify-…` without certificates of its own, which the driver would look for in a home directory; else None."""
    if mode not in {"verify-ca", "verify-full"}:
        return None
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    return context


async def _leave(_: object) -> None:
    """Keep the session as it is."""


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


async def _within(seconds: float, connection: Any, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. When the time is over, or the caller is cancelled, the connection is hung up.

    A cancelled statement would have the driver ask the server to stop it, and wait for a server that may not answer.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        in_time = task.done()
        if not in_time:
            connection.terminate()
            await settled(task)
    if not in_time:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from task.exception()
    return task.result()


async def settled(task: asyncio.Task[T]) -> None:
    """Return when the task is over, however it ended. A cancellation that comes meanwhile is raised then."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if not task.cancelled():
        task.exception()
    if cancelled is not None:
        raise cancelled


@contextmanager
def translated(location: str, doing: str) -> Iterator[None]:
    """Turn what the driver raises into this room's errors."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as exc:
        raise _translate(exc, f"{location}: {doing.lower()}") from exc


_POOLER = "; where the host is PgBouncer, set pooler: true"
_ERRORS: Mapping[str, tuple[type[StorageError], str]] = MappingProxyType(
    {
        "08P01": (Unavailable, _POOLER),
        "22": (StorageError, ""),
        "23503": (Unavailable, "; the unfinished write was swept meanwhile"),
        "23505": (Conflict, ""),
        "23514": (IntegrityError, "; the chunk arrived damaged"),
        "23": (StorageError, ""),
        "25006": (Unavailable, "; the server is a standby: give the primary's address"),
        "26000": (StorageError, _POOLER),
        "28": (PermissionDenied, "; correct user and password, or the server's pg_hba.conf"),
        "3D000": (StorageError, "; create the database, or correct its name"),
        "3F000": (StorageError, "; set create_tables: true once"),
        "42501": (PermissionDenied, "; grant it to the configured user"),
        "42P01": (StorageError, "; set create_tables: true once"),
        "42P05": (StorageError, _POOLER),
        "42": (StorageError, ""),
        "53100": (Unavailable, "; the server's disk is full"),
        "54": (Unsupported, ""),
        "54000": (Unsupported, ""),
        "XX001": (IntegrityError, "; the server's files are damaged: restore a backup"),
        "XX002": (IntegrityError, "; the server's files are damaged: REINDEX, or restore a backup"),
    }
)
"""SQLSTATE or its class -> error and remedy; whatever is not here may pass.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""


def _translate(exc: Exception, where: str) -> StorageError:
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return StorageError(f"{where}: {exc}; correct the options of this place")
    if isinstance(exc, asyncpg.PostgresError):
        # `str` of it repeats the values of the row in question.
        state, said = exc.sqlstate or "", exc.message or type(exc).__name__
        kind, remedy = _ERRORS.get(state) or _ERRORS.get(state[:2]) or (Unavailable, "")
        return kind(f"{where}: {said}{remedy}")
    if isinstance(exc, ssl.SSLCertVerificationError):
        remedy = "configure sslrootcert; or sslmode, if nobody need be recognized"
        return PermissionDenied(
            f"{where}: the server's certificate is not trusted ({exc.verify_message}); {remedy}"
        )
    kind = StorageError if isinstance(exc, ValueError) else Unavailable
    if isinstance(exc, ConnectionError) and "rejected SSL" in str(exc):
        return kind(f"{where}: the server has no TLS; switch it on there, or configure sslmode: prefer")
    return kind(f"{where}: {str(exc) or type(exc).__name__}")
