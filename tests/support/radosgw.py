"""Ceph's S3 (radosgw) over one monitor and one store in memory, from Debian: checks signatures and policies, unlike LocalStack.

It ignores conditions on CompleteMultipartUpload and knows no checksums. Used by tests/conftest.py (fixture `radosgw`).
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tests.support import apt
from tests.support.localstack import LocalStackEndpoint
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without, fetch

VARIABLE = "TRANSLOAD_TEST_RADOSGW_URL"
PACKAGES = ("ceph-mon", "ceph-osd", "ceph-common", "radosgw")
PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
COMMAND = (
    f"apt-get install --no-install-recommends {' '.join(PACKAGES)}, "
    f"or export {VARIABLE}=http://ACCESS_KEY:SECRET_KEY@HOST:PORT of a Ceph that runs"
)
START_SECONDS = 120.0

_CONFIGURATION = """[global]
fsid = {cluster}
mon host = v2:127.0.0.1:{monitor}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
run dir = {base}
admin socket =
pid file =
log file = {base}/$name.log
[mon]
mon data = {base}/mon
[osd]
osd data = {base}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd max object name len = 2048
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw thread pool size = 64
rgw enable usage log = false
rgw override bucket index max shards = 1
"""


def endpoint_of(url: str) -> LocalStackEndpoint:
    """What a client needs, out of a URL with the keys of a user in it. The shape is LocalStack's: helpers take either."""
    parts = urlsplit(url)
    return LocalStackEndpoint(
        f"{parts.scheme}://{parts.hostname}:{parts.port}",
        access_key_id=parts.username or "",
        secret_access_key=parts.password or "",
    )


class Radosgw:
    """The Ceph of one test run."""

    name = "radosgw"

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._base = Path()
        self._environment = environment_without("CEPH_", "TRANSLOAD_")

    def start(self) -> Running:
        """From the environment, else installed (half a minute, once) and started (about ten seconds)."""
        if given := os.environ.get(VARIABLE):
            return self._given(given.rstrip("/"))
        _install()
        # Its sockets are short-lived files, and a store in memory leaves little else.
        holder = tempfile.TemporaryDirectory(prefix="transload-radosgw-", ignore_cleanup_errors=True)
        self._base = Path(self._closing.enter_context(holder))
        monitor, gateway = free_port(), free_port()
        cluster = str(uuid.uuid4())
        for name in ("mon", "osd"):
            (self._base / name).mkdir()
        (self._base / "ceph.conf").write_text(
            _CONFIGURATION.format(cluster=cluster, monitor=monitor, gateway=gateway, base=self._base)
        )
        self._monitor(cluster, monitor)
        self._store()
        access, secret = "tests", uuid.uuid4().hex
        self._gateway(gateway)
        self._ask(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=tests", "--display-name=tests"),
            *(f"--access-key={access}", f"--secret-key={secret}"),
        )
        version = self._ask("radosgw", "--version").split()[2]
        return Running(f"http://{access}:{secret}@127.0.0.1:{gateway}", version, "started here")

    def stop(self) -> None:
        self._closing.close()

    @staticmethod
    def _given(url: str) -> Running:
        if not _answers(endpoint_of(url).endpoint_url):
            raise NotAvailable(f"{VARIABLE} does not answer", COMMAND)
        return Running(url, "unknown", "environment")

    def _monitor(self, cluster: str, port: int) -> None:
        monitors = str(self._base / "monmap")
        self._ask(
            *("monmaptool", "--create", "--fsid", cluster),
            *("--addv", "a", f"[v2:127.0.0.1:{port}]", monitors),
        )
        self._ask("ceph-mon", "-i", "a", "--mkfs", "--monmap", monitors)
        server = self._run("ceph-mon", "-f", "-i", "a")
        self._until(server, lambda: self._ask("ceph", "--connect-timeout", "1", "status") != "")

    def _store(self) -> None:
        unique = str(uuid.uuid4())
        self._ask("ceph", "osd", "new", unique)
        self._ask("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", unique)
        server = self._run("ceph-osd", "-f", "-i", "0")
        self._until(server, lambda: "1 up" in self._ask("ceph", "osd", "stat"))

    def _gateway(self, port: int) -> None:
        server = self._run("radosgw", "-f", "-n", "client.rgw")
        self._until(server, lambda: _answers(f"http://127.0.0.1:{port}"))

    def _run(self, *command: str) -> Server:
        server = Server.start(
            [*command, "-c", str(self._base / "ceph.conf")],
            log=self._base / f"{command[0]}.out",
            environment=self._environment,
        )
        self._closing.callback(server.stop)
        return server

    def _ask(self, *command: str) -> str:
        """What the command prints. Raises `NotAvailable` with its last words when it fails."""
        done = subprocess.run(
            [*command, "-c", str(self._base / "ceph.conf")],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
            env=self._environment,
        )
        if done.returncode:
            raise NotAvailable(f"{command[0]} failed: {done.stderr.strip()[-500:]}", COMMAND)
        return done.stdout

    @staticmethod
    def _until(server: Server, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while server.alive and time.monotonic() < deadline:
            with contextlib.suppress(NotAvailable):
                if ready():
                    return
            time.sleep(0.05)
        raise NotAvailable(f"did not start; {server.log} ends:\n{server.last_lines()}\n", COMMAND)


def _missing(programs: Sequence[str]) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]


def _install() -> None:
    if not _missing(PROGRAMS):
        return
    if not apt.can_install():
        raise NotAvailable(f"{', '.join(_missing(PROGRAMS))}: not here", COMMAND)
    for package in PACKAGES:
        try:
            apt.install(package)
        except OSError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
    if missing := _missing(PROGRAMS):
        raise NotAvailable(f"{', '.join(missing)}: not among its packages", COMMAND)


def _answers(url: str) -> bool:
    try:
        fetch(url)
    except HTTPError:
        return True
    except OSError:
        return False
    return True
