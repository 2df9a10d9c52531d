"""Stores whose answers name another host: neither bytes nor credentials go there. Case 97, and what is read packed."""

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from yarl import URL

from backends.aws_options import AwsOptions
from backends.aws_session import open_session
from backends.azure import AzureBackend
from backends.azure_client import AzureOptions
from backends.base import Attributes, BackendAdapter, BackendOptions, single
from backends.errors import PermissionDenied, StorageError, Unavailable
from backends.gcs import GcsBackend
from backends.gcs_client import GcsClient
from backends.gcs_options import GcsOptions, Tokens
from backends.hdfs import HdfsBackend
from backends.hdfs_client import WebHdfs
from backends.hdfs_options import HdfsOptions
from backends.s3 import S3Backend
from backends.s3_client import S3Options, clients
from backends.s3_read import opened
from tests.support.localstack import LocalStackEndpoint
from tests.support.plain_http import Request, Response, serving
from tests.support.s3 import fronted_backend, s3_client
from tests.support.strict_gcs import StrictGcs, strict_gcs
from tests.support.tls import Authority, tls_front

NOTHING = Attributes()


@asynccontextmanager
async def redirecting(to: str) -> AsyncIterator[tuple[str, list[Request]]]:
    """A server that sends everybody to the URL `to`, and what it was asked."""
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(307, {"Location": f"{to}/elsewhere"})

    async with serving(handle) as url:
        yield url, seen


@asynccontextmanager
async def elsewhere() -> AsyncIterator[tuple[str, list[Request]]]:
    """A server that nobody was to ask, and what it was asked."""
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return Response(body=b"<xml/>")

    async with serving(handle) as url:
        yield url, seen


def s3_options(url: str) -> S3Options:
    return S3Options(
        bucket="bucket",
        region="us-east-1",
        endpoint_url=url,
        access_key_id="key",
        secret_access_key=SecretStr("secret"),
        session_token=SecretStr("session"),
        max_retries=0,
    )


def azure_options(url: str) -> AzureOptions:
    return AzureOptions(
        container="abc", account_url=f"{url}/account", account_key=SecretStr("a2V5"), retries=0
    )


def gcs_options(url: str) -> GcsOptions:
    return GcsOptions(bucket="bucket", endpoint_url=url, anonymous=True, retries=0)


def hdfs_options(url: str) -> HdfsOptions:
    return HdfsOptions(url=url, root="/data", delegation_token=SecretStr("secret"), datanodes=("datanode",))


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (S3Backend, s3_options),
        (AzureBackend, azure_options),
        (GcsBackend, gcs_options),
        (HdfsBackend, hdfs_options),
    ],
    ids=["s3", "azure", "gcs", "hdfs"],
)
async def test_case_97_a_store_is_not_followed_elsewhere(
    adapter: type[BackendAdapter], options: Callable[[str], BackendOptions]
) -> None:
    async with elsewhere() as (other, asked), redirecting(other) as (url, seen):
        with pytest.raises(StorageError):
            await adapter.connect(options(url))
        assert seen
        assert asked == []


@pytest.mark.parametrize("call", ["get_object", "head_object", "delete_object"])
async def test_case_97_no_client_of_aws_follows(call: str) -> None:
    who = AwsOptions(
        region="us-east-1",
        access_key_id="key",
        secret_access_key=SecretStr("secret"),
        session_token=SecretStr("session"),
    )
    async with elsewhere() as (other, asked), redirecting(other) as (url, seen):
        async with open_session(who).create_client("s3", endpoint_url=url) as client:
            with pytest.raises(Exception, match="not followed"):
                await getattr(client, call)(Bucket="bucket", Key="k")
        assert asked == []
        # Once for each of the SDK's attempts, and not for looking the bucket's region up again and again.
        assert len(seen) <= 5


async def test_case_97_what_reads_s3_never_goes_on_without_tls(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.make(tmp_path_factory.mktemp("authority"), "trusted")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.trusted))
    async with elsewhere() as (other, asked), redirecting(other) as (url, seen):
        port = int(url.rpartition(":")[2])
        async with (
            tls_front("127.0.0.1", port, authority.server()) as front,
            clients(s3_options(f"https://127.0.0.1:{front.port}")) as (_, store),
        ):
            with pytest.raises(StorageError):
                async with opened(store, "k", "k", 10.0):
                    pass
        assert seen
        assert asked == []


