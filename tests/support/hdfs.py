"""HDFS for the tests: a NameNode and a DataNode in one JVM, a directory a test. Used by tests/conftest.py (fixture `hdfs`).

The jars are Hadoop's own mini cluster, brought by Maven: the real servers' code with all ports on loopback. Only their fsyncs of
the NameNode's log are left out, which nobody here loses power to see.
"""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.hdfs import HdfsBackend
from backends.hdfs_options import HdfsOptions
from tests.support import apt
from tests.support.digests import differing
from tests.support.processes import Server, free_port
from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive, fetch

VARIABLE = "TRANSLOAD_TEST_HDFS_URL"
COMMAND = (
    "apt-get install maven default-jre-headless "
    f"(or: export {VARIABLE}=http://namenode:9870, of a cluster with simple authentication)"
)
RELEASE = "3.4.1"
JARS = (
    ("org.apache.hadoop", "hadoop-client-api", RELEASE),
    ("org.apache.hadoop", "hadoop-client-runtime", RELEASE),
    ("org.apache.hadoop", "hadoop-client-minicluster", RELEASE),
    # What the shaded jars leave out, or Java since 11.
    ("commons-logging", "commons-logging", "1.2"),
    ("javax.xml.bind", "jaxb-api", "2.3.1"),
    ("junit", "junit", "4.13.2"),
    ("org.slf4j", "slf4j-api", "1.7.36"),
)
JAR_DIGESTS = {
    "commons-logging-1.2.jar": "daddea1ea0be0f56978ab3006b8ac92834afeefbd9b7e4e6316fca57df0fa636",
    "hadoop-client-api-3.4.1.jar": "a964d4daa054c9615bbafb4553efbb140fa7fb9ac6f358a24393f183a5703438",
    "hadoop-client-minicluster-3.4.1.jar": "5b90be54a39d856f237a4530e25f62aea4b67c180c73b5cfb1aff35c502b2d29",
    "hadoop-client-runtime-3.4.1.jar": "f6a800a159f918670db533606d33560d6c13b7e13f14eda493280ae33b9eeb2f",
    "hamcrest-core-1.3.jar": "66fdef91e9739348df7a096aa384a5685f4e875584cce89386a7a47251c4d8e9",
    "javax.activation-api-1.2.0.jar": "43fdef0b5b6ceb31b0424b208b930c74ab58fac2ceeb7b3f6fd3aeb8b5ca4393",
    "jaxb-api-2.3.1.jar": "88b955a0df57880a26a74708bc34f74dcaf8ebf4e78843a28b50eae945732b06",
    "junit-4.13.2.jar": "8e495b634469d64fb8acfa3495a065cbacc8a0fff55ce1e31007be4c16dc57d3",
    "slf4j-api-1.7.36.jar": "d3ef575e3e4979678dc01bf1dcce51021493b4d11fb7f1be8ad982877c16a1c0",
}
"""SHA-256 of all that Maven brings for `JARS`."""
START_SECONDS = 90.0
USER = "tester"
"""No superuser: permissions are checked."""
PAGE = 50
"""Entries a page of a listing."""

_OPENS = ("java.lang", "java.nio", "java.util", "sun.nio.ch")
_SETTINGS = {
    # Else a new block is asked for again only after 400 ms, and every small file takes that long.
    "dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "5",
    "dfs.ls.limit": str(PAGE),
    "dfs.namenode.fs-limits.min-block-size": "1024",
    "dfs.replication": "1",
    # Else each new user is looked up by a process of its own.
    "hadoop.user.group.static.mapping.overrides": f"dr.who=;{USER}={USER};stranger=stranger",
}


@dataclass(frozen=True, slots=True)
class HdfsCluster:
    """What a client of the cluster needs. `/tmp` is everybody's."""

    url: str

    def options(self, root: str, **changes: Any) -> HdfsOptions:
        """How to reach `root`; `changes` replace single options."""
        return HdfsOptions(**{"url": self.url, "root": root, "user": USER, **changes})

    @contextlib.asynccontextmanager
    async def backend(self, **changes: Any) -> AsyncIterator[HdfsBackend]:
        """A connected backend on a new directory, both gone afterwards."""
        root = f"/tmp/t-{secrets.token_hex(6)}"  # noqa: S108 - a directory of HDFS
        backend = await HdfsBackend.connect(self.options(root, **changes))
        try:
            yield backend
        finally:
            await backend.aclose()
            self.call("DELETE", root, op="DELETE", recursive="true")

    def call(self, method: str, path: str, user: str = USER, **parameters: str) -> Any:
        """One request behind the adapter's back; its JSON. Raises `OSError`."""
        return _call(self.url, method, path, user, **parameters)


