"""What is given a canary for its secret: every adapter that takes one, by the settings that name it.

Each is told a server of tests/support/echoing.py. `K4nari…` stands in every option that holds a secret.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import quote

import asyncssh

from tests.faults.canaries.words import MILD, PLAIN, SPICY
from tests.support import echoing

Role = Literal["target", "staging", "queue", "publisher", "ledger", "beside", "opened"]
"""`beside`: works beside the path of messages, as tracing. `opened`: is asked while the settings or keys are read."""

HTTP: Final = (
    "401",
    "403",
    "404",
    "409",
    "500",
    "redirect",
    "malformed",
    "garbage",
    "drop",
    "silent",
    "tls",
    "nobody",
)
"""How a server of HTTP answers."""
LOGIN: Final = ("refused", "garbage", "drop", "silent", "nobody")
"""How a server of another protocol does."""
ALONE: Final = ("broken",)
"""What asks no server, and fails by itself."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One adapter in one role."""

    name: str
    role: Role
    settings: Callable[[str, int, Path], Mapping[str, Any]]
    """Sections, by the server's URL, its port, and a folder."""
    answers: Sequence[str] = HTTP
    login: echoing.Talk | None = None
    """What `refused` is, of a protocol of its own."""
    keyed: bool = False
    """Has `key_pem` for a secret, which cannot hold the word."""

    @property
    def more(self) -> tuple[str, ...]:
        """What else to look for."""
        return tuple(key_pem().splitlines()[1:-1]) if self.keyed else ()


_AWS: Final[Mapping[str, Any]] = MappingProxyType(
    {"region": "us-east-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": SPICY, "session_token": MILD}
)
_ROLE: Final = "arn:aws:iam::123456789012:role/canary"


def _target(backend: str, **options: Any) -> Mapping[str, Any]:
    # The other one is well, so that the worker starts and has something to do.
    return {"targets": {"fine": {}, "main": {"backend": backend, **options}}}


def _staging(backend: str, **options: Any) -> Mapping[str, Any]:
    return {"staging": {"main": {}, "other": {"backend": backend, **options}}}


@cache
def key_pem() -> str:
    """A private key that was never anybody's."""
    return asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_private_key("pkcs8-pem").decode()


def _service_account(url: str) -> str:
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "x@y.iam.gserviceaccount.com",
            "private_key_id": PLAIN,
            "private_key": key_pem(),
            "token_uri": f"{url}/token",
        }
    )


def _s3(url: str) -> dict[str, Any]:
    return {"bucket": "bbb", "endpoint_url": url, "max_retries": 0, "request_timeout": 2, **_AWS}


_AZURE: Final[Mapping[str, Any]] = MappingProxyType(
    {"container": "ccc", "retries": 0, "request_timeout": 2, "connect_timeout": 1}
)


_KEY: Final = b64encode(f"{PLAIN}{PLAIN}".encode()[:64]).decode()
_SAS: Final = f"sv=2024-01-01&sr=c&sp=rwdl&sig={quote(SPICY, safe='')}"


def _rabbitmq(port: int) -> dict[str, Any]:
    return {"url": f"amqp://user:{quote(SPICY, safe='')}@127.0.0.1:{port}/", "queue": "q", "timeout": 2}


def _sftp(port: int) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "username": "u",
        "root": "/r",
        "verify_host_key": False,
        "connect_timeout": 2,
    }


def _postgres(port: int) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": port,
        "database": "d",
        "user": "u",
        "password": SPICY,
        "sslmode": "disable",
    }


def _module(folder: Path) -> Mapping[str, Any]:
    return _target("module", module="canary_module", options={"api_key": SPICY, "path": str(folder)})


