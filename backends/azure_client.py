"""How one container is reached: the options, and the SDK's client made from them. Used by backends/azure.py only."""

import re
from io import BytesIO
from typing import Any, Self
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.pipeline.transport import AioHttpTransport
from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry
from pydantic import Field, SecretStr, model_validator

from backends.base import BackendOptions

READ_SIZE = 4 << 20
"""Bytes of one ranged read."""

_LARGE_BODY = 1 << 20
"""From here on aiohttp warns of bodies that are plain bytes."""


class AzureOptions(BackendOptions):
    """How to reach one container. Without any credential, azure-identity's default chain finds one."""

    container: str = Field(
        min_length=3,
        max_length=63,
        pattern=r"^(\$root|\$web|[a-z0-9]+(-[a-z0-9]+)*)$",
        description="Name of the container; it must exist.",
    )
    account: str | None = Field(
        default=None, pattern=r"^[a-z0-9]{3,24}$", description="Name of the storage account."
    )
    account_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$",
        description="URL of the blob endpoint instead of `account`: another cloud, a private endpoint, an emulator.",
    )
    connection_string: SecretStr | None = Field(
        default=None, description="Connection string; it names the account and holds the credential."
    )
    account_key: SecretStr | None = Field(default=None, description="Access key of the account, in Base64.")
    sas_token: SecretStr | None = Field(
        default=None,
        description="Shared access signature with read, add, create, write, delete and list on the container.",
    )
    tenant_id: str | None = Field(default=None, description="Directory of the service principal.")
    client_id: str | None = Field(
        default=None,
        description="Application of the service principal; alone, the user-assigned managed identity to use.",
    )
    client_secret: SecretStr | None = Field(default=None, description="Secret of the service principal.")
    block_size: int = Field(
        default=8 << 20,
        ge=1 << 20,
        le=256 << 20,
        description="Bytes of a block; smaller objects are one request. Doubled every 4,500 blocks.",
    )
    max_concurrency: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Blocks of one write in flight; a write needs about `block_size` times this and two more in memory.",
    )
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    read_timeout: float = Field(
        default=60.0, gt=0, description="Seconds without a byte of the answer before a request has failed."
    )
    request_timeout: float = Field(
        default=300.0,
        gt=0,
        description="Seconds for one request, its body, its answer and its repetitions together: a block, or 4 MiB read.",
    )
    retries: int = Field(default=3, ge=0, le=10, description="Times the SDK repeats a request that failed.")

    @model_validator(mode="after")
    def _one_account_one_credential(self) -> Self:
        if sum(one is not None for one in (self.account, self.account_url, self.connection_string)) != 1:
            raise ValueError("exactly one of account, account_url and connection_string names the account")
        secrets = (self.connection_string, self.account_key, self.sas_token, self.client_secret)
        if sum(one is not None for one in secrets) > 1:
            raise ValueError("at most one of connection_string, account_key, sas_token and client_secret")
        if (self.client_secret is None) != (self.tenant_id is None):
            raise ValueError("tenant_id and client_secret go together")
        if self.client_secret is not None and self.client_id is None:
            raise ValueError("client_secret needs client_id")
        bare = self.connection_string is None and self.account_key is None and self.sas_token is None
        if bare and (self.account_url or "").startswith("http:"):
            raise ValueError(
                "a token is sent over https only; an http account_url needs account_key or sas_token"
            )
        if not self.account_name:
            raise ValueError("the connection string names no account")
        return self

    @property
    def account_name(self) -> str:
        """The account as its URL or connection string has it; empty where that cannot be told."""
        if self.account is not None:
            return self.account
        if self.account_url is not None:
            return _account_in(self.account_url)
        text = self.connection_string.get_secret_value() if self.connection_string else ""
        pairs = (pair.partition("=") for pair in text.split(";"))
        fields = {name.strip().lower(): value for name, _, value in pairs}
        return fields.get("accountname") or _account_in(fields.get("blobendpoint", ""))


def _account_in(url: str) -> str:
    """`name` of `https://name.blob.core.windows.net` and of an emulator's `http://127.0.0.1:10000/name`."""
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path.strip("/")
    return path.partition("/")[0] or host.partition(".")[0]


class _Transport(AioHttpTransport):  # type: ignore[misc] # loaded lazily by its package, so untyped
    """Hands large bodies to aiohttp as streams: sent as plain bytes they would block the event loop at a stretch."""

    async def send(self, request: Any, **config: Any) -> Any:
        body = request.data
        if not isinstance(body, bytes) or len(body) < _LARGE_BODY:
            return await super().send(request, **config)
        request.data = BytesIO(body)
        try:
            return await super().send(request, **config)
        finally:
            request.data = body


def service_for(options: AzureOptions) -> tuple[BlobServiceClient, AsyncTokenCredential | None]:
    """The client of the account, and the credential that has to be closed after it, if there is one.

    Raises `ValueError` for a connection string or key that cannot be read.
    """
    transport: dict[str, Any] = {
        "retry_policy": ExponentialRetry(
            initial_backoff=1, increment_base=2, random_jitter_range=1, retry_total=options.retries
        ),
        # A redirect would take the body to whatever host the answer names.
        "permit_redirects": False,
        "max_single_put_size": options.block_size,
        "max_single_get_size": READ_SIZE,
        "max_chunk_get_size": READ_SIZE,
        # The client hands its own timeouts only to a transport that it has made itself.
        "transport": _Transport(
            connection_timeout=options.connect_timeout, read_timeout=options.read_timeout
        ),
    }
    if options.connection_string is not None:
        text = options.connection_string.get_secret_value()
        return BlobServiceClient.from_connection_string(text, **transport), None
    url = options.account_url or f"https://{options.account}.blob.core.windows.net"
    if options.account_key is not None:
        key = AzureNamedKeyCredential(options.account_name, options.account_key.get_secret_value())
        return BlobServiceClient(url, key, **transport), None
    if options.sas_token is not None:
        token = re.sub(r"^\?", "", options.sas_token.get_secret_value())
        return BlobServiceClient(url, token, **transport), None
    credential: AsyncTokenCredential
    if options.tenant_id and options.client_id and options.client_secret:
        credential = ClientSecretCredential(
            options.tenant_id, options.client_id, options.client_secret.get_secret_value()
        )
    else:
        credential = DefaultAzureCredential(managed_identity_client_id=options.client_id)
    return BlobServiceClient(url, credential, **transport), credential
