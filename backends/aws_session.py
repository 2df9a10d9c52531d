"""Who asks AWS: one session of the SDK, made from options. Used by backends/s3_client.py and worker/aws.py.

Keys, a profile, or nothing of both, which leaves it to the SDK's own chain: environment, web identity (IRSA), configuration
files, the roles of containers and instances. With `role_arn`, whoever that is assumes the role. Everything that expires is
renewed a quarter of an hour before its end, so a transfer outlives the credentials it began with.

A redirect is never followed: it would take the body, and a session token, to whatever host the answer names. What S3 says
about a bucket's region botocore heeds by itself, by asking AWS there.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioDeferredRefreshableCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiohttp import ClientResponse, ClientSession
from botocore.exceptions import ClientError, CredentialRetrievalError

from backends.aws_options import AwsOptions

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REGION = "x-amz-bucket-region"


class RoleNotAssumed(CredentialRetrievalError):  # type: ignore[misc]  # botocore has no types
    """STS refuses the role: no later attempt helps before somebody has changed a policy, the role or the options."""


def open_session(options: AwsOptions) -> AioSession:
    """A session whose clients ask as `options` say. Asks nobody yet.

    Raises botocore's `ProfileNotFound`. The calls of a client raise `RoleNotAssumed` for a role that is refused.
    """
    session = _session(options)
    if options.access_key_id is not None and options.secret_access_key is not None:
        token = options.session_token.get_secret_value() if options.session_token else None
        session.set_credentials(options.access_key_id, options.secret_access_key.get_secret_value(), token)
    if options.role_arn is None:
        return session
    assumed = _session(options)
    assumed.register_component("credential_provider", _Role(session, options))
    return assumed


def _session(options: AwsOptions) -> AioSession:
    session = AioSession(profile=options.profile)
    # Clients lay their own configuration over this one.
    session.set_default_client_config(AioConfig(http_session_cls=_Straight))
    return session


class _Straight(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """aiobotocore's own transport, which leaves redirects to aiohttp, and so would follow them."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(_request, session))


async def _request(session: ClientSession, method: str, **arguments: Any) -> ClientResponse:
    response = await session.request(method, **arguments, allow_redirects=False)
    if "Location" in response.headers and response.status in _REDIRECTS and _REGION not in response.headers:
        # Not left to botocore, which would ask for the bucket's region, and be redirected, over and over.
        response.close()
        raise RuntimeError(
            f"HTTP {response.status} to another place, which is not followed; see endpoint_url"
        )
    return response


class _Role:
    """botocore's component `credential_provider`: the credentials of one role."""

    def __init__(self, session: AioSession, options: AwsOptions) -> None:
        self._session = session
        self._options = options

    async def load_credentials(self) -> AioDeferredRefreshableCredentials:
        """As botocore calls it, once for a session. What is deferred is the first request to STS."""
        return AioDeferredRefreshableCredentials(refresh_using=self._assume, method="assume-role")

    async def _assume(self) -> dict[str, Any]:
        """https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html."""
        options = self._options
        wanted = {
            "RoleArn": options.role_arn,
            "RoleSessionName": options.role_session_name,
            "DurationSeconds": options.role_session_duration,
        }
        if options.external_id is not None:
            wanted["ExternalId"] = options.external_id
        try:
            async with self._session.create_client(
                "sts",
                region_name=options.region,
                endpoint_url=options.sts_endpoint_url,
                config=AioConfig(
                    connect_timeout=5,
                    read_timeout=10,
                    retries={"mode": "standard", "total_max_attempts": 3},
                ),
            ) as sts:
                found = (await sts.assume_role(**wanted))["Credentials"]
        except ClientError as exc:
            code, status = _answer(exc)
            if status >= 500 or "Throttl" in code:
                raise
            # The text of the answer is left out: it may repeat what the request carried.
            raise RoleNotAssumed(
                provider=f"role {options.role_arn}",
                error_msg=f"{code}; the caller needs sts:AssumeRole on it, and its trust policy has to let the caller in, with "
                "the same external_id",
            ) from exc
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }


def _answer(exc: ClientError) -> tuple[str, int]:
    """Code and HTTP status of a refusal."""
    return (
        exc.response.get("Error", {}).get("Code", ""),
        exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
    )
