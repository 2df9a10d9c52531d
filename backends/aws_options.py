"""Which of AWS's credentials are used. Needs no SDK, so settings may have it; backends/aws_session.py makes a session of it."""

from typing import Self

from pydantic import BaseModel, Field, SecretStr, model_validator


class AwsOptions(BaseModel):
    """Who asks, and where. What is left out comes from the SDK's own chain."""

    region: str | None = Field(
        default=None, description="AWS region; by default from the profile or environment."
    )
    access_key_id: str | None = Field(
        default=None, description="Access key; together with `secret_access_key`."
    )
    secret_access_key: SecretStr | None = Field(default=None, description="Secret key.")
    session_token: SecretStr | None = Field(default=None, description="Session token of temporary keys.")
    profile: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    role_arn: str | None = Field(
        default=None,
        pattern=r"^arn:[^:]+:iam::[0-9]*:role/.+$",
        description="Role to assume, by whom the keys, the profile or the SDK's own chain say; renewed before it expires.",
    )
    external_id: str | None = Field(
        default=None,
        min_length=2,
        max_length=1224,
        description="What the role's trust policy may ask for, for roles of other accounts.",
    )
    role_session_name: str = Field(
        default="transload",
        pattern=r"^[\w+=,.@-]{2,64}$",
        description="Name of the session, as CloudTrail shows it.",
    )
    role_session_duration: int = Field(
        default=3600,
        ge=1800,
        le=43_200,
        description="Seconds a session of the role lasts; no more than the role allows, and one hour where the caller has a "
        "role itself.",
    )
    sts_endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="Another endpoint than AWS's to assume the role at.",
    )

    @model_validator(mode="after")
    def _whole_keys(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        return self

    @model_validator(mode="after")
    def _role_for_its_options(self) -> Self:
        if self.role_arn is None:
            for name in (
                "external_id",
                "role_session_name",
                "role_session_duration",
                "sts_endpoint_url",
            ):
                if getattr(self, name) != AwsOptions.model_fields[name].default:
                    raise ValueError(f"{name} needs role_arn")
        return self
