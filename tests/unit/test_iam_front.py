"""The front that enforces the policies of docs/iam: that it judges as IAM does, and refuses as the services do."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from backends.errors import PermissionDenied
from backends.s3 import S3Backend
from backends.s3_client import S3Options
from tests.support.iam_front import ACCOUNT
from tests.support.iam_policies import FOLDER, Ask, Statement, permits, policy
from tests.support.iam_world import ADMIN, TARGET_PREFIX, World, iam_world
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import s3_client

KEY = f"{TARGET_PREFIX}/page"


def statement(**said: Any) -> Statement:
    return Statement.of({"Sid": "A", "Effect": "Allow", "Action": "s3:Get*", "Resource": "arn:b/*", **said})


@pytest.fixture
async def world(localstack: LocalStackEndpoint, tmp_path: Path) -> AsyncIterator[World]:
    async with iam_world(localstack, tmp_path) as made:
        await made.make()
        made.front.policies["worker"] = policy("worker", made.values)
        yield made


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, True),
        ({"Action": "S3:getobject"}, True),
        ({"Action": "s3:GetObjectTagging"}, False),
        ({"Action": ["s3:PutObject", "s3:GetObject"]}, True),
        ({"Resource": "arn:b/?/key"}, True),
        ({"Resource": "arn:b/?"}, False),
        ({"Resource": "arn:B/*"}, False),
        ({"Effect": "Deny"}, False),
        ({"Condition": {"StringEquals": {"S3:Prefix": "in"}}}, True),
        ({"Condition": {"StringEquals": {"s3:prefix": ["out", "in"]}}}, True),
        ({"Condition": {"StringEquals": {"s3:prefix": "i*"}}}, False),
        ({"Condition": {"StringLike": {"s3:prefix": "i*"}}}, True),
        ({"Condition": {"StringEquals": {"s3:prefix": "in", "s3:delimiter": "/"}}}, False),
        ({"Condition": {"StringLike": {"s3:delimiter": "*"}}}, False),
        ({"Condition": {"Null": {"s3:delimiter": "true"}, "Bool": {"s3:flag": "true"}}}, True),
        ({"Condition": {"Null": {"s3:prefix": "true"}}}, False),
    ],
)
def test_a_statement_is_judged_as_iam_does(said: dict[str, Any], *, expected: bool) -> None:
    ask = Ask("s3:GetObject", "arn:b/a/key", {"s3:prefix": "in", "s3:flag": "true"})
    assert permits([statement(**said)], ask) is expected


def test_a_denial_outweighs_every_allowance_and_silence_is_a_denial() -> None:
    ask = Ask("s3:GetObject", "arn:b/key")
    assert not permits([statement(), statement(Effect="Deny"), statement()], ask)
    assert not permits([], ask)


@pytest.mark.parametrize(
    "said", [{"NotAction": "a:b"}, {"Effect": "Maybe"}, {"Condition": {"IpAddress": {"aws:SourceIp": "::"}}}]
)
def test_what_is_not_understood_is_an_error(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not understood|no effect"):
        statement(**said)


def test_every_placeholder_of_every_file_is_known(world: World) -> None:
    names = {path.stem for path in FOLDER.glob("*.json")}
    assert len(names) >= 18
    for name in names:
        for each in policy(name, world.values):
            assert not [part for arn in each.resources for part in arn.split(":") if part.isupper()], name


async def test_case_110_a_workers_keys_replace_and_remove_nothing(world: World) -> None:
    """What somebody can do who has stolen them."""
    endpoint = LocalStackEndpoint(world.front.url, world.endpoint.region, "worker", "secret")
    bucket = world.name("lake")
    async with s3_client(endpoint) as s3:
        await s3.put_object(Bucket=bucket, Key=KEY, Body=b"first", IfNoneMatch="*")
        upload = (await s3.create_multipart_upload(Bucket=bucket, Key=KEY))["UploadId"]
        part = await s3.upload_part(Bucket=bucket, Key=KEY, UploadId=upload, PartNumber=1, Body=b"second")
        named = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        for attempt in (
            s3.put_object(Bucket=bucket, Key=KEY, Body=b"second"),
            s3.complete_multipart_upload(Bucket=bucket, Key=KEY, UploadId=upload, MultipartUpload=named),
            s3.delete_object(Bucket=bucket, Key=KEY),
            s3.put_object(Bucket=bucket, Key="elsewhere", Body=b"", IfNoneMatch="*"),
            s3.get_object(Bucket=bucket, Key="elsewhere"),
            s3.put_object(Bucket=world.name("staging"), Key="in/coming/page", Body=b"", IfNoneMatch="*"),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                await attempt


def test_case_110_a_bucket_that_another_account_took_over_gets_nothing(world: World) -> None:
    facts = {"s3:if-none-match": "*", "s3:objectcreationoperation": "true"}
    resource = f"arn:aws:s3:::{world.name('lake')}/{KEY}"
    ours, theirs = (
        Ask("s3:PutObject", resource, {**facts, "s3:resourceaccount": account})
        for account in (ACCOUNT, "210987654321")
    )
    assert permits(world.front.policies["worker"], ours)
    assert not permits(world.front.policies["worker"], theirs)


async def test_a_missing_object_is_told_to_those_only_who_may_list(world: World) -> None:
    options = S3Options(bucket=world.name("lake"), **world.access("worker"))
    backend = await S3Backend.connect(options)
    try:
        assert await backend.stat(KEY) is None
        blind = [
            each.without("s3:ListBucket") if each.allows else each for each in world.front.policies["worker"]
        ]
        world.front.policies["worker"] = tuple(blind)
        with pytest.raises(PermissionDenied, match=r"HTTP 403.*s3:ListBucket on arn:aws:s3:::lake"):
            await backend.stat(KEY)
        with pytest.raises(PermissionDenied, match=r"HTTP 403.*s3:ListBucket on arn:aws:s3:::lake"):
            async with backend.open(KEY):
                pass
    finally:
        await backend.aclose()


async def test_what_nobody_has_judged_is_not_let_through(world: World) -> None:
    endpoint = LocalStackEndpoint(world.front.url, world.endpoint.region, ADMIN, "secret")
    async with s3_client(endpoint) as s3:
        for attempt in (
            s3.get_bucket_cors(Bucket=world.name("lake")),
            s3.put_object(Bucket=world.name("lake"), Key=KEY, Body=b"", ACL="public-read"),
            s3.get_object_tagging(Bucket=world.name("lake"), Key=KEY),
        ):
            with pytest.raises(ClientError) as raised:
                await attempt
            assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
