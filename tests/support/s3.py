"""An S3 backend on a bucket of its own: on LocalStack, for any test that has its fixture, or on the strict S3 of the tests."""

import functools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiobotocore.session import AioSession
from pydantic import SecretStr

from backends.s3 import S3Backend
from backends.s3_client import S3Options
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3_front import Front, front_of
from tests.support.strict_s3 import StrictS3, strict_s3


@asynccontextmanager
async def s3_client(localstack: LocalStackEndpoint, service: str = "s3") -> AsyncIterator[Any]:
    """A plain client, to prepare and to look at what an adapter did."""
    async with _session().create_client(
        service,
        region_name=localstack.region,
        endpoint_url=localstack.endpoint_url,
        aws_access_key_id=localstack.access_key_id,
        aws_secret_access_key=localstack.secret_access_key,
    ) as client:
        yield client


@functools.cache
def _session() -> AioSession:
    """A session reads the description of each service once, which takes longer than most tests."""
    return AioSession()


async def new_bucket(localstack: LocalStackEndpoint) -> str:
    """The name of a fresh, empty bucket. It goes with the server: removing it would cost more than it weighs."""
    bucket = f"test-{secrets.token_hex(8)}"
    async with s3_client(localstack) as client:
        await client.create_bucket(Bucket=bucket)
    return bucket


def s3_options(localstack: LocalStackEndpoint, bucket: str, **changes: Any) -> S3Options:
    """How to reach `bucket` of LocalStack; `changes` replace single options."""
    return S3Options(
        **{
            "bucket": bucket,
            "region": localstack.region,
            "endpoint_url": localstack.endpoint_url,
            "access_key_id": localstack.access_key_id,
            "secret_access_key": SecretStr(localstack.secret_access_key),
            **changes,
        }
    )


@asynccontextmanager
async def s3_backend(request: pytest.FixtureRequest) -> AsyncIterator[S3Backend]:
    """A connected backend on a fresh bucket, closed afterwards."""
    async with fronted_backend(request.getfixturevalue("localstack")) as (backend, _):
        yield backend


@asynccontextmanager
async def fronted_backend(
    localstack: LocalStackEndpoint, **changes: Any
) -> AsyncIterator[tuple[S3Backend, Front]]:
    """As `s3_backend`, with the front through which it speaks to LocalStack; `changes` replace single options."""
    bucket = await new_bucket(localstack)
    async with front_of(localstack.endpoint_url) as front:
        backend = await S3Backend.connect(
            s3_options(localstack, bucket, **{"endpoint_url": front.url, **changes})
        )
        try:
            yield backend, front
        finally:
            await backend.aclose()


@asynccontextmanager
async def strict_backend(**changes: Any) -> AsyncIterator[tuple[S3Backend, StrictS3]]:
    """A backend on a strict S3 of its own, and that S3; `changes` replace single options."""
    async with strict_s3() as store:
        options = s3_options(LocalStackEndpoint(store.url), "bucket", **changes)
        backend = await S3Backend.connect(options)
        try:
            yield backend, store
        finally:
            await backend.aclose()
