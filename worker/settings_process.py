"""Settings of a process itself: its ledger, its work, and what it tells of it. worker/settings_schema.py hangs them in."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator
from sqlalchemy import URL

from backends.aws_options import AwsOptions
from worker.ledger.urls import ledger_url
from worker.settings_section import Section

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def _bearer(value: SecretStr) -> SecretStr:
    """https://www.rfc-editor.org/rfc/rfc6750#section-2.1"""
    if re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", value.get_secret_value()) is None:
        raise ValueError(
            "no header carries it; use letters, digits and -._~+/ only, without spaces or a newline at its end"
        )
    return value


def _listening_address(value: str) -> str:
    if value != "localhost":
        try:
            ipaddress.ip_address(value)
        except ValueError as exc:
            raise ValueError(
                "not an address to listen on; use 127.0.0.1, ::1, localhost or an address of this host"
            ) from exc
    return value


def _collector(value: str) -> str:
    try:
        parts = urlsplit(value)
        # Looked at, it raises for a port that no URL can have.
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            "must be the collector's http or https URL, without credentials, query and fragment, "
            "like http://127.0.0.1:4318; credentials go into headers"
        )
    return value


def _headers(headers: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"header {name!a} has a name or a value that no header can have")
    return headers


def _ledger_url(value: str) -> str:
    ledger_url(value)
    return value


def sqlite_url(path: Path) -> str:
    """The ledger URL of a database file, with whatever SQLAlchemy wants escaped in it."""
    return URL.create("sqlite", database=str(path)).render_as_string()


class LedgerSettings(Section):
    """The database of resources, bundles and pending completions."""

    url: Annotated[str, AfterValidator(_ledger_url)] = Field(
        repr=False,
        description="`sqlite:///` and the file's path, or `postgresql://user:password@host:5432/database`, with parameters as "
        "libpq has them (`?sslmode=verify-full&sslrootcert=…`); default: the file `ledger.db` in `home`.",
    )
    pooler: bool = Field(
        default=False,
        description="Whether a PostgreSQL URL leads to PgBouncer, or another pooler that gives each transaction another "
        "connection. Statements then take two round trips instead of one, and nobody is notified.",
    )
    listen: bool = Field(
        default=True,
        description="Whether one connection to PostgreSQL waits for notifications, so that a completion that another process "
        "recorded leaves at once; otherwise it leaves with the next poll (`relay.poll_interval`).",
    )

    @property
    def path(self) -> Path | None:
        """The database file; None when the database is on a server."""
        url = ledger_url(self.url)
        return Path(url.database or "") if url.drivername == "sqlite" else None


class _Backoff(Section):
    retry_base: float = Field(default=1.0, gt=0, le=43_200, description="Seconds before the first retry.")
    retry_cap: float = Field(default=60.0, gt=0, le=43_200, description="Most seconds between two tries.")

    @model_validator(mode="after")
    def _ordered(self) -> "_Backoff":
        if self.retry_base > self.retry_cap:
            raise ValueError("retry_base is larger than retry_cap; raise retry_cap or lower retry_base")
        return self


class WorkerSettings(_Backoff):
    """How messages are worked on."""

    concurrency: int = Field(default=64, ge=1, le=1024, description="Messages in work at once.")
    look_ahead: int | None = Field(
        default=None,
        ge=0,
        le=16_384,
        description="Messages received beyond those in work, to find what lies behind one recipe's flood; default: 32 times "
        "the concurrency, at most 2048. With 0 nothing is looked for, and none is put off.",
    )
    fair: bool = Field(
        default=True,
        description="Whether recipes share the worker. Otherwise messages are worked on in the order they come.",
    )
    transfer_memory: int = Field(
        default=201_326_592,
        ge=8_388_608,
        description="Bytes all transfers may hold in memory together; an eighth is kept for payloads of up to 1 MiB.",
    )
    max_attempts: int = Field(
        default=5, ge=1, le=1000, description="Times a message is tried before it becomes a dead letter."
    )
    max_outage_attempts: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="The same while staging or a target does not answer or denies access.",
    )
    drain_timeout: float = Field(
        default=25.0,
        ge=0,
        le=43_200,
        description="Seconds work in progress may take to finish after SIGTERM.",
    )
    max_message_bytes: int = Field(
        default=262_144, ge=1024, le=1_048_576, description="Largest message body accepted, in bytes."
    )

    @property
    def ahead(self) -> int:
        """`look_ahead`, as it is or as it follows."""
        if not self.fair:
            return 0
        return min(32 * self.concurrency, 2048) if self.look_ahead is None else self.look_ahead


