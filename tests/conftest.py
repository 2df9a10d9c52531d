"""What every test may use: the real services, started when the first test asks for one, and the table at the end."""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support import aws_models
from tests.support.azurite import Azurite, AzuriteEndpoint
from tests.support.containers import Containers
from tests.support.gcs import Gcs, GcsEmulator
from tests.support.hdfs import Hdfs, HdfsCluster
from tests.support.helm import Engine, Helm
from tests.support.kept_databases import KeptDatabases
from tests.support.localstack import LocalStack, LocalStackEndpoint
from tests.support.mkdocs import MkDocs
from tests.support.nginx import Nginx, NginxDav
from tests.support.openssh import OpenSsh, OwnSshd
from tests.support.order import dealt
from tests.support.pgbouncer import PgBouncer
from tests.support.postgresql import Postgresql, PostgresqlServer, in_thread
from tests.support.prometheus import Prometheus
from tests.support.rabbitmq import RabbitBroker, RabbitMq
from tests.support.radosgw import Radosgw, endpoint_of
from tests.support.services import Board, NotAvailable, Running, Service, Shared
from tests.support.strace import Strace

BOARD = pytest.StashKey[Board]()


FOLDER = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()
"""What the processes of a run know of the services they share."""


def pytest_configure(config: pytest.Config) -> None:
    folder = getattr(config, "workerinput", {}).get("services")
    config.stash[BOARD] = Board(shared=Shared(Path(folder)) if folder else None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    aws_models.remember()
    # A developer's profile, endpoint or proxy must neither reach the tests nor be reached by them.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, ["127.0.0.1,localhost,::1", os.environ.get(name)]))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[BOARD].stop()
    if FOLDER in config.stash:
        config.stash[FOLDER].cleanup()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """One of the processes that `-n` spreads the tests over is about to be started."""
    if FOLDER not in node.config.stash:
        node.config.stash[FOLDER] = tempfile.TemporaryDirectory(prefix="transload-services-")
    node.workerinput["services"] = node.config.stash[FOLDER].name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if processes := getattr(config, "workerinput", {}).get("workercount"):
        items[:] = dealt(items, processes)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of the processes that `-n` spread the tests over has ended: its services belong in the table."""
    node.config.stash[BOARD].merge(
        getattr(node, "workeroutput", {}).get("board", {"outcomes": {}, "tests": {}})
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["board"] = session.config.stash[BOARD].report()
        # Such a process ends without pytest_unconfigure.
        session.config.stash[BOARD].stop()
    if not session.config.stash[BOARD].complete and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("services")
    for line in config.stash[BOARD].table():
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Count the test for every service it used, asked for by name or on the way."""
    yield
    request.config.stash[BOARD].count(request.fixturenames)


@pytest.fixture(scope="session")
def azurite(request: pytest.FixtureRequest) -> AzuriteEndpoint:
    """Azure Blob Storage. Each test makes a container of a random name on it."""
    return AzuriteEndpoint(_demand(request, Azurite()).endpoint_url)


@pytest.fixture(scope="session")
def containers(request: pytest.FixtureRequest) -> Containers:
    """Builds images and runs containers without a Docker engine."""
    service = Containers()
    _demand(request, service, alone=True)
    return service


@pytest.fixture(scope="session")
def gcs(request: pytest.FixtureRequest) -> GcsEmulator:
    """Google's store as an emulator has it: no preconditions. Each test makes a bucket of its own."""
    return GcsEmulator(_demand(request, Gcs()).endpoint_url)


@pytest.fixture(scope="session")
def hdfs(request: pytest.FixtureRequest) -> HdfsCluster:
    """A NameNode and a DataNode. Each test makes a directory of a random name on it."""
    return HdfsCluster(_demand(request, Hdfs()).endpoint_url)


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest) -> Engine:
    """Helm's engine and Kubernetes' schemas: renders and judges charts without a cluster."""
    service = Helm()
    _demand(request, service, alone=True)
    return service.engine


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that ran in this process has pointed the logs to a stream that is closed with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configured, before = structlog.is_configured(), structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def localstack(request: pytest.FixtureRequest) -> LocalStackEndpoint:
    """S3, SQS, SNS, KMS, STS, CloudWatch and Secrets Manager. Names (buckets, queues) are the test's to make random: the server is shared."""
    return LocalStackEndpoint(_demand(request, LocalStack()).endpoint_url)


@pytest.fixture(scope="session")
def mkdocs(request: pytest.FixtureRequest) -> MkDocs:
    """The builder of the documentation's site."""
    service = MkDocs()
    _demand(request, service, alone=True)
    return service


@pytest.fixture(scope="session")
def nginx(request: pytest.FixtureRequest) -> NginxDav:
    """WebDAV without listings. Each test writes below a random path of it."""
    service = Nginx()
    return NginxDav(_demand(request, service, alone=True).endpoint_url, service.files)


@pytest.fixture(scope="session")
def postgresql(request: pytest.FixtureRequest) -> Iterator[PostgresqlServer]:
    """The shared server. Each test makes a database of its own on it."""
    server = PostgresqlServer(_demand(request, Postgresql()).endpoint_url)
    yield server
    in_thread(server.forget())


@pytest.fixture(scope="session")
def kept_databases(postgresql: PostgresqlServer) -> Iterator[KeptDatabases]:
    """Migrated databases of the shared server, emptied after each test."""
    kept = KeptDatabases(postgresql)
    yield kept
    in_thread(kept.forget())


@pytest.fixture(scope="session")
def pgbouncer(request: pytest.FixtureRequest, postgresql: PostgresqlServer) -> PgBouncer:
    """A pooler in transaction mode before the shared server: `through` gives its URL of a database."""
    service = PgBouncer(postgresql.url)
    _demand(request, service, alone=True)
    return service


@pytest.fixture(scope="session")
def prometheus(request: pytest.FixtureRequest) -> None:
    """Prometheus and promtool are there: tests/support/prometheus.py uses them."""
    _demand(request, Prometheus())


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitBroker]:
    """The shared broker. Each test makes queues of random names on it."""
    broker = RabbitBroker(_demand(request, RabbitMq()).endpoint_url)
    yield broker
    in_thread(broker.forget())


@pytest.fixture(scope="session")
def radosgw(request: pytest.FixtureRequest) -> LocalStackEndpoint:
    """Ceph's S3, which checks signatures and policies. Each test makes a bucket of a random name on it."""
    return endpoint_of(_demand(request, Radosgw()).endpoint_url)


@pytest.fixture(scope="session")
def strace(request: pytest.FixtureRequest) -> None:
    """The tracer is there and may trace: tests/support/strace.py uses it."""
    _demand(request, Strace())


@pytest.fixture(scope="session")
def openssh(request: pytest.FixtureRequest) -> Mapping[str, OwnSshd]:
    """The shared servers: `full`, and `bare` without any extension. Each test makes a directory of its own on them."""
    service = OpenSsh()
    _demand(request, service, alone=True)
    return service.servers


def _demand(request: pytest.FixtureRequest, service: Service, *, alone: bool = False) -> Running:
    try:
        return request.config.stash[BOARD].demand(service, alone=alone)
    except NotAvailable as exc:
        pytest.fail(f"{service.name} is not available: {exc}\nget it with: {exc.command}", pytrace=False)
