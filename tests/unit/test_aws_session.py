"""Who asks AWS: static keys, a profile, a web identity, an assumed role; and what becomes of a transfer when they expire."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from backends.aws_options import AwsOptions
from backends.aws_session import RoleNotAssumed
from backends.base import Attributes, single
from backends.errors import PermissionDenied, Unavailable
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket
from tests.support.s3_front import Front, front_of
from tests.support.sqs import sqs_queues
from tests.support.sts import ShortLived, short_lived
from worker.aws import SqsOptions, open_client
from worker.queues.base import OutgoingMessage, QueueDenied
from worker.queues.sqs import SqsQueue, SqsQueueOptions

PART = 5 << 20
NOTHING = Attributes()
ROLE = "arn:aws:iam::123456789012:role/FetcherRole"
KEYS: dict[str, Any] = {"access_key_id": "AKIASTATIC", "secret_access_key": SecretStr("static")}

Environ = Callable[..., None]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Environ:
    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


async def keys_seen(localstack: LocalStackEndpoint, **options: Any) -> set[str]:
    """The access keys that requests of both clients were signed with."""
    bucket = await new_bucket(localstack)
    async with front_of(localstack.endpoint_url) as front:
        given = {"bucket": bucket, "region": localstack.region, "endpoint_url": front.url, **options}
        backend = await S3Backend.connect(S3Options(**given))
        try:
            await backend.write("k", single(b"x"), NOTHING)
            assert await backend.stat("k") is not None
            async with backend.open("k") as chunks:
                assert b"".join([chunk async for chunk in chunks]) == b"x"
        finally:
            await backend.aclose()
        return signers(front)


def signers(front: Front) -> set[str]:
    assert len(front.heads) >= 4
    found = [re.search(r"(?i)credential=([^/]+)/", head) for head in front.heads]
    return {match[1] if match else "nobody" for match in found}


async def test_static_keys(localstack: LocalStackEndpoint) -> None:
    assert await keys_seen(localstack, **KEYS) == {"AKIASTATIC"}


async def test_a_profile(localstack: LocalStackEndpoint, tmp_path: Path, environ: Environ) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        "[production]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = profile\n", encoding="utf-8"
    )
    environ(AWS_SHARED_CREDENTIALS_FILE=str(file), AWS_ACCESS_KEY_ID="AKIAOTHER", AWS_SECRET_ACCESS_KEY="x")
    assert await keys_seen(localstack, profile="production") == {"AKIAPROFILE"}


async def test_a_web_identity(localstack: LocalStackEndpoint, tmp_path: Path, environ: Environ) -> None:
    token = tmp_path / "token"
    token.write_text("of the service account", encoding="utf-8")
    async with front_of(localstack.endpoint_url) as sts:
        environ(
            AWS_ROLE_ARN=ROLE,
            AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
            AWS_ROLE_SESSION_NAME="pod",
            AWS_ENDPOINT_URL_STS=sts.url,
        )
        (key,) = await keys_seen(localstack)
        assert key.startswith(("ASIA", "LSIA"))
        assert len(sts.requests) == 1
        # The token is what proves it: nothing is signed.
        assert "authorization:" not in sts.heads[0].lower()


async def test_an_assumed_role(localstack: LocalStackEndpoint) -> None:
    async with front_of(localstack.endpoint_url) as sts:
        (key,) = await keys_seen(localstack, role_arn=ROLE, sts_endpoint_url=sts.url, **KEYS)
        assert key.startswith(("ASIA", "LSIA"))
        (head,) = sts.heads
        assert "Credential=AKIASTATIC/" in head


async def test_a_role_assumed_by_a_web_identity(
    localstack: LocalStackEndpoint, tmp_path: Path, environ: Environ
) -> None:
    token = tmp_path / "token"
    token.write_text("of the service account", encoding="utf-8")
    environ(
        AWS_ROLE_ARN=ROLE,
        AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
        AWS_ENDPOINT_URL_STS=localstack.endpoint_url,
    )
    async with front_of(localstack.endpoint_url) as sts:
        (key,) = await keys_seen(localstack, role_arn=f"{ROLE}2", sts_endpoint_url=sts.url)
        (head,) = sts.heads
        first = re.search(r"Credential=([^/]+)/", head)
        assert first is not None
        assert first[1].startswith(("ASIA", "LSIA"))
        assert key != first[1]


async def test_the_queue_asks_alike(localstack: LocalStackEndpoint) -> None:
    async with (
        sqs_queues(localstack) as queues,
        front_of(localstack.endpoint_url) as sqs,
        front_of(localstack.endpoint_url) as sts,
    ):
        options = SqsQueueOptions(
            queue_url=queues.url,
            region=localstack.region,
            endpoint_url=sqs.url,
            role_arn=ROLE,
            sts_endpoint_url=sts.url,
            **KEYS,
        )
        queue = await SqsQueue.connect(options)
        try:
            await queue.send([OutgoingMessage(b"x", {})])
        finally:
            await queue.aclose()
        (key,) = signers(sqs)
        assert key.startswith(("ASIA", "LSIA"))
        assert len(sts.requests) == 1


def options(short: ShortLived, **changes: Any) -> S3Options:
    given = {
        "bucket": "bucket",
        "region": "us-east-1",
        "endpoint_url": short.store.url,
        "role_arn": ROLE,
        "sts_endpoint_url": short.store.url,
        "part_size": PART,
        "max_concurrency": 1,
        "max_retries": 0,
        **KEYS,
        **changes,
    }
    return S3Options(**given)


async def test_what_sts_is_asked() -> None:
    async with short_lived(3600) as short:
        given = options(short, external_id="ours", role_session_name="fetch", role_session_duration=1800)
        backend = await S3Backend.connect(given)
        await backend.write("k", single(b"x"), NOTHING)
        await backend.aclose()
        (asked,) = short.asked
        assert asked == {
            "Action": "AssumeRole",
            "Version": "2011-06-15",
            "RoleArn": ROLE,
            "ExternalId": "ours",
            "RoleSessionName": "fetch",
            "DurationSeconds": "1800",
        }
        assert set(short.seen) == {"ASIA1"}


async def test_case_71_credentials_that_expire_during_an_upload_are_renewed() -> None:
    async with short_lived(300) as short:
        backend = await S3Backend.connect(options(short))

        async def chunks() -> AsyncIterator[bytes]:
            yield bytes(PART)
            yield bytes(1)
            await short.part_stored.wait()
            short.expire()
            yield bytes(PART)

        before = len(short.asked)
        receipt = await backend.write("k", chunks(), NOTHING)
        assert receipt.size == 2 * PART + 1
        assert len(short.store.buckets["bucket"]["k"].data) == receipt.size
        assert len(short.asked) > before
        await backend.aclose()


async def test_case_71_what_goes_through_obstore_is_signed_anew_as_well() -> None:
    async with short_lived(300) as short:
        backend = await S3Backend.connect(options(short))
        for number in range(3):
            await backend.write(f"k{number}", single(b"x"), NOTHING)
            short.expire()
            async with backend.open(f"k{number}") as chunks:
                assert [chunk async for chunk in chunks] == [b"x"]
            short.expire()
        await backend.aclose()


async def test_lasting_credentials_are_asked_for_once() -> None:
    async with short_lived(3600) as short:
        backend = await S3Backend.connect(options(short))
        for number in range(3):
            await backend.write(f"k{number}", single(b"x"), NOTHING)
        assert len(short.asked) == 1
        await backend.aclose()


async def test_a_role_that_is_refused_is_denied_and_says_so() -> None:
    async with short_lived(3600) as short:
        short.refusals = [(403, "AccessDenied")] * 2
        with pytest.raises(PermissionDenied, match="RoleNotAssumed"):
            await S3Backend.connect(options(short))
        assert len(short.asked) == 1
        given = {"endpoint_url": short.store.url, "region": "us-east-1", "sts_endpoint_url": short.store.url}
        with pytest.raises(QueueDenied, match=f"{ROLE}: AccessDenied; the caller needs sts:AssumeRole"):
            await SqsQueue.connect(
                SqsQueueOptions(queue_url=f"{short.store.url}/1/q", role_arn=ROLE, **given, **KEYS)
            )
        assert short.seen == []


async def test_a_role_that_is_taken_away_later_is_denied_to_both_clients() -> None:
    async with short_lived(300) as short:
        backend = await S3Backend.connect(options(short))
        short.refusals = [(403, "AccessDenied")] * 3
        with pytest.raises(PermissionDenied):
            await backend.stat("k")
        with pytest.raises(PermissionDenied):
            await backend.write("k", single(b"x"), NOTHING)
        with pytest.raises(PermissionDenied):
            async with backend.open("k"):
                pass
        await backend.aclose()


async def test_an_sts_in_trouble_is_asked_again_and_may_pass() -> None:
    async with short_lived(3600) as short:
        short.refusals = [(503, "ServiceUnavailable")]
        backend = await S3Backend.connect(options(short))
        await backend.aclose()
        assert len(short.asked) == 2
        short.refusals = [(400, "Throttling")] * 3
        with pytest.raises(Unavailable, match="Throttling"):
            await S3Backend.connect(options(short))


async def test_what_sts_says_is_not_repeated() -> None:
    async with short_lived(3600) as short:
        short.refusals = [(403, "AccessDenied")]
        given = SqsOptions(
            queue_url="q",
            region="us-east-1",
            endpoint_url=short.store.url,
            role_arn=ROLE,
            sts_endpoint_url=short.store.url,
            **KEYS,
        )
        async with open_client(given) as client:
            with pytest.raises(RoleNotAssumed) as caught:
                await client.list_queues()
        assert "token=secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_key_id": "AKIA"},
        {"secret_access_key": "x"},
        {"session_token": "x"},
        {"external_id": "ours"},
        {"role_session_name": "x2"},
        {"role_session_duration": 1800},
        {"sts_endpoint_url": "http://127.0.0.1"},
        {"role_arn": "FetcherRole"},
        {"role_arn": ROLE, "role_session_duration": 900},
        {"role_arn": ROLE, "role_session_name": "with a space"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AwsOptions(**wrong)
