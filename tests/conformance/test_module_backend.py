"""The suite for plain modules with `save`, `get` and `delete`: real ones, which keep their payloads in SQLite."""

import hashlib
import secrets
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import CHUNK_SIZE, Receipt, StorageBackend
from backends.errors import NotFound
from backends.plain_module import ModuleBackend
from backends.plain_module_loading import ModuleOptions
from backends.testing import BackendConformance
from backends.testing.material import LARGE, NOTHING, fed, some_bytes

COMMON = """
import contextlib, sqlite3

default_options = {"path": "nowhere"}

@contextlib.contextmanager
def table(opts):
    connection = sqlite3.connect(opts["path"], timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, payload BLOB)")
    try:
        yield connection
    finally:
        connection.close()
"""

SAVE = """
def save(key, opts):
    with table(opts) as connection:
        connection.execute("REPLACE INTO objects VALUES (?, ?)", (key, opts["payload"]))
"""

ALL = """
def save(key, opts, payload):
    with table(opts) as connection:
        connection.execute("REPLACE INTO objects VALUES (?, ?)", (key, payload))

def get(key, opts=default_options):
    with table(opts) as connection:
        row = connection.execute("SELECT payload FROM objects WHERE key = ?", (key,)).fetchone()
    return row and row[0]

def delete(key, opts=default_options):
    with table(opts) as connection:
        return connection.execute("DELETE FROM objects WHERE key = ?", (key,)).rowcount > 0
"""


class OnModules(BackendConformance):
    """What the module's own table holds is the truth about it."""

    code = ALL
    huge = 24 << 20
    """A payload is held whole, so the largest is what is configured."""

    @pytest.fixture
    async def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StorageBackend]:
        name = f"module_{secrets.token_hex(6)}"
        (tmp_path / f"{name}.py").write_text(COMMON + self.code)
        monkeypatch.syspath_prepend(tmp_path)
        self.path = tmp_path / "objects.db"
        options = ModuleOptions(module=name, options={"path": str(self.path)}, max_size=24 << 20)
        backend = await ModuleBackend.connect(options)
        yield backend
        await backend.aclose()
        del sys.modules[name]

    def asked(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    async def keys(self, backend: StorageBackend, prefix: str = "") -> list[str]:  # noqa: ARG002 - asked behind its back
        rows = self.asked("SELECT key FROM objects") if self.path.exists() else []
        keys = [key.replace("%2F", "/").replace("%25", "%") for (key,) in rows]
        return sorted(key for key in keys if key.startswith(prefix))

    async def exists(self, backend: StorageBackend, key: str) -> bool:
        return key in await self.keys(backend)


class TestModuleBackend(OnModules):
    """With all three functions; the payload as the third argument."""


class TestModuleBackendThatOnlySaves(OnModules):
    """The payload among the options."""

    code = SAVE

    async def content(self, backend: StorageBackend, key: str) -> bytes:  # noqa: ARG002 - asked behind its back
        rows = (
            self.asked("SELECT payload FROM objects WHERE key = ?", _flat(key)) if self.path.exists() else []
        )
        if not rows:
            raise NotFound(key)
        payload: bytes = rows[0][0]
        return payload

    async def remove(self, backend: StorageBackend, key: str) -> None:  # noqa: ARG002 - as above
        assert self.asked("DELETE FROM objects WHERE key = ? RETURNING key", _flat(key))

    @pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, LARGE])
    async def test_what_is_written_is_read_back(self, backend: StorageBackend, size: int) -> None:
        """As in the suite, without asking the backend itself."""
        data = some_bytes(size)
        receipt = await backend.write("some/key.bin", fed(data), NOTHING)
        assert receipt == Receipt("some/key.bin", size, hashlib.sha256(data).hexdigest())
        assert await self.content(backend, "some/key.bin") == data

    async def test_a_source_without_any_piece_makes_an_empty_object(self, backend: StorageBackend) -> None:
        """As above."""
        receipt = await backend.write("empty", fed(b""), NOTHING)
        assert (receipt.size, receipt.created) == (0, True)
        assert await self.content(backend, "empty") == b""


def _flat(key: str) -> str:
    return key.replace("%", "%25").replace("/", "%2F")
