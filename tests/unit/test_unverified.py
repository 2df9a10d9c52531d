"""What is not verified is said when a worker starts, with its place and the option: case 104."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from worker.bootstrap import open_producer, open_service
from worker.settings import Settings, load_settings
from worker.unverified import unverified

SFTP = {"backend": "sftp", "host": "h", "username": "u", "password": "hidden", "root": "/r"}
POSTGRES = {"backend": "postgres", "host": "db", "database": "d", "user": "u"}
RABBIT = {"type": "rabbitmq", "queue": "q"}


def settings(tmp_path: Path, **sections: Any) -> Settings:
    file = tmp_path / "transload.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_settings(file=file, home=tmp_path / "home", environ={})


def told(tmp_path: Path, **sections: Any) -> list[tuple[str, str]]:
    return list(unverified(settings(tmp_path, **sections)))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"backend": "http", "base_url": "https://h", "verify_tls": False}, "verify_tls: false"),
        ({**SFTP, "verify_host_key": False}, "verify_host_key: false"),
        ({**POSTGRES, "sslmode": "disable"}, "sslmode: disable"),
        ({**POSTGRES, "sslmode": "prefer"}, "sslmode: prefer"),
        ({**POSTGRES, "sslmode": "require"}, "sslmode: require"),
        ({**POSTGRES, "sslmode": "verify-ca"}, "sslmode: verify-ca"),
    ],
    ids=str,
)
def test_case_104_each_place_and_option_is_named(
    tmp_path: Path, options: dict[str, Any], option: str
) -> None:
    ((place, what),) = told(tmp_path, targets={"lake": options})
    assert place == "targets.lake"
    assert option in what
    assert "hidden" not in what
    ((place, _),) = told(tmp_path, staging={"drop": options})
    assert place == "staging.drop"


def test_case_104_everything_is_verified_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    safe = {
        "api": {"backend": "http", "base_url": "https://h"},
        "drop": {**SFTP, "host_key": "ssh-ed25519 AAAA"},
        "rows": POSTGRES,
        "local": {**POSTGRES, "host": "127.0.0.1", "sslmode": "disable"},
        "socket": {**POSTGRES, "host": "/var/run/postgresql"},
        "lake": {"backend": "s3", "bucket": "bucket"},
        "google": {"backend": "gcs", "bucket": "bucket"},
        "blob": {"backend": "azure", "account": "account", "container": "container"},
        "hadoop": {"backend": "hdfs", "url": "https://namenode:9871", "root": "/data"},
    }
    queue = {**RABBIT, "url": "amqps://u:hidden@broker/"}
    ledger = {"url": "postgresql://u:hidden@db/d?sslmode=verify-full"}
    assert told(tmp_path, targets=safe, queue=queue, ledger=ledger) == []
    assert told(tmp_path) == []


@pytest.mark.parametrize("section", ["queue", "publisher"])
def test_case_104_a_broker_that_need_not_prove_itself(tmp_path: Path, section: str) -> None:
    url = "amqps://u:hidden@broker/?no_verify_ssl=1"
    ((place, what),) = told(tmp_path, **{section: {**RABBIT, "url": url}})
    assert (place, "no_verify_ssl" in what, "hidden" in what) == (section, True, False)


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://u:hidden@db/d", "prefer"),
        ("postgresql://u:hidden@db/d?sslmode=require", "require"),
        ("postgresql://u:hidden@127.0.0.1,db/d?ssl=require", "require"),
        ("postgresql:///d?host=db", "prefer"),
        ("postgresql://u:hidden@127.0.0.1/d", None),
        ("postgresql:///d?host=/var/run/postgresql", None),
    ],
)
def test_case_104_the_ledger_s_server(tmp_path: Path, url: str, mode: str | None) -> None:
    found = told(tmp_path, ledger={"url": url})
    assert [place for place, _ in found] == (["ledger"] if mode else [])
    assert all(f"sslmode={mode}" in what and "hidden" not in what for _, what in found)


@pytest.mark.parametrize("opening", [open_service, open_producer])
async def test_case_104_it_is_logged_at_the_start(tmp_path: Path, opening: Any) -> None:
    # It need not come up: what is not verified is said first.
    wrong = {"backend": "http", "base_url": "https://127.0.0.1:1", "verify_tls": False}
    chosen = settings(tmp_path, staging={"main": wrong})
    with capture_logs() as logs, pytest.raises(Exception, match=r"127\.0\.0\.1:1|closed|cannot|could not"):
        async with opening(chosen):
            pass
    assert logs[0]["log_level"] == "warning"
    assert logs[0]["place"] == "staging.main"
    assert "verify_tls: false" in logs[0]["because"]
