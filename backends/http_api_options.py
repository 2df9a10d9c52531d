"""How an HTTP API is reached and what it can do. Used by backends/http_api.py and backends/http_api_client.py."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from backends.addresses import Network
from backends.base import BackendOptions

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A field name: https://www.rfc-editor.org/rfc/rfc9110.html#section-5.6.2"""

Verify = Literal["read_back", "answer", "none"]


class HttpOptions(BackendOptions):
    """One API. Paths are appended to `base_url`; `{key}` in them is the key, percent-encoded but for its slashes."""

    base_url: str = Field(
        pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$",
        description="Where the API lives, without credentials, query or fragment.",
    )
    token: SecretStr | None = Field(default=None, description="Bearer token.")
    token_file: Path | None = Field(
        default=None,
        description="File with the bearer token, read for every request, so that it may be renewed.",
    )
    headers: Mapping[str, SecretStr] = Field(
        default={}, description="Headers of every request, as an API key; taken for secrets."
    )
    method: Literal["PUT", "POST"] = Field(default="PUT", description="Method of a write.")
    path: str = Field(default="{key}", description="Path of an object: read, looked up, deleted, written.")
    write_path: str | None = Field(default=None, description="Path of a write, where it is another one.")
    list_path: str | None = Field(
        default=None,
        description="Path of a listing with `{prefix}` and `{cursor}` (empty for the first page), in order of keys; "
        "unset where there is none.",
    )
    list_items: str = Field(
        default="items",
        description="Where a page (JSON) has its objects; dots lead into objects, empty is the page.",
    )
    list_key: str = Field(default="key", description="Field of an object in a page: its key.")
    list_size: str = Field(default="size", description="Field of an object in a page: its bytes.")
    list_next: str = Field(default="next", description="Where a page has the `{cursor}` of the next one.")
    health_path: str | None = Field(
        default=None,
        description="Path that answers 2xx to GET while the API is well; by default an object that is not there is looked up.",
    )
    reads: bool = Field(default=True, description="Objects can be read (GET) and looked up.")
    stat_method: Literal["HEAD", "GET"] = Field(
        default="HEAD", description="How an object is looked up; GET hangs up after the headers."
    )
    deletes: bool = Field(default=True, description="Objects can be deleted (DELETE).")
    if_none_match: bool = Field(
        default=True,
        description="The API refuses (409, 412, 422) to replace an object when asked with `If-None-Match: *`. "
        "Without it a write looks first, and two at once may replace one another.",
    )
    verify: Verify | None = Field(
        default=None,
        description="How a write is proven: `read_back` reads and digests what was stored, `answer` believes a SHA-256 in the "
        "API's answer, `none` believes the 2xx. By default `read_back`, where `reads` is off `answer`.",
    )
    digest_header: str = Field(
        default="Repr-Digest",
        description="Header of an answer with the stored object's SHA-256: RFC 9530, hexadecimal or Base64.",
    )
    digest_field: str | None = Field(
        default=None,
        description="Field of a JSON answer with the stored object's SHA-256, before the header.",
    )
    metadata_prefix: str | None = Field(
        default=None,
        description="Prefix of the headers that carry metadata, where the API keeps them and the content type.",
    )
    buffer: int = Field(
        default=1 << 20,
        ge=0,
        le=1 << 30,
        description="Bytes up to which an object is sent with its length and digest, and again after a Retry-After; "
        "longer ones are streamed (chunked).",
    )
    expect_continue: bool = Field(
        default=False,
        description="Ask with `Expect: 100-continue` before streaming; for an API that answers it.",
    )
    connect_timeout: float = Field(default=10.0, gt=0, description="Seconds to connect.")
    idle_timeout: float = Field(
        default=60.0,
        gt=0,
        description="Seconds within which 256 KiB have to move, or the answer has to come.",
    )
    total_timeout: float | None = Field(
        default=None,
        gt=0,
        description="Seconds for a whole request with its body; unset for as long as it moves.",
    )
    max_retry_after: float = Field(
        default=10.0,
        ge=0,
        description="Longest `Retry-After`, in seconds, that is waited for; once a request.",
    )
    max_connections: int = Field(default=64, ge=1, description="Connections; a request waits for one.")
    allow_networks: tuple[Network, ...] = Field(
        default=(),
        description="Networks (`10.0.0.0/8`) whose addresses are taken besides public ones. An address in `base_url`, and private "
        "ones for a name that the public DNS does not have, need not be listed.",
    )
    redirect_hosts: tuple[str, ...] = Field(
        default=(),
        description="Hosts (patterns with `*`, with `:port` unless it is the scheme's own) that reads may be redirected to. They get "
        "neither token nor headers.",
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust instead of the system's.")
    verify_tls: bool = Field(default=True, description="Check the API's certificate. Leave it on.")

    @field_validator("base_url")
    @classmethod
    def _url_with_a_port(cls, url: str) -> str:
        # Looked at, it raises for a host or a port that no URL can have.
        _ = urlsplit(url).port
        return url

    @field_validator("headers")
    @classmethod
    def _plain_headers(cls, headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, value in headers.items():
            if not _TOKEN.fullmatch(name) or not _plain(value):
                raise ValueError(f"header {name!a} has a name or a value that no header can have")
        return headers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file exclude one another")
        if self.verify == "read_back" and not self.reads:
            raise ValueError("verify: read_back needs reads")
        if self.token is not None and not _plain(self.token):
            raise ValueError("token holds a character that no header can have")
        for template in (self.path, self.write_path):
            if template is not None and _fields(template) != {"key"}:
                raise ValueError(f"path {template!r} must contain {{key}} and no other field")
        if self.list_path is not None and not {"prefix"} <= _fields(self.list_path) <= {"prefix", "cursor"}:
            raise ValueError("list_path must contain {prefix}, may contain {cursor}, and no other field")
        return self

    @property
    def proof(self) -> Verify:
        """The effective `verify`."""
        return self.verify or ("read_back" if self.reads else "answer")

    def unverified(self) -> str | None:
        """See `BackendOptions`."""
        return None if self.verify_tls else "the certificate of the API is not verified (verify_tls: false)"

    @property
    def root(self) -> str:
        """`base_url` with a slash at its end."""
        return self.base_url.rstrip("/") + "/"


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _plain(value: SecretStr) -> bool:
    text = value.get_secret_value()
    return text.isascii() and text.isprintable()
