"""How a bucket of Google Cloud Storage is configured, and as whom it is asked. Used by backends/gcs*.py only."""

import asyncio
import json
from pathlib import Path
from typing import Self

import google.auth
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials as ServiceAccount
from pydantic import Field, SecretStr, field_validator, model_validator

from backends.base import BackendOptions
from backends.errors import PermissionDenied
from backends.gcs_errors import translated

GRAIN = 256 << 10
"""Every chunk of an upload but the last is a multiple of this: https://cloud.google.com/storage/docs/performing-resumable-uploads."""

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class GcsOptions(BackendOptions):
    """How to reach one bucket. Without a key, the application default credentials are used."""

    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$", description="Name of the bucket; it must exist."
    )
    project: str | None = Field(
        default=None, description="Project that is billed for the requests; by default the bucket's."
    )
    credentials_file: Path | None = Field(default=None, description="Key file (JSON) of a service account.")
    credentials_json: SecretStr | None = Field(
        default=None, description="The contents of such a file, instead of the file."
    )
    anonymous: bool = Field(default=False, description="Send no credentials: emulators, public buckets.")
    endpoint_url: str = Field(
        default="https://storage.googleapis.com",
        pattern=r"^https?://[^\s/@?#]+/?$",
        description="URL of an emulator, or a private endpoint.",
    )
    chunk_size: int = Field(
        default=8 << 20,
        ge=GRAIN,
        le=512 << 20,
        description="Bytes of a chunk, a multiple of 256 KiB; smaller objects are one request. A write needs about twice this in memory.",
    )
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    request_timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds for one request, with up to a chunk in its body, and for each mebibyte of a read.",
    )
    retries: int = Field(
        default=3,
        ge=0,
        le=10,
        description="How often a request that failed for a passing reason is sent again.",
    )

    @field_validator("chunk_size")
    @classmethod
    def _whole_grains(cls, value: int) -> int:
        if value % GRAIN:
            raise ValueError("chunk_size must be a multiple of 256 KiB (262144)")
        return value

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if sum((self.credentials_file is not None, self.credentials_json is not None, self.anonymous)) > 1:
            raise ValueError("credentials_file, credentials_json and anonymous exclude each other")
        return self

    @property
    def identity(self) -> tuple[object, ...]:
        """Where and as whom: two backends with equal ones see the same store alike."""
        where = self.endpoint_url.rstrip("/")
        return where, self.project, self.credentials_file, self.credentials_json, self.anonymous


class Tokens:
    """The access token of the moment; google-auth renews it some minutes before it expires."""

    def __init__(self, credentials: Credentials | None) -> None:
        """None sends none."""
        self._credentials = credentials
        self._lock = asyncio.Lock()

    @classmethod
    async def of(cls, options: GcsOptions) -> Self:
        """Find the credentials. Raises `PermissionDenied` that says what to do when there are none."""
        return cls(None if options.anonymous else await asyncio.to_thread(_credentials, options))

    async def current(self) -> str | None:
        """A token that holds, fetched in a thread where needed; one caller fetches for all."""
        credentials = self._credentials
        if credentials is None:
            return None
        async with self._lock:
            if not credentials.valid:
                await asyncio.to_thread(_refresh, credentials)
            return str(credentials.token)

    async def instead_of(self, refused: str) -> str | None:
        """Another one than the store did not take, though its time is not over: keys are rotated."""
        credentials = self._credentials
        if credentials is None:
            return None
        async with self._lock:
            if credentials.token == refused:
                await asyncio.to_thread(_refresh, credentials)
            return str(credentials.token)


def _credentials(options: GcsOptions) -> Credentials:
    try:
        if options.credentials_json is not None:
            facts = json.loads(options.credentials_json.get_secret_value())
        elif options.credentials_file is not None:
            facts = json.loads(options.credentials_file.read_bytes())
        else:
            return google.auth.default(scopes=[_SCOPE])[0]
        if not isinstance(facts, dict):
            raise TypeError("a key file holds a JSON object")
        found: Credentials = ServiceAccount.from_service_account_info(facts, scopes=[_SCOPE])  # type: ignore[no-untyped-call] # google-auth leaves it unannotated
    except (OSError, ValueError, TypeError, GoogleAuthError) as exc:
        raise PermissionDenied(
            f"no credentials for bucket {options.bucket} ({type(exc).__name__}); configure credentials_file, or run: "
            "gcloud auth application-default login"
        ) from exc
    return found


def _refresh(credentials: Credentials) -> None:
    request = Request()
    try:
        with translated("get an access token"):
            credentials.refresh(request)  # type: ignore[no-untyped-call] # google-auth leaves it unannotated
    finally:
        request.session.close()