class Hdfs:
    """The HDFS of one test run."""

    name = "hdfs"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._closing = contextlib.ExitStack()

    def start(self) -> Running:
        """From the environment, else installed (90 MB, once) and started (about seven seconds)."""
        if given := os.environ.get(VARIABLE):
            url = given.rstrip("/")
            try:
                return Running(url, _version(url), "environment")
            except OSError as exc:
                raise NotAvailable(f"{VARIABLE}={url} does not answer ({exc})", COMMAND) from exc
        url = f"http://127.0.0.1:{free_port()}"
        server = self._spawn(self._install(), url)
        deadline = time.monotonic() + START_SECONDS
        while server.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _call(url, "PUT", "/tmp", getpass.getuser(), op="MKDIRS", permission="1777")  # noqa: S108 - as above
                _await_datanode(url, deadline)
                return Running(url, _version(url), "started here")
            time.sleep(0.1)
        raise NotAvailable(f"it did not start; {server.log} ends:\n{server.last_lines()}\n", COMMAND)

    def stop(self) -> None:
        self._closing.close()

    def _install(self) -> Path:
        """The directory of the jars."""
        directory = self._home / f"hadoop-{RELEASE}"
        stamp, wanted = directory / "installed", "\n".join(map(":".join, JARS))
        programs = {"java": "default-jre-headless", "mvn": "maven"}
        with exclusive(self._home / "install.lock"):
            for program, package in programs.items():
                if shutil.which(program) is None and (program == "java" or not stamp.exists()):
                    _install_program(program, package)
            # The stamp is written last, so an install that was interrupted is done anew.
            if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True)
                print(f"installing Hadoop {RELEASE} into {directory} (90 MB, once)", file=sys.__stderr__)
                _bring_jars(directory)
                stamp.write_text(wanted, encoding="utf-8")
        return directory / "jars"

    def _spawn(self, jars: Path, url: str) -> Server:
        base = Path(
            self._closing.enter_context(
                tempfile.TemporaryDirectory(prefix="transload-hdfs-", ignore_cleanup_errors=True)
            )
        )
        command = [
            *("java", "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Djava.net.preferIPv4Stack=true", f"-Dtest.build.data={base / 'data'}"),
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENS),
            *("-cp", ":".join(str(jar) for jar in sorted(jars.glob("*.jar")))),
            "org.apache.hadoop.test.MiniDFSClusterManager",
            *("-format", "-httpport", url.rpartition(":")[2], "-nnport", str(free_port())),
            *(part for name, value in _SETTINGS.items() for part in ("-D", f"{name}={value}")),
        ]
        environment = environment_without("HADOOP_", "HDFS_", "JAVA_TOOL", "_JAVA", "TRANSLOAD_")
        server = Server.start(command, log=base / "server.log", environment=environment)
        self._closing.callback(server.stop)
        return server


def _install_program(program: str, package: str) -> None:
    if not apt.can_install():
        raise NotAvailable(f"there is no {program}, and no root to install it", COMMAND)
    try:
        apt.install(package)
    except OSError as exc:
        raise NotAvailable(str(exc), COMMAND) from exc


def _bring_jars(directory: Path) -> None:
    """Let Maven fetch the jars, as they are and without what they would bring along."""
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        + (
            "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
            if group == "org.apache.hadoop"
            else ""
        )
        + "</dependency>"
        for group, artifact, version in JARS
    )
    project = (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>transload</groupId><artifactId>hdfs-for-tests</artifactId><version>1</version>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
    (directory / "pom.xml").write_text(project, encoding="utf-8")
    repository = directory / "repository"
    command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", f"-Dmaven.repo.local={repository}"]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={directory / 'jars'}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    shutil.rmtree(repository, ignore_errors=True)
    if done.returncode:
        raise NotAvailable(
            f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-500:]}", COMMAND
        )
    if wrong := differing(directory / "jars", JAR_DIGESTS):
        raise NotAvailable(f"Maven brought other jars than were expected: {', '.join(wrong)}", COMMAND)


def _await_datanode(url: str, deadline: float) -> None:
    """Without one nobody can write."""
    bean = "Hadoop:service=NameNode,name=FSNamesystemState"
    while _bean(url, bean)["NumLiveDataNodes"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)


def _version(url: str) -> str:
    return str(_bean(url, "Hadoop:service=NameNode,name=NameNodeInfo")["SoftwareVersion"])


def _bean(url: str, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(fetch(f"{url}/jmx?qry={name}"))["beans"][0]
    return answer


def _call(url: str, method: str, path: str, user: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode({"user.name": user, **parameters})
    request = urllib.request.Request(  # noqa: S310 - the URL of a cluster
        f"{url}/webhdfs/v1{urllib.parse.quote(path)}?{query}", method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        body = response.read()
    return json.loads(body) if body else None


@contextlib.contextmanager
def space_quota(cluster: HdfsCluster, root: str, size: int) -> Iterator[None]:
    """`root` has room for `size` bytes of blocks meanwhile."""
    cluster.call(
        "PUT", root, getpass.getuser(), op="SETQUOTA", storagespacequota=str(size), namespacequota="1000000"
    )
    try:
        yield
    finally:
        cluster.call(
            "PUT",
            root,
            getpass.getuser(),
            op="SETQUOTA",
            storagespacequota=str(1 << 50),
            namespacequota="1000000",
        )
