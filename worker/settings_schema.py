"""The settings as a whole: which sections there are, and how they look to a person. `settings` fills them, `bootstrap` reads them.

The sections themselves are in settings_places.py, settings_process.py and provision/settings.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, SecretStr

from handlers.transforms.key_ring import KeyRingOptions
from worker.provision.settings import ProvisionSettings
from worker.redaction import HIDDEN, is_secret_name, redact
from worker.settings_places import (
    PublisherSettings,
    QueueSettings,
    RouteSettings,
    StagingSettings,
    StepSettings,
    TargetSettings,
)
from worker.settings_process import (
    AdminSettings,
    AuditSettings,
    CloudWatchSettings,
    HousekeepingSettings,
    LedgerSettings,
    LogSettings,
    RelaySettings,
    TracingSettings,
    WorkerSettings,
)
from worker.settings_secrets import SecretsSettings
from worker.settings_section import Section


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
    tracing: TracingSettings = TracingSettings()
    encryption: KeyRingOptions | None = None
    secrets: SecretsSettings = SecretsSettings()
    fetched: frozenset[tuple[str, ...]] = frozenset()
    """The keys whose values came from AWS Secrets Manager; no section."""

    def redacted(self) -> dict[str, Any]:
        """The settings in the shape of the file, fit to be shown: no secret, no password or signature in a URL."""
        shown = {name: _shown(name, value) for name, value in self if name in SECTIONS}
        for path in self.fetched:
            within = shown
            for key in path[:-1]:
                within = within[key]
            within[path[-1]] = HIDDEN
        return shown


SECTIONS: Final = frozenset(Settings.model_fields) - {"fetched"}


def _section(section: BaseModel) -> Any:
    shown = {key: _shown(key, item) for key, item in section}
    options = shown.pop("options", {})
    if isinstance(section, StepSettings):
        return {section.name: options} if options else section.name
    if isinstance(section, StagingSettings | TargetSettings | RouteSettings):
        del shown["name"]  # it is the key above
    # Options lie flat beside the adapter's name, as in the file.
    return {**shown, **options}


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _section(value)
    if isinstance(value, Mapping):
        return {key: _shown(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(name, item) for item in value]
    if isinstance(value, SecretStr) or (value is not None and is_secret_name(name)):
        return HIDDEN
    if isinstance(value, Path):
        return str(value)
    return redact(value) if isinstance(value, str) else value