SUBJECTS: Final = (
    Subject(
        "file", "target", lambda _u, _p, folder: _target("file", root=str(folder / "is-a-file" / "x")), ALONE
    ),
    Subject("memory", "target", lambda _u, _p, _f: _target("memory"), ALONE),
    Subject("s3", "target", lambda url, _p, _f: _target("s3", **_s3(url))),
    Subject("s3", "staging", lambda url, _p, _f: _staging("s3", **_s3(url))),
    Subject(
        "s3, role",
        "target",
        lambda url, _p, _f: _target(
            "s3", **_s3(url), role_arn=_ROLE, external_id="somebody", sts_endpoint_url=url
        ),
    ),
    Subject(
        "azure, SAS",
        "target",
        lambda url, _p, _f: _target("azure", account_url=f"{url}/acc", sas_token=_SAS, **_AZURE),
    ),
    Subject(
        "azure, key",
        "target",
        lambda url, _p, _f: _target("azure", account_url=f"{url}/acc", account_key=_KEY, **_AZURE),
    ),
    Subject(
        "azure, connection string",
        "staging",
        lambda url, _p, _f: _staging(
            "azure",
            connection_string=f"DefaultEndpointsProtocol=http;AccountName=acc;AccountKey={_KEY};BlobEndpoint={url}/acc;",
            **_AZURE,
        ),
    ),
    Subject(
        "gcs",
        "target",
        lambda url, _p, _f: _target(
            "gcs",
            bucket="bbb",
            endpoint_url=url,
            credentials_json=_service_account(url),
            retries=0,
            request_timeout=2,
        ),
        keyed=True,
    ),
    Subject(
        "sftp, password", "target", lambda _u, port, _f: _target("sftp", password=SPICY, **_sftp(port)), LOGIN
    ),
    Subject(
        "sftp, key",
        "staging",
        lambda _u, port, _f: _staging("sftp", private_key=key_pem(), passphrase=SPICY, **_sftp(port)),
        LOGIN,
        keyed=True,
    ),
    Subject(
        "hdfs",
        "target",
        lambda url, _p, _f: _target("hdfs", url=url, root="/r", delegation_token=SPICY, read_timeout=2),
    ),
    Subject(
        "http",
        "target",
        lambda url, _p, _f: _target(
            "http", base_url=url, token=MILD, headers={"X-Api-Key": SPICY}, idle_timeout=2
        ),
    ),
    Subject(
        "http",
        "staging",
        lambda url, _p, _f: _staging(
            "http", base_url=url, token=MILD, headers={"X-Other": SPICY}, idle_timeout=2
        ),
    ),
    Subject(
        "postgres",
        "target",
        lambda _u, port, _f: _target("postgres", **_postgres(port)),
        LOGIN,
        echoing.postgresql_answer,
    ),
    Subject("module", "target", lambda _u, _p, folder: _module(folder), ALONE),
    Subject(
        "sqs",
        "queue",
        lambda url, _p, _f: {
            "queue": {"type": "sqs", "queue_url": f"{url}/1/q", "endpoint_url": url, **_AWS}
        },
    ),
    Subject(
        "rabbitmq",
        "queue",
        lambda _u, port, _f: {"queue": {"type": "rabbitmq", **_rabbitmq(port)}},
        LOGIN,
        echoing.amqp_answer,
    ),
    Subject(
        "sqs",
        "publisher",
        lambda url, _p, _f: {
            "publisher": {"type": "sqs", "queue_url": f"{url}/1/q", "endpoint_url": url, **_AWS}
        },
    ),
    Subject(
        "rabbitmq",
        "publisher",
        lambda _u, port, _f: {"publisher": {"type": "rabbitmq", **_rabbitmq(port)}},
        LOGIN,
        echoing.amqp_answer,
    ),
    Subject(
        "postgresql",
        "ledger",
        lambda _u, port, _f: {
            "ledger": {"url": f"postgresql://u:{quote(SPICY, safe='')}@127.0.0.1:{port}/d?sslmode=disable"}
        },
        LOGIN,
        echoing.postgresql_answer,
    ),
    Subject(
        "tracing",
        "beside",
        lambda url, _p, _f: {
            "tracing": {
                "enabled": True,
                "endpoint": url,
                "headers": {"X-Api-Key": MILD, "Authorization": f"Bearer {MILD}"},
            }
        },
    ),
    Subject(
        "cloudwatch",
        "beside",
        lambda url, _p, _f: {"cloudwatch": {"enabled": True, "interval": 1, "endpoint_url": url, **_AWS}},
    ),
    Subject(
        "key",
        "opened",
        lambda _u, _p, _f: {"encryption": {"primary": "k", "keys": {"k": {"key": f"{PLAIN}{SPICY}"}}}},
        ALONE,
    ),
    Subject(
        "kms",
        "opened",
        lambda url, _p, folder: {
            "encryption": {
                "primary": "k",
                "keys": {"k": {"kms_wrapped_file": str(folder / "given" / "wrapped")}},
                "kms": {"endpoint_url": url, **_AWS},
            }
        },
    ),
    Subject(
        "secrets manager",
        "opened",
        lambda url, _p, _f: {
            **_target("http", base_url=url, token_secret="prod/api#token"),
            "secrets": {"endpoint_url": url, "timeout": 3, **_AWS},
        },
    ),
)
