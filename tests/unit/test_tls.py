"""Who answers has to prove it: case 104, on loopback, with certificates of an authority of the tests."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from backends.azure import AzureBackend
from backends.azure_client import AzureOptions
from backends.base import BackendAdapter, BackendOptions
from backends.errors import PermissionDenied, StorageError
from backends.gcs import GcsBackend
from backends.gcs_options import GcsOptions
from backends.hdfs import HdfsBackend
from backends.hdfs_options import HdfsOptions
from backends.http_api import HttpBackend
from backends.postgres import PostgresBackend
from backends.postgres_client import PostgresOptions
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from tests.support.http_api import http_api, options_for
from tests.support.postgres_target import postgres_options
from tests.support.postgresql import PostgresqlServer
from tests.support.rabbitmq import RabbitBroker
from tests.support.strict_s3 import strict_s3
from tests.support.tls import Authority, Front, tls_front
from worker.ledger.base import LedgerUnavailable
from worker.ledger.database import open_database
from worker.queues.base import QueueError
from worker.queues.rabbitmq import RabbitQueue
from worker.queues.rabbitmq_options import RabbitQueueOptions

WRONG = ("another host", "another authority", "expired")
Attempt = Callable[[int, Path], Awaitable[None]]
"""Connects to that port of 127.0.0.1 trusting the authority in that file, and leaves again."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"), "trusted")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(params=WRONG)
def wrong(request: pytest.FixtureRequest, authority: Authority, stranger: Authority) -> ssl.SSLContext:
    """A server that must not be believed."""
    if request.param == "another host":
        return authority.server("files.example.org")
    if request.param == "expired":
        return authority.server(expired=True)
    return stranger.server()


def closing(adapter: type[BackendAdapter], options: Callable[[int, Path], BackendOptions]) -> Attempt:
    async def attempt(port: int, trusted: Path) -> None:
        backend = await adapter.connect(options(port, trusted))
        await backend.aclose()

    return attempt


def https(port: int) -> str:
    return f"https://127.0.0.1:{port}"


def s3_options(port: int, _: Path) -> S3Options:
    return S3Options(
        bucket="bucket",
        region="us-east-1",
        endpoint_url=https(port),
        access_key_id="key",
        secret_access_key=SecretStr("secret"),
        max_retries=0,
    )


@asynccontextmanager
async def front_before(url: str, context: ssl.SSLContext, **options: bool) -> AsyncIterator[Front]:
    parts = urlsplit(url)
    async with tls_front(parts.hostname or "", parts.port or 0, context, **options) as front:
        yield front


async def assert_only_the_right_one_is_believed(
    url: str,
    attempt: Attempt,
    authority: Authority,
    wrong: ssl.SSLContext,
    error: type[Exception],
    **options: bool,
) -> None:
    async with front_before(url, wrong, **options) as front:
        with pytest.raises(error) as raised:
            await attempt(front.port, authority.trusted)
        assert not front.served
    assert "secret" not in str(raised.value)
    async with front_before(url, authority.server(), **options) as front:
        await attempt(front.port, authority.trusted)
        assert front.served


async def test_case_104_an_http_api_proves_who_it_is(
    tmp_path: Path, authority: Authority, wrong: ssl.SSLContext
) -> None:
    async with http_api(tmp_path / "objects") as api:
        attempt = closing(HttpBackend, lambda port, ca: options_for(api, base_url=https(port), ca_file=ca))
        await assert_only_the_right_one_is_believed(api.url, attempt, authority, wrong, StorageError)
        # Without verification, which the options say and a warning repeats, anybody passes.
        trusting = options_for(api, verify_tls=False)
        assert "verify_tls" in (trusting.unverified() or "")
        async with front_before(api.url, wrong) as front:
            anybody = trusting.model_copy(update={"base_url": https(front.port)})
            await (await HttpBackend.connect(anybody)).aclose()


async def test_case_104_s3_proves_who_it_is(
    authority: Authority, wrong: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.trusted))

    async def attempt(port: int, trusted: Path) -> None:
        backend = await S3Backend.connect(s3_options(port, trusted))
        try:
            # The other of the two SDKs.
            assert await backend.stat("k") is None
            with pytest.raises(StorageError):
                async with backend.open("k"):
                    pass
        finally:
            await backend.aclose()

    async with strict_s3() as store:
        await assert_only_the_right_one_is_believed(store.url, attempt, authority, wrong, StorageError)


