"""Values that settings refer to: files, and secrets of AWS Secrets Manager where nobody is asked yet."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.config_references import FILE_LIMIT
from worker.settings import Settings, SettingsError, check_settings, load_settings

CANARY = "canary-secret-0123456789"
S3 = "backend: s3, bucket: bbb, access_key_id: a"
Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, **environ: str) -> Settings:
        file = tmp_path / "t.yaml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file=file, home=tmp_path / "home", environ={"HOME": str(tmp_path), **environ})

    return load


def problem(load: Load, text: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(text, **environ)
    (line,) = caught.value.problems
    assert CANARY not in line
    return line.partition("/t.yaml")[2] or line


def held(folder: Path, content: bytes | str = CANARY, mode: int = 0o400) -> Path:
    path = folder / "held"
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [CANARY, f"{CANARY}\n", f"{CANARY}\r\n", f"\ufeff{CANARY}\n"])
def test_case_106_a_file_holds_a_value_without_the_newline_at_its_end(
    load: Load, tmp_path: Path, content: str
) -> None:
    held(tmp_path, content)
    options: Any = load(f"targets: {{m: {{{S3}, secret_access_key_file: held}}}}").targets["m"].options
    assert options.secret_access_key.get_secret_value() == CANARY


def test_everything_else_of_a_file_is_the_value(load: Load, tmp_path: Path) -> None:
    held(tmp_path, f" {CANARY} \n\n")
    options: Any = load(f"targets: {{m: {{{S3}, secret_access_key_file: ~/held}}}}").targets["m"].options
    assert options.secret_access_key.get_secret_value() == f" {CANARY} \n"


def test_files_stand_for_values_of_every_kind_and_depth(load: Load, tmp_path: Path) -> None:
    held(tmp_path, f"postgresql://u:{CANARY}@db/x\n")
    assert load("ledger: {url_file: held}").ledger.url == f"postgresql://u:{CANARY}@db/x"
    held(tmp_path, "7\n")
    assert load("worker: {concurrency_file: held}").worker.concurrency == 7
    held(tmp_path)
    api: Any = (
        load("targets: {m: {backend: http, base_url: 'http://h', headers: {X-Key_file: held}}}")
        .targets["m"]
        .options
    )
    assert api.headers["X-Key"].get_secret_value() == CANARY
    settings = load("tracing: {headers: {authorization_file: held}}\nadmin: {token_file: held}")
    assert settings.tracing.headers["authorization"].get_secret_value() == CANARY
    assert settings.admin.token is not None
    held(tmp_path, "ab" * 32)
    ring = load(
        "encryption: {primary: k, keys: {k: {key_env: K}}, kms: {access_key_id: a, secret_access_key_file: held}}",
        K="cd" * 32,
    )
    assert ring.encryption is not None
    assert ring.encryption.kms.secret_access_key is not None


def test_an_option_that_is_called_so_is_no_reference(load: Load, tmp_path: Path) -> None:
    held(tmp_path)
    api: Any = (
        load("targets: {m: {backend: http, base_url: 'http://h', token_file: held}}").targets["m"].options
    )
    assert (api.token, api.token_file) == (None, tmp_path / "held")
    azure: Any = load(
        "targets: {m: {backend: azure, account: acc, container: ccc, tenant_id: t, client_id: c, client_secret_file: held}}"
    )
    assert azure.targets["m"].options.client_secret.get_secret_value() == CANARY
    azure = load(
        "targets: {m: {backend: azure, account: acc, container: ccc, tenant_id: t, client_id: c, client_secret: s}}"
    )
    assert azure.targets["m"].options.client_secret.get_secret_value() == "s"
    module: Any = load(
        "targets: {m: {backend: module, module: json, options: {key_file: held, token_secret: x}}}"
    )
    assert module.targets["m"].options.options == {"key_file": "held", "token_secret": "x"}


def test_a_variable_may_name_the_file_and_replaces_every_other_spelling(load: Load, tmp_path: Path) -> None:
    held(tmp_path)
    text = f"targets: {{m: {{{S3}, secret_access_key_secret: prod/s3}}}}"
    settings = load(text, TRANSLOAD_TARGETS__M__SECRET_ACCESS_KEY_FILE=str(tmp_path / "held"))
    options: Any = settings.targets["m"].options
    assert options.secret_access_key.get_secret_value() == CANARY
    given: Any = load(text, TRANSLOAD_TARGETS__M__SECRET_ACCESS_KEY="given").targets["m"].options
    assert given.secret_access_key.get_secret_value() == "given"


def test_case_106_a_file_that_cannot_be_used_says_why(load: Load, tmp_path: Path) -> None:
    text = f"targets:\n  m: {{{S3}, secret_access_key_file: held}}"
    where = ":2: targets.m.secret_access_key_file: "
    assert problem(load, text).startswith(
        f"{where}{tmp_path}/held cannot be read (No such file or directory)"
    )
    for content, said in (
        ("", "is empty"),
        ("\n", "is empty"),
        (b"\xff\xfe", "holds no UTF-8 text"),
        ("x" * (FILE_LIMIT + 1), "is larger than"),
    ):
        held(tmp_path, content)
        assert problem(load, text).startswith(f"{where}{tmp_path}/held {said}")
    held(tmp_path, f"{CANARY}\0")
    assert "holds a NUL" in problem(load, text)
    held(tmp_path, mode=0o646)
    assert (
        problem(load, text)
        == f"{where}{tmp_path}/held can be written by everybody; chmod 0400 {tmp_path}/held"
    )
    (tmp_path / "held").unlink()
    os.mkfifo(tmp_path / "held")
    assert "is no file" in problem(load, text)
    assert "is no file" in problem(load, text.replace("held", "."))
    assert problem(load, text.replace("held", "[a]")).endswith("must be the path of a file; write it as text")


def test_one_value_is_given_once(load: Load, tmp_path: Path) -> None:
    held(tmp_path)
    for other in ("secret_access_key", "secret_access_key_secret"):
        line = problem(load, f"targets: {{m: {{{S3}, secret_access_key_file: held, {other}: x}}}}")
        assert "given beside secret_access_key; keep one of the two" in line


def test_a_reference_to_a_key_nobody_knows_is_an_unknown_key(load: Load) -> None:
    assert "unknown key" in problem(load, "worker: {nonsense_file: held}")
    assert "unknown key; did you mean 'known_hosts'?" in problem(
        load,
        "targets: {m: {backend: sftp, host: h, username: u, root: /r, password: p, host_key: k, known_hosts_file: held}}",
    )
    assert "unknown key" in problem(load, "home_file: held")


# Secrets Manager, without asking it


def check(tmp_path: Path, text: str) -> tuple[Settings | None, list[str]]:
    file = tmp_path / "t.yaml"
    file.write_text(text, encoding="utf-8")
    settings, unread = check_settings(file=file, home=tmp_path / "home", environ={})
    return settings, list(unread)


def test_a_check_names_what_it_does_not_read_and_sees_everything_else(tmp_path: Path) -> None:
    text = f"ledger: {{url_secret: prod/db#url}}\ntargets: {{m: {{{S3}, secret_access_key_secret: 'prod/s3#key#AWSPREVIOUS'}}}}"
    assert check(tmp_path, text) == (None, ["ledger.url", "targets.m.secret_access_key"])
    with pytest.raises(SettingsError, match=r"worker\.concurrency: '0' should be"):
        check(tmp_path, f"{text}\nworker: {{concurrency: '0'}}")
    settings, unread = check(tmp_path, "worker: {concurrency: 3}")
    assert settings is not None
    assert unread == []


@pytest.mark.parametrize("given", [f"{CANARY} with spaces", "[a]", "''", "a#b#c#d", "a#b#", "3"])
def test_case_99_what_is_no_id_is_refused_and_not_repeated(load: Load, given: str) -> None:
    line = problem(load, f"admin: {{token_secret: {given}}}")
    assert (
        "admin.token_secret: must be the id or ARN of a secret in AWS Secrets Manager: ID, ID#KEY or ID#KEY#STAGE"
        in line
    )
    assert "spaces" not in line


def test_what_reaches_secrets_manager_cannot_come_from_there(load: Load) -> None:
    line = problem(load, "secrets: {access_key_id: a, secret_access_key_secret: prod/own}")
    assert "secrets.secret_access_key_secret: is needed to reach Secrets Manager" in line


def test_without_its_package_the_command_that_installs_it_is_told(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker.secrets_manager", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiobotocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiobotocore", None)
    assert "pip install 'transload[secrets]'" in problem(load, "admin: {token_secret: prod/admin}")


def test_a_wrong_section_is_told_once_and_nobody_is_asked(load: Load) -> None:
    line = problem(load, "secrets: {endpoint_url: nonsense}\nadmin: {token_secret: prod/admin}")
    assert "secrets.endpoint_url" in line
