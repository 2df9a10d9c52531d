"""The two clients of one bucket, configured alike. Used by backends/s3.py; worker/provision/run.py makes its own clients by it.

botocore resolves endpoint, region, certificates and credentials, once; obstore is told what it found, and so never looks
at the environment by itself.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.credentials import RefreshableCredentials
from obstore.store import S3Store
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from backends.aws_options import AwsOptions
from backends.aws_session import open_session
from backends.base import BackendOptions
from backends.errors import PermissionDenied
from backends.s3_checksums import Choice

if TYPE_CHECKING:  # obstore has these names for type checkers only
    from obstore.store import ClientConfig, S3Credential

_CREDENTIAL_SECONDS = 600


class S3Options(BackendOptions, AwsOptions):
    """How to reach one bucket. Without keys or a profile, botocore's usual chain finds the credentials.

    Some options have a second name, the one that other tools know them by; the two are never given together.
    """

    model_config = ConfigDict(populate_by_name=True)

    bucket: str = Field(pattern=r"^[A-Za-z0-9._-]{3,255}$", description="Name of the bucket; it must exist.")
    endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="URL of an S3-compatible store; unset for AWS.",
    )
    path_style: bool | None = Field(
        default=None,
        description="Bucket in the path instead of the host name; by default iff `endpoint_url` is set.",
    )
    checksums: Choice = Field(
        default="when_supported",
        description="What the store verifies of a write. `when_supported`: the SHA-256 of a PUT, the CRC32 of each part. "
        "`crc32c`, `crc64nvme`: that one, of each part and of the whole. `md5`: Content-MD5, and the ETag at the end. "
        "`when_required` for stores that refuse checksum headers; the payload is signed instead.",
    )
    conditional_writes: Literal["always", "put", "never"] = Field(
        default="always",
        description="Which requests of this store keep `If-None-Match`. Where it is ignored (`put`: by multipart uploads), "
        "a write looks before its commit instead, and of two at the very same moment the later one stays.",
    )
    encryption: Literal["AES256", "aws:kms"] | None = Field(
        default=None,
        description="Encryption at rest asked for with every write; by default what the bucket says. "
        "A store that cannot do it, or may not use the key, takes no writes.",
    )
    kms_key_id: str | None = Field(
        default=None,
        min_length=1,
        description="Key for `encryption: aws:kms`; by default the account's own for S3.",
    )
    storage_class: str | None = Field(
        default=None,
        pattern=r"^[A-Z0-9_-]+$",
        description="Storage class of what is written, `STANDARD_IA` for one; by default the bucket's.",
    )
    part_size: int = Field(
        default=8 << 20,
        ge=5 << 20,
        le=512 << 20,
        validation_alias=AliasChoices("part_size", "multipart_chunksize"),
        description="Bytes of a part. Also called `multipart_chunksize`.",
    )
    multipart_threshold: int | None = Field(
        default=None,
        ge=1,
        le=512 << 20,
        description="Objects of up to so many bytes are one PUT, for which a write holds them in memory; by default `part_size`.",
    )
    max_concurrency: int = Field(
        default=2,
        ge=1,
        le=64,
        validation_alias=AliasChoices("max_concurrency", "max_concurrent_uploads"),
        description="Parts of one write in flight; a write needs about `part_size` times twice this and two more in memory. "
        "Also called `max_concurrent_uploads`.",
    )
    max_connections: int = Field(default=64, ge=1, description="Connections of aiobotocore's pool.")
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    read_timeout: float = Field(
        default=60.0, gt=0, description="Seconds without a byte before a request has failed."
    )
    request_timeout: float = Field(
        default=300.0,
        gt=0,
        validation_alias=AliasChoices("request_timeout", "upload_timeout"),
        description="Seconds one request may take in all, its retries included; of a read, half a mebibyte of it. A larger "
        "part has as many times more as it is larger than `part_size`. Also called `upload_timeout`.",
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="Times one request is sent again after throttling, a server's error or a broken connection, "
        "with growing, random pauses.",
    )

    @model_validator(mode="after")
    def _key_for_kms_only(self) -> Self:
        if self.kms_key_id is not None and self.encryption != "aws:kms":
            raise ValueError("kms_key_id needs encryption: aws:kms")
        return self

    @property
    def largest_put(self) -> int:
        """Bytes up to which an object is one PUT: the effective `multipart_threshold`."""
        return self.part_size if self.multipart_threshold is None else self.multipart_threshold

    @property
    def placement(self) -> dict[str, str]:
        """How an object is to lie in the store, as botocore says it in Put and Create: encryption and storage class."""
        wanted = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def modern_checksums(self) -> bool:
        """The store knows the checksum headers that came in 2022, so that it can also prove a copy."""
        return self.checksums not in {"when_required", "md5"}

    @property
    def by_path(self) -> bool:
        """The effective `path_style`. A dot in the bucket's name breaks the certificate of its host name."""
        return (
            self.path_style if self.path_style is not None else bool(self.endpoint_url) or "." in self.bucket
        )


