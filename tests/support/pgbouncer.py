"""PgBouncer in transaction mode before the PostgreSQL of the tests. Used by tests/conftest.py (fixture `pgbouncer`)."""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # it ships no type information
from sqlalchemy import URL, make_url

from tests.support import apt
from tests.support.postgresql import User, as_user, in_thread
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without

COMMAND = "apt-get install --no-install-recommends pgbouncer"
START_SECONDS = 30.0
SERVER_CONNECTIONS = 4
"""To one database: fewer than its clients hold, so that they do change places."""


class PgBouncer:
    """The PgBouncer of one test run."""

    name = "pgbouncer"

    def __init__(self, server_url: str) -> None:
        """`server_url` is the URL of a database on the server behind it."""
        self._behind = make_url(server_url)
        self._port = 0
        self._closing = contextlib.ExitStack()

    def through(self, url: str) -> str:
        """The same database of the server, by way of the pooler."""
        return make_url(url).set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    def start(self) -> Running:
        """From PATH or Debian's package, started in a tenth of a second."""
        program, user = _program(), User.find()
        directory = tempfile.TemporaryDirectory(prefix="transload-pgbouncer-", ignore_cleanup_errors=True)
        base = Path(self._closing.enter_context(directory))
        self._port = free_port()
        url = make_url(self.through(self._behind.render_as_string(hide_password=False)))
        configuration = self._configure(base, url, user)
        server = Server.start(
            as_user(user, [program, str(configuration)]),
            log=base / "pgbouncer.log",
            environment=environment_without("PG", "TRANSLOAD_"),
            # It keeps nothing, and its orderly ends differ from release to release.
            stop_signal=signal.SIGKILL,
        )
        self._closing.callback(server.stop)
        return Running(url.render_as_string(hide_password=False), _wait(server, url), "started here")

    def stop(self) -> None:
        self._closing.close()

    def _configure(self, base: Path, url: URL, user: User | None) -> Path:
        users = base / "users"
        users.write_text(f'"{url.username}" "{url.password}"\n', encoding="utf-8")
        configuration = base / "pgbouncer.ini"
        configuration.write_text(
            f"""[databases]
* = host={self._behind.host} port={self._behind.port or 5432}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {url.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
max_client_conn = 500
""",
            encoding="utf-8",
        )
        if user is not None:
            for path in (base, users, configuration):
                os.chown(path, user.uid, user.gid)
        return configuration


def _program() -> str:
    """Debian puts it where only root looks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which("pgbouncer", path=path):
        return found
    if apt.can_install():
        try:
            apt.install("pgbouncer")
        except OSError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
        if found := shutil.which("pgbouncer", path=path):
            return found
    raise NotAvailable("the program is not here", COMMAND)


def _wait(server: Server, url: URL) -> str:
    """Poll until a query passes through it. Returns its version."""

    async def ask() -> None:
        connection = await asyncpg.connect(url.render_as_string(hide_password=False), statement_cache_size=0)
        try:
            await connection.execute("SELECT 1")
        finally:
            await connection.close()

    deadline = time.monotonic() + START_SECONDS
    while server.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            in_thread(ask())
            return _version(server)
        time.sleep(0.02)
    raise NotAvailable(f"it did not start; {server.log} ends:\n{server.last_lines()}\n", COMMAND)


def _version(server: Server) -> str:
    """As its log says: `process up: PgBouncer 1.18.0, …`."""
    _, _, after = server.log.read_text(errors="replace").partition("PgBouncer ")
    return after.partition(",")[0] or "unknown"