@pytest.mark.parametrize("size", [0, 100], ids=["empty", "small"])
async def test_case_97_what_is_written_to_s3_follows_nobody(size: int) -> None:
    statuses = iter((301, 302, 303, 307, 308))

    async def misleading(request: Request) -> Response:
        if request.method == "PUT":
            return Response(next(statuses), {"Location": f"{other}/elsewhere"})
        return Response(404 if request.path.endswith("/k") else 200)

    async with elsewhere() as (other, asked), serving(misleading) as url:
        backend = await S3Backend.connect(s3_options(url))
        try:
            for _ in range(5):
                with pytest.raises(StorageError):
                    await backend.write("k", single(bytes(size)), NOTHING)
        finally:
            await backend.aclose()
    assert next(statuses, None) is None
    # What is left of a PUT that is answered 303: a GET that takes neither bytes nor signature along.
    assert [(each.method, each.body) for each in asked] == [("GET", b"")]
    assert "authorization" not in asked[0].headers


async def test_case_97_bytes_for_google_go_to_the_endpoint_whatever_an_answer_names() -> None:
    async with elsewhere() as (other, asked), strict_gcs() as store:
        handle = StrictGcs.handle

        async def misleading(request: Request) -> Response:
            response = await handle(store, request)
            if "Location" not in response.headers:
                return response
            named = response.headers["Location"].replace(store.url, other)
            return Response(response.status, {**response.headers, "Location": named}, response.body)

        async with serving(misleading) as url:
            backend = await GcsBackend.connect(gcs_options(url).model_copy(update={"chunk_size": 256 << 10}))
            try:
                size = 600 << 10
                assert (await backend.write("k", single(bytes(size)), NOTHING)).size == size
            finally:
                await backend.aclose()
        assert asked == []
        assert any("/session" in line for line in store.requests)


@pytest.mark.parametrize(
    "named",
    [
        "@{}/x",
        "http:@{}/x",
        ".example.org/x",
        "x",
        "?upload_id=1",
        "http://{}",
        "http://",
        "http://[/x",
        "\\\\{}",
    ],
)
async def test_case_97_a_session_is_at_the_endpoint_or_nowhere(named: str) -> None:
    client = GcsClient(gcs_options("http://storage.test"), Tokens(None))
    try:
        at = client.at_home(named.format("127.0.0.1:1"), "write")
    except Unavailable:
        return
    finally:
        await client.aclose()
    assert str(URL(at).origin()) == "http://storage.test"
    assert URL(at).user is None


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "[fd00:ec2::254%2]", "0.0.0.1"],
)
async def test_case_96_a_namenode_does_not_send_us_to_metadata(address: str) -> None:
    async def handle(_: Request) -> Response:
        return Response(307, {"Location": f"http://{address}/webhdfs/v1/data/k?op=OPEN"})

    async with serving(handle) as url:
        client = WebHdfs(HdfsOptions(url=url, root="/data", user="u"))
        try:
            with pytest.raises(PermissionDenied, match="metadata"):
                [piece async for piece in client.read("k", 1)]
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    ("adapter", "options"), [(GcsBackend, gcs_options), (HdfsBackend, hdfs_options)], ids=["gcs", "hdfs"]
)
async def test_a_proxy_of_the_environment_is_not_asked(
    adapter: type[BackendAdapter], options: Callable[[str], BackendOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with elsewhere() as (proxy, asked), redirecting("http://nobody") as (url, seen):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        with pytest.raises(StorageError):
            await adapter.connect(options(url))
        assert seen
        assert asked == []


async def test_what_lies_packed_in_s3_is_read_as_it_lies_there(localstack: LocalStackEndpoint) -> None:
    packed = gzip.compress(bytes(1_000_000))
    async with fronted_backend(localstack) as (backend, _), s3_client(localstack) as client:
        bucket = backend.location.removeprefix("s3://").rstrip("/")
        await client.put_object(Bucket=bucket, Key="k", Body=packed, ContentEncoding="gzip")
        async with backend.open("k") as chunks:
            assert b"".join([chunk async for chunk in chunks]) == packed
        # Through the other SDK, which writes.
        assert not (await backend.write("k", single(packed), NOTHING)).created
