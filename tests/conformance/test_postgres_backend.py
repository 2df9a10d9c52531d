"""The suite for PostgreSQL as a target: on the server itself, and through a pooler in transaction mode."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from backends.base import StorageBackend
from backends.postgres import PostgresBackend
from backends.postgres_upload import Upload
from backends.testing import BackendConformance
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres_target import opened, postgres_options
from tests.support.postgresql import PostgresqlServer, in_thread


@pytest.fixture(scope="module")
def database(postgresql: PostgresqlServer) -> Iterator[str]:
    """The URL of a database in which every test has a schema of its own."""
    name = f"t_{secrets.token_hex(6)}"
    in_thread(postgresql.run(f"CREATE DATABASE {name} TEMPLATE template0"))
    yield postgresql.url_of(name)
    in_thread(postgresql.run(f"DROP DATABASE {name} WITH (FORCE)"))


async def left_behind(backend: StorageBackend, key: str) -> int:
    """What a writer leaves that is killed after its first chunk."""
    assert isinstance(backend, PostgresBackend)
    upload = Upload(backend.database, key)
    # A key that is taken is seen at the start, and then nothing is begun.
    if not await upload.begin(None, "{}"):
        return 0
    await upload.add(b"half")
    return 1


class TestPostgresBackend(BackendConformance):
    @pytest.fixture
    async def backend(self, database: str) -> AsyncIterator[StorageBackend]:
        async with opened(postgres_options(database)) as backend:
            yield backend

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        return await left_behind(backend, key)


class TestPostgresBackendThroughAPooler(BackendConformance):
    @pytest.fixture
    async def backend(self, pgbouncer: PgBouncer, database: str) -> AsyncIterator[StorageBackend]:
        async with opened(postgres_options(pgbouncer.through(database), pooler=True)) as backend:
            yield backend

    async def abandoned(self, backend: StorageBackend, key: str) -> int:
        return await left_behind(backend, key)
