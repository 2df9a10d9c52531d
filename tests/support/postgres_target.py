"""PostgreSQL as a target, for the tests of backends/postgres.py: options for a database of the shared server, and a look inside."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # it ships no type information
from pydantic import SecretStr
from sqlalchemy import make_url

from backends.postgres import PostgresBackend
from backends.postgres_client import PostgresOptions


def postgres_options(url: str, **changes: Any) -> PostgresOptions:
    """A new schema in the database of this URL; `changes` replace single options."""
    parsed = make_url(url)
    return PostgresOptions(
        **{
            "host": parsed.host,
            "port": parsed.port or 5432,
            "database": parsed.database,
            "user": parsed.username,
            "password": SecretStr(parsed.password) if parsed.password else None,
            "schema_name": f"s_{secrets.token_hex(6)}",
            "create_tables": True,
            **changes,
        }
    )


@asynccontextmanager
async def opened(options: PostgresOptions) -> AsyncIterator[PostgresBackend]:
    """A connected backend, closed afterwards."""
    backend = await PostgresBackend.connect(options)
    try:
        yield backend
    finally:
        await backend.aclose()


async def ask(url: str, statement: str, *values: object) -> Sequence[Any]:
    """The rows of one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        rows: Sequence[Any] = await connection.fetch(statement, *values)
    finally:
        await connection.close()
    return rows
