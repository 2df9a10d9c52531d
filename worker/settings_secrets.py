"""The section `secrets`: how AWS Secrets Manager is asked, for every `X_secret` of the settings.

worker/settings_schema.py hangs it into the settings, worker/config_references.py and worker/secrets_manager.py work with it.
"""

from dataclasses import dataclass

from pydantic import Field

from backends.aws_options import AwsOptions
from worker.settings_section import Section


class SecretsSettings(Section, AwsOptions):
    """How AWS Secrets Manager is asked for what `…_secret` names. A secret that is named by its ARN is read in its own region."""

    endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+",
        description="Another endpoint than AWS's, for example LocalStack's, or a private one.",
    )
    timeout: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Seconds in which all secrets have to be there, tries included.",
    )


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a secret: its id or ARN, and the stage; an empty one is `AWSCURRENT`."""

    id: str
    stage: str


class Unreadable(Exception):
    """A secret cannot be had. The message says why and what to do; it repeats neither the id nor the value."""
