"""What the settings hold: every section, its keys, defaults and limits. `settings` fills them, `bootstrap` reads them.

An adapter's own keys are not here: they are its `Options`, and lie in `options` of the section that names the adapter.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializeAsAny,
    StringConstraints,
    model_validator,
)
from sqlalchemy import URL

from backends.aws_options import AwsOptions
from backends.base import BackendOptions
from backends.guards.breaker import BreakerOptions
from backends.guards.rate_limit import RateLimitOptions
from backends.guards.read_cache import CacheOptions
from backends.guards.retry import RetryOptions
from backends.guards.timeouts import TimeoutOptions
from handlers.layouts import check_layout
from worker.ledger.urls import ledger_url
from worker.provision.settings import ProvisionSettings
from worker.publishers.base import PublisherOptions
from worker.queues.base import QueueOptions
from worker.redaction import HIDDEN, is_secret_name, redact

PREFIX_LIMIT = 512
"""Longest prefix, in UTF-8 bytes: half of what a key may have."""

HOME_DEFAULTS: Final[Mapping[tuple[str, str], tuple[str, str]]] = MappingProxyType(
    {
        ("queue", "embedded"): ("path", "queue.db"),
        ("publisher", "embedded"): ("path", "completions.db"),
        ("staging", "file"): ("root", "staging"),
        ("targets", "file"): ("root", "storage"),
    }
)
"""Section and adapter -> the option that has a default below `home`, and that default."""


def _prefix(value: str) -> str:
    segments = [segment for segment in value.split("/") if segment]
    if any(segment in {".", ".."} for segment in segments):
        raise ValueError("a prefix has no '.' or '..' segments; name the place directly")
    if not value.isprintable():
        raise ValueError("a prefix has no control characters; remove them")
    prefix = "/".join(segments)
    if len(prefix.encode()) > PREFIX_LIMIT:
        raise ValueError(f"a prefix has at most {PREFIX_LIMIT} bytes; shorten it")
    return prefix


def _patterns(value: object) -> object:
    """One pattern may stand alone."""
    return (value,) if isinstance(value, str) else value


def _loopback(value: str) -> str:
    try:
        loopback = value == "localhost" or ipaddress.ip_address(value).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            "only a loopback address is accepted for now, because the endpoint has no authentication; "
            "use 127.0.0.1, ::1 or localhost"
        )
    return value


def _ledger_url(value: str) -> str:
    ledger_url(value)
    return value


def sqlite_url(path: Path) -> str:
    """The ledger URL of a database file, with whatever SQLAlchemy wants escaped in it."""
    return URL.create("sqlite", database=str(path)).render_as_string()


Prefix = Annotated[str, AfterValidator(_prefix)]
LayoutSpec = Annotated[str, AfterValidator(check_layout)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]


class Section(BaseModel):
    """What all sections share: frozen, and a key nobody knows is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QueueSettings(Section):
    """Where messages come from."""

    type: str = Field(default="embedded", description="The queue adapter.")
    options: SerializeAsAny[QueueOptions]


class PublisherSettings(Section):
    """Where completions go."""

    type: str = Field(default="embedded", description="The publisher adapter.")
    options: SerializeAsAny[PublisherOptions]


class _Guarded(Section):
    """What stands around a place (backends/guards)."""

    timeouts: TimeoutOptions | None = Field(
        default=None, description="Deadlines for the store's own time; off unless given."
    )
    rate_limit: RateLimitOptions | None = Field(
        default=None, description="Requests and bytes a second; off unless given."
    )
    breaker: BreakerOptions | None = Field(
        default=None,
        description="Leave a store alone that keeps being unavailable, and take no messages for it; off unless given.",
    )
    retry: RetryOptions | None = Field(
        default=None,
        description="Try calls again that can be replayed, never a write; off unless given: most SDKs do it.",
    )
    cache: CacheOptions | None = Field(
        default=None, description="Keep what was read on a local disk; off unless given."
    )


