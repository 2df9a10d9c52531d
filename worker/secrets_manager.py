"""Reads secrets from AWS Secrets Manager, once, when a process starts. Called by worker/config_references.py only.

Each secret is one `GetSecretValue`, all at the same time. The batch call of the API would need a permission more, and takes no
stages: https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Final

from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection

from backends.aws_session import RoleNotAssumed, open_session
from worker.settings_secrets import SecretsSettings, Unreadable, Version

_AT_ONCE: Final = 16
_ARN: Final = re.compile(r"arn:[^:]+:secretsmanager:(?P<region>[^:]+):")

_RIGHTS: Final = (
    "access is denied; the process needs secretsmanager:GetSecretValue on the secret, and kms:Decrypt where a key of yours "
    "encrypts it"
)
_CREDENTIALS: Final = "there are no credentials to ask Secrets Manager with; set secrets.profile, or keys in secrets, or those of the SDK"
_NO_ID: Final = "Secrets Manager takes it for no id or stage; correct it"
_ANSWERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ResourceNotFoundException": "there is no such secret, or it has no such stage; correct the id, or secrets.region",
        "AccessDeniedException": _RIGHTS,
        "DecryptionFailure": "KMS does not decrypt the secret; allow kms:Decrypt on its key, and see that the key is enabled",
        "InvalidRequestException": "the secret cannot be read as it is: it is marked for deletion, or has no value yet; restore it",
        "InvalidParameterException": _NO_ID,
        "ValidationException": _NO_ID,
        "UnrecognizedClientException": "the credentials are not known there; correct those of the section secrets",
        "InvalidSignatureException": "the credentials are refused; correct those of the section secrets, and the clock",
        "ExpiredTokenException": "the credentials have expired; renew them",
    }
)
"""What its errors mean (https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html, and the errors
common to all actions). The service's own texts are left out: they may repeat what the request carried."""
_FAILURES: Final[tuple[tuple[tuple[type[Exception], ...], str], ...]] = (
    (
        (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
        "there are no credentials to ask Secrets Manager with; set secrets.profile, keys in secrets, or those of the SDK",
    ),
    ((ProfileNotFound,), "there is no such profile; correct secrets.profile"),
    ((NoRegionError,), "no region is known; set secrets.region, or name the secret by its ARN"),
    (
        (SSLError,),
        "no secure connection to Secrets Manager; look at secrets.endpoint_url and its certificate",
    ),
    (
        (HTTPClientError, NoConnection, OSError),
        "Secrets Manager cannot be reached; look at secrets.endpoint_url, secrets.region and the network",
    ),
)
"""The first that fits."""


def fetch(settings: SecretsSettings, versions: Iterable[Version]) -> Mapping[Version, str | Unreadable]:
    """The text of every version, or why it cannot be had. Not from inside an event loop."""
    return asyncio.run(read(settings, versions))


async def read(settings: SecretsSettings, versions: Iterable[Version]) -> Mapping[Version, str | Unreadable]:
    """As `fetch`."""
    gate = asyncio.Semaphore(_AT_ONCE)
    found: dict[Version, str | Unreadable] = {
        version: Unreadable(
            f"Secrets Manager did not answer within {settings.timeout:g} s; see that it can be reached from here, or raise "
            "secrets.timeout"
        )
        for version in versions
    }
    regions = {version: _region(settings, version) for version in found}
    try:
        async with asyncio.timeout(settings.timeout), AsyncExitStack() as stack:
            clients: dict[str | None, Any] = {}
            for region in dict.fromkeys(regions.values()):
                clients[region] = await stack.enter_async_context(_client(settings, region))

            async def one(version: Version) -> None:
                async with gate:
                    found[version] = await _one(clients[regions[version]], version)

            await asyncio.gather(*(one(version) for version in found))
    except TimeoutError:
        pass
    except (BotoCoreError, ClientError, OSError, ValueError) as exc:
        # Of the credentials and the client, before anybody was asked.
        return dict.fromkeys(found, _unreadable(exc))
    return found


def _client(settings: SecretsSettings, region: str | None) -> Any:
    config = AioConfig(
        connect_timeout=5,
        read_timeout=10,
        max_pool_connections=_AT_ONCE,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return open_session(settings).create_client(
        "secretsmanager", region_name=region, endpoint_url=settings.endpoint_url, config=config
    )


def _region(settings: SecretsSettings, version: Version) -> str | None:
    found = _ARN.match(version.id)
    return found["region"] if found else settings.region


async def _one(client: Any, version: Version) -> str | Unreadable:
    stage = {"VersionStage": version.stage} if version.stage else {}
    try:
        answer = await client.get_secret_value(SecretId=version.id, **stage)
    except (BotoCoreError, ClientError, OSError, ValueError) as exc:
        return _unreadable(exc)
    text = answer.get("SecretString")
    if not isinstance(text, str):
        return Unreadable("the secret is binary; store its value as text")
    return text


def _unreadable(exc: Exception) -> Unreadable:
    if isinstance(exc, ClientError):
        return Unreadable(_answered(exc))
    if isinstance(exc, RoleNotAssumed):
        # Ours: it tells the role and the code, and nothing of the answer.
        return Unreadable(f"the role of the section secrets is refused: {exc}")
    other = f"Secrets Manager cannot be asked ({type(exc).__name__}); look at the section secrets"
    return Unreadable(next((text for kinds, text in _FAILURES if isinstance(exc, kinds)), other))


def _answered(exc: ClientError) -> str:
    code = str(exc.response.get("Error", {}).get("Code", ""))
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _ANSWERS:
        return _ANSWERS[code]
    if status in {401, 403}:
        return _RIGHTS
    shown = code if re.fullmatch(r"[A-Za-z]{1,64}", code) else f"HTTP {status}"
    return f"Secrets Manager refuses ({shown}); try again, or look at its status"