async def test_case_104_postgresql_proves_who_it_is(
    postgresql: PostgresqlServer, authority: Authority, wrong: ssl.SSLContext
) -> None:
    def options(port: int, trusted: Path) -> PostgresOptions:
        return postgres_options(
            postgresql.url, host="127.0.0.1", port=port, sslmode="verify-full", sslrootcert=trusted
        )

    await assert_only_the_right_one_is_believed(
        postgresql.url,
        closing(PostgresBackend, options),
        authority,
        wrong,
        PermissionDenied,
        postgresql=True,
    )


async def test_case_104_postgresql_is_verified_against_the_system_s_authorities(
    postgresql: PostgresqlServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with front_before(postgresql.url, authority.server(), postgresql=True) as front:
        options = postgres_options(postgresql.url, host="127.0.0.1", port=front.port, sslmode="verify-full")
        with pytest.raises(PermissionDenied, match="configure sslrootcert"):
            await PostgresBackend.connect(options)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.trusted))
        await (await PostgresBackend.connect(options)).aclose()
    # A server without TLS, where it is asked for.
    plain = options.model_copy(update={"port": urlsplit(postgresql.url).port})
    with pytest.raises(StorageError, match="configure sslmode"):
        await PostgresBackend.connect(plain)


def test_case_104_only_a_server_of_this_machine_need_not_prove_itself() -> None:
    def mode(host: str) -> str:
        return PostgresOptions(host=host, database="d", user="u").mode

    assert [mode(host) for host in ("127.0.0.1", "localhost", "/run/postgresql", "::1")] == ["prefer"] * 4
    assert [mode(host) for host in ("db", "10.0.0.1", "db.example.org")] == ["verify-full"] * 3


async def test_case_104_the_ledger_s_server_proves_who_it_is(
    postgresql: PostgresqlServer, authority: Authority, wrong: ssl.SSLContext
) -> None:
    async def attempt(port: int, trusted: Path) -> None:
        query = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
        url = make_url(postgresql.url).set(port=port).update_query_dict(query)
        database = open_database(url.render_as_string(hide_password=False))
        try:
            await database.check()
        finally:
            await database.aclose()

    await assert_only_the_right_one_is_believed(
        postgresql.url, attempt, authority, wrong, LedgerUnavailable, postgresql=True
    )


async def test_case_104_a_broker_proves_who_it_is(
    rabbitmq: RabbitBroker, authority: Authority, wrong: ssl.SSLContext
) -> None:
    broker = rabbitmq.url

    def options(port: int, query: str) -> RabbitQueueOptions:
        parts = urlsplit(broker)
        userinfo = parts.netloc.rpartition("@")[0]
        url = SecretStr(f"amqps://{userinfo}@127.0.0.1:{port}{parts.path}?{query}")
        return RabbitQueueOptions(url=url, queue="nobody-s", declare=False)

    async def reach(options: RabbitQueueOptions) -> None:
        # Connected, and told that there is no such queue.
        with pytest.raises(QueueError, match="has no queue nobody-s"):
            await RabbitQueue.connect(options)

    async def attempt(port: int, trusted: Path) -> None:
        await reach(options(port, f"cafile={trusted}"))

    await assert_only_the_right_one_is_believed(broker, attempt, authority, wrong, AssertionError)
    async with front_before(broker, wrong) as front:
        anybody = options(front.port, "no_verify_ssl=1")
        assert "no_verify_ssl" in (anybody.unverified() or "")
        await reach(anybody)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (
            HdfsBackend,
            lambda port: HdfsOptions(url=https(port), root="/data", delegation_token=SecretStr("secret")),
        ),
        (
            GcsBackend,
            lambda port: GcsOptions(bucket="abc", endpoint_url=https(port), anonymous=True, retries=0),
        ),
        (
            AzureBackend,
            lambda port: AzureOptions(
                container="abc", account_url=f"{https(port)}/a", account_key=SecretStr("a2V5"), retries=0
            ),
        ),
        (S3Backend, lambda port: s3_options(port, Path())),
    ],
    ids=["hdfs", "gcs", "azure", "s3"],
)
async def test_case_104_an_unknown_authority_is_not_believed(
    adapter: type[BackendAdapter], options: Callable[[int], BackendOptions], stranger: Authority
) -> None:
    async with tls_front("127.0.0.1", 1, stranger.server()) as front:
        with pytest.raises(StorageError):
            await adapter.connect(options(front.port))
        assert not front.served
