"""RabbitMQ for the tests: one broker a run, random queue names a test, and brokers of their own for tests that kill them.

Used by tests/conftest.py (fixture `rabbitmq`), and directly by tests of faults (`OwnBroker`).
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiormq
import psutil
from aiormq.abc import AbstractChannel
from pydantic import SecretStr

from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without
from worker.queues.rabbitmq_topology import Topology

VARIABLE = "TRANSLOAD_TEST_RABBITMQ_URL"
COMMAND = (
    f"docker run -d -p 5672:5672 rabbitmq:4 && export {VARIABLE}=amqp://guest:guest@127.0.0.1:5672/ "
    "(or: apt-get install rabbitmq-server)"
)
START_SECONDS = 90.0
MEMORY = "512MB"
STRANGER = "stranger"
"""A user, with that password, who may do nothing. Only brokers of a test's own know it."""

_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian keeps the real scripts: its commands on PATH insist on a user and a home of their own."""
# The port mapper dies with the broker's process group. One that the broker starts itself would outlive the run.
_BOOT = 'epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" -relaxed_command_check & exec "$0"'


class RabbitBroker:
    """A broker that answers."""

    grace = 10.0
    """Seconds between the end of a test and the end of its queues. RabbitMQ 3.10 may never again make a queue that passes
    messages on, when one is deleted in the moment in which it starts."""

    def __init__(self, url: str) -> None:
        """`url` is that of a user who may do everything."""
        self.url = url
        self._left: deque[tuple[float, str]] = deque()

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 5672

    def through(self, port: int) -> str:
        """The URL by way of a proxy on loopback."""
        parts = urlsplit(self.url)
        credentials = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{credentials}@127.0.0.1:{port}").geturl()

    async def leave(self, *names: str) -> None:
        """These queues are done with. Delete those that have been for a while."""
        now = time.monotonic()
        self._left.extend((now, name) for name in names)
        await self._delete(now - self.grace)

    async def forget(self) -> None:
        """Delete all that is left: the broker may live longer than the tests."""
        await self._delete(time.monotonic())

    async def _delete(self, before: float) -> None:
        if not self._left or self._left[0][0] > before:
            return
        async with aiormq.connect(self.url) as connection:
            channel = await connection.channel()
            while self._left and self._left[0][0] <= before:
                await channel.queue_delete(self._left.popleft()[1])


class OwnBroker(RabbitBroker):
    """A broker of the test's own: killed, and started again at the same address, on the same data."""

    grace = math.inf

    def __init__(self, base: Path, configuration: str = "", advanced: str = "") -> None:
        """`base` is an empty directory; `configuration` are lines of rabbitmq.conf, `advanced` Erlang terms for `rabbit`."""
        self._scripts = _programs()
        self._port = free_port()
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self._port}/")
        self._log = base / "server.log"
        self._environment = environment_without("RABBITMQ_", "ERL_", "TRANSLOAD_") | {
            "HOME": str(base),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "config"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_NODENAME": f"transload-{self._port}@localhost",
            "RABBITMQ_SCHEMA_DIR": str(base / "schema"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
            # The script then becomes the broker instead of waiting for it, and no shell stands between it and a signal.
            "RUNNING_UNDER_SYSTEMD": "1",
        }
        (base / "plugins").write_text("[].\n", encoding="utf-8")
        (base / "advanced.config").write_text(f"[{{rabbit, [{advanced}]}}].\n", encoding="utf-8")
        (base / "definitions.json").write_text(json.dumps(_definitions()), encoding="utf-8")
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self._port}",
            f"vm_memory_high_watermark.absolute = {MEMORY}",
            "disk_free_limit.absolute = 50MB",
            f"load_definitions = {base / 'definitions.json'}",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
            configuration,
        ]
        (base / "rabbitmq.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._server: Server | None = None

    @classmethod
    @contextlib.contextmanager
    def create(cls, configuration: str = "", advanced: str = "") -> Iterator["OwnBroker"]:
        """A new broker that runs; afterwards nothing of it is left. Raises `NotAvailable`."""
        with tempfile.TemporaryDirectory(
            prefix="transload-rabbitmq-", ignore_cleanup_errors=True
        ) as directory:
            broker = cls(Path(directory), configuration, advanced)
            try:
                broker.start()
                yield broker
            finally:
                broker.stop()

    def start(self) -> str:
        """Start it and wait until it answers (about six seconds); returns its version."""
        self._server = Server.start(
            ["sh", "-c", _BOOT, str(self._scripts / "rabbitmq-server")],
            log=self._log,
            environment=self._environment,
        )
        deadline = time.monotonic() + START_SECONDS
        while self._server.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return _version(self.url)
            time.sleep(0.05)
        raise NotAvailable(f"it did not start; {self._log} ends:\n{self._server.last_lines()}\n", COMMAND)

    def stop(self) -> None:
        """End it in order. Calling it twice is harmless."""
        if self._server is not None:
            self._server.stop()

    def kill(self) -> None:
        """SIGKILL, as a power failure that spares the disk."""
        if self._server is not None:
            for process in psutil.Process(self._server.keeper.pid).children(recursive=True):
                # Others of its processes come and go.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name().startswith("beam"):
                        process.kill()
            self.stop()

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl (about two seconds); returns what it prints."""
        command = [str(self._scripts / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self._environment, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def alarm(self, *, raised: bool) -> None:
        """Raise or clear the memory alarm."""
        self.control("set_vm_memory_high_watermark", *(["0"] if raised else ["absolute", MEMORY]))


class RabbitMq:
    """The RabbitMQ of one test run."""

    name = "rabbitmq"

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()

    def start(self) -> Running:
        """From the environment, else from the package that is here or can be had, started (about six seconds)."""
        if given := os.environ.get(VARIABLE):
            try:
                return Running(given, _version(given), "environment")
            except OSError as exc:
                raise NotAvailable(f"{VARIABLE} does not answer ({exc})", COMMAND) from exc
        broker = self._closing.enter_context(OwnBroker.create())
        return Running(broker.url, _version(broker.url), "started here")

    def stop(self) -> None:
        self._closing.close()


@dataclass(frozen=True, slots=True)
class Queues:
    """The names of one test, and a channel to look behind the adapters' backs."""

    url: str
    name: str
    channel: AbstractChannel

    @property
    def dead(self) -> str:
        return f"{self.name}.dead"

    def options(self, **changes: Any) -> dict[str, Any]:
        """Options of the queue adapter, with a short lease."""
        return {"url": SecretStr(self.url), "queue": self.name, "lease": 1.0} | changes

    async def waiting(self, name: str) -> int:
        return (await self.channel.queue_declare(name, passive=True)).message_count or 0

    async def consumers(self) -> int:
        return (await self.channel.queue_declare(self.name, passive=True)).consumer_count or 0


@contextlib.asynccontextmanager
async def rabbit_queues(broker: RabbitBroker) -> AsyncIterator[Queues]:
    """A random name; whatever queues the adapters make of it are deleted in the end."""
    name = f"t-{secrets.token_hex(6)}"
    async with aiormq.connect(broker.url) as connection:
        yield Queues(broker.url, name, await connection.channel())
    await broker.leave(name, *Topology(name, f"{name}.dead").others)


def _programs() -> Path:
    """The directory of `rabbitmq-server` and `rabbitmqctl`."""
    if (_SCRIPTS / "rabbitmq-server").exists():
        return _SCRIPTS
    if found := shutil.which("rabbitmq-server"):
        return Path(found).resolve().parent
    if not apt.can_install():
        raise NotAvailable("there is no rabbitmq-server, and no root to install it", COMMAND)
    try:
        apt.install("rabbitmq-server")
    except OSError as exc:
        raise NotAvailable(str(exc), COMMAND) from exc
    return _SCRIPTS


def _definitions() -> dict[str, Any]:
    """Users, because a broker that is given definitions makes none of its own."""
    everything = {"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    nothing = {"user": STRANGER, "vhost": "/", "configure": "^$", "write": "^$", "read": "^$"}
    return {
        "users": [_user("guest", "administrator"), _user(STRANGER)],
        "vhosts": [{"name": "/"}],
        "permissions": [everything, nothing],
    }


def _user(name: str, *tags: str) -> dict[str, Any]:
    """Its password is its name: https://www.rabbitmq.com/docs/passwords#computing-password-hash."""
    salt = secrets.token_bytes(4)
    digest = hashlib.sha256(salt + name.encode()).digest()
    return {
        "name": name,
        "password_hash": base64.b64encode(salt + digest).decode(),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": list(tags),
    }


def _version(url: str) -> str:
    """What the broker says in its first frame. Raises `OSError` when there is none."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 5672), timeout=2) as peer:
        peer.sendall(b"AMQP\x00\x00\x09\x01")
        frame = peer.recv(4096)
    _, found, rest = frame.partition(b"\x07versionS")
    if not found:
        raise ConnectionError("no AMQP broker")
    return rest[4 : 4 + int.from_bytes(rest[:4], "big")].decode()