class StagingSettings(_Guarded):
    """A place payloads are read from."""

    name: Name
    backend: str = Field(default="file", description="The storage adapter.")
    prefix: Prefix = Field(default="", description="Only what lies under it counts as staged.")
    delete_published: bool = Field(
        default=False,
        description="Whether payloads are deleted once their bundle is published. Not for payloads that several bundles name.",
    )
    delete_after: float = Field(
        default=0.0,
        ge=0,
        le=1_209_600,
        description="Seconds they stay after that; where several sources delete, the longest of them counts for all.",
    )
    options: SerializeAsAny[BackendOptions]


class TargetSettings(_Guarded):
    """A place objects are written to."""

    name: Name
    backend: str = Field(default="file", description="The storage adapter.")
    layout: LayoutSpec = Field(
        default="oc",
        description="How keys are built below the prefix: `oc`, `hive`, `dated`, or a template as `{recipe_id}/{bid}/{name}`.",
    )
    prefix: Prefix = Field(default="", description="Put before every key.")
    server_copy: bool = Field(
        default=True,
        description="Whether a payload that is staged in the same store is copied there, not read and written here.",
    )
    options: SerializeAsAny[BackendOptions]


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]


class RouteSettings(Section):
    """Which messages go to which targets. Of several routes the first that matches counts, in the order of the file.

    What is not given matches everything; of several patterns one has to fit. Patterns are those of a shell: `*`, `?`, `[a-z]`.
    """

    name: Name
    enabled: bool = Field(
        default=True, description="Whether it is looked at; its messages go on to the next."
    )
    recipe_id: Patterns = Field(default=(), description="Patterns of the bundle's recipe.")
    queue: Patterns = Field(
        default=(), description="Patterns of the queue's name, for a file that several deployments share."
    )
    url: Patterns = Field(default=(), description="Patterns of the resource's whole URL.")
    content_type: Patterns = Field(
        default=(), description="Patterns of the resource's media type, in lower case and without parameters."
    )
    targets: tuple[Name, ...] = Field(
        default=(),
        description="Names out of `targets` that a bundle is not complete without; default: all that `best_effort` does not name.",
    )
    best_effort: tuple[Name, ...] = Field(
        default=(),
        description="Names out of `targets` that a bundle does not wait for. What fails there is tried again alone, and becomes a "
        "dead letter in the end.",
    )
    layout: LayoutSpec | None = Field(
        default=None, description="How keys are built, in place of each target's own `layout`."
    )


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
    host: Annotated[str, AfterValidator(_loopback)] = Field(
        default="127.0.0.1", description="A loopback address; others are refused for now."
    )
    port: int = Field(default=9464, ge=0, le=65_535, description="TCP port; 0 takes any free one.")


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


class Settings(Section):
    """Everything a Transload process is configured with. Paths are absolute, references resolved, names checked."""

    home: Path = Field(description="The directory everything embedded lives in by default.")
    queue: QueueSettings
    staging: Mapping[str, StagingSettings]
    targets: Mapping[str, TargetSettings]
    routes: Mapping[str, RouteSettings]
    ledger: LedgerSettings
    publisher: PublisherSettings
    worker: WorkerSettings
    relay: RelaySettings
    housekeeping: HousekeepingSettings
    admin: AdminSettings
    logs: LogSettings
    provision: ProvisionSettings = ProvisionSettings()
    audit: AuditSettings = AuditSettings()
    cloudwatch: CloudWatchSettings = CloudWatchSettings()

    def redacted(self) -> dict[str, Any]:
        """The settings in the shape of the file, fit to be shown: no secret, no password or signature in a URL."""
        return {name: _shown(name, value) for name, value in self}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel):
        shown = {key: _shown(key, item) for key, item in value}
        if isinstance(value, StagingSettings | TargetSettings | RouteSettings):
            del shown["name"]  # it is the key above
        # Options lie flat beside the adapter's name, as in the file.
        options = shown.pop("options", {})
        return {**shown, **options}
    if isinstance(value, Mapping):
        return {key: _shown(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(name, item) for item in value]
    if isinstance(value, SecretStr) or (value is not None and is_secret_name(name)):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    return redact(value) if isinstance(value, str) else value
