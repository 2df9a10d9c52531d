"""The Dockerfile, built by a real builder; its image, run by a real runtime as confined as Kubernetes and Compose run it."""

import contextlib
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compose import Servers, compose
from tests.support.containers import BuildError, Container, Containers, Image
from tests.support.localstack import LocalStackEndpoint
from tests.support.postgresql import PostgresqlServer
from tests.support.processes import free_port
from tests.support.rabbitmq import RabbitBroker
from tests.support.services import ROOT, fetch

pytestmark = pytest.mark.slow

CONTEXT = ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock", "README.md", "LICENSE")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def image(containers: Containers) -> Image:
    return containers.build(ROOT)


@pytest.fixture
def container(containers: Containers, image: Image) -> Iterator[Container]:
    with containers.container(image) as container:
        yield container


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What the build reads, to be changed."""
    for name in CONTEXT:
        shutil.copy(ROOT / name, tmp_path / name)
    for room in ("backends", "handlers", "worker"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        fetch(f"http://127.0.0.1:{port}{path}")
        return True
    return False


def test_it_says_how_to_be_run_and_holds_no_tools(image: Image) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert (image.config["Entrypoint"], image.config["Cmd"]) == (["transload"], ["run"])
    assert (image.config["User"], image.config["StopSignal"]) == ("65532:65532", "SIGTERM")
    assert image.config["Labels"]["org.opencontainers.image.version"] == version[1]
    installed = {path.name for path in (image.root / "opt/transload").glob("lib/python*/site-packages/*")}
    assert {"worker", "azure", "aiormq", "asyncpg", "obstore"} <= installed
    assert installed & {"pip", "uv", "pytest", "mypy", "hatchling"} == set()
    assert not (image.root / "usr/local/bin/uv").exists()
    assert not (image.root / "src").exists()
    megabytes = sum(path.lstat().st_size for path in (image.root / "opt").rglob("*") if path.is_file()) >> 20
    assert megabytes < 250, "what came in?"


def test_nothing_but_scratch_can_be_written(container: Container) -> None:
    tried = "touch /scratch/file && ! touch /file /opt/transload/file /tmp/file /var/tmp/file; grep Cap /proc/self/status; id -u"
    done = container.run(tried, entrypoint=["sh", "-ec"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Read-only file system") == 4
    *capabilities, uid = done.stdout.splitlines()
    assert uid == "65532"
    assert {line.split()[1] for line in capabilities} == {"0" * 16}


def test_the_demo_runs_on_a_read_only_root(container: Container) -> None:
    done = container.run("demo", "--from", "/docs", mounts={ROOT / "docs": "/docs"})
    assert done.returncode == 0, done.stderr
    assert "every digest matches" in done.stdout


def test_the_worker_is_process_one_and_drains(container: Container) -> None:
    port = free_port()
    command = container.command([], environment={"TRANSLOAD_ADMIN__PORT": str(port)})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        until(lambda: answers(port, "/readyz"), worker)
        container.kill(signal.SIGTERM)
        _, said = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, said
    assert "0 messages done" in said


@pytest.fixture
async def servers(
    localstack: LocalStackEndpoint, rabbitmq: RabbitBroker, postgresql: PostgresqlServer
) -> AsyncIterator[Servers]:
    async with postgresql.database(migrated=False) as database:
        servers = Servers(localstack, rabbitmq, database, secrets.token_hex(4))
        yield servers
        await rabbitmq.leave(servers.completions)


def test_the_compose_files_services_as_containers(
    containers: Containers, image: Image, servers: Servers
) -> None:
    """What `docker compose up` and `docker compose run demo` do, with the tests' servers in the place of its own."""
    services = compose()["services"]
    for name in ("migrate", "provision"):
        with containers.container(image) as once:
            done = once.run(*services[name]["command"], environment=servers.environment(name))
            assert done.returncode == 0, done.stderr
    port = free_port()
    admin = {"TRANSLOAD_ADMIN__PORT": str(port)}
    probe = [part.replace(":9464", f":{port}") for part in services["worker"]["healthcheck"]["test"][1:]]
    with containers.container(image) as first, containers.container(image) as second:
        command = first.command(
            services["worker"]["command"], environment=servers.environment("worker") | admin
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
            until(lambda: first.execute(*probe) == 0, worker)
            demo = services["demo"]
            done = second.run(
                *(part.replace("$$", "$") for part in demo["command"]),
                entrypoint=demo["entrypoint"],
                workdir=demo["working_dir"],
                mounts={ROOT / "docs": "/docs"},
                environment=servers.environment("demo"),
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "every digest matches" in done.stdout
            first.kill(signal.SIGTERM)
            _, said = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, said


def test_only_the_chosen_extras_are_in_it(containers: Containers, context: Path) -> None:
    small = containers.build(context, EXTRAS="sqs,postgres")
    installed = {path.name for path in (small.root / "opt/transload").glob("lib/python*/site-packages/*")}
    assert {"aiobotocore", "asyncpg"} <= installed
    assert installed & {"azure", "aiormq", "asyncssh", "obstore", "google"} == set()
    with containers.container(small) as container:
        done = container.run("config", "check", environment={"TRANSLOAD_TARGETS__MAIN__BACKEND": "azure"})
    assert done.returncode == 2
    assert "transload[azure]" in done.stderr


def test_a_package_that_is_not_what_was_locked_ends_the_build(containers: Containers, context: Path) -> None:
    lock = context / "requirements.lock"
    before, name, after = lock.read_text(encoding="utf-8").partition("\npyyaml==")
    locked, rest = after.split("    # via", 1)
    forged = re.sub("sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", locked)
    lock.write_text(f"{before}{name}{forged}    # via{rest}", encoding="utf-8")
    with pytest.raises(BuildError, match=r"(?s)Hash mismatch.*pyyaml"):
        containers.build(context, EXTRAS="")


def test_a_package_that_was_never_locked_ends_the_build(containers: Containers, context: Path) -> None:
    project = context / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(text.replace('"alembic>=1.14",', '"alembic>=1.14", "tomli-w",', 1), encoding="utf-8")
    with pytest.raises(BuildError, match="older than pyproject"):
        containers.build(context, EXTRAS="")