class RelaySettings(_Backoff):
    """How completions are published."""

    batch: int = Field(default=50, ge=1, le=1000, description="Completions claimed at once.")
    lease: float = Field(
        default=15.0, gt=0, le=43_200, description="Seconds a claim lasts before another relay may take it."
    )
    poll_interval: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        description="Seconds between looks for completions left by other processes.",
    )


class HousekeepingSettings(Section):
    """What is removed in the background."""

    enabled: bool = Field(default=True, description="Whether `transload run` does it.")
    interval: float = Field(
        default=600.0,
        ge=1,
        le=86_400,
        description="Seconds between two rounds, on average: half of it more or less, so that workers do not keep step.",
    )
    batch: int = Field(
        default=200, ge=1, le=10_000, description="Bundles, or other rows, in one transaction."
    )
    keep_published: float | None = Field(
        default=None,
        ge=1_296_000,
        description="Seconds a published bundle stays in the ledger; default: for ever. At least 15 days, longer than SQS keeps a "
        "message: a duplicate, or a dead letter given back, that arrives after its bundle was forgotten begins it anew.",
    )
    keep_attempts: float = Field(
        default=2_592_000.0,
        ge=1_296_000,
        description="Seconds the notes of failed tries at a message stay, by which its attempts are counted.",
    )
    sweep_after: float = Field(
        default=86_400.0,
        ge=3600,
        description="Seconds after which an unfinished write counts as that of a killed process and its temporary file or "
        "multipart upload is removed; longer than any write takes. Looked for once in that time.",
    )


class AdminSettings(Section):
    """The HTTP endpoint with `/metrics`, `/livez` and `/readyz`."""

    enabled: bool = Field(default=True, description="Whether it is served at all.")
    host: Annotated[str, AfterValidator(_listening_address)] = Field(
        default="127.0.0.1",
        description="Address to listen on. On any but a loopback address the probes answer everybody, and `/metrics` only whoever "
        "has the `token`.",
    )
    port: int = Field(default=9464, ge=0, le=65_535, description="TCP port; 0 takes any free one.")
    token: Annotated[SecretStr, Field(min_length=16), AfterValidator(_bearer)] | None = Field(
        default=None,
        description="What `/metrics` then wants as a bearer token, on a loopback address too.",
    )


class LogSettings(Section):
    """What is logged to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level shown."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto`: readable on a terminal, JSON lines elsewhere."
    )


class AuditSettings(Section):
    """The audit trail in the ledger's database: who stored, announced or removed what, and when."""

    enabled: bool = Field(
        default=True,
        description="Whether it is kept, by workers and by commands. What was written before stays.",
    )
    keep: float | None = Field(
        default=None,
        ge=86_400,
        description="Seconds its rows stay; older ones are deleted by housekeeping, the oldest first; default: for ever.",
    )


class CloudWatchSettings(Section, AwsOptions):
    """Metrics sent to Amazon CloudWatch, besides those that `/metrics` shows."""

    enabled: bool = Field(default=False, description="Whether `transload run` sends them.")
    namespace: str = Field(
        default="OCFetcher",
        pattern=r"^[0-9A-Za-z._/#][0-9A-Za-z._/#:-]{0,254}$",
        description="The namespace of the metrics.",
    )
    interval: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Seconds between two rounds. CloudWatch keeps a value a minute, so a shorter one only costs.",
    )
    endpoint_url: str | None = Field(
        default=None, description="Another endpoint than AWS's, for example LocalStack's."
    )

    @model_validator(mode="after")
    def _own_namespace(self) -> "CloudWatchSettings":
        if self.namespace.startswith("AWS/"):
            raise ValueError("namespaces that begin with AWS/ are AWS's own; use another")
        return self


class TracingSettings(Section):
    """Traces sent to an OpenTelemetry collector, by OTLP over HTTP."""

    enabled: bool = Field(
        default=False, description="Whether workers, and commands that send messages, trace what they do."
    )
    endpoint: Annotated[str, AfterValidator(_collector)] = Field(
        default="http://127.0.0.1:4318",
        description="The collector's base URL; `/v1/traces` is added to it.",
    )
    headers: Annotated[Mapping[str, SecretStr], AfterValidator(_headers)] = Field(
        default={}, description="Headers of every request, as an API key; taken for secrets."
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="The share of traces that are kept, by their ids. What belongs to a trace that began elsewhere is kept if the "
        "trace is.",
    )
    service_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="What traces call this service; default: what `OTEL_SERVICE_NAME` says, or `service.name` in "
        "`OTEL_RESOURCE_ATTRIBUTES`, or `transload`.",
    )
    parent: Literal["link", "child"] = Field(
        default="link",
        description="How work on a message hangs on the trace of whoever sent it. `link`: a trace of its own, which links to "
        "it. `child`: a part of it.",
    )