@asynccontextmanager
async def clients(options: S3Options) -> AsyncIterator[tuple[Any, S3Store]]:
    """The client of aiobotocore and the store of obstore."""
    session = open_session(options)
    async with session.create_client(
        "s3", region_name=options.region, endpoint_url=options.endpoint_url, config=client_config(options)
    ) as client:
        yield client, _store_for(options, session, client)


def client_config(options: S3Options) -> AioConfig:
    """For aiobotocore: timeouts, checksums, and the SDK's own retries."""
    by_name = {"addressing_style": "path" if options.by_path else "virtual"}
    # Without a checksum only a signed payload lets the store notice damage on the way.
    signed = {"payload_signing_enabled": True} if options.checksums == "when_required" else {}
    return AioConfig(
        s3={**by_name, **signed},
        request_checksum_calculation="when_supported" if options.modern_checksums else "when_required",
        response_checksum_validation="when_required",
        max_pool_connections=options.max_connections,
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        retries={"mode": "standard", "total_max_attempts": 1 + options.max_retries},
    )


def _store_for(options: S3Options, session: AioSession, client: Any) -> S3Store:
    """The same bucket for obstore: the same endpoint, region, certificates and credentials as aiobotocore's."""

    async def credentials() -> "S3Credential":
        found = await session.get_credentials()
        if found is None:
            raise PermissionDenied(f"no credentials for bucket {options.bucket}; configure keys or a profile")
        frozen = await found.get_frozen_credentials()
        # botocore renews well before the end; asking it again every few minutes costs nothing and needs no clock of ours. Where
        # the end is near all the same, it is asked for every request.
        ending = isinstance(found, RefreshableCredentials) and found.refresh_needed(_CREDENTIAL_SECONDS)
        until = datetime.now(UTC) + timedelta(seconds=0 if ending else _CREDENTIAL_SECONDS)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": until,
        }

    endpoint: str = client.meta.endpoint_url
    scheme, _, host = endpoint.partition("://")
    region = client.meta.region_name
    transport: ClientConfig = {
        "allow_http": scheme == "http",
        "connect_timeout": timedelta(seconds=options.connect_timeout),
        "read_timeout": timedelta(seconds=options.read_timeout),
        # The whole of a request: a slow reader of a large object is no failure.
        "timeout": timedelta(days=1),
    }
    authority = session.get_config_variable("ca_bundle")
    if authority:
        transport["root_certificate"] = Path(authority).read_bytes()
    extra: dict[str, Any] = {"checksum_algorithm": "SHA256"} if options.checksums == "when_supported" else {}
    if options.encryption is not None:
        extra["server_side_encryption"] = options.encryption
    if options.kms_key_id is not None:
        extra["sse_kms_key_id"] = options.kms_key_id
    return S3Store(
        options.bucket,
        endpoint=endpoint if options.by_path else f"{scheme}://{options.bucket}.{host}",
        region="us-east-1" if region in {None, "aws-global"} else region,
        virtual_hosted_style_request=not options.by_path,
        client_options=transport,
        retry_config={"max_retries": options.max_retries, "retry_timeout": timedelta(seconds=60)},
        credential_provider=credentials,
        **extra,
    )
